package balancer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/discovery"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// instance makes a passing instance of weight 1; options change it.
func instance(id string, change ...func(*discovery.Instance)) discovery.Instance {
	in := discovery.Instance{ID: id, Service: "orders", Address: id + ":80", Status: discovery.StatusPassing, Weight: 1}
	for _, c := range change {
		c(&in)
	}
	return in
}

func weight(w int) func(*discovery.Instance) {
	return func(in *discovery.Instance) { in.Weight = w }
}

func status(s discovery.Status) func(*discovery.Instance) {
	return func(in *discovery.Instance) { in.Status = s }
}

func address(a string) func(*discovery.Instance) {
	return func(in *discovery.Instance) { in.Address = a }
}

func checks(c ...discovery.Check) func(*discovery.Instance) {
	return func(in *discovery.Instance) { in.Checks = c }
}

// critical is an instance that its own check calls dead.
func critical(in *discovery.Instance) {
	in.Status = discovery.StatusCritical
	in.Checks = []discovery.Check{{ID: "service:x", Status: discovery.StatusCritical, Output: "connection refused"}}
}

func snapshot(ins ...discovery.Instance) discovery.Snapshot {
	return discovery.Snapshot{Service: "orders", Instances: ins, At: time.Now()}
}

// instances makes n instances a, b, c, ... of weight 1.
func instances(n int) []discovery.Instance {
	list := make([]discovery.Instance, n)
	for i := range list {
		list[i] = instance(fmt.Sprintf("%c", 'a'+i))
	}
	return list
}

func newPool(t testing.TB, o balancer.Options, ins ...discovery.Instance) *balancer.Pool {
	t.Helper()
	p, err := balancer.New("orders", o)
	if err != nil {
		t.Fatal(err)
	}
	p.Set(snapshot(ins...))
	return p
}

// pick picks once and is done at once.
func pick(t testing.TB, p *balancer.Pool, r balancer.Result, tried ...*balancer.Member) *balancer.Member {
	t.Helper()
	k, err := p.Pick(tried...)
	if err != nil {
		t.Fatal(err)
	}
	k.Done(balancer.Outcome{Result: r, Latency: time.Millisecond})
	return k.Member()
}

// share picks n times and returns how often each id came.
func share(t testing.TB, p *balancer.Pool, n int) map[string]int {
	t.Helper()
	got := map[string]int{}
	for range n {
		got[pick(t, p, balancer.Success).ID()]++
	}
	return got
}

// fail lets the instance fail n times, however often others are picked for it.
func fail(t testing.TB, p *balancer.Pool, id string, r balancer.Result, n int) {
	t.Helper()
	for range 10_000 {
		if n == 0 {
			return
		}
		k, err := p.Pick()
		if err != nil {
			t.Fatal(err)
		}
		o := balancer.Outcome{Result: balancer.Canceled}
		if k.Member().ID() == id {
			o.Result = r
			n--
		}
		k.Done(o)
	}
	t.Fatalf("%s is not picked", id)
}

// run runs the pool until the test ends.
func run(t *testing.T, p *balancer.Pool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func member(t testing.TB, p *balancer.Pool, id string) balancer.MemberStatus {
	t.Helper()
	for _, m := range p.Members() {
		if m.Instance.ID == id {
			return m
		}
	}
	t.Fatalf("no member %s", id)
	return balancer.MemberStatus{}
}

// recorder keeps the kinds and instances of events.
type recorder struct {
	mu   sync.Mutex
	list []string
}

func (r *recorder) hook(e balancer.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, strings.TrimSpace(string(e.Kind)+" "+e.Instance.ID))
}

// take returns what happened since the last take.
func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.list
	r.list = nil
	return list
}

func (r *recorder) want(t *testing.T, want ...string) {
	t.Helper()
	if got := r.take(); !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestStatusDecidesWhoServes(t *testing.T) {
	cases := []struct {
		name string
		ins  []discovery.Instance
		want map[string]int // of 12 picks by weight
		err  error
		says string
	}{
		{name: "no instance", err: balancer.ErrNoInstance, says: "pool orders: no instance is registered"},
		{name: "passing by weight", ins: []discovery.Instance{instance("a", weight(2)), instance("b")}, want: map[string]int{"a": 8, "b": 4}},
		{name: "warning by the weight it has", ins: []discovery.Instance{instance("a", weight(3)), instance("b", status(discovery.StatusWarning))},
			want: map[string]int{"a": 9, "b": 3}},
		{name: "critical is out", ins: []discovery.Instance{instance("a"), instance("b", critical)}, want: map[string]int{"a": 12}},
		{name: "maintenance is out", ins: []discovery.Instance{instance("a"), instance("b", status(discovery.StatusMaintenance))}, want: map[string]int{"a": 12}},
		{name: "weight 0 is drained", ins: []discovery.Instance{instance("a"), instance("b", weight(0))}, want: map[string]int{"a": 12}},
		{name: "unknown status is out", ins: []discovery.Instance{instance("a"), instance("b", status(discovery.StatusUnknown))}, want: map[string]int{"a": 12}},
		{name: "two entries with one id are one", ins: []discovery.Instance{instance("a"), instance("a", weight(9)), instance("b")}, want: map[string]int{"a": 6, "b": 6}},
		{name: "nobody healthy", ins: []discovery.Instance{instance("a", critical), instance("b", status(discovery.StatusMaintenance))},
			err: balancer.ErrNoHealthy, says: "pool orders: no healthy instance (0 passing, 0 warning, 1 critical, 1 in maintenance)"},
		{name: "all drained", ins: []discovery.Instance{instance("a", weight(0))}, err: balancer.ErrNoHealthy,
			says: "pool orders: no healthy instance (1 passing, 0 warning, 0 critical, 0 in maintenance)"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := newPool(t, balancer.DefaultOptions(), c.ins...)
			if c.err != nil {
				if _, err := p.Pick(); !errors.Is(err, c.err) || err.Error() != c.says {
					t.Fatalf("Pick: %v, want %q", err, c.says)
				}
				return
			}
			if got := share(t, p, 12); fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("picked %v, want %v", got, c.want)
			}
		})
	}
}

func TestPickBeforeTheFirstSnapshot(t *testing.T) {
	p, err := balancer.New("orders", balancer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Pick(); !errors.Is(err, balancer.ErrNoInstance) {
		t.Errorf("Pick: %v, want ErrNoInstance", err)
	}
	var zero balancer.Pick
	zero.Done(balancer.Outcome{}) // of a failed Pick: does nothing
}

func TestCountersOutliveSnapshots(t *testing.T) {
	p := newPool(t, balancer.Options{}, instances(2)...)
	k, _ := p.Pick()
	id := k.Member().ID()
	p.Set(snapshot(instances(3)...))
	if got := member(t, p, id); got.InFlight != 1 || got.Picks != 1 {
		t.Errorf("after a snapshot: in flight %d, picks %d, want 1, 1", got.InFlight, got.Picks)
	}
	if err := p.Configure(balancer.Options{Policy: balancer.LeastRequests}); err != nil {
		t.Fatal(err)
	}
	k.Done(balancer.Outcome{Result: balancer.ServerError})
	if got := member(t, p, id); got.InFlight != 0 || got.Results[balancer.ServerError] != 1 {
		t.Errorf("after Done: %+v", got)
	}
}

func TestDoneCountsOnce(t *testing.T) {
	p := newPool(t, balancer.Options{}, instance("a"))
	k, _ := p.Pick()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { k.Done(balancer.Outcome{}) })
	}
	wg.Wait()
	if got := member(t, p, "a"); got.InFlight != 0 || got.Results[balancer.Success] != 1 {
		t.Errorf("in flight %d, successes %d, want 0, 1", got.InFlight, got.Results[balancer.Success])
	}
}

func TestDeregisteredFinishesWhatItHas(t *testing.T) {
	p := newPool(t, balancer.Options{}, instance("a"))
	k, _ := p.Pick()
	draining := k.Member().Draining()
	p.Set(snapshot(instance("b")))
	select {
	case <-draining:
	default:
		t.Error("long-lived streams of a deregistered instance are not told")
	}
	list := p.Members()
	if len(list) != 2 || list[1].Instance.ID != "a" || list[1].State != balancer.StateLeaving || list[1].Serving {
		t.Errorf("members %+v, want a leaving after b", list)
	}
	if s := p.Stats(); s.Leaving != 1 || s.InFlight != 1 || s.Total != 1 {
		t.Errorf("stats %+v", s)
	}
	k.Done(balancer.Outcome{})
	if list := p.Members(); len(list) != 1 {
		t.Errorf("%d members after the last request, want 1", len(list))
	}
	p.Set(snapshot(instance("a")))
	if got := member(t, p, "a"); got.Picks != 0 {
		t.Errorf("an instance that was gone begins with %d picks", got.Picks)
	}
}

func TestDrainingIsForMaintenanceAndDeregistrationOnly(t *testing.T) {
	p := newPool(t, balancer.Options{}, instances(2)...)
	k, _ := p.Pick()
	m := k.Member()
	id := m.ID()
	closed := func() bool {
		select {
		case <-m.Draining():
			return true
		default:
			return false
		}
	}
	for _, c := range []struct {
		in   discovery.Instance
		want bool
	}{
		{instance(id, critical), false},
		{instance(id, status(discovery.StatusMaintenance)), true},
		{instance(id), false},
		{instance(id, weight(0)), false},
	} {
		p.Set(snapshot(c.in))
		if closed() != c.want {
			t.Errorf("%s, weight %d: draining %v, want %v", c.in.Status, c.in.Weight, !c.want, c.want)
		}
	}
	if !p.Drain(id, true) || !closed() || m.State() != balancer.StateDrained {
		t.Error("an operator's drain does not drain")
	}
	if !p.Drain(id, false) || closed() || p.Drain(id, false) || p.Drain("nobody", true) {
		t.Error("an operator's drain does not end")
	}
	k.Done(balancer.Outcome{})
}

func TestNeverTriedTwiceWhileAnotherIsUsable(t *testing.T) {
	for _, policy := range balancer.Policies() {
		for _, n := range []int{2, 5, 40} {
			t.Run(fmt.Sprint(policy, n), func(t *testing.T) {
				var ins []discovery.Instance
				for i := range n {
					ins = append(ins, instance(fmt.Sprintf("i%02d", i), weight(1+i%3)))
				}
				p := newPool(t, balancer.Options{Policy: policy}, ins...)
				for range 20 {
					var tried []*balancer.Member
					for range n {
						m := pick(t, p, balancer.Refused, tried...)
						if slices.Contains(tried, m) {
							t.Fatalf("%s was tried before, of %d", m.ID(), len(tried))
						}
						tried = append(tried, m)
					}
					pick(t, p, balancer.Success, tried...) // all were tried: any will do
				}
			})
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	_, err := balancer.New("orders", balancer.Options{Policy: "random", SlowStart: -1, Outlier: balancer.Outlier{Panic: 101}})
	for _, want := range []string{`pool orders: unknown policy "random" (allowed: round_robin, weighted, least_requests)`, "slow start is negative", "panic is 101, outside 0 to 100"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New: %v, want %q in it", err, want)
		}
	}
	p := newPool(t, balancer.Options{}, instance("a"))
	if err := p.Configure(balancer.Options{Policy: "random"}); err == nil {
		t.Error("Configure took an unknown policy")
	}
	if got := p.Stats().Policy; got != balancer.Weighted {
		t.Errorf("policy %q after a refused Configure, want weighted", got)
	}
}

func TestEventsTellWhatSnapshotsChange(t *testing.T) {
	var r recorder
	p := newPool(t, balancer.Options{OnEvent: r.hook}, instances(2)...)
	r.want(t) // what is there at first did not join
	p.Set(snapshot(instance("a", critical), instance("c")))
	r.want(t, "status_changed a", "joined c", "left b")
	p.Set(snapshot(instance("a", critical), instance("c")))
	r.want(t)
}

// A hook may change the pool; what that causes is told after what came before.
func TestEventsMayCallThePool(t *testing.T) {
	var p *balancer.Pool
	var got []string
	p = newPool(t, balancer.Options{OnEvent: func(e balancer.Event) {
		got = append(got, string(e.Kind)+" "+e.Instance.ID)
		p.Stats()
		if e.Kind == balancer.EventJoined && e.Instance.ID == "b" {
			p.Set(snapshot(instance("a"), instance("c")))
		}
	}}, instance("a"))
	p.Set(snapshot(instances(3)...))
	if want := []string{"joined b", "joined c", "left b"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestStatesAndStats(t *testing.T) {
	p := newPool(t, balancer.DefaultOptions(),
		instance("drained", weight(0)), instance("critical", critical), instance("maintenance", status(discovery.StatusMaintenance)),
		instance("warning", status(discovery.StatusWarning), weight(3)), instance("odd", status(discovery.StatusUnknown)),
		instance("ejected"), instance("serving", weight(9)))
	p.Eject("ejected", time.Hour, "test")
	states := map[string]bool{"drained": false, "critical": false, "maintenance": false, "warning": true, "odd": false, "ejected": false, "serving": true}
	for id, serving := range states {
		m := member(t, p, id)
		want := id
		switch id {
		case "warning":
			want = "serving"
		case "odd":
			want = "critical"
		}
		if m.State.String() != want || m.Serving != serving {
			t.Errorf("%s: state %s, serving %v; want %s, %v", id, m.State, m.Serving, want, serving)
		}
	}
	if m := member(t, p, "serving"); m.Weight != 9 || m.Effective != 9 || m.Share != 0.75 || m.Ramp != 1 {
		t.Errorf("weight %d, effective %v, share %v, ramp %v; want 9, 9, 0.75, 1", m.Weight, m.Effective, m.Share, m.Ramp)
	}
	got := p.Stats()
	got.Updated = time.Time{}
	want := balancer.Stats{Name: "orders", Policy: "weighted", Total: 7, Serving: 2, Usable: 2, Ejected: 1, Drained: 1,
		Passing: 3, Warning: 1, Critical: 2, Maintenance: 1, Ejections: 1}
	if got != want {
		t.Errorf("stats\n%+v, want\n%+v", got, want)
	}
}

func TestRunTwiceIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, balancer.Options{}, instance("a"))
		run(t, p)
		synctest.Wait()
		if err := p.Run(t.Context()); err == nil {
			t.Error("a second Run is accepted")
		}
	})
}
