package proxy_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/problem"
)

// What the gateway asks on its own behalf goes to the pool like any request: to
// another instance where one fails, with its body again, counted, and told to
// the pool when the answer has been read.
func TestClientAsksThePool(t *testing.T) {
	var asked atomic.Int64
	good := backend(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		body, err := io.ReadAll(r.Body)
		if err != nil || r.URL.String() != "/introspect?a=1" || string(body) != "token=t" || r.Method != "POST" || r.Host == "service" {
			t.Errorf("asked %s %s for %s: %q %v", r.Method, r.URL, r.Host, body, err)
		}
		_, _ = io.WriteString(w, "yes")
	})
	for _, how := range []string{"refused", "reset"} {
		t.Run(how, func(t *testing.T) {
			var seen atomic.Int64
			g := newGate(t, gateOptions{}, failing(t, how, &seen), good)
			before := asked.Load()
			for range 8 {
				req, err := http.NewRequestWithContext(t.Context(), "POST", "http://service/introspect?a=1", strings.NewReader("token=t"))
				if err != nil {
					t.Fatal(err)
				}
				resp, err := g.up.Client().RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				if g.pool.Stats().InFlight != 1 {
					t.Errorf("%d in flight while the answer is read", g.pool.Stats().InFlight)
				}
				resp.Body.Close()
				resp.Body.Close()
				if string(body) != "yes" || g.pool.Stats().InFlight != 0 {
					t.Errorf("got %q, %d in flight", body, g.pool.Stats().InFlight)
				}
			}
			retried := 0
			for _, a := range g.tries() {
				if a.Retried {
					retried++
				}
			}
			if asked.Load()-before != 8 || retried == 0 || len(g.tries()) != 8+retried {
				t.Errorf("%d answers, %d tries, %d retried", asked.Load()-before, len(g.tries()), retried)
			}
		})
	}
}

// Its errors say why, as those of requests do, and it waits no longer than who
// asks.
func TestClientFails(t *testing.T) {
	var seen atomic.Int64
	ask := func(g *gate, ctx context.Context) problem.Reason {
		req, err := http.NewRequestWithContext(ctx, "GET", "http://service/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := g.up.Client().RoundTrip(req)
		if err == nil {
			resp.Body.Close()
			return ""
		}
		var p *problem.Error
		if !errors.As(err, &p) {
			t.Fatalf("got %v", err)
		}
		if n := g.pool.Stats().InFlight; n != 0 {
			t.Errorf("%d in flight after %v", n, err)
		}
		return p.Reason
	}
	if got := ask(newGate(t, gateOptions{}), t.Context()); got != problem.NoInstances {
		t.Errorf("without instances: %s", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if got := ask(newGate(t, gateOptions{}, failing(t, "silent", &seen)), ctx); got != problem.UpstreamTimeout || time.Since(start) > 4*time.Second {
		t.Errorf("a silent instance: %s after %s", got, time.Since(start))
	}
	t.Run("breaker", func(t *testing.T) {
		g := newGate(t, gateOptions{breaker: breaker.Settings{MinRequests: 5, FailOn: []int{500}, OpenFor: time.Minute}}, failing(t, "500", &seen))
		before := seen.Load()
		var last problem.Reason
		for range 40 {
			last = ask(g, t.Context())
		}
		if last != problem.BreakerOpen || seen.Load()-before > 30 {
			t.Errorf("after 40 failures: %q, %d asked", last, seen.Load()-before)
		}
	})
}
