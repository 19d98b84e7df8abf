package limiter_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/parts"
)

// hammer is what a load on several limiters of one store came to.
type hammer struct {
	admitted []time.Duration // when, since the start, in order
	byWhom   []int
	longest  time.Duration // that one Take took
	waits    []time.Duration
	sources  map[limiter.Source]int
	late     time.Duration // that a goroutine has run later than it was to, at most
}

// hit loads the limiters, each with its own number of callers, until ctx ends.
func hit(ctx context.Context, p *limiter.Policy, ls []*limiter.Limiter, callers []int, pause time.Duration) *hammer {
	h := &hammer{byWhom: make([]int, len(ls)), sources: map[limiter.Source]int{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	began := time.Now()
	wg.Go(func() {
		for ctx.Err() == nil {
			before := time.Now()
			<-time.After(time.Millisecond)
			h.late = max(h.late, time.Since(before)-time.Millisecond)
		}
	})
	for i, l := range ls {
		for range callers[i] {
			wg.Go(func() {
				var mine []time.Duration
				var longest time.Duration
				var waits []time.Duration
				sources := map[limiter.Source]int{}
				for ctx.Err() == nil {
					before := time.Now()
					d := l.Take(context.Background(), p, "k", 1)
					after := time.Now()
					longest = max(longest, after.Sub(before))
					if pause > 0 {
						waits = append(waits, after.Sub(before))
					}
					sources[d.Source]++
					if d.Allowed {
						mine = append(mine, after.Sub(began))
					}
					if pause > 0 {
						select {
						case <-ctx.Done():
						case <-time.After(pause):
						}
					}
				}
				mu.Lock()
				defer mu.Unlock()
				h.admitted = append(h.admitted, mine...)
				h.byWhom[i] += len(mine)
				h.longest = max(h.longest, longest)
				h.waits = append(h.waits, waits...)
				for s, n := range sources {
					h.sources[s] += n
				}
			})
		}
	}
	wg.Wait()
	slices.Sort(h.admitted)
	return h
}

// over returns how many calls took longer than that.
func (h *hammer) over(d time.Duration) (n int) {
	for _, w := range h.waits {
		if w > d {
			n++
		}
	}
	return n
}

// most returns how many were admitted in the fullest interval of that length.
func (h *hammer) most(length time.Duration) int {
	most, from := 0, 0
	for i, at := range h.admitted {
		for h.admitted[from] < at-length {
			from++
		}
		most = max(most, i-from+1)
	}
	return most
}

// Whatever happens to Redis under load: nobody waits longer than the store's
// timeout, nobody sees an error, no window admits more than the limit and what
// the other replicas could not know of it, and in the end limits are shared.
func TestOutages(t *testing.T) {
	t.Parallel()
	const limit, window, timeout = 200, 2 * time.Second, 40 * time.Millisecond
	wait := func(d time.Duration) { <-time.After(d) }
	chaos := map[string]struct {
		do    func(t *testing.T, r *parts.Redis, admin *redis.Client)
		local bool // the replicas were on their own for a while
		loose bool // what was known is lost, or each is on its own: limit x (2 - 1/replicas)
	}{
		"nothing": {func(*testing.T, *parts.Redis, *redis.Client) { wait(time.Second) }, false, false},
		"killed and back without its data": {func(t *testing.T, r *parts.Redis, _ *redis.Client) {
			r.Kill()
			wait(time.Second)
			r.Start()
		}, true, true},
		"restarted at once without its data": {func(t *testing.T, r *parts.Redis, _ *redis.Client) {
			r.Kill()
			r.Start()
		}, false, true},
		"flushed": {func(t *testing.T, _ *parts.Redis, admin *redis.Client) {
			if err := admin.FlushAll(context.Background()).Err(); err != nil {
				t.Error(err)
			}
		}, false, true},
		"frozen": {func(_ *testing.T, r *parts.Redis, _ *redis.Client) {
			r.Freeze()
			wait(time.Second)
			r.Thaw()
		}, true, true},
		"flapping": {func(_ *testing.T, r *parts.Redis, _ *redis.Client) {
			for range 20 {
				r.Freeze()
				wait(15 * time.Millisecond)
				r.Thaw()
				wait(20 * time.Millisecond)
			}
		}, false, true},
		"read-only": {func(t *testing.T, _ *parts.Redis, admin *redis.Client) {
			ctx := context.Background()
			if err := admin.Do(ctx, "REPLICAOF", "127.0.0.1", "1").Err(); err != nil {
				t.Error(err)
			}
			wait(time.Second)
			if err := admin.Do(ctx, "REPLICAOF", "NO", "ONE").Err(); err != nil {
				t.Error(err)
			}
		}, true, true},
		"script cache flushed": {func(t *testing.T, _ *parts.Redis, admin *redis.Client) {
			for range 50 {
				if err := admin.ScriptFlush(context.Background()).Err(); err != nil {
					t.Error(err)
				}
				wait(10 * time.Millisecond)
			}
		}, false, false},
	}
	// All at once: they mostly wait. t.Fatal in one of them ends that one.
	var wg sync.WaitGroup
	defer wg.Wait()
	type trial struct {
		what      string
		precision limiter.Precision
		callers   []int // of each replica
	}
	var trials []trial
	for what := range chaos {
		trials = append(trials, trial{what, limiter.Exact, []int{3, 1}}, trial{what, limiter.Leased, []int{3, 1}})
	}
	for _, what := range []string{"killed and back without its data", "frozen", "read-only"} {
		trials = append(trials, trial{what, limiter.Leased, []int{3, 1, 1, 1, 1}})
	}
	for _, tr := range trials {
		c, name := chaos[tr.what], fmt.Sprintf("%s (precision %d, %d replicas)", tr.what, tr.precision, len(tr.callers))
		r := parts.StartRedis(t)
		admin := redis.NewClient(&redis.Options{Addr: r.Addr})
		t.Cleanup(func() { _ = admin.Close() })
		var ls []*limiter.Limiter
		for range tr.callers {
			ls = append(ls, start(t, limiter.Options{Redis: &limiter.Redis{Addr: r.Addr, Timeout: timeout}}))
		}
		all := func(ok func(limiter.State) bool) func() bool {
			return func() bool {
				return !slices.ContainsFunc(ls, func(l *limiter.Limiter) bool { return !ok(l.State()) })
			}
		}
		p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(limit, window)}, Precision: tr.precision})
		wg.Go(func() {
			parts.Eventually(t, 5*time.Second, name+": the replicas do not know each other", all(func(s limiter.State) bool { return s.Replicas == len(ls) }))
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			result := make(chan *hammer, 1)
			go func() { result <- hit(ctx, p, ls, tr.callers, 16*time.Millisecond) }()
			wait(700 * time.Millisecond)
			c.do(t, r, admin)
			over := time.Now()
			parts.Eventually(t, 5*time.Second, name+": the store did not come back", all(func(s limiter.State) bool { return s.Up }))
			back := time.Since(over) // 200 ms on a machine with time to spare
			wait(window)
			cancel()
			h := <-result
			bound := limit
			// On a busy machine a call may time out without any outage, and then
			// a replica has decided by its share.
			if c.loose || h.sources[limiter.Local] > 0 {
				bound = 2*limit - limit/len(ls)
			}
			if got := h.most(window); got > bound {
				t.Errorf("%s: %d admitted within %v, the bound is %d", name, got, window, bound)
			}
			// A starved machine does not ask for all of it.
			if got := h.most(window); got < limit/2 {
				t.Errorf("%s: %d admitted within %v: most of %d was lost", name, got, window, limit)
			}
			// On a busy machine a goroutine may wait for its turn, too: then the
			// store is not what most of them wait for.
			slow := h.over(timeout + 5*time.Millisecond)
			if slow > len(h.waits)/2 {
				t.Errorf("%s: %d of %d callers waited longer than %v", name, slow, len(h.waits), timeout+5*time.Millisecond)
			}
			if most := timeout + 3*time.Second; h.longest > most {
				t.Errorf("%s: one caller waited %v, want at most %v", name, h.longest, most)
			}
			if local := h.sources[limiter.Local] > 0; c.local && !local {
				t.Errorf("%s: nobody noticed: %v", name, h.sources)
			}
			t.Logf("%s: admitted %d, most %d, longest %v, %d of %d above %v, shared again after %v, %v", name, len(h.admitted), h.most(window), h.longest,
				slow, len(h.waits), timeout+5*time.Millisecond, back, h.sources)
		})
	}
}

// What a replica admits on its own is made good when the store is back: the
// other replica sees it at once.
func TestDebtsAreSettled(t *testing.T) {
	t.Parallel()
	r := parts.StartRedis(t)
	var ls []*limiter.Limiter
	for range 2 {
		ls = append(ls, start(t, limiter.Options{Redis: redisAt(r.Addr)}))
	}
	parts.Eventually(t, 5*time.Second, "the replicas do not know each other", func() bool {
		return ls[0].State().Replicas == 2 && ls[1].State().Replicas == 2
	})
	limits := map[string]limiter.Limit{
		"sliding": sliding(10, time.Minute),
		"fixed":   {Count: 10, Algorithm: limiter.FixedWindow, Calendar: limiter.Monthly},
		"bucket":  {Count: 10, Window: time.Hour, Algorithm: limiter.TokenBucket},
	}
	policies := map[string]*limiter.Policy{}
	take := func(l *limiter.Limiter, name string, n int) (allowed int) {
		for range n {
			if l.Take(t.Context(), policies[name], "k", 1).Allowed {
				allowed++
			}
		}
		return allowed
	}
	for name, l := range limits {
		policies[name] = policy(t, limiter.Settings{Name: name, Limits: []limiter.Limit{l}})
		if got := take(ls[0], name, 2); got != 2 {
			t.Fatalf("%s: %d of 2", name, got)
		}
	}
	r.Kill()
	parts.Eventually(t, 5*time.Second, "nobody noticed", func() bool { return !ls[0].State().Up && !ls[1].State().Up })
	for name := range limits {
		// Half of ten each, and the first replica has used two of its five.
		if a, b := take(ls[0], name, 9), take(ls[1], name, 9); a != 3 || b != 5 {
			t.Errorf("%s: alone the replicas admitted %d and %d, want 3 and 5", name, a, b)
		}
	}
	r.Start()
	parts.Eventually(t, 5*time.Second, "the store did not come back", func() bool { return ls[0].State().Up && ls[1].State().Up })
	admin := redis.NewClient(&redis.Options{Addr: r.Addr})
	defer admin.Close()
	parts.Eventually(t, 5*time.Second, "not all debts arrived", func() bool {
		keys, err := admin.Keys(t.Context(), "rl:{*:*}").Result()
		return err == nil && len(keys) == len(limits) && ls[0].State().Calls > 0
	})
	for name := range limits {
		parts.Eventually(t, 5*time.Second, name+": the store did not learn what was used", func() bool {
			// Redis came back empty: 2 + 3 + 5 of 10 are used, all of them told.
			d := ls[1].Take(t.Context(), policies[name], "k", 1)
			return !d.Allowed && d.Source == limiter.Store
		})
	}
	for name := range limits {
		if got := take(ls[0], name, 3); got != 0 {
			t.Errorf("%s: %d more than the limit", name, got)
		}
	}
}

// The ends of a limiter: before its store was reached, and after Run.
func TestWithoutAStoreInReach(t *testing.T) {
	l, err := limiter.New(limiter.Options{Redis: redisAt("127.0.0.1:1"), Replicas: func() int { return 4 }})
	if err != nil {
		t.Fatal(err)
	}
	p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(9, time.Minute)}})
	allowed := 0
	for range 20 {
		d := l.Take(t.Context(), p, "k", 1)
		if d.Source != limiter.Local {
			t.Fatalf("decided by %v", d.Source)
		}
		if d.Allowed {
			allowed++
		} else if d.RetryAfter < 59*time.Second || d.RetryAfter > 63*time.Second {
			t.Errorf("retry after %v", d.RetryAfter)
		}
	}
	if allowed != 2 { // a quarter; whose the rest is, nobody can know
		t.Errorf("one of four replicas admitted %d of 9", allowed)
	}
	for mode, want := range map[limiter.Mode]bool{limiter.FailOpen: true, limiter.FailClosed: false} {
		p := policy(t, limiter.Settings{Name: "m", Limits: []limiter.Limit{sliding(1, time.Minute)}, OnStoreError: mode})
		for range 3 {
			if d := l.Take(t.Context(), p, "k", 1); d.Allowed != want || d.Len() != 0 {
				t.Errorf("mode %d: %+v", mode, d)
			}
		}
	}
}

// A store that is away costs its timeout at the very beginning and nothing
// after that, also where it swallows connections instead of refusing them.
func TestAnOutageIsCheap(t *testing.T) {
	t.Parallel()
	deaf, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	l, err := limiter.New(limiter.Options{Redis: &limiter.Redis{Addr: deaf.Addr().String(), Timeout: 20 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	defer func() { cancel(); <-done }()
	parts.Eventually(t, 5*time.Second, "nobody noticed", func() bool { return l.State().LastError != "" })
	p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(1000000, time.Minute)}})
	took := make([]time.Duration, 1000)
	for i := range took {
		began := time.Now()
		if d := l.Take(t.Context(), p, "k", 1); !d.Allowed || d.Source != limiter.Local {
			t.Fatalf("%+v", d)
		}
		took[i] = time.Since(began)
	}
	// A few may have taken as long as the machine has stood still.
	slices.Sort(took)
	var sum time.Duration
	for _, d := range took[:len(took)-5] {
		sum += d
	}
	if sum > 500*time.Millisecond {
		t.Errorf("1000 decisions but for the five slowest took %v, those %v", sum, took[len(took)-5:])
	}
}

// Operators are told once per change, with the reason.
func TestChangesAreTold(t *testing.T) {
	t.Parallel()
	r := parts.StartRedis(t)
	var mu sync.Mutex
	var told []limiter.State
	l := start(t, limiter.Options{Redis: redisAt(r.Addr), OnChange: func(s limiter.State) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, s)
	}})
	r.Kill()
	parts.Eventually(t, 5*time.Second, "nobody noticed", func() bool { return !l.State().Up })
	<-time.After(300 * time.Millisecond)
	s := l.State()
	if !s.Configured || s.LastError == "" || s.LastContact.IsZero() || s.Since.Before(s.LastContact) || s.Latency <= 0 {
		t.Errorf("state %+v", s)
	}
	r.Start()
	parts.Eventually(t, 5*time.Second, "it did not come back", func() bool { return l.State().Up })
	mu.Lock()
	defer mu.Unlock()
	if len(told) != 3 || !told[0].Up || told[1].Up || !told[2].Up || !strings.Contains(told[1].LastError, "heartbeat") {
		t.Errorf("told %+v", told)
	}
}
