package limiter_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/parts"
)

// Replicas under far more load than the limit admit the limit in each window,
// and never more than it in any: with and without leases, for few and many
// replicas and tokens, with even and uneven load, for several limits at once.
func TestReplicasShareOneLimit(t *testing.T) {
	t.Parallel()
	const window = 2 * time.Second
	tests := []struct {
		precision limiter.Precision
		count     int
		extra     []limiter.Limit
		callers   []int // of each replica
	}{
		{limiter.Exact, 150, nil, []int{6, 2}},
		{limiter.Leased, 150, nil, []int{6, 2}},
		{limiter.Leased, 1000, nil, []int{8, 4, 2, 1, 1}},
		{limiter.Leased, 3, nil, []int{4, 4}},
		{limiter.Leased, 400, []limiter.Limit{sliding(3000, time.Hour)}, []int{3, 3}},
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, tt := range tests {
		name := fmt.Sprintf("precision %d, %d tokens, %d replicas", tt.precision, tt.count, len(tt.callers))
		r := parts.StartRedis(t)
		var ls []*limiter.Limiter
		for range tt.callers {
			ls = append(ls, start(t, limiter.Options{Redis: redisAt(r.Addr)}))
		}
		p := policy(t, limiter.Settings{Name: "r", Limits: append([]limiter.Limit{sliding(tt.count, window)}, tt.extra...), Precision: tt.precision})
		wg.Go(func() {
			parts.Eventually(t, 5*time.Second, name+": the replicas do not know each other", func() bool {
				return !slices.ContainsFunc(ls, func(l *limiter.Limiter) bool { return l.State().Replicas != len(ls) })
			})
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			h := hit(ctx, p, ls, tt.callers, time.Millisecond)
			calls := int64(0)
			for _, l := range ls {
				calls += l.State().Calls
			}
			t.Logf("%s: %d admitted by %v, most %d, %d decisions in %d calls", name, len(h.admitted), h.byWhom, h.most(window), h.sources[limiter.Store], calls)
			// At least the first window is used up, and the second begins in time.
			if got := h.most(window); got > tt.count || float64(got) < 0.97*float64(tt.count) {
				t.Errorf("%s: %d admitted within %v", name, got, window)
			}
			if got := len(h.admitted); got > 3*tt.count || float64(got) < 0.97*2*float64(tt.count) {
				t.Errorf("%s: %d admitted in all, want three windows' worth", name, got)
			}
			if len(h.sources) != 1 || h.sources[limiter.Store] == 0 {
				t.Errorf("%s: decided by %v", name, h.sources)
			}
		})
	}
}

// Where the demand stays below the limit, leases in other replicas' hands do
// not keep callers out.
func TestLeasesLeaveRoomForDemandBelowTheLimit(t *testing.T) {
	t.Parallel()
	r := parts.StartRedis(t)
	var ls []*limiter.Limiter
	for range 3 {
		ls = append(ls, start(t, limiter.Options{Redis: redisAt(r.Addr)}))
	}
	p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(400, 2*time.Second)}, Precision: limiter.Leased})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	// Nine callers with a pause of 50 ms are 180 a second: 90 %.
	h := hit(ctx, p, ls, []int{6, 2, 1}, 50*time.Millisecond)
	if asked := h.sources[limiter.Store]; float64(len(h.admitted)) < 0.97*float64(asked) {
		t.Errorf("%d of %d were admitted", len(h.admitted), asked)
	}
	if got := h.most(2 * time.Second); got > 400 {
		t.Errorf("%d admitted within 2s", got)
	}
}
