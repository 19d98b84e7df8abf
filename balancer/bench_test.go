package balancer_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/discovery"
)

func poolOf(tb testing.TB, policy string, n int, weights bool) *balancer.Pool {
	o := balancer.DefaultOptions()
	o.Policy = policy
	ins := make([]discovery.Instance, n)
	for i := range ins {
		ins[i] = instance(fmt.Sprintf("i%04d", i))
		if weights {
			ins[i].Weight = 1 + i%7
		}
	}
	return newPool(tb, o, ins...)
}

func TestPickAllocatesNothing(t *testing.T) {
	for _, policy := range balancer.Policies() {
		for _, n := range []int{1, 3, 100, 3000} {
			p := poolOf(t, policy, n, true)
			// Each member makes its histogram at its first outcome.
			for range 30 * n {
				pick(t, p, balancer.Success)
			}
			var first *balancer.Member
			got := testing.AllocsPerRun(1000, func() {
				a, _ := p.Pick()
				first = a.Member()
				b, _ := p.Pick(first)
				a.Done(balancer.Outcome{Result: balancer.Success, Latency: time.Millisecond})
				b.Done(balancer.Outcome{Result: balancer.ServerError, Latency: time.Millisecond})
				c, _ := p.Pick()
				c.Done(balancer.Outcome{Latency: time.Millisecond})
			})
			if got != 0 {
				t.Errorf("%s of %d: %v allocations per pick and done, want 0", policy, n, got)
			}
		}
	}
	empty := newPool(t, balancer.Options{}, instance("a", critical))
	if got := testing.AllocsPerRun(100, func() { _, _ = empty.Pick() }); got != 0 {
		t.Errorf("%v allocations for a pool with nobody healthy, want 0", got)
	}
}

func BenchmarkPick(b *testing.B) {
	for _, policy := range balancer.Policies() {
		for _, n := range []int{3, 100, 3000} {
			b.Run(fmt.Sprintf("%s/%d", policy, n), func(b *testing.B) {
				p := poolOf(b, policy, n, policy != balancer.RoundRobin)
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						k, _ := p.Pick()
						k.Done(balancer.Outcome{Latency: time.Millisecond})
					}
				})
			})
		}
	}
}

func BenchmarkPickAlone(b *testing.B) {
	for _, policy := range balancer.Policies() {
		p := poolOf(b, policy, 100, true)
		b.Run(policy, func(b *testing.B) {
			for b.Loop() {
				k, _ := p.Pick()
				k.Done(balancer.Outcome{Result: balancer.Canceled})
			}
		})
	}
}

func BenchmarkSet(b *testing.B) {
	for _, n := range []int{3, 100, 3000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := poolOf(b, balancer.Weighted, n, true)
			var ins []discovery.Instance
			for _, m := range p.Members() {
				ins = append(ins, m.Instance)
			}
			b.ReportAllocs()
			for b.Loop() {
				p.Set(snapshot(ins...))
			}
		})
	}
}
