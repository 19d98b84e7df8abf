package devcatalog_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/consul/devcatalog"
	"github.com/proconsul/proconsul/pkg/parts"
)

// call asks a server without a network, as inside of a synctest bubble.
func call(t testing.TB, s http.Handler, method, path, body string) reply {
	t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body)))
	return reply{t: t, code: w.Code, header: w.Header(), body: w.Body.String()}
}

// bubble runs a test on a server that runs, under a clock of its own.
func bubble(t *testing.T, o devcatalog.Options, test func(*testing.T, *devcatalog.Server)) {
	synctest.Test(t, func(t *testing.T) {
		s := devcatalog.New(o)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		test(t, s)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.Audit(); err != nil {
			t.Error(err)
		}
	})
}

func instances(t testing.TB, s http.Handler, service string) []entry {
	t.Helper()
	return decoded[[]entry](call(t, s, "GET", "/v1/health/service/"+service, ""))
}

func TestTTLIsKeptByReports(t *testing.T) {
	bubble(t, devcatalog.Options{}, func(t *testing.T, s *devcatalog.Server) {
		call(t, s, "PUT", "/v1/agent/service/register", `{"Name":"a","Check":{"TTL":"30s","Status":"passing"}}`)
		status := func() string { return instances(t, s, "a")[0].check("service:a").Status }
		for range 5 {
			time.Sleep(29 * time.Second)
			call(t, s, "PUT", "/v1/agent/check/pass/service:a", "")
		}
		time.Sleep(30*time.Second - time.Millisecond)
		if got := status(); got != "passing" {
			t.Errorf("before the end of the TTL: %s", got)
		}
		time.Sleep(2 * time.Millisecond)
		if got := status(); got != "critical" {
			t.Errorf("after the end of the TTL: %s", got)
		}
		// A registration starts the TTL again and keeps the status.
		call(t, s, "PUT", "/v1/agent/check/pass/service:a", "")
		time.Sleep(20 * time.Second)
		call(t, s, "PUT", "/v1/agent/service/register", `{"Name":"a","Check":{"TTL":"30s"}}`)
		time.Sleep(20 * time.Second)
		if got := status(); got != "passing" {
			t.Errorf("20s after the registration: %s", got)
		}
	})
}

func TestCriticalServiceIsDeregistered(t *testing.T) {
	bubble(t, devcatalog.Options{}, func(t *testing.T, s *devcatalog.Server) {
		call(t, s, "PUT", "/v1/agent/service/register", `{"Name":"short","Check":{"TTL":"10s","DeregisterCriticalServiceAfter":"5s"}}`)
		call(t, s, "PUT", "/v1/agent/service/register", `{"Name":"long","Check":{"TTL":"10s","DeregisterCriticalServiceAfter":"5m"}}`)
		call(t, s, "PUT", "/v1/agent/service/register", `{"Name":"alive","Check":{"TTL":"1h","Status":"passing","DeregisterCriticalServiceAfter":"5s"}}`)
		time.Sleep(59 * time.Second)
		if len(instances(t, s, "short")) != 1 {
			t.Error("gone before the shortest time of a minute")
		}
		time.Sleep(32 * time.Second)
		if len(instances(t, s, "short")) != 0 {
			t.Error("still there after a minute and a look every 30s")
		}
		if len(instances(t, s, "long")) != 1 || len(instances(t, s, "alive")) != 1 {
			t.Error("others went too")
		}
		// A report saves it, and the time counts from the next failure.
		call(t, s, "PUT", "/v1/agent/check/pass/service:long", "")
		time.Sleep(5 * time.Minute)
		if len(instances(t, s, "long")) != 1 {
			t.Error("gone although it was passing meanwhile")
		}
		time.Sleep(time.Minute)
		if len(instances(t, s, "long")) != 0 {
			t.Error("still there after five minutes")
		}
		if got := compact(t, call(t, s, "GET", "/v1/agent/services", "").body); !strings.HasPrefix(got, `{"alive":`) {
			t.Errorf("the agent still has %s", got)
		}
	})
}

func TestOutputIsPublishedLater(t *testing.T) {
	bubble(t, devcatalog.Options{CheckUpdateInterval: time.Minute}, func(t *testing.T, s *devcatalog.Server) {
		call(t, s, "PUT", "/v1/agent/service/register", `{"Name":"a","Check":{"TTL":"1h"}}`)
		call(t, s, "PUT", "/v1/agent/check/fail/service:a?note=first", "")
		before := call(t, s, "GET", "/v1/health/service/a", "")
		time.Sleep(29 * time.Second)
		call(t, s, "PUT", "/v1/agent/check/fail/service:a?note=second", "")
		if r := call(t, s, "GET", "/v1/health/service/a", ""); r.index() != before.index() {
			t.Error("an output alone was published at once")
		}
		time.Sleep(62 * time.Second)
		after := call(t, s, "GET", "/v1/health/service/a", "")
		if got := decoded[[]entry](after)[0].check("service:a").Output; got != "second" || after.index() <= before.index() {
			t.Errorf("output %q with index %d after %d", got, after.index(), before.index())
		}
	})
}

func TestBlockingQueriesByTheClock(t *testing.T) {
	for _, c := range []struct {
		name      string
		streaming bool
		path      string
		least     time.Duration
		most      time.Duration
	}{
		{"default wait", true, "/v1/health/service/a?index=9999999999", 5 * time.Minute, 5 * time.Minute},
		{"zero wait is the default", true, "/v1/health/service/a?wait=0s&index=9999999999", 5 * time.Minute, 5 * time.Minute},
		{"longest wait", true, "/v1/health/service/a?wait=1h&index=9999999999", 10 * time.Minute, 10 * time.Minute},
		{"streaming adds nothing", true, "/v1/health/service/a?wait=16s&index=9999999999", 16 * time.Second, 16 * time.Second},
		{"others add up to a sixteenth", false, "/v1/health/service/a?wait=16s&index=9999999999", 16 * time.Second, 17 * time.Second},
		{"near is not streamed", true, "/v1/catalog/services?wait=16s&index=9999999999", 16 * time.Second, 17 * time.Second},
		{"without an index", true, "/v1/health/service/a?wait=16s", 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, devcatalog.Options{Streaming: c.streaming, StartIndex: 100}, func(t *testing.T, s *devcatalog.Server) {
				from := time.Now()
				r := call(t, s, "GET", c.path, "")
				if took := time.Since(from); took < c.least || took > c.most {
					t.Errorf("took %v, want %v to %v", took, c.least, c.most)
				}
				if r.code != 200 || r.index() > 200 {
					t.Errorf("%d, index %d", r.code, r.index())
				}
			})
		})
	}
}

func TestStreamingHidesTheLeader(t *testing.T) {
	for _, streaming := range []bool{true, false} {
		_, a := dev(t, devcatalog.Options{Streaming: streaming})
		a.register(`{"Name":"a"}`)
		for path, streamed := range map[string]bool{
			"/v1/health/service/a":                                  false,
			"/v1/health/service/a?index=1":                          streaming,
			"/v1/health/service/a?cached":                           streaming,
			"/v1/health/service/a?index=1&near=x":                   false,
			"/v1/catalog/service/a?index=1":                         false,
			"/v1/health/service/a?index=1&filter=1+in+Service.Tags": streaming,
		} {
			h := a.get(path).header
			backend, known := "blocking-query", "true"
			if streamed {
				backend, known = "streaming", "false"
			}
			if h.Get("X-Consul-Query-Backend") != backend || h.Get("X-Consul-Knownleader") != known {
				t.Errorf("streaming=%v %s: backend %q, known leader %q", streaming, path, h.Get("X-Consul-Query-Backend"), h.Get("X-Consul-Knownleader"))
			}
		}
	}
}

// Counters begin full, so that the first result counts; after it a status takes
// as many results in a row as its threshold says.
func TestProbeThresholds(t *testing.T) {
	_, a := dev(t, devcatalog.Options{MinCheckInterval: time.Millisecond})
	asked, answer, done := make(chan struct{}), make(chan int), make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		select {
		case asked <- struct{}{}:
		case <-done:
			return
		}
		select {
		case code := <-answer:
			w.WriteHeader(code)
		case <-done:
		}
	}))
	defer srv.Close()
	defer close(done)
	a.register(`{"Name":"a","Check":{"HTTP":"` + srv.URL + `","Interval":"1ms","SuccessBeforePassing":3,"FailuresBeforeWarning":2,"FailuresBeforeCritical":4}}`)
	probed := func() {
		t.Helper()
		select {
		case <-asked:
		case <-time.After(10 * time.Second):
			t.Fatal("no probe")
		}
	}
	probed()
	for i, probe := range []struct {
		code int
		want string
	}{
		{200, "passing"},
		{500, "passing"}, {500, "warning"}, {500, "warning"}, {500, "critical"}, {500, "critical"},
		{200, "critical"}, {200, "critical"}, {200, "passing"},
		{500, "passing"}, {500, "warning"}, {200, "warning"}, {500, "warning"}, {500, "warning"}, {500, "warning"}, {500, "critical"},
	} {
		answer <- probe.code
		probed() // so the one before has been counted
		if got := a.entries("a")[0].check("service:a").Status; got != probe.want {
			t.Errorf("%s after result %d, a %d, want %s", got, i+1, probe.code, probe.want)
		}
	}
}

// A check that hangs holds nothing up: neither others nor its removal, nor the
// server's end.
func TestProbesDoNotWaitForEachOther(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
	}))
	defer srv.Close()
	defer close(release)
	_, a := dev(t, devcatalog.Options{MinCheckInterval: 10 * time.Millisecond})
	a.register(`{"Name":"a","Checks":[{"HTTP":"` + srv.URL + `/hang","Interval":"10ms","Timeout":"1h"},{"HTTP":"` + srv.URL + `","Interval":"10ms"}]}`)
	a.register(`{"Name":"b","Check":{"HTTP":"` + srv.URL + `/hang","Interval":"10ms","Timeout":"50ms"}}`)
	parts.Eventually(t, 5*time.Second, "the second check does not run", func() bool {
		return a.entries("a")[0].check("service:a:2").Status == "passing"
	})
	parts.Eventually(t, 5*time.Second, "the timeout does not end the probe", func() bool {
		return strings.Contains(decoded[map[string]check](a.get("/v1/agent/checks"))["service:b"].Output, "deadline exceeded")
	})
	a.ok("PUT", "/v1/agent/service/deregister/a", "")
	if len(a.entries("a")) != 0 {
		t.Error("the service did not go")
	}
}

func TestRunsOnce(t *testing.T) {
	s := devcatalog.New(devcatalog.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Error(err)
	}
	if err := s.Run(ctx); err == nil {
		t.Error("a second Run is an error")
	}
	if r := call(t, s, "GET", "/v1/health/service/a?index=9999999999", ""); r.code != 500 {
		t.Errorf("a query blocks after the end: %d", r.code)
	}
}
