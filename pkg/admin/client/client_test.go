package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/admin/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// gateway answers every call with its own method, path, token and body.
func gateway(seen *string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		*seen = strings.TrimSpace(strings.Join([]string{r.Method, r.RequestURI, r.Header.Get("Authorization"), string(body)}, " "))
		_, _ = io.WriteString(w, "{}")
	})
}

func TestCalls(t *testing.T) {
	var seen string
	srv := httptest.NewServer(gateway(&seen))
	defer srv.Close()
	c, err := client.New(client.Options{Address: strings.TrimPrefix(srv.URL, "http://"), Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for _, tc := range []struct {
		call func() error
		want string
	}{
		{func() error { _, err := c.Status(ctx); return err }, "GET /api/v1/status Bearer secret"},
		{func() error { _, err := c.Service(ctx, "a b/c?d"); return err }, "GET /api/v1/services/a%20b/c%3Fd Bearer secret"},
		{func() error { _, err := c.Route(ctx, "hello:shop.example.com/hello"); return err }, "GET /api/v1/routes/hello:shop.example.com/hello Bearer secret"},
		{func() error { _, err := c.Instances(ctx, "a&b"); return err }, "GET /api/v1/instances?service=a%26b Bearer secret"},
		{func() error { _, err := c.Events(ctx, 7); return err }, "GET /api/v1/events?since=7 Bearer secret"},
		{func() error {
			_, err := c.Instance(ctx, admin.Drain, "node/a/b", client.Order{For: 30 * time.Minute, Reason: "r"})
			return err
		}, `POST /api/v1/instances/node%2Fa%2Fb/drain Bearer secret {"for":"30m0s","reason":"r"}`},
		{func() error { _, err := c.Breaker(ctx, admin.BreakerOpen, "a/b", client.Order{}); return err }, "POST /api/v1/breakers/a%2Fb/open Bearer secret {}"},
		{func() error { _, err := c.Plan(ctx, []byte("version: 1\n")); return err }, "POST /api/v1/config/plan Bearer secret version: 1"},
		{func() error { _, err := c.RateLimit(ctx, "r", "a&b"); return err }, "GET /api/v1/ratelimits?key=a%26b&route=r Bearer secret"},
	} {
		if err := tc.call(); err != nil || seen != tc.want {
			t.Errorf("called %q (%v), want %q", seen, err, tc.want)
		}
	}
}

func TestAnswersAreErrors(t *testing.T) {
	answer := func(status int, body string) error {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}))
		defer srv.Close()
		c, err := client.New(client.Options{Address: srv.URL})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Status(context.Background())
		return err
	}
	var e *client.Error
	err := answer(422, `{"title":"The gateway refused to reload","detail":"gateway.yaml:3:1 unknown key","reason":"refused","status":422}`)
	if !errors.As(err, &e) || e.Status != 422 || e.Reason != "refused" || err.Error() != "The gateway refused to reload: gateway.yaml:3:1 unknown key" {
		t.Errorf("%v", err)
	}
	if err := answer(500, "<html>"); !errors.As(err, &e) || e.Status != 500 || !strings.Contains(err.Error(), "500") {
		t.Errorf("%v", err)
	}
	if err := answer(302, ""); !errors.As(err, &e) || e.Status != 302 {
		t.Errorf("a redirect: %v", err)
	}
	if err := answer(200, "<html>"); err == nil || !strings.Contains(err.Error(), "not a gateway's admin listener") {
		t.Errorf("%v", err)
	}
}

func TestAddresses(t *testing.T) {
	for _, bad := range []string{"", "a b:1", "ftp://h:1", "http://h:1/path", "http://user@h:1", "http://"} {
		if _, err := client.New(client.Options{Address: bad}); err == nil {
			t.Errorf("%q is taken for an address", bad)
		}
	}
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(admin.Status{Replica: admin.Replica{ID: "by-socket"}})
	})}
	done := make(chan struct{})
	go func() { _ = srv.Serve(l); close(done) }()
	defer func() { _ = srv.Close(); <-done }()
	c, err := client.New(client.Options{Address: "unix:" + path})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := c.Status(context.Background()); err != nil || s.Replica.ID != "by-socket" {
		t.Errorf("over a unix socket: %q, %v", s.Replica.ID, err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	c, err := client.New(client.Options{Address: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(context.Background()); err == nil || err.Error() != "gateway at 127.0.0.1:1: connection refused" {
		t.Errorf("%v", err)
	}
	hangs, let := make(chan struct{}), make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { close(hangs); <-let }))
	defer srv.Close()
	defer close(let)
	c, err = client.New(client.Options{Address: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-hangs; cancel() }()
	if _, err := c.Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("after the caller has left: %v", err)
	}
}
