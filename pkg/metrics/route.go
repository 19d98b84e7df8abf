package metrics

import (
	"maps"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// methodLabels are the methods of RFC 9110 and PATCH, as OpenTelemetry's HTTP
// conventions have it; the last stands for all others.
var methodLabels = [...]string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
	http.MethodOptions, http.MethodConnect, http.MethodTrace, Other,
}

func methodIndex(method string) int {
	for i, m := range methodLabels[:len(methodLabels)-1] {
		if m == method {
			return i
		}
	}
	return len(methodLabels) - 1
}

// classLabels are indexed by the first digit of a status. Index 0 is a try
// without an answer, the last a status outside 100 to 599.
var classLabels = [...]string{"error", "1xx", "2xx", "3xx", "4xx", "5xx", Other}

func classIndex(status int) int {
	switch {
	case status == 0:
		return 0
	case status >= 100 && status <= 599:
		return status / 100
	}
	return len(classLabels) - 1
}

type routeKey struct{ route, upstream string }

func newRouteKey(route, upstream string) routeKey { return routeKey{orNone(route), orNone(upstream)} }

// account is what is counted by a route's name alone. It is shared by the
// handles of a route that a reload sent to another upstream.
type account struct {
	name     string // Overflow, where names share it
	inFlight prometheus.Gauge
	in, out  prometheus.Counter
	retries  prometheus.Counter
	budget   prometheus.Counter
	local    []answered // in the order of Options.Reasons
	window   window
}

// Route records the requests of one route to one upstream.
type Route struct {
	m        *Metrics
	key      routeKey
	account  *account
	usual    usual                                             // most of its requests
	gone     atomic.Bool                                       // its series were deleted: make no new ones
	requests atomic.Pointer[map[requestKey]prometheus.Counter] // replaced as a whole
	duration [len(classLabels)]atomic.Pointer[prometheus.Observer]
}

type requestKey struct{ method, status int }

// usual is an outcome with its series: the first that a route has, which is
// that of most of its requests. They find there what they need in one place,
// where a gateway with many routes has none of a route's in the processor's
// cache.
type usual struct {
	known   atomic.Bool // the rest is set, and stays
	key     requestKey
	counter prometheus.Counter
	taken   prometheus.Observer
}

// Request is one finished request, for Route.End.
type Request struct {
	Method   string
	Status   int       // as the client saw it; 499 where it left before
	Ended    time.Time // zero: now
	Duration time.Duration
	BytesIn  int64
	BytesOut int64
	Reason   string // of an answer that the gateway made itself; empty: an instance's answer

	// TraceID is that of a trace whose spans are kept, for the exemplar; empty:
	// none.
	TraceID string

	// Overhead is what the gateway itself cost. Negative: not known.
	Overhead time.Duration
}

// Route returns the recorder for requests of the route name that go to
// upstream. Either may be empty: requests that match no route, and routes that
// go to no upstream. The same names give the same recorder, so that a reload
// keeps what is counted. It takes a lock: keep
// it, do not ask for each request.
func (m *Metrics) Route(name, upstream string) *Route {
	key := newRouteKey(name, upstream)
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.routes[key]; r != nil {
		return r
	}
	r := &Route{m: m, key: key, account: m.accountLocked(key.route)}
	m.routes[key] = r
	return r
}

// accountLocked returns the account of a route's name, or the one that all
// names after the bound share.
func (m *Metrics) accountLocked(name string) *account {
	if a := m.accounts[name]; a != nil {
		return a
	}
	if name != Overflow && !m.inFlight.room(1) {
		a := m.accountLocked(Overflow)
		m.accounts[name] = a
		return a
	}
	a := &account{
		name:     name,
		inFlight: m.inFlight.create(name),
		in:       m.requestBytes.create(name),
		out:      m.responseBytes.create(name),
		retries:  m.retries.create(name),
		budget:   m.budget.create(name),
		local:    make([]answered, len(m.options.Reasons)),
	}
	label := name
	if !m.local.room(len(m.options.Reasons)) {
		label = Overflow
	}
	for i, reason := range m.options.Reasons {
		a.local[i].counter = m.local.create(label, reason)
	}
	m.accounts[name] = a
	return a
}

func (m *Metrics) dropRoute(key routeKey, r *Route) {
	r.gone.Store(true)
	labels := prometheus.Labels{"route": key.route, "upstream": key.upstream}
	m.requests.delete(labels)
	m.duration.delete(labels)
}

func (m *Metrics) dropAccount(name string) {
	labels := prometheus.Labels{"route": name}
	for _, c := range []*counters{m.requestBytes, m.responseBytes, m.retries, m.budget, m.local} {
		c.delete(labels)
	}
	m.inFlight.delete(labels)
}

// Begin counts a request that starts. End has to follow.
func (r *Route) Begin() { r.account.inFlight.Inc() }

// End counts a request that ended.
func (r *Route) End(q Request) {
	a := r.account
	a.inFlight.Dec()
	if c, h := r.series(requestKey{methodIndex(q.Method), statusIndex(q.Status)}, classIndex(q.Status)); c != nil && h != nil {
		c.Inc()
		observe(h, q.Duration.Seconds(), q.TraceID)
	}
	if q.BytesIn > 0 {
		a.in.Add(float64(q.BytesIn))
	}
	if q.BytesOut > 0 {
		a.out.Add(float64(q.BytesOut))
	}
	if q.Overhead >= 0 {
		r.m.overhead.Observe(q.Overhead.Seconds())
	}
	if q.Reason != "" {
		if i, ok := r.m.reasons[q.Reason]; ok {
			a.local[i].counter.Inc()
			a.local[i].count.Add(1)
		}
	}
	if q.Ended.IsZero() {
		q.Ended = time.Now()
	}
	a.window.add(q.Ended, q.Duration, q.Status)
	r.m.total.add(q.Ended, q.Duration, q.Status)
}

// observe records a value, with the trace that it is an example of.
func observe(h prometheus.Observer, v float64, trace string) {
	if e, ok := h.(prometheus.ExemplarObserver); ok && trace != "" {
		e.ObserveWithExemplar(v, prometheus.Labels{"trace_id": trace})
		return
	}
	h.Observe(v)
}

// statusIndex folds statuses that HTTP does not define into one.
func statusIndex(status int) int {
	if status < 100 || status > 599 {
		return 0
	}
	return status
}

// series returns those of an outcome; nil: they were deleted.
func (r *Route) series(key requestKey, class int) (prometheus.Counter, prometheus.Observer) {
	if u := &r.usual; u.known.Load() && u.key == key {
		return u.counter, u.taken
	}
	c, h := r.counter(key), r.histogram(class)
	if c != nil && h != nil && !r.usual.known.Load() {
		r.m.mu.Lock()
		defer r.m.mu.Unlock()
		if u := &r.usual; !u.known.Load() {
			u.key, u.counter, u.taken = key, c, h
			u.known.Store(true)
		}
	}
	return c, h
}

func (r *Route) counter(key requestKey) prometheus.Counter {
	if p := r.requests.Load(); p != nil {
		if c, ok := (*p)[key]; ok {
			return c
		}
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	next := map[requestKey]prometheus.Counter{}
	if p := r.requests.Load(); p != nil {
		if c, ok := (*p)[key]; ok {
			return c
		}
		next = maps.Clone(*p)
	}
	if r.gone.Load() {
		return nil
	}
	code := Other
	if key.status != 0 {
		code = strconv.Itoa(key.status)
	}
	labels := r.key
	if !r.m.requests.room(1) {
		labels = routeKey{Overflow, Overflow}
	}
	next[key] = r.m.requests.create(labels.route, labels.upstream, methodLabels[key.method], code)
	r.requests.Store(&next)
	return next[key]
}

func (r *Route) histogram(class int) prometheus.Observer {
	if h := r.duration[class].Load(); h != nil {
		return *h
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if h := r.duration[class].Load(); h != nil {
		return *h
	}
	if r.gone.Load() {
		return nil
	}
	labels := r.key
	if !r.m.duration.room(1) {
		labels = routeKey{Overflow, Overflow}
	}
	h := r.m.duration.create(labels.route, labels.upstream, classLabels[class])
	r.duration[class].Store(&h)
	return h
}
