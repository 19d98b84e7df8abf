package config_test

import (
	"testing"
	"time"

	"github.com/proconsul/proconsul/config"
)

// A list's elements begin as their defaults, and what they write, 0 and []
// among it, stays as written.
func TestElementDefaults(t *testing.T) {
	c, err := config.Parse("t.yaml", []byte(`
version: 1
listen:
  - {addr: ":9090", limits: {max_in_flight: 0, max_queue: 0}}
upstreams:
  - {service: orders, retry: {attempts: 0, methods: []}, timeout: {idle: 0s}}
routes:
  - {name: a, match: {path: /a}, rate_limit: {rate: 5/s}, upstream: {service: users}}
`), config.LoadOptions{Pure: true})
	if err != nil {
		t.Fatal(err)
	}
	l, want := c.Listen[0], config.DefaultListen()
	want.Name, want.Addr = ":9090", ":9090"
	want.Limits.MaxInFlight, want.Limits.MaxQueue = 0, 0
	if l.Limits != want.Limits || l.Timeouts != want.Timeouts || l.Addr != want.Addr || l.Name != want.Name {
		t.Errorf("listen[0] = %+v, want %+v", l, want)
	}
	u := c.Upstreams[0]
	if u.Retry.Attempts != 0 || len(u.Retry.Methods) != 0 || u.Timeout.Idle != 0 {
		t.Errorf("written zeros are lost: %+v", u)
	}
	if u.Retry.MinRate != 10 || u.Timeout.Connect != 2*time.Second || u.Balance != "weighted" {
		t.Errorf("defaults are missing: %+v", u)
	}
	if u, ok := c.Upstream("users"); !ok || !u.Implicit || u.Service != "users" || u.Retry.Attempts != 2 {
		t.Errorf("implicit upstream = %+v, %v", u, ok)
	}
	if rl := c.Routes[0].RateLimit; rl.By != "client_ip" || rl.OnStoreError != "local" || len(rl.Limits) != 1 || rl.Limits[0] != (config.Limit{Count: 5, Window: time.Second}) {
		t.Errorf("rate_limit = %+v", rl)
	}
}
