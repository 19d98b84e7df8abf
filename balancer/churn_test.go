package balancer_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/discovery"
)

// Whatever snapshots, ejections and drains come while requests run: what a
// snapshot excludes is not picked once Set has returned, and in the end nothing
// is in flight.
func TestChurn(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		policy := rapid.SampledFrom(balancer.Policies()).Draw(rt, "policy")
		n := rapid.IntRange(1, 24).Draw(rt, "instances")
		seed := rapid.Uint64().Draw(rt, "seed")
		o := balancer.DefaultOptions()
		o.Policy = policy
		o.MassDrop.Disabled = true // it keeps critical ones on purpose
		// All that time does happens while snapshots come.
		o.SlowStart, o.Outlier.EjectFor, o.Outlier.MaxEjectFor = 5*time.Millisecond, time.Millisecond, 2*time.Millisecond
		o.Probe = func(context.Context, discovery.Instance) error {
			if rand.IntN(2) == 0 {
				return errors.New("down")
			}
			return nil
		}
		o.OnEvent = func(balancer.Event) {}
		p, err := balancer.New("orders", o)
		if err != nil {
			rt.Fatal(err)
		}

		// stamp[i] is the generation in which i was excluded, 0 while it serves;
		// a pick that began in a later generation must not be i.
		stamps := make([]atomic.Uint64, n)
		var generation atomic.Uint64
		generation.Store(1)
		index := map[string]int{}
		for i := range n {
			index[fmt.Sprint("i", i)] = i
		}
		draw := rand.New(rand.NewPCG(seed, 1))
		state := func(i int) (discovery.Instance, bool) {
			in := instance(fmt.Sprint("i", i))
			switch draw.IntN(8) {
			case 0:
				return in, false
			case 1:
				critical(&in)
			case 2:
				in.Status = discovery.StatusMaintenance
			case 3:
				in.Weight = 0
			case 4:
				in.Status, in.Weight = discovery.StatusWarning, 1+draw.IntN(3)
			default:
				in.Weight = 1 + draw.IntN(10)
			}
			return in, true
		}

		stop := make(chan struct{})
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(context.Background())
		wg.Go(func() { _ = p.Run(ctx) })
		var wrong atomic.Pointer[string]
		for w := range 3 {
			wg.Go(func() {
				mine := rand.New(rand.NewPCG(seed, uint64(w+2)))
				var tried []*balancer.Member
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					began := generation.Load()
					k, err := p.Pick(tried...)
					if err != nil {
						continue
					}
					if out := stamps[index[k.Member().ID()]].Load(); out != 0 && out < began {
						s := fmt.Sprintf("%s was excluded in generation %d and picked in %d", k.Member().ID(), out, began)
						wrong.Store(&s)
					}
					if tried = append(tried, k.Member()); len(tried) > 2 {
						tried = nil
					}
					k.Done(balancer.Outcome{Result: balancer.Result(mine.IntN(6)), Latency: 1})
				}
			})
		}
		for range 30 {
			var ins []discovery.Instance
			excluded := make([]bool, n)
			for i := range n {
				in, there := state(i)
				if there {
					ins = append(ins, in)
				}
				excluded[i] = !there || !in.Usable()
				if !excluded[i] {
					stamps[i].Store(0)
				}
			}
			p.Set(snapshot(ins...))
			for i := range n {
				if excluded[i] && stamps[i].Load() == 0 {
					stamps[i].Store(generation.Load())
				}
			}
			generation.Add(1)
			id := fmt.Sprint("i", draw.IntN(n))
			switch draw.IntN(4) {
			case 0:
				p.Eject(id, 0, "test")
			case 1:
				p.Restore(id, "test")
			case 2:
				_ = p.Configure(o)
			default:
				p.Members()
			}
		}
		close(stop)
		cancel()
		wg.Wait()
		if s := wrong.Load(); s != nil {
			rt.Fatal(*s)
		}
		if got := p.Stats(); got.InFlight != 0 || got.Leaving != 0 {
			rt.Fatalf("in flight %d, leaving %d when all is done", got.InFlight, got.Leaving)
		}
	})
}

// An ejected member is not picked while enough others serve.
func TestEjectedIsNotPicked(t *testing.T) {
	p := newPool(t, balancer.DefaultOptions(), instances(4)...)
	p.Eject("b", 0, "test")
	if got := share(t, p, 30); got["b"] != 0 || got["a"] != 10 {
		t.Errorf("picked %v, want ten of each but b", got)
	}
}
