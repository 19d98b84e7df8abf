package metrics

import (
	"maps"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// counters, gauges and histograms are families with labels; all but gauges,
// whose labels are the gateway's own, with a bound on their label sets. Creation
// and deletion are called under Metrics.mu or before Metrics is shared. recorded
// and durations are families that recorders count themselves and a scrape asks
// them for (recorders.go).
type (
	counters struct {
		bound
		vec *prometheus.CounterVec
	}
	gauges struct {
		vec *prometheus.GaugeVec
	}
	histograms struct {
		bound
		vec *prometheus.HistogramVec
	}
	recorded struct {
		bound
		desc *prometheus.Desc
	}
	durations struct {
		bound
		scale  *scale
		desc   *prometheus.Desc
		native *prometheus.HistogramVec // what scrapes see instead; nil: they see what was recorded
	}
)

// bound counts the label sets of a family.
type bound struct{ sets, max int }

// room reports whether n more label sets fit, and takes their place.
func (b *bound) room(n int) bool {
	if b.sets+n > b.max {
		return false
	}
	b.sets += n
	return true
}

// free gives the places of n label sets back.
func (b *bound) free(n int) { b.sets = max(0, b.sets-n) }

func (c *counters) create(labels ...string) prometheus.Counter {
	return c.vec.WithLabelValues(labels...)
}
func (c *counters) delete(labels prometheus.Labels) {
	c.free(c.vec.DeletePartialMatch(labels))
}

func (g *gauges) create(labels ...string) prometheus.Gauge { return g.vec.WithLabelValues(labels...) }
func (h *histograms) create(labels ...string) prometheus.Observer {
	return h.vec.WithLabelValues(labels...)
}

// single is a family of one histogram.
type single struct {
	durations
	histogram
}

func (m *Metrics) single(name, help string, s *scale) *single {
	one := &single{durations: *m.durations(name, help, s)}
	one.show(&one.histogram)
	return one
}

func (s *single) observe(d time.Duration) { s.histogram.observe(s.scale, s.scale.place(d), d, "") }

// show makes h the series with these labels.
func (d *durations) show(h *histogram, labels ...string) {
	if d.native != nil {
		h.other = &other{native: d.native.WithLabelValues(labels...)}
	}
}

// drop gives the places of what was shown of t back.
func (d *durations) drop(t *timings, labels prometheus.Labels) {
	for class := range t.classes {
		if h := t.classes[class].Load(); h != nil && !h.spills() {
			d.free(1)
		}
	}
	if d.native != nil {
		d.native.DeletePartialMatch(labels)
	}
}

func (m *Metrics) describe(kind, name, help string, labels []string) {
	m.families = append(m.families, Family{Name: name, Type: kind, Help: help, Labels: labels})
}

func (m *Metrics) counters(name, help string, labels ...string) *counters {
	m.describe("counter", name, help, labels)
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(v)
	return &counters{bound{max: m.options.MaxSeries}, v}
}

func (m *Metrics) gauges(name, help string, labels ...string) *gauges {
	m.describe("gauge", name, help, labels)
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(v)
	return &gauges{v}
}

func (m *Metrics) gauge(name, help string) prometheus.Gauge {
	m.describe("gauge", name, help, nil)
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	m.registry.MustRegister(g)
	return g
}

func (m *Metrics) histograms(name, help string, buckets []float64, labels ...string) *histograms {
	m.describe("histogram", name, help, labels)
	v := prometheus.NewHistogramVec(m.histogramOpts(name, help, buckets), labels)
	m.registry.MustRegister(v)
	return &histograms{bound{max: max(1, m.options.MaxSeries/4)}, v}
}

func (m *Metrics) histogram(name, help string, buckets []float64) prometheus.Histogram {
	m.describe("histogram", name, help, nil)
	h := prometheus.NewHistogram(m.histogramOpts(name, help, buckets))
	m.registry.MustRegister(h)
	return h
}

func (m *Metrics) recorded(kind, name, help string, labels ...string) *recorded {
	m.describe(kind, name, help, labels)
	return &recorded{bound{max: m.options.MaxSeries}, prometheus.NewDesc(name, help, labels, nil)}
}

func (m *Metrics) durations(name, help string, s *scale, labels ...string) *durations {
	m.describe("histogram", name, help, labels)
	d := &durations{bound: bound{max: max(1, m.options.MaxSeries/4)}, scale: s, desc: prometheus.NewDesc(name, help, labels, nil)}
	if m.options.NativeHistograms {
		d.native = prometheus.NewHistogramVec(m.histogramOpts(name, help, s.bounds), labels)
		m.registry.MustRegister(d.native)
	}
	return d
}

func (m *Metrics) histogramOpts(name, help string, buckets []float64) prometheus.HistogramOpts {
	o := prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}
	if m.options.NativeHistograms {
		o.NativeHistogramBucketFactor = 1.1
		o.NativeHistogramMaxBucketNumber = 100
		o.NativeHistogramMinResetDuration = time.Hour
	}
	return o
}

// lookup is a map by name that is read without a lock and replaced as a whole
// on a change. Changes are made under Metrics.mu.
type lookup[V any] struct{ p atomic.Pointer[map[string]V] }

func (l *lookup[V]) get(name string) (V, bool) {
	if p := l.p.Load(); p != nil {
		v, ok := (*p)[name]
		return v, ok
	}
	var zero V
	return zero, false
}

func (l *lookup[V]) put(name string, v V) {
	next := map[string]V{}
	if p := l.p.Load(); p != nil {
		next = maps.Clone(*p)
	}
	next[name] = v
	l.p.Store(&next)
}

func (l *lookup[V]) deleteExcept(keep map[string]bool, drop func(string, V)) {
	p := l.p.Load()
	if p == nil {
		return
	}
	next := maps.Clone(*p)
	maps.DeleteFunc(next, func(name string, _ V) bool { return !keep[name] })
	l.p.Store(&next)
	for name, v := range *p {
		if !keep[name] {
			drop(name, v)
		}
	}
}

// valid makes a label value of text that may be anything: client_golang
// refuses a whole scrape for one value that is not UTF-8.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// orNone is the label value of a name that may be missing.
func orNone(s string) string {
	if s == "" {
		return None
	}
	return valid(s)
}
