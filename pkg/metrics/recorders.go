package metrics

import (
	"maps"
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// recorders gives a scrape what routes and upstreams have recorded. Their
// memory is laid out for requests rather than for scrapes: client_golang's
// series are objects of their own, and a request would find some fifteen of
// them outside the processor's caches.
type recorders struct{ m *Metrics }

// Describe implements prometheus.Collector.
func (c recorders) Describe(ch chan<- *prometheus.Desc) {
	m := c.m
	for _, f := range []*recorded{m.requests, m.inFlight, m.requestBytes, m.responseBytes, m.upRequests} {
		ch <- f.desc
	}
	for _, f := range []*durations{m.duration, m.upDuration, &m.overhead.durations} {
		if f.native == nil {
			ch <- f.desc
		}
	}
}

// Collect implements prometheus.Collector.
func (c recorders) Collect(ch chan<- prometheus.Metric) {
	m := c.m
	m.mu.Lock()
	routes, accounts := slices.Collect(maps.Values(m.routes)), map[string]load{}
	for _, a := range m.accounts { // those that names share, once
		if _, known := accounts[a.name]; !known {
			accounts[a.name] = a.load()
		}
	}
	upstreams := map[*Upstream]bool{}
	if p := m.upstreams.p.Load(); p != nil {
		for _, u := range *p {
			upstreams[u] = true
		}
	}
	m.mu.Unlock()

	for name, sum := range accounts {
		m.inFlight.collect(ch, prometheus.GaugeValue, float64(sum.inFlight), name)
		m.requestBytes.collect(ch, prometheus.CounterValue, float64(sum.in), name)
		m.responseBytes.collect(ch, prometheus.CounterValue, float64(sum.out), name)
	}
	for _, r := range routes {
		if p := r.requests.Load(); p != nil {
			for key, o := range *p {
				if !o.shared {
					m.requests.collect(ch, prometheus.CounterValue, float64(o.count.Load()), r.key.route, r.key.upstream, methodLabels[key.method], codeLabel(int(key.status)))
				}
			}
		}
		for class := range classLabels {
			m.duration.collect(ch, r.timings.classes[class].Load(), r.key.route, r.key.upstream, classLabels[class])
		}
	}
	for u := range upstreams {
		for class := range u.tries {
			for attempt := range u.tries[class] {
				if t := &u.tries[class][attempt]; t.shown() {
					m.upRequests.collect(ch, prometheus.CounterValue, float64(t.own.Load()), u.name, classLabels[class], attemptLabels[attempt])
				}
			}
			m.upDuration.collect(ch, u.timings.classes[class].Load(), u.name, classLabels[class])
		}
	}
	m.overhead.collect(ch, &m.overhead.histogram)
}

// load is what an account's recorders have together.
type load struct {
	totals
	inFlight int64
}

func (a *account) load() load {
	a.fold()
	sum := load{totals: a.former}
	for _, r := range a.recorders {
		sum.in += r.in.Load()
		sum.out += r.out.Load()
		sum.inFlight += r.inFlight.Load()
	}
	return sum
}

func (f *recorded) collect(ch chan<- prometheus.Metric, kind prometheus.ValueType, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(f.desc, kind, v, labels...)
}

// collect shows h, unless there is none or scrapes see another in its place.
func (d *durations) collect(ch chan<- prometheus.Metric, h *histogram, labels ...string) {
	if h != nil && h.other == nil {
		ch <- h.metric(d.scale, d.desc, labels...)
	}
}

func codeLabel(status int) string {
	if status == 0 {
		return Other
	}
	return strconv.Itoa(status)
}
