package balancer_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/discovery"
)

func slow(policy string) balancer.Options {
	o := balancer.DefaultOptions()
	o.Policy, o.SlowStart = policy, 20*time.Second
	return o
}

func TestSlowStartRamps(t *testing.T) {
	for _, policy := range balancer.Policies() {
		t.Run(policy, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(t, slow(policy), instance("a", weight(3)), instance("b", weight(3)))
				run(t, p)
				p.Set(snapshot(instance("a", weight(3)), instance("b", weight(3)), instance("c", weight(3))))
				last := 0
				for second := range 22 {
					synctest.Wait()
					got := share(t, p, 1200)["c"]
					if got < last-1 { // a cycle that is cut off may miss one
						t.Errorf("after %d s its share fell from %d to %d", second, last, got)
					}
					ramp := min(1, max(0.1, float64(second)/20))
					want := 1200 * ramp / (2 + ramp)
					if float64(got) < want-45 || float64(got) > want+5 {
						t.Errorf("after %d s %d of 1200 picks, want about %.0f", second, got, want)
					}
					last = got
					time.Sleep(time.Second)
				}
				if s := p.Stats(); s.Ramping != 0 || last != 400 {
					t.Errorf("in the end %d of 1200 picks, %d ramping", last, s.Ramping)
				}
			})
		})
	}
}

func TestWhoRamps(t *testing.T) {
	ab := instances(2)
	abc := instances(3)
	cases := []struct {
		name string
		play func(*testing.T, *balancer.Pool)
		want float64 // ramp of c at the end
	}{
		{"joins a warm pool", func(_ *testing.T, p *balancer.Pool) {
			p.Set(snapshot(ab...))
			p.Set(snapshot(abc...))
		}, 0.1},
		{"the first snapshot", func(_ *testing.T, p *balancer.Pool) { p.Set(snapshot(abc...)) }, 1},
		{"the whole pool is new", func(_ *testing.T, p *balancer.Pool) {
			p.Set(snapshot())
			p.Set(snapshot(instance("a")))
			time.Sleep(time.Second)
			p.Set(snapshot(abc...))
		}, 1},
		{"the others were replaced at once", func(_ *testing.T, p *balancer.Pool) {
			p.Set(snapshot(ab...))
			time.Sleep(time.Hour)
			p.Set(snapshot(instance("c"), instance("d")))
		}, 1},
		{"others are critical", func(_ *testing.T, p *balancer.Pool) {
			p.Set(snapshot(instance("a", critical), instance("b")))
			p.Set(snapshot(instance("a", critical), instance("c")))
		}, 1},
		{"registered critical, then passing", func(_ *testing.T, p *balancer.Pool) {
			p.Set(snapshot(ab...))
			p.Set(snapshot(instance("a"), instance("b"), instance("c", critical)))
			time.Sleep(time.Hour)
			p.Set(snapshot(abc...))
		}, 0.1},
		{"back from critical", func(_ *testing.T, p *balancer.Pool) {
			p.Set(snapshot(abc...))
			p.Set(snapshot(instance("a"), instance("b"), instance("c", critical)))
			time.Sleep(time.Hour)
			p.Set(snapshot(abc...))
		}, 0.1},
		{"all back from critical together", func(_ *testing.T, p *balancer.Pool) {
			p.Set(snapshot(ab...))
			time.Sleep(time.Hour)
			p.Set(snapshot(instance("a", critical)))
			p.Set(snapshot(abc...))
		}, 1},
		{"from warning to passing", func(_ *testing.T, p *balancer.Pool) {
			p.Set(snapshot(instance("a"), instance("b"), instance("c", status(discovery.StatusWarning))))
			p.Set(snapshot(abc...))
		}, 1},
		{"another process of the same id", func(_ *testing.T, p *balancer.Pool) {
			p.Set(snapshot(abc...))
			p.Set(snapshot(instance("a"), instance("b"), instance("c", address("c:81"))))
		}, 0.1},
		{"restored from its ejection", func(_ *testing.T, p *balancer.Pool) {
			p.Set(snapshot(abc...))
			p.Eject("c", 0, "")
			p.Restore("c", "")
		}, 0.1},
		{"half way, snapshots and reloads between", func(t *testing.T, p *balancer.Pool) {
			p.Set(snapshot(ab...))
			p.Set(snapshot(abc...))
			time.Sleep(10 * time.Second)
			p.Set(snapshot(append(abc, instance("d"))...))
			if err := p.Configure(slow(balancer.LeastRequests)); err != nil {
				t.Fatal(err)
			}
		}, 0.5},
		{"a longer ramp does not go back", func(t *testing.T, p *balancer.Pool) {
			p.Set(snapshot(ab...))
			p.Set(snapshot(abc...))
			time.Sleep(10 * time.Second)
			o := slow(balancer.Weighted)
			o.SlowStart = time.Hour
			p.Set(snapshot(abc...))
			if err := p.Configure(o); err != nil {
				t.Fatal(err)
			}
		}, 0.5},
		{"switched off", func(t *testing.T, p *balancer.Pool) {
			p.Set(snapshot(ab...))
			p.Set(snapshot(abc...))
			if err := p.Configure(balancer.Options{}); err != nil {
				t.Fatal(err)
			}
		}, 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, err := balancer.New("orders", slow(balancer.Weighted))
				if err != nil {
					t.Fatal(err)
				}
				c.play(t, p)
				if got := member(t, p, "c").Ramp; got != c.want {
					t.Errorf("ramp %v, want %v", got, c.want)
				}
			})
		})
	}
}
