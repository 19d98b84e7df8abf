package limiter_test

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/parts"
)

// charged returns how many tokens Redis counts in all keys.
func charged(t testing.TB, addr string) (sum int) {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr})
	defer c.Close()
	keys, err := c.Keys(context.Background(), "rl:{*:*}").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		fields, err := c.HGetAll(context.Background(), k).Result()
		if err != nil {
			t.Fatal(err)
		}
		for f, v := range fields {
			if n, err := strconv.Atoi(v); err == nil && f != "b" {
				sum += n
			}
		}
	}
	return sum
}

// What replicas took ahead and did not use goes back, each token once.
func TestUnusedTokensGoBack(t *testing.T) {
	t.Parallel()
	r := parts.StartRedis(t)
	var ls []*limiter.Limiter
	for range 3 {
		ls = append(ls, start(t, limiter.Options{Redis: redisAt(r.Addr)}))
	}
	p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(100_000, 12*time.Second)}, Precision: limiter.Leased})
	admitted := 0
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
		h := hit(ctx, p, ls, []int{4, 2, 1}, time.Millisecond)
		cancel()
		admitted += len(h.admitted)
		if got := charged(t, r.Addr); got < admitted {
			t.Fatalf("%d charged, %d admitted", got, admitted)
		}
		for range 2 { // and nothing goes back twice
			parts.Eventually(t, 3*time.Second, "the rest of the leases did not go back", func() bool {
				return charged(t, r.Addr) == admitted
			})
			<-time.After(350 * time.Millisecond)
		}
	}
	if calls := ls[0].State().Calls + ls[1].State().Calls + ls[2].State().Calls; calls > int64(admitted)/2 {
		t.Errorf("%d calls for %d decisions: there were hardly any leases", calls, admitted)
	}
}

// Whoever leaves before the store answers takes no token along.
func TestCallersThatLeaveLoseNothing(t *testing.T) {
	t.Parallel()
	r := parts.StartRedis(t)
	l := start(t, limiter.Options{Redis: redisAt(r.Addr)})
	p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(100, time.Minute)}, OnStoreError: limiter.FailClosed})
	if !l.Take(t.Context(), p, "k", 1).Allowed {
		t.Fatal("denied")
	}
	r.Freeze()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if d := l.Take(ctx, p, "k", 1); d.Allowed || d.Source != limiter.Closed {
				t.Errorf("%+v", d)
			}
		})
	}
	<-time.After(50 * time.Millisecond)
	cancel()
	wg.Wait()
	r.Thaw()
	parts.Eventually(t, 5*time.Second, "tokens of callers that had left stayed charged", func() bool { return charged(t, r.Addr) == 1 })
}

// A lease ends when its life is over, also where the store is away; what the
// replica then admits is its share, less what it spent of the lease.
func TestLeasesEndInAnOutage(t *testing.T) {
	t.Parallel()
	r := parts.StartRedis(t)
	l := start(t, limiter.Options{Redis: redisAt(r.Addr), Replicas: func() int { return 2 }})
	const limit = 10_000
	p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(limit, 8*time.Second)}, Precision: limiter.Leased})
	take := func() limiter.Decision { return l.Take(t.Context(), p, "k", 1) }
	before := 0
	for began := time.Now(); time.Since(began) < 50*time.Millisecond && before < limit/4; before++ {
		if d := take(); !d.Allowed || d.Source != limiter.Store {
			t.Fatalf("%+v", d)
		}
	}
	r.Kill()
	<-time.After(250 * time.Millisecond) // a lease of this policy lives 200 ms
	parts.Eventually(t, 5*time.Second, "nobody noticed", func() bool { return !l.State().Up })
	after := 0
	for d := take(); d.Allowed; d = take() {
		if d.Source != limiter.Local {
			t.Fatalf("decided by %v with the store away", d.Source)
		}
		after++
	}
	if before+after != limit/2 {
		t.Errorf("%d admitted before and %d in the outage, want %d in all", before, after, limit/2)
	}
}

// A denial is remembered: those who keep knocking cost no calls.
func TestDenialsAreRemembered(t *testing.T) {
	t.Parallel()
	l := start(t, limiter.Options{Redis: redisAt(parts.StartRedis(t).Addr)})
	p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(2, time.Hour)}})
	began := time.Now()
	for i := range 2000 {
		if d := l.Take(t.Context(), p, "k", 1); d.Allowed != (i < 2) || !d.Allowed && d.RetryAfter < 59*time.Minute {
			t.Fatalf("take %d: %+v", i, d)
		}
	}
	if calls := l.State().Calls; calls > 3+int64(time.Since(began)/time.Second) {
		t.Errorf("2000 decisions took %d calls", calls)
	}
	// A larger cost is not what was denied, and a smaller one may pass.
	q := policy(t, limiter.Settings{Name: "q", Limits: []limiter.Limit{sliding(10, time.Hour)}})
	for _, c := range []struct {
		cost    int
		allowed bool
	}{{7, true}, {5, false}, {5, false}, {3, true}, {1, false}, {1, false}} {
		if d := l.Take(t.Context(), q, "k", c.cost); d.Allowed != c.allowed {
			t.Errorf("cost %d: %+v", c.cost, d)
		}
	}
}

// However many identities come along, only so many are remembered.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	l, err := limiter.New(limiter.Options{MaxKeys: 2560})
	if err != nil {
		t.Fatal(err)
	}
	p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(2, time.Hour)}})
	l.Take(t.Context(), p, "first", 2)
	for i := range 20_000 {
		l.Take(t.Context(), p, "k"+strconv.Itoa(i), 1)
		if d := l.Take(t.Context(), p, "regular", 1); d.Allowed != (i < 2) {
			t.Fatalf("an identity that is always there was forgotten after %d others", i)
		}
	}
	if got := l.State().Keys; got > 2560 {
		t.Errorf("%d keys remembered", got)
	}
}

// Decisions that need no call allocate nothing.
func TestDecisionsDoNotAllocate(t *testing.T) {
	l := start(t, limiter.Options{Redis: redisAt(parts.StartRedis(t).Addr)})
	leased := policy(t, limiter.Settings{Name: "a", Limits: []limiter.Limit{sliding(1e9, time.Minute), sliding(1e9, time.Hour)}, Precision: limiter.Leased})
	denied := policy(t, limiter.Settings{Name: "b", Limits: []limiter.Limit{sliding(1, time.Hour)}})
	own, err := limiter.New(limiter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	key := "header:X-Tenant:a value that is longer than thirty-two bytes, as tokens are"
	for name, take := range map[string]func(){
		"leased": func() { l.Take(context.Background(), leased, key, 1) },
		"denied": func() { l.Take(context.Background(), denied, key, 1) },
		"own":    func() { own.Take(context.Background(), leased, key, 1) },
	} {
		for range 20_000 {
			take()
		}
		if n := testing.AllocsPerRun(5000, take); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
