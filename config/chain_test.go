package config_test

import (
	"slices"
	"testing"

	"github.com/proconsul/proconsul/config"
)

// A route's own section beats its policies', a later policy's beats an earlier
// one's, and a section that only one has stays.
func TestChain(t *testing.T) {
	c, err := config.Parse("f.yaml", []byte(`
policies:
  - {name: a, rate_limit: {rate: 1/s}, headers: {request: {remove: [X-A]}}}
  - {name: b, rate_limit: {rate: 2/s}}
routes:
  - {name: none, match: {path: /n}, upstream: {service: s}}
  - {name: both, match: {path: /b}, use: [a, b], upstream: {service: s}}
  - {name: order, match: {path: /o}, use: [b, a], upstream: {service: s}}
  - {name: own, match: {path: /w}, use: [a], rate_limit: {rate: 9/s}, upstream: {service: s}}
`), config.LoadOptions{Pure: true})
	if err != nil {
		t.Fatal(err)
	}
	want := []struct {
		rate    int
		headers bool
	}{{0, false}, {2, true}, {1, true}, {9, true}}
	for i, r := range c.Routes {
		m := c.Chain(r)
		rate := 0
		if m.RateLimit != nil {
			rate = m.RateLimit.Limits[0].Count
		}
		if rate != want[i].rate || (m.Headers != nil) != want[i].headers {
			t.Errorf("%s: rate %d, headers %v, want %+v", r.Name, rate, m.Headers != nil, want[i])
		}
	}
}

func TestNeedsRestart(t *testing.T) {
	parse := func(s string) *config.Config {
		c, err := config.Parse("f.yaml", []byte(s), config.LoadOptions{Pure: true})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a := parse("listen: [{addr: ':1'}]\nconsul: {token: a}\nroutes: [{name: a, upstream: {service: s}}]\n")
	if got := a.NeedsRestart(parse("listen: [{addr: ':1'}]\nconsul: {token: a}\nshutdown: {grace: 1s}\n")); len(got) != 0 {
		t.Errorf("routes and shutdown reload, got %q", got)
	}
	got := a.NeedsRestart(parse("listen: [{addr: ':1', limits: {max_headers: 7}}]\nconsul: {token: b}\nredis: {tls: {}}\nlog: {level: debug}\n"))
	want := []string{"listen[0].limits.max_headers", "consul.token", "redis.tls", "log.level"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
