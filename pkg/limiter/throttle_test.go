package limiter_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/parts"
)

// delaying are policies that make callers wait, of each algorithm.
func delaying(t testing.TB, maxDelay time.Duration, maxQueue int) map[string]*limiter.Policy {
	t.Helper()
	ps := map[string]*limiter.Policy{}
	for name, l := range map[string]limiter.Limit{
		"sliding": sliding(4, 200*time.Millisecond),
		"fixed":   {Count: 4, Window: 200 * time.Millisecond, Algorithm: limiter.FixedWindow},
		"bucket":  {Count: 20, Window: time.Second, Algorithm: limiter.TokenBucket, Burst: 4},
	} {
		for _, precision := range []limiter.Precision{limiter.Exact, limiter.Leased} {
			key := fmt.Sprintf("%s %d", name, precision)
			ps[key] = policy(t, limiter.Settings{Name: key, Limits: []limiter.Limit{l}, Precision: precision, MaxDelay: maxDelay, MaxQueue: maxQueue})
		}
	}
	return ps
}

// Callers above the limit wait for their turn instead of being denied, and the
// limit holds: more than fits into a window takes longer than one.
func TestCallersWaitForTheirTurn(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		for name, p := range delaying(t, 30*time.Second, 100) {
			var wg sync.WaitGroup
			var delayed atomic.Int64
			began := time.Now()
			var mu sync.Mutex
			var passed []time.Duration
			for range 12 {
				wg.Go(func() {
					d := l.Take(t.Context(), p, "k", 1)
					if !d.Allowed {
						t.Errorf("%s: denied: %+v", name, d)
					}
					if d.Delayed > 0 {
						delayed.Add(1)
					}
					mu.Lock()
					defer mu.Unlock()
					passed = append(passed, time.Since(began))
				})
			}
			wg.Wait()
			slices.Sort(passed)
			// Four at once, then four per 200 ms; a fixed window may begin in
			// between.
			if least := 180 * time.Millisecond; passed[11] < least {
				t.Errorf("%s: twelve passed within %v", name, passed[11])
			}
			if got := delayed.Load(); got < 4 {
				t.Errorf("%s: %d of twelve had to wait", name, got)
			}
		}
		if n := l.State().Waiting; n != 0 {
			t.Errorf("%d still wait", n)
		}
	})
}

// Nobody waits longer than the bound: who would have to is told at once, and
// right.
func TestNobodyWaitsLongerThanTheBound(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		for name, limit := range map[string]limiter.Limit{
			"sliding": sliding(2, time.Minute),
			"month":   {Count: 2, Algorithm: limiter.FixedWindow, Calendar: limiter.Monthly},
			"bucket":  {Count: 2, Window: time.Minute, Algorithm: limiter.TokenBucket},
		} {
			p := policy(t, limiter.Settings{Name: name, Limits: []limiter.Limit{limit}, MaxDelay: time.Second, MaxQueue: 10})
			for range 2 {
				if d := l.Take(t.Context(), p, "k", 1); !d.Allowed || d.Delayed > 0 {
					t.Fatalf("%s: %+v", name, d)
				}
			}
			began := time.Now()
			for range 5 {
				if d := l.Take(t.Context(), p, "k", 1); d.Allowed || d.RetryAfter < time.Second || d.Full {
					t.Errorf("%s: %+v", name, d)
				}
			}
			if took := time.Since(began); took > 900*time.Millisecond {
				t.Errorf("%s: five denials took %v", name, took)
			}
		}
	})
}

// Who comes when the queue is full is denied at once, and told so.
func TestTheQueueIsBounded(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		for name, limit := range map[string]limiter.Limit{
			"sliding": sliding(1, 4*time.Second),
			"bucket":  {Count: 1, Window: 4 * time.Second, Algorithm: limiter.TokenBucket},
		} {
			p := policy(t, limiter.Settings{Name: name, Limits: []limiter.Limit{limit}, MaxDelay: time.Minute, MaxQueue: 3})
			if d := l.Take(t.Context(), p, "k", 1); !d.Allowed {
				t.Fatalf("%s: %+v", name, d)
			}
			if d := l.Peek(t.Context(), p, "k"); d.Allowed || d.RetryAfter < time.Second || d.RetryAfter > 5*time.Second {
				t.Errorf("%s: beforehand: %+v", name, d)
			}
			ctx, cancel := context.WithCancel(t.Context())
			before := l.State().Waiting
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() { l.Take(ctx, p, "k", 1) })
			}
			parts.Eventually(t, 5*time.Second, name+": nobody waits", func() bool { return l.State().Waiting == before+3 })
			if d := l.Take(t.Context(), p, "k", 1); d.Allowed || !d.Full || d.RetryAfter <= 0 {
				t.Errorf("%s: the fifth: %+v", name, d)
			}
			cancel()
			wg.Wait()
			// Their places are free again.
			ctx, cancel = context.WithCancel(t.Context())
			wg.Go(func() { l.Take(ctx, p, "k", 1) })
			parts.Eventually(t, 5*time.Second, name+": the places of those who left are still taken", func() bool { return l.State().Waiting == before+1 })
			cancel()
			wg.Wait()
		}
	})
}

// Where another limit denies than the one with the queue, it is not the queue
// that is full.
func TestAUsedUpQuotaIsNoFullQueue(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		p := policy(t, limiter.Settings{Name: "r", MaxDelay: 10 * time.Second, MaxQueue: 3, Limits: []limiter.Limit{
			{Count: 100, Window: time.Second, Algorithm: limiter.TokenBucket}, sliding(2, time.Hour),
		}})
		for i := range 4 {
			if d := l.Take(t.Context(), p, "k", 1); d.Allowed != (i < 2) || d.Full {
				t.Errorf("take %d of 2 an hour: %+v", i, d)
			}
		}
	})
}

// Who has moved up, because somebody before left, gives back the turn that it
// has and not the one that it had: that is somebody else's by now.
func TestATurnThatMovedUpGoesBackAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := limiter.New(limiter.Options{})
		if err != nil {
			t.Fatal(err)
		}
		slow := policy(t, limiter.Settings{Name: "slow", MaxDelay: time.Minute, MaxQueue: 10, Limits: []limiter.Limit{
			{Count: 1, Window: time.Second, Algorithm: limiter.TokenBucket},
		}})
		used := policy(t, limiter.Settings{Name: "used", Limits: []limiter.Limit{sliding(1, time.Hour)}})
		l.Take(t.Context(), used, "k", 1)
		began := time.Now()
		var passed [2]time.Duration
		wait := func(i int) {
			if d := l.Take(t.Context(), slow, "k", 1); !d.Allowed {
				t.Errorf("caller %d: %+v", i, d)
			}
			passed[i] = time.Since(began)
		}
		var wg sync.WaitGroup
		after := func(d time.Duration, do func()) {
			wg.Go(func() { time.Sleep(d); do() })
		}
		l.Take(t.Context(), slow, "k", 1)
		leaves, leave := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer leave()
		after(100*time.Millisecond, func() { l.Take(leaves, slow, "k", 1) })
		after(200*time.Millisecond, func() {
			// It moves up at half a second, has its turn at one, and is denied then.
			var out [2]limiter.Decision
			if denied := l.TakeAll(t.Context(), []limiter.Demand{{Policy: slow, Key: "k", Cost: 1}, {Policy: used, Key: "k", Cost: 1}}, out[:]); denied != 1 {
				t.Errorf("denied by %d", denied)
			}
		})
		after(600*time.Millisecond, func() { wait(0) })
		after(1100*time.Millisecond, func() { wait(1) })
		wg.Wait()
		if gap := passed[1] - passed[0]; passed[0] < 2*time.Second-time.Millisecond || gap < time.Second-time.Millisecond {
			t.Errorf("at one a second two passed after %v", passed)
		}
	})
}

// A client that leaves neither keeps its place nor its token: who comes next
// does not wait for it.
func TestWhoLeavesFreesItsPlace(t *testing.T) {
	onAll(t, func(t *testing.T, l *limiter.Limiter) {
		for name, limit := range map[string]limiter.Limit{
			"sliding": sliding(1, 500*time.Millisecond),
			"bucket":  {Count: 2, Window: time.Second, Algorithm: limiter.TokenBucket, Burst: 1},
		} {
			p := policy(t, limiter.Settings{Name: name, Limits: []limiter.Limit{limit}, MaxDelay: time.Minute, MaxQueue: 100})
			began := time.Now()
			if d := l.Take(t.Context(), p, "k", 1); !d.Allowed {
				t.Fatalf("%s: %+v", name, d)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			before := l.State().Waiting
			for range 40 {
				wg.Go(func() { l.Take(ctx, p, "k", 1) })
			}
			behind := make(chan limiter.Decision)
			waiting := func(n int64) func() bool {
				return func() bool { return l.State().Waiting-before >= n-int64(time.Since(began)/(500*time.Millisecond)) }
			}
			parts.Eventually(t, 5*time.Second, name+": nobody waits", waiting(40))
			go func() { behind <- l.Take(t.Context(), p, "k", 1) }()
			parts.Eventually(t, 5*time.Second, name+": nobody waits", waiting(41))
			cancel()
			wg.Wait()
			if d := <-behind; !d.Allowed || time.Since(began) > 10*time.Second {
				t.Errorf("%s: behind forty who left it took %v: %+v", name, time.Since(began), d)
			}
			if d := l.Take(t.Context(), p, "k", 1); !d.Allowed || d.Delayed > 5*time.Second {
				t.Errorf("%s: forty who left before made the next one wait %v: %+v", name, d.Delayed, d)
			}
		}
	})
}

// Many who leave at the same moment give their places back one after the other,
// the last first: none is lost between them.
func TestAllWhoLeaveAtOnceGiveTheirPlacesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := limiter.New(limiter.Options{})
		if err != nil {
			t.Fatal(err)
		}
		p := policy(t, limiter.Settings{Name: "bucket", MaxDelay: time.Minute, MaxQueue: 1000,
			Limits: []limiter.Limit{{Count: 2, Window: time.Second, Algorithm: limiter.TokenBucket, Burst: 1}}})
		for round := range 200 {
			key := strconv.Itoa(round)
			l.Take(t.Context(), p, key, 1)
			ctx, leave := context.WithCancel(t.Context())
			for range 100 {
				go l.Take(ctx, p, key, 1)
			}
			synctest.Wait()
			leave()
			synctest.Wait()
			if d := l.Take(t.Context(), p, key, 1); !d.Allowed || d.Delayed > time.Second {
				t.Fatalf("round %d: after a hundred who left the next one waits %v: %+v", round, d.Delayed, d)
			}
		}
	})
}

// Those who wait pass in the order in which they came.
func TestTurnsAreInOrder(t *testing.T) {
	for name, limit := range map[string]limiter.Limit{
		"sliding": sliding(1, 100*time.Millisecond),
		"fixed":   {Count: 1, Window: 100 * time.Millisecond, Algorithm: limiter.FixedWindow},
		"bucket":  {Count: 10, Window: time.Second, Algorithm: limiter.TokenBucket, Burst: 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			l, err := limiter.New(limiter.Options{})
			if err != nil {
				t.Fatal(err)
			}
			p := policy(t, limiter.Settings{Name: name, Limits: []limiter.Limit{limit}, MaxDelay: time.Minute, MaxQueue: 100})
			l.Take(t.Context(), p, "k", 1)
			passed := make(chan int, 6)
			for i := range 6 {
				go func() {
					l.Take(t.Context(), p, "k", 1)
					passed <- i
				}()
				<-time.After(time.Millisecond)
			}
			for i := range 6 {
				if got := <-passed; got != i {
					t.Errorf("%s: number %d passed as number %d", name, got, i)
				}
			}
		})
	}
}

// Two replicas that make callers wait admit no more than the limit either.
func TestWaitingReplicasShareOneLimit(t *testing.T) {
	t.Parallel()
	r := parts.StartRedis(t)
	ls := []*limiter.Limiter{start(t, limiter.Options{Redis: redisAt(r.Addr)}), start(t, limiter.Options{Redis: redisAt(r.Addr)})}
	const window = time.Second
	for name, tt := range map[string]struct {
		limit limiter.Limit
		bound int
	}{
		"sliding": {sliding(40, window), 40},
		"bucket":  {limiter.Limit{Count: 40, Window: window, Algorithm: limiter.TokenBucket, Burst: 10}, 10 + 40 + 4}, // and a lease's life
	} {
		for _, precision := range []limiter.Precision{limiter.Exact, limiter.Leased} {
			p := policy(t, limiter.Settings{Name: name + fmt.Sprint(precision), Limits: []limiter.Limit{tt.limit}, Precision: precision, MaxDelay: 2 * time.Second, MaxQueue: 50})
			ctx, cancel := context.WithTimeout(t.Context(), 3*window)
			h := hit(ctx, p, ls, []int{12, 4}, 0)
			cancel()
			t.Logf("%s precision %d: %d admitted by %v, most %d", name, precision, len(h.admitted), h.byWhom, h.most(window))
			bound := tt.bound
			if tt.limit.Algorithm == limiter.TokenBucket {
				// A bucket's turns are handed out ahead of time. All whose turn came
				// while this machine stood still are seen to pass at its end.
				bound += int(h.late * time.Duration(tt.limit.Count) / window)
			}
			if got := h.most(window); got > bound {
				t.Errorf("%s precision %d: %d admitted within %v, the bound is %d", name, precision, got, window, bound)
			}
			if len(h.admitted) < 80 {
				t.Errorf("%s precision %d: %d admitted in three windows of 40", name, precision, len(h.admitted))
			}
		}
	}
}
