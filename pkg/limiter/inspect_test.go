package limiter_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/parts"
)

func TestPeekTakesNothing(t *testing.T) {
	for _, algorithm := range []limiter.Algorithm{limiter.SlidingWindow, limiter.FixedWindow, limiter.TokenBucket} {
		t.Run(algorithm.String(), func(t *testing.T) {
			onAll(t, func(t *testing.T, l *limiter.Limiter) {
				ctx := context.Background()
				const window = 1000 * time.Hour // fixed windows of an hour begin while tests run
				p := policy(t, limiter.Settings{Name: t.Name(), Limits: []limiter.Limit{{Count: 3, Window: window, Algorithm: algorithm}}})
				for left := int64(3); left >= 0; left-- {
					for range 20 {
						d := l.Peek(ctx, p, "k")
						if b := d.Budget(0); b.Remaining != left || d.Allowed != (left > 0) || d.Len() != 1 {
							t.Fatalf("peek says %d left, allowed %v; want %d", b.Remaining, d.Allowed, left)
						}
						if !d.Allowed && (d.RetryAfter <= 0 || d.RetryAfter > 2*window) {
							t.Fatalf("a peek at nothing left says to come back in %v", d.RetryAfter)
						}
					}
					if d := l.Take(ctx, p, "k", 1); d.Allowed != (left > 0) {
						t.Fatalf("with %d left a take is allowed: %v", left, d.Allowed)
					}
				}
				if d := l.Peek(ctx, p, "other"); !d.Allowed || d.Budget(0).Remaining != 3 {
					t.Errorf("another identity has %d left, want 3", d.Budget(0).Remaining)
				}
			})
		})
	}
}

func TestPeekCountsWhatThisReplicaHolds(t *testing.T) {
	t.Parallel()
	l := start(t, limiter.Options{Redis: redisAt(parts.StartRedis(t).Addr)})
	p := policy(t, limiter.Settings{Name: t.Name(), Limits: []limiter.Limit{sliding(10_000, time.Hour)}, Precision: limiter.Leased})
	ctx := context.Background()
	for range 3000 { // enough for leases to be taken ahead
		if !l.Take(ctx, p, "k", 1).Allowed {
			t.Fatal("denied below the limit")
		}
	}
	var d limiter.Decision
	defer func() { t.Logf("of 10,000 less 3,000 a peek finds %d", d.Budget(0).Remaining) }()
	// A lease that is on its way is neither in the store nor here.
	parts.Eventually(t, 5*time.Second, "a peek does not count what the replica holds", func() bool {
		d = l.Peek(ctx, p, "k")
		return d.Allowed && d.Budget(0).Remaining >= 6500 && d.Budget(0).Remaining <= 7000
	})
}

func TestPeekWithoutTheStore(t *testing.T) {
	t.Parallel()
	r := parts.StartRedis(t)
	l := start(t, limiter.Options{Redis: redisAt(r.Addr)})
	ctx := context.Background()
	modes := map[limiter.Mode]limiter.Source{limiter.FallLocal: limiter.Local, limiter.FailOpen: limiter.Open, limiter.FailClosed: limiter.Closed}
	local := policy(t, limiter.Settings{Name: "local", Limits: []limiter.Limit{sliding(4, time.Hour)}})
	l.Take(ctx, local, "k", 1)
	r.Kill()
	parts.Eventually(t, 5*time.Second, "the outage was not noticed", func() bool { return !l.State().Up })
	for mode, source := range modes {
		p := policy(t, limiter.Settings{Name: "local", Limits: []limiter.Limit{sliding(4, time.Hour)}, OnStoreError: mode})
		if d := l.Peek(ctx, p, "k"); d.Source != source || d.Allowed != (source != limiter.Closed) {
			t.Errorf("mode %v: peek says %v by %v", mode, d.Allowed, d.Source)
		}
	}
	if d := l.Peek(ctx, local, "k"); d.Budget(0).Remaining != 3 {
		t.Errorf("on its own the replica has %d left, want 3", d.Budget(0).Remaining)
	}
	if err := l.Reset(ctx, local, "k"); !errors.Is(err, limiter.ErrAway) {
		t.Errorf("reset without the store: %v, want ErrAway", err)
	}
	if d := l.Peek(ctx, local, "k"); d.Budget(0).Remaining != 3 {
		t.Errorf("a reset that failed changed what is left to %d", d.Budget(0).Remaining)
	}
}

func TestResetGivesTheWholeLimitBack(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		ctx := context.Background()
		p := policy(t, limiter.Settings{Name: t.Name(), Limits: []limiter.Limit{sliding(2, time.Hour), sliding(3, 2*time.Hour)}})
		for range 4 {
			l.Take(ctx, p, "k", 1)
			l.Take(ctx, p, "other", 1)
		}
		if err := l.Reset(ctx, p, "k"); err != nil {
			t.Fatal(err)
		}
		if d := l.Peek(ctx, p, "k"); d.Budget(0).Remaining != 2 || d.Budget(1).Remaining != 3 {
			t.Errorf("after a reset %d and %d are left, want 2 and 3", d.Budget(0).Remaining, d.Budget(1).Remaining)
		}
		for i := range 3 {
			if d := l.Take(ctx, p, "k", 1); d.Allowed != (i < 2) {
				t.Errorf("take %d after a reset: %v", i, d.Allowed)
			}
		}
		if d := l.Take(ctx, p, "other", 1); d.Allowed {
			t.Error("a reset let another identity pass")
		}
	})
}

// Another replica that still counts what it admitted itself must not tell the
// store of it again after a reset.
func TestResetHoldsOnEveryReplica(t *testing.T) {
	t.Parallel()
	r := parts.StartRedis(t)
	a, b := start(t, limiter.Options{Redis: redisAt(r.Addr)}), start(t, limiter.Options{Redis: redisAt(r.Addr)})
	ctx := context.Background()
	p := policy(t, limiter.Settings{Name: t.Name(), Limits: []limiter.Limit{sliding(4, time.Hour)}})
	for range 2 {
		a.Take(ctx, p, "k", 1)
		b.Take(ctx, p, "k", 1)
	}
	if err := a.Reset(ctx, p, "k"); err != nil {
		t.Fatal(err)
	}
	if d := b.Take(ctx, p, "k", 1); !d.Allowed || d.Budget(0).Remaining != 3 {
		t.Errorf("after a reset by another replica %d are left, want 3", d.Budget(0).Remaining)
	}
	if d := b.Take(ctx, p, "k", 1); d.Budget(0).Remaining != 2 {
		t.Errorf("then %d are left, want 2", d.Budget(0).Remaining)
	}
}

// Leases that another replica took before a reset are neither spent after it
// nor given back to what came after it.
func TestResetDropsLeases(t *testing.T) {
	t.Parallel()
	r := parts.StartRedis(t)
	a, b := start(t, limiter.Options{Redis: redisAt(r.Addr)}), start(t, limiter.Options{Redis: redisAt(r.Addr)})
	p := policy(t, limiter.Settings{Name: t.Name(), Limits: []limiter.Limit{sliding(5000, time.Hour)}, Precision: limiter.Leased})
	for round := range 3 {
		allowed := 0
		for allowed < 2000 && b.Take(t.Context(), p, "k", 1).Allowed {
			allowed++ // b holds a lease now
		}
		if err := a.Reset(t.Context(), p, "k"); err != nil {
			t.Fatal(err)
		}
		allowed = 0
		for began := time.Now(); time.Since(began) < 300*time.Millisecond; {
			if a.Take(t.Context(), p, "k", 1).Allowed {
				allowed++
			}
			b.Take(t.Context(), p, "k", 5000) // too much for its lease: a call
		}
		// What a call of the other replica was granted since is charged, too.
		if got := charged(t, r.Addr); allowed > got || got > 5000 {
			t.Errorf("round %d: %d admitted and %d charged of 5000 after a reset", round, allowed, got)
		}
		if err := a.Reset(t.Context(), p, "k"); err != nil {
			t.Fatal(err)
		}
		parts.Eventually(t, 3*time.Second, "the reset did not reach the other replica", func() bool { return b.Take(t.Context(), p, "k", 1).Allowed })
	}
}

// The most limited come first, and nobody can read who they are.
func TestTop(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		a := policy(t, limiter.Settings{Name: "a", Limits: []limiter.Limit{sliding(2, time.Hour)}, Precision: limiter.Leased})
		b := policy(t, limiter.Settings{Name: "b", Limits: []limiter.Limit{sliding(2, time.Hour)}, Precision: limiter.Exact})
		for _, hit := range []struct {
			p     *limiter.Policy
			key   string
			times int
		}{{a, "ip:192.0.2.1", 9}, {b, "ip:192.0.2.1", 5}, {b, "ip:192.0.2.2", 2}, {a, "ip:192.0.2.3", 3}} {
			for range hit.times {
				l.Take(t.Context(), hit.p, hit.key, 1)
			}
		}
		top := l.Top(10)
		if len(top) != 3 || top[0].Policy != "a" || top[0].Denied != 7 || top[1].Policy != "b" || top[1].Denied != 3 || top[2].Denied != 1 {
			t.Errorf("got %+v", top)
		}
		for _, k := range top {
			if strings.Contains(k.Key, "192.0.2") {
				t.Errorf("%s tells who it is", k.Key)
			}
		}
		if got := l.Top(1); len(got) != 1 || got[0] != top[0] {
			t.Errorf("the first is %+v", got)
		}
		if got := l.Top(0); len(got) != 0 {
			t.Errorf("none is %+v", got)
		}
	})
}
