package balancer_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/balancer"
)

// take picks n times and hands the picks of one member back without an end;
// the others' end well.
func take(t *testing.T, p *balancer.Pool, id string, n int) (open []*balancer.Pick) {
	t.Helper()
	for len(open) < n {
		k, err := p.Pick()
		if err != nil {
			t.Fatal(err)
		}
		if k.Member().ID() == id {
			open = append(open, &k)
			continue
		}
		k.Done(balancer.Outcome{Latency: time.Millisecond})
	}
	return open
}

func TestStalledMembersAreProbed(t *testing.T) {
	outlier := balancer.Outlier{ConsecutiveErrors: 3, EjectFor: time.Hour, MaxEjected: 50, Panic: 50}
	for _, c := range []struct {
		name    string
		down    bool // the probe fails
		outlier func(*balancer.Outlier)
		during  func(t *testing.T, p *balancer.Pool, open []*balancer.Pick)
		out     bool
		asked   int32 // at most; -1: at least once
	}{
		{"a black hole", true, nil, nil, true, -1},
		{"clients that give up are no sign of life", true, nil, func(_ *testing.T, _ *balancer.Pool, open []*balancer.Pick) {
			for _, k := range open[:4] {
				k.Done(balancer.Outcome{Result: balancer.Canceled})
			}
		}, true, -1},
		{"slow, but alive", false, nil, nil, false, -1},
		{"one end is enough", true, nil, func(t *testing.T, p *balancer.Pool, open []*balancer.Pick) {
			for _, k := range open {
				time.Sleep(900 * time.Millisecond)
				k.Done(balancer.Outcome{Latency: time.Second})
			}
		}, false, 0},
		{"switched off", true, func(o *balancer.Outlier) { o.Disabled = true }, nil, false, 0},
		{"connection errors do not count", true, func(o *balancer.Outlier) { o.ConsecutiveErrors = 0 }, nil, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var pr prober
				pr.down.Store(c.down)
				o := outlier
				if c.outlier != nil {
					c.outlier(&o)
				}
				p := newPool(t, balancer.Options{Probe: pr.probe, Outlier: o}, instances(3)...)
				run(t, p)
				synctest.Wait()
				open := take(t, p, "a", 8)
				if c.during != nil {
					c.during(t, p, open)
				}
				time.Sleep(4 * time.Second)
				synctest.Wait()
				m := member(t, p, "a")
				if (m.State == balancer.StateEjected) != c.out {
					t.Errorf("state %v (%s)", m.State, m.EjectReason)
				}
				if c.out && !strings.Contains(m.EjectReason, "picks without an end in 1") {
					t.Errorf("reason %q", m.EjectReason)
				}
				if n := pr.asked.Load(); c.asked >= 0 && n > c.asked || c.asked < 0 && n == 0 {
					t.Errorf("asked %d times", n)
				}
			})
		})
	}
}

// Connections that stay open for hours, as WebSockets do, are asked about once
// and not again while nothing new goes there.
func TestLongConnectionsAreNotProbedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pr prober
		p := newPool(t, balancer.Options{Probe: pr.probe, Outlier: balancer.Outlier{ConsecutiveErrors: 3, MaxEjected: 50}}, instances(2)...)
		run(t, p)
		synctest.Wait()
		open := take(t, p, "a", 10)
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := pr.asked.Load(); n != 1 {
			t.Errorf("asked %d times in an hour", n)
		}
		for _, k := range open {
			k.Done(balancer.Outcome{})
		}
	})
}
