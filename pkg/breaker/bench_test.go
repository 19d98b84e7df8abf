package breaker_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/parts"
)

// BenchmarkRoundTrip is an attempt around nothing. cpu-ns/op is the whole
// process's, hystrix's goroutines among it.
func BenchmarkRoundTrip(b *testing.B) {
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	req := request(b, ctx)
	resp := &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody}
	next := via(func(*http.Request) (*http.Response, error) { return resp, nil })
	run := func(name string, try time.Duration, roundTrip func(time.Duration) error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			before := parts.CPU(b)
			for b.Loop() {
				if err := roundTrip(try); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((parts.CPU(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
	run("bare", 0, func(time.Duration) error {
		_, err := next.RoundTrip(req)
		return err
	})
	r := breaker.NewRegistry(nil, nil)
	for _, s := range []breaker.Settings{{Disabled: true}, {Engine: breaker.EngineDirect}, {Engine: breaker.EngineCommand}} {
		name := "disabled"
		if !s.Disabled {
			name = s.Engine
		}
		x, err := r.Breaker("bench "+name, s)
		if err != nil {
			b.Fatal(err)
		}
		defer r.Release("bench " + name)
		roundTrip := func(try time.Duration) error {
			_, err := x.RoundTrip(req, next, time.Now(), try)
			return err
		}
		run(name, 0, roundTrip)
		run(name+" with a timer", time.Minute, roundTrip)
		own := timed(func(*http.Request, time.Time) (*http.Response, error) { return resp, nil })
		run(name+" in the transport's time", time.Minute, func(try time.Duration) error {
			_, err := x.RoundTrip(req, own, time.Now(), try)
			return err
		})
	}
}

func BenchmarkRefused(b *testing.B) {
	r := breaker.NewRegistry(nil, nil)
	for _, engine := range []string{breaker.EngineDirect, breaker.EngineCommand} {
		x, err := r.Breaker("refused "+engine, breaker.Settings{Engine: engine, MinRequests: 1, OpenFor: time.Hour})
		if err != nil {
			b.Fatal(err)
		}
		defer r.Release("refused " + engine)
		req := request(b, b.Context())
		for x.State() != breaker.Open {
			_, _ = x.RoundTrip(req, via(broken), time.Now(), 0)
		}
		b.Run(engine, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := x.RoundTrip(req, via(broken), time.Now(), 0); err != breaker.ErrOpen {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAcquire(b *testing.B) {
	r := breaker.NewRegistry(nil, nil)
	x, err := r.Breaker("permits", breaker.Settings{Disabled: true, MaxInFlight: 1 << 20})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := x.Acquire(); err != nil {
				b.Error(err)
			}
			x.Release()
		}
	})
}
