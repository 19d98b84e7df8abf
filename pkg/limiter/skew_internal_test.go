package limiter

import (
	"context"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/parts"
)

// Replicas whose wall clocks are wrong, by seconds or by months, share limits
// as if they were right, calendar windows included.
func TestWrongClocksChangeNothing(t *testing.T) {
	r := parts.StartRedis(t)
	var ls []*Limiter
	for _, skew := range []time.Duration{0, 10 * time.Second, -10 * time.Second, 40 * 24 * time.Hour, -400 * 24 * time.Hour} {
		l, err := New(Options{Redis: &Redis{Addr: r.Addr, Timeout: 2 * time.Second}})
		if err != nil {
			t.Fatal(err)
		}
		l.skew = skew.Microseconds()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		defer func() { cancel(); <-done }()
		parts.Eventually(t, 5*time.Second, "the store is not up", func() bool { return l.State().Up })
		ls = append(ls, l)
	}
	zone := time.FixedZone("far", 14*3600)
	for name, limit := range map[string]Limit{
		"sliding": {Count: 20, Window: time.Hour},
		"fixed":   {Count: 20, Window: 1000 * time.Hour, Algorithm: FixedWindow},
		"daily":   {Count: 20, Algorithm: FixedWindow, Calendar: Daily, Zone: zone},
		"monthly": {Count: 20, Algorithm: FixedWindow, Calendar: Monthly},
		"bucket":  {Count: 20, Window: 100 * time.Hour, Algorithm: TokenBucket},
	} {
		for precision := range 2 {
			p, err := NewPolicy(Settings{Name: name + string(rune('0'+precision)), Limits: []Limit{limit}, Precision: Precision(precision)})
			if err != nil {
				t.Fatal(err)
			}
			// The clocks are wrong by more than the heartbeat has told, as after
			// a step: the first answer corrects them.
			for _, l := range ls {
				l.offset.Store(0)
			}
			allowed := 0
			for i := range 100 {
				d := ls[i%len(ls)].Take(t.Context(), p, "k", 1)
				if d.Source != Store {
					t.Fatalf("%s: decided by %v", name, d.Source)
				}
				if d.Allowed {
					allowed++
				}
			}
			// A lease in another replica's hands may be missing to the last one.
			if allowed > 20 || allowed < 20-precision*8 {
				t.Errorf("%s with precision %d: %d of 20 admitted", name, precision, allowed)
			}
		}
	}
}
