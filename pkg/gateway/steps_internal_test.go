package gateway

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/metrics"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/accesslog"
	"github.com/proconsul/proconsul/pkg/middleware/ratelimit"
	"github.com/proconsul/proconsul/pkg/parts"
)

// stepBudgets are the steps that most routes have, and what a request may
// allocate in each.
var stepBudgets = []struct {
	name   string
	allocs float64
}{{"request_id", 2}, {"access_log", 0}, {"metrics", 0}, {"recovery", 0}, {"rate_limit", 3}}

// aroundNothing returns what serves one request after another through one step
// of the chain, around a handler that answers with a header only. The header's
// map has room, as a server's has that uses it again.
func aroundNothing(tb testing.TB, name string) func() {
	log := slog.New(slog.DiscardHandler)
	lines := accesslog.NewLog(io.Discard, config.AccessLog{Sample: 100}, log)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = lines.Run(ctx) })
	tb.Cleanup(func() { cancel(); wg.Wait() })
	lim, err := limiter.New(limiter.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	limit := config.DefaultRateLimit()
	limit.Limits = []config.Limit{{Count: 1e9, Window: time.Minute}}
	in := buildInput{
		route:  &config.Route{Name: "orders", Upstream: config.RouteUpstream{Service: "orders"}},
		limits: []config.NamedLimit{{RateLimit: limit}},
		deps:   Deps{Log: log, AccessLog: lines, Metrics: metrics.New(metrics.Options{}), guards: ratelimit.NewGuards(lim, ratelimit.Account{})},
	}
	var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) })
	for _, s := range steps() {
		if s.name != name {
			continue
		}
		mw, err := s.build(in)
		if err != nil || mw == nil {
			tb.Fatal(name, err)
		}
		h = mw(h)
	}
	header, w := make(http.Header, 32), &discarder{make(http.Header, 32)}
	x, r := new(middleware.Exchange), &http.Request{Method: "GET", URL: &url.URL{Path: "/orders/42"}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Host: "shop.test", RemoteAddr: "203.0.113.9:1234", Body: http.NoBody}
	client, rt := netip.MustParseAddr("203.0.113.9"), &Route{recorder: in.deps.Metrics.Route("orders", "orders")}
	return func() {
		clear(header)
		clear(w.h)
		x.Begin(w, time.Now())
		x.ClientIP, x.Scheme, x.Host, x.Path, x.Route, x.Upstream, x.Instance = client, "http", "shop.test", "/orders/42", "orders", "orders", "node-1/orders-1"
		x.Rest = rt
		x.RequestID = "01JDW5V7Q8M4X2Z9K3T6B1N0PR"
		h.ServeHTTP(x, r)
	}
}

// discarder is the least a server's writer can be.
type discarder struct{ h http.Header }

func (d *discarder) Header() http.Header         { return d.h }
func (d *discarder) WriteHeader(int)             {}
func (d *discarder) Write(b []byte) (int, error) { return len(b), nil }

func TestStepsAllocateLittle(t *testing.T) {
	if !middleware.Reuse {
		t.Log("the race detector makes pools forget")
		return
	}
	for _, b := range stepBudgets {
		serve := aroundNothing(t, b.name)
		for range 100 {
			serve()
		}
		if got := testing.AllocsPerRun(1000, serve); got > b.allocs {
			t.Errorf("%s makes %v allocations, want at most %v", b.name, got, b.allocs)
		}
	}
}

// BenchmarkStep is one step of the chain around nothing. "none" is what the
// benchmark itself takes. cpu-ns/op is the whole process's, such as what writes
// the log.
func BenchmarkStep(b *testing.B) {
	run := func(name string) {
		b.Run(name, func(b *testing.B) {
			serve := aroundNothing(b, name)
			b.ReportAllocs()
			before := parts.CPU(b)
			for b.Loop() {
				serve()
			}
			b.ReportMetric(float64((parts.CPU(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
	run("none")
	for _, s := range stepBudgets {
		run(s.name)
	}
}
