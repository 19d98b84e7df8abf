package balancer

import (
	"time"

	"github.com/proconsul/proconsul/discovery"
)

// EventKind says what happened. Its values are words for logs and pages.
type EventKind string

// The kinds of events. Those of the pool as a whole have no Instance.
const (
	EventJoined        EventKind = "joined"         // an instance was registered
	EventLeft          EventKind = "left"           // an instance was deregistered
	EventStatusChanged EventKind = "status_changed" // Consul gave it another status
	EventEjected       EventKind = "ejected"        // our own traffic, or an operator, took it out
	EventAside         EventKind = "set_aside"      // it seems dead, but no more may be ejected
	EventProbeFailed   EventKind = "probe_failed"   // it stays ejected, or aside
	EventRestored      EventKind = "restored"       // it is no longer ejected, or aside
	EventDisproved     EventKind = "disproved"      // it served against Consul's word and failed
	EventDrained       EventKind = "drained"        // an operator took it out
	EventUndrained     EventKind = "undrained"      // an operator let it in again
	EventGuardOn       EventKind = "guard_on"       // an update that took most of the pool is held
	EventGuardOff      EventKind = "guard_off"      // nothing is held any more
	EventPanicOn       EventKind = "panic_on"       // too few are left: distrusted members serve
	EventPanicOff      EventKind = "panic_off"      // trusted members serve alone again
)

// Event is one change in a pool.
type Event struct {
	Pool     string
	Kind     EventKind
	At       time.Time
	Instance discovery.Instance // zero for an event of the whole pool
	From, To discovery.Status   // of a status change
	Reason   string             // why, for a human; may be empty
	Until    time.Time          // end of the ejection or hold; else zero
}

// tell queues an event for flush. It is called under p.mu.
func (p *Pool) tell(e Event) {
	e.Pool, e.At = p.name, time.Now()
	p.events = append(p.events, e)
}

// unlock releases p.mu and delivers what was queued under it. One goroutine
// delivers at a time, so that events arrive in order although no lock is held.
func (p *Pool) unlock() {
	if p.delivering {
		p.mu.Unlock()
		return
	}
	p.delivering = true
	for len(p.events) > 0 {
		batch, hook := p.events, p.settings.Load().OnEvent
		p.events = nil
		if hook == nil {
			continue
		}
		p.mu.Unlock()
		for _, e := range batch {
			hook(e)
		}
		p.mu.Lock()
	}
	p.delivering = false
	p.mu.Unlock()
}
