package limiter_test

import (
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/parts"
)

// What is used of a quota outlives every gateway, and a Redis that persists.
func TestQuotasOutliveRestarts(t *testing.T) {
	t.Parallel()
	r := parts.StartRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	p := policy(t, limiter.Settings{Name: "quota", Precision: limiter.Leased, Limits: []limiter.Limit{
		{Count: 30, Algorithm: limiter.FixedWindow, Calendar: limiter.Monthly}, sliding(1000, time.Hour),
	}})
	admitted := 0
	// The first gateway ends, the second loses its Redis, the third begins
	// with the Redis that came back.
	for gateway := range 3 {
		l, stop := startStoppable(t, limiter.Options{Redis: redisAt(r.Addr)})
		for range 8 {
			if d := l.Take(t.Context(), p, "x", 1); d.Allowed && d.Source == limiter.Store {
				admitted++
			}
		}
		if gateway == 1 {
			r.Kill()
			r.Start()
			parts.Eventually(t, 5*time.Second, "redis is not back", func() bool {
				d := l.Peek(t.Context(), p, "x")
				return d.Source == limiter.Store
			})
		}
		stop()
	}
	l := start(t, limiter.Options{Redis: redisAt(r.Addr)})
	if d := l.Peek(t.Context(), p, "x"); admitted != 24 || d.Len() != 2 || d.Budget(0).Remaining != 6 {
		t.Errorf("%d admitted, %+v left", admitted, d)
	}
	for range 20 {
		if d := l.Take(t.Context(), p, "x", 1); d.Allowed {
			admitted++
		}
	}
	if admitted != 30 {
		t.Errorf("%d admitted of 30", admitted)
	}
	t.Logf("%d admitted of 30 over three gateways and a restart of Redis", admitted)
}
