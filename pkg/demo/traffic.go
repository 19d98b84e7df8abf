package demo

import (
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// traffic is a light load on the gateway, so that its pages have something to
// show.
type traffic struct {
	base   string
	rate   int
	on     atomic.Bool
	bursts chan int
	client *http.Client
}

// burstWorkers is how many requests of a burst are under way at once.
const burstWorkers = 200

func newTraffic(base string, rate int) *traffic {
	t := &traffic{base: base, rate: rate, bursts: make(chan int, 1), client: &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{MaxIdleConnsPerHost: burstWorkers},
	}}
	t.on.Store(rate > 0)
	return t
}

// toggle switches the load off or on and reports whether it is on.
func (t *traffic) toggle() bool {
	on := !t.on.Load()
	t.on.Store(on)
	return on
}

// burst asks for n requests at once; one burst at a time.
func (t *traffic) burst(n int) {
	select {
	case t.bursts <- n:
	default:
	}
}

// run makes the load until ctx ends.
func (t *traffic) run(ctx context.Context) {
	var running sync.WaitGroup
	defer t.client.CloseIdleConnections()
	defer running.Wait()
	tick := time.NewTicker(time.Second / time.Duration(max(t.rate, 1)))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-t.bursts:
			for range burstWorkers {
				running.Go(func() {
					for range n / burstWorkers {
						t.get(ctx)
					}
				})
			}
		case <-tick.C:
			if t.on.Load() {
				running.Go(func() { t.get(ctx) })
			}
		}
	}
}

var paths = [...]string{"/api/orders/42", "/api/orders/7", "/api/users/1", "/api/inventory/bolts", "/api/inventory/nuts", "/api/flaky/1"}

func (t *traffic) get(ctx context.Context) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.base+paths[rand.IntN(len(paths))], nil)
	if err != nil {
		return // the base is ours
	}
	resp, err := t.client.Do(req)
	if err != nil {
		return // the gateway is going down, or the viewer broke it: its pages show it
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
}
