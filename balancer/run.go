package balancer

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	probeTimeout = 2 * time.Second

	// maxProbes is how many probes of one pool run at a time.
	maxProbes = 16

	// idle is how long Run sleeps where nothing is due; any change wakes it.
	idle = time.Hour
)

// Run does what time brings, until ctx ends: it probes ejected members whose
// time is up and lets in who passes, takes the steps of slow start, and ends
// holds and panics. It returns nil when ctx has ended and its probes have, and
// an error at once where it runs already.
func (p *Pool) Run(ctx context.Context) error {
	if !p.running.CompareAndSwap(false, true) {
		return fmt.Errorf("pool %s: already running", p.name)
	}
	defer p.running.Store(false)
	var probes sync.WaitGroup
	defer probes.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		due, wait := p.advance()
		for _, d := range due {
			probes.Go(func() { p.probe(ctx, d) })
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-p.wake:
		}
	}
}

// probing is a member to be probed, as it was when that was decided.
type probing struct {
	member  *Member
	epoch   uint32
	stalled string // why, of a member that is in; empty: it is out
}

// advance brings the pool up to now. It returns whom to probe and how long
// nothing else is due.
func (p *Pool) advance() (due []probing, wait time.Duration) {
	p.mu.Lock()
	defer p.unlock()
	now := p.now()
	if p.due > 0 && p.due <= now {
		p.rebuild(now)
	}
	if p.ejected+p.aside > 0 && !p.settings.Load().Outlier.NoProbe {
		for _, m := range p.order {
			out := m.State() == StateEjected || m.State() == StateAside
			if p.probing < maxProbes && out && !m.probing && m.ejectedUntil <= now {
				m.probing = true
				p.probing++
				due = append(due, probing{member: m, epoch: m.epoch.Load()})
			}
		}
	}
	wait = idle
	if p.watching.Load() {
		due, wait = append(due, p.stalls(now)...), stallCheck
	}
	if p.due > 0 {
		wait = min(wait, max(p.due-now, time.Millisecond))
	}
	return due, wait
}

// probe asks a member whether it answers, and acts on what it says.
func (p *Pool) probe(ctx context.Context, d probing) {
	m := d.member
	asking, cancel := context.WithTimeout(ctx, probeTimeout)
	err := p.settings.Load().Probe(asking, m.Instance())
	cancel()

	p.mu.Lock()
	defer p.unlock()
	p.probing--
	if m.epoch.Load() == d.epoch {
		m.probing = false
	}
	now := p.now()
	switch {
	case ctx.Err() != nil: // Run ends; the answer is that of its end
	case d.stalled != "":
		p.judge(d, err, now)
	case m.epoch.Load() != d.epoch || !m.ejected.Load() && !m.aside.Load() || !p.has(m):
		// Restored, registered anew or gone meanwhile.
	case err == nil:
		p.letIn(m, now, "its probe passed")
	case m.aside.Load():
		m.ejectedUntil = now + asideFor
	default:
		o := p.settings.Load().Outlier
		m.ejections++
		m.ejectedUntil = now + o.ejectionTime(m.ejections)
		p.tell(Event{Kind: EventProbeFailed, Instance: m.Instance(), Reason: err.Error(), Until: p.clock(m.ejectedUntil)})
	}
	p.rebuild(now)
}
