package balancer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/discovery"
)

// Pool is the instances of one upstream and the policy that picks among them.
// Every method is safe for concurrent use. Run has to be running for whatever
// time brings: the return of ejected members, the steps of slow start and the
// end of a hold.
type Pool struct {
	name     string
	born     time.Time // what durations inside are counted from: one monotonic clock
	picker   atomic.Pointer[picker]
	settings atomic.Pointer[Options] // checked, never changed
	cursor   atomic.Uint64
	running  atomic.Bool
	wake     chan struct{} // of capacity one: Run looks at due again

	watching atomic.Bool // Run looks for stalled members

	mu         sync.Mutex
	loaded     bool
	index      uint64
	updated    time.Time
	members    map[string]*Member // by instance id
	order      []*Member          // the same, by id
	leaving    []*Member          // deregistered, with requests in flight
	counts     counts
	usable     int // trusted and ejected members
	ejected    int
	aside      int
	held       int
	ejections  uint64 // ever
	guarded    bool
	panic      bool
	panicLevel int
	calmAt     time.Duration
	due        time.Duration // when rebuild has to run again; 0: not before something happens
	probing    int
	unwatch    time.Duration // when watching may end
	events     []Event
	delivering bool
}

// New returns an empty pool; it starts nothing. The name is for errors and
// events. An unknown policy or a number out of range is an error.
func New(name string, o Options) (*Pool, error) {
	o, err := o.checked()
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", name, err)
	}
	p := &Pool{name: name, born: time.Now(), members: map[string]*Member{}, wake: make(chan struct{}, 1)}
	p.settings.Store(&o)
	// Replicas must not march in step. Halved: the cursor shall not wrap.
	p.cursor.Store(rand.Uint64() / 2)
	p.picker.Store(&picker{err: fmt.Errorf("pool %s: %w", name, ErrNoInstance)})
	return p, nil
}

// Name returns what New was given.
func (p *Pool) Name() string { return p.name }

// now is the time since the pool was made, never 0.
func (p *Pool) now() time.Duration { return time.Since(p.born) + 1 }

// clock turns a time since the pool was made into wall time; 0 is the zero
// Time.
func (p *Pool) clock(at time.Duration) time.Time {
	if at == 0 {
		return time.Time{}
	}
	return p.born.Add(at)
}

// Configure changes the options of a running pool. Counters, ejections, ramps
// and holds survive; ejection or guard that is switched off lets everybody in
// or go. On an error nothing has changed.
func (p *Pool) Configure(o Options) error {
	o, err := o.checked()
	if err != nil {
		return fmt.Errorf("pool %s: %w", p.name, err)
	}
	p.mu.Lock()
	defer p.unlock()
	p.settings.Store(&o)
	if o.MassDrop.Disabled || o.MassDrop.Hold <= 0 {
		for _, m := range p.order {
			m.heldUntil = 0
		}
	}
	p.rebuild(p.now())
	return nil
}

// has reports whether m is in the pool. It is called under p.mu.
func (p *Pool) has(m *Member) bool { return p.members[m.id] == m }

// Set makes s the pool's instances. Once it has returned, no pick returns an
// instance that s does not have, that is in maintenance or has weight 0, or
// that is critical, but for what the mass-drop guard and a panic keep. It is
// what a discovery.Catalog's subscriber is.
func (p *Pool) Set(s discovery.Snapshot) {
	p.mu.Lock()
	defer p.unlock()
	now := p.now()
	first := !p.loaded
	p.loaded, p.index, p.updated = true, s.Index, s.At

	before := 0
	for _, m := range p.order {
		if m.usable && !m.drained {
			before++
		}
	}
	members := make(map[string]*Member, len(s.Instances))
	order := make([]*Member, 0, len(s.Instances))
	var dropped, risen []*Member
	for i := range s.Instances {
		in := &s.Instances[i]
		if in.ID == "" || members[in.ID] != nil {
			continue // could not be told apart
		}
		m := p.members[in.ID]
		if m == nil {
			m = p.join(in, now, first)
		} else if p.change(m, in, now) {
			dropped = append(dropped, m)
		}
		if in.Usable() {
			m.lastWeight = in.Weight
			if !m.usable {
				risen = append(risen, m)
			}
		}
		m.usable = in.Usable() || m.heldUntil > 0
		m.setDraining(m.drained || in.Status == discovery.StatusMaintenance)
		members[in.ID] = m
		order = append(order, m)
	}
	gone := p.order
	p.members, p.order = members, order
	slices.SortFunc(p.order, func(a, b *Member) int { return compare(a.id, b.id) })
	for _, m := range gone {
		if !p.has(m) {
			p.leave(m)
		}
	}

	p.hold(dropped, before, now)
	// All are new before anyone is asked whether somebody is warm.
	for _, m := range risen {
		m.usableSince, m.seasoned = now, first
	}
	if !first {
		for _, m := range risen {
			p.startRamp(m, now)
		}
	}
	p.rebuild(now)
}

// join returns the member for an instance that the pool did not have. It is
// called under p.mu.
func (p *Pool) join(in *discovery.Instance, now time.Duration, first bool) *Member {
	m := &Member{pool: p, id: in.ID}
	// One that comes back while its requests are still in flight is most often
	// the same process, whose agent restarted.
	if i := slices.IndexFunc(p.leaving, func(l *Member) bool { return l.id == in.ID }); i >= 0 {
		m = p.leaving[i]
		p.leaving = slices.Delete(p.leaving, i, i+1)
	}
	m.joined, m.since = now, now
	m.instance.Store(in)
	if !first {
		p.tell(Event{Kind: EventJoined, Instance: *in, To: in.Status})
	}
	return m
}

// change takes over what a snapshot says of a member that the pool has. It
// reports whether it turned critical and nothing of ours confirms it. It is
// called under p.mu.
func (p *Pool) change(m *Member, in *discovery.Instance, now time.Duration) (dropped bool) {
	old := m.instance.Load()
	m.instance.Store(in)
	if in.Address != old.Address {
		// The id was registered anew: the counters are its history, the
		// ejection was about a process that is gone.
		m.disproved, m.ejections, m.usable, m.lastWeight = false, 0, false, 0
		if m.ejected.Load() || m.aside.Load() {
			p.letIn(m, now, "its address changed")
		} else {
			p.forgive(m)
		}
	}
	if in.Status != old.Status {
		m.since = now
		m.disproved = false
		p.tell(Event{Kind: EventStatusChanged, Instance: *in, From: old.Status, To: in.Status})
	}
	if in.Status != discovery.StatusCritical || in.Address != old.Address {
		m.heldUntil = 0
		return false
	}
	return old.Usable() && !m.drained && !m.confirmed(now)
}

// leave ends the membership of a deregistered instance. It is called under
// p.mu.
func (p *Pool) leave(m *Member) {
	m.setDraining(true)
	m.state.Store(uint32(StateLeaving))
	m.serving, m.weight, m.usable, m.drained, m.ramping = false, 0, false, false, false
	m.heldUntil, m.ejectedUntil, m.ejectReason, m.ejections, m.probing = 0, 0, "", 0, false
	m.ejected.Store(false)
	m.aside.Store(false)
	m.doubted.Store(false)
	p.forgive(m)
	p.forget()
	if m.inFlight.Load() > 0 {
		p.leaving = append(p.leaving, m)
	}
	p.tell(Event{Kind: EventLeft, Instance: m.Instance(), From: m.instance.Load().Status})
}

// forget drops deregistered members whose last request is done. It is called
// under p.mu.
func (p *Pool) forget() {
	p.leaving = slices.DeleteFunc(p.leaving, func(m *Member) bool { return m.inFlight.Load() <= 0 })
}

// Pick chooses the member for one request, and counts it as in flight until
// its Done. Members that were tried for the same request are passed over while
// another may be picked. The error wraps ErrNoInstance or ErrNoHealthy.
func (p *Pool) Pick(tried ...*Member) (Pick, error) {
	k := p.picker.Load()
	if len(k.members) == 0 {
		return Pick{}, k.err
	}
	m := k.members[k.policy.Next()]
	if len(tried) > 0 && slices.Contains(tried, m) {
		if other := k.other(tried, p.cursor.Load()); other != nil {
			m = other
		}
	}
	if m.inFlight.Add(1) == stallPicks && !p.watching.Load() {
		p.watch()
	}
	m.picks.Add(1)
	return Pick{member: m, instance: m.instance.Load(), epoch: m.epoch.Load()}, nil
}
