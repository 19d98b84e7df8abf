package balancer

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/proconsul/proconsul/discovery"
)

const (
	// evidence is how long a connection error confirms what Consul says.
	evidence = 30 * time.Second

	// refusedPause is how long a failing member that may not be ejected leaves
	// the pool's lock alone.
	refusedPause = 100 * time.Millisecond

	// asideFor is the gap between two probes of a member that is set aside.
	asideFor = time.Second

	// goodConduct is how many times EjectFor a member has to stay in the pool
	// for its next ejection to be one step shorter.
	goodConduct = 3
)

// score judges a member by one outcome. It takes the pool's lock only to act.
func (p *Pool) score(m *Member, epoch uint32, result Result, now time.Duration) {
	o := &p.settings.Load().Outlier
	if o.FailureRate > 0 && !o.Disabled {
		m.ratio.add(now, o.Window, result != Success)
	}
	if result == Success {
		if m.aside.Load() { // it served as a last resort
			p.proved(m, epoch)
		}
		// Looked at first: writing would take the cache line from everybody.
		if m.failRow.Load() != 0 {
			m.failRow.Store(0)
			m.errorRow.Store(0)
		}
		return
	}

	fails := m.failRow.Add(1)
	var errs int32
	if result.connection() {
		m.lastError.Store(int64(now))
		errs = m.errorRow.Add(1)
		if m.doubted.Load() {
			p.disprove(m, epoch, result)
			return
		}
	} else {
		m.errorRow.Store(0) // it answered
	}

	if o.Disabled || m.ejected.Load() || m.aside.Load() {
		return
	}
	if at := m.refusedAt.Load(); at != 0 && now-time.Duration(at) < refusedPause {
		return
	}
	switch {
	case o.ConsecutiveErrors > 0 && int(errs) >= o.ConsecutiveErrors:
		p.eject(m, epoch, true, fmt.Sprintf("%d connection errors in a row, last %s", errs, result))
	case o.ConsecutiveFailures > 0 && int(fails) >= o.ConsecutiveFailures:
		p.eject(m, epoch, false, fmt.Sprintf("%d failures in a row, last %s", fails, result))
	case o.FailureRate > 0:
		requests, failures := m.ratio.sum(now, o.Window)
		if requests >= max(1, o.MinRequests) && failures*100 >= o.FailureRate*requests {
			p.eject(m, epoch, false, fmt.Sprintf("%d of %d requests in %v failed", failures, requests, o.Window))
		}
	}
}

// eject takes a member out, if it still is in.
func (p *Pool) eject(m *Member, epoch uint32, dead bool, reason string) {
	p.mu.Lock()
	defer p.unlock()
	if m.epoch.Load() != epoch || m.ejected.Load() || !p.has(m) || !m.instance.Load().Usable() {
		return
	}
	p.out(m, p.now(), dead, reason)
}

// out ejects m, if as many may be out. One that seems dead, rather than sick,
// is set aside where no more may be: three answers that never came are worth
// nothing to the client of the fourth, and their retries would eat the budget
// of those that can be saved. It is called under p.mu.
func (p *Pool) out(m *Member, now time.Duration, dead bool, reason string) {
	o := &p.settings.Load().Outlier
	switch {
	case p.ejected < o.allowed(p.usable):
	case dead && p.usable > 1 && o.MaxEjected > 0:
		m.aside.Store(true)
		m.epoch.Add(1)
		m.ejectReason, m.ejectedUntil = reason, now+asideFor
		p.tell(Event{Kind: EventAside, Instance: m.Instance(), Reason: reason, Until: p.clock(m.ejectedUntil)})
		p.rebuild(now)
		return
	default:
		m.refusedAt.Store(int64(now))
		return
	}
	p.takeOut(m, now, 0, reason)
	p.rebuild(now)
}

// allowed returns how many of this many usable members may be ejected.
func (o *Outlier) allowed(usable int) int {
	if usable < 2 || o.MaxEjected == 0 {
		return 0
	}
	return max(1, usable*o.MaxEjected/100)
}

// takeOut ejects m for d, or, where d is 0, for its next growing time. It is
// called under p.mu.
func (p *Pool) takeOut(m *Member, now, d time.Duration, reason string) {
	o := p.settings.Load().Outlier
	if conduct := goodConduct * o.EjectFor; m.ejections > 0 {
		m.ejections = max(0, m.ejections-int((now-m.restoredAt)/conduct))
	}
	m.ejections++
	p.ejections++
	m.ejected.Store(true)
	m.aside.Store(false)
	m.epoch.Add(1)
	m.ejectReason = reason
	m.ejectedUntil = now + d
	if d == 0 {
		m.ejectedUntil = now + o.ejectionTime(m.ejections)
	}
	p.tell(Event{Kind: EventEjected, Instance: m.Instance(), Reason: reason, Until: p.clock(m.ejectedUntil)})
}

func (o *Outlier) ejectionTime(n int) time.Duration {
	d := o.MaxEjectFor
	if grown := o.EjectFor * time.Duration(n); grown/time.Duration(n) == o.EjectFor && grown < d {
		d = grown
	}
	return d - time.Duration(rand.Int64N(int64(d/10)+1))
}

// proved lets in a member that was set aside and answered all the same.
func (p *Pool) proved(m *Member, epoch uint32) {
	p.mu.Lock()
	defer p.unlock()
	if m.epoch.Load() != epoch || !m.aside.Load() || !p.has(m) {
		return
	}
	now := p.now()
	p.letIn(m, now, "it answered")
	p.rebuild(now)
}

// letIn ends m's ejection, or its time aside. It is called under p.mu.
func (p *Pool) letIn(m *Member, now time.Duration, reason string) {
	m.ejected.Store(false)
	m.aside.Store(false)
	m.ejectedUntil, m.ejectReason, m.restoredAt, m.probing = 0, "", now, false
	p.forgive(m)
	p.startRamp(m, now)
	p.tell(Event{Kind: EventRestored, Instance: m.Instance(), Reason: reason})
}

// forgive forgets what m did so far, and what is still on its way.
func (p *Pool) forgive(m *Member) {
	m.epoch.Add(1)
	m.errorRow.Store(0)
	m.failRow.Store(0)
	m.lastError.Store(0)
	m.refusedAt.Store(0)
	m.ratio.reset()
}

// Eject takes an instance out of the pool for d, at an operator's word, however
// many are out already; after it the instance has to pass a probe like any
// ejected one. A d of 0 is the time that passive ejection would take. It
// reports whether the pool has the instance and it was not ejected before.
func (p *Pool) Eject(id string, d time.Duration, reason string) bool {
	p.mu.Lock()
	defer p.unlock()
	m := p.members[id]
	if m == nil || m.ejected.Load() {
		return false
	}
	now := p.now()
	p.takeOut(m, now, max(d, 0), reason)
	p.rebuild(now)
	return true
}

// Restore lets an ejected instance in at once, unproved, at an operator's word.
// It reports whether the instance was ejected, or set aside.
func (p *Pool) Restore(id, reason string) bool {
	p.mu.Lock()
	defer p.unlock()
	m := p.members[id]
	if m == nil || !m.ejected.Load() && !m.aside.Load() {
		return false
	}
	now := p.now()
	p.letIn(m, now, reason)
	p.rebuild(now)
	return true
}

// Drain takes an instance out of the pool until Drain is called with false, at
// an operator's word: nobody is picked for it any more, requests in flight
// finish. It reports whether that changed anything.
func (p *Pool) Drain(id string, on bool) bool {
	p.mu.Lock()
	defer p.unlock()
	m := p.members[id]
	if m == nil || m.drained == on {
		return false
	}
	m.drained = on
	kind := EventDrained
	if !on {
		kind = EventUndrained
	}
	p.tell(Event{Kind: kind, Instance: m.Instance()})
	now := p.now()
	m.setDraining(on || m.instance.Load().Status == discovery.StatusMaintenance)
	p.rebuild(now)
	return true
}
