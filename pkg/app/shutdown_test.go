package app_test

import (
	"context"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/app"
	"github.com/proconsul/proconsul/pkg/parts"
)

// TestReplicaLeavesWithoutLosingARequest stops one of two replicas behind a
// balancer that asks /readyz: unready and deregistered first, then, while
// clients may not have heard of it, still serving, then down with exit code 0
// and every request answered.
func TestReplicaLeavesWithoutLosingARequest(t *testing.T) {
	t.Parallel()
	bin, consul := binaries(t), parts.StartConsul(t)
	config := strings.Replace(dependencies(consul, nil), "delay: 0s", "delay: 5s", 1) + echoRoutes
	r, other := bin.StartReplica(t, parts.ReplicaOptions{Config: config}), bin.StartReplica(t, parts.ReplicaOptions{Config: strings.Replace(config, "routes:",
		"routes:\n  - {name: gateways, match: {path: /gateways}, upstream: {service: proconsul}}", 1)})
	bin.StartEcho(t, parts.EchoOptions{Consul: consul.Addr, Name: "echo", ID: "echo-1"})
	r.AwaitUsable("echo", 1)
	other.AwaitUsable("echo", 1)
	other.AwaitUsable("proconsul", 2)

	load := parts.StartLoad(t, parts.LoadOptions{URLs: []string{r.URL("/api/x")}, Workers: 6, Pace: time.Millisecond})
	load.Await(100)
	// Their answers come when the listener has been closed already.
	slow := parts.StartLoad(t, parts.LoadOptions{URLs: []string{r.URL("/api/slow?delay=8s"), r.URL("/api/stream?n=80&every=100ms")}, Workers: 6, Pace: time.Hour})
	parts.Eventually(t, patience, "the slow requests are not under way", func() bool { return r.Upstream("echo").InFlight >= 6 })

	r.Signal(syscall.SIGTERM)
	parts.Eventually(t, patience, "a draining replica stays ready", func() bool {
		code, err := readyz(r)
		return err == nil && code == http.StatusServiceUnavailable
	})
	other.AwaitUsable("proconsul", 1) // deregistered
	load.Await(50)                    // and it still serves
	noFailures(t, load.Stop())        // now its balancer has taken it out
	if s, err := r.Status(); err == nil && s.Replica.State != "draining" {
		t.Errorf("a draining replica says that it is %s", s.Replica.State)
	}

	tally := slow.Stop()
	noFailures(t, tally)
	if tally.Status[http.StatusOK] != 6 {
		t.Errorf("6 requests were in flight: %v", tally)
	}
	if code := r.Wait(patience); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
	if c, err := net.Dial("tcp", r.Addr); err == nil {
		c.Close()
		t.Error("the replica has ended and its port still accepts")
	}
	log := r.Log()
	for _, line := range []string{"draining", "stopped"} {
		if !strings.Contains(log, `"msg":"`+line+`"`) {
			t.Errorf("the log of a stopped replica has no line %q", line)
		}
	}
}

// TestSecondSignalEndsAtOnce does not wait for requests in flight.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	bin := binaries(t)
	e := bin.StartEcho(t, parts.EchoOptions{Name: "echo", ID: "echo-1"})
	r := bin.StartReplica(t, parts.ReplicaOptions{Config: fixed(e) + `
shutdown: {delay: 0s, grace: 10m}
routes: [{name: echo, match: {path: /}, upstream: {service: echo}}]
`})
	load := parts.StartLoad(t, parts.LoadOptions{URLs: []string{r.URL("/?delay=1m")}, Workers: 1, Pace: time.Hour})
	parts.Eventually(t, patience, "the request is not under way", func() bool { return r.Upstream("echo").InFlight == 1 })
	r.Signal(syscall.SIGTERM)
	parts.Eventually(t, patience, "a draining replica stays ready", func() bool {
		code, err := readyz(r)
		return err == nil && code == http.StatusServiceUnavailable
	})
	r.Signal(syscall.SIGINT)
	if code := r.Wait(30 * time.Second); code != 1 {
		t.Errorf("exit code %d after a second signal, want 1", code)
	}
	if tally := load.Stop(); tally.Errors != 1 {
		t.Errorf("the request in flight was to be lost: %v", tally)
	}
}

// TestGraceEnds cuts off what has not finished at the end of the grace period;
// the end is orderly all the same.
func TestGraceEnds(t *testing.T) {
	t.Parallel()
	bin := binaries(t)
	e := bin.StartEcho(t, parts.EchoOptions{Name: "echo", ID: "echo-1"})
	r := bin.StartReplica(t, parts.ReplicaOptions{Config: fixed(e) + `
shutdown: {delay: 0s, grace: 500ms}
routes: [{name: echo, match: {path: /}, upstream: {service: echo}}]
`})
	load := parts.StartLoad(t, parts.LoadOptions{URLs: []string{r.URL("/?delay=1m")}, Workers: 1, Pace: time.Hour})
	parts.Eventually(t, patience, "the request is not under way", func() bool { return r.Upstream("echo").InFlight == 1 })
	r.Signal(syscall.SIGTERM)
	if code := r.Wait(30 * time.Second); code != 0 {
		t.Errorf("exit code %d after the grace period, want 0", code)
	}
	if tally := load.Stop(); tally.Errors != 1 {
		t.Errorf("the request in flight was to be lost: %v", tally)
	}
	if !strings.Contains(r.Log(), "grace period is over") {
		t.Error("the log does not say that requests were cut off")
	}
}

// Whoever is told to stop before all has begun ends as orderly as any other, and
// with exit code 0.
func TestStoppedAtOnce(t *testing.T) {
	for range 10 {
		a, err := app.New(parse(t, operatorsHead+"consul: {disabled: true}\n"), quiet())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := a.Run(ctx); err != nil {
			t.Fatalf("run: %v", err)
		}
	}
}
