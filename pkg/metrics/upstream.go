package metrics

import (
	"net/http"
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
	tries       [len(classLabels)][len(attemptLabels)]tries
	timings     timings
	limited     atomic.Uint64 // answers with 429
	failures    [len(failureLabels)]prometheus.Counter
	transitions [len(breakerStates)]prometheus.Counter
}

// tries count those of a class and number.
type tries struct {
	count atomic.Pointer[atomic.Uint64] // own, or what upstreams beyond the family's bound share; nil: there were none
	own   atomic.Uint64
}

// shown reports whether scrapes see own.
func (t *tries) shown() bool { return t.count.Load() == &t.own }

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
	for class := range u.tries {
		for attempt := range u.tries[class] {
			if u.tries[class][attempt].shown() {
				m.upRequests.free(1)
			}
		}
	}
	labels := prometheus.Labels{"upstream": name}
	m.upDuration.drop(&u.timings, labels)
	m.upErrors.delete(labels)
	m.transitions.delete(labels)
}

func (u *Upstream) attempt(a Attempt) {
	class := classIndex(a.Status)
	if a.Failure != "" {
		u.failures[failureIndex(a.Failure)].Inc()
	}
	if a.Broken {
		return
	}
	if a.Ended.IsZero() {
		a.Ended = time.Now()
	}
	n, h := u.series(class, min(a.Number, len(attemptLabels)-1))
	if n == nil {
		return
	}
	u.timings.turn(a.Ended)
	n.Add(1)
	h.observe(requestScale, requestScale.place(a.Duration), a.Duration, "")
	if a.Status == http.StatusTooManyRequests {
		u.limited.Add(1)
	}
}

func failureIndex(reason string) int {
	for i, f := range failureLabels[:len(failureLabels)-1] {
		if f == reason {
			return i
		}
	}
	return len(failureLabels) - 1
}

// series returns what a try is counted by; nil: the upstream is gone.
func (u *Upstream) series(class, attempt int) (*atomic.Uint64, *histogram) {
	if n, h := u.tries[class][attempt].count.Load(), u.timings.classes[class].Load(); n != nil && h != nil {
		return n, h
	}
	u.m.mu.Lock()
	defer u.m.mu.Unlock()
	if u.gone.Load() {
		return nil, nil
	}
	return u.countLocked(class, attempt), u.durationLocked(class)
}

func (u *Upstream) countLocked(class, attempt int) *atomic.Uint64 {
	t := &u.tries[class][attempt]
	if n := t.count.Load(); n != nil {
		return n
	}
	n := &t.own
	if u.name != Overflow && !u.m.upRequests.room(1) {
		n = u.m.upstreamLocked(Overflow).countLocked(class, attempt)
	}
	t.count.Store(n)
	return n
}

func (u *Upstream) durationLocked(class int) *histogram {
	if h := u.timings.classes[class].Load(); h != nil {
		return h
	}
	h := new(histogram)
	if u.name != Overflow && !u.m.upDuration.room(1) {
		h.other = &other{shared: u.m.upstreamLocked(Overflow).durationLocked(class)}
	} else {
		u.m.upDuration.show(h, u.name, classLabels[class])
	}
	u.timings.classes[class].Store(h)
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
func (u *Upstream) Stats() Stats {
	st := u.timings.stats(time.Now())
	st.Limited = u.limited.Load()
	return st
}
