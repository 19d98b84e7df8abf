package app_test

import (
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/parts"
)

// TestOutagesOfConsulAndRedisCostNothing takes away, under load, what the
// gateway asks: the last catalog serves, limits are kept by each replica, the
// status page and the metrics say so, and both recover by themselves.
func TestOutagesOfConsulAndRedisCostNothing(t *testing.T) {
	t.Parallel()
	bin, consul, redis := binaries(t), parts.StartConsul(t), parts.StartRedis(t)
	o := parts.ReplicaOptions{Config: dependencies(consul, redis) + `
upstreams: [{service: echo, outlier: {eject_for: 1s}}]
routes:
  - name: plain
    match: {path: "/plain/**"}
    upstream: {service: echo}
  - name: limited
    match: {path: "/limited/**"}
    upstream: {service: echo}
    rate_limit: {by: client_ip, limits: [1000000/1m], on_store_error: local}
`}
	replicas := []*parts.Replica{bin.StartReplica(t, o), bin.StartReplica(t, o)}
	for _, id := range []string{"echo-1", "echo-2", "echo-3"} {
		bin.StartEcho(t, parts.EchoOptions{Consul: consul.Addr, Name: "echo", ID: id})
	}
	var urls []string
	for _, r := range replicas {
		r.AwaitUsable("echo", 3)
		urls = append(urls, r.URL("/plain/x"), r.URL("/limited/x"))
	}
	// shows waits until every replica says so: states of Consul and Redis, and
	// whether the pool is served from Consul's last answer.
	shows := func(consulState, redisState string, stale bool) {
		t.Helper()
		for _, r := range replicas {
			var last string
			parts.Eventually(t, patience, "replica "+r.Addr+" does not show Consul "+consulState+", Redis "+redisState+": "+last, func() bool {
				s := r.MustStatus()
				return s.Consul.State == consulState && s.Redis.State == redisState && (len(s.Consul.Stale) > 0) == stale && r.Upstream("echo").Stale == stale
			})
			for metric, state := range map[string]string{"proconsul_consul_up": consulState, "proconsul_redis_up": redisState} {
				want := 0.0
				if state == "up" {
					want = 1
				}
				if got, ok := r.Metric(metric); !ok || got != want {
					t.Errorf("%s is %v (%v), want %v", metric, got, ok, want)
				}
			}
			if stale {
				if got, _ := r.Metric("proconsul_catalog_stale_services"); got < 1 {
					t.Errorf("proconsul_catalog_stale_services is %v while Consul is away", got)
				}
				if s := r.MustStatus(); s.Consul.Error == "" {
					t.Errorf("the status does not say why Consul is down: %+v", s.Consul)
				}
			}
			if redisState == "down" {
				if s := r.MustStatus(); s.Redis.Error == "" {
					t.Errorf("the status does not say why Redis is down: %+v", s.Redis)
				}
			}
			if code, err := readyz(r); err != nil || code != 200 {
				t.Errorf("/readyz: %d %v; a replica that serves is ready", code, err)
			}
		}
	}
	shows("up", "up", false)
	load := parts.StartLoad(t, parts.LoadOptions{URLs: urls, Workers: 8, Pace: 2 * time.Millisecond})
	load.Await(200)

	consul.Stop()
	shows("down", "up", true)
	load.Await(200)
	for _, r := range replicas {
		if u := r.Upstream("echo"); u.Usable != 3 {
			t.Errorf("without Consul %d of 3 instances are usable: %+v", u.Usable, u.Instances)
		}
	}

	redis.Kill()
	shows("down", "down", true)
	load.Await(200)
	for _, r := range replicas { // once the lease that it has is at its end
		parts.Eventually(t, patience, "no decision is made locally while Redis is away", func() bool {
			got, _ := r.Metric("proconsul_ratelimit_decisions_total", `policy="limited"`, `decision="local"`)
			return got > 0
		})
	}

	redis.Start()
	shows("down", "up", true)
	load.Await(200)

	consul.Start()
	shows("up", "up", false)
	for _, r := range replicas {
		r.AwaitUsable("echo", 3)
	}
	load.Await(200)

	// Redis alone, under the same load.
	redis.Kill()
	shows("up", "down", false)
	load.Await(200)
	redis.Start()
	shows("up", "up", false)
	load.Await(200)

	tally := load.Stop()
	noFailures(t, tally)
	if tally.Status[429] > 0 {
		t.Errorf("the limit was far away and still refused: %v", tally)
	}
	t.Log(tally)
}

// TestConsulRestartsMidTraffic restarts the agent as an upgrade does: its
// checks begin critical and without output, which is not news of the services.
func TestConsulRestartsMidTraffic(t *testing.T) {
	t.Parallel()
	bin, consul := binaries(t), parts.StartConsul(t)
	r := bin.StartReplica(t, parts.ReplicaOptions{Config: dependencies(consul, nil) + echoRoutes})
	for _, id := range []string{"echo-1", "echo-2", "echo-3"} {
		bin.StartEcho(t, parts.EchoOptions{Consul: consul.Addr, Name: "echo", ID: id})
	}
	r.AwaitUsable("echo", 3)
	load := parts.StartLoad(t, parts.LoadOptions{URLs: []string{r.URL("/api/x")}, Pace: time.Millisecond})
	load.Await(100)
	for range 2 {
		contact := r.MustStatus().Consul.LastContact
		consul.Stop()
		load.Await(50)
		consul.Start()
		parts.Eventually(t, patience, "the replica has not come back to Consul", func() bool {
			s := r.MustStatus()
			return s.Consul.State == "up" && s.Consul.LastContact.After(contact) && len(s.Consul.Stale) == 0
		})
		r.AwaitUsable("echo", 3)
		load.Await(50)
	}
	// The gateway is registered again, too.
	r2 := bin.StartReplica(t, parts.ReplicaOptions{Config: dependencies(consul, nil) + `
routes: [{name: gateways, match: {path: /}, upstream: {service: proconsul}}]
`})
	r2.AwaitUsable("proconsul", 2)
	tally := load.Stop()
	noFailures(t, tally)
	t.Log(tally)
}
