package balancer

import (
	"fmt"
	"time"

	"github.com/proconsul/proconsul/discovery"
)

// guardPool is the smallest pool that the mass-drop guard watches over: in a
// smaller one half of the pool is one instance.
const guardPool = 3

// emptyOutput is how long a critical check without output is taken for one
// that has not run yet.
const emptyOutput = 15 * time.Second

// hold decides about the members that one snapshot turned critical, out of so
// many that were usable before it. It is called under p.mu.
func (p *Pool) hold(dropped []*Member, before int, now time.Duration) {
	g := p.settings.Load().MassDrop
	if g.Disabled || g.Hold <= 0 || before < guardPool || len(dropped)*100 <= g.Share*before {
		return
	}
	for _, m := range dropped {
		m.heldUntil = now + g.Hold
		m.usable = true
	}
	p.guarded = true
	p.tell(Event{Kind: EventGuardOn, Until: p.clock(now + g.Hold),
		Reason: fmt.Sprintf("one update turned %d of %d instances critical", len(dropped), before)})
}

// confirmed reports whether our own traffic agrees that m is dead.
func (m *Member) confirmed(now time.Duration) bool {
	at := time.Duration(m.lastError.Load())
	return m.ejected.Load() || m.errorRow.Load() > 0 && at > 0 && now-at < evidence
}

// disprove ends the service of a member that was only kept in doubt of
// Consul's word: our own traffic now says the same.
func (p *Pool) disprove(m *Member, epoch uint32, result Result) {
	p.mu.Lock()
	defer p.unlock()
	if m.epoch.Load() != epoch || !m.doubted.Load() || !p.has(m) {
		return
	}
	m.disproved = true
	m.heldUntil = 0
	p.tell(Event{Kind: EventDisproved, Instance: m.Instance(), Reason: "last request: " + result.String()})
	p.rebuild(p.now())
}

// suspect reports whether m is critical for a reason that need not be its own,
// and until when that counts (0: as long as it lasts). Only serfHealth critical
// says that the node's Consul agent is gone, and the instance may live; a
// critical check without output says that an agent restarted and the check has
// not run yet, if the instance was usable before.
func (m *Member) suspect() (until time.Duration, ok bool) {
	if m.disproved {
		return 0, false
	}
	agent, empty := 0, 0
	for _, c := range m.instance.Load().Checks {
		switch {
		case c.Status != discovery.StatusCritical:
		case c.Node && c.ID == "serfHealth":
			agent++
		case c.Output == "":
			empty++
		default:
			return 0, false
		}
	}
	switch {
	case empty > 0:
		return m.since + emptyOutput, m.lastWeight > 0
	default:
		return 0, agent > 0
	}
}
