package limiter_test

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/parts"
)

func BenchmarkTake(b *testing.B) {
	b.Run("own", func(b *testing.B) {
		hot(b, start(b, limiter.Options{}), limiter.Exact, 1)
	})
	b.Run("exact", func(b *testing.B) {
		hot(b, start(b, limiter.Options{Redis: redisAt(parts.StartRedis(b).Addr)}), limiter.Exact, 1)
	})
	b.Run("exact, 64 callers", func(b *testing.B) {
		hot(b, start(b, limiter.Options{Redis: redisAt(parts.StartRedis(b).Addr)}), limiter.Exact, 64)
	})
	b.Run("leased", func(b *testing.B) {
		hot(b, start(b, limiter.Options{Redis: redisAt(parts.StartRedis(b).Addr)}), limiter.Leased, 1)
	})
	b.Run("leased, 64 callers", func(b *testing.B) {
		hot(b, start(b, limiter.Options{Redis: redisAt(parts.StartRedis(b).Addr)}), limiter.Leased, 64)
	})
	b.Run("leased, 100000 keys", func(b *testing.B) {
		l := start(b, limiter.Options{Redis: redisAt(parts.StartRedis(b).Addr)})
		p := policy(b, limiter.Settings{Name: "b", Limits: []limiter.Limit{sliding(100, time.Minute)}, Precision: limiter.Leased})
		keys := make([]string, 100_000)
		for i := range keys {
			keys[i] = fmt.Sprintf("ip:192.0.%d.%d", i>>8, i&255)
		}
		var n atomic.Uint32
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				l.Take(context.Background(), p, keys[n.Add(2654435761)%100_000], 1)
			}
		})
		report(b, l)
	})
	b.Run("denied", func(b *testing.B) {
		l := start(b, limiter.Options{Redis: redisAt(parts.StartRedis(b).Addr)})
		p := policy(b, limiter.Settings{Name: "b", Limits: []limiter.Limit{sliding(1, time.Hour)}})
		b.ReportAllocs()
		for b.Loop() {
			l.Take(context.Background(), p, "ip:192.0.2.1", 1)
		}
		report(b, l)
	})
}

func hot(b *testing.B, l *limiter.Limiter, precision limiter.Precision, callers int) {
	p := policy(b, limiter.Settings{Name: "b", Limits: []limiter.Limit{sliding(1e9, time.Minute)}, Precision: precision})
	b.ReportAllocs()
	if callers == 1 {
		for b.Loop() {
			if !l.Take(context.Background(), p, "ip:192.0.2.1", 1).Allowed {
				b.Fatal("denied")
			}
		}
	} else {
		b.SetParallelism(callers / 2)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				l.Take(context.Background(), p, "ip:192.0.2.1", 1)
			}
		})
	}
	report(b, l)
}

// redisCPU returns the processor time that Redis has used.
func redisCPU(b testing.TB, addr string) time.Duration {
	c := redis.NewClient(&redis.Options{Addr: addr, DisableIdentity: true})
	defer func() { _ = c.Close() }()
	info, err := c.InfoMap(b.Context(), "cpu").Result()
	if err != nil {
		b.Fatal(err)
	}
	var sum float64
	for _, key := range []string{"used_cpu_sys", "used_cpu_user"} {
		s, err := strconv.ParseFloat(info["CPU"][key], 64)
		if err != nil {
			b.Fatal(err)
		}
		sum += s
	}
	return time.Duration(sum * float64(time.Second))
}

// BenchmarkStrategies compares leases with a script call for each request, which
// shares no call with another: on one hot key and on 100,000 keys, for 64
// callers. A decision's processor time is the gateway's and Redis's together.
func BenchmarkStrategies(b *testing.B) {
	for _, keys := range []int{1, 100_000} {
		for _, strategy := range []string{"a call each", "leased"} {
			b.Run(fmt.Sprintf("%s, keys=%d", strategy, keys), func(b *testing.B) {
				r := parts.StartRedis(b)
				l := start(b, limiter.Options{Redis: redisAt(r.Addr)})
				precision := limiter.Leased
				if strategy == "a call each" {
					precision = limiter.Exact
				}
				p := policy(b, limiter.Settings{Name: "b", Limits: []limiter.Limit{sliding(1e9, time.Minute)}, Precision: precision})
				names := make([]string, keys)
				for i := range names {
					names[i] = fmt.Sprintf("ip:192.0.%d.%d", i>>8, i&255)
				}
				client := redis.NewClient(&redis.Options{Addr: r.Addr, DisableIdentity: true, PoolSize: 64})
				defer func() { _ = client.Close() }()
				var n, calls atomic.Int64
				gateway, store := parts.CPU(b), redisCPU(b, r.Addr)
				b.SetParallelism(32)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						key := names[uint64(n.Add(1))*2654435761%uint64(keys)]
						if precision == limiter.Leased {
							l.Take(context.Background(), p, key, 1)
							continue
						}
						calls.Add(1)
						if err := l.AskAlone(context.Background(), client, p, key); err != nil {
							b.Error(err)
						}
					}
				})
				if precision == limiter.Leased {
					calls.Store(l.State().Calls)
				}
				used := (parts.CPU(b) - gateway + redisCPU(b, r.Addr) - store).Seconds()
				b.ReportMetric(float64(calls.Load())/float64(b.N), "calls/op")
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
				b.ReportMetric(float64(b.N)/used, "decisions/cpu-s")
			})
		}
	}
}

// What a lease saves is not a matter of luck: a decision from it allocates
// nothing, and a hot key costs next to no calls.
func TestLeasesAreCheap(t *testing.T) {
	l := start(t, limiter.Options{Redis: redisAt(parts.StartRedis(t).Addr)})
	p := policy(t, limiter.Settings{Name: "b", Limits: []limiter.Limit{sliding(1e9, time.Minute)}, Precision: limiter.Leased})
	ctx := context.Background()
	for range 10_000 { // leases grow with the demand
		l.Take(ctx, p, "k", 1)
	}
	before := l.State().Calls
	began := time.Now()
	n := int64(0)
	for ; n < 200_000 || time.Since(began) < 200*time.Millisecond; n++ {
		if d := l.Take(ctx, p, "k", 1); !d.Allowed || d.Source != limiter.Store {
			t.Fatalf("%+v", d)
		}
	}
	calls := l.State().Calls - before
	t.Logf("%d decisions in %d calls (%.5f each), %v each", n, calls, float64(calls)/float64(n), time.Since(began)/time.Duration(n))
	if float64(calls) > 0.02*float64(n) {
		t.Errorf("%d decisions cost %d calls", n, calls)
	}
	// Refills run beside: the least of several rounds is that of leases alone.
	least := 1.0
	for range 20 {
		least = min(least, testing.AllocsPerRun(100, func() { l.Take(ctx, p, "k", 1) }))
	}
	if least != 0 {
		t.Errorf("a decision from a lease makes %v allocations", least)
	}
}

func report(b *testing.B, l *limiter.Limiter) {
	b.ReportMetric(float64(l.State().Calls)/float64(b.N), "calls/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
}
