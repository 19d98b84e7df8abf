package balancer_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/discovery"
)

func guarded() balancer.Options {
	o := balancer.DefaultOptions()
	o.Policy = balancer.RoundRobin
	return o
}

func TestMassDrop(t *testing.T) {
	maintenance := status(discovery.StatusMaintenance)
	cases := []struct {
		name    string
		change  func(*balancer.Options)
		before  int // instances a, b, c, ...
		after   []discovery.Instance
		held    int
		serving int
	}{
		{name: "all of three", before: 3, after: []discovery.Instance{instance("a", critical), instance("b", critical), instance("c", critical)}, held: 3, serving: 3},
		{name: "two of three", before: 3, after: []discovery.Instance{instance("a", critical), instance("b", critical), instance("c")}, held: 2, serving: 3},
		{name: "half of four", before: 4, after: []discovery.Instance{instance("a", critical), instance("b", critical), instance("c"), instance("d")}, serving: 2},
		{name: "one of three", before: 3, after: []discovery.Instance{instance("a", critical), instance("b"), instance("c")}, serving: 2},
		{name: "a pool of two", before: 2, after: []discovery.Instance{instance("a", critical), instance("b", critical)}},
		{name: "deregistered", before: 3, after: []discovery.Instance{instance("c")}, serving: 1},
		{name: "all deregistered", before: 3},
		{name: "maintenance", before: 3, after: []discovery.Instance{instance("a", maintenance), instance("b", maintenance), instance("c", maintenance)}},
		{name: "drained by weight", before: 3, after: []discovery.Instance{instance("a", weight(0)), instance("b", weight(0)), instance("c")}, serving: 1},
		{name: "one in maintenance beside the critical", before: 3,
			after: []discovery.Instance{instance("a", critical), instance("b", critical), instance("c", maintenance)}, held: 2, serving: 2},
		{name: "another address is another process", before: 3,
			after: []discovery.Instance{instance("a", critical, address("x:1")), instance("b", critical, address("x:2")), instance("c")}, serving: 1},
		{name: "switched off", change: func(o *balancer.Options) { o.MassDrop.Disabled = true }, before: 3,
			after: []discovery.Instance{instance("a", critical), instance("b", critical), instance("c")}, serving: 1},
		{name: "no hold", change: func(o *balancer.Options) { o.MassDrop.Hold = 0 }, before: 3,
			after: []discovery.Instance{instance("a", critical), instance("b", critical), instance("c")}, serving: 1},
		{name: "a larger share", change: func(o *balancer.Options) { o.MassDrop.Share = 70 }, before: 3,
			after: []discovery.Instance{instance("a", critical), instance("b", critical), instance("c")}, serving: 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			o := guarded()
			if c.change != nil {
				c.change(&o)
			}
			p := newPool(t, o, instances(c.before)...)
			p.Set(snapshot(c.after...))
			s := p.Stats()
			if s.Held != c.held || s.Serving != c.serving || s.Guarded != (c.held > 0) || s.Panic {
				t.Errorf("held %d, serving %d, guarded %v, panic %v; want held %d, serving %d", s.Held, s.Serving, s.Guarded, s.Panic, c.held, c.serving)
			}
			if c.serving > 0 {
				if got := share(t, p, 12*c.serving); len(got) != c.serving {
					t.Errorf("picked %v, want %d members", got, c.serving)
				}
			}
		})
	}
}

func TestHoldEnds(t *testing.T) {
	allCritical := []discovery.Instance{instance("a", critical), instance("b", critical), instance("c", critical)}
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		o := guarded()
		o.OnEvent = r.hook
		p := newPool(t, o, instances(3)...)
		run(t, p)
		p.Set(snapshot(allCritical...))
		r.want(t, "status_changed a", "status_changed b", "status_changed c", "guard_on")
		if s := p.Stats(); !s.GuardedUntil.After(time.Now().Add(29*time.Second)) || member(t, p, "a").State != balancer.StateHeld {
			t.Errorf("stats %+v", s)
		}

		// One comes back, one is taken out on purpose, one is believed dead in the end.
		p.Set(snapshot(instance("a"), instance("b", status(discovery.StatusMaintenance)), instance("c", critical)))
		if got := share(t, p, 10); got["a"] != 5 || got["c"] != 5 {
			t.Errorf("picked %v, want a and c", got)
		}
		time.Sleep(29 * time.Second)
		if s := p.Stats(); s.Held != 1 {
			t.Errorf("after 29 s %d are held, want 1", s.Held)
		}
		time.Sleep(2 * time.Second)
		if got := share(t, p, 10); got["a"] != 10 {
			t.Errorf("after the hold picked %v", got)
		}
		r.want(t, "status_changed a", "status_changed b", "guard_off")
	})
}

func TestOurTrafficConfirmsADrop(t *testing.T) {
	allCritical := []discovery.Instance{instance("a", critical), instance("b", critical), instance("c", critical)}

	t.Run("afterwards", func(t *testing.T) {
		var r recorder
		o := guarded()
		o.OnEvent = r.hook
		p := newPool(t, o, instances(3)...)
		p.Set(snapshot(allCritical...))
		r.take()
		fail(t, p, "b", balancer.Refused, 1)
		if m := member(t, p, "b"); m.State != balancer.StateCritical || m.Serving {
			t.Errorf("one refused connection left it %v", m.State)
		}
		if s := p.Stats(); s.Held != 2 || s.Serving != 2 {
			t.Errorf("stats %+v", s)
		}
		fail(t, p, "a", balancer.Timeout, 1)
		fail(t, p, "c", balancer.Reset, 1)
		r.want(t, "disproved b", "disproved a", "disproved c", "guard_off")
		p.Set(snapshot(allCritical...)) // the same update again holds nothing
		if s := p.Stats(); s.Held != 0 || s.Serving != 0 {
			t.Errorf("stats %+v", s)
		}
	})

	t.Run("before", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := newPool(t, guarded(), instances(3)...)
			fail(t, p, "a", balancer.Refused, 1)
			fail(t, p, "b", balancer.Timeout, 1)
			time.Sleep(5 * time.Second)
			p.Set(snapshot(allCritical...))
			// c alone is less than half.
			if s := p.Stats(); s.Held != 0 || s.Serving != 0 {
				t.Errorf("stats %+v", s)
			}
		})
	})

	t.Run("long ago", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := newPool(t, guarded(), instances(3)...)
			fail(t, p, "a", balancer.Refused, 1)
			time.Sleep(time.Minute)
			p.Set(snapshot(allCritical...))
			if s := p.Stats(); s.Held != 3 {
				t.Errorf("held %d, want 3: the failure is old", s.Held)
			}
		})
	})
}

func TestHeldKeepTheirWeight(t *testing.T) {
	p := newPool(t, balancer.DefaultOptions(), instance("a", weight(4)), instance("b"), instance("c"))
	p.Set(snapshot(instance("a", critical, weight(0)), instance("b", critical, weight(0)), instance("c", critical, weight(0))))
	if got := share(t, p, 12); got["a"] != 8 {
		t.Errorf("picked %v, want the weights of before", got)
	}
}
