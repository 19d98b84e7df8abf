package limiter_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

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

func report(b *testing.B, l *limiter.Limiter) {
	b.ReportMetric(float64(l.State().Calls)/float64(b.N), "calls/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
}
