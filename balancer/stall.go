package balancer

import (
	"fmt"
	"slices"
	"time"
)

// A member that takes requests and ends none is asked whether it lives, long
// before the first of them has run into its timeout: with a timeout of half a
// minute a black hole would else take in all the requests that the upstream may
// have in flight. Being slow is no fault: only the answer to the probe decides.
const (
	stallAfter = time.Second            // without one end
	stallPicks = 4                      // at least so many picks without an end
	stallCheck = 500 * time.Millisecond // between two looks at a pool that has so many in flight
)

// stall is what a member had ended, and been picked for, when it was last seen
// to end anything, or to pass a probe. It is guarded by pool.mu.
type stall struct {
	since time.Duration // 0: not watched
	ends  uint64
	picks uint64
}

// ended returns how many requests the instance itself has brought to an end.
// Clients that give up are no sign of life.
func (m *Member) ended() uint64 { return m.Results(Success) + m.Failures() }

// watch has Run look for stalled members, until there is nothing to see.
func (p *Pool) watch() {
	p.watching.Store(true)
	p.stir()
}

// stalls returns the members that seem to have stopped, to be probed. It is
// called under p.mu.
func (p *Pool) stalls(now time.Duration) (due []probing) {
	o := &p.settings.Load().Outlier
	for _, m := range p.order {
		if !m.serving || m.ejected.Load() || m.inFlight.Load() < stallPicks ||
			o.Disabled || o.NoProbe || o.ConsecutiveErrors == 0 {
			m.stall.since = 0
			continue
		}
		p.unwatch = now + stallCheck
		ends, picks := m.ended(), m.Picks()
		switch {
		case m.stall.since == 0:
			m.stall = stall{since: now, ends: ends, picks: picks - min(picks, uint64(max(m.inFlight.Load(), 0)))}
		case ends != m.stall.ends:
			m.stall = stall{since: now, ends: ends, picks: picks}
		case now-m.stall.since >= stallAfter && picks-m.stall.picks >= stallPicks && !m.probing && p.probing < maxProbes:
			m.probing = true
			p.probing++
			due = append(due, probing{member: m, epoch: m.epoch.Load(),
				stalled: fmt.Sprintf("%d picks without an end in %v", picks-m.stall.picks, (now - m.stall.since).Round(time.Millisecond))})
		}
	}
	if now >= p.unwatch {
		p.watching.Store(false)
		// A member may have come to its fourth while nobody looked.
		if slices.ContainsFunc(p.order, func(m *Member) bool { return m.serving && m.inFlight.Load() >= stallPicks }) {
			p.watching.Store(true)
		}
		p.unwatch = now + stallCheck
	}
	return due
}

// judge acts on what a probe of a stalled member came to. It is called under
// p.mu.
func (p *Pool) judge(d probing, err error, now time.Duration) {
	m := d.member
	if m.epoch.Load() != d.epoch || !m.serving || m.ejected.Load() || !p.has(m) {
		return
	}
	if err == nil || m.ended() != m.stall.ends {
		m.stall = stall{since: now, ends: m.ended(), picks: m.Picks()}
		return
	}
	p.out(m, now, true, d.stalled+", and "+err.Error())
}
