package balancer_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/discovery"
)

// prober answers probes as told and counts them.
type prober struct {
	down  atomic.Bool
	asked atomic.Int32
}

func (p *prober) probe(context.Context, discovery.Instance) error {
	p.asked.Add(1)
	if p.down.Load() {
		return errors.New("connection refused")
	}
	return nil
}

func TestEjection(t *testing.T) {
	only := func(change func(*balancer.Outlier)) balancer.Outlier {
		o := balancer.Outlier{MaxEjected: 50}
		change(&o)
		return o
	}
	cases := []struct {
		name    string
		outlier balancer.Outlier
		results []balancer.Result // of a
		want    bool
	}{
		{"errors in a row", only(func(o *balancer.Outlier) { o.ConsecutiveErrors = 3 }),
			[]balancer.Result{balancer.Refused, balancer.Reset, balancer.Timeout}, true},
		{"one too few", only(func(o *balancer.Outlier) { o.ConsecutiveErrors = 3 }),
			[]balancer.Result{balancer.Refused, balancer.Refused}, false},
		{"a success between", only(func(o *balancer.Outlier) { o.ConsecutiveErrors = 2 }),
			[]balancer.Result{balancer.Refused, balancer.Success, balancer.Refused, balancer.Success}, false},
		{"an answer is no connection error", only(func(o *balancer.Outlier) { o.ConsecutiveErrors = 2 }),
			[]balancer.Result{balancer.Refused, balancer.ServerError, balancer.Refused, balancer.ServerError}, false},
		{"a cancel between changes nothing", only(func(o *balancer.Outlier) { o.ConsecutiveErrors = 2 }),
			[]balancer.Result{balancer.Refused, balancer.Canceled, balancer.Refused}, true},
		{"failures in a row, of any kind", only(func(o *balancer.Outlier) { o.ConsecutiveFailures = 3 }),
			[]balancer.Result{balancer.ServerError, balancer.Reset, balancer.ServerError}, true},
		{"cancels are no failures", only(func(o *balancer.Outlier) { o.ConsecutiveFailures, o.FailureRate = 2, 1 }),
			[]balancer.Result{balancer.Canceled, balancer.Canceled, balancer.Canceled}, false},
		{"half of four", only(func(o *balancer.Outlier) { o.FailureRate, o.MinRequests = 50, 4 }),
			[]balancer.Result{balancer.ServerError, balancer.Success, balancer.Success, balancer.ServerError}, true},
		{"half of three is not enough requests", only(func(o *balancer.Outlier) { o.FailureRate, o.MinRequests = 50, 4 }),
			[]balancer.Result{balancer.ServerError, balancer.Success, balancer.ServerError}, false},
		{"a quarter of eight", only(func(o *balancer.Outlier) { o.FailureRate, o.MinRequests = 50, 4 }),
			[]balancer.Result{0, 0, 0, balancer.ServerError, 0, 0, 0, balancer.ServerError}, false},
		{"switched off", only(func(o *balancer.Outlier) { o.ConsecutiveErrors, o.FailureRate, o.Disabled = 1, 1, true }),
			[]balancer.Result{balancer.Refused, balancer.Refused}, false},
		{"nothing counted", only(func(*balancer.Outlier) {}),
			[]balancer.Result{balancer.Refused, balancer.Refused, balancer.Refused, balancer.Refused, balancer.Refused, balancer.Refused}, false},
		{"none may be", balancer.Outlier{ConsecutiveErrors: 1}, []balancer.Result{balancer.Refused, balancer.Refused}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(t, balancer.Options{Outlier: c.outlier}, instances(3)...)
				for _, r := range c.results {
					fail(t, p, "a", r, 1)
				}
				m := member(t, p, "a")
				if got := m.State == balancer.StateEjected; got != c.want {
					t.Fatalf("ejected %v, want %v (%s)", got, c.want, m.EjectReason)
				}
				if got := share(t, p, 30)["a"]; (got == 0) != c.want {
					t.Errorf("picked %d times of 30 while ejected is %v", got, c.want)
				}
			})
		})
	}
}

func TestFailureRateForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, balancer.Options{Outlier: balancer.Outlier{FailureRate: 50, MinRequests: 6, Window: 10 * time.Second, MaxEjected: 50}}, instances(3)...)
		fail(t, p, "a", balancer.ServerError, 5)
		time.Sleep(11 * time.Second)
		fail(t, p, "a", balancer.ServerError, 5)
		if member(t, p, "a").State == balancer.StateEjected {
			t.Error("failures of before the window count")
		}
		fail(t, p, "a", balancer.ServerError, 1)
		if m := member(t, p, "a"); m.EjectReason != "6 of 6 requests in 10s failed" {
			t.Errorf("reason %q", m.EjectReason)
		}
	})
}

func TestAtMostAShareIsEjected(t *testing.T) {
	for _, c := range []struct{ n, max, want int }{{1, 50, 0}, {1, 100, 0}, {2, 50, 1}, {2, 10, 1}, {3, 50, 1}, {6, 50, 3}, {10, 30, 3}, {4, 100, 4}} {
		p := newPool(t, balancer.Options{Outlier: balancer.Outlier{ConsecutiveErrors: 1, MaxEjected: c.max}}, instances(c.n)...)
		for range 200 {
			k, err := p.Pick()
			if err != nil {
				break // all may be ejected, and nothing panics
			}
			k.Done(balancer.Outcome{Result: balancer.Refused})
		}
		if got := p.Stats(); got.Ejected != c.want || got.Usable != c.n-c.want || got.Ejections != uint64(c.want) {
			t.Errorf("%d of %d ejected with a maximum of %d %%, want %d", got.Ejected, c.n, c.max, c.want)
		}
	}
	p := newPool(t, balancer.Options{Outlier: balancer.Outlier{ConsecutiveErrors: 1, MaxEjected: 100}}, instances(2)...)
	fail(t, p, "a", balancer.Refused, 1)
	fail(t, p, "b", balancer.Refused, 1)
	if _, err := p.Pick(); !errors.Is(err, balancer.ErrNoHealthy) {
		t.Errorf("Pick of a pool whose members are all ejected: %v", err)
	}
}

func TestEjectedReturnsByAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		var pr prober
		pr.down.Store(true)
		o := balancer.DefaultOptions()
		o.OnEvent, o.Probe = r.hook, pr.probe
		p := newPool(t, o, instances(3)...)
		run(t, p)
		ejected := time.Now()
		fail(t, p, "a", balancer.Refused, 3)
		r.want(t, "ejected a")
		if until := member(t, p, "a").EjectedUntil.Sub(ejected); until < 9*time.Second || until > 10*time.Second+1 {
			t.Errorf("ejected for %v, want 10 s less a tenth at most", until)
		}

		time.Sleep(8 * time.Second)
		if n := pr.asked.Load(); n != 0 {
			t.Errorf("%d probes before the time is up", n)
		}
		time.Sleep(3 * time.Second)
		r.want(t, "probe_failed a")
		if got := share(t, p, 30)["a"]; got != 0 {
			t.Errorf("a failed its probe and is picked %d times", got)
		}

		pr.down.Store(false)
		time.Sleep(21 * time.Second) // the second time is twice as long
		r.want(t, "restored a")
		if got := share(t, p, 30)["a"]; got != 10 {
			t.Errorf("a is back and picked %d times of 30, want 10", got)
		}
		if n := pr.asked.Load(); n != 2 {
			t.Errorf("%d probes, want 2", n)
		}
		if m := member(t, p, "a"); !m.EjectedUntil.IsZero() || m.EjectReason != "" {
			t.Errorf("a restored member still says %q until %v", m.EjectReason, m.EjectedUntil)
		}
	})
}

func TestEjectedReturnsByTimeWithoutProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pr prober
		o := balancer.DefaultOptions()
		o.Probe, o.Outlier.NoProbe = pr.probe, true
		p := newPool(t, o, instances(3)...)
		run(t, p)
		fail(t, p, "a", balancer.Refused, 3)
		time.Sleep(8 * time.Second)
		if p.Stats().Ejected != 1 {
			t.Error("it returned early")
		}
		time.Sleep(3 * time.Second)
		if p.Stats().Ejected != 0 || pr.asked.Load() != 0 {
			t.Errorf("ejected %d, probes %d, want none of both", p.Stats().Ejected, pr.asked.Load())
		}
	})
}

func TestEjectionGrowsAndDecays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pr prober
		o := balancer.DefaultOptions()
		o.Probe = pr.probe
		o.Outlier.MaxEjectFor = 25 * time.Second
		p := newPool(t, o, instances(3)...)
		run(t, p)
		eject := func(want time.Duration) {
			t.Helper()
			start := time.Now()
			fail(t, p, "a", balancer.Refused, 3)
			got := member(t, p, "a").EjectedUntil.Sub(start)
			if got < want*9/10 || got > want+1 {
				t.Errorf("ejected for %v, want %v less a tenth at most", got, want)
			}
			time.Sleep(got + time.Second)
		}
		eject(10 * time.Second)
		eject(20 * time.Second)
		eject(25 * time.Second) // the maximum
		time.Sleep(60 * time.Second)
		eject(20 * time.Second) // two steps less, one more
		time.Sleep(time.Hour)
		eject(10 * time.Second)
	})
}

func TestEjectionSurvivesSnapshotsAndConfigure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pr prober
		o := balancer.DefaultOptions()
		o.Probe = pr.probe
		p := newPool(t, o, instances(3)...)
		run(t, p)
		fail(t, p, "a", balancer.Refused, 3)
		p.Set(snapshot(instance("a", weight(3)), instance("b"), instance("c"), instance("d")))
		if err := p.Configure(o); err != nil {
			t.Fatal(err)
		}
		if m := member(t, p, "a"); m.State != balancer.StateEjected || m.Serving {
			t.Errorf("after a snapshot: %v, serving %v", m.State, m.Serving)
		}

		// While Consul has it out, it is not probed; its ejection lasts.
		p.Set(snapshot(instance("a", critical), instance("b"), instance("c")))
		time.Sleep(time.Minute)
		if m := member(t, p, "a"); m.State != balancer.StateCritical || pr.asked.Load() != 0 {
			t.Errorf("critical: %v after %d probes", m.State, pr.asked.Load())
		}
		p.Set(snapshot(instances(3)...))
		synctest.Wait()
		if m := member(t, p, "a"); m.State != balancer.StateServing || pr.asked.Load() != 1 {
			t.Errorf("passing again: %v after %d probes, want serving after one", m.State, pr.asked.Load())
		}

		// It goes with the instance.
		fail(t, p, "a", balancer.Refused, 3)
		p.Set(snapshot(instance("b"), instance("c")))
		p.Set(snapshot(instances(3)...))
		if m := member(t, p, "a"); m.State != balancer.StateServing || m.Ejections != 0 {
			t.Errorf("registered anew: %v with %d ejections", m.State, m.Ejections)
		}
	})
}

func TestNewAddressEndsEjectionAndKeepsCounters(t *testing.T) {
	var r recorder
	o := balancer.DefaultOptions()
	p := newPool(t, o, instances(3)...)
	var late []balancer.Pick
	for len(late) < 3 {
		k, _ := p.Pick()
		if k.Member().ID() == "a" {
			late = append(late, k)
		} else {
			k.Done(balancer.Outcome{})
		}
	}
	fail(t, p, "a", balancer.Refused, 3)
	o.OnEvent = r.hook
	if err := p.Configure(o); err != nil {
		t.Fatal(err)
	}
	p.Set(snapshot(instance("a", address("other:81")), instance("b"), instance("c")))
	r.want(t, "restored a")
	if m := member(t, p, "a"); m.State != balancer.StateServing || m.Picks != 6 {
		t.Errorf("%v with %d picks, want serving with 6", m.State, m.Picks)
	}
	for i := range late {
		if got := late[i].Address(); got != "a:80" {
			t.Errorf("a running pick is for %s, want the address it was made for", got)
		}
		late[i].Done(balancer.Outcome{Result: balancer.Reset})
	}
	if m := member(t, p, "a"); m.State != balancer.StateServing || m.InFlight != 0 {
		t.Errorf("failures of the old address made the new one %v, in flight %d", m.State, m.InFlight)
	}
}

func TestLateFailuresDoNotCountAfterReturn(t *testing.T) {
	p := newPool(t, balancer.DefaultOptions(), instances(3)...)
	var late []balancer.Pick
	for len(late) < 30 {
		k, _ := p.Pick()
		late = append(late, k)
	}
	fail(t, p, "a", balancer.Refused, 3)
	p.Restore("a", "operator")
	for i := range late {
		o := balancer.Outcome{Result: balancer.Canceled}
		if late[i].Member().ID() == "a" {
			o.Result = balancer.Timeout
		}
		late[i].Done(o)
	}
	if m := member(t, p, "a"); m.State != balancer.StateServing {
		t.Errorf("requests of before its ejection ejected it again: %s", m.EjectReason)
	}
	fail(t, p, "a", balancer.Timeout, 2)
	if m := member(t, p, "a"); m.State != balancer.StateServing {
		t.Errorf("requests of before its ejection count: %s", m.EjectReason)
	}
}

func TestOperatorEjectsAndRestores(t *testing.T) {
	var r recorder
	p := newPool(t, balancer.Options{OnEvent: r.hook}, instances(2)...)
	if !p.Eject("a", time.Hour, "looks odd") || p.Eject("a", 0, "") || p.Eject("nobody", 0, "") {
		t.Error("Eject")
	}
	if m := member(t, p, "a"); m.EjectReason != "looks odd" || time.Until(m.EjectedUntil) < 59*time.Minute {
		t.Errorf("ejected: %q until %v", m.EjectReason, m.EjectedUntil)
	}
	if !p.Restore("a", "fine") || p.Restore("a", "") || p.Restore("nobody", "") {
		t.Error("Restore")
	}
	r.want(t, "ejected a", "restored a")
	p.Eject("a", 0, "")
	if err := p.Configure(balancer.Options{OnEvent: r.hook, Outlier: balancer.Outlier{Disabled: true}}); err != nil {
		t.Fatal(err)
	}
	r.want(t, "ejected a", "restored a")
}

func TestPanicServesTheEjected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		var pr prober
		pr.down.Store(true)
		o := balancer.DefaultOptions()
		o.OnEvent, o.Probe, o.Outlier.MaxEjected = r.hook, pr.probe, 60
		p := newPool(t, o, instances(5)...)
		run(t, p)
		fail(t, p, "a", balancer.Refused, 3)
		fail(t, p, "b", balancer.Refused, 3)
		if p.Stats().Panic {
			t.Error("panic with three of five left")
		}
		fail(t, p, "c", balancer.Refused, 3)
		r.want(t, "ejected a", "ejected b", "ejected c", "panic_on")
		if got := share(t, p, 50); got["a"] != 10 || got["d"] != 10 {
			t.Errorf("in a panic picked %v, want ten each", got)
		}
		if s := p.Stats(); !s.Panic || s.Serving != 5 || s.Usable != 2 || s.Ejected != 3 {
			t.Errorf("stats %+v", s)
		}

		// The way out takes two seconds, so that the edge does not flap.
		p.Restore("a", "test")
		if !p.Stats().Panic {
			t.Error("panic ended at once")
		}
		time.Sleep(3 * time.Second)
		if s := p.Stats(); s.Panic || s.Serving != 3 {
			t.Errorf("stats %+v", s)
		}
		r.want(t, "restored a", "panic_off")
	})
}

func TestPanicIgnoresInstancesDeadForConsul(t *testing.T) {
	p := newPool(t, balancer.DefaultOptions(), instance("a"), instance("b"), instance("c", critical), instance("d", critical), instance("e", critical))
	fail(t, p, "a", balancer.Refused, 3)
	if s := p.Stats(); s.Panic || s.Serving != 1 {
		t.Errorf("two usable, one of them ejected: %+v", s)
	}
}

func TestPanicCriticalIsAChoice(t *testing.T) {
	o := balancer.DefaultOptions()
	o.Outlier.PanicCritical = true
	p := newPool(t, o, instance("a", critical), instance("b", critical, weight(0)), instance("m", status(discovery.StatusMaintenance)))
	if got := share(t, p, 10); got["a"] != 5 || got["b"] != 5 {
		t.Errorf("picked %v, want both critical ones", got)
	}
	p.Set(snapshot(instance("a"), instance("b", critical)))
	if got := share(t, p, 10); got["a"] != 10 {
		t.Errorf("picked %v with a passing one there", got)
	}
}

func TestSuspectsServeInAPanic(t *testing.T) {
	agentGone := func(in *discovery.Instance) {
		in.Status = discovery.StatusCritical
		in.Checks = []discovery.Check{{ID: "serfHealth", Node: true, Status: discovery.StatusCritical, Output: "Agent not live or unreachable"},
			{ID: "service:x", Status: discovery.StatusPassing}}
	}
	notRun := func(in *discovery.Instance) {
		in.Status = discovery.StatusCritical
		in.Checks = []discovery.Check{{ID: "service:x", Status: discovery.StatusCritical}}
	}
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, balancer.DefaultOptions(), instance("a"), instance("b"))
		run(t, p)

		// A fresh registration whose check has not run yet never served.
		p.Set(snapshot(instance("a"), instance("b"), instance("n1", notRun), instance("n2", notRun), instance("n3", notRun)))
		if s := p.Stats(); s.Panic {
			t.Errorf("new instances without a check result serve: %+v", s)
		}

		p.Set(snapshot(instance("a", agentGone, weight(7)), instance("b", critical)))
		if got := share(t, p, 10); got["a"] != 10 {
			t.Errorf("picked %v, want the one whose agent is gone", got)
		}
		if s := p.Stats(); !s.Panic || s.Usable != 0 || s.Serving != 1 {
			t.Errorf("stats %+v", s)
		}
		// Maintenance is somebody's will, whatever the agent does.
		inMaintenance := instance("a", agentGone)
		inMaintenance.Status = discovery.StatusMaintenance
		p.Set(snapshot(inMaintenance, instance("b", critical)))
		if _, err := p.Pick(); !errors.Is(err, balancer.ErrNoHealthy) {
			t.Errorf("maintenance and critical: %v, want ErrNoHealthy", err)
		}
		p.Set(snapshot(instance("a", agentGone, weight(7)), instance("b", critical)))

		// Our own traffic proves it dead.
		fail(t, p, "a", balancer.Refused, 1)
		if _, err := p.Pick(); !errors.Is(err, balancer.ErrNoHealthy) {
			t.Errorf("after a refused connection: %v, want ErrNoHealthy", err)
		}

		// A check that has not run since its agent restarted counts for 15 s.
		p.Set(snapshot(instances(2)...))
		p.Set(snapshot(instance("a", notRun), instance("b", critical)))
		time.Sleep(14 * time.Second)
		if got := share(t, p, 10); got["a"] != 10 {
			t.Errorf("picked %v, want a", got)
		}
		time.Sleep(4 * time.Second)
		if _, err := p.Pick(); !errors.Is(err, balancer.ErrNoHealthy) {
			t.Errorf("after 18 s: %v, want ErrNoHealthy", err)
		}
	})
}

func TestProbeTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	in := instance("a", address(l.Addr().String()))
	if err := balancer.ProbeTCP(t.Context(), in); err != nil {
		t.Errorf("an instance that listens: %v", err)
	}
	l.Close()
	if err := balancer.ProbeTCP(t.Context(), in); err == nil || !strings.HasPrefix(err.Error(), "probe a: ") {
		t.Errorf("an instance that does not: %v", err)
	}
}

// Run does not return before the probes that it started.
func TestRunJoinsItsProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended atomic.Bool
		o := balancer.DefaultOptions()
		o.Probe = func(ctx context.Context, _ discovery.Instance) error {
			<-ctx.Done()
			time.Sleep(time.Second)
			ended.Store(true)
			return ctx.Err()
		}
		p := newPool(t, o, instances(2)...)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		p.Eject("a", time.Second, "test")
		time.Sleep(1500 * time.Millisecond)
		cancel()
		if err := <-done; err != nil || !ended.Load() {
			t.Errorf("Run: %v, probe ended %v", err, ended.Load())
		}
		if m := member(t, p, "a"); m.State != balancer.StateEjected || m.Ejections != 1 {
			t.Errorf("%v, %d ejections by a probe that was cut off", m.State, m.Ejections)
		}
	})
}

// Two of three are dead, and only one may be ejected: the third does the work
// all the same, nobody is asked in vain, and whoever is back serves again.
func TestDeadBeyondTheShareAreSetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pr prober
		pr.down.Store(true)
		var rec recorder
		p := newPool(t, balancer.Options{Probe: pr.probe, OnEvent: rec.hook,
			Outlier: balancer.Outlier{ConsecutiveErrors: 3, ConsecutiveFailures: 5, EjectFor: time.Hour, MaxEjected: 50, Panic: 50}}, instances(3)...)
		run(t, p)
		fail(t, p, "a", balancer.Refused, 3)
		fail(t, p, "b", balancer.Timeout, 3)
		if got := share(t, p, 30); got["c"] != 30 {
			t.Fatalf("picked %v", got)
		}
		if m := member(t, p, "b"); m.State != balancer.StateAside || m.Serving || m.EjectReason == "" || m.EjectedUntil.IsZero() {
			t.Errorf("b: %+v", m)
		}
		if s := p.Stats(); s.Ejected != 1 || s.Panic {
			t.Errorf("stats %+v", s)
		}

		// The last one goes too: then those that were set aside are as good.
		fail(t, p, "c", balancer.Reset, 3)
		for range 4 {
			pick(t, p, balancer.Canceled)
		}
		if b, c := member(t, p, "b"), member(t, p, "c"); !b.Serving || !c.Serving || member(t, p, "a").Serving {
			t.Errorf("all are dead: %+v %+v", b, c)
		}
		// An answer is proof enough, and whoever gives none waits for it again.
		first := pick(t, p, balancer.Success)
		if first.State() != balancer.StateServing {
			t.Errorf("%s has answered: %v", first.ID(), first.State())
		}
		if got := share(t, p, 30); got[first.ID()] != 30 {
			t.Errorf("only %s is alive: picked %v", first.ID(), got)
		}
		pr.down.Store(false)
		time.Sleep(2 * time.Second)
		pr.down.Store(true)

		fail(t, p, "b", balancer.Refused, 3)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if member(t, p, "b").State != balancer.StateAside {
			t.Error("let in although its probes fail")
		}
		pr.down.Store(false)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if m := member(t, p, "b"); m.State != balancer.StateServing {
			t.Errorf("its probe passed: %+v", m)
		}

		// One that answers badly is not dead: the share is there for it.
		fail(t, p, "c", balancer.ServerError, 5)
		if m := member(t, p, "c"); m.State != balancer.StateServing {
			t.Errorf("c answers: %+v", m)
		}
		for range 3 {
			time.Sleep(time.Second) // what was refused is not tried again at once
			fail(t, p, "c", balancer.Refused, 1)
		}
		if m := member(t, p, "c"); m.State != balancer.StateAside {
			t.Errorf("c is dead: %+v", m)
		}
		p.Set(snapshot(instances(2)...))
		if got := share(t, p, 10); got["b"] != 10 {
			t.Errorf("picked %v", got)
		}
		if !strings.Contains(strings.Join(rec.take(), "\n"), "set_aside") {
			t.Error("nobody was told")
		}
	})
}
