package balancer

import (
	"fmt"
	"slices"
	"time"

	"github.com/proconsul/proconsul/discovery"
)

// picker is everything that Pick needs. It is immutable.
type picker struct {
	members []*Member
	weights []int
	policy  Policy
	err     error // why there are no members
}

// other returns the least loaded member that was not tried, or nil. A retry
// does not wait for its turn: the policy may name the same member again.
func (k *picker) other(tried []*Member, start uint64) *Member {
	var best *Member
	var load int64
	var weight int
	n := len(k.members)
	for i, left := int(start%uint64(n)), n; left > 0; i, left = i+1, left-1 {
		if i == n {
			i = 0
		}
		m := k.members[i]
		if slices.Contains(tried, m) {
			continue
		}
		if l := m.inFlight.Load(); best == nil || lighter(l, k.weights[i], load, weight) {
			best, load, weight = m, l, k.weights[i]
		}
	}
	return best
}

// panicLeave is how long a panic outlasts its reason, so that a pool at the
// edge does not flap.
const panicLeave = 2 * time.Second

// Levels of a panic: who serves beside the members that nobody distrusts.
const (
	calm          = iota
	panicEjected  // ejected members, whom Consul calls usable
	panicSuspect  // critical ones whose checks may be at fault
	panicCritical // all that are not in maintenance
)

// rebuild works out who serves from now on, until p.due, and makes it current.
// Everything that time changes is brought up to now first. It is called under
// p.mu.
func (p *Pool) rebuild(now time.Duration) {
	s := p.settings.Load()
	p.due = 0
	soon := func(at time.Duration) {
		if at > 0 && (p.due == 0 || at < p.due) {
			p.due = at
		}
	}

	var trusted, ejected, suspects, critical []*Member
	held := 0
	p.counts, p.aside = counts{}, 0
	for _, m := range p.order {
		in := m.instance.Load()
		p.counts.status(in.Status)
		if m.heldUntil > 0 && m.heldUntil <= now {
			m.heldUntil = 0
		}
		if (m.ejected.Load() || m.aside.Load()) && s.Outlier.Disabled {
			p.letIn(m, now, "ejection was disabled")
		}
		if (m.ejected.Load() || m.aside.Load()) && s.Outlier.NoProbe && m.ejectedUntil <= now {
			p.letIn(m, now, "its time is up")
		}
		m.usable = in.Usable() || m.heldUntil > 0
		soon(m.climb(now, s.SlowStart))

		switch {
		case in.Status == discovery.StatusMaintenance:
			m.state.Store(uint32(StateMaintenance))
		case m.drained, in.Weight == 0 && in.Status != discovery.StatusCritical:
			m.state.Store(uint32(StateDrained))
		case m.ejected.Load() && m.usable:
			m.state.Store(uint32(StateEjected))
			ejected = append(ejected, m)
			if m.ejectedUntil > now {
				soon(m.ejectedUntil) // a probe is due, see Run
			}
		case m.heldUntil > 0:
			m.state.Store(uint32(StateHeld))
			trusted = append(trusted, m)
			held++
			soon(m.heldUntil)
		case m.usable && m.aside.Load():
			m.state.Store(uint32(StateAside))
			trusted = append(trusted, m)
			p.aside++
			if m.ejectedUntil > now {
				soon(m.ejectedUntil)
			}
		case m.usable:
			m.state.Store(uint32(StateServing))
			trusted = append(trusted, m)
		default:
			m.state.Store(uint32(StateCritical))
			until, ok := m.suspect()
			if ok && (until == 0 || until > now) {
				suspects = append(suspects, m)
				soon(until)
			} else if in.Status == discovery.StatusCritical {
				critical = append(critical, m)
			}
		}
	}

	level := s.Outlier.panicLevel(len(trusted), len(ejected), len(suspects), len(critical))
	switch {
	case level >= p.panicLevel:
		p.panicLevel, p.calmAt = level, 0
	case p.calmAt == 0:
		p.calmAt = now + panicLeave
	case p.calmAt <= now:
		p.panicLevel, p.calmAt = level, 0
	}
	level = max(level, min(p.panicLevel, panicSuspect))
	soon(p.calmAt)

	serving := trusted
	for i, tier := range [][]*Member{ejected, suspects, critical} {
		if level > i {
			serving = append(serving, tier...)
		}
	}
	p.serve(preferred(serving), s)

	p.usable, p.ejected, p.held = len(trusted)+len(ejected), len(ejected), held
	if on := len(serving) > len(trusted); on != p.panic {
		p.panic = on
		e := Event{Kind: EventPanicOff}
		if on {
			e = Event{Kind: EventPanicOn, Reason: fmt.Sprintf("%d of %d instances may serve", len(trusted),
				len(trusted)+len(ejected)+len(suspects)+len(critical))}
		}
		p.tell(e)
	}
	if p.guarded && held == 0 {
		p.guarded = false
		p.tell(Event{Kind: EventGuardOff})
	}
	p.stir()
}

// stir has Run look at the pool.
func (p *Pool) stir() {
	select {
	case p.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// preferred returns those of members that are not set aside, or all where
// every one is.
func preferred(members []*Member) []*Member {
	alive := slices.DeleteFunc(slices.Clone(members), func(m *Member) bool { return m.aside.Load() })
	if len(alive) == 0 {
		return members
	}
	return alive
}

// panicLevel says who serves beside the trusted members. Ejection is our own
// doubt, so its share is taken of what Consul calls usable: an instance that is
// dead for Consul is no reason to serve from one that fails us. The doubt in
// Consul's own word takes the share of everybody who is not in maintenance.
func (o *Outlier) panicLevel(trusted, ejected, suspects, critical int) int {
	level, serving := calm, trusted
	if ejected > 0 && trusted*100 < o.Panic*(trusted+ejected) {
		level, serving = panicEjected, trusted+ejected
	}
	known := trusted + ejected + suspects + critical
	if suspects > 0 && serving*100 < o.Panic*known {
		level, serving = panicSuspect, trusted+ejected+suspects
	}
	if o.PanicCritical && critical > 0 && serving == 0 && o.Panic > 0 {
		level = panicCritical
	}
	return level
}

// serve makes members the ones that are picked. It is called under p.mu.
func (p *Pool) serve(members []*Member, s *Options) {
	for _, m := range p.order {
		m.serving, m.weight = false, 0
	}
	k := &picker{members: slices.Clone(members)}
	slices.SortFunc(k.members, func(a, b *Member) int { return compare(a.id, b.id) })
	scale := 1
	for _, m := range k.members {
		if m.ramping {
			scale = rampSteps
		}
	}
	k.weights = make([]int, len(k.members))
	for i, m := range k.members {
		in := m.instance.Load()
		weight := in.Weight
		if !in.Usable() {
			weight = max(m.lastWeight, 1) // not the one that critical has
		}
		if s.Policy == RoundRobin {
			weight = 1
		}
		if m.ramping {
			weight *= m.rampStep
		} else {
			weight *= scale
		}
		m.serving, m.weight, k.weights[i] = true, weight, weight
	}
	for _, m := range p.order {
		// Told before the picker is, so that the first failure is not missed.
		m.doubted.Store(m.serving && !m.instance.Load().Usable())
	}

	switch {
	case len(k.members) > 0:
		k.policy = newPolicy(s.Policy, k.members, k.weights, &p.cursor)
	case len(p.order) == 0:
		k.err = fmt.Errorf("pool %s: %w", p.name, ErrNoInstance)
	default:
		k.err = fmt.Errorf("pool %s: %w (%s)", p.name, ErrNoHealthy, p.counts)
	}
	p.picker.Store(k)
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// counts is how many instances of a pool have each status.
type counts struct{ passing, warning, critical, maintenance, unknown int }

func (c *counts) status(s discovery.Status) {
	switch s {
	case discovery.StatusPassing:
		c.passing++
	case discovery.StatusWarning:
		c.warning++
	case discovery.StatusCritical:
		c.critical++
	case discovery.StatusMaintenance:
		c.maintenance++
	default:
		c.unknown++
	}
}

// String names the counts that say why nobody serves.
func (c counts) String() string {
	return fmt.Sprintf("%d passing, %d warning, %d critical, %d in maintenance", c.passing, c.warning, c.critical+c.unknown, c.maintenance)
}
