package app_test

import (
	"fmt"
	"math"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/parts"
)

// echoRoutes has one route to the service echo. An instance that was thrown out
// is tried again soon, so that tests need not wait for it.
const echoRoutes = `
upstreams: [{service: echo, outlier: {eject_for: 1s}}]
routes:
  - name: echo
    match: {path: "/api/**"}
    upstream: {service: echo, strip: /api}
`

// TestTrafficFollowsTheCatalog is the main job: services register themselves,
// traffic spreads by their weights over two replicas, and whatever happens to
// an instance, the pools follow and no request fails.
func TestTrafficFollowsTheCatalog(t *testing.T) {
	t.Parallel()
	bin, consul := binaries(t), parts.StartConsul(t)
	config := dependencies(consul, nil) + echoRoutes
	a, b := bin.StartReplica(t, parts.ReplicaOptions{Config: config}), bin.StartReplica(t, parts.ReplicaOptions{Config: config})
	replicas := []*parts.Replica{a, b}
	usable := func(n int) {
		t.Helper()
		for _, r := range replicas {
			r.AwaitUsable("echo", n)
		}
	}

	var instances []*parts.Echo
	for i, weight := range []int{3, 2, 1} {
		instances = append(instances, bin.StartEcho(t, parts.EchoOptions{
			Consul: consul.Addr, Name: "echo", ID: fmt.Sprintf("echo-%d", i+1), Weight: weight}))
	}
	usable(3)

	// Smooth weighted: each replica's own share is exact to within one of a
	// cycle at each of a few changes of the pool; there is none here.
	for _, r := range replicas {
		tally := parts.Fire(t, 600, parts.LoadOptions{URLs: []string{r.URL("/api/x")}, Workers: 8})
		noFailures(t, tally)
		for id, want := range map[string]int{"echo-1": 300, "echo-2": 200, "echo-3": 100} {
			if got := tally.Instances[id]; math.Abs(float64(got-want)) > 3 {
				t.Errorf("%s answered %d of 600 requests, want %d: %v", id, got, want, tally)
			}
		}
	}

	load := parts.StartLoad(t, parts.LoadOptions{URLs: []string{a.URL("/api/x"), b.URL("/api/y")}, Workers: 6, Pace: time.Millisecond})
	load.Await(100)
	// unused waits until the pools have let go of an instance, and checks that
	// it then gets no further request.
	unused := func(id string) {
		t.Helper()
		usable(2)
		load.AwaitOpen() // it may still answer those
		before := load.Tally().Instances[id]
		load.Await(100)
		if after := load.Tally().Instances[id]; after != before {
			t.Errorf("%s is out of the pools and still answered %d requests", id, after-before)
		}
	}
	used := func(id string) {
		t.Helper()
		usable(3)
		before := load.Tally().Instances[id]
		parts.Eventually(t, patience, id+" is in the pools and gets no request", func() bool {
			return load.Tally().Instances[id] > before
		})
	}

	instances[0].SetHealthy(false)
	unused("echo-1")
	if in := instanceOf(a, "echo", "echo-1"); in.Status != "critical" || in.State != "critical" || in.Usable {
		t.Errorf("a sick instance is shown as %+v", in)
	}
	instances[0].SetHealthy(true)
	used("echo-1")

	consul.Put("/v1/agent/service/maintenance/echo-2?enable=true&reason=test", "")
	unused("echo-2")
	if in := instanceOf(b, "echo", "echo-2"); in.Status != "maintenance" {
		t.Errorf("an instance in maintenance is shown as %+v", in)
	}
	consul.Put("/v1/agent/service/maintenance/echo-2?enable=false", "")
	used("echo-2")

	instances[1].Signal(syscall.SIGTERM)
	unused("echo-2")
	if code := instances[1].Wait(patience); code != 0 {
		t.Errorf("a service that was told to end ended with %d", code)
	}
	if in := instanceOf(a, "echo", "echo-2"); in.ID != "" {
		t.Errorf("a service that deregistered is still shown: %+v", in)
	}
	instances[1].Start()
	used("echo-2")

	instances[2].Kill()
	unused("echo-3")
	instances[2].Start()
	used("echo-3")

	tally := load.Stop()
	noFailures(t, tally)
	t.Log(tally)
}

// instanceOf returns the row of the instance whose service id is id; the zero
// row where the replica does not know it.
func instanceOf(r *parts.Replica, upstream, id string) admin.Instance {
	for _, in := range r.Upstream(upstream).Instances {
		if in.ID == id || len(in.ID) > len(id) && in.ID[len(in.ID)-len(id)-1:] == "/"+id {
			return in
		}
	}
	return admin.Instance{}
}

// upstreamOf returns the row of that upstream; the zero row where there is none.
func upstreamOf(s admin.Status, name string) admin.Upstream {
	for _, u := range s.Upstreams {
		if u.Name == name {
			return u
		}
	}
	return admin.Upstream{}
}

// TestPoolFollowsWithinMilliseconds measures the time from Consul's word to
// the pool: from the return of the PUT that changed something until a replica
// shows it.
func TestPoolFollowsWithinMilliseconds(t *testing.T) {
	const most = 50 * time.Millisecond
	bin, consul := binaries(t), parts.StartConsul(t)
	r := bin.StartReplica(t, parts.ReplicaOptions{Config: dependencies(consul, nil) + `
routes: [{name: ttl, match: {path: /}, upstream: {service: ttl}}]
`})
	register := func() {
		consul.Put("/v1/agent/service/register", `{"ID":"ttl-1","Name":"ttl","Address":"127.0.0.1","Port":9,
"Check":{"CheckID":"ttl-1","TTL":"10m","Status":"passing"}}`)
	}
	// A second instance stays, so that no answer is an empty one.
	consul.Put("/v1/agent/service/register", `{"ID":"ttl-0","Name":"ttl","Address":"127.0.0.1","Port":10}`)
	shows := func(status string) func() bool {
		return func() bool { return instanceOf(r, "ttl", "ttl-1").Status == status }
	}
	changes := []struct {
		name   string
		change func()
		shown  func() bool
	}{
		{"register", register, shows("passing")},
		{"critical", func() { consul.Put("/v1/agent/check/fail/ttl-1", "") }, shows("critical")},
		{"passing", func() { consul.Put("/v1/agent/check/pass/ttl-1", "") }, shows("passing")},
		{"maintenance", func() { consul.Put("/v1/agent/service/maintenance/ttl-1?enable=true", "") }, shows("maintenance")},
		{"maintenance ends", func() { consul.Put("/v1/agent/service/maintenance/ttl-1?enable=false", "") }, shows("passing")},
		{"deregister", func() { consul.Put("/v1/agent/service/deregister/ttl-1", "") }, shows("")},
	}
	var best time.Duration
	for round := range 3 {
		took := map[string][]time.Duration{}
		var all []time.Duration
		for range 20 {
			for _, c := range changes {
				c.change()
				began := time.Now()
				parts.Eventually(t, patience, c.name+" never showed", c.shown)
				took[c.name] = append(took[c.name], time.Since(began))
				all = append(all, time.Since(began))
			}
		}
		for _, c := range changes {
			slices.Sort(took[c.name])
			t.Logf("round %d: %-16s median %v, most %v", round+1, c.name, took[c.name][10], took[c.name][19])
		}
		slices.Sort(all)
		median := all[len(all)/2]
		t.Logf("round %d: median %v, p90 %v, most %v", round+1, median, all[len(all)*9/10], all[len(all)-1])
		if round == 0 || median < best {
			best = median
		}
		if best < most {
			return
		}
	}
	t.Errorf("the median from Consul's change to the pool is %v at best, want less than %v", best, most)
}
