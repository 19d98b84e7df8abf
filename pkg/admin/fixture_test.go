package admin_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/proconsul/proconsul/pkg/admin"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const hostile = `<script>alert(1)</script><img src=x onerror=alert(2)>"'&{{.}}`

var began = time.Date(2026, 11, 1, 8, 0, 0, 0, time.UTC)

func status() admin.Status {
	return admin.Status{
		Replica: admin.Replica{ID: "gw-1", Version: "v0.1.0", Go: "go1.26", State: "ready", Started: began},
		Config:  admin.Config{Hash: "9f3c1a2", Source: "proconsul.yaml", LoadedAt: began, State: "ok"},
		Consul:  admin.Dependency{State: "up", Address: "127.0.0.1:8500", LastContact: time.Now().Add(-3 * time.Second), Detail: "dc1"},
		Redis:   admin.Dependency{State: "down", Error: "connection refused"},
		Traffic: admin.Traffic{Stats: admin.Stats{Requests: 1000, Errors: 10, Rate: 412.345, ErrorShare: 0.01, Latency: admin.Latency{P50: admin.Millis(4 * time.Millisecond)}}, InFlight: 37},
		Upstreams: []admin.Upstream{
			{Name: "users", Service: "users", Breaker: admin.Breaker{State: "closed"}},
			{Name: "orders", Service: "orders", Breaker: admin.Breaker{State: "open"}, Instances: []admin.Instance{
				{ID: "n1/orders-1", Address: "10.0.0.4:8080", Status: "passing", State: "passing", Usable: true, Weight: 5, EffectiveWeight: 5, Tags: []string{hostile}, Meta: map[string]string{hostile: hostile}, Version: hostile},
				{ID: "n1/orders-2", Address: "10.0.0.5:8080", Status: "critical", State: "critical", Weight: 5, Checks: []admin.Check{{Name: hostile, Status: "critical", Output: hostile + strings.Repeat("x", 10000)}}},
				{ID: "n2/orders-3", Address: "10.0.0.6:8080", Status: "passing", State: "ejected", Weight: 1, EjectedUntil: time.Now().Add(time.Minute), EjectedFor: "3x refused"},
				{ID: "n2/orders-4", Address: "10.0.0.7:8080", Status: "passing", State: "passing", Usable: true, Weight: 1, EffectiveWeight: 1},
			}},
		},
		Routes: []admin.Route{
			{Name: "orders", Host: "shop.example.com", Path: "/api/orders/**", Methods: []string{"GET"}, Upstream: "orders", Source: "file", Location: "proconsul.yaml:41"},
			{Name: "hello:shop.example.com/hello", Path: "/hello", Redirect: "https://example.com", Source: "file"},
		},
		Rejected: []admin.Rejected{{Kind: "instance", Name: "n9/" + hostile, Service: "orders", Reason: "port 0 is not a port"}},
	}
}

type fixture struct {
	t      testing.TB
	admin  *admin.Admin
	server *httptest.Server
	events *admin.Events
}

func start(t testing.TB, edit ...func(*admin.Options)) *fixture {
	t.Helper()
	f := &fixture{t: t, events: admin.NewEvents(50)}
	o := admin.Options{
		Status:  status,
		Events:  f.events,
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "proconsul_up 1\n") }),
		Reload:  func(context.Context, string) (admin.Plan, error) { return admin.Plan{}, nil },
		Tokens:  []admin.Token{{"sre", admin.RoleOperator, "op-secret"}, {"graphs", admin.RoleViewer, "view-secret"}, {"empty", admin.RoleOperator, ""}},
	}
	for _, e := range edit {
		e(&o)
	}
	f.admin = admin.New(o)
	f.server = httptest.NewServer(f.admin)
	t.Cleanup(func() { f.admin.Close(); f.server.Close(); http.DefaultClient.CloseIdleConnections() })
	return f
}

// do sends "METHOD path" with headers "Name: value".
func (f *fixture) do(what string, headers ...string) (*http.Response, string) {
	f.t.Helper()
	method, path, _ := strings.Cut(what, " ")
	r, err := http.NewRequest(method, f.server.URL+path, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			r.Host = value
		} else {
			r.Header.Set(name, value)
		}
	}
	client := http.Client{Timeout: 10 * time.Second} // a stream that should have been refused
	resp, err := client.Do(r)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return resp, string(b)
}

func decode[T any](t testing.TB, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}
