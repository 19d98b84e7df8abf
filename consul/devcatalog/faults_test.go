package devcatalog_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/proconsul/proconsul/consul/devcatalog"
	"github.com/proconsul/proconsul/pkg/parts"
)

const ahead = 9_999_999_999 // an index that is never reached, so that a query blocks

func TestFaults(t *testing.T) {
	s, a := dev(t, devcatalog.Options{Streaming: true})
	a.register(`{"Name":"a","Check":{"TTL":"1h","Status":"passing"}}`)
	// struck sets faults while a query is blocked, and returns its answer.
	struck := func(path string, f devcatalog.Faults) (reply, error) {
		t.Helper()
		type result struct {
			r   reply
			err error
		}
		done := make(chan result, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		go func() {
			r, err := a.try(ctx, "GET", path+"?wait=5m&index="+strconv.Itoa(ahead), "")
			done <- result{r, err}
		}()
		parts.Eventually(t, 5*time.Second, path+" does not block", func() bool { return s.Blocked() == 1 })
		s.SetFaults(f)
		got := <-done
		parts.Eventually(t, 5*time.Second, path+" is still blocked", func() bool { return s.Blocked() == 0 })
		return got.r, got.err
	}

	if r, err := struck("/v1/health/service/a", devcatalog.Faults{Cut: true}); err == nil {
		t.Errorf("cut: the blocked query got %d %s", r.code, r.body)
	}
	for _, path := range []string{"/v1/health/service/a", "/v1/agent/self", "/v1/kv/a"} {
		if r, err := a.try(t.Context(), "GET", path, ""); err == nil {
			t.Errorf("cut: %s got %d %s", path, r.code, r.body)
		}
	}
	s.SetFaults(devcatalog.Faults{})
	if len(a.entries("a")) != 1 {
		t.Error("the service is not there after the cut")
	}

	r, err := struck("/v1/health/service/a", devcatalog.Faults{PhantomEmpty: true})
	if err != nil || r.code != 200 || r.index() != 1 || compact(t, r.body) != "[]" {
		t.Errorf("phantom: %v %d index %d %s", err, r.code, r.index(), r.body)
	}
	if r := a.get("/v1/health/service/a?index=5"); r.index() != 1 || compact(t, r.body) != "[]" {
		t.Errorf("phantom: index %d %s", r.index(), r.body)
	}
	if len(a.entries("a")) != 1 {
		t.Error("phantom: a query that does not block gives the truth")
	}

	r, err = struck("/v1/catalog/services", devcatalog.Faults{NoLeader: true})
	if err != nil || r.code != 500 || r.body != "No cluster leader" {
		t.Errorf("no leader: %v %d %s", err, r.code, r.body)
	}
	for path, want := range map[string]int{
		"/v1/health/service/a": 500, "/v1/catalog/services": 500, "/v1/kv/a": 500, "/v1/health/state/any": 500,
		"/v1/health/service/a?index=1": 200, "/v1/agent/services": 200, "/v1/status/leader": 200,
	} {
		if r := a.get(path); r.code != want {
			t.Errorf("no leader: %s got %d %s", path, r.code, r.body)
		}
	}
	if r := a.get("/v1/status/leader"); r.body != `""` {
		t.Errorf("no leader: the leader is %s", r.body)
	}
	if r := a.put("/v1/kv/a", "x"); r.code != 500 {
		t.Errorf("no leader: a write got %d", r.code)
	}
	if r := a.put("/v1/agent/check/pass/service:a", ""); r.code != 200 {
		t.Errorf("no leader: the agent got %d %s", r.code, r.body)
	}

	s.SetFaults(devcatalog.Faults{TooManyConnections: true})
	if r := a.get("/v1/agent/self"); r.code != 429 {
		t.Errorf("too many connections: %d", r.code)
	}

	s.SetFaults(devcatalog.Faults{Delay: 50 * time.Millisecond})
	from := time.Now()
	if a.get("/v1/agent/self"); time.Since(from) < 50*time.Millisecond {
		t.Error("no delay")
	}
	if got := s.Faults(); got.Delay != 50*time.Millisecond || got.TooManyConnections {
		t.Errorf("faults %+v", got)
	}
	s.SetFaults(devcatalog.Faults{Delay: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := a.try(ctx, "GET", "/v1/agent/self", ""); err == nil {
		t.Error("an answer before its hour")
	}
	s.SetFaults(devcatalog.Faults{})
}

func TestIndexReset(t *testing.T) {
	s, a := dev(t, devcatalog.Options{})
	a.register(`{"Name":"a"}`)
	a.ok("PUT", "/v1/kv/k", "v")
	before := a.get("/v1/health/service/a").index()
	answer := a.blocked("/v1/health/service/a", before, 5*time.Minute)
	parts.Eventually(t, 5*time.Second, "the query does not block", func() bool { return s.Blocked() == 1 })
	s.ResetIndex()
	r := woken(t, answer, "the reset")
	if r.index() >= before || r.index() <= 1 || len(decoded[[]entry](r)) != 1 {
		t.Errorf("index %d after %d: %s", r.index(), before, r.body)
	}
	if key := decoded[[]struct{ ModifyIndex uint64 }](a.get("/v1/kv/k"))[0]; key.ModifyIndex >= before {
		t.Errorf("a key has index %d", key.ModifyIndex)
	}
	// And from there it goes on.
	answer = a.blocked("/v1/health/service/a", r.index(), time.Minute)
	a.register(`{"ID":"a2","Name":"a"}`)
	if r := woken(t, answer, "a registration"); len(decoded[[]entry](r)) != 2 {
		t.Errorf("got %s", r.body)
	}
}

func TestWipe(t *testing.T) {
	s, a := dev(t, devcatalog.Options{})
	a.register(`{"Name":"a","Check":{"TTL":"1h"}}`)
	a.ok("PUT", "/v1/kv/k", "v")
	a.ok("PUT", "/v1/catalog/register", `{"Node":"ext","Address":"1.1.1.1","Service":{"Service":"a","ID":"e"}}`)
	hash := a.get("/v1/agent/service/a").header.Get("X-Consul-Contenthash")
	answers := map[string]<-chan reply{
		"the service":  a.blocked("/v1/health/service/a", a.get("/v1/health/service/a").index(), time.Minute),
		"the services": a.blocked("/v1/catalog/services", a.get("/v1/catalog/services").index(), time.Minute),
		"the node":     a.blocked("/v1/catalog/node/ext", a.get("/v1/catalog/node/ext").index(), time.Minute),
		"the key":      a.blocked("/v1/kv/k", a.get("/v1/kv/k").index(), time.Minute),
		"the hash":     a.blocked("/v1/agent/service/a?hash="+hash, 1, time.Minute),
	}
	parts.Eventually(t, 5*time.Second, "the queries do not block", func() bool { return s.Blocked() == len(answers) })
	s.Wipe()
	for what, answer := range answers {
		r := woken(t, answer, "the wipe of "+what)
		switch r.code {
		case 404:
		default:
			if got := compact(t, r.body); got != "[]" && got != `{"consul":[]}` && got != "null" {
				t.Errorf("%s: %s", what, got)
			}
		}
	}
	if r := a.put("/v1/agent/check/pass/service:a", ""); r.code != 404 {
		t.Errorf("the agent still knows the check: %d", r.code)
	}
	a.register(`{"Name":"a","Check":{"TTL":"1h"}}`)
	if len(a.entries("a")) != 1 {
		t.Error("a service cannot come back")
	}
}

// The index starts by the clock, so a server that takes the place of another
// does not go back behind it.
func TestIndexSurvivesARestart(t *testing.T) {
	_, a := dev(t, devcatalog.Options{})
	a.register(`{"Name":"a"}`)
	if index := a.get("/v1/health/service/a").index(); index < uint64(time.Now().Add(-time.Hour).Unix()) {
		t.Errorf("index %d", index)
	}
	// What it forgets on the way must not go back either.
	_, b := dev(t, devcatalog.Options{StartIndex: 1000, Limits: devcatalog.Limits{Services: 4, Nodes: 1, Keys: 4}})
	b.register(`{"Name":"stays"}`)
	b.register(`{"Name":"left"}`)
	b.ok("PUT", "/v1/agent/service/deregister/left", "")
	stays, left := b.get("/v1/health/service/stays").index(), b.get("/v1/health/service/left").index()
	for i := range 50 {
		b.register(`{"Name":"n` + strconv.Itoa(i) + `"}`)
		b.ok("PUT", "/v1/agent/service/deregister/n"+strconv.Itoa(i), "")
		s, l := b.get("/v1/health/service/stays").index(), b.get("/v1/health/service/left").index()
		if s < stays || l < left {
			t.Fatalf("after %d names: indexes %d and %d, before %d and %d", i, s, l, stays, left)
		}
		stays, left = s, l
	}
}
