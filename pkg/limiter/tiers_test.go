package limiter_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/parts"
)

// Policies that differ in counts alone share what was used: as tiers do, and
// what a reload replaces. Who is under the smaller count is never admitted by
// what was taken ahead, or is asked for at the same time, under the larger.
func TestTheSmallerCountHoldsBesideTheLarger(t *testing.T) {
	for _, algorithm := range []limiter.Algorithm{limiter.SlidingWindow, limiter.FixedWindow, limiter.TokenBucket} {
		for name, precision := range map[string]limiter.Precision{"exact": limiter.Exact, "leased": limiter.Leased} {
			t.Run(algorithm.String()+" "+name, func(t *testing.T) {
				t.Parallel()
				l := start(t, limiter.Options{Redis: redisAt(miniredis.RunT(t).Addr())})
				tier := func(count int) *limiter.Policy {
					return policy(t, limiter.Settings{Name: "r", Precision: precision,
						Limits: []limiter.Limit{{Count: count, Window: 1000 * time.Hour, Algorithm: algorithm}}})
				}
				large, small := tier(50_000), tier(10)
				for i := range 3000 {
					if d := l.Take(t.Context(), large, "k", 1); !d.Allowed {
						t.Fatalf("take %d of 50000: %+v", i, d)
					}
				}
				if d := l.Peek(t.Context(), small, "k"); d.Allowed && algorithm != limiter.TokenBucket {
					t.Errorf("peek at 10 with 3000 used: %+v", d)
				}
				var admitted, denied atomic.Int64
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						for range 100 {
							if !l.Take(t.Context(), large, "k", 1).Allowed {
								denied.Add(1)
							}
						}
					})
					wg.Go(func() {
						for range 100 {
							if l.Take(t.Context(), small, "k", 1).Allowed {
								admitted.Add(1)
							}
						}
					})
				}
				wg.Wait()
				most := int64(0)
				if algorithm == limiter.TokenBucket {
					// Buckets share what is missing as time: 3000 tokens of the
					// larger are less than one of the smaller.
					most = 10
				}
				if got := admitted.Load(); got > most {
					t.Errorf("%d admitted at a limit of 10 with 3000 used", got)
				}
				if got := denied.Load(); got > 0 && algorithm != limiter.TokenBucket {
					t.Errorf("%d denied of 50000 with less than 4000 used", got)
				}
			})
		}
	}
}

// What goes back of a lease is what was taken for it, whoever called last.
func TestABucketsRestGoesBackAtItsOwnRate(t *testing.T) {
	t.Parallel()
	l := start(t, limiter.Options{Redis: redisAt(parts.StartRedis(t).Addr)})
	tier := func(count int) *limiter.Policy {
		return policy(t, limiter.Settings{Name: "r", Precision: limiter.Leased,
			Limits: []limiter.Limit{{Count: count, Window: 10 * time.Second, Algorithm: limiter.TokenBucket}}})
	}
	large, small := tier(1000), tier(1)
	began := time.Now()
	admitted := 0
	take := func(n int, p *limiter.Policy) {
		for range n {
			if l.Take(t.Context(), p, "k", 1).Allowed {
				admitted++
			}
		}
	}
	take(600, large)
	<-time.After(400 * time.Millisecond) // a lease of this policy lives 250 ms
	take(1, large)                       // which leaves a fresh one
	take(1, small)                       // which ends it
	<-time.After(100 * time.Millisecond)
	take(1000, large)
	if bound := 1000 + 100*(time.Since(began).Seconds()+0.5); float64(admitted) > bound {
		t.Errorf("%d admitted within %v at 100/s with a burst of 1000", admitted, time.Since(began))
	}
}

// A bucket is a time, whoever fills it: what a slow tier has used is as long for
// a fast one, with a store and without.
func TestBucketsOfTwoRatesShareTheirTime(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		tier := func(count int) *limiter.Policy {
			return policy(t, limiter.Settings{Name: "r", Precision: limiter.Exact,
				Limits: []limiter.Limit{{Count: count, Window: 1000 * time.Hour, Algorithm: limiter.TokenBucket}}})
		}
		small, large := tier(10), tier(1000)
		for range 5 {
			if d := l.Take(t.Context(), small, "k", 1); !d.Allowed {
				t.Fatalf("of 10: %+v", d)
			}
		}
		admitted := 0
		for l.Take(t.Context(), large, "k", 1).Allowed {
			admitted++
		}
		if admitted != 500 {
			t.Errorf("%d of 1000 admitted with half of the bucket used, want 500", admitted)
		}
	})
}

// A larger quota shows at once what is left of it.
func TestALargerTierIsToldOfAtOnce(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		tier := func(count int) *limiter.Policy {
			return policy(t, limiter.Settings{Name: "r", Precision: limiter.Exact, Limits: []limiter.Limit{sliding(count, time.Hour)}})
		}
		small, large := tier(10), tier(1000)
		for _, step := range []struct {
			p    *limiter.Policy
			left int64
		}{{small, 9}, {small, 8}, {large, 997}, {small, 6}, {large, 995}} {
			d := l.Take(t.Context(), step.p, "k", 1)
			if got := d.Budget(0).Remaining; got != step.left {
				t.Errorf("%d left of %d, want %d", got, step.p.Limits()[0].Count, step.left)
			}
		}
	})
}
