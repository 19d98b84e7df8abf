package gateway_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/gateway"
	"github.com/proconsul/proconsul/pkg/problem"
)

const explained = `version: 1
listen: [{addr: ":0", trusted_proxies: [10.0.0.0/8], limits: {max_headers: 12}}]
routes:
  - {name: api, match: {path: "/api/**", methods: [GET, POST]}, upstream: {service: a, strip: /api, prepend: /v1}}
  - {name: api-admin, match: {path: "/api/admin/**"}, upstream: {service: b}, headers: {request: {set: [{name: X-Secret, value: hunter2}], remove: [Cookie]}, response: {remove: [Server]}}}
  - {name: api-test, match: {path: "/api/**", methods: [GET], headers: [{name: X-Env, value: test}]}, upstream: {service: b}}
  - {name: api-beta, match: {path: "/api/**", query: [{name: beta}]}, priority: -1, upstream: {service: b}}
  - {name: shop, match: {host: shop.test, path: "/api/**"}, upstream: {service: b, host: inner.test}}
  - {name: wild, match: {host: "*.shop.test", path: "/x/{id}/y"}, upstream: {service: b, host: instance}}
  - {name: root, match: {path: "/**", methods: [GET]}, upstream: {service: a}}
  - {name: old, match: {host: old.test}, redirect: {to: "https://new.test{path}{query}", code: 308}}
  - {name: few, match: {path: /few}, upstream: {service: a}, rate_limit: {by: "header(X-Who)", limits: [2/1h, 100/1d]}}
`

func explain(t testing.TB, h *gateway.Handler, r *rig, q gateway.Question) *gateway.Explanation {
	t.Helper()
	e, err := h.Explain(context.Background(), r.parse(explained).Listen[0], q)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestExplainSaysWhichRouteServesAndWhyOthersDoNot(t *testing.T) {
	r := newRig(t, map[string]http.Handler{"a": saw, "b": saw})
	h, _ := r.handler(explained)
	for _, tc := range []struct {
		name    string
		q       gateway.Question
		route   string
		reason  problem.Reason
		target  string   // what is sent
		host    string   // of it
		wantAll []string // "route why" of the others, some of them
	}{
		{"prefix", gateway.Question{URL: "http://any.test:8080/api/./x//42?q=1"}, "api", "", "/v1/x/42?q=1", "any.test:8080",
			[]string{"root order", "shop host", "api-test header", "api-beta query"}},
		{"a more specific prefix", gateway.Question{URL: "http://any.test/api/admin"}, "api-admin", "", "/api/admin", "any.test",
			[]string{"api order", "root order"}},
		{"host", gateway.Question{URL: "https://SHOP.test./api/1"}, "shop", "", "/api/1", "inner.test", []string{"api order", "root order"}},
		{"wildcard and template", gateway.Question{URL: "http://eu.shop.test/x/7/y"}, "wild", "", "/x/7/y", "", []string{"root order"}},
		{"template misses", gateway.Question{URL: "http://eu.shop.test/x/7/z"}, "root", "", "/x/7/z", "eu.shop.test", []string{"wild path"}},
		{"header", gateway.Question{URL: "/api/x", Header: http.Header{"X-Env": {"test"}}}, "api-test", "", "/api/x", "localhost", []string{"api order"}},
		{"method", gateway.Question{Method: "PUT", URL: "/api/x"}, "", problem.MethodNotAllowed, "", "", []string{"api method", "root method", "shop host", "api-beta query"}},
		{"none", gateway.Question{Method: "PATCH", URL: "/nowhere"}, "", problem.MethodNotAllowed, "", "", []string{"root method"}},
		{"path refused", gateway.Question{URL: "/api/%2e%2e%2fadmin"}, "", problem.BadRequest, "", "", nil},
		{"redirect", gateway.Question{URL: "http://old.test/a?b"}, "old", "", "", "", []string{"root order"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := explain(t, h, r, tc.q)
			route := ""
			if e.Route != nil {
				route = e.Route.Config.Name
			}
			reason := problem.Reason("")
			if e.Refusal != nil {
				reason = e.Refusal.Reason
			}
			if route != tc.route || reason != tc.reason {
				t.Fatalf("route %q, refusal %q; want %q, %q", route, reason, tc.route, tc.reason)
			}
			target, host := "", ""
			if e.Send != nil {
				target, host = e.Send.Target, e.Send.Host
			}
			if target != tc.target || host != tc.host {
				t.Errorf("would send %q to host %q, want %q and %q", target, host, tc.target, tc.host)
			}
			for _, want := range tc.wantAll {
				if !slices.ContainsFunc(e.Others, func(o gateway.Other) bool { return o.Route+" "+o.Why == want }) {
					t.Errorf("%q is not among the others: %v", want, e.Others)
				}
			}
		})
	}
	if e := explain(t, h, r, gateway.Question{URL: "http://old.test/a?b"}); e.Location != "https://new.test/a?b" || e.Send != nil {
		t.Errorf("a redirect is explained as %+v", e)
	}
	if e := explain(t, h, r, gateway.Question{URL: "/api/admin/x"}); fmt.Sprint(e.Others[:3]) != "[{api order shorter prefix} {root order shorter prefix} {api-test header header X-Env=test differs}]" {
		t.Errorf("the others are %v", e.Others)
	}
}

func TestExplainKnowsTheClientThatALimitSees(t *testing.T) {
	r := newRig(t, map[string]http.Handler{"a": saw, "b": saw})
	h, _ := r.handler(explained)
	forwarded := http.Header{"X-Forwarded-For": {"203.0.113.9"}, "X-Forwarded-Proto": {"https"}}
	e := explain(t, h, r, gateway.Question{URL: "/api/x", Header: forwarded, Peer: netip.MustParseAddr("10.1.2.3")})
	if e.Client.String() != "203.0.113.9" || !e.Trusted || e.Scheme != "https" {
		t.Errorf("behind a trusted proxy: client %v, trusted %v, scheme %s", e.Client, e.Trusted, e.Scheme)
	}
	e = explain(t, h, r, gateway.Question{URL: "/api/x", Header: forwarded, Peer: netip.MustParseAddr("192.0.2.1")})
	if e.Client.String() != "192.0.2.1" || e.Trusted || e.Scheme != "http" {
		t.Errorf("from anybody: client %v, trusted %v, scheme %s", e.Client, e.Trusted, e.Scheme)
	}
	if len(forwarded) != 2 {
		t.Error("the question's header was used up")
	}
}

func TestExplainTakesNothing(t *testing.T) {
	r := newRig(t, map[string]http.Handler{"a": saw, "b": saw})
	h, serve := r.handler(explained)
	who := gateway.Question{URL: "/few", Header: http.Header{"X-Who": {"me"}}}
	limits := func() (left []int64, refused bool) {
		e := explain(t, h, r, who)
		for _, s := range e.Steps {
			for _, l := range s.Limits {
				left = append(left, l.Remaining)
			}
		}
		if e.Refusal != nil && e.Refusal.Reason == problem.RateLimited && e.Refusal.RetryAfter > 0 {
			refused = true
		}
		return left, refused
	}
	for used := range int64(3) {
		for range 5 {
			if left, refused := limits(); !slices.Equal(left, []int64{2 - used, 100 - used}) || refused != (used == 2) {
				t.Fatalf("after %d requests %v are left, refused: %v", used, left, refused)
			}
		}
		req := httptest.NewRequest("GET", "/few", nil)
		req.Header.Set("X-Who", "me")
		serve.ServeHTTP(httptest.NewRecorder(), req)
	}
	if m := r.pools["a"].Members()[0]; m.Picks != 2 {
		t.Errorf("the instance was picked %d times, want for the two requests that passed", m.Picks)
	}
	if s := r.metrics.Stats(); s.Requests != 3 {
		t.Errorf("%d requests were counted, want 3", s.Requests)
	}
}

func TestExplainShowsNoSecretOfARoute(t *testing.T) {
	r := newRig(t, map[string]http.Handler{"a": saw, "b": saw})
	h, _ := r.handler(explained)
	e := explain(t, h, r, gateway.Question{URL: "/api/admin/x", Header: http.Header{"Cookie": {"a=b"}}})
	if text := fmt.Sprintf("%+v %+v", e.Steps, e.Send); strings.Contains(text, "hunter2") || !strings.Contains(text, "X-Secret") || strings.Contains(text, "a=b") {
		t.Errorf("explained as %s", text)
	}
}

func TestExplainKnowsAnEmptyPool(t *testing.T) {
	r := newRig(t, map[string]http.Handler{"a": saw, "b": saw})
	h, _ := r.handler(explained)
	r.pools["a"].Set(discovery.Snapshot{Index: 2, Instances: []discovery.Instance{{ID: "n/a", Address: "127.0.0.1:1", Status: discovery.StatusMaintenance, Weight: 1}}})
	if e := explain(t, h, r, gateway.Question{URL: "/api/x"}); e.Refusal == nil || e.Refusal.Reason != problem.NoHealthyInstances {
		t.Errorf("refusal %v, want no_healthy_instances", e.Refusal)
	}
	r.pools["a"].Set(discovery.Snapshot{Index: 3})
	if e := explain(t, h, r, gateway.Question{URL: "/api/x"}); e.Refusal == nil || e.Refusal.Reason != problem.NoInstances {
		t.Errorf("refusal %v, want no_instances", e.Refusal)
	}
}

func TestWhatIsNoRequestIsNotExplained(t *testing.T) {
	r := newRig(t, map[string]http.Handler{"a": saw, "b": saw})
	h, _ := r.handler(explained)
	for _, q := range []gateway.Question{{URL: "ftp://a/b"}, {URL: "http:///x"}, {URL: "/a%zz"}, {Method: "G ET", URL: "/"}, {URL: "http://a b/"}, {URL: ""}} {
		if _, err := h.Explain(context.Background(), r.parse(explained).Listen[0], q); err == nil {
			t.Errorf("%+v was explained", q)
		}
	}
}

// Whatever is asked, the explanation is what then happens.
func TestExplainIsWhatHappens(t *testing.T) {
	r := newRig(t, map[string]http.Handler{"a": saw, "b": saw})
	h, serve := r.handler(explained)
	listen := r.parse(explained).Listen[0]
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.SampledFrom([]string{"api", "admin", "x", "few", "..", ".", "", "%2e%2e", "%2F", "a;b", "7", "y", "%41", "caf%C3%A9"})
		path := "/" + strings.Join(rapid.SliceOfN(part, 0, 5).Draw(t, "path"), "/")
		if rapid.Bool().Draw(t, "query") {
			path += "?beta&a=1;2"
		}
		host := rapid.SampledFrom([]string{"any.test", "shop.test", "SHOP.test.:80", "eu.shop.test", "old.test"}).Draw(t, "host")
		method := rapid.SampledFrom([]string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT"}).Draw(t, "method")
		header := http.Header{"X-Who": {rapid.StringMatching(`[a-z]{8}`).Draw(t, "who")}}
		if rapid.Bool().Draw(t, "env") {
			header.Set("X-Env", "test")
		}
		for i := range rapid.SampledFrom([]int{0, 0, 0, 12}).Draw(t, "fields") {
			header.Set(fmt.Sprintf("X-F-%d", i), "1")
		}
		e, err := h.Explain(context.Background(), listen, gateway.Question{Method: method, URL: "http://" + host + path, Header: header})
		if err != nil {
			return // the server refuses to read it, too
		}
		req := httptest.NewRequest("GET", "/", nil)
		req.Method, req.Host, req.Header = method, host, header.Clone()
		if req.URL, err = url.ParseRequestURI(path); err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		serve.ServeHTTP(w, req)
		reason := ""
		if e.Refusal != nil {
			reason = string(e.Refusal.Reason)
			if w.Code != e.Refusal.Code() {
				t.Errorf("status %d, explained as %d", w.Code, e.Refusal.Code())
			}
		}
		if got := w.Header().Get("X-Proconsul-Reason"); got != reason {
			t.Fatalf("refused for %q, explained as %q", got, reason)
		}
		if got := w.Header().Get("Location"); got != e.Location {
			t.Errorf("redirected to %q, explained as %q", got, e.Location)
		}
		if e.Refusal == nil && e.Send != nil && method != "HEAD" {
			if want := method + " " + e.Send.Target; w.Body.String() != want {
				t.Errorf("the instance saw %q, explained as %q", w.Body, want)
			}
		}
	})
}
