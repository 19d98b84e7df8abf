package balancer

import (
	"slices"
	"time"

	"github.com/proconsul/proconsul/discovery"
)

// MemberStatus is a member at one moment, for pages and metrics.
type MemberStatus struct {
	Instance discovery.Instance
	State    State
	Serving  bool // may be picked, if only for a panic

	// Weight is what Consul gives it. Effective is what it takes part with now:
	// less in slow start, 0 where it does not serve, and 1 at most with
	// round_robin. Share is its part of the pool's picks, 0 to 1.
	Weight    int
	Effective float64
	Share     float64
	Ramp      float64 // how far slow start is, 0 to 1; 1 without one

	InFlight int64
	Picks    uint64
	Failures uint64
	Results  [Canceled + 1]uint64 // by Result

	Rate   float64 // requests per second, over about ten seconds
	Minute Latency

	Joined       time.Time // first seen in this pool
	Since        time.Time // of its status in Consul
	EjectedUntil time.Time // when it is probed; zero unless ejected or aside
	EjectReason  string
	Ejections    int       // in a row; good conduct takes them off
	HeldUntil    time.Time // zero unless the mass-drop guard holds it
}

// Stats is a pool at one moment.
type Stats struct {
	Name   string
	Policy string

	Total   int // instances that Consul has
	Serving int // that may be picked, panic included
	Usable  int // that nobody distrusts, held ones included
	Ejected int
	Held    int
	Ramping int
	Drained int // by a weight of 0 or an operator
	Leaving int // deregistered, with requests in flight

	Passing, Warning, Critical, Maintenance int // by Consul's status

	// Panic says that members serve whom our traffic or Consul distrusts,
	// because too few others are left.
	Panic bool

	// Guarded says that an update that took most of the pool is held, until
	// GuardedUntil for the last member.
	Guarded      bool
	GuardedUntil time.Time

	InFlight  int64
	Ejections uint64 // ever

	Index   uint64    // of the last snapshot
	Updated time.Time // when that arrived; zero before the first
}

// Members returns every instance of the pool, by id, whether it serves or not,
// and after them the deregistered ones whose requests are still in flight.
func (p *Pool) Members() []MemberStatus { return p.AppendMembers(nil) }

// AppendMembers appends what Members returns to list, for who looks at many
// pools one after the other.
func (p *Pool) AppendMembers(list []MemberStatus) []MemberStatus {
	p.mu.Lock()
	defer p.unlock()
	now := p.now()
	p.forget()
	total, scale := 0, 1
	for _, m := range p.order {
		total += m.weight
		if m.serving && m.ramping {
			scale = rampSteps
		}
	}
	list = slices.Grow(list, len(p.order)+len(p.leaving))
	for _, m := range p.order {
		s := p.status(m, now)
		if m.serving {
			s.Effective = float64(m.weight) / float64(scale)
			s.Share = float64(m.weight) / float64(total)
		}
		list = append(list, s)
	}
	for _, m := range p.leaving {
		list = append(list, p.status(m, now))
	}
	return list
}

func (p *Pool) status(m *Member, now time.Duration) MemberStatus {
	in := m.instance.Load()
	s := MemberStatus{
		Instance:    *in,
		State:       m.State(),
		Serving:     m.serving,
		Weight:      in.Weight,
		Ramp:        1,
		InFlight:    m.InFlight(),
		Picks:       m.Picks(),
		Failures:    m.Failures(),
		Joined:      p.clock(m.joined),
		Since:       p.clock(m.since),
		EjectReason: m.ejectReason,
		Ejections:   m.ejections,
		HeldUntil:   p.clock(m.heldUntil),
	}
	if m.ramping {
		s.Ramp = float64(m.rampStep) / rampSteps
	}
	if m.ejected.Load() || m.aside.Load() {
		s.EjectedUntil = p.clock(m.ejectedUntil)
	}
	for r := range s.Results {
		s.Results[r] = m.results[r].Load()
	}
	if h := m.latency.Load(); h != nil {
		s.Rate, s.Minute = h.sums(now, now-m.joined)
	}
	return s
}

// Stats sums the pool up.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.unlock()
	p.forget()
	s := Stats{
		Name:        p.name,
		Policy:      p.settings.Load().Policy,
		Total:       len(p.order),
		Serving:     len(p.picker.Load().members),
		Usable:      p.usable - p.ejected,
		Ejected:     p.ejected,
		Held:        p.held,
		Leaving:     len(p.leaving),
		Passing:     p.counts.passing,
		Warning:     p.counts.warning,
		Critical:    p.counts.critical + p.counts.unknown,
		Maintenance: p.counts.maintenance,
		Panic:       p.panic,
		Guarded:     p.guarded,
		Ejections:   p.ejections,
		Index:       p.index,
		Updated:     p.updated,
	}
	var until time.Duration
	for _, m := range p.order {
		s.InFlight += m.InFlight()
		if m.ramping && m.serving {
			s.Ramping++
		}
		if m.State() == StateDrained {
			s.Drained++
		}
		if m.heldUntil > 0 {
			until = max(until, m.heldUntil)
		}
	}
	s.GuardedUntil = p.clock(until)
	for _, m := range p.leaving {
		s.InFlight += m.InFlight()
	}
	return s
}
