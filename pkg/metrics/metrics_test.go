package metrics_test

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/proconsul/proconsul/pkg/metrics"
	"github.com/proconsul/proconsul/pkg/parts"
	"github.com/proconsul/proconsul/pkg/problem"
)

var reasons = []string{"no_route", "rate_limited", "breaker_open"}

func newMetrics(t testing.TB, edit ...func(*metrics.Options)) *metrics.Metrics {
	t.Helper()
	// A scrape with a fault still answers, without the faulty series: only the log tells.
	o := metrics.Options{Version: "v1.2.3", Reasons: reasons, Log: slog.New(slog.NewTextHandler(faults{t}, nil))}
	for _, e := range edit {
		e(&o)
	}
	return metrics.New(o)
}

// faults fails the test for every line of a log.
type faults struct{ t testing.TB }

func (f faults) Write(line []byte) (int, error) {
	f.t.Errorf("logged: %s", line)
	return len(line), nil
}

// scrape returns the lines of a scrape in Prometheus' text format.
func scrape(t testing.TB, m *metrics.Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("scrape answered %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func wantLine(t testing.TB, text, line string) {
	t.Helper()
	if !slices.Contains(strings.Split(text, "\n"), line) {
		metric, _, _ := strings.Cut(line, "{")
		var near []string
		for l := range strings.Lines(text) {
			if strings.HasPrefix(l, metric) {
				near = append(near, l)
			}
		}
		t.Errorf("no line %q; have\n%s", line, strings.Join(near, ""))
	}
}

func state() metrics.State {
	return metrics.State{
		Upstreams: []metrics.UpstreamState{{Name: "orders", Breaker: "half_open", Concurrency: &metrics.ConcurrencyState{Limit: 40, InFlight: 7, Shed: map[string]int64{"low": 9, "high": 0}}, Instances: []metrics.InstanceState{
			{ID: "n1/orders-1", State: "passing", InFlight: 3, Weight: 5},
			{ID: "n1/orders-2", State: "ejected", Weight: 0},
			{ID: "n2/orders-3", State: "maintenance"},
		}}},
		Routes:    []metrics.RouteCount{{Source: "file", Count: 4}},
		Consul:    &metrics.ConsulState{Up: true, LastContact: time.Now(), Stale: 2},
		Redis:     &metrics.RedisState{Up: true},
		Spans:     &metrics.SpanCounts{Exported: 5, Dropped: 2, Failed: 3},
		Lines:     &metrics.LineCounts{Dropped: 7},
		Consumers: []metrics.ConsumerCount{{Source: "file", Count: 1}, {Source: "kv", Count: 2}}, Certificates: []metrics.CertificateState{{Subject: "shop.example.com", NotAfter: time.Unix(1_900_000_000, 0)},
			{Subject: "shop.example.com", NotAfter: time.Unix(1_800_000_000, 0)}, {Subject: "\xff", NotAfter: time.Unix(1_900_000_000, 0)}},
		Limiter: &metrics.LimiterState{Calls: 5, Keys: 3, Waiting: 2},
	}
}

// exercised returns metrics in which every family has a series.
func exercised(t testing.TB) *metrics.Metrics {
	m := newMetrics(t)
	m.SetState(state)
	m.Declare(metrics.Names{
		Routes:    []metrics.RouteName{{Route: "orders", Upstream: "orders"}},
		Upstreams: []string{"orders"}, Policies: []string{"public"}, Auth: []string{"idp"}, Watches: []string{"orders"},
	})
	r := m.Route("orders", "orders")
	r.Begin()
	r.End(metrics.Request{Method: "GET", Status: 200, Duration: 20 * time.Millisecond, Overhead: time.Millisecond, BytesIn: 10, BytesOut: 100})
	m.Attempt(metrics.Attempt{Upstream: "orders", Route: "orders", Failure: "refused", Retried: true})
	m.Attempt(metrics.Attempt{Upstream: "orders", Route: "orders", Number: 1, Status: 200, Duration: 19 * time.Millisecond})
	m.Upstream("orders").BreakerTransition("open")
	m.RateLimitDecision("public", "limited")
	m.AuthDecision("idp", "invalid")
	m.AuthDecision("", "anonymous")
	m.WatchError("orders")
	m.Propagation(time.Millisecond)
	m.RedisOp("take", time.Millisecond)
	m.ConfigLoaded("start", "9f3c1a2", time.Unix(1_700_000_000, 0))
	m.CertificatesRefused()
	m.HandshakeFailures("tls")()
	m.HandshakeFailures("inner")
	return m
}

func TestMetricsHoldWhatHappened(t *testing.T) {
	text := scrape(t, exercised(t))
	for _, line := range []string{
		`proconsul_requests_total{code="200",method="GET",route="orders",upstream="orders"} 1`,
		`proconsul_request_duration_seconds_bucket{class="2xx",route="orders",upstream="orders",le="0.025"} 1`,
		`proconsul_request_duration_seconds_bucket{class="2xx",route="orders",upstream="orders",le="0.01"} 0`,
		`proconsul_requests_in_flight{route="orders"} 0`,
		`proconsul_request_bytes_total{route="orders"} 10`,
		`proconsul_response_bytes_total{route="orders"} 100`,
		`proconsul_overhead_seconds_count 1`,
		`proconsul_tls_cert_not_after_timestamp_seconds{subject="shop.example.com"} 1.8e+09`,
		`proconsul_tls_reloads_total{result="refused"} 1`,
		`proconsul_tls_handshake_failures_total{listener="tls"} 1`,
		`proconsul_tls_handshake_failures_total{listener="inner"} 0`,
		`proconsul_tls_reloads_total{result="success"} 0`,
		`proconsul_local_responses_total{reason="breaker_open",route="orders"} 0`,
		`proconsul_local_responses_total{reason="no_route",route="_none"} 0`,
		`proconsul_retries_total{route="orders"} 1`,
		`proconsul_retry_budget_exhausted_total{route="orders"} 0`,
		`proconsul_upstream_requests_total{attempt="first",class="error",upstream="orders"} 1`,
		`proconsul_upstream_requests_total{attempt="retry",class="2xx",upstream="orders"} 1`,
		`proconsul_upstream_duration_seconds_count{class="2xx",upstream="orders"} 1`,
		`proconsul_upstream_errors_total{reason="refused",upstream="orders"} 1`,
		`proconsul_upstream_errors_total{reason="tls",upstream="orders"} 0`,
		`proconsul_breaker_transitions_total{to="open",upstream="orders"} 1`,
		`proconsul_breaker_transitions_total{to="closed",upstream="orders"} 0`,
		`proconsul_breaker_state{state="half_open",upstream="orders"} 1`,
		`proconsul_breaker_state{state="open",upstream="orders"} 0`,
		`proconsul_concurrency_limit{upstream="orders"} 40`,
		`proconsul_concurrency_shed_total{class="low",upstream="orders"} 9`,
		`proconsul_instances{state="passing",upstream="orders"} 1`,
		`proconsul_instances{state="ejected",upstream="orders"} 1`,
		`proconsul_instances{state="warning",upstream="orders"} 0`,
		`proconsul_instance_in_flight{instance_id="n1/orders-1",upstream="orders"} 3`,
		`proconsul_instance_weight{instance_id="n1/orders-1",upstream="orders"} 5`,
		`proconsul_instance_ejected{instance_id="n1/orders-2",upstream="orders"} 1`,
		`proconsul_ratelimit_decisions_total{decision="limited",policy="public"} 1`,
		`proconsul_ratelimit_decisions_total{decision="fail_open",policy="public"} 0`,
		`proconsul_auth_decisions_total{method="idp",result="invalid"} 1`,
		`proconsul_auth_decisions_total{method="idp",result="allowed"} 0`,
		`proconsul_auth_decisions_total{method="_none",result="anonymous"} 1`,
		`proconsul_trace_spans_total{result="dropped"} 2`,
		`proconsul_access_log_dropped_total 7`,
		`proconsul_consul_up 1`,
		`proconsul_consul_watch_errors_total{watch="orders"} 1`,
		`proconsul_catalog_stale_services 2`,
		`proconsul_catalog_propagation_seconds_count 1`,
		`proconsul_redis_up 1`,
		`proconsul_redis_op_duration_seconds_count{op="take"} 1`,
		`proconsul_config_last_reload_successful 1`,
		`proconsul_config_last_reload_success_timestamp_seconds 1.7e+09`,
		`proconsul_config_reloads_total{result="success",source="start"} 1`,
		`proconsul_config_info{hash="9f3c1a2"} 1`,
		`proconsul_routes{source="file"} 4`,
		`proconsul_draining 0`,
	} {
		wantLine(t, text, line)
	}
	for _, want := range []string{`proconsul_build_info{goversion="go`, `version="v1.2.3"`, "proconsul_consul_last_contact_seconds ", "go_goroutines ", "process_resident_memory_bytes "} {
		if !strings.Contains(text, want) {
			t.Errorf("a scrape lacks %q", want)
		}
	}
}

func TestFamiliesAreWhatAScrapeShows(t *testing.T) {
	m := exercised(t)
	shown := map[string]string{}
	for _, match := range regexp.MustCompile(`(?m)^# TYPE (proconsul_\S+) (\S+)$`).FindAllStringSubmatch(scrape(t, m), -1) {
		shown[match[1]] = match[2]
	}
	described := map[string]string{}
	for _, f := range m.Families() {
		described[f.Name] = f.Type
		if f.Help == "" {
			t.Errorf("%s has no help text", f.Name)
		}
		for _, label := range f.Labels {
			// Scrape configurations own these and rename ours to exported_*.
			if slices.Contains([]string{"instance", "service", "endpoint", "namespace", "pod", "job"}, label) {
				t.Errorf("%s has the label %q, which belongs to the scraper", f.Name, label)
			}
		}
	}
	if !maps.Equal(shown, described) {
		t.Errorf("a scrape shows\n%v\nand Families tells\n%v", shown, described)
	}
}

func TestNamesPassPrometheusLinter(t *testing.T) {
	problems, err := promlint.New(strings.NewReader(scrape(t, exercised(t)))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "proconsul_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func TestNothingAClientSendsBecomesALabel(t *testing.T) {
	m := exercised(t)
	before := strings.Count(scrape(t, m), "\n")
	r := m.Route("orders", "orders")
	for i := range 500 {
		r.Begin()
		r.End(metrics.Request{Method: fmt.Sprintf("EVIL%d", i), Status: 700 + i, Reason: fmt.Sprintf("evil%d", i)})
		m.Attempt(metrics.Attempt{Upstream: "orders", Route: "orders", Status: 600 + i, Failure: fmt.Sprintf("evil%d", i)})
		m.RateLimitDecision("public", fmt.Sprintf("evil%d", i))
		m.ConfigRefused(fmt.Sprintf("evil%d", i))
	}
	text := scrape(t, m)
	if strings.Contains(strings.ToLower(text), "evil") {
		t.Error("text from outside is in a scrape")
	}
	wantLine(t, text, `proconsul_requests_total{code="_OTHER",method="_OTHER",route="orders",upstream="orders"} 500`)
	// One counter and the lines of two histograms.
	if after := strings.Count(text, "\n"); after-before > 50 {
		t.Errorf("%d new lines in a scrape after 500 hostile requests", after-before)
	}
}

func TestSeriesLiveAsLongAsTheirNames(t *testing.T) {
	m := exercised(t)
	old := m.Route("orders", "orders")
	old.Begin()
	m.Declare(metrics.Names{Routes: []metrics.RouteName{{Route: "users", Upstream: "users"}}, Upstreams: []string{"users"}})
	m.SetState(func() metrics.State { return metrics.State{} })
	// A request that still runs by the old table ends after its series did.
	old.End(metrics.Request{Method: "GET", Status: 200})
	old.End(metrics.Request{Method: "PUT", Status: 204})
	for line := range strings.Lines(scrape(t, m)) {
		if strings.Contains(line, `"orders"`) || strings.Contains(line, "orders-1") || strings.Contains(line, `"public"`) {
			t.Errorf("still there: %s", line)
		}
	}
	wantLine(t, scrape(t, m), `proconsul_local_responses_total{reason="breaker_open",route="users"} 0`)

	m.Declare(metrics.Names{Routes: []metrics.RouteName{{Route: "orders", Upstream: "orders"}}})
	again := m.Route("orders", "orders")
	again.Begin()
	again.End(metrics.Request{Method: "GET", Status: 200})
	wantLine(t, scrape(t, m), `proconsul_requests_total{code="200",method="GET",route="orders",upstream="orders"} 1`)
}

func TestAReloadKeepsWhatIsCounted(t *testing.T) {
	m := exercised(t)
	names := metrics.Names{Routes: []metrics.RouteName{{Route: "orders", Upstream: "orders"}}, Upstreams: []string{"orders"}}
	r := m.Route("orders", "orders")
	r.Begin()
	m.Declare(names)
	wantLine(t, scrape(t, m), `proconsul_requests_in_flight{route="orders"} 1`)
	r.End(metrics.Request{Method: "GET", Status: 200})
	text := scrape(t, m)
	wantLine(t, text, `proconsul_requests_in_flight{route="orders"} 0`)
	wantLine(t, text, `proconsul_requests_total{code="200",method="GET",route="orders",upstream="orders"} 2`)

	// To another upstream: the route's own account goes on, also of who is
	// still at the one before.
	r.Begin()
	before := r.Stats()
	names.Routes[0].Upstream = "orders-v2"
	m.Declare(names)
	text = scrape(t, m)
	wantLine(t, text, `proconsul_response_bytes_total{route="orders"} 100`)
	wantLine(t, text, `proconsul_requests_in_flight{route="orders"} 1`)
	r.End(metrics.Request{Method: "GET", Status: 429, BytesOut: 1})
	next := m.Route("orders", "orders-v2")
	next.Begin()
	next.End(metrics.Request{Method: "GET", Status: 200, BytesOut: 1})
	text = scrape(t, m)
	wantLine(t, text, `proconsul_response_bytes_total{route="orders"} 102`)
	wantLine(t, text, `proconsul_requests_in_flight{route="orders"} 0`)
	if s := next.Stats(); s.Requests != before.Requests+1 || s.Errors != before.Errors || s.Limited != before.Limited+1 {
		t.Errorf("totals %+v, were %+v before a request, and one that was limited and has no series any more", s, before)
	}
	if strings.Contains(text, `upstream="orders"`) && strings.Contains(text, `proconsul_requests_total{code="200",method="GET",route="orders",upstream="orders"}`) {
		t.Error("the series of the upstream before are still there")
	}
}

// A counter that falls is taken for one that began anew, and its whole value for
// an increase: what names beyond the bound share goes on without them. Their
// places are free for others.
func TestWhatOverflowedStaysCounted(t *testing.T) {
	for _, native := range []bool{false, true} {
		m := newMetrics(t, func(o *metrics.Options) { o.MaxSeries, o.NativeHistograms = 8, native })
		count := func(name string, status int) {
			r := m.Route(name, name)
			r.Begin()
			r.End(metrics.Request{Method: "GET", Status: status})
			m.Attempt(metrics.Attempt{Upstream: "u", Route: name, Status: status})
		}
		for i := range 20 {
			count(fmt.Sprintf("r%d", i), 200)
		}
		count("r19", 503)
		over := []string{
			`proconsul_requests_total{code="200",method="GET",route="__overflow__",upstream="__overflow__"} 12`,
			`proconsul_requests_total{code="503",method="GET",route="__overflow__",upstream="__overflow__"} 1`,
			`proconsul_request_duration_seconds_count{class="2xx",route="__overflow__",upstream="__overflow__"} 18`,
		}
		for _, line := range over {
			wantLine(t, scrape(t, m), line)
		}
		if s := m.Route("r19", "r19").Stats(); s.Requests != 2 || s.Errors != 1 {
			t.Errorf("beyond the bound the page shows %+v, want two requests and one error", s)
		}
		m.Declare(metrics.Names{Routes: []metrics.RouteName{{Route: "new", Upstream: "new"}}})
		count("new", 200)
		text := scrape(t, m)
		for _, line := range append(over, `proconsul_requests_total{code="200",method="GET",route="new",upstream="new"} 1`,
			`proconsul_request_duration_seconds_bucket{class="2xx",route="new",upstream="new",le="0.005"} 1`) {
			wantLine(t, text, line)
		}
		if strings.Contains(text, `route="r1"`) {
			t.Error("the series of a route that is gone are still there")
		}
	}
}

func TestFamiliesAreBounded(t *testing.T) {
	const limit = 20
	m := newMetrics(t, func(o *metrics.Options) { o.MaxSeries = limit })
	var instances []metrics.InstanceState
	for i := range 100 {
		name := fmt.Sprintf("r%d", i)
		r := m.Route(name, name)
		for _, status := range []int{200, 404, 503} {
			r.Begin()
			r.End(metrics.Request{Method: "GET", Status: status, Reason: "no_route"})
		}
		m.Attempt(metrics.Attempt{Upstream: name, Route: name, Status: 200, Retried: true})
		m.Attempt(metrics.Attempt{Upstream: name, Route: name, Failure: "reset"})
		m.RateLimitDecision(name, "allowed")
		m.WatchError(name)
		m.RedisOp(name, time.Millisecond)
		instances = append(instances, metrics.InstanceState{ID: name, State: "passing", InFlight: 1})
	}
	m.SetState(func() metrics.State {
		return metrics.State{Upstreams: []metrics.UpstreamState{{Name: "u", Instances: instances}}}
	})
	sets, sums := map[string]int{}, map[string]float64{}
	line := regexp.MustCompile(`^(proconsul_\w+)\{.*\} (\S+)$`)
	for l := range strings.Lines(scrape(t, m)) {
		f := line.FindStringSubmatch(strings.TrimSpace(l))
		if f == nil || strings.HasSuffix(f[1], "_bucket") || strings.HasSuffix(f[1], "_sum") {
			continue
		}
		var v float64
		fmt.Sscan(f[2], &v)
		sets[f[1]]++
		sums[f[1]] += v
	}
	for name, n := range sets {
		// The labels that are left beside the overflow have their own bounds.
		if allowed := limit + 40; n > allowed {
			t.Errorf("%s has %d label sets, more than %d", name, n, allowed)
		}
	}
	for name, want := range map[string]float64{
		"proconsul_requests_total": 300, "proconsul_request_duration_seconds_count": 300, "proconsul_local_responses_total": 300,
		"proconsul_retries_total": 100, "proconsul_upstream_requests_total": 200, "proconsul_upstream_errors_total": 100,
		"proconsul_ratelimit_decisions_total": 100, "proconsul_consul_watch_errors_total": 100,
		"proconsul_redis_op_duration_seconds_count": 100, "proconsul_instance_in_flight": 100, "proconsul_requests_in_flight": 0,
	} {
		if sums[name] != want {
			t.Errorf("%s sums to %v, want %v: what overflows has to be counted", name, sums[name], want)
		}
	}
}

func TestOddNamesDoNotCostTheScrape(t *testing.T) {
	m := newMetrics(t)
	bad := "a\xff\"\n\\"
	m.Declare(metrics.Names{Routes: []metrics.RouteName{{Route: bad, Upstream: bad}}, Upstreams: []string{bad}, Policies: []string{bad}, Watches: []string{bad}})
	m.Route(bad, bad).Begin()
	m.Attempt(metrics.Attempt{Upstream: bad, Route: bad, Retried: true})
	m.RateLimitDecision(bad, "allowed")
	m.WatchError(bad)
	m.ConfigLoaded(bad, bad, time.Now())
	twice := metrics.UpstreamState{Name: bad, Breaker: bad, Instances: []metrics.InstanceState{{ID: bad}, {ID: bad}}}
	m.SetState(func() metrics.State {
		return metrics.State{Upstreams: []metrics.UpstreamState{twice, twice, {}}, Routes: []metrics.RouteCount{{Source: "file"}, {Source: "file", Count: 1}, {}}}
	})
	text := scrape(t, m)
	wantLine(t, text, `proconsul_routes{source="file"} 1`)
	wantLine(t, text, `proconsul_retries_total{route="a`+"\uFFFD"+`\"\n\\"} 1`)
	wantLine(t, text, `proconsul_instances{state="critical",upstream="_none"} 0`)
}

func TestAReplicaHasOneConfiguration(t *testing.T) {
	m := newMetrics(t)
	m.ConfigLoaded("start", "aaa", time.Unix(1, 0))
	m.ConfigLoaded("file", "bbb", time.Unix(2, 0))
	m.ConfigRefused("signal")
	text := scrape(t, m)
	if strings.Contains(text, `hash="aaa"`) {
		t.Error("the hash of the configuration before is still shown")
	}
	wantLine(t, text, `proconsul_config_info{hash="bbb"} 1`)
	wantLine(t, text, `proconsul_config_last_reload_successful 0`)
	wantLine(t, text, `proconsul_config_last_reload_success_timestamp_seconds 2`)
	wantLine(t, text, `proconsul_config_reloads_total{result="refused",source="signal"} 1`)
}

func TestConsulThatNeverAnsweredIsAsOldAsTheProcess(t *testing.T) {
	m := newMetrics(t)
	m.SetState(func() metrics.State { return metrics.State{Consul: &metrics.ConsulState{}} })
	text := scrape(t, m)
	wantLine(t, text, `proconsul_consul_up 0`)
	if !regexp.MustCompile(`(?m)^proconsul_consul_last_contact_seconds [0-9.e-]+$`).MatchString(text) {
		t.Errorf("no age in\n%s", text)
	}
	if strings.Contains(text, "proconsul_redis_up") {
		t.Error("Redis is not used and shown as down")
	}
}

func TestOpenMetricsAndNativeHistograms(t *testing.T) {
	m := newMetrics(t, func(o *metrics.Options) { o.NativeHistograms = true })
	m.Propagation(time.Millisecond)
	r := httptest.NewRequest("GET", "/metrics", nil)
	r.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, r)
	body, _ := io.ReadAll(w.Result().Body)
	if !strings.HasPrefix(w.Header().Get("Content-Type"), "application/openmetrics-text") || !strings.HasSuffix(string(body), "# EOF\n") {
		t.Errorf("content type %q, end %q", w.Header().Get("Content-Type"), body[max(0, len(body)-20):])
	}
}

func TestRecordingIsSafeForConcurrentUse(t *testing.T) {
	m := newMetrics(t)
	m.SetState(state)
	names := metrics.Names{Routes: []metrics.RouteName{{Route: "a", Upstream: "a"}}, Upstreams: []string{"a"}, Policies: []string{"a"}, Watches: []string{"a"}}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				name := []string{"a", "b"}[(i+g)%2]
				r := m.Route(name, name)
				r.Begin()
				r.End(metrics.Request{Method: "GET", Status: 200 + i%3})
				m.Attempt(metrics.Attempt{Upstream: name, Route: name, Status: 200, Retried: i%2 == 0})
				m.RateLimitDecision(name, "allowed")
				m.WatchError(name)
				if i%50 == 0 {
					m.Declare(names)
					_ = m.Stats()
					_ = scrape(t, m)
				}
			}
		})
	}
	wg.Wait()
	m.Declare(names)
	text := scrape(t, m)
	wantLine(t, text, `proconsul_requests_in_flight{route="a"} 0`)
	if strings.Contains(text, `route="b"`) {
		t.Error("a deleted route is back")
	}
}

func TestRecordingDoesNotAllocate(t *testing.T) {
	m := exercised(t)
	r := m.Route("orders", "orders")
	if n := testing.AllocsPerRun(1000, func() {
		r.Begin()
		m.Attempt(metrics.Attempt{Upstream: "orders", Route: "orders", Number: 1, Status: 200, Duration: time.Millisecond, Retried: true})
		m.RateLimitDecision("public", "limited")
		r.End(metrics.Request{Method: "GET", Status: 200, Duration: time.Millisecond, Overhead: time.Microsecond, BytesIn: 1, BytesOut: 1, Reason: "rate_limited"})
	}); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}

func BenchmarkRequest(b *testing.B) {
	m := exercised(b)
	r := m.Route("orders", "orders")
	b.ReportAllocs()
	for b.Loop() {
		r.Begin()
		r.End(metrics.Request{Method: "GET", Status: 200, Duration: time.Millisecond, Overhead: time.Microsecond, BytesIn: 1, BytesOut: 1})
	}
}

func BenchmarkAttempt(b *testing.B) {
	m := exercised(b)
	b.ReportAllocs()
	for b.Loop() {
		m.Attempt(metrics.Attempt{Upstream: "orders", Route: "orders", Status: 200, Duration: time.Millisecond})
	}
}

// BenchmarkScrape is of a gateway with 200 routes and 500 instances.
func BenchmarkScrape(b *testing.B) {
	m := newMetrics(b, func(o *metrics.Options) {
		for i := range 24 {
			o.Reasons = append(o.Reasons, fmt.Sprintf("reason_%d", i))
		}
	})
	var names metrics.Names
	var s metrics.State
	for i := range 200 {
		route := fmt.Sprintf("route-%d", i)
		names.Routes = append(names.Routes, metrics.RouteName{Route: route, Upstream: route})
	}
	for i := range 100 {
		u := metrics.UpstreamState{Name: fmt.Sprintf("upstream-%d", i), Breaker: "closed"}
		names.Upstreams = append(names.Upstreams, u.Name)
		for k := range 5 {
			u.Instances = append(u.Instances, metrics.InstanceState{ID: fmt.Sprintf("node-%d/%s-%d", k, u.Name, k), State: "passing"})
		}
		s.Upstreams = append(s.Upstreams, u)
	}
	m.Declare(names)
	m.SetState(func() metrics.State { return s })
	for _, r := range names.Routes {
		for _, status := range []int{200, 404, 503} {
			h := m.Route(r.Route, r.Upstream)
			h.Begin()
			h.End(metrics.Request{Method: "GET", Status: status})
		}
	}
	for _, u := range names.Upstreams {
		m.Attempt(metrics.Attempt{Upstream: u, Status: 200})
		m.Attempt(metrics.Attempt{Upstream: u, Status: 503})
	}
	b.ReportAllocs()
	lines := 0
	for b.Loop() {
		text := scrape(b, m)
		lines = strings.Count(text, "\n") - strings.Count(text, "# ")
	}
	b.ReportMetric(float64(lines), "series")
}

// surface is what dashboards and alerts of others may count on: types and
// labels do not change.
var surface = []metrics.Family{
	{Name: "proconsul_requests_total", Type: "counter", Labels: []string{"route", "upstream", "method", "code"}},
	{Name: "proconsul_request_duration_seconds", Type: "histogram", Labels: []string{"route", "upstream", "class"}},
	{Name: "proconsul_requests_in_flight", Type: "gauge", Labels: []string{"route"}},
	{Name: "proconsul_request_bytes_total", Type: "counter", Labels: []string{"route"}},
	{Name: "proconsul_response_bytes_total", Type: "counter", Labels: []string{"route"}},
	{Name: "proconsul_overhead_seconds", Type: "histogram"},
	{Name: "proconsul_local_responses_total", Type: "counter", Labels: []string{"route", "reason"}},
	{Name: "proconsul_upstream_requests_total", Type: "counter", Labels: []string{"upstream", "class", "attempt"}},
	{Name: "proconsul_upstream_duration_seconds", Type: "histogram", Labels: []string{"upstream", "class"}},
	{Name: "proconsul_upstream_errors_total", Type: "counter", Labels: []string{"upstream", "reason"}},
	{Name: "proconsul_instances", Type: "gauge", Labels: []string{"upstream", "state"}},
	{Name: "proconsul_instance_in_flight", Type: "gauge", Labels: []string{"upstream", "instance_id"}},
	{Name: "proconsul_instance_weight", Type: "gauge", Labels: []string{"upstream", "instance_id"}},
	{Name: "proconsul_instance_ejected", Type: "gauge", Labels: []string{"upstream", "instance_id"}},
	{Name: "proconsul_breaker_state", Type: "gauge", Labels: []string{"upstream", "state"}},
	{Name: "proconsul_breaker_transitions_total", Type: "counter", Labels: []string{"upstream", "to"}},
	{Name: "proconsul_retries_total", Type: "counter", Labels: []string{"route"}},
	{Name: "proconsul_retry_budget_exhausted_total", Type: "counter", Labels: []string{"route"}},
	{Name: "proconsul_ratelimit_decisions_total", Type: "counter", Labels: []string{"policy", "decision"}},
	{Name: "proconsul_auth_decisions_total", Type: "counter", Labels: []string{"method", "result"}},
	{Name: "proconsul_consul_up", Type: "gauge"},
	{Name: "proconsul_consul_last_contact_seconds", Type: "gauge"},
	{Name: "proconsul_consul_watch_errors_total", Type: "counter", Labels: []string{"watch"}},
	{Name: "proconsul_catalog_stale_services", Type: "gauge"},
	{Name: "proconsul_catalog_propagation_seconds", Type: "histogram"},
	{Name: "proconsul_redis_up", Type: "gauge"},
	{Name: "proconsul_redis_op_duration_seconds", Type: "histogram", Labels: []string{"op"}},
	{Name: "proconsul_config_last_reload_successful", Type: "gauge"},
	{Name: "proconsul_config_last_reload_success_timestamp_seconds", Type: "gauge"},
	{Name: "proconsul_config_reloads_total", Type: "counter", Labels: []string{"source", "result"}},
	{Name: "proconsul_config_info", Type: "gauge", Labels: []string{"hash"}},
	{Name: "proconsul_routes", Type: "gauge", Labels: []string{"source"}},
	{Name: "proconsul_draining", Type: "gauge"},
	{Name: "proconsul_build_info", Type: "gauge", Labels: []string{"version", "goversion"}},
	{Name: "proconsul_trace_spans_total", Type: "counter", Labels: []string{"result"}},
	{Name: "proconsul_access_log_dropped_total", Type: "counter"},
}

func TestWhatOperatorsCountOnIsThere(t *testing.T) {
	have := map[string]metrics.Family{}
	for _, f := range newMetrics(t).Families() {
		have[f.Name] = f
		for _, label := range f.Labels {
			// Scrape configurations own these, and would rename ours.
			if slices.Contains([]string{"instance", "service", "endpoint", "namespace", "pod", "job"}, label) {
				t.Errorf("%s has the label %s", f.Name, label)
			}
		}
	}
	for _, want := range surface {
		f, ok := have[want.Name]
		if !ok || f.Type != want.Type || !slices.Equal(f.Labels, want.Labels) {
			t.Errorf("%s is %s of %v, want %s of %v", want.Name, f.Type, f.Labels, want.Type, want.Labels)
		}
	}
	text := scrape(t, newMetrics(t))
	for _, name := range []string{"go_goroutines", "go_memstats_heap_alloc_bytes", "go_gc_duration_seconds", "process_cpu_seconds_total", "process_open_fds", "process_resident_memory_bytes"} {
		if !strings.Contains(text, "\n"+name) {
			t.Errorf("a scrape has no %s", name)
		}
	}
}

// A gateway of 200 routes to 100 upstreams of five instances each, all of which
// have answered well, badly and not at all, is scraped quickly and within what
// a Prometheus holds without noticing.
func TestALargeGatewayIsScrapedQuickly(t *testing.T) {
	var words []string
	for _, r := range problem.Reasons() {
		words = append(words, string(r))
	}
	m := newMetrics(t, func(o *metrics.Options) { o.Reasons = words })
	var names metrics.Names
	var st metrics.State
	for i := range 200 {
		names.Routes = append(names.Routes, metrics.RouteName{Route: fmt.Sprintf("route-%d", i), Upstream: fmt.Sprintf("upstream-%d", i/2)})
	}
	for i := range 100 {
		up := metrics.UpstreamState{Name: fmt.Sprintf("upstream-%d", i), Breaker: "closed"}
		for j := range 5 {
			up.Instances = append(up.Instances, metrics.InstanceState{ID: fmt.Sprintf("node-%d/upstream-%d-%d", j, i, j), State: "passing", Weight: 1})
		}
		st.Upstreams = append(st.Upstreams, up)
		names.Upstreams = append(names.Upstreams, up.Name)
	}
	m.Declare(names)
	m.SetState(func() metrics.State { return st })
	for i, r := range names.Routes {
		h := m.Route(r.Route, r.Upstream)
		for _, q := range []struct {
			method string
			status int
		}{{"GET", 200}, {"GET", 404}, {"GET", 500}, {"GET", 503}, {"POST", 201}, {"POST", 400}, {"HEAD", 200}} {
			h.Begin()
			h.End(metrics.Request{Method: q.method, Status: q.status, Duration: time.Duration(i) * time.Millisecond})
		}
		for _, status := range []int{200, 404, 500, 0} {
			m.Attempt(metrics.Attempt{Upstream: r.Upstream, Route: r.Route, Status: status})
		}
		m.Attempt(metrics.Attempt{Upstream: r.Upstream, Route: r.Route, Number: 1, Status: 200})
	}
	series := 0
	for l := range strings.Lines(scrape(t, m)) {
		if !strings.HasPrefix(l, "#") {
			series++
		}
	}
	if series > 40_000 || series < 20_000 {
		t.Errorf("%d series, want some 30,000 and at most 40,000", series)
	}
	if strings.Contains(scrape(t, m), metrics.Overflow) {
		t.Error("a gateway of this size overflows")
	}
	// The best of several, in CPU: what others on the machine do is not ours.
	best, limit, tries := time.Hour, 100*time.Millisecond, 7
	if raced {
		limit, tries = 10*limit, 1
	}
	for range tries {
		before := parts.CPU(t)
		scrape(t, m)
		best = min(best, parts.CPU(t)-before)
	}
	t.Logf("%d series, %v of CPU", series, best)
	if best > limit {
		t.Errorf("a scrape of %d series takes %v of CPU", series, best)
	}
}

// A slow request that is traced is found from its place in the histogram.
func TestExemplarsNameTheTrace(t *testing.T) {
	m := newMetrics(t)
	r := m.Route("orders", "orders")
	for _, trace := range []string{"", "0af7651916cd43dd8448eb211c80319c"} {
		r.Begin()
		r.End(metrics.Request{Method: "GET", Status: 200, Duration: 20 * time.Millisecond, TraceID: trace})
	}
	q := httptest.NewRequest("GET", "/metrics", nil)
	q.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, q)
	if want := regexp.MustCompile(`(?m)^proconsul_request_duration_seconds_bucket\{.*le="0\.025"\} 2 # \{trace_id="0af7651916cd43dd8448eb211c80319c"\} 0\.02 `); !want.MatchString(w.Body.String()) {
		t.Errorf("no exemplar in\n%s", w.Body)
	}
	if strings.Contains(scrape(t, m), "trace_id") {
		t.Error("the text format has no exemplars")
	}
}

var update = flag.Bool("update", false, "write docs/metrics.md anew")

// docs/metrics.md is made of what is registered.
func TestTheDocumentHasEveryMetric(t *testing.T) {
	var b strings.Builder
	b.WriteString(strings.ReplaceAll(`# Metrics

At ~/metrics~ of the admin listener, in Prometheus' text format or, where the scraper asks for it, in OpenMetrics with the trace of a
slow request as an exemplar. This page is made of the code: ~go test ./pkg/metrics -update~.

Labels come from the configuration and the catalog alone; what is none of the known methods or statuses counts as ~_OTHER~, requests of no
route as ~_none~. A metric has at most ~metrics.max_series~ label sets, a histogram a quarter of it; what comes after shares
~__overflow__~. An instance's series end with its registration. Beside these there are the Go runtime's and the process's own
(~go_*~, ~process_*~).

| metric | type | labels | meaning |
|---|---|---|---|
`, "~", "`"))
	families := slices.SortedFunc(slices.Values(newMetrics(t).Families()), func(a, b metrics.Family) int { return strings.Compare(a.Name, b.Name) })
	for _, f := range families {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.Name, f.Type, strings.Join(f.Labels, ", "), f.Help)
	}
	const path = "../../docs/metrics.md"
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != b.String() {
		t.Errorf("%s is not what is registered (go test ./pkg/metrics -update writes it anew) %v", path, err)
	}
}

// Many requests are a route's first at once.
func TestTheFirstRequestsOfARouteAreCounted(t *testing.T) {
	m := newMetrics(t)
	for i := range 50 {
		r := m.Route(fmt.Sprintf("r%d", i), "u")
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				r.Begin()
				r.End(metrics.Request{Method: "GET", Status: 200})
			})
		}
		wg.Wait()
		if got := r.Stats().Requests; got != 4 {
			t.Fatalf("%d requests, want 4", got)
		}
	}
	wantLine(t, scrape(t, m), `proconsul_requests_total{code="200",method="GET",route="r49",upstream="u"} 4`)
}
