package limiter_test

import (
	"context"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/parts"
)

// Replicas under far more load than the limit admit exactly the limit in each
// window, and never more than it in any.
func TestReplicasShareOneLimit(t *testing.T) {
	t.Parallel()
	const limit, window = 150, 2 * time.Second
	r := parts.StartRedis(t)
	var ls []*limiter.Limiter
	for range 2 {
		ls = append(ls, start(t, limiter.Options{Redis: redisAt(r.Addr)}))
	}
	p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(limit, window), sliding(10*limit, time.Hour)}})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	h := hit(ctx, p, ls, []int{6, 2}, 0)
	if got := h.most(window); got != limit {
		t.Errorf("%d admitted within %v, want %d", got, window, limit)
	}
	if got := len(h.admitted); got != 3*limit {
		t.Errorf("%d admitted in all, want %d", got, 3*limit)
	}
	if len(h.sources) != 1 || h.sources[limiter.Store] == 0 {
		t.Errorf("decided by %v", h.sources)
	}
}
