package limiter_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/limiter"
)

// What clients are told is left never grows before the reset that they were
// told of, whatever replicas take ahead, give back and charge late.
func TestRemainingNeverJumpsUpButAtAReset(t *testing.T) {
	for _, s := range stores {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			o := s.start(t)
			ls := []*limiter.Limiter{start(t, o), start(t, o), start(t, o)}
			var wg sync.WaitGroup
			defer wg.Wait()
			for i, limit := range []limiter.Limit{
				sliding(300, 2*time.Second),
				{Count: 300, Window: 2 * time.Second, Algorithm: limiter.FixedWindow},
				{Count: 300, Window: 2 * time.Second, Algorithm: limiter.TokenBucket},
			} {
				for _, precision := range []limiter.Precision{limiter.Exact, limiter.Leased} {
					name := fmt.Sprintf("%v precision %d", limit.Algorithm, precision)
					settings := limiter.Settings{Name: name, Limits: []limiter.Limit{limit, sliding(5000, time.Hour)}, Precision: precision}
					p := policy(t, settings)
					// Of each replica one caller, so that what it is told is in
					// order.
					for j, l := range ls {
						random := rand.New(rand.NewPCG(uint64(i), uint64(j)))
						wg.Go(func() {
							type told struct {
								left int64
								grow time.Time
							}
							last := [2]told{}
							shown := 0
							for began := time.Now(); time.Since(began) < 5*time.Second; {
								before := time.Now()
								d := l.Take(t.Context(), p, "k", 1+random.IntN(5)/4)
								now := time.Now()
								for k := range last {
									b := d.Budget(k)
									// What is told was true at some moment of the call.
									if b.Remaining > last[k].left && now.Before(last[k].grow) && shown > 0 {
										t.Errorf("%s, limit %d: %d left after %d, %v before the reset", name, k, b.Remaining, last[k].left, last[k].grow.Sub(now))
									}
									last[k] = told{b.Remaining, before.Add(b.Reset)}
								}
								shown++
								switch random.IntN(40) {
								case 0:
									<-time.After(time.Duration(random.IntN(120)) * time.Millisecond) // leases end unspent
								case 1:
									l.Charge(p, "k", random.IntN(4))
								default:
									<-time.After(time.Duration(random.IntN(4)) * time.Millisecond)
								}
								if t.Failed() {
									return
								}
							}
						})
					}
				}
			}
		})
	}
}
