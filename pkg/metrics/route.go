package metrics

import (
	"maps"
	"net/http"
	"slices"
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
	if method == methodLabels[0] { // most are
		return 0
	}
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

// overflowKey is of the recorder that counts what routes beyond a family's bound
// share.
var overflowKey = routeKey{Overflow, Overflow}

// account is what is counted by a route's name alone, whatever upstream a
// reload has sent it to.
type account struct {
	name    string // Overflow, where names share it
	retries prometheus.Counter
	budget  prometheus.Counter
	local   []answered // in the order of Options.Reasons

	// Guarded by Metrics.mu.
	recorders []*Route // those that are gone too while they have requests in flight
	former    totals   // of all others
}

// totals are what is never counted down.
type totals struct{ requests, errors, limited, in, out uint64 }

// Route records the requests of one route to one upstream. What most requests
// touch, from the end of timings to the beginning of usual, is in one line of the
// processor's caches, where a gateway with many routes finds none of a route's.
type Route struct {
	timings  timings
	m        *Metrics
	inFlight atomic.Int64
	out      atomic.Uint64 // bytes
	usual    usual

	in       atomic.Uint64 // bytes
	limited  atomic.Uint64 // answers with 429
	account  *account
	key      routeKey
	gone     atomic.Bool                            // its series were deleted: make no new ones
	requests atomic.Pointer[map[requestKey]outcome] // replaced as a whole
}

// requestKey is a method and a status, by their index.
type requestKey struct {
	method uint8
	status uint16
}

// outcome is how many requests ended in a way.
type outcome struct {
	count  *atomic.Uint64
	shared bool // with other routes: the family is full
}

// usual is the first outcome that a route has, which is that of most of its
// requests, with the durations of its class; of a route whose scrapes see both.
type usual struct {
	known    atomic.Bool // the rest is in use, and key stays
	key      requestKey
	requests atomic.Uint64
	duration histogram
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
	r.account.recorders = append(r.account.recorders, r)
	return r
}

// overflowLocked returns the recorder that counts what routes beyond a
// family's bound share.
func (m *Metrics) overflowLocked() *Route {
	r := m.routes[overflowKey]
	if r == nil {
		r = &Route{m: m, key: overflowKey}
		m.routes[overflowKey] = r
	}
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
		name:    name,
		retries: m.retries.create(name),
		budget:  m.budget.create(name),
		local:   make([]answered, len(m.options.Reasons)),
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

// dropLocked forgets a recorder whose route is gone or goes elsewhere.
func (m *Metrics) dropLocked(r *Route) {
	delete(m.routes, r.key)
	r.gone.Store(true)
	if p := r.requests.Load(); p != nil {
		for _, o := range *p {
			if !o.shared {
				m.requests.free(1)
			}
		}
	}
	m.duration.drop(&r.timings, prometheus.Labels{"route": r.key.route, "upstream": r.key.upstream})
	r.account.fold()
}

// fold adds what recorders that are gone have counted to former, once their last
// request has ended.
func (a *account) fold() {
	a.recorders = slices.DeleteFunc(a.recorders, func(r *Route) bool {
		if !r.gone.Load() || r.inFlight.Load() > 0 {
			return false
		}
		a.former.add(r)
		return true
	})
}

func (t *totals) add(r *Route) {
	sum, failed := r.timings.sum()
	for _, n := range sum {
		t.requests += n
	}
	t.errors += failed
	t.limited += r.limited.Load()
	t.in += r.in.Load()
	t.out += r.out.Load()
}

func (m *Metrics) dropAccount(name string, a *account) {
	if a.name == Overflow {
		return // shared by others
	}
	labels := prometheus.Labels{"route": name}
	for _, c := range []*counters{m.retries, m.budget, m.local} {
		c.delete(labels)
	}
	m.inFlight.free(1)
}

// Begin counts a request that starts. End has to follow.
func (r *Route) Begin() { r.inFlight.Add(1) }

// End counts a request that ended.
func (r *Route) End(q Request) {
	if q.Ended.IsZero() {
		q.Ended = time.Now()
	}
	total, class, place := &r.m.total, classIndex(q.Status), requestScale.place(q.Duration)
	r.inFlight.Add(-1)
	r.timings.turn(q.Ended)
	total.turn(q.Ended)
	key := requestKey{uint8(methodIndex(q.Method)), uint16(statusIndex(q.Status))}
	if u := &r.usual; u.known.Load() && u.key == key && q.TraceID == "" {
		u.requests.Add(1)
		u.duration.count(place, q.Duration)
	} else if n, h := r.series(key, class); n != nil {
		n.Add(1)
		h.observe(requestScale, place, q.Duration, q.TraceID)
	}
	total.class(class).observe(requestScale, place, q.Duration, "")
	if q.Status == http.StatusTooManyRequests {
		r.limited.Add(1)
		r.m.limited.Add(1)
	}
	if q.BytesIn > 0 {
		r.in.Add(uint64(q.BytesIn))
	}
	if q.BytesOut > 0 {
		r.out.Add(uint64(q.BytesOut))
	}
	if q.Overhead >= 0 {
		r.m.overhead.observe(q.Overhead)
	}
	if q.Reason != "" {
		if i, ok := r.m.reasons[q.Reason]; ok {
			r.account.local[i].counter.Inc()
			r.account.local[i].count.Add(1)
		}
	}
}

// statusIndex folds statuses that HTTP does not define into one.
func statusIndex(status int) int {
	if status < 100 || status > 599 {
		return 0
	}
	return status
}

// series returns what an outcome is counted by; nil: the route is gone.
func (r *Route) series(key requestKey, class int) (*atomic.Uint64, *histogram) {
	if p := r.requests.Load(); p != nil {
		if o, h := (*p)[key], r.timings.classes[class].Load(); o.count != nil && h != nil {
			return o.count, h
		}
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if r.gone.Load() {
		return nil, nil
	}
	n, h := r.countLocked(key), r.durationLocked(class)
	if u := &r.usual; n == &u.requests && h == &u.duration && h.other == nil && !u.known.Load() {
		u.key = key
		u.known.Store(true)
	}
	return n, h
}

func (r *Route) countLocked(key requestKey) *atomic.Uint64 {
	next := map[requestKey]outcome{}
	if p := r.requests.Load(); p != nil {
		if o, ok := (*p)[key]; ok {
			return o.count
		}
		next = maps.Clone(*p)
	}
	o := outcome{count: &r.usual.requests}
	if len(next) > 0 {
		o.count = new(atomic.Uint64)
	}
	if r.key != overflowKey && !r.m.requests.room(1) {
		o = outcome{r.m.overflowLocked().countLocked(key), true}
	}
	next[key] = o
	r.requests.Store(&next)
	return o.count
}

func (r *Route) durationLocked(class int) *histogram {
	if h := r.timings.classes[class].Load(); h != nil {
		return h
	}
	h := &r.usual.duration
	if !r.timings.empty() {
		h = new(histogram)
	}
	if r.key != overflowKey && !r.m.duration.room(1) {
		h.other = &other{shared: r.m.overflowLocked().durationLocked(class)}
	} else {
		r.m.duration.show(h, r.key.route, r.key.upstream, classLabels[class])
	}
	r.timings.classes[class].Store(h)
	return h
}

// Stats returns what the route's name did, for the status page: the totals of
// all its recorders, the last minute of this one.
func (r *Route) Stats() Stats {
	st := r.timings.stats(time.Now())
	st.Limited = r.limited.Load()
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if r.account.name == Overflow { // of many names
		return st
	}
	sum := r.account.former
	for _, other := range r.account.recorders {
		if other != r {
			sum.add(other)
		}
	}
	st.Requests, st.Errors, st.Limited = st.Requests+sum.requests, st.Errors+sum.errors, st.Limited+sum.limited
	return st
}
