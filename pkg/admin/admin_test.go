package admin_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/admin"
)

const (
	operator = "Authorization: Bearer op-secret"
	viewer   = "Authorization: bearer view-secret"
)

func TestWhoMayDoWhat(t *testing.T) {
	insecure := func(o *admin.Options) { o.Insecure = true }
	named := func(o *admin.Options) { o.Hosts = []string{"gw.example.com"} }
	remote := "X-Forwarded-For: 203.0.113.9" // through a proxy on this host: not loopback
	tests := []struct {
		what    string
		headers []string
		want    int
		edit    func(*admin.Options)
	}{
		// On loopback without a token: a viewer.
		{"GET /api/v1/status", nil, 200, nil},
		{"GET /metrics", nil, 200, nil},
		{"GET /", nil, 200, nil},
		{"POST /api/v1/reload", nil, 401, nil},
		{"GET /debug/pprof/", nil, 401, nil},
		{"GET /debug/pprof/cmdline", nil, 401, nil},
		{"GET /debug/pprof/heap", nil, 401, nil},
		// With tokens.
		{"POST /api/v1/reload", []string{operator}, 200, nil},
		{"POST /api/v1/reload", []string{viewer}, 403, nil},
		{"GET /debug/pprof/", []string{operator}, 200, nil},
		{"GET /debug/pprof/", []string{viewer}, 403, nil},
		{"GET /debug/pprof/goroutine?debug=1", []string{operator}, 200, nil},
		{"GET /api/v1/status", []string{viewer}, 200, nil},
		// A wrong one is no better than none, even here.
		{"GET /api/v1/status", []string{"Authorization: Bearer wrong"}, 401, nil},
		{"GET /api/v1/status", []string{"Authorization: Bearer "}, 401, nil},
		{"GET /api/v1/status", []string{"Authorization: Basic b3Atc2VjcmV0"}, 401, nil},
		// From elsewhere.
		{"GET /api/v1/status", []string{remote}, 401, nil},
		{"GET /metrics", []string{remote}, 401, nil},
		{"GET /", []string{remote}, 401, nil},
		{"GET /api/v1/stream", []string{remote}, 401, nil},
		{"GET /api/v1/status", []string{remote, viewer}, 200, nil},
		{"GET /livez", []string{remote, "Host: anything.example.com"}, 200, nil},
		{"GET /readyz", []string{remote, "Host: anything.example.com"}, 200, nil},
		{"GET /api/v1/status", []string{remote}, 200, insecure},
		{"POST /api/v1/reload", []string{remote}, 401, insecure},
		// Names that a rebinding attack could have made.
		{"GET /api/v1/status", []string{"Host: evil.example.com"}, 421, nil},
		{"GET /api/v1/status", []string{"Host: evil.example.com:8081"}, 421, nil},
		{"GET /", []string{"Host: evil.example.com"}, 401, nil},
		{"GET /api/v1/status", []string{"Host: evil.example.com", viewer}, 200, nil},
		{"GET /api/v1/status", []string{"Host: localhost:8081"}, 200, nil},
		{"GET /api/v1/status", []string{"Host: LOCALHOST.:8081"}, 200, nil},
		{"GET /api/v1/status", []string{"Host: [::1]:8081"}, 200, nil},
		{"GET /api/v1/status", []string{"Host: gateway-1:8081"}, 421, nil},
		{"GET /api/v1/status", []string{"Host: gateway-1:8081"}, 200, insecure},
		{"GET /api/v1/status", []string{"Host: evil.example.com"}, 421, insecure},
		{"GET /api/v1/status", []string{"Host: gw.example.com"}, 200, named},
		// Nothing is changed by GET, and nothing by other web sites.
		{"GET /api/v1/reload", []string{operator}, 405, nil},
		{"HEAD /api/v1/reload", []string{operator}, 405, nil},
		{"POST /api/v1/status", []string{operator}, 405, nil},
		{"DELETE /api/v1/routes/orders", []string{operator}, 405, nil},
		{"POST /api/v1/reload", []string{operator, "Sec-Fetch-Site: cross-site"}, 403, nil},
		{"POST /api/v1/reload", []string{operator, "Origin: https://evil.example.com"}, 403, nil},
		{"POST /api/v1/reload", []string{operator, "Sec-Fetch-Site: same-origin"}, 200, nil},
		// What is not handed in does not exist.
		{"POST /api/v1/drain", []string{operator}, 404, nil},
		{"GET /nothing", nil, 404, nil},
		{"GET /assets/../admin.go", nil, 404, nil},
	}
	for _, tt := range tests {
		t.Run(tt.what+" "+strings.Join(tt.headers, " "), func(t *testing.T) {
			edits := []func(*admin.Options){}
			if tt.edit != nil {
				edits = append(edits, tt.edit)
			}
			resp, body := start(t, edits...).do(tt.what, tt.headers...)
			if resp.StatusCode != tt.want {
				t.Fatalf("answered %d, want %d: %s", resp.StatusCode, tt.want, body)
			}
			if tt.want == 405 && resp.Header.Get("Allow") == "" {
				t.Error("no Allow")
			}
			if tt.want == 401 && resp.Header.Get("WWW-Authenticate") == "" {
				t.Error("no WWW-Authenticate")
			}
			if tt.want >= 400 && !strings.HasPrefix(tt.what, "GET / ") && tt.what != "GET /" {
				if got := resp.Header.Get("Content-Type"); got != "application/problem+json" {
					t.Errorf("content type %q", got)
				}
				if !strings.HasPrefix(tt.what, "HEAD") {
					p := decode[struct{ Title, Reason string }](t, body)
					if p.Title == "" || p.Reason == "" {
						t.Errorf("problem %s", body)
					}
				}
			}
			for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"} {
				if got := resp.Header.Get(name); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
			if csp := resp.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'self';") || strings.Contains(csp, "unsafe") {
				t.Errorf("policy %q", csp)
			}
			if strings.Contains(body, "op-secret") || strings.Contains(body, "view-secret") {
				t.Error("a token is in the answer")
			}
			if tt.want == 401 && strings.Contains(body, "orders") {
				t.Error("a refusal shows data")
			}
		})
	}
}

func TestHeadHasTheHeaderOfGet(t *testing.T) {
	f := start(t)
	for _, path := range []string{"/livez", "/readyz", "/api/v1/services", "/api/v1/routes", "/"} {
		get, body := f.do("GET " + path)
		head, none := f.do("HEAD " + path)
		if head.StatusCode != get.StatusCode || head.Header.Get("Content-Type") != get.Header.Get("Content-Type") || none != "" || len(body) == 0 {
			t.Errorf("%s: GET %d %s, HEAD %d %s with %d bytes", path, get.StatusCode, get.Header.Get("Content-Type"), head.StatusCode, head.Header.Get("Content-Type"), len(none))
		}
	}
}

func TestCheckExposure(t *testing.T) {
	token := []admin.Token{{Name: "sre", Role: admin.RoleOperator, Value: "s"}}
	for _, tt := range []struct {
		addr              string
		tokens            []admin.Token
		clients, insecure bool
		ok                bool
	}{
		{"127.0.0.1:8081", nil, false, false, true},
		{"127.8.9.1:8081", nil, false, false, true},
		{"[::1]:8081", nil, false, false, true},
		{"[::ffff:127.0.0.1]:8081", nil, false, false, true},
		{"localhost:8081", nil, false, false, true},
		{"unix:/run/admin.sock", nil, false, false, true},
		{"", nil, false, false, true},
		{":8081", nil, false, false, false},
		{"0.0.0.0:8081", nil, false, false, false},
		{"[::]:8081", nil, false, false, false},
		{"10.0.0.4:8081", nil, false, false, false},
		{"gateway.internal:8081", nil, false, false, false},
		{"localhost.evil.example.com:8081", nil, false, false, false},
		{"0.0.0.0:8081", token, false, false, true},
		{"0.0.0.0:8081", []admin.Token{{Name: "sre", Role: admin.RoleOperator}}, false, false, false},
		{"0.0.0.0:8081", nil, false, true, true},
		{"0.0.0.0:8081", nil, true, false, true},
	} {
		err := admin.CheckExposure(tt.addr, tt.tokens, tt.clients, tt.insecure)
		if (err == nil) != tt.ok {
			t.Errorf("%s with %d tokens, insecure %v: %v", tt.addr, len(tt.tokens), tt.insecure, err)
		}
		if err != nil && (!strings.Contains(err.Error(), tt.addr) || !strings.Contains(err.Error(), "admin.insecure")) {
			t.Errorf("the error says neither where nor what to do: %v", err)
		}
	}
}

func TestReloadIsKeptWithWhoAskedForIt(t *testing.T) {
	var outcome error
	var asked string
	f := start(t, func(o *admin.Options) {
		o.Reload = func(_ context.Context, actor string) (admin.Plan, error) { asked = actor; return admin.Plan{}, outcome }
	})
	resp, body := f.do("POST /api/v1/reload", operator)
	if resp.StatusCode != 200 || asked != "sre" || !strings.Contains(body, `"hash":"9f3c1a2"`) {
		t.Errorf("%d for %q: %s", resp.StatusCode, asked, body)
	}
	outcome = errors.New("proconsul.yaml:41:7 unknown key")
	resp, body = f.do("POST /api/v1/reload", operator)
	if resp.StatusCode != 422 || !strings.Contains(body, "proconsul.yaml:41:7 unknown key") {
		t.Errorf("%d: %s", resp.StatusCode, body)
	}
	events := f.events.Since(0, 10)
	if len(events) != 2 || events[0].Actor != "sre" || events[1].Severity != admin.Warn || !strings.Contains(events[1].Message, "unknown key") {
		t.Errorf("events %+v", events)
	}
}

func TestHealth(t *testing.T) {
	ready := admin.Readiness{Ready: false, Checks: []admin.ReadyCheck{{"config", true, "9f3c1a2"}, {"catalog", false, "waiting for orders\nfake line"}}}
	f := start(t, func(o *admin.Options) { o.Ready = func() admin.Readiness { return ready } })
	if resp, body := f.do("GET /livez"); resp.StatusCode != 200 || body != "ok\n" {
		t.Errorf("livez %d %q", resp.StatusCode, body)
	}
	if resp, body := f.do("GET /readyz"); resp.StatusCode != 503 || body != "[+]config\n[-]catalog\nnot ready\n" {
		t.Errorf("readyz %d %q", resp.StatusCode, body)
	}
	if _, body := f.do("GET /readyz?verbose"); body != "[+]config 9f3c1a2\n[-]catalog waiting for orders fake line\nnot ready\n" {
		t.Errorf("verbose %q", body)
	}
	if _, body := f.do("GET /readyz?verbose", "X-Forwarded-For: 203.0.113.9"); strings.Contains(body, "orders") {
		t.Errorf("anyone sees %q", body)
	}
	ready = admin.Readiness{Ready: true}
	if resp, body := f.do("GET /readyz"); resp.StatusCode != 200 || body != "ready\n" {
		t.Errorf("readyz %d %q", resp.StatusCode, body)
	}
}

func TestServerEndsItsStreams(t *testing.T) {
	f := start(t)
	s := f.admin.Server()
	inner := httptest.NewUnstartedServer(nil)
	inner.Config = s
	inner.Start()
	resp, err := http.Get(inner.URL + "/api/v1/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("shutdown with an open stream: %v", err)
	}
	if s.ReadHeaderTimeout == 0 || s.IdleTimeout == 0 || s.MaxHeaderBytes == 0 {
		t.Error("the server has no bounds")
	}
}
