package app_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/parts"
)

// TestAnOperatorTracesARequest sends requests through the gateway at an
// operator's word, and compares what it is told with what happened.
func TestAnOperatorTracesARequest(t *testing.T) {
	var mu sync.Mutex
	var got []http.Header
	live := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		got = append(got, r.Header)
		mu.Unlock()
		if r.URL.Path == "/broken" {
			w.Header().Set("Content-Length", "1000000")
			w.Write(make([]byte, 900_000)) // more than is held back
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, "got "+string(b))
	}))
	defer live.Close()
	dead := deadPort(t)
	in := startInside(t, fmt.Sprintf(operatorsHead+`consul: {disabled: true}
consumers: [{name: acme, api_keys: [{id: k, sha256: "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"}]}]
upstreams:
  - {name: two, balance: round_robin, outlier: {disabled: true}, breaker: {disabled: true}, retry: {attempts: 1, min_rate: 1000}, instances: [{address: %q}, {address: %q}]}
  - {name: one, instances: [{address: %[2]q}]}
routes:
  - {name: two, match: {path: "/two/**"}, upstream: {service: two, strip: /two}, auth: {any_of: [api-key]}, rate_limit: {by: client_ip, limits: [3/1h]}}
  - {name: one, match: {path: "/**"}, upstream: {service: one}}
  - {name: old, match: {host: old.test}, redirect: {to: "https://shop.test{path}", code: 308}}
`, dead, live.Listener.Addr()))
	trace := func(body string) admin.Traced {
		t.Helper()
		return ask[admin.Traced](in, "POST /api/v1/traces", body, asOperator)
	}
	steps := func(tr admin.Traced) string {
		var parts []string
		for _, s := range tr.Steps {
			parts = append(parts, s.Name+" "+s.Verdict)
		}
		return strings.Join(parts, ", ")
	}

	// One that is tried twice, since round robin meets the dead one.
	var tr admin.Traced
	for range 2 {
		tr = trace(`{"method":"PUT","url":"http://shop.test/two/a?token=hunter2","headers":["X-API-Key: key"],"client_ip":"203.0.113.9","body":"hello"}`)
		if len(tr.Tries) == 2 {
			break
		}
	}
	if want := "request_id pass, access_log pass, metrics pass, recovery pass, auth pass, rate_limit pass, proxy pass"; steps(tr) != want {
		t.Errorf("steps are %s, want %s", steps(tr), want)
	}
	if tr.Route == nil || tr.Route.Name != "two" || tr.Upstream != "two" || tr.Request.ClientIP != "203.0.113.9" || tr.Request.Path != "/two/a" || len(tr.RequestID) != 26 {
		t.Errorf("got %+v", tr)
	}
	texts := map[string]string{}
	for _, s := range tr.Steps {
		texts[s.Name] = s.Text
		if s.Name == "proxy" && s.Before <= 0 {
			t.Errorf("the proxy took no time: %+v", s)
		}
	}
	if texts["auth"] != "the caller is acme" || texts["rate_limit"] != "allowed" {
		t.Errorf("the steps say %v", texts)
	}
	if len(tr.Tries) != 2 {
		t.Fatalf("%d tries: %+v", len(tr.Tries), tr.Tries)
	}
	first, second := tr.Tries[0], tr.Tries[1]
	if first.Address != dead || first.Reason != "upstream_refused" || first.Connection != "none" || first.Status != 0 {
		t.Errorf("the first try is %+v", first)
	}
	if second.Address != live.Listener.Addr().String() || second.Status != 200 || second.Reason != "" || second.FirstByte <= 0 || second.Took < second.FirstByte ||
		second.Connection == "new" && second.Dial <= 0 || second.Connection == "none" {
		t.Errorf("the second try is %+v", second)
	}
	if a := tr.Answer; a.From != "instance" || a.Status != 200 || a.Bytes != int64(len("got hello")) || a.Broken || a.Took < a.FirstByte || a.FirstByte <= 0 || a.Gateway < 0 {
		t.Errorf("the answer is %+v", a)
	}
	mu.Lock()
	for _, h := range got {
		if h.Get("X-Proconsul-Trace") != "" || h.Get("X-Forwarded-For") != "203.0.113.9" {
			t.Errorf("the instance got %v", h)
		}
	}
	mu.Unlock()

	refused := []struct{ name, body, steps, reason string }{
		{"no credential", `{"url":"http://shop.test/two/a"}`, "request_id pass, access_log pass, metrics pass, recovery pass, auth refuse", "unauthenticated"},
		{"a path that no server reads", `{"url":"http://shop.test/%00"}`, "", "bad_request"},
	}
	for _, tt := range refused {
		tr := trace(tt.body)
		if steps(tr) != tt.steps || tr.Answer.Reason != tt.reason || tr.Answer.From != "gateway" || len(tr.Tries) != 0 {
			t.Errorf("%s: %s, %+v", tt.name, steps(tr), tr.Answer)
		}
	}
	limited := false
	for range 4 { // two or one are used up
		tr := trace(`{"url":"/two/a","headers":["X-API-Key: key"],"client_ip":"203.0.113.9"}`)
		if limited = tr.Answer.Status == 429; limited {
			if s := tr.Steps[len(tr.Steps)-1]; s.Name != "rate_limit" || s.Verdict != "refuse" || s.Reason != "rate_limited" || s.Text != "limited" {
				t.Errorf("the limit says %+v", s)
			}
			break
		}
	}
	if !limited {
		t.Error("requests that are traced are not limited")
	}
	if tr := trace(`{"url":"http://old.test/cart"}`); tr.Answer.Status != 308 || tr.Answer.From != "gateway" || !strings.HasSuffix(steps(tr), "redirect answer") {
		t.Errorf("a redirect: %s, %+v", steps(tr), tr.Answer)
	}
	if tr := trace(`{"url":"/broken"}`); !tr.Answer.Broken || tr.Answer.From != "instance" || tr.Answer.Reason != "upstream_reset" {
		t.Errorf("an answer that breaks off: %+v", tr.Answer)
	}

	// It is an act like any other.
	events := ask[struct{ Events []admin.Event }](in, "GET /api/v1/events", "", asOperator)
	if !slices.ContainsFunc(events.Events, func(e admin.Event) bool {
		return e.Actor == "sre" && e.Message == "trace PUT http://shop.test/two/a"
	}) {
		t.Errorf("nobody has kept who traced: %+v", events.Events)
	}
	for what, text := range map[string]string{"log": in.log.String(), "access log": in.access.String()} {
		if strings.Contains(text, "hunter2") || strings.Contains(text, "X-Proconsul-Trace") {
			t.Errorf("the %s tells of the query or of a ticket", what)
		}
	}

	// A client's own ticket is nothing, and goes no further.
	mu.Lock()
	got = nil
	mu.Unlock()
	in.get("public", "/plain", "X-Proconsul-Trace: "+strings.Repeat("A", 75))
	mu.Lock()
	defer mu.Unlock()
	if len(got) != 1 || got[0].Get("X-Proconsul-Trace") != "" {
		t.Errorf("the instance got %v", got)
	}
}

// A listener with certificates is traced as clients use it: by TLS, whatever
// names its certificate is for.
func TestATraceGoesThroughTLS(t *testing.T) { onBothEngines(t, testTraceTLS) }

func testTraceTLS(t *testing.T, engine string) {
	ca := parts.NewAuthority(t, "test")
	cert, key := filepath.Join(t.TempDir(), "shop.crt"), filepath.Join(t.TempDir(), "shop.key")
	ca.Issue(t, parts.Leaf{Name: "shop", Names: []string{"shop.test"}}).WriteTo(t, cert, key)
	text := secureText(engine, mirror(t).URL, fmt.Sprintf("certificates: [{cert_file: %q, key_file: %q}]", cert, key),
		`routes: [{name: all, match: {path: "/**"}, upstream: {service: mirror}, secure_headers: {hsts: {max_age: 1h}}}]
`)
	in := startReading(t, strings.Replace(text, "admin: {", `admin: {tokens: [{name: sre, role: operator, token: op-secret}], `, 1), config.LoadOptions{})
	trace := func(listener string) admin.Traced {
		t.Helper()
		return ask[admin.Traced](in, "POST /api/v1/traces", fmt.Sprintf(`{"url":"https://shop.test/a","listener":%q}`, listener), asOperator)
	}
	tr := trace("tls")
	if tr.Request.Scheme != "https" || tr.Request.Host != "shop.test" || tr.Request.Listener != "tls" || tr.Answer.Status != 200 || tr.Answer.From != "instance" || len(tr.Tries) != 1 {
		t.Errorf("got %+v", tr)
	}
	if tr := trace("clear"); tr.Answer.Status != 308 || tr.Answer.From != "gateway" || len(tr.Tries) != 0 {
		t.Errorf("the listener beside it, which leads to TLS: %+v", tr)
	}
	// What is explained is what was traced.
	e := ask[admin.Explanation](in, "POST /api/v1/explain", `{"url":"https://shop.test/a","listener":"tls"}`, asOperator)
	if !slices.ContainsFunc(e.Steps, func(s admin.Step) bool {
		return s.Name == "secure_headers" && strings.HasPrefix(s.Text, "sets Strict-Transport-Security, ")
	}) {
		t.Errorf("explained: %+v", e.Steps)
	}
}

// A request that an operator traces is kept whatever the ratio is.
func TestATracedRequestIsAlwaysSampled(t *testing.T) {
	rc := startReceiver(t)
	in, _ := tracedGateway(t, rc, "ratio: 0%")
	tr := ask[admin.Traced](in, "POST /api/v1/traces", `{"url":"/fine/a"}`, asOperator)
	in.get("public", "/fine/b")
	in.stop()
	servers := rc.servers()
	if len(servers) != 1 || len(rc.clients()) != 1 {
		t.Fatalf("%d and %d spans", len(servers), len(rc.clients()))
	}
	if id := fmt.Sprintf("%x", servers[0].TraceId); id != tr.TraceID {
		t.Errorf("trace %s, told %s", id, tr.TraceID)
	}
}
