package balancer

import "time"

// A ramp rises linearly in rampSteps steps, from rampFloor of them: below that
// an instance would see too little to get warm.
const (
	rampSteps = 20
	rampFloor = 2
)

// rampTick is the shortest time between two steps that rebuild the picker.
const rampTick = 50 * time.Millisecond

// startRamp lets m, which is usable from now on, in slowly, if somebody else is
// warm: in a pool that is new as a whole nobody could carry the others' share.
// It is called under p.mu.
func (p *Pool) startRamp(m *Member, now time.Duration) {
	m.usableSince = now
	m.seasoned = false
	m.ramping = false
	d := p.settings.Load().SlowStart
	if d <= 0 {
		return
	}
	for _, other := range p.order {
		if other != m && other.usable && !other.ejected.Load() && !other.drained && other.warm(now, d) {
			m.ramping, m.rampFrom, m.rampStep = true, now, rampFloor
			return
		}
	}
}

// warm reports whether m has been usable for long enough. Instances of the
// first snapshot were there before the gateway.
func (m *Member) warm(now, d time.Duration) bool {
	return m.seasoned || now-m.usableSince >= d
}

// climb brings m's ramp up to now and returns when its next step is due, 0 for
// a member that does not ramp. Steps are never taken back, whatever Configure
// does to the duration. It is called under p.mu.
func (m *Member) climb(now, d time.Duration) time.Duration {
	if !m.ramping {
		return 0
	}
	if d > 0 {
		m.rampStep = max(m.rampStep, min(rampSteps, int((now-m.rampFrom)*rampSteps/d)))
	}
	if d <= 0 || m.rampStep == rampSteps {
		m.ramping = false
		return 0
	}
	return max(m.rampFrom+d*time.Duration(m.rampStep+1)/rampSteps, now+rampTick)
}
