package metrics

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// failureLabels are why a try brought no valid answer; the last stands for
// what is none of them.
var failureLabels = [...]string{"refused", "dial_timeout", "ttfb_timeout", "reset", "tls", "canceled", "protocol", Other}

// attemptLabels say which try of a request one was. Hedged tries come with
// hedging.
var attemptLabels = [...]string{"first", "retry"}

// breakerStates are the states of a breaker.
var breakerStates = [...]string{"closed", "open", "half_open"}

// Attempt is one try of one instance, for Metrics.Attempt.
type Attempt struct {
	Upstream string
	Route    string
	Number   int           // 0 is the first
	Status   int           // 0 where no answer came
	Failure  string        // refused, dial_timeout, ttfb_timeout, reset, tls, canceled, protocol; empty: none
	Ended    time.Time     // when the header or the failure came; zero: now
	Duration time.Duration // until the header or the failure
	Retried  bool          // another try follows
	Budget   bool          // another try would follow, had the retry budget not been used up
	Broken   bool          // a try that was counted before has broken off after its header
}

// Attempt counts one try under its upstream and, where another follows or
// would have, under its route.
func (m *Metrics) Attempt(a Attempt) {
	m.Upstream(a.Upstream).attempt(a)
	if !a.Retried && !a.Budget {
		return
	}
	m.mu.Lock()
	route := m.accounts[orNone(a.Route)]
	m.mu.Unlock()
	if route == nil {
		return // the route went with a reload
	}
	if a.Retried {
		route.retries.Inc()
	}
	if a.Budget {
		route.budget.Inc()
	}
}

// Upstream records the tries of one upstream's instances.
type Upstream struct {
	m           *Metrics
	name        string // its label value
	gone        atomic.Bool
	requests    [len(classLabels)][len(attemptLabels)]atomic.Pointer[prometheus.Counter]
	duration    [len(classLabels)]atomic.Pointer[prometheus.Observer]
	failures    [len(failureLabels)]prometheus.Counter
	transitions [len(breakerStates)]prometheus.Counter
	window      window
}

// Upstream returns the recorder of the upstream name. The same name gives the
// same recorder.
func (m *Metrics) Upstream(name string) *Upstream {
	if u, ok := m.upstreams.get(name); ok {
		return u
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.upstreamLocked(orNone(name))
}

func (m *Metrics) upstreamLocked(name string) *Upstream {
	if u, ok := m.upstreams.get(name); ok {
		return u
	}
	if name != Overflow && !m.upErrors.room(len(failureLabels)) {
		u := m.upstreamLocked(Overflow)
		m.upstreams.put(name, u)
		return u
	}
	u := &Upstream{m: m, name: name}
	for i, reason := range failureLabels {
		u.failures[i] = m.upErrors.create(name, reason)
	}
	for i, state := range breakerStates {
		u.transitions[i] = m.transitions.create(name, state)
	}
	m.upstreams.put(name, u)
	return u
}

func (m *Metrics) dropUpstream(name string, u *Upstream) {
	if u.name == Overflow {
		return // shared by others
	}
	u.gone.Store(true)
	labels := prometheus.Labels{"upstream": name}
	for _, c := range []*counters{m.upRequests, m.upErrors, m.transitions} {
		c.delete(labels)
	}
	m.upDuration.delete(labels)
}

func (u *Upstream) attempt(a Attempt) {
	class := classIndex(a.Status)
	if a.Failure != "" {
		u.failures[failureIndex(a.Failure)].Inc()
	}
	if a.Broken {
		return
	}
	if c := u.counter(class, min(a.Number, len(attemptLabels)-1)); c != nil {
		c.Inc()
	}
	if h := u.histogram(class); h != nil {
		h.Observe(a.Duration.Seconds())
	}
	if a.Ended.IsZero() {
		a.Ended = time.Now()
	}
	u.window.add(a.Ended, a.Duration, a.Status)
}

func failureIndex(reason string) int {
	for i, f := range failureLabels[:len(failureLabels)-1] {
		if f == reason {
			return i
		}
	}
	return len(failureLabels) - 1
}

func (u *Upstream) counter(class, attempt int) prometheus.Counter {
	p := &u.requests[class][attempt]
	if c := p.Load(); c != nil {
		return *c
	}
	u.m.mu.Lock()
	defer u.m.mu.Unlock()
	if c := p.Load(); c != nil {
		return *c
	}
	if u.gone.Load() {
		return nil
	}
	name := u.name
	if !u.m.upRequests.room(1) {
		name = Overflow
	}
	c := u.m.upRequests.create(name, classLabels[class], attemptLabels[attempt])
	p.Store(&c)
	return c
}

func (u *Upstream) histogram(class int) prometheus.Observer {
	p := &u.duration[class]
	if h := p.Load(); h != nil {
		return *h
	}
	u.m.mu.Lock()
	defer u.m.mu.Unlock()
	if h := p.Load(); h != nil {
		return *h
	}
	if u.gone.Load() {
		return nil
	}
	name := u.name
	if !u.m.upDuration.room(1) {
		name = Overflow
	}
	h := u.m.upDuration.create(name, classLabels[class])
	p.Store(&h)
	return h
}

// BreakerTransition counts that the upstream's breaker changed to a state:
// closed, open or half_open. Other words are not counted.
func (u *Upstream) BreakerTransition(to string) {
	for i, s := range breakerStates {
		if s == to {
			u.transitions[i].Inc()
		}
	}
}

// Stats returns what the upstream's tries did, for the status page.
func (u *Upstream) Stats() Stats { return u.window.stats(time.Now()) }
