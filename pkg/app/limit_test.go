package app_test

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/pkg/parts"
)

// TestTwoReplicasShareOneLimit sends three times a limit over both replicas at
// once: exactly the limit passes, for each client, whoever the client is known
// from.
func TestTwoReplicasShareOneLimit(t *testing.T) {
	t.Parallel()
	bin, consul, redis := binaries(t), parts.StartConsul(t), parts.StartRedis(t)
	o := parts.ReplicaOptions{
		Listener: "trusted_proxies: [127.0.0.1/32]",
		// On a busy machine Redis may be slow, and replicas would count alone.
		Config: strings.Replace(dependencies(consul, redis), "redis: {", "redis: {timeout: 5s, ", 1) + `
routes:
  - name: limited
    match: {path: "/limited/**"}
    upstream: {service: echo}
    rate_limit: {by: client_ip, limits: [100/1h]}
  - name: two
    match: {path: /two}
    upstream: {service: echo}
    rate_limit: {by: route, limits: [30/1h, 1000/1d]}
`}
	a, b := bin.StartReplica(t, o), bin.StartReplica(t, o)
	bin.StartEcho(t, parts.EchoOptions{Consul: consul.Addr, Name: "echo", ID: "echo-1"})
	for _, r := range []*parts.Replica{a, b} {
		r.AwaitUsable("echo", 1)
		parts.Eventually(t, patience, "the replica has not reached Redis", func() bool { return r.MustStatus().Redis.State == "up" })
	}
	fire := func(n int, path, from, forwarded string) parts.Tally {
		t.Helper()
		header := http.Header{}
		if forwarded != "" {
			header.Set("X-Forwarded-For", forwarded)
		}
		tally := parts.Fire(t, n, parts.LoadOptions{URLs: []string{a.URL(path), b.URL(path)}, Workers: 32, From: from, Header: header})
		noFailures(t, tally)
		return tally
	}
	admits := func(what string, tally parts.Tally, want int) {
		t.Helper()
		if got := tally.Status[http.StatusOK]; got != want || got+tally.Status[http.StatusTooManyRequests] != tally.Requests ||
			tally.Reasons["rate_limited"] != tally.Requests-want {
			t.Errorf("%s: %d of %d requests passed, want %d: %v", what, got, tally.Requests, want, tally)
		}
	}

	admits("the client behind a trusted proxy", fire(300, "/limited/a", "", "203.0.113.7"), 100)
	admits("the same client", fire(20, "/limited/b", "", "203.0.113.7"), 0)
	admits("the same client with an address that it wrote itself", fire(20, "/limited/b", "", "198.51.100.99, 203.0.113.7"), 0)
	admits("another client", fire(20, "/limited/b", "", "203.0.113.8"), 20)

	// 127.0.0.2 is not trusted: what it says of others is not believed.
	admits("a peer of its own", fire(150, "/limited/a", "127.0.0.2", ""), 100)
	for _, spoofed := range []string{"203.0.113.9", "203.0.113.10", "127.0.0.1"} {
		admits("a peer that claims to be "+spoofed, fire(10, "/limited/a", "127.0.0.2", spoofed), 0)
	}

	admits("two limits at once", fire(100, "/two", "", ""), 30)

	for _, tt := range []struct {
		name, path, forwarded string
		status                int
		header                map[string]string // of regular expressions
	}{
		{"passed", "/limited/x", "203.0.113.77", http.StatusOK, map[string]string{
			"RateLimit": `^"1h";r=99;t=\d+$`, "RateLimit-Policy": `^"1h";q=100;w=3600$`,
			"X-RateLimit-Limit": "^100$", "X-RateLimit-Remaining": "^99$", "X-RateLimit-Reset": `^\d+$`, "Retry-After": "^$"}},
		{"refused", "/limited/x", "203.0.113.7", http.StatusTooManyRequests, map[string]string{
			"RateLimit": `^"1h";r=0;t=\d+$`, "RateLimit-Policy": `^"1h";q=100;w=3600$`,
			"X-RateLimit-Limit": "^100$", "X-RateLimit-Remaining": "^0$", "X-RateLimit-Reset": `^\d+$`, "Retry-After": `^\d+$`,
			"X-Proconsul-Reason": "^rate_limited$", "Content-Type": "^application/problem\\+json$"}},
		{"refused by the tighter of two", "/two", "", http.StatusTooManyRequests, map[string]string{
			"RateLimit": `^"1h";r=0;t=\d+, "1d";r=970;t=\d+$`, "RateLimit-Policy": `^"1h";q=30;w=3600, "1d";q=1000;w=86400$`,
			"X-RateLimit-Limit": "^30$"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequest(http.MethodGet, a.URL(tt.path), nil)
			if err != nil {
				t.Fatal(err)
			}
			if tt.forwarded != "" {
				req.Header.Set("X-Forwarded-For", tt.forwarded)
			}
			resp := send(t, req)
			if resp.StatusCode != tt.status {
				t.Errorf("status %d, want %d", resp.StatusCode, tt.status)
			}
			for name, want := range tt.header {
				if got := resp.Header.Get(name); !regexp.MustCompile(want).MatchString(got) {
					t.Errorf("%s: %q, want %s", name, got, want)
				}
			}
			if after := resp.Header.Get("Retry-After"); after != "" {
				// A window slides in steps, here of less than two minutes.
				if s, _ := strconv.Atoi(after); s < 1 || s > 3720 {
					t.Errorf("Retry-After: %s, want a second to an hour", after)
				}
			}
		})
	}
}
