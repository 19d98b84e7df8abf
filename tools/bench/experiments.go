//go:build linux

package main

import "slices"

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
		{name: "plain", title: "Plain forwarding, 1 KiB answers, 64 connections", targets: all, load: get},
		{name: "full", title: "The same features on in each: 100 routes, forwarded headers, request id, JSON access log, limit in memory; ours has breaker and metrics beside", targets: append(slices.Insert(slices.Clone(all), 2, "haproxy-syslog"), "fast-command", "fast-told"), shape: full, load: get, beside: "haproxy-syslog"},
		{name: "rate", title: "The same, at a fixed rate", targets: all, shape: full, load: request{path: "/x", conns: 64, rate: b.rate}},
		{name: "post", title: "POST of 512 bytes", targets: lead, load: request{path: "/x", conns: 64, body: 512}},
		{name: "chunked", title: "POST of 512 bytes, chunked", targets: lead, load: request{path: "/x", conns: 64, body: 512, chunked: true}},
		{name: "10k", title: "Answers of 10 KiB", targets: bodies, load: request{path: "/10k", conns: 64}},
		{name: "100k", title: "Answers of 100 KiB", targets: bodies, load: request{path: "/100k", conns: 64}},
		{name: "100k-both", title: "100 KiB up and 100 KiB down", targets: bodies, load: request{path: "/100k", conns: 64, body: 100 << 10}},
		{name: "1m-both", title: "1 MiB up and 1 MiB down", targets: bodies, load: request{path: "/1m", conns: 64, body: 1 << 20}},
	}
	// The last is as many as fit twice, client and backend, into the 20,000 open
	// files that a process may have on many machines.
	for _, n := range []int{8, 256, 1000, 9000} {
		list = append(list, experiment{name: "conns-" + itoa(n), title: "Plain, " + itoa(n) + " connections", targets: lead, load: request{path: "/x", conns: n}})
	}
	list = append(list, experiment{name: "routes-1000", title: "1,000 routes, requests spread over all", targets: append(slices.Clone(lead), "fast-one"), shape: shape{routes: 1000}, load: get, beside: "fast-one"})
	for _, n := range []int{3, 3000} {
		list = append(list, experiment{name: "instances-" + itoa(n), title: itoa(n) + " instances of one service", targets: lead, shape: shape{instances: n}, load: get})
	}
	list = append(list, experiment{name: "idle", title: "Memory of 1,000 idle keep-alive connections", targets: all, load: request{path: "/x", idle: 1000}})
	// Our own layers, each beside the one below it.
	for _, l := range []struct{ name, layers, title string }{
		{"layer-none", "", "Layers: none"},
		{"layer-breaker", "breaker", "Layers: breaker, direct"},
		{"layer-command", "command", "Layers: breaker, the hystrix command"},
		{"layer-log", "log", "Layers: access log"},
		{"layer-limit", "limit", "Layers: limit by lease"},
	} {
		list = append(list, experiment{name: l.name, title: l.title, targets: []string{"nginx", "fast"}, shape: shape{layers: l.layers}, load: get})
	}
	return list
}
