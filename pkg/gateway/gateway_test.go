package gateway_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/gateway"
	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/metrics"
	"github.com/proconsul/proconsul/pkg/parts"
	"github.com/proconsul/proconsul/pkg/proxy"
)

// rig is a gateway handler in front of one instance per upstream, without
// sockets of its own.
type rig struct {
	t       testing.TB
	deps    gateway.Deps
	pools   map[string]*balancer.Pool
	metrics *metrics.Metrics
}

func newRig(t testing.TB, instances map[string]http.Handler) *rig {
	t.Helper()
	lim, err := limiter.New(limiter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, pools: map[string]*balancer.Pool{}, metrics: metrics.New(metrics.Options{})}
	breakers := breaker.NewRegistry(nil, nil)
	ups := map[string]*proxy.Upstream{}
	for name, handler := range instances {
		pool, err := balancer.New(name, balancer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := breakers.Breaker(fmt.Sprintf("%s-%s", t.Name(), name), breaker.Settings{Disabled: true})
		if err != nil {
			t.Fatal(err)
		}
		up, err := proxy.NewUpstream(name, pool, b, proxy.Settings{}, proxy.Options{})
		if err != nil {
			t.Fatal(err)
		}
		srv := httptest.NewServer(handler)
		t.Cleanup(srv.Close)
		t.Cleanup(up.Close)
		pool.Set(discovery.Snapshot{Instances: []discovery.Instance{{
			ID: "n/" + name, Address: srv.Listener.Addr().String(), Status: discovery.StatusPassing, Weight: 1,
		}}})
		r.pools[name], ups[name] = pool, up
	}
	r.deps = gateway.Deps{
		Log: slog.New(slog.DiscardHandler), Metrics: r.metrics, Limiter: lim,
		Upstream: func(name string) (*proxy.Upstream, error) {
			if up := ups[name]; up != nil {
				return up, nil
			}
			return nil, fmt.Errorf("no upstream named %q", name)
		},
	}
	return r
}

func (r *rig) parse(text string) *config.Config {
	r.t.Helper()
	cfg, err := config.Parse("test.yaml", []byte(text), config.LoadOptions{Pure: true})
	if err != nil {
		r.t.Fatal(err)
	}
	return cfg
}

func (r *rig) handler(text string) (*gateway.Handler, http.Handler) {
	r.t.Helper()
	cfg := r.parse(text)
	table, err := gateway.Build(cfg, r.deps)
	if err != nil {
		r.t.Fatal(err)
	}
	h := gateway.NewHandler(table)
	return h, h.Listener(cfg.Listen[0])
}

// saw answers with the method, path and query that it was asked for.
var saw = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	fmt.Fprintf(w, "%s %s", r.Method, r.RequestURI)
})

func get(h http.Handler, method, target string, body io.Reader) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, body))
	return w
}

const routes = `version: 1
listen: [{addr: ":0", limits: {max_body_bytes: 1KiB, max_headers: 10}}]
routes:
  - {name: api, match: {path: "/api/**", methods: [GET, POST]}, upstream: {service: a, strip: /api}}
  - {name: admin, match: {path: "/api/admin/**"}, upstream: {service: b}}
  - {name: old, match: {host: old.test}, redirect: {to: "https://new.test{path}{query}", code: 308}}
`

func TestRequestsReachTheInstanceInTheirCanonicalForm(t *testing.T) {
	_, h := newRig(t, map[string]http.Handler{"a": saw, "b": saw}).handler(routes)
	for _, tc := range []struct{ target, want string }{
		{"http://h/api/x?q=1;2&bad=%zz", "GET /x?q=1;2&bad=%zz"},
		{"http://h/api", "GET /"},
		{"http://h/api/a/../b//c/%7euser", "GET /b/c/~user"},
		{"http://h/api/x/../admin/y", "GET /api/admin/y"},
		{"http://h/api/%61dmin/y", "GET /api/admin/y"},
		{"http://h/api;v=1/admin/y", "GET /api;v=1/admin/y"},
		{"http://h/api/caf%c3%a9/(x)", "GET /caf%C3%A9/(x)"},
	} {
		if got := get(h, "GET", tc.target, nil).Body.String(); got != tc.want {
			t.Errorf("GET %s reached the instance as %q, want %q", tc.target, got, tc.want)
		}
	}
}

func TestAnswersOfTheGatewayItself(t *testing.T) {
	rig := newRig(t, map[string]http.Handler{"a": saw, "b": saw})
	_, h := rig.handler(routes)
	manyFields := httptest.NewRequest("GET", "http://h/api/x", nil)
	for i := range 11 {
		manyFields.Header.Add("X-Repeated", fmt.Sprint(i))
	}
	noToken := httptest.NewRequest("GET", "http://h/other", nil)
	noToken.Method = "\xff" // as HTTP/2 can have it
	for _, tc := range []struct {
		name         string
		r            *http.Request
		status       int
		reason       string
		header, want string
	}{
		{"no route", httptest.NewRequest("GET", "http://h/other", nil), 404, "no_route", "Content-Type", "application/problem+json"},
		{"wrong method", httptest.NewRequest("PUT", "http://h/api/x", nil), 405, "method_not_allowed", "Allow", "GET, HEAD, POST"},
		{"backslash", httptest.NewRequest("GET", "http://h/api/%5c..%5cadmin", nil), 400, "bad_request", "Cache-Control", "no-store"},
		{"encoded slash", httptest.NewRequest("GET", "http://h/api/%2fadmin", nil), 400, "bad_request", "Proxy-Status", "proconsul; error=http_request_error"},
		{"announced body", httptest.NewRequest("POST", "http://h/api/x", strings.NewReader(strings.Repeat("x", 1025))), 413, "body_too_large", "", ""},
		{"many fields", manyFields, 431, "bad_request", "", ""},
		{"method that is no token", noToken, 400, "bad_request", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, tc.r)
			if w.Code != tc.status || w.Header().Get("X-Proconsul-Reason") != tc.reason || tc.header != "" && w.Header().Get(tc.header) != tc.want {
				t.Errorf("answered %d %v, want %d %s and %s %q", w.Code, w.Header(), tc.status, tc.reason, tc.header, tc.want)
			}
			var body struct{ Type, Title, Reason, RequestID string }
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Reason != tc.reason || body.Title == "" || !strings.HasSuffix(body.Type, "#"+tc.reason) {
				t.Errorf("body %s: %v", w.Body, err)
			}
			if w.Header().Get("X-Request-Id") == "" {
				t.Error("no X-Request-Id")
			}
		})
	}
}

// A chunked body has no length to refuse beforehand.
func TestAStreamedBodyIsCutAtTheLimit(t *testing.T) {
	_, h := newRig(t, map[string]http.Handler{"a": saw, "b": saw}).handler(routes)
	r := httptest.NewRequest("POST", "http://h/api/x", io.LimitReader(endless{}, 1<<20))
	r.ContentLength = -1
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 413 || w.Header().Get("X-Proconsul-Reason") != "body_too_large" {
		t.Errorf("answered %d %v, want 413 body_too_large", w.Code, w.Header())
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestRedirectKeepsPathAndQuery(t *testing.T) {
	_, h := newRig(t, map[string]http.Handler{"a": saw, "b": saw}).handler(routes)
	w := get(h, "GET", "http://old.test/a%20b/c?x=1&y", nil)
	if got := w.Header().Get("Location"); w.Code != 308 || got != "https://new.test/a%20b/c?x=1&y" {
		t.Errorf("answered %d to %q", w.Code, got)
	}
}

func TestAnEncodedSlashIsKeptWhereTheListenerSaysSo(t *testing.T) {
	_, h := newRig(t, map[string]http.Handler{"a": saw}).handler(`version: 1
listen: [{addr: ":0", encoded_slash: keep}]
routes: [{name: all, match: {path: "/p/**"}, upstream: {service: a}}]
`)
	if got := get(h, "GET", "http://h/p/group%2fproject", nil).Body.String(); got != "GET /p/group%2Fproject" {
		t.Errorf("the instance saw %q", got)
	}
	if w := get(h, "GET", "http://h/p/..%2fadmin", nil); w.Code != 400 {
		t.Errorf("a dot segment behind an encoded slash answered %d %s", w.Code, w.Body)
	}
}

func TestAKnownRouteNeverFallsThrough(t *testing.T) {
	rig := newRig(t, map[string]http.Handler{"a": saw, "b": saw})
	rig.pools["b"].Set(discovery.Snapshot{Instances: []discovery.Instance{{ID: "n/b", Address: "127.0.0.1:1", Status: discovery.StatusCritical, Weight: 1}}})
	_, h := rig.handler(routes)
	w := get(h, "GET", "http://h/api/admin/x", nil)
	if w.Code != 503 || w.Header().Get("X-Proconsul-Reason") != "no_healthy_instances" || w.Header().Get("Retry-After") == "" {
		t.Errorf("answered %d %v %s", w.Code, w.Header(), w.Body)
	}
}

// Requests beyond the listener's limit wait in a bounded queue and are then
// refused, while those in flight go on.
func TestListenerAdmitsSoManyAtOnce(t *testing.T) {
	release := make(chan struct{})
	slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-release; saw(w, r) })
	_, h := newRig(t, map[string]http.Handler{"a": slow}).handler(`version: 1
listen: [{addr: ":0", limits: {max_in_flight: 2, max_queue: 1, queue_timeout: 30s}}]
routes: [{name: all, match: {path: "/**"}, upstream: {service: a}}]
`)
	codes := make(chan int, 10)
	for range 10 {
		go func() { codes <- get(h, "GET", "http://h/x", nil).Code }()
	}
	for range 7 {
		if code := <-codes; code != 503 {
			t.Fatalf("one of the seven beyond limit and queue was answered %d", code)
		}
	}
	close(release)
	for range 3 {
		if code := <-codes; code != 200 {
			t.Errorf("an admitted request was answered %d", code)
		}
	}
}

func TestARouteWithoutUpstreamIsAFault(t *testing.T) {
	rig := newRig(t, map[string]http.Handler{"a": saw})
	_, err := gateway.Build(rig.parse(routes), rig.deps)
	if err == nil || !strings.Contains(err.Error(), `route admin: no upstream named "b"`) {
		t.Errorf("got %v", err)
	}
}

// Tables are swapped while requests run: each is served whole by one of them.
func TestSwapUnderLoad(t *testing.T) {
	rig := newRig(t, map[string]http.Handler{"a": saw, "b": saw})
	text := `version: 1
listen: [{addr: ":0"}]
routes: [{name: all, match: {path: "/**"}, upstream: {service: %s}}]
`
	h, serve := rig.handler(fmt.Sprintf(text, "a"))
	other, err := gateway.Build(rig.parse(fmt.Sprintf(text, "b")), rig.deps)
	if err != nil {
		t.Fatal(err)
	}
	tables := [2]*gateway.Table{h.Table(), other}
	stop := make(chan struct{})
	served := make(chan int)
	for range 4 {
		go func() {
			n := 0
			for {
				select {
				case <-stop:
					served <- n
					return
				default:
				}
				if w := get(serve, "GET", "http://h/x", nil); w.Code != 200 {
					t.Errorf("answered %d %s", w.Code, w.Body)
				}
				n++
			}
		}()
	}
	swaps := 0
	parts.Eventually(t, 30*time.Second, "both upstreams had requests", func() bool {
		swaps++
		h.Swap(tables[swaps%2])
		return rig.pools["a"].Members()[0].Picks > 50 && rig.pools["b"].Members()[0].Picks > 50
	})
	close(stop)
	for range 4 {
		<-served
	}
}

func BenchmarkRequest(b *testing.B) {
	_, h := newRig(b, map[string]http.Handler{"a": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 1024))
	})}).handler(`version: 1
listen: [{addr: ":0"}]
routes: [{name: all, match: {path: "/api/**"}, upstream: {service: a}, rate_limit: {by: client_ip, limits: [1000000000/1s]}}]
`)
	b.ReportAllocs()
	for b.Loop() {
		if w := get(h, "GET", "http://h/api/x", nil); w.Code != 200 {
			b.Fatal(w.Code)
		}
	}
}
