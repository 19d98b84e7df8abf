// Package metrics is every metric of the gateway, its name and its labels. It
// is the only door to prometheus/client_golang: the rest of the gateway tells
// typed recorders what happened and never sees a label.
//
// Label values come from the configuration and the catalog alone. What a
// client sends (path, header, method of its own making) never becomes one, and
// every family has a bound after which further label values share the value
// "__overflow__".
//
// The package starts no goroutines and keeps no state outside Metrics.
package metrics

import (
	"log/slog"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Label values that no configuration gives, so that they collide with none.
const (
	None     = "_none"        // route of a request that matched none, upstream of one that went to none
	Other    = "_OTHER"       // a method outside the known set, a status outside 100 to 599
	Overflow = "__overflow__" // everything after a family's bound
)

// DefaultMaxSeries is the bound of label sets per family where Options sets
// none. Histograms, of which each label set is 17 lines of a scrape, get a
// quarter of it.
const DefaultMaxSeries = 10_000

// Options are what Metrics are made with.
type Options struct {
	Version string   // for proconsul_build_info
	Reasons []string // of answers that the gateway makes itself; each exists at 0 for each route

	// MaxSeries is how many label sets one family may have before new ones
	// share "__overflow__". 0: DefaultMaxSeries.
	MaxSeries int

	// NativeHistograms adds Prometheus native histograms to the classic ones.
	NativeHistograms bool

	Log *slog.Logger // for faults while a scrape is answered; nil: none
}

// Metrics are the gateway's metrics in a registry of their own. All methods
// are safe for concurrent use. Recording costs no allocations once a series
// exists.
type Metrics struct {
	options  Options
	registry *prometheus.Registry
	families []Family
	started  time.Time
	total    timings
	limited  atomic.Uint64  // answers with 429
	reasons  map[string]int // places in Options.Reasons; never written after creation

	requests      *recorded
	duration      *durations
	inFlight      *recorded
	requestBytes  *recorded
	responseBytes *recorded
	overhead      *single
	local         *counters
	retries       *counters
	budget        *counters

	upRequests  *recorded
	upDuration  *durations
	upErrors    *counters
	transitions *counters

	decisions   *counters
	delay       prometheus.Histogram
	auth        *counters
	watchErrors *counters
	propagation prometheus.Histogram
	redisOps    *histograms

	reloadOK               prometheus.Gauge
	reloadTime             prometheus.Gauge
	reloads                *counters
	tlsReloads, handshakes *counters
	configInfo             *gauges

	state atomic.Pointer[func() State]

	mu        sync.Mutex // guards creation and deletion; recording takes no lock
	routes    map[routeKey]*Route
	accounts  map[string]*account // by route name
	upstreams lookup[*Upstream]
	policies  lookup[*decisions]

	authMethods lookup[*authDecisions]
	watches     lookup[prometheus.Counter]
	ops         lookup[prometheus.Observer]
}

// Family describes one metric family, for documentation and for the test that
// holds dashboards and alerts against what is registered.
type Family struct {
	Name   string
	Type   string // counter, gauge or histogram
	Help   string
	Labels []string
}

// Families returns the gateway's own metric families in the order of their
// registration. The Go runtime's and the process's are not among them.
func (m *Metrics) Families() []Family { return m.families }

var (
	// The boundaries that OpenTelemetry recommends for HTTP, in seconds.
	requestBuckets = []float64{.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10}
	// What happens inside one machine or one rack.
	fastBuckets = []float64{.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1}
)

// New returns metrics in a registry of their own. It starts nothing.
func New(o Options) *Metrics {
	if o.MaxSeries <= 0 {
		o.MaxSeries = DefaultMaxSeries
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	m := &Metrics{
		options:  o,
		registry: prometheus.NewPedanticRegistry(),
		started:  time.Now(),
		routes:   map[routeKey]*Route{},
		accounts: map[string]*account{},
		reasons:  make(map[string]int, len(o.Reasons)),
	}
	for i, reason := range o.Reasons {
		m.reasons[reason] = i
	}

	m.requests = m.recorded("counter", "proconsul_requests_total", "Requests by route, upstream, method and status.", "route", "upstream", "method", "code")
	m.duration = m.durations("proconsul_request_duration_seconds", "Time from a request's arrival to the end of its answer; to the 101 for upgraded connections.", requestScale, "route", "upstream", "class")
	m.inFlight = m.recorded("gauge", "proconsul_requests_in_flight", "Requests that are being served.", "route")
	m.requestBytes = m.recorded("counter", "proconsul_request_bytes_total", "Bytes of request bodies read from clients.", "route")
	m.responseBytes = m.recorded("counter", "proconsul_response_bytes_total", "Bytes of answer bodies sent to clients.", "route")
	m.overhead = m.single("proconsul_overhead_seconds", "Time until the answer's header less the time spent waiting for instances: what the gateway itself costs.", fastScale)
	m.local = m.counters("proconsul_local_responses_total", "Answers that the gateway made itself, by reason.", "route", "reason")
	m.retries = m.counters("proconsul_retries_total", "Tries after the first.", "route")
	m.budget = m.counters("proconsul_retry_budget_exhausted_total", "Retries that were not made because the retry budget was used up.", "route")

	m.upRequests = m.recorded("counter", "proconsul_upstream_requests_total", "Tries of instances; class is error where no answer came.", "upstream", "class", "attempt")
	m.upDuration = m.durations("proconsul_upstream_duration_seconds", "Time until an instance's header or the try's failure.", requestScale, "upstream", "class")
	m.upErrors = m.counters("proconsul_upstream_errors_total", "Tries that failed without a valid answer, by reason.", "upstream", "reason")
	m.transitions = m.counters("proconsul_breaker_transitions_total", "Changes of a breaker's state.", "upstream", "to")

	m.decisions = m.counters("proconsul_ratelimit_decisions_total", "Decisions of the rate limiter.", "policy", "decision")
	m.delay = m.histogram("proconsul_ratelimit_delay_seconds", "Time that the rate limiter made requests wait for their turn.", requestBuckets)
	m.auth = m.counters("proconsul_auth_decisions_total", "Parts of the methods of authentication in decisions about callers.", "method", "result")
	m.watchErrors = m.counters("proconsul_consul_watch_errors_total", "Blocking queries to Consul that failed.", "watch")
	m.propagation = m.histogram("proconsul_catalog_propagation_seconds", "Time from Consul's answer to the pool that serves by it.", fastBuckets)
	m.redisOps = m.histograms("proconsul_redis_op_duration_seconds", "Time of calls to Redis, failed ones included.", fastBuckets, "op")

	m.reloadOK = m.gauge("proconsul_config_last_reload_successful", "1 where the last attempt to load a configuration succeeded.")
	m.reloadTime = m.gauge("proconsul_config_last_reload_success_timestamp_seconds", "When a configuration was last taken over, in Unix time.")
	m.handshakes = m.counters("proconsul_tls_handshake_failures_total", "Connections to a TLS listener that ended in the handshake: no TLS, no protocol or certificate in common, a client certificate that is not valid, or too slow.", "listener")
	m.tlsReloads = m.counters("proconsul_tls_reloads_total", "Certificate files that were read because they had changed, by whether they are used.", "result")
	for _, result := range []string{"success", "refused"} {
		m.tlsReloads.create(result)
	}
	m.reloads = m.counters("proconsul_config_reloads_total", "Attempts to load a configuration.", "source", "result")
	m.configInfo = m.gauges("proconsul_config_info", "The configuration that is served by; replicas of one fleet have the same hash.", "hash")
	for _, source := range reloadSources {
		for _, result := range []string{"success", "refused"} {
			m.reloads.create(source, result)
		}
	}

	build := m.gauges("proconsul_build_info", "The version of the gateway.", "version", "goversion")
	build.create(valid(o.Version), runtime.Version()).Set(1)

	m.registry.MustRegister(recorders{m})
	m.registry.MustRegister(newStateCollector(m))
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler answers scrapes, in OpenMetrics where the scraper asks for it.
// Scrapes that come at the same time share one gathering.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(m.options.Log.Handler(), slog.LevelError),
		ErrorHandling:       promhttp.ContinueOnError, // one bad series must not cost all others
		MaxRequestsInFlight: 8,
		CoalesceGather:      true,
		Timeout:             10 * time.Second,
		EnableOpenMetrics:   true,
	})
}

// Names are the label values that exist for now, see Metrics.Declare.
type Names struct {
	Routes    []RouteName
	Upstreams []string
	Policies  []string // of the rate limiter
	Auth      []string // methods that routes authenticate by
	Watches   []string // keys of catalog queries
}

// RouteName is a route and the upstream that it goes to; empty: none.
type RouteName struct{ Route, Upstream string }

// Declare makes the series of every name exist at zero, because alerts on a
// rate or on zero need them to, and deletes those of every other name. It is
// for after a table was swapped; requests that still run by the old one are
// not counted under deleted names.
func (m *Metrics) Declare(n Names) {
	keepRoutes, keepAccounts := map[routeKey]bool{}, map[string]bool{}
	for _, r := range append([]RouteName{{}}, n.Routes...) { // the first: requests without a route
		key := newRouteKey(r.Route, r.Upstream)
		keepRoutes[key], keepAccounts[key.route] = true, true
		m.Route(r.Route, r.Upstream)
	}
	keepUpstreams, keepPolicies, keepWatches := set(n.Upstreams), set(n.Policies), set(n.Watches)
	keepAuth := set(n.Auth)
	if len(keepAuth) > 0 {
		keepAuth[None] = true // of anonymous callers
	}
	for name := range keepUpstreams {
		m.Upstream(name)
	}
	for name := range keepPolicies {
		m.policy(name)
	}
	for name := range keepAuth {
		m.authMethod(name)
	}
	for name := range keepWatches {
		m.watch(name)
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	for key, r := range m.routes {
		if !keepRoutes[key] && key != overflowKey {
			m.dropLocked(r)
		}
	}
	for name, a := range m.accounts {
		if !keepAccounts[name] && name != Overflow {
			delete(m.accounts, name)
			m.dropAccount(name, a)
		}
	}
	m.upstreams.deleteExcept(keepUpstreams, m.dropUpstream)
	m.policies.deleteExcept(keepPolicies, func(name string, _ *decisions) {
		m.decisions.delete(prometheus.Labels{"policy": name})
	})
	m.authMethods.deleteExcept(keepAuth, func(name string, _ *authDecisions) {
		m.auth.delete(prometheus.Labels{"method": name})
	})
	m.watches.deleteExcept(keepWatches, func(name string, _ prometheus.Counter) {
		m.watchErrors.delete(prometheus.Labels{"watch": name})
	})
}

func set(names []string) map[string]bool {
	s := make(map[string]bool, len(names))
	for _, n := range names {
		s[orNone(n)] = true
	}
	return s
}
