package app_test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/proconsul/proconsul/pkg/parts"
)

// receiver is a collector that understands OTLP over HTTP.
type receiver struct {
	*httptest.Server
	status atomic.Int64 // that it answers with; 0: 200

	mu       sync.Mutex
	spans    []*otlp.Span
	resource map[string]string
	header   http.Header
}

// newReceiver returns one that is not started yet.
func newReceiver(t testing.TB) *receiver {
	rc := &receiver{}
	rc.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var sent collector.ExportTraceServiceRequest
		if err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" || proto.Unmarshal(body, &sent) != nil {
			t.Errorf("not OTLP: %s %s %s, %v", r.Method, r.URL, r.Header.Get("Content-Type"), err)
		}
		if code := rc.status.Load(); code != 0 {
			w.WriteHeader(int(code))
			return
		}
		rc.mu.Lock()
		defer rc.mu.Unlock()
		rc.header = r.Header
		for _, rs := range sent.ResourceSpans {
			rc.resource = attributes(rs.Resource.Attributes)
			for _, ss := range rs.ScopeSpans {
				rc.spans = append(rc.spans, ss.Spans...)
			}
		}
	}))
	return rc
}

func startReceiver(t testing.TB) *receiver {
	rc := newReceiver(t)
	rc.Start()
	t.Cleanup(rc.Close)
	return rc
}

// of returns the spans of a kind, in the order of their beginning.
func (rc *receiver) of(kind otlp.Span_SpanKind) []*otlp.Span {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	var list []*otlp.Span
	for _, s := range rc.spans {
		if s.Kind == kind {
			list = append(list, s)
		}
	}
	slices.SortStableFunc(list, func(a, b *otlp.Span) int { return int(int64(a.StartTimeUnixNano) - int64(b.StartTimeUnixNano)) })
	return list
}

func (rc *receiver) servers() []*otlp.Span { return rc.of(otlp.Span_SPAN_KIND_SERVER) }
func (rc *receiver) clients() []*otlp.Span { return rc.of(otlp.Span_SPAN_KIND_CLIENT) }

func attributes(list []*common.KeyValue) map[string]string {
	m := map[string]string{}
	for _, kv := range list {
		switch v := kv.Value.Value.(type) {
		case *common.AnyValue_StringValue:
			m[kv.Key] = v.StringValue
		case *common.AnyValue_IntValue:
			m[kv.Key] = fmt.Sprint(v.IntValue)
		default:
			m[kv.Key] = fmt.Sprint(v)
		}
	}
	return m
}

// has fails where an attribute is not what it has to be; "" means absent.
func has(t *testing.T, s *otlp.Span, want map[string]string) {
	t.Helper()
	got := attributes(s.Attributes)
	for key, value := range want {
		if got[key] != value {
			t.Errorf("%s: %s is %q, want %q; of %v", s.Name, key, got[key], value, got)
		}
	}
}

// deadPort is an address that refuses connections. It is none that the kernel
// would give to the next who listens on any.
func deadPort(t testing.TB) string {
	return fmt.Sprintf("127.0.0.1:%d", parts.FreePorts(t, 1)[0])
}

// tracedGateway is a gateway in front of an instance that keeps the traceparent
// of its requests, and one that is dead.
func tracedGateway(t testing.TB, rc *receiver, tracing string) (in *inside, parents func() []http.Header) {
	var mu sync.Mutex
	var got []http.Header
	live := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		got = append(got, http.Header{"Traceparent": r.Header["Traceparent"], "Tracestate": r.Header["Tracestate"]})
		mu.Unlock()
		io.WriteString(w, "ok")
	}))
	t.Cleanup(live.Close)
	in = startInside(t, fmt.Sprintf(`version: 1
listen: [{name: public, addr: "127.0.0.1:0"}, {name: inner, addr: "127.0.0.1:0", trusted_proxies: ["127.0.0.1/32"]}]
admin: {addr: "127.0.0.1:0", tokens: [{name: sre, role: operator, token: op-secret}]}
shutdown: {delay: 0s, grace: 1s}
consul: {disabled: true}
tracing: {endpoint: %q, %s}
upstreams:
  - {name: orders, balance: round_robin, outlier: {disabled: true}, breaker: {disabled: true}, retry: {attempts: 1, min_rate: 1000}, instances: [{address: %q}, {address: %q}]}
  - {name: fine, instances: [{address: %[4]q}]}
routes:
  - {name: orders, match: {path: "/api/orders/{id}"}, upstream: {service: orders}, rate_limit: {by: route, limits: [100000/1h]}}
  - {name: fine, match: {path: "/fine/**"}, upstream: {service: fine}}
`, rc.URL, tracing, deadPort(t), live.Listener.Addr()))
	return in, func() []http.Header {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(got)
	}
}

func (in *inside) get(listener, path string, headers ...string) int {
	in.t.Helper()
	r, err := http.NewRequest("GET", "http://"+in.app.Addr(listener)+path, nil)
	if err != nil {
		in.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		in.t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// TestARequestAndItsTriesAreSpans sends requests of which some are tried twice,
// and reads what a collector gets when the gateway goes down.
func TestARequestAndItsTriesAreSpans(t *testing.T) {
	rc := startReceiver(t)
	in, parents := tracedGateway(t, rc, `ratio: 100%, service: edge, headers: [{name: x-collector-key, value: letmein}]`)
	for range 4 {
		if code := in.get("public", "/api/orders/42?token=hunter2"); code != 200 {
			t.Fatalf("status %d", code)
		}
	}
	in.get("public", "/nowhere")
	in.stop()

	servers, clients := rc.servers(), rc.clients()
	if len(servers) != 5 || len(clients) < 5 { // some of the four have met the dead one first
		t.Fatalf("%d server and %d client spans", len(servers), len(clients))
	}
	if rc.header.Get("X-Collector-Key") != "letmein" {
		t.Error("the collector did not get its header")
	}
	for key, value := range map[string]string{"service.name": "edge", "service.version": "v0.0.0-test", "service.instance.id": in.app.ID()} {
		if rc.resource[key] != value {
			t.Errorf("resource %s is %q, want %q", key, rc.resource[key], value)
		}
	}
	sent := map[string]bool{}
	for _, h := range parents() {
		sent[h.Get("Traceparent")] = true
	}
	twice := 0
	for i, s := range servers[:4] {
		if s.Name != "GET /api/orders/{id}" || len(s.ParentSpanId) != 0 || s.Status.GetCode() != otlp.Status_STATUS_CODE_UNSET {
			t.Errorf("span %q, parent %x, status %v", s.Name, s.ParentSpanId, s.Status)
		}
		has(t, s, map[string]string{"http.request.method": "GET", "http.route": "/api/orders/{id}", "http.response.status_code": "200",
			"url.path": "/api/orders/42", "url.query": "", "url.scheme": "http", "server.address": "127.0.0.1", "client.address": "127.0.0.1",
			"proconsul.route": "orders", "proconsul.upstream": "orders", "proconsul.ratelimit": "allowed", "proconsul.reason": ""})
		var tries []*otlp.Span
		for _, c := range clients {
			if string(c.TraceId) == string(s.TraceId) {
				tries = append(tries, c)
				if string(c.ParentSpanId) != string(s.SpanId) || c.StartTimeUnixNano < s.StartTimeUnixNano || c.EndTimeUnixNano > s.EndTimeUnixNano || c.EndTimeUnixNano < c.StartTimeUnixNano {
					t.Errorf("request %d: the try is no part of it: %v of %v", i, c, s)
				}
			}
		}
		if len(tries) == 2 {
			twice++
			has(t, tries[0], map[string]string{"proconsul.reason": "upstream_refused", "error.type": "upstream_refused", "http.response.status_code": "", "http.request.resend_count": ""})
			if tries[0].Status.GetCode() != otlp.Status_STATUS_CODE_ERROR {
				t.Errorf("a refused try has status %v", tries[0].Status)
			}
			has(t, tries[1], map[string]string{"http.request.resend_count": "1"})
		}
		last := tries[len(tries)-1]
		has(t, last, map[string]string{"http.request.method": "GET", "http.response.status_code": "200", "proconsul.upstream": "orders", "server.address": "127.0.0.1", "proconsul.reason": ""})
		if attributes(last.Attributes)["server.port"] == "" || len(last.Events) == 0 {
			t.Errorf("the try does not say how it went: %v", last)
		}
		if tp := fmt.Sprintf("00-%x-%x-01", s.TraceId, last.SpanId); !sent[tp] {
			t.Errorf("no instance got %s: %v", tp, sent)
		}
	}
	if len(clients) != 4+twice {
		t.Errorf("%d spans of tries, %d requests with two", len(clients), twice)
	}
	if s := servers[4]; s.Name != "GET" {
		t.Errorf("a request of no route is called %q", s.Name)
	}
	has(t, servers[4], map[string]string{"http.response.status_code": "404", "proconsul.reason": "no_route", "http.route": ""})

	// The access log tells of the same trace.
	var line struct{ TraceID, SpanID string }
	if err := json.Unmarshal([]byte(strings.ReplaceAll(strings.SplitN(in.access.String(), "\n", 2)[0], "_id", "id")), &line); err != nil {
		t.Fatal(err)
	}
	if line.TraceID != fmt.Sprintf("%x", servers[0].TraceId) || line.SpanID != fmt.Sprintf("%x", servers[0].SpanId) {
		t.Errorf("access log %+v, span %x of %x", line, servers[0].SpanId, servers[0].TraceId)
	}
}

const (
	callersTrace = "0af7651916cd43dd8448eb211c80319c"
	callersSpan  = "b7ad6b7169203331"
)

func traceparent(flags string) string {
	return "Traceparent: 00-" + callersTrace + "-" + callersSpan + "-" + flags
}

// A caller's trace is continued as far as the caller is believed.
func TestWhoseTraceIsContinued(t *testing.T) {
	tests := []struct {
		name, tracing, listener string
		headers                 []string
		continued               bool
		spans                   int
		flags                   string // that the instance gets
	}{
		{"nobody's, all kept", "ratio: 100%", "public", nil, false, 1, "01"},
		{"nobody's, none kept", "ratio: 0%", "public", nil, false, 0, "00"},
		{"a stranger's is linked", "ratio: 100%", "public", []string{traceparent("00")}, false, 1, "01"},
		{"a stranger cannot have it kept", "ratio: 0%", "public", []string{traceparent("01")}, false, 0, "00"},
		{"a proxy's that is kept", "ratio: 0%", "inner", []string{traceparent("01"), "Tracestate: a=1", "Tracestate: b=2"}, true, 1, "01"},
		{"a proxy's that is not", "ratio: 100%", "inner", []string{traceparent("00")}, true, 0, "00"},
		{"everyone's", "ratio: 0%, parent: always", "public", []string{traceparent("01")}, true, 1, "01"},
		{"nobody is believed", "ratio: 100%, parent: never", "inner", []string{traceparent("01")}, false, 1, "01"},
		{"nonsense", "ratio: 100%", "inner", []string{"Traceparent: 00-" + strings.ToUpper(callersTrace) + "-" + callersSpan + "-01"}, false, 1, "01"},
		{"two of them", "ratio: 0%", "inner", []string{traceparent("01"), traceparent("01")}, false, 0, "00"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rc := startReceiver(t)
			in, parents := tracedGateway(t, rc, tt.tracing)
			in.get(tt.listener, "/fine/a", append(tt.headers, "Tracestate: c=3")...)
			in.stop()
			got := parents()[0].Get("Traceparent")
			if len(got) != 55 || !strings.HasSuffix(got, "-"+tt.flags) || strings.Contains(got, callersSpan) {
				t.Errorf("the instance got %q", got)
			}
			if strings.Contains(got, callersTrace) != tt.continued {
				t.Errorf("the instance got %q, continued: %v", got, tt.continued)
			}
			if state := strings.Join(parents()[0]["Tracestate"], ";"); (state != "") != tt.continued || len(tt.headers) == 3 && state != "a=1,b=2,c=3" {
				t.Errorf("the instance got state %q", state)
			}
			servers := rc.servers()
			if len(servers) != tt.spans || len(rc.clients()) != tt.spans {
				t.Fatalf("%d spans of requests, %d of tries, want %d", len(servers), len(rc.clients()), tt.spans)
			}
			if tt.spans == 0 {
				return
			}
			s := servers[0]
			linked := len(s.Links) == 1 && fmt.Sprintf("%x", s.Links[0].TraceId) == callersTrace && fmt.Sprintf("%x", s.Links[0].SpanId) == callersSpan
			if parent := fmt.Sprintf("%x", s.ParentSpanId); (parent == callersSpan) != tt.continued || parent != "" && !tt.continued {
				t.Errorf("parent %q, continued: %v", parent, tt.continued)
			}
			if wantLink := !tt.continued && len(tt.headers) > 0 && strings.Contains(tt.headers[0], callersTrace); linked != wantLink {
				t.Errorf("linked: %v, want %v", linked, wantLink)
			}
		})
	}
}

// The ratio is the traces' own: replicas that decide apart decide alike.
func TestARatioIsKept(t *testing.T) {
	rc := startReceiver(t)
	in, _ := tracedGateway(t, rc, "ratio: 20%")
	for range 400 {
		in.get("public", "/fine/a")
	}
	in.stop()
	if n := len(rc.servers()); n < 40 || n > 125 { // five standard deviations
		t.Errorf("%d of 400 requests are kept, want 80", n)
	}
}

// A collector that fails costs spans, never requests, and one line of the log.
func TestACollectorThatFails(t *testing.T) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
	rc := startReceiver(t)
	rc.status.Store(http.StatusBadRequest)
	in, _ := tracedGateway(t, rc, "ratio: 100%")
	failed := func() string {
		_, text := in.call("GET /metrics", "")
		i := strings.Index(text, `proconsul_trace_spans_total{result="failed"} `)
		if i < 0 {
			t.Fatal("no metric tells of spans")
		}
		return strings.Fields(text[i:])[1]
	}
	for want := 2; want <= 10; want += 2 {
		if code := in.get("public", "/fine/a"); code != 200 {
			t.Fatalf("status %d", code)
		}
		parts.Eventually(t, patience, "the spans are not counted as failed", func() bool { return failed() == fmt.Sprint(want) })
	}
	rc.status.Store(0)
	in.get("public", "/fine/a")
	parts.Eventually(t, patience, "no span comes to a collector that works again", func() bool { return len(rc.servers()) == 1 })
	in.stop()
	if n := strings.Count(in.log.String(), "spans cannot be sent"); n != 1 {
		t.Errorf("%d lines about lost spans, want 1:\n%s", n, in.log)
	}
	if !strings.Contains(in.log.String(), "spans are sent again") {
		t.Errorf("the log does not say that it works again:\n%s", in.log)
	}
}

// A collector goes over to another authority: with that one in ca_file spans
// come to it again, without a restart or a reload.
func TestTheCollectorsAuthorityChanges(t *testing.T) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
	old, next := parts.NewAuthority(t, "old"), parts.NewAuthority(t, "next")
	file := filepath.Join(t.TempDir(), "ca.pem")
	old.WriteTo(t, file)
	rc := newReceiver(t)
	var shown atomic.Pointer[tls.Certificate]
	show := func(by *parts.Authority) {
		pair := by.Issue(t, parts.Leaf{Name: "collector", Names: []string{"127.0.0.1"}}).Pair(t)
		shown.Store(&pair)
		rc.CloseClientConnections()
	}
	show(old)
	rc.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{*shown.Load()}}, nil
	}}
	rc.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0) // of handshakes that are to fail
	rc.StartTLS()
	t.Cleanup(rc.Close)
	in, _ := tracedGateway(t, rc, fmt.Sprintf("ratio: 100%%, ca_file: %q", file))
	comes := func(what string) {
		t.Helper()
		before := len(rc.servers())
		in.get("public", "/fine/a")
		parts.Eventually(t, patience, what, func() bool { return len(rc.servers()) > before })
	}
	comes("no span comes to the collector")
	show(next)
	in.get("public", "/fine/a")
	parts.Eventually(t, patience, "spans come to a collector that nobody vouches for", func() bool { return strings.Contains(in.log.String(), "spans cannot be sent") })
	parts.Eventually(t, patience, "a span of that request is still to be sent", func() bool { // or the new file would bring it
		_, text := in.call("GET /metrics", "")
		return strings.Contains(text, `proconsul_trace_spans_total{result="failed"} 2`+"\n")
	})
	before := len(rc.servers())
	next.WriteTo(t, file)
	parts.Eventually(t, patience, "the file is not taken over", func() bool {
		return strings.Contains(in.log.String(), `msg="certificates taken over" component=tls of=tracing`)
	})
	if n := len(rc.servers()); n != before {
		t.Errorf("%d spans came meanwhile", n-before)
	}
	comes("no span comes to the collector by the new file")
}
