// Package consul is the only door to Consul: Client reaches an agent, Watcher
// keeps a discovery.Catalog in step with it by blocking queries, Registrar is
// the self-registration that any Go service imports, SnapshotFile lets a
// replica start while Consul is away, and Replicas counts the living gateways.
//
// It never turns an error into an empty list, never exits a process because
// Consul is gone, and shows no type of hashicorp/consul/api to its callers.
package consul
