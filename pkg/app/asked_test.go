package app_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/proconsul/proconsul/pkg/parts"
)

// TestServicesInConsulSayWhoCalls has an authorisation server and a service of
// the operator's registered in a real Consul: tokens are introspected and
// requests judged there, by the pool; while the server is away nobody passes
// who is not known, and when it is back they do, without a reload.
func TestServicesInConsulSayWhoCalls(t *testing.T) {
	t.Parallel()
	bin, consul := binaries(t), parts.StartConsul(t)
	echo := bin.StartEcho(t, parts.EchoOptions{Name: "echo", ID: "echo-1"})
	var introspected, judged atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("POST /introspect", func(w http.ResponseWriter, r *http.Request) {
		introspected.Add(1)
		id, secret, _ := r.BasicAuth()
		body, _ := io.ReadAll(r.Body)
		form, _ := url.ParseQuery(string(body))
		if id != "gw" || secret != "s3cret" {
			w.WriteHeader(401)
			return
		}
		fmt.Fprintf(w, `{"active":%t,"sub":"alice","aud":"api","scope":"read"}`, strings.HasPrefix(form.Get("token"), "good"))
	})
	mux.HandleFunc("GET /judge", func(w http.ResponseWriter, r *http.Request) {
		judged.Add(1)
		if r.Header.Get("Cookie") != "session=1" {
			w.Header().Set("Location", "https://login.example/")
			w.WriteHeader(302)
			return
		}
		w.Header().Set("X-User", "bob")
	})
	// It goes and comes back: the port is none that a connection could have by then.
	port := parts.FreePorts(t, 1)[0]
	serve := func() *httptest.Server {
		t.Helper()
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: mux}}
		srv.Start()
		return srv
	}
	srv := serve()
	defer func() { srv.Close() }()
	consul.Put("/v1/agent/service/register", fmt.Sprintf(`{"ID":"idp-1","Name":"idp","Address":"127.0.0.1","Port":%d}`, port))
	r := bin.StartReplica(t, parts.ReplicaOptions{Config: fmt.Sprintf(`consul: {addr: %q}
auth:
  - name: opaque
    introspection: {service: idp, path: /introspect, client_id: gw, client_secret: s3cret, audience: [api], cache_ttl: 1h}
  - name: session
    forward_auth: {service: idp, path: /judge, response_headers: [X-User], consumer_header: X-User}
upstreams: [{name: echo, instances: [{address: %q}]}]
routes:
  - {name: token, match: {path: /token}, auth: {any_of: [opaque], by_method: [{methods: [POST], scopes: [write]}]}, upstream: {service: echo}}
  - {name: session, match: {path: /session}, auth: {any_of: [session]}, upstream: {service: echo}}
`, consul.Addr, echo.Addr)})
	r.AwaitUsable("idp", 1)
	ask := func(method, path string, lines ...string) reply {
		t.Helper()
		req, err := http.NewRequest(method, r.URL(path), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range lines {
			name, value, _ := strings.Cut(l, ": ")
			req.Header.Add(name, value)
		}
		resp, err := http.DefaultTransport.RoundTrip(req) // follows no redirect
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return reply{resp, string(body)}
	}
	const bearer = `Bearer realm="proconsul"`
	for _, tt := range []struct {
		method, path      string
		lines             []string
		status            int
		reason, challenge string
	}{
		{"GET", "/token", []string{"Authorization: Bearer good-1"}, 200, "", ""},
		{"GET", "/token", []string{"Authorization: Bearer good-1"}, 200, "", ""},
		{"POST", "/token", []string{"Authorization: Bearer good-1"}, 403, "forbidden", bearer + `, error="insufficient_scope", scope="write"`},
		{"GET", "/token", nil, 401, "unauthenticated", bearer},
		{"GET", "/token?access_token=good-1", nil, 401, "unauthenticated", bearer},
		{"GET", "/token", []string{"Authorization: Bearer revoked"}, 401, "unauthenticated", bearer + `, error="invalid_token", error_description="the token is not active"`},
		{"GET", "/token", []string{"Authorization: Bearer good-1", "Authorization: Bearer good-1"}, 401, "unauthenticated", bearer + `, error="invalid_request", error_description="there is more than one Authorization field"`},
		{"GET", "/token", []string{"Authorization: Bearer " + strings.Repeat("x", 9000)}, 401, "unauthenticated", bearer + `, error="invalid_request", error_description="the token is too long"`},
		{"GET", "/token", []string{"Authorization: Bearer a b"}, 401, "unauthenticated", bearer + `, error="invalid_request", error_description="the token has characters that no token has"`},
		{"GET", "/session", []string{"Cookie: session=1"}, 200, "", ""},
		{"GET", "/session", nil, 302, "unauthenticated", ""},
	} {
		got := ask(tt.method, tt.path, tt.lines...)
		if got.StatusCode != tt.status || got.Header.Get("X-Proconsul-Reason") != tt.reason || got.Header.Get("WWW-Authenticate") != tt.challenge {
			t.Errorf("%s %s: got %d, %v", tt.method, tt.path, got.StatusCode, got.Header)
		}
		if tt.status != 200 && got.Header.Get("X-Echo-Instance") != "" {
			t.Errorf("%s %s reached the instance", tt.method, tt.path)
		}
	}
	if introspected.Load() != 2 || judged.Load() != 2 {
		t.Errorf("asked %d times about tokens and %d times about requests, want 2 and 2", introspected.Load(), judged.Load())
	}

	srv.Close()
	for range 10 {
		if got := ask("GET", "/token", "Authorization: Bearer good-2"); got.StatusCode != 503 || got.Header.Get("X-Proconsul-Reason") != "auth_unavailable" || got.Header.Get("Retry-After") == "" {
			t.Errorf("without the server: %d %v", got.StatusCode, got.Header)
		}
		if got := ask("GET", "/session", "Cookie: session=1"); got.StatusCode != 503 || got.Header.Get("X-Proconsul-Reason") != "auth_unavailable" {
			t.Errorf("without the service: %d %v", got.StatusCode, got.Header)
		}
		if got := ask("GET", "/token", "Authorization: Bearer good-1"); got.StatusCode != 200 {
			t.Errorf("a token that is known: %d", got.StatusCode)
		}
	}
	srv = serve()
	parts.Eventually(t, patience, "tokens never pass again", func() bool { return ask("GET", "/token", "Authorization: Bearer good-2").StatusCode == 200 })
	parts.Eventually(t, patience, "requests never pass again", func() bool { return ask("GET", "/session", "Cookie: session=1").StatusCode == 200 })
	for _, secret := range []string{"s3cret", "good-1", "session=1"} {
		if strings.Contains(r.Log()+r.AccessLog(), secret) {
			t.Errorf("%s is in the log", secret)
		}
	}
}
