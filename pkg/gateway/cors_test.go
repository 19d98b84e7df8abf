package gateway_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/proconsul/proconsul/pkg/gateway"
	"github.com/proconsul/proconsul/pkg/identity"
	"github.com/proconsul/proconsul/pkg/problem"
)

var crossing = fmt.Sprintf(`version: 1
listen: [{addr: ":0"}]
consumers:
  - {name: acme, api_keys: [{id: a, sha256: %s}]}
policies:
  - {name: pages, cors: {origins: ["https://shop.test"], headers: [X-Api-Key]}, secure_headers: {}}
routes:
  - {name: read, match: {path: "/api/**", methods: [GET, POST]}, use: [pages], auth: {any_of: [api-key]}, rate_limit: {by: client_ip, rate: 2/1h}, upstream: {service: a}}
  - {name: write, match: {path: "/api/**", methods: [PUT]}, upstream: {service: a}}
  - {name: options, match: {path: "/own/**"}, upstream: {service: a}}
  - {name: moved, match: {path: "/old"}, use: [pages], redirect: {to: "https://shop.test/new"}}
`, identity.HashKey("key-of-acme"))

func preflight(h http.Handler, path, method, headers string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("OPTIONS", path, nil)
	r.Header.Set("Origin", "https://shop.test")
	r.Header.Set("Access-Control-Request-Method", method)
	if headers != "" {
		r.Header.Set("Access-Control-Request-Headers", headers)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// A preflight is answered by the route of the request that it asks leave for,
// before auth and at no charge, although the route does not take OPTIONS.
func TestPreflightsAreAnsweredByTheRouteThatTheyAreFor(t *testing.T) {
	_, h := newRig(t, map[string]http.Handler{"a": saw}).secured(crossing)
	for range 4 { // more than the limit
		w := preflight(h, "http://h/api/x", "POST", "x-api-key")
		if w.Code != 204 || w.Header().Get("Access-Control-Allow-Origin") != "https://shop.test" || w.Header().Get("Access-Control-Allow-Methods") != "GET, POST, HEAD" {
			t.Fatalf("got %d %v %s", w.Code, w.Header(), w.Body)
		}
		if w.Header().Get("X-Frame-Options") != "DENY" || w.Header().Get("X-Request-Id") == "" {
			t.Errorf("the answer passed by the outer steps: %v", w.Header())
		}
	}
	if w := preflight(h, "http://h/old", "GET", ""); w.Code != 204 {
		t.Errorf("a redirect's preflight: %d", w.Code) // browsers follow none
	}
	if w := preflight(h, "http://h/api/x", "PUT", ""); w.Code != 405 || w.Header().Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("the route for PUT has no cors: %d %v", w.Code, w.Header())
	}
	if w := preflight(h, "http://h/api/x", "DELETE", ""); w.Code != 405 {
		t.Errorf("no route for DELETE: %d", w.Code)
	}
	if w := preflight(h, "http://h/own/x", "PUT", ""); w.Code != 200 || w.Body.String() != "OPTIONS /own/x" {
		t.Errorf("a route without cors leaves preflights to its instance: %d %s", w.Code, w.Body)
	}
	// The page may read why it was refused.
	w := fetch(h, "http://h/api/x", "", "Origin: https://shop.test")
	if w.Code != 401 || w.Header().Get("Access-Control-Allow-Origin") != "https://shop.test" {
		t.Errorf("refused: %d %v", w.Code, w.Header())
	}
	w = fetch(h, "http://h/api/x", "", "Origin: https://shop.test", acme)
	if w.Code != 200 || w.Header().Get("Access-Control-Allow-Origin") != "https://shop.test" || w.Header().Get("Via") != "" {
		t.Errorf("allowed: %d %v", w.Code, w.Header())
	}
}

// Nothing that looks like a preflight gets past auth.
func TestAPreflightIsNoWayPastAuth(t *testing.T) {
	reached := false
	_, h := newRig(t, map[string]http.Handler{"a": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true })}).secured(crossing)
	for _, asked := range []string{"GET", "POST", "HEAD", "OPTIONS", "get", "GET ", " GET", "GET,POST", "GET\x00", ""} {
		for _, method := range []string{"OPTIONS", "options", "GET", "POST"} {
			r := httptest.NewRequest("GET", "http://h/api/x", nil)
			r.Method = method
			r.Header["Origin"], r.Header["Access-Control-Request-Method"] = []string{"https://shop.test"}, []string{asked}
			h.ServeHTTP(httptest.NewRecorder(), r)
			if reached {
				t.Fatalf("%s asking for %q reached the instance", method, asked)
			}
		}
	}
}

func TestExplainTellsOfPreflights(t *testing.T) {
	r := newRig(t, map[string]http.Handler{"a": saw})
	h, _ := r.secured(crossing)
	header := http.Header{"Origin": {"https://shop.test"}, "Access-Control-Request-Method": {"GET"}}
	e := explain(t, h, r, gateway.Question{Method: "OPTIONS", URL: "http://h/api/x", Header: header})
	last := e.Steps[len(e.Steps)-1]
	if e.Answered != 204 || e.Refusal != nil || last.Name != "cors" || e.Send != nil {
		t.Errorf("allowed: %d, %v, last step %+v", e.Answered, e.Refusal, last)
	}
	header.Set("Origin", "https://evil.test")
	e = explain(t, h, r, gateway.Question{Method: "OPTIONS", URL: "http://h/api/x", Header: header})
	if e.Refusal == nil || e.Refusal.Reason != problem.CORSDenied || e.Send != nil {
		t.Errorf("denied: %+v", e.Refusal)
	}
}
