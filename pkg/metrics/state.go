package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// State is what is read at the time of a scrape rather than counted. Its
// series exist only as long as State names them: an instance's end with its
// registration.
type State struct {
	Upstreams []UpstreamState
	Routes    []RouteCount
	Consul    *ConsulState // nil: Consul is not used
	Redis     *RedisState  // nil: Redis is not used
	Limiter   *LimiterState
	Draining  bool
	Spans     *SpanCounts // nil: no tracing
	Lines     *LineCounts // nil: no access log

	Certificates []CertificateState // that listeners show

	Consumers         []ConsumerCount
	RejectedConsumers int // keys of Consul's that are not taken over
}

// ConsumerCount is how many consumers come from a source (file, kv).
type ConsumerCount struct {
	Source string
	Count  int
}

// CertificateState is a certificate's end.
type CertificateState struct {
	Subject  string
	NotAfter time.Time
}

// SpanCounts are spans by what became of them.
type SpanCounts struct{ Exported, Dropped, Failed uint64 }

// LineCounts are lines of the access log by what became of them.
type LineCounts struct{ Dropped uint64 }

// UpstreamState is one upstream.
type UpstreamState struct {
	Name      string
	Instances []InstanceState
	Breaker   string // closed, open or half_open; empty: it has none

	Concurrency *ConcurrencyState // nil: not adaptive
}

// ConcurrencyState is an upstream's adaptive limit.
type ConcurrencyState struct {
	Limit, InFlight int
	Shed            map[string]int64 // requests that were turned away, by class
}

// InstanceState is one instance of an upstream.
type InstanceState struct {
	ID       string
	State    string // passing, warning, critical, maintenance, ejected or draining; others count as critical
	InFlight int64
	Weight   float64 // that it has now, after slow start; 0 where it is given nothing
}

// RouteCount is how many routes come from a source (file, kv, tag).
type RouteCount struct {
	Source string
	Count  int
}

// ConsulState is what is known of Consul.
type ConsulState struct {
	Up          bool
	LastContact time.Time // of the last answer; zero: there was none yet
	Stale       int       // catalog queries served from their last good answer
}

// RedisState is what is known of Redis.
type RedisState struct{ Up bool }

// LimiterState is what is known of the rate limiter.
type LimiterState struct {
	Calls   int64 // script calls to the store
	Keys    int   // identities that are remembered
	Waiting int64 // requests that wait for their turn
}

// SetState names the function that a scrape reads the gateway's state from. It
// is called by one scrape at a time and has to return at once.
func (m *Metrics) SetState(read func() State) { m.state.Store(&read) }

// instanceStates are the states that an instance is counted under. Each exists
// for each upstream, because an alert on zero needs it to.
var instanceStates = [...]string{"passing", "warning", "critical", "maintenance", "ejected", "draining"}

const countedAsCritical = 2

func stateIndex(state string) int {
	for i, s := range instanceStates {
		if s == state {
			return i
		}
	}
	return countedAsCritical
}

// stateCollector turns a State into series.
type stateCollector struct {
	m *Metrics

	instances, instInFlight, instWeight, instEjected *prometheus.Desc
	concLimit, concInFlight, concShed                *prometheus.Desc
	breaker, consulUp, lastContact, stale, redisUp   *prometheus.Desc
	routes, draining, spans, linesDropped, certEnd   *prometheus.Desc
	limitCalls, limitKeys, limitWaiting              *prometheus.Desc
	consumers, consumersBad                          *prometheus.Desc
}

func newStateCollector(m *Metrics) *stateCollector {
	typed := func(kind, name, help string, labels ...string) *prometheus.Desc {
		m.describe(kind, name, help, labels)
		return prometheus.NewDesc(name, help, labels, nil)
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return typed("gauge", name, help, labels...)
	}
	return &stateCollector{
		limitCalls:   typed("counter", "proconsul_ratelimit_store_calls_total", "Calls of the limiter's script in Redis: by decisions, what leases save."),
		limitKeys:    desc("proconsul_ratelimit_keys", "Identities that the rate limiter remembers."),
		limitWaiting: desc("proconsul_ratelimit_waiting", "Requests that wait for their turn under a limit that delays."),

		m:            m,
		instances:    desc("proconsul_instances", "Registered instances by the state that decides whether they are picked.", "upstream", "state"),
		instInFlight: desc("proconsul_instance_in_flight", "Requests that an instance is serving for this replica.", "upstream", "instance_id"),
		instWeight:   desc("proconsul_instance_weight", "The weight that an instance has now, after slow start.", "upstream", "instance_id"),
		instEjected:  desc("proconsul_instance_ejected", "1 while an instance is ejected for its failures.", "upstream", "instance_id"),
		breaker:      desc("proconsul_breaker_state", "1 for the state that the upstream's breaker is in.", "upstream", "state"),
		concLimit:    desc("proconsul_concurrency_limit", "Requests that an adaptive limit lets wait for an answer at once.", "upstream"),
		concInFlight: desc("proconsul_concurrency_in_flight", "Requests that wait for an answer under an adaptive limit.", "upstream"),
		concShed:     typed("counter", "proconsul_concurrency_shed_total", "Requests that an adaptive limit turned away, by the class of their route.", "upstream", "class"),
		consulUp:     desc("proconsul_consul_up", "1 while Consul answers."),
		lastContact:  desc("proconsul_consul_last_contact_seconds", "Age of Consul's last answer; of the process where there was none."),
		stale:        desc("proconsul_catalog_stale_services", "Catalog queries that are served from their last good answer because Consul does not answer."),
		redisUp:      desc("proconsul_redis_up", "1 while Redis answers."),
		routes:       desc("proconsul_routes", "Routes by where they come from.", "source"),
		certEnd:      desc("proconsul_tls_cert_not_after_timestamp_seconds", "When the certificate of a listener expires; of several with one subject the first to.", "subject"),
		draining:     desc("proconsul_draining", "1 while the gateway is draining before its end."),
		spans:        typed("counter", "proconsul_trace_spans_total", "Spans by whether the collector has them.", "result"),
		linesDropped: typed("counter", "proconsul_access_log_dropped_total", "Lines of the access log that came faster than they could be written, or could not be written."),
		consumers:    desc("proconsul_consumers", "Consumers by where they come from.", "source"),
		consumersBad: desc("proconsul_consumers_rejected", "Keys of Consul's KV store whose consumer, or its last version, is not taken over."),
	}
}

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.instances, c.instInFlight, c.instWeight, c.instEjected, c.breaker,
		c.consulUp, c.lastContact, c.stale, c.redisUp, c.routes, c.draining, c.spans, c.linesDropped, c.certEnd,
		c.concLimit, c.concInFlight, c.concShed,
		c.limitCalls, c.limitKeys, c.limitWaiting,
		c.consumers, c.consumersBad,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	read := c.m.state.Load()
	if read == nil {
		return
	}
	s := (*read)()
	out := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	out(c.draining, truth(s.Draining))
	if s.Spans != nil {
		count(c.spans, s.Spans.Exported, "exported")
		count(c.spans, s.Spans.Dropped, "dropped")
		count(c.spans, s.Spans.Failed, "failed")
	}
	if s.Lines != nil {
		count(c.linesDropped, s.Lines.Dropped)
	}
	if s.Consul != nil {
		since := s.Consul.LastContact
		if since.IsZero() {
			since = c.m.started
		}
		out(c.consulUp, truth(s.Consul.Up))
		out(c.lastContact, max(0, time.Since(since).Seconds()))
		out(c.stale, float64(s.Consul.Stale))
	}
	if s.Redis != nil {
		out(c.redisUp, truth(s.Redis.Up))
	}
	if l := s.Limiter; l != nil {
		ch <- prometheus.MustNewConstMetric(c.limitCalls, prometheus.CounterValue, float64(l.Calls))
		out(c.limitKeys, float64(l.Keys))
		out(c.limitWaiting, float64(l.Waiting))
	}
	sources := map[string]int{}
	for _, r := range s.Routes {
		sources[orNone(r.Source)] += r.Count
	}
	for source, n := range sources {
		out(c.routes, float64(n), source)
	}
	for _, n := range s.Consumers {
		out(c.consumers, float64(n.Count), n.Source)
	}
	out(c.consumersBad, float64(s.RejectedConsumers))
	ends := map[string]time.Time{}
	for _, cert := range s.Certificates {
		subject := orNone(cert.Subject)
		if _, known := ends[subject]; !known && len(ends) >= c.m.options.MaxSeries {
			subject = Overflow
		}
		if at, known := ends[subject]; !known || cert.NotAfter.Before(at) {
			ends[subject] = cert.NotAfter
		}
	}
	for subject, at := range ends {
		out(c.certEnd, float64(at.Unix()), subject)
	}
	c.collectUpstreams(s.Upstreams, out, count)
}

// collectUpstreams never gives one label set twice, whatever it is told: the
// registry would refuse the whole scrape.
func (c *stateCollector) collectUpstreams(upstreams []UpstreamState, out func(*prometheus.Desc, float64, ...string), count func(*prometheus.Desc, uint64, ...string)) {
	type member struct{ upstream, id string }
	type values struct{ inFlight, weight, ejected float64 }
	seen := make(map[string]bool, len(upstreams))
	members := map[member]values{}
	for _, u := range upstreams {
		name := orNone(u.Name)
		if seen[name] {
			continue
		}
		seen[name] = true
		var states [len(instanceStates)]int
		for _, in := range u.Instances {
			states[stateIndex(in.State)]++
			key := member{name, orNone(in.ID)}
			if _, known := members[key]; !known && len(members) >= c.m.options.MaxSeries {
				key = member{Overflow, Overflow}
			}
			v := members[key]
			v.inFlight += float64(in.InFlight)
			v.weight += in.Weight
			v.ejected += truth(in.State == "ejected")
			members[key] = v
		}
		for i, n := range states {
			out(c.instances, float64(n), name, instanceStates[i])
		}
		if k := u.Concurrency; k != nil {
			out(c.concLimit, float64(k.Limit), name)
			out(c.concInFlight, float64(k.InFlight), name)
			for class, n := range k.Shed {
				count(c.concShed, uint64(n), name, class)
			}
		}
		if u.Breaker != "" {
			for _, state := range breakerStates {
				out(c.breaker, truth(state == u.Breaker), name, state)
			}
		}
	}
	for key, v := range members {
		out(c.instInFlight, v.inFlight, key.upstream, key.id)
		out(c.instWeight, v.weight, key.upstream, key.id)
		out(c.instEjected, v.ejected, key.upstream, key.id)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
