package limiter_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/pkg/limiter"
)

func TestTokenBucketTakesABurstAndRefills(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{{Count: 10, Window: time.Second, Algorithm: limiter.TokenBucket, Burst: 3}}})
		began := time.Now() // before the burst: from it on the bucket fills
		if d := l.Take(t.Context(), p, "k", 3); !d.Allowed {
			t.Fatalf("the burst: %+v", d)
		}
		// Each further token comes after a tenth of a second, exactly as told.
		for i := range 3 {
			d := l.Take(t.Context(), p, "k", 2)
			for d.Allowed { // this machine is slow
				d = l.Take(t.Context(), p, "k", 2)
			}
			if d.RetryAfter <= 0 || d.RetryAfter > 210*time.Millisecond {
				t.Fatalf("refill %d in %v", i, d.RetryAfter)
			}
			<-time.After(d.RetryAfter)
			if d = l.Take(t.Context(), p, "k", 2); !d.Allowed {
				t.Fatalf("refill %d: denied after waiting as told: %+v", i, d)
			}
		}
		if took := time.Since(began); took < 550*time.Millisecond {
			t.Errorf("six tokens at ten a second came in %v", took)
		}
	})
}

func TestFixedWindowBeginsAfreshAtItsBorder(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		const window = 400 * time.Millisecond
		p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{{Count: 5, Window: window, Algorithm: limiter.FixedWindow}}})
		// A border named once is never named earlier again, and an answer that
		// took longer names it later by as much at most.
		var slowest time.Duration
		take := func(cost int) limiter.Decision {
			began := time.Now()
			d := l.Take(t.Context(), p, "k", cost)
			slowest = max(slowest, time.Since(began))
			return d
		}
		for round := 0; round < 3; {
			d := take(5)
			for ; d.Allowed; d = take(5) {
			}
			if d.RetryAfter <= 0 || d.RetryAfter > 401*time.Millisecond || d.Budget(0).Reset > d.RetryAfter+slowest+time.Millisecond {
				t.Fatalf("round %d: %+v, slowest answer after %v", round, d, slowest)
			}
			<-time.After(d.RetryAfter)
			next := time.Now().UnixMicro() / window.Microseconds()
			if d := take(1); !d.Allowed {
				t.Fatalf("round %d: after waiting as told: %+v", round, d)
			}
			<-time.After(d.Budget(0).Reset - d.RetryAfter) // until then nobody is told of more
			d = take(1)
			// A machine that has stood still may be in another window by now.
			if same := time.Now().UnixMicro()/window.Microseconds() == next; same {
				if !d.Allowed || d.Budget(0).Remaining != 3 {
					t.Fatalf("round %d: in the next window: %+v", round, d)
				}
				round++
			}
			<-time.After(d.Budget(0).Reset) // the one after is whole again
		}
	})
}

func TestCalendarWindows(t *testing.T) {
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		zone = time.FixedZone("Berlin", 3600)
	}
	tests := []struct {
		name      string
		calendar  limiter.Calendar
		zone      *time.Location
		now, next time.Time
	}{
		{"a day in UTC", limiter.Daily, nil, time.Date(2027, 3, 3, 13, 0, 0, 0, time.UTC), time.Date(2027, 3, 4, 0, 0, 0, 0, time.UTC)},
		{"a day in a zone", limiter.Daily, zone, time.Date(2027, 1, 3, 23, 30, 0, 0, time.UTC), time.Date(2027, 1, 4, 23, 0, 0, 0, time.UTC)},
		{"a month", limiter.Monthly, nil, time.Date(2027, 2, 3, 0, 0, 0, 0, time.UTC), time.Date(2027, 3, 1, 0, 0, 0, 0, time.UTC)},
		{"a month at its end", limiter.Monthly, nil, time.Date(2027, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(2028, 1, 1, 0, 0, 0, 0, time.UTC)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, err := limiter.New(limiter.Options{})
				if err != nil {
					t.Fatal(err)
				}
				<-time.After(time.Until(tt.now))
				p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{{Count: 1, Algorithm: limiter.FixedWindow, Calendar: tt.calendar, Zone: tt.zone}}})
				if d := l.Take(t.Context(), p, "k", 1); !d.Allowed {
					t.Fatalf("%+v", d)
				}
				d := l.Take(t.Context(), p, "k", 1)
				if want := tt.next.Sub(tt.now); d.Allowed || d.RetryAfter != want || d.Budget(0).Reset != want {
					t.Fatalf("told to come back in %v, reset in %v, want %v", d.RetryAfter, d.Budget(0).Reset, want)
				}
				<-time.After(d.RetryAfter)
				if d := l.Take(t.Context(), p, "k", 1); !d.Allowed {
					t.Errorf("denied in the next window: %+v", d)
				}
			})
		})
	}
}

// The local account keeps the same bounds as the store, at any pace, and what
// it says of waiting is true.
func TestOwnCountsKeepTheBounds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var limits []limiter.Limit
		for range rapid.IntRange(1, 3).Draw(rt, "limits") {
			limits = append(limits, limiter.Limit{
				Count:     rapid.IntRange(1, 40).Draw(rt, "count"),
				Window:    time.Duration(rapid.IntRange(10, 3000).Draw(rt, "window")) * time.Millisecond,
				Algorithm: limiter.Algorithm(rapid.IntRange(0, 2).Draw(rt, "algorithm")),
			})
		}
		type take struct {
			pause time.Duration
			cost  int
			wait  bool
		}
		takes := make([]take, 120)
		for i := range takes {
			takes[i] = take{
				time.Duration(rapid.IntRange(0, 200_000).Draw(rt, "pause")) * time.Microsecond,
				rapid.IntRange(1, 5).Draw(rt, "cost"),
				rapid.Bool().Draw(rt, "wait"),
			}
		}
		p, err := limiter.NewPolicy(limiter.Settings{Name: "r", Limits: limits})
		if err != nil {
			rt.Fatal(err)
		}
		synctest.Test(t, func(*testing.T) {
			l, err := limiter.New(limiter.Options{})
			if err != nil {
				rt.Fatal(err)
			}
			type admitted struct {
				at   time.Time
				cost int
			}
			var log []admitted
			for _, tk := range takes {
				<-time.After(tk.pause)
				d := l.Take(context.Background(), p, "k", tk.cost)
				if !d.Allowed && d.RetryAfter == 0 {
					continue // above the limit
				}
				if !d.Allowed && tk.wait {
					<-time.After(d.RetryAfter)
					if d = l.Take(context.Background(), p, "k", tk.cost); !d.Allowed {
						rt.Fatalf("denied after waiting as told: %+v", d)
					}
				}
				if d.Allowed {
					log = append(log, admitted{time.Now(), tk.cost})
				}
			}
			for _, limit := range limits {
				for i := range log {
					sum, fixed := 0, 0
					for _, a := range log[i:] {
						passed := a.at.Sub(log[i].at)
						if passed <= limit.Window {
							sum += a.cost
						}
						if a.at.UnixMicro()/limit.Window.Microseconds() == log[i].at.UnixMicro()/limit.Window.Microseconds() {
							fixed += a.cost
						}
					}
					switch limit.Algorithm {
					case limiter.SlidingWindow:
						if sum > limit.Count {
							rt.Fatalf("%d within %v, the limit is %d", sum, limit.Window, limit.Count)
						}
					case limiter.FixedWindow:
						if fixed > limit.Count {
							rt.Fatalf("%d in one window of %v, the limit is %d", fixed, limit.Window, limit.Count)
						}
					case limiter.TokenBucket:
						if sum > 2*limit.Count {
							rt.Fatalf("%d within %v, the bound is %d", sum, limit.Window, 2*limit.Count)
						}
					}
				}
			}
		})
	})
}
