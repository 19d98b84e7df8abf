package limiter_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/parts"
)

// A request under several policies is charged by all of them or by none,
// whatever they count by and wherever the tokens came from.
func TestSeveralPoliciesAreChargedTogetherOrNotAtAll(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		for _, precision := range []limiter.Precision{limiter.Exact, limiter.Leased} {
			for _, wide := range []limiter.Limit{
				sliding(1000, time.Hour),
				{Count: 1000, Algorithm: limiter.FixedWindow, Calendar: limiter.Monthly},
				{Count: 1000, Window: 1000 * time.Hour, Algorithm: limiter.TokenBucket},
			} {
				name := fmt.Sprintf("%v precision %d", wide.Algorithm, precision)
				outer := policy(t, limiter.Settings{Name: "outer " + name, Limits: []limiter.Limit{wide}, Precision: precision})
				inner := policy(t, limiter.Settings{Name: "inner " + name, Limits: []limiter.Limit{sliding(7, time.Hour)}, Precision: precision})
				demands := []limiter.Demand{{Policy: outer, Key: "o"}, {Policy: inner, Key: "i"}}
				allowed := 0
				for range 40 {
					var out [2]limiter.Decision
					no := l.TakeAll(t.Context(), demands, out[:])
					if no < 0 {
						allowed++
					} else if no != 1 || out[1].RetryAfter <= 0 || out[0].Allowed || out[1].Allowed {
						t.Fatalf("%s: denied by %d: %+v", name, no, out)
					}
				}
				if allowed != 7 {
					t.Errorf("%s: %d of 7 passed", name, allowed)
				}
				// What the others had taken is there again, exactly; with leases
				// once they have been given back.
				parts.Eventually(t, 10*time.Second, name+": what was taken in vain is gone", func() bool {
					d := l.Peek(t.Context(), outer, "o")
					return d.Budget(0).Remaining == 993
				})
			}
		}
	})
}

// What a request costs may be known after its answer only. It is charged then,
// also where it is not there, and holds later requests up.
func TestCostsAfterTheFact(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		for _, precision := range []limiter.Precision{limiter.Exact, limiter.Leased} {
			for _, limit := range []limiter.Limit{
				sliding(100, time.Hour),
				{Count: 100, Algorithm: limiter.FixedWindow, Calendar: limiter.Monthly},
				{Count: 100, Window: 100 * time.Hour, Algorithm: limiter.TokenBucket},
			} {
				name := fmt.Sprintf("%v precision %d", limit.Algorithm, precision)
				p := policy(t, limiter.Settings{Name: name, Limits: []limiter.Limit{limit}, Precision: precision})
				if d := l.Take(t.Context(), p, "k", 1); !d.Allowed {
					t.Fatalf("%s: %+v", name, d)
				}
				l.Charge(p, "k", 49)
				parts.Eventually(t, 10*time.Second, name+": the cost was not charged", func() bool {
					d := l.Peek(t.Context(), p, "k")
					return d.Budget(0).Remaining == 50
				})
				l.Charge(p, "k", 60) // more than there is
				parts.Eventually(t, 10*time.Second, name+": the debt does not hold anybody up", func() bool {
					d := l.Take(t.Context(), p, "k", 1)
					return !d.Allowed && d.RetryAfter > 0
				})
				l.Charge(p, "k", 0)
			}
		}
	})
}

// A debt is made good before anybody passes: a client that was told when, is
// right to come then.
func TestADebtIsMadeGood(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{{Count: 10, Window: time.Second, Algorithm: limiter.TokenBucket}}})
		began := time.Now()
		l.Take(t.Context(), p, "k", 10)
		l.Charge(p, "k", 4)
		var d limiter.Decision
		parts.Eventually(t, 5*time.Second, "the debt does not count", func() bool {
			d = l.Take(t.Context(), p, "k", 1)
			return !d.Allowed && d.RetryAfter > 0
		})
		<-time.After(d.RetryAfter)
		if d = l.Take(t.Context(), p, "k", 1); !d.Allowed {
			t.Errorf("denied after waiting as told: %+v", d)
		}
		if took := time.Since(began); took < 500*time.Millisecond {
			t.Errorf("fifteen tokens of ten and ten a second after %v", took)
		}
	})
}

// Nothing is taken for a caller that was known to be denied elsewhere.
func TestAKnownDenialTakesNothingFromTheOthers(t *testing.T) {
	r := parts.StartRedis(t)
	l := start(t, limiter.Options{Redis: redisAt(r.Addr)})
	wide := policy(t, limiter.Settings{Name: "wide", Limits: []limiter.Limit{sliding(1000, time.Hour)}})
	narrow := policy(t, limiter.Settings{Name: "narrow", Limits: []limiter.Limit{sliding(1, time.Hour)}})
	demands := []limiter.Demand{{Policy: wide, Key: "w"}, {Policy: narrow, Key: "n"}}
	var out [2]limiter.Decision
	for range 2 {
		out = [2]limiter.Decision{}
		l.TakeAll(context.Background(), demands, out[:])
	}
	before := l.State().Calls
	for range 100 {
		out = [2]limiter.Decision{}
		if l.TakeAll(context.Background(), demands, out[:]) != 1 {
			t.Fatal("passed")
		}
	}
	if calls := l.State().Calls - before; calls > 2 {
		t.Errorf("100 denials cost %d calls", calls)
	}
}
