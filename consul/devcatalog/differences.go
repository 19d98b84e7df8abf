package devcatalog

// Where this server knowingly differs from Consul 1.15.3, beyond what it does
// not have at all (ACLs, Connect's CA and intentions, sessions and locks,
// transactions, prepared queries, coordinates, gRPC, DNS, a UI, other
// datacenters):
//
//   - Limits: ids, names and keys of more than 1024 bytes are a 400; more
//     entries or blocking queries than Limits allows are a 503 or a 429.
//   - Checks: HTTP, TCP and TTL only; any other kind is a 400 at registration
//     and never a check that looks alive and is not run. An HTTP check keeps
//     the first 4 KiB of a body, Consul the last.
//   - There is one server and no anti-entropy: what is written through the
//     catalog onto the agent's own node stays, and a service that is
//     deregistered through the catalog comes back with its next registration.
//   - Indexes are per service, node and key and count from Options.StartIndex;
//     Consul sometimes answers with the index of a whole table, and therefore
//     wakes more often (a missing service, a missing key).
//   - An instance that takes another name wakes the watchers of both. Consul
//     does not raise the old name's index, so a query that begins after it
//     blocks for its whole wait.
//   - A client that leaves frees its blocking query at once, always.
//   - agent/members and agent/self name only the server's own facts; the list
//     of the WAN is null.
//   - agent/health/service does not repeat a check's definition.
//   - A Connect native instance gets no address "consul-virtual", and other
//     kinds of proxies are kept without looking at them.
//   - The answer to a filter that is wrong has no index and no other header of
//     a query, and its text names fewer things that could have come instead.
//   - The order of ?passing results stays that of the list.
