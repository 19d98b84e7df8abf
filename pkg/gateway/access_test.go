package gateway_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/gateway"
	"github.com/proconsul/proconsul/pkg/identity"
)

// send is fetch with another method.
func send(h http.Handler, method, target, peer string, lines ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	if peer != "" {
		r.RemoteAddr = peer
	}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ": ")
		r.Header[name] = append(r.Header[name], value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// counting is an instance that counts what reaches it.
func counting(n *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		told(w, r)
	})
}

// Lists of addresses stand in front of auth, and go by the client's address as
// trusted proxies tell it.
func TestAddressesBeforeCredentials(t *testing.T) {
	var reached atomic.Int64
	_, h := newRig(t, map[string]http.Handler{"a": counting(&reached)}).secured(fmt.Sprintf(`version: 1
listen: [{addr: ":0", trusted_proxies: [10.0.0.0/8]}]
consumers: [{name: acme, api_keys: [{id: a, sha256: %s}]}]
policies: [{name: office, ip: {allow: [192.0.2.0/24], deny: [192.0.2.66]}, auth: {any_of: [api-key]}}]
routes:
  - {name: in, match: {path: "/in/**"}, use: [office], upstream: {service: a}}
  - {name: write, match: {path: "/write/**"}, ip: {by_method: [{methods: [POST], allow: [192.0.2.0/24]}]}, upstream: {service: a}}
`, identity.HashKey("key-of-acme")))
	passed := int64(0)
	for _, tt := range []struct {
		method, target, peer string
		lines                []string
		status               int
	}{
		{"GET", "/in/x", "192.0.2.1:5", []string{acme}, 200},
		{"GET", "/in/x", "192.0.2.1:5", nil, 401},
		{"GET", "/in/x", "192.0.2.66:5", []string{acme}, 403},
		{"GET", "/in/x", "203.0.113.9:5", []string{acme}, 403},
		{"GET", "/in/x", "203.0.113.9:5", nil, 403},
		{"GET", "/in/x", "203.0.113.9:5", []string{acme, "X-Forwarded-For: 192.0.2.1"}, 403}, // nobody's word
		{"GET", "/in/x", "10.0.0.1:5", []string{acme, "X-Forwarded-For: 192.0.2.1"}, 200},
		{"GET", "/in/x", "10.0.0.1:5", []string{acme, "X-Forwarded-For: 192.0.2.1, 203.0.113.9"}, 403}, // the last hop that is not ours
		{"GET", "/in/x", "10.0.0.1:5", []string{acme}, 403},
		{"GET", "/write/x", "203.0.113.9:5", nil, 200},
		{"POST", "/write/x", "203.0.113.9:5", nil, 403},
		{"POST", "/write/x", "192.0.2.1:5", nil, 200},
	} {
		w := send(h, tt.method, tt.target, tt.peer, tt.lines...)
		if w.Code != tt.status || w.Code == 403 && w.Header().Get("WWW-Authenticate") != "" {
			t.Errorf("%s %s from %s with %q: got %d %s", tt.method, tt.target, tt.peer, tt.lines, w.Code, w.Body)
		}
		if tt.status == 200 {
			passed++
		}
	}
	if reached.Load() != passed {
		t.Errorf("%d requests reached the instance, want %d", reached.Load(), passed)
	}
}

// default: deny on a listener closes the routes that nobody has decided about,
// and no others; other listeners serve them.
func TestListenerThatDeniesByDefault(t *testing.T) {
	const text = `version: 1
listen: [{name: outside, addr: ":0", default: deny}, {name: inside, addr: "127.0.0.1:0"}]
routes:
  - {name: plain, match: {path: "/plain"}, upstream: {service: a}}
  - {name: open, match: {path: "/open"}, auth: {anonymous: true}, upstream: {service: a}}
  - {name: keyed, match: {path: "/keyed"}, auth: {any_of: [api-key]}, upstream: {service: a}}
  - {name: away, match: {path: "/away"}, redirect: {to: "https://new.test{path}"}}
`
	var reached atomic.Int64
	r := newRig(t, map[string]http.Handler{"a": counting(&reached)})
	handler, outside := r.secured(text)
	cfg := r.parse(text)
	inside := handler.Listener(cfg.Listen[1])
	for path, want := range map[string][2]int{"/plain": {403, 200}, "/open": {200, 200}, "/keyed": {401, 401}, "/away": {403, 307}, "/none": {404, 404}} {
		for i, h := range []http.Handler{outside, inside} {
			w := fetch(h, path, "")
			if w.Code != want[i] {
				t.Errorf("%s on %s: got %d, want %d", path, cfg.Listen[i].Name, w.Code, want[i])
			}
			if w.Code == 403 && (w.Header().Get("X-Proconsul-Reason") != "forbidden" || !strings.Contains(w.Body.String(), "this listener serves no route without auth")) {
				t.Errorf("%s: %v %s", path, w.Header(), w.Body)
			}
			e, err := handler.Explain(t.Context(), cfg.Listen[i], gateway.Question{URL: path})
			if err != nil {
				t.Fatal(err)
			}
			if refused := e.Refusal != nil; refused != (want[i] >= 400) || refused && e.Refusal.Code() != want[i] {
				t.Errorf("%s on %s: explained as %v", path, cfg.Listen[i].Name, e.Refusal)
			}
		}
	}
	if reached.Load() != 3 {
		t.Errorf("%d requests reached the instance, want 3", reached.Load())
	}
}

// What a route asks for by method is asked for whatever the method's spelling,
// and no field makes it another method.
func TestNeedsByMethod(t *testing.T) {
	var reached atomic.Int64
	_, h := newRig(t, map[string]http.Handler{"a": counting(&reached)}).secured(fmt.Sprintf(`version: 1
listen: [{addr: ":0"}]
consumers:
  - {name: reader, api_keys: [{id: r, sha256: %s}]}
  - {name: editor, roles: [editor], groups: [staff], api_keys: [{id: e, sha256: %s}]}
routes:
  - name: a
    auth:
      any_of: [api-key]
      by_method:
        - {methods: [POST, PUT], roles: [editor, admin]}
        - {methods: [PUT], groups: [staff]}
        - {methods: [DELETE], roles: [admin]}
    upstream: {service: a}
`, identity.HashKey("reader"), identity.HashKey("editor")))
	for _, tt := range []struct {
		method, key string
		status      int
	}{
		{"GET", "reader", 200}, {"POST", "reader", 403}, {"PUT", "reader", 403}, {"post", "reader", 403}, {"Post", "reader", 403},
		{"GET", "editor", 200}, {"POST", "editor", 200}, {"PUT", "editor", 200}, {"DELETE", "editor", 403}, {"delete", "editor", 403}, {"PATCH", "reader", 200},
	} {
		before := reached.Load()
		w := send(h, tt.method, "/", "", "X-Api-Key: "+tt.key, "X-Http-Method-Override: DELETE", "X-Method-Override: DELETE", "X_http_method-Override: DELETE")
		if w.Code != tt.status || (reached.Load() > before) != (tt.status == 200) {
			t.Errorf("%s by the %s: got %d %s", tt.method, tt.key, w.Code, w.Body)
		}
		if w.Code == 200 && strings.Contains(w.Body.String(), "DELETE") {
			t.Errorf("%s: the instance sees %s", tt.method, w.Body)
		}
		if w.Code == 200 && tt.key == "editor" && !strings.Contains(w.Body.String(), `"X-Consumer-Roles":["editor"]`) {
			t.Errorf("%s: the instance is not told of the role: %s", tt.method, w.Body)
		}
	}
}

const forwarding = `version: 1
listen: [{addr: ":0", trusted_proxies: [10.0.0.0/8]}]
consumers:
  - {name: acme, groups: [gold], api_keys: [{id: a, sha256: KEY}]}
auth:
  - name: ours
    forward_auth:
      service: judge
      path: /check
      request_headers: [Authorization, X-Tenant]
      response_headers: [Remote-User, X-Judged]
      consumer_header: Remote-User
      groups_header: Remote-Groups
routes:
  - {name: open, match: {path: "/open/**"}, upstream: {service: a}}
  - {name: judged, match: {path: "/judged/**"}, auth: {any_of: [ours]}, upstream: {service: a}}
  - {name: either, match: {path: "/either/**"}, auth: {any_of: [api-key, ours]}, upstream: {service: a}}
  - {name: gold, match: {path: "/gold/**"}, auth: {any_of: [ours], groups: [gold]}, upstream: {service: a}}
`

// A service of the operator's is told what was asked for, and what it answers
// decides: 2xx passes with fields for the instance, its refusals go to the
// client as they are, and its failures are 503.
func TestForwardAuth(t *testing.T) {
	var reached, judged atomic.Int64
	judge := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		judged.Add(1)
		body, _ := io.ReadAll(r.Body)
		if r.Method != "GET" || r.URL.Path != "/check" || len(body) > 0 {
			t.Errorf("the service is asked %s %s %q", r.Method, r.URL, body)
		}
		for _, name := range []string{"Cookie", "Remote-User", "X-Judged", "X-Forwarded-Server", "X-Api-Key"} {
			if r.Header[name] != nil {
				t.Errorf("the service is told %s: %q", name, r.Header[name])
			}
		}
		w.Header().Set("Server", "judge")
		switch r.Header.Get("Authorization") {
		case "echo":
			w.Header().Set("X-Judged", strings.Join([]string{r.Header.Get("X-Forwarded-Method"), r.Header.Get("X-Forwarded-Uri"), r.Header.Get("X-Forwarded-Host"),
				r.Header.Get("X-Forwarded-Proto"), r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Tenant")}, " "))
			w.Header().Set("Remote-User", "alice")
			w.Header().Add("Remote-Groups", "staff, ops")
			w.Header().Set("X-Other", "not for instances")
		case "acme":
			w.Header().Set("Remote-User", "acme")
		case "login":
			w.Header().Set("Location", "https://login.example/?to=x")
			w.Header().Set("Set-Cookie", "state=1")
			w.WriteHeader(302)
		case "no":
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(403)
			fmt.Fprint(w, "not today")
		case "teapot":
			w.WriteHeader(418)
		case "broken":
			w.WriteHeader(500)
		case "later":
			w.WriteHeader(429)
		case "odd":
			w.Header().Set("Remote-User", strings.Repeat("x", 1000))
		case "long":
			w.WriteHeader(401)
			fmt.Fprint(w, strings.Repeat("x", 100<<10))
		default:
			w.Header().Set("WWW-Authenticate", `Negotiate`)
			w.WriteHeader(401)
		}
	})
	r := newRig(t, map[string]http.Handler{"a": counting(&reached), "judge": judge})
	handler, h := r.secured(strings.ReplaceAll(forwarding, "KEY", identity.HashKey("key-of-acme")))
	for _, tt := range []struct {
		path, authorization string
		more                []string
		status              int
		reason              string
		told                map[string]string // of the answer's header; of the instance's where the request passes
		body                string
		asked               int64
	}{
		{"/judged/x?q=1", "echo", []string{"X-Tenant: t1"}, 200, "", map[string]string{"X-Judged": "GET /judged/x?q=1 example.com http 192.0.2.1 t1", "Remote-User": "alice", "X-Consumer-Name": "alice", "X-Consumer-Groups": "staff,ops", "X-Other": ""}, "", 1},
		{"/judged/x", "echo", []string{"Remote-User: root", "Remote_User: root", "remote-user: root", "Remote_user: root", "X_Judged: root"}, 200, "", map[string]string{"Remote-User": "alice"}, "", 1},
		{"/judged/x", "acme", nil, 200, "", map[string]string{"X-Consumer-Name": "acme", "X-Consumer-Groups": "gold", "X-Judged": ""}, "", 1},
		{"/gold/x", "acme", nil, 200, "", nil, "", 1},
		{"/gold/x", "echo", nil, 403, "forbidden", nil, "the consumer is in none of the groups", 1},
		{"/open/x", "", []string{"Remote-User: root", "Remote_User: root", "X_Judged: root"}, 200, "", map[string]string{"Remote-User": "", "Remote_User": ""}, "", 0},
		{"/either/x", "", []string{acme}, 200, "", map[string]string{"X-Consumer-Name": "acme", "Remote-User": ""}, "", 0},
		{"/judged/x", "", nil, 401, "unauthenticated", map[string]string{"WWW-Authenticate": "Negotiate", "Server": ""}, "", 1},
		{"/either/x", "", nil, 401, "unauthenticated", map[string]string{"WWW-Authenticate": "Negotiate"}, "", 1},
		{"/judged/x", "login", nil, 302, "unauthenticated", map[string]string{"Location": "https://login.example/?to=x", "Set-Cookie": "state=1"}, "", 1},
		{"/judged/x", "no", nil, 403, "forbidden", map[string]string{"Content-Type": "text/plain"}, "not today", 1},
		{"/judged/x", "teapot", nil, 401, "unauthenticated", nil, "", 1},
		{"/judged/x", "later", nil, 503, "auth_unavailable", nil, "", 1},
		{"/judged/x", "odd", nil, 401, "unauthenticated", nil, "", 1},
		{"/judged/x", "broken", nil, 503, "auth_unavailable", nil, "", 1},
		{"/judged/x", "long", nil, 401, "unauthenticated", nil, "", 1},
	} {
		name := tt.path + " " + tt.authorization
		was, asked := reached.Load(), judged.Load()
		lines := append([]string{"Cookie: c=1"}, tt.more...)
		if tt.authorization != "" {
			lines = append(lines, "Authorization: "+tt.authorization)
		}
		w := fetch(h, tt.path, "", lines...)
		if w.Code != tt.status || w.Header().Get("X-Proconsul-Reason") != tt.reason || !strings.Contains(w.Body.String(), tt.body) {
			t.Errorf("%s: got %d %v %s", name, w.Code, w.Header(), w.Body)
		}
		if (reached.Load() > was) != (tt.status == 200) || judged.Load()-asked != tt.asked {
			t.Errorf("%s: %d reached the instance, the service was asked %d times", name, reached.Load()-was, judged.Load()-asked)
		}
		header := w.Header()
		if tt.status == 200 {
			header = nil
			if err := json.Unmarshal(w.Body.Bytes(), &header); err != nil {
				t.Fatal(err)
			}
			for field, values := range header {
				if slices.Contains(values, "root") {
					t.Errorf("%s: %s: %q reached the instance", name, field, values)
				}
			}
		}
		for field, want := range tt.told {
			if got := header.Get(field); got != want {
				t.Errorf("%s: %s is %q, want %q", name, field, got, want)
			}
		}
	}
	asked := judged.Load()
	e, err := handler.Explain(t.Context(), r.parse(strings.ReplaceAll(forwarding, "KEY", identity.HashKey("x"))).Listen[0], gateway.Question{URL: "/judged/x"})
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("%+v", e.Steps)
	if e.Refusal != nil || judged.Load() != asked || !strings.Contains(text, "ours would ask") {
		t.Errorf("explained as %v, %s, after asking %d times", e.Refusal, text, judged.Load()-asked)
	}
}

// A service that is away closes the route, or opens it where that is named; it
// costs its callers no time once it is known.
func TestForwardAuthServiceAway(t *testing.T) {
	for mode, want := range map[string]int{"closed": 503, "open": 200} {
		var reached atomic.Int64
		r := newRig(t, map[string]http.Handler{"a": counting(&reached), "judge": told})
		r.pools["judge"].Set(discovery.Snapshot{Instances: []discovery.Instance{{ID: "n/gone", Address: "127.0.0.1:1", Status: discovery.StatusPassing, Weight: 1}}})
		_, h := r.secured(strings.ReplaceAll(strings.ReplaceAll(forwarding, "KEY", identity.HashKey("x")), "path: /check", "path: /check\n      on_error: "+mode))
		for range 20 {
			if w := fetch(h, "/judged/x", "", "Remote-User: root"); w.Code != want || strings.Contains(w.Body.String(), "root") {
				t.Fatalf("%s: got %d %s", mode, w.Code, w.Body)
			}
			if w := fetch(h, "/gold/x", ""); w.Code != map[string]int{"closed": 503, "open": 403}[mode] {
				t.Fatalf("%s, with a group asked for: got %d %s", mode, w.Code, w.Body)
			}
		}
		result := map[string]string{"closed": "unavailable", "open": "fail_open"}[mode]
		scrape := httptest.NewRecorder()
		r.metrics.Handler().ServeHTTP(scrape, httptest.NewRequest("GET", "/metrics", nil))
		if want := fmt.Sprintf(`proconsul_auth_decisions_total{method="ours",result=%q} `, result); !strings.Contains(scrape.Body.String(), want) || strings.Contains(scrape.Body.String(), want+"0\n") {
			t.Errorf("%s: the metrics do not count %s", mode, result)
		}
		if stats := r.pools["judge"].Stats(); stats.InFlight != 0 {
			t.Errorf("%s: %d questions are in flight for ever", mode, stats.InFlight)
		}
	}
}

// Where lists of addresses or a service decide by the method, no field makes it
// another one behind them. Elsewhere the fields are the client's.
func TestNoOtherMethodThanWasChecked(t *testing.T) {
	judge := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	_, h := newRig(t, map[string]http.Handler{"a": told, "judge": judge}).secured(`version: 1
listen: [{addr: ":0"}]
auth: [{name: ours, forward_auth: {service: judge}}]
routes:
  - {name: judged, match: {path: "/judged"}, auth: {any_of: [ours]}, upstream: {service: a}}
  - {name: all, match: {path: "/all"}, auth: {all_of: [ours]}, upstream: {service: a}}
  - {name: listed, match: {path: "/listed"}, ip: {by_method: [{methods: [DELETE], deny: [0.0.0.0/0]}]}, upstream: {service: a}}
  - {name: open, match: {path: "/open"}, ip: {allow: [192.0.2.0/24]}, upstream: {service: a}}
`)
	for path, kept := range map[string]bool{"/judged": false, "/all": false, "/listed": false, "/open": true} {
		w := send(h, "POST", path, "", "X-Http-Method-Override: DELETE", "X_HTTP_Method: DELETE", "X-Method_override: DELETE")
		if w.Code != 200 || strings.Contains(w.Body.String(), "DELETE") != kept {
			t.Errorf("%s: got %d %s", path, w.Code, w.Body)
		}
	}
}

// What the service says of one client's request opens the route to nobody, and
// closes it to nobody else, however often it says so.
func TestForwardAuthAnswersAreNoFailures(t *testing.T) {
	judge := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "good" {
			return
		}
		code, _ := strconv.Atoi(r.Header.Get("X-Tenant"))
		w.WriteHeader(code)
		fmt.Fprint(w, strings.Repeat("x", 100<<10))
	})
	for _, mode := range []string{"closed", "open"} {
		var reached atomic.Int64
		r := newRig(t, map[string]http.Handler{"a": counting(&reached), "judge": judge})
		_, h := r.secured(strings.ReplaceAll(strings.ReplaceAll(forwarding, "KEY", identity.HashKey("x")), "path: /check", "path: /check\n      on_error: "+mode))
		for code, want := range map[int]int{302: 302, 400: 401, 401: 401, 403: 403, 404: 401, 408: 503, 413: 401, 418: 401, 429: 503, 431: 401} {
			for range 10 {
				if w := fetch(h, "/judged/x", "", fmt.Sprintf("X-Tenant: %d", code)); w.Code != want || reached.Load() != 0 {
					t.Fatalf("%s: %d of the service is %d for the client, want %d; %d reached the instance", mode, code, w.Code, want, reached.Load())
				}
			}
			if w := fetch(h, "/judged/x", "", "Authorization: good"); w.Code != 200 {
				t.Fatalf("%s: after %ds of another client: %d %s", mode, code, w.Code, w.Body)
			}
			reached.Store(0)
		}
	}
}

// Who stands outside auth is known to act on nothing that the client sent: it
// answers preflights, writes fields of answers, or takes out what a client may
// not say. A step that is added there has to be thought about here.
func TestNothingOutsideAuthActsOnRequests(t *testing.T) {
	order := gateway.StepNames()
	auth := slices.Index(order, "auth")
	if auth < 0 {
		t.Fatal("there is no step auth")
	}
	outside := []string{"request_id", "tracing", "access_log", "metrics", "recovery", "headers", "secure_headers", "compress", "cors", "owned_headers", "ip"}
	for _, name := range order[:auth] {
		if !slices.Contains(outside, name) {
			t.Errorf("%s stands outside auth: does it act on requests of those who may not call?", name)
		}
	}
}

// No setting of a route moves what stands in front of auth behind it, or what
// acts on requests in front: steps is one list, and a chain is a part of it in
// its order, whatever is configured and in whatever order it is written.
func TestNoConfigurationMovesAuth(t *testing.T) {
	order := gateway.StepNames()
	sections := map[string]string{
		"auth":           "auth: {any_of: [api-key]}",
		"ip":             "ip: {allow: [0.0.0.0/0]}",
		"rate_limit":     "rate_limit: {by: route, rate: 1000000/1h}",
		"headers":        "headers: {request: {set: [{name: X-Api-Key, value: key-of-acme}]}, response: {remove: [Server]}}",
		"cors":           "cors: {origins: [https://shop.example.com], headers: [X-Api-Key]}",
		"secure_headers": "secure_headers: {}",
		"compress":       "compress: {min_size: 0B}",
		"decompress":     "decompress: {}",
		"validate":       "validate: {content_types: [text/plain]}",
	}
	var keys []string
	for f := range reflect.TypeFor[config.Middleware]().Fields() {
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if sections[key] == "" {
			t.Fatalf("this test has no section %s", key)
		}
		keys = append(keys, key)
	}
	var reached atomic.Int64
	r := newRig(t, map[string]http.Handler{"a": counting(&reached)})
	rapid.Check(t, func(rt *rapid.T) {
		keys := rapid.Permutation(keys).Draw(rt, "order")
		var policies, own, use []string
		for i, key := range keys {
			if key == "auth" || rapid.Bool().Draw(rt, key) {
				if rapid.Bool().Draw(rt, key+" in a policy") {
					policies = append(policies, fmt.Sprintf("  - {name: p%d, %s}\n", i, sections[key]))
					use = append(use, fmt.Sprintf("p%d", i))
				} else {
					own = append(own, "    "+sections[key]+"\n")
				}
			}
		}
		text := "version: 1\nlisten: [{addr: \":0\"}]\n" + fmt.Sprintf("consumers: [{name: acme, api_keys: [{id: a, sha256: %s}]}]\n", identity.HashKey("key-of-acme"))
		if len(policies) > 0 {
			text += "policies:\n" + strings.Join(policies, "")
		}
		text += "routes:\n  - name: r\n    use: [" + strings.Join(rapid.Permutation(use).Draw(rt, "use"), ", ") + "]\n" + strings.Join(own, "") + "    upstream: {service: a}\n"
		handler, h := r.secured(text)
		e, err := handler.Explain(t.Context(), r.parse(text).Listen[0], gateway.Question{URL: "/"})
		if err != nil {
			rt.Fatal(err)
		}
		at := -1
		for _, s := range e.Steps {
			i := slices.Index(order, s.Name)
			if i <= at {
				rt.Fatalf("the chain has %s out of order:\n%s", s.Name, text)
			}
			at = i
		}
		// What other sections refuse is refused to callers alone: bodies that are
		// not coded as they say, and of no type that is taken.
		for _, request := range [][2]string{{}, {"Origin", "https://shop.example.com"}, {"Content-Encoding", "unheard-of"}, {"Content-Type", "image/png"}, {"Accept-Encoding", "gzip"}} {
			before, w := reached.Load(), httptest.NewRecorder()
			r := httptest.NewRequest("POST", "/", strings.NewReader("a body"))
			r.Header.Set(request[0], request[1])
			if h.ServeHTTP(w, r); w.Code != 401 || reached.Load() != before {
				rt.Fatalf("%q without a key: %d, %d reached the instance:\n%s", request, w.Code, reached.Load()-before, text)
			}
		}
		if w := fetch(h, "/", "", acme); w.Code != 200 {
			rt.Fatalf("with a key: %d %s\n%s", w.Code, w.Body, text)
		}
	})
}

// Consumers that change are known by the table that is served, at once.
func TestConsumersChangeWithoutATable(t *testing.T) {
	r := newRig(t, map[string]http.Handler{"a": told})
	_, h := r.secured(protected)
	if w := fetch(h, "/closed/x", "", "X-Api-Key: key-of-new"); w.Code != 401 {
		t.Fatalf("got %d", w.Code)
	}
	next := []config.Consumer{{Name: "new", Groups: []string{"platinum"}, APIKeys: []config.APIKey{{ID: "n", SHA256: config.NewSecret(identity.HashKey("key-of-new"))}}}}
	for _, partial := range []bool{true, false} {
		if err := r.deps.Identity.SetConsumers(next, partial); err != nil {
			t.Fatal(err)
		}
		if w := fetch(h, "/closed/gold/x", "", "X-Api-Key: key-of-new"); w.Code != 200 {
			t.Errorf("a new consumer: %d %s", w.Code, w.Body)
		}
		want := 401
		if partial { // it may be somebody's
			want = 503
		}
		if w := fetch(h, "/closed/x", "", acme); w.Code != want {
			t.Errorf("one that is gone, partial %v: %d %s", partial, w.Code, w.Body)
		}
	}
	if err := r.deps.Identity.SetConsumers([]config.Consumer{{Name: "bad", APIKeys: []config.APIKey{{ID: "x"}}}}, false); err == nil {
		t.Error("a consumer with half a key is taken")
	}
	if w := fetch(h, "/closed/x", "", "X-Api-Key: key-of-new"); w.Code != 200 {
		t.Errorf("after a faulty change: %d", w.Code)
	}
}
