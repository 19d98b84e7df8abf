package metrics_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/metrics"
	"github.com/proconsul/proconsul/pkg/middleware"
	mw "github.com/proconsul/proconsul/pkg/middleware/metrics"
	"github.com/proconsul/proconsul/pkg/problem"
)

// of is the recorder of all requests.
func of(m *metrics.Metrics, route, upstream string) func(*middleware.Exchange) *metrics.Route {
	r := m.Route(route, upstream)
	return func(*middleware.Exchange) *metrics.Route { return r }
}

func TestMiddlewareCountsWhatTheClientSaw(t *testing.T) {
	tests := []struct {
		name    string
		method  string
		handler http.HandlerFunc
		want    []string
		never   string
	}{
		{"an instance's answer", "POST", func(w http.ResponseWriter, r *http.Request) {
			ex := middleware.Of(w)
			ex.BytesIn, ex.Upstreamed, ex.FirstByte = 7, 3*time.Second, 3*time.Second+2*time.Millisecond
			w.WriteHeader(201)
			io.WriteString(w, "hello")
		}, []string{
			`proconsul_requests_total{code="201",method="POST",route="orders",upstream="up"} 1`,
			`proconsul_request_bytes_total{route="orders"} 7`,
			`proconsul_response_bytes_total{route="orders"} 5`,
			`proconsul_overhead_seconds_bucket{le="0.0025"} 1`,
			`proconsul_overhead_seconds_bucket{le="0.001"} 0`,
		}, ""},
		{"an answer of the gateway's own", "GET", func(w http.ResponseWriter, r *http.Request) {
			problem.Write(w, r, problem.New(problem.RateLimited, "", nil))
		}, []string{
			`proconsul_requests_total{code="429",method="GET",route="orders",upstream="up"} 1`,
			`proconsul_local_responses_total{reason="rate_limited",route="orders"} 1`,
			`proconsul_overhead_seconds_count 1`,
		}, ""},
		{"a handler that says nothing", "GET", func(http.ResponseWriter, *http.Request) {}, []string{
			`proconsul_requests_total{code="200",method="GET",route="orders",upstream="up"} 1`,
		}, ""},
		{"a client that left", "GET", func(w http.ResponseWriter, r *http.Request) {
			problem.Write(w, r, problem.New(problem.ClientCanceled, "", nil))
		}, []string{
			`proconsul_requests_total{code="499",method="GET",route="orders",upstream="up"} 1`,
			`proconsul_request_duration_seconds_count{class="4xx",route="orders",upstream="up"} 1`,
			`proconsul_overhead_seconds_count 0`,
		}, ""},
		{"an answer that broke off", "GET", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			panic(http.ErrAbortHandler)
		}, []string{
			`proconsul_requests_total{code="200",method="GET",route="orders",upstream="up"} 1`,
			`proconsul_requests_in_flight{route="orders"} 0`,
		}, ""},
		{"an answer that broke off before it began", "GET", func(http.ResponseWriter, *http.Request) {
			panic(http.ErrAbortHandler)
		}, []string{`proconsul_requests_total{code="500",method="GET",route="orders",upstream="up"} 1`}, ""},
		{"an upgraded connection", "GET", func(w http.ResponseWriter, r *http.Request) {
			ex := middleware.Of(w)
			ex.Start = ex.Start.Add(-time.Hour)
			ex.Hijacked, ex.FirstByte = true, 20*time.Millisecond
		}, []string{
			`proconsul_requests_total{code="101",method="GET",route="orders",upstream="up"} 1`,
			`proconsul_request_duration_seconds_bucket{class="1xx",route="orders",upstream="up",le="0.025"} 1`,
			`proconsul_overhead_seconds_count 0`,
		}, ""},
		{"hostile input", "BREW", func(w http.ResponseWriter, r *http.Request) {
			r.Method = "CHANGED"
			problem.Write(w, r, problem.New(problem.NoRoute, "", nil))
		}, []string{`proconsul_requests_total{code="404",method="_OTHER",route="orders",upstream="up"} 1`}, "secret"},
	}
	for _, tt := range tests {
		for _, inGateway := range []bool{true, false} {
			t.Run(tt.name, func(t *testing.T) {
				m := metrics.New(metrics.Options{Reasons: []string{string(problem.RateLimited), string(problem.NoRoute)}})
				h := mw.New(of(m, "orders", "up"))(tt.handler)
				r := httptest.NewRequest(tt.method, "/secret?secret=secret", nil)
				r.Header.Set("X-Secret", "secret")
				var w http.ResponseWriter = httptest.NewRecorder()
				if inGateway {
					w = middleware.NewExchange(w, time.Now())
				}
				func() {
					defer func() {
						if v := recover(); v != nil && v != http.ErrAbortHandler {
							panic(v)
						}
					}()
					h.ServeHTTP(w, r)
				}()
				scrape := httptest.NewRecorder()
				m.Handler().ServeHTTP(scrape, httptest.NewRequest("GET", "/metrics", nil))
				for _, line := range tt.want {
					if !strings.Contains(scrape.Body.String(), line+"\n") {
						t.Errorf("no %s in\n%s", line, grep(scrape.Body.String(), line[:25]))
					}
				}
				if tt.never != "" && strings.Contains(scrape.Body.String(), tt.never) {
					t.Errorf("%q is in a scrape", tt.never)
				}
			})
		}
	}
}

func TestInFlightWhileARequestRuns(t *testing.T) {
	m := metrics.New(metrics.Options{})
	scrape := func() string {
		w := httptest.NewRecorder()
		m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		return w.Body.String()
	}
	during := ""
	h := mw.New(of(m, "", ""))(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { during = scrape() }))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	if line := `proconsul_requests_in_flight{route="_none"} `; !strings.Contains(during, line+"1\n") || !strings.Contains(scrape(), line+"0\n") {
		t.Errorf("during: %s after: %s", grep(during, line), grep(scrape(), line))
	}
}

func TestNoAllocations(t *testing.T) {
	m := metrics.New(metrics.Options{})
	h := mw.New(of(m, "orders", "up"))(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }))
	r := httptest.NewRequest("GET", "/", nil)
	ex := middleware.NewExchange(discard{}, time.Now())
	if n := testing.AllocsPerRun(1000, func() { h.ServeHTTP(ex, r) }); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}

type discard struct{}

func (discard) Header() http.Header         { return nil }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

func grep(text, prefix string) string {
	var b strings.Builder
	for l := range strings.Lines(text) {
		if strings.HasPrefix(l, prefix) {
			b.WriteString(l)
		}
	}
	return b.String()
}
