//go:build linux

package main

// all runs the chosen experiments, in the order of the report.
func (b *bench) all() (map[string][]result, error) {
	results := map[string][]result{}
	for _, e := range b.experiments() {
		if !chosen(b.only, e.name) {
			continue
		}
		r, err := b.measure(e)
		if err != nil {
			return nil, err
		}
		results[e.name] = r
	}
	return results, nil
}

func (b *bench) experiments() []experiment {
	peers := []string{"nginx", "haproxy", "caddy", "traefik"}
	ours := []string{"fast", "std-fast", "std"}
	all := append(append([]string{}, peers...), ours...)
	lead := []string{"nginx", "haproxy", "fast"} // where the question is the shape, not the peer
	bodies := append([]string{"nginx-default"}, lead...)
	get := request{path: "/x", conns: 64}
	full := shape{features: true, routes: 100}
	list := []experiment{
		{"plain", "Plain forwarding, 1 KiB answers, 64 connections", all, shape{}, get},
		{"full", "The same features on in each: 100 routes, forwarded headers, request id, JSON access log, limit in memory; ours has breaker and metrics beside", append(all, "fast-command", "fast-told"), full, get},
		{"rate", "The same, at a fixed rate", all, full, request{path: "/x", conns: 64, rate: b.rate}},
		{"post", "POST of 512 bytes", lead, shape{}, request{path: "/x", conns: 64, body: 512}},
		{"chunked", "POST of 512 bytes, chunked", lead, shape{}, request{path: "/x", conns: 64, body: 512, chunked: true}},
		{"10k", "Answers of 10 KiB", bodies, shape{}, request{path: "/10k", conns: 64}},
		{"100k", "Answers of 100 KiB", bodies, shape{}, request{path: "/100k", conns: 64}},
		{"100k-both", "100 KiB up and 100 KiB down", bodies, shape{}, request{path: "/100k", conns: 64, body: 100 << 10}},
		{"1m-both", "1 MiB up and 1 MiB down", bodies, shape{}, request{path: "/1m", conns: 64, body: 1 << 20}},
	}
	// The last is as many as fit twice, client and backend, into the 20,000 open
	// files that a process may have on many machines.
	for _, n := range []int{8, 256, 1000, 9000} {
		list = append(list, experiment{"conns-" + itoa(n), "Plain, " + itoa(n) + " connections", lead, shape{}, request{path: "/x", conns: n}})
	}
	for _, n := range []int{1, 1000} {
		list = append(list, experiment{"routes-" + itoa(n), itoa(n) + " routes, requests spread over all", lead, shape{routes: n}, get})
	}
	for _, n := range []int{3, 3000} {
		list = append(list, experiment{"instances-" + itoa(n), itoa(n) + " instances of one service", lead, shape{instances: n}, get})
	}
	list = append(list, experiment{"idle", "Memory of 1,000 idle keep-alive connections", all, shape{}, request{path: "/x", idle: 1000}})
	// Our own layers, each beside the one below it.
	for _, l := range []struct{ name, layers, title string }{
		{"layer-none", "", "Layers: none"},
		{"layer-breaker", "breaker", "Layers: breaker, direct"},
		{"layer-command", "command", "Layers: breaker, the hystrix command"},
		{"layer-log", "log", "Layers: access log"},
		{"layer-limit", "limit", "Layers: limit by lease"},
	} {
		list = append(list, experiment{l.name, l.title, []string{"nginx", "fast"}, shape{layers: l.layers}, get})
	}
	return list
}
