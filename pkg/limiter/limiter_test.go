package limiter_test

import (
	"context"
	"flag"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"go.uber.org/goleak"

	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/parts"
)

func TestMain(m *testing.M) {
	// Most of these tests wait for windows to pass: more of them at once than
	// there are cores.
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// patient is a store timeout that a busy test machine does not reach.
const patient = 2 * time.Second

// start runs a limiter until the test ends, and waits until its store is up.
func start(t testing.TB, o limiter.Options) *limiter.Limiter {
	t.Helper()
	l, _ := startStoppable(t, o)
	return l
}

func startStoppable(t testing.TB, o limiter.Options) (*limiter.Limiter, func()) {
	t.Helper()
	l, err := limiter.New(o)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, l)
	if o.Redis != nil {
		parts.Eventually(t, 5*time.Second, "the store is not up", func() bool { return l.State().Up })
	}
	return l, stop
}

// run runs a limiter until the test ends, or until it is stopped.
func run(t testing.TB, l *limiter.Limiter) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func redisAt(addr string) *limiter.Redis { return &limiter.Redis{Addr: addr, Timeout: patient} }

func policy(t testing.TB, s limiter.Settings) *limiter.Policy {
	t.Helper()
	p, err := limiter.NewPolicy(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func sliding(count int, window time.Duration) limiter.Limit {
	return limiter.Limit{Count: count, Window: window}
}

// stores are what the conformance suite runs against: the options of a
// limiter, fresh for each test.
var stores = []struct {
	name  string
	start func(t testing.TB) limiter.Options
}{
	{"own", func(testing.TB) limiter.Options { return limiter.Options{} }},
	{"miniredis", func(t testing.TB) limiter.Options {
		return limiter.Options{Redis: redisAt(miniredis.RunT(t).Addr())}
	}},
	{"redis", func(t testing.TB) limiter.Options {
		return limiter.Options{Redis: redisAt(parts.StartRedis(t).Addr)}
	}},
}

// onAll runs a test of the conformance suite against every store.
func onAll(t *testing.T, test func(t *testing.T, l *limiter.Limiter)) {
	for _, s := range stores {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			test(t, start(t, s.start(t)))
		})
	}
}

func TestAdmitsExactlyTheLimit(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(50, time.Minute)}})
		var allowed atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 20 {
					if l.Take(t.Context(), p, "k", 1).Allowed {
						allowed.Add(1)
					}
				}
			})
		}
		wg.Wait()
		if got := allowed.Load(); got != 50 {
			t.Errorf("160 callers got %d of 50 tokens", got)
		}
		if d := l.Take(t.Context(), p, "another", 1); !d.Allowed {
			t.Error("another identity was denied")
		}
	})
}

func TestBudgetsCountDown(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(5, time.Minute), sliding(100, time.Hour)}})
		for i, want := range []struct {
			allowed     bool
			left, left2 int64
		}{{true, 4, 99}, {true, 3, 98}, {true, 2, 97}, {true, 1, 96}, {true, 0, 95}, {false, 0, 95}, {false, 0, 95}} {
			d := l.Take(t.Context(), p, "k", 1)
			if d.Allowed != want.allowed || d.Budget(0).Remaining != want.left || d.Budget(1).Remaining != want.left2 {
				t.Errorf("take %d: allowed %v, budgets %+v %+v, want %+v", i, d.Allowed, d.Budget(0), d.Budget(1), want)
			}
			if r := d.Budget(0).Reset; r < time.Minute-time.Second || r > time.Minute+4*time.Second {
				t.Errorf("take %d: the minute resets in %v", i, r)
			}
			if !d.Allowed && (d.RetryAfter < time.Minute-time.Second || d.RetryAfter > time.Minute+4*time.Second) {
				t.Errorf("take %d: retry after %v", i, d.RetryAfter)
			}
		}
	})
}

func TestLimitsAreChargedTogetherOrNotAtAll(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(10, time.Hour), sliding(4, time.Minute)}})
		if d := l.Take(t.Context(), p, "k", 3); !d.Allowed {
			t.Fatalf("3 of 4 and 10: %+v", d)
		}
		for range 5 {
			if d := l.Take(t.Context(), p, "k", 2); d.Allowed {
				t.Fatalf("2 of the minute's 1: %+v", d)
			}
		}
		d := l.Take(t.Context(), p, "k", 1)
		if !d.Allowed || d.Budget(0).Remaining != 6 || d.Budget(1).Remaining != 0 {
			t.Errorf("a denial was charged: %+v", d)
		}
	})
}

func TestWhoWaitsRetryAfterIsAdmitted(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		for _, cost := range []int{1, 2} {
			p := policy(t, limiter.Settings{Name: fmt.Sprint("r", cost), Limits: []limiter.Limit{sliding(4, 200*time.Millisecond), sliding(50, time.Hour)}})
			for round := range 4 {
				var d limiter.Decision
				taken := 0
				for d = l.Take(t.Context(), p, "k", cost); d.Allowed; d = l.Take(t.Context(), p, "k", cost) {
					taken++
				}
				if taken < 1 || d.RetryAfter <= 0 {
					t.Fatalf("cost %d round %d: %d passed, then %+v", cost, round, taken, d)
				}
				<-time.After(d.RetryAfter)
			}
		}
	})
}

func TestCostAboveTheLimitNeverPasses(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(3, time.Minute)}})
		if d := l.Take(t.Context(), p, "k", 4); d.Allowed || d.RetryAfter != 0 {
			t.Errorf("4 of 3: %+v", d)
		}
		if d := l.Take(t.Context(), p, "k", 3); !d.Allowed {
			t.Errorf("3 of 3 after that: %+v", d)
		}
	})
}

func TestAChangedCountAppliesToWhatWasUsed(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		take := func(count int, n int) (allowed int) {
			p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(count, time.Minute)}})
			for range n {
				if l.Take(t.Context(), p, "k", 1).Allowed {
					allowed++
				}
			}
			return allowed
		}
		for _, c := range []struct{ count, takes, want int }{{5, 10, 5}, {8, 10, 3}, {6, 3, 0}, {9, 3, 1}} {
			if got := take(c.count, c.takes); got != c.want {
				t.Errorf("count %d: %d of %d takes passed, want %d", c.count, got, c.takes, c.want)
			}
		}
	})
}
