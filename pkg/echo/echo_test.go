package echo_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/proconsul/proconsul/consul"
	"github.com/proconsul/proconsul/pkg/echo"
	"github.com/proconsul/proconsul/pkg/parts"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, o echo.Options) (*echo.Server, *httptest.Server) {
	t.Helper()
	s := echo.New(o)
	srv := httptest.NewServer(s)
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		srv.Close()
	})
	return s, srv
}

func send(t *testing.T, method, url, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

func TestEchoesWhatItSaw(t *testing.T) {
	s, srv := start(t, echo.Options{Name: "orders", ID: "orders-1", Version: "2"})
	resp, text := send(t, "POST", srv.URL+"/a%2Fb/c?x=1&x=2", "hello", "X-Test", "one", "X-Test", "two")
	var got echo.Reply
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if got.Service != "orders" || got.Instance != "orders-1" || got.Version != "2" || got.Method != "POST" || got.Path != "/a%2Fb/c" ||
		got.Query != "x=1&x=2" || got.BodyBytes != 5 || len(got.Headers["X-Test"]) != 2 || got.Host != strings.TrimPrefix(srv.URL, "http://") {
		t.Errorf("got %+v", got)
	}
	if resp.Header.Get("X-Echo-Instance") != "orders-1" || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("header %v", resp.Header)
	}
	if s.Requests() != 1 {
		t.Errorf("%d requests", s.Requests())
	}
}

func TestKnobs(t *testing.T) {
	_, srv := start(t, echo.Options{ID: "e"})
	tests := []struct {
		query  string
		status int
		text   string
		length int
	}{
		{"status=418", 418, `"instance":"e"`, -1},
		{"status=204", 204, "", 0},
		{"size=100", 200, "proconsul echo filler", 100},
		{"size=2KiB", 200, "", 2048},
		{"size=0", 200, "", 0},
		{"fail=1", 500, "failed on request", -1},
		{"delay=1ms&fail=0", 200, "", -1},
		{"status=abc", 400, `status="abc"`, -1},
		{"status=99", 400, "not between 200 and 999", -1},
		{"size=65MiB", 400, "not between", -1},
		{"size=-1", 400, "not between", -1},
		{"delay=2m", 400, "not between 0s and 1m0s", -1},
		{"fail=NaN", 400, "not between", -1},
		{"n=1000000", 400, "not between", -1},
	}
	for _, tt := range tests {
		resp, text := send(t, "GET", srv.URL+"/?"+tt.query, "")
		if resp.StatusCode != tt.status || !strings.Contains(text, tt.text) || tt.length >= 0 && len(text) != tt.length {
			t.Errorf("%s: %d, %d bytes %.60q", tt.query, resp.StatusCode, len(text), text)
		}
	}
	if _, err := http.Get(srv.URL + "/?abort=true"); err == nil {
		t.Error("abort=true broke nothing")
	}
}

func TestHealthCanBeSwitched(t *testing.T) {
	s, srv := start(t, echo.Options{FailRate: 1, Delay: time.Minute}) // neither touches /healthz
	for _, step := range []struct {
		method, query string
		code          int
	}{{"GET", "", 200}, {"PUT", "?ok=false", 503}, {"GET", "", 503}, {"PUT", "?ok=maybe", 400}, {"PUT", "?ok=true", 200}, {"DELETE", "", 405}} {
		if resp, _ := send(t, step.method, srv.URL+"/healthz"+step.query, ""); resp.StatusCode != step.code {
			t.Errorf("%s %s: %d, want %d", step.method, step.query, resp.StatusCode, step.code)
		}
	}
	s.SetHealthy(false)
	if resp, _ := send(t, "GET", srv.URL+"/healthz", ""); resp.StatusCode != 503 || s.Requests() != 0 {
		t.Errorf("%d, %d requests counted", resp.StatusCode, s.Requests())
	}
}

func TestStreams(t *testing.T) {
	_, srv := start(t, echo.Options{ID: "e"})

	// The first event is there while the stream goes on.
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", srv.URL+"/events?n=1000&every=1m", nil)
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil || line != "id: 0\n" || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("first line %q %v, %v", line, err, resp.Header)
	}
	cancel()
	resp.Body.Close()

	resp, text := send(t, "GET", srv.URL+"/stream?n=3&every=0s", "")
	if strings.Count(text, "\n") != 3 || resp.Trailer.Get("X-Echo-Chunks") != "3" || len(resp.TransferEncoding) == 0 {
		t.Errorf("%q, trailer %v, encoding %v", text, resp.Trailer, resp.TransferEncoding)
	}
}

func TestUpgradeEchoesBytes(t *testing.T) {
	_, srv := start(t, echo.Options{ID: "e\r\nX-Evil: 1"})
	if resp, _ := send(t, "GET", srv.URL+"/upgrade", ""); resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("without Upgrade: %d", resp.StatusCode)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(srv.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Bytes right behind the request are echoed too.
	fmt.Fprint(conn, "GET /upgrade HTTP/1.1\r\nHost: e\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("X-Evil") != "" {
		t.Fatalf("%v %v", resp, err)
	}
	fmt.Fprint(conn, " late")
	got := make([]byte, len("early late"))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != "early late" {
		t.Errorf("got %q %v", got, err)
	}
}

func TestRunRegistersAndLeaves(t *testing.T) {
	agent := parts.StartConsul(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ready := make(chan string, 1)
	var server *echo.Server
	done := make(chan error, 1)
	go func() {
		done <- echo.Run(ctx, echo.Config{Options: echo.Options{Name: "orders"}, Addr: "0.0.0.0", Tags: []string{"a,b"},
			Meta: map[string]string{"version": "9"}, Weight: 4, Consul: &consul.Options{Addr: agent.Addr}, DrainDelay: 10 * time.Millisecond,
			Log:   slog.New(slog.NewTextHandler(t.Output(), nil)),
			Ready: func(s *echo.Server, addr string) { server = s; ready <- addr }})
	}()
	addr := <-ready
	_, text := send(t, "GET", "http://"+addr+"/x", "")
	if !strings.Contains(text, `"version":"9"`) {
		t.Errorf("reply %s", text)
	}
	health := func() string {
		_, text := send(t, "GET", "http://"+agent.Addr+"/v1/health/service/orders", "")
		return text
	}
	for _, want := range []string{`"Passing": 4`, `"a,b"`, `"Status": "passing"`} {
		if got := health(); !strings.Contains(strings.ReplaceAll(got, `":`, `": `), want) && !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	server.SetHealthy(false)
	parts.Eventually(t, 5*time.Second, "Consul finds it critical", func() bool { return strings.Contains(health(), `"critical"`) })
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := health(); strings.TrimSpace(got) != "[]" {
		t.Errorf("still registered: %s", got)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

func TestRunRefusesNonsense(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	tests := []struct {
		want string
		c    echo.Config
	}{
		{"name is empty", echo.Config{}},
		{"fail rate 2", echo.Config{Options: echo.Options{Name: "e", FailRate: 2}}},
		{"delay", echo.Config{Options: echo.Options{Name: "e", Delay: time.Hour}}},
		{"in use", echo.Config{Options: echo.Options{Name: "e"}, Port: taken.Addr().(*net.TCPAddr).Port}},
		{"weights", echo.Config{Options: echo.Options{Name: "e"}, Weight: -1, Consul: &consul.Options{}}},
	}
	for _, tt := range tests {
		if err := echo.Run(t.Context(), tt.c); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, want %q", err, tt.want)
		}
	}
}

func TestRunWithoutConsul(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ready := make(chan string, 1)
	done := make(chan error, 1)
	go func() {
		done <- echo.Run(ctx, echo.Config{Options: echo.Options{Name: "e"}, Log: slog.New(slog.DiscardHandler),
			Ready: func(_ *echo.Server, addr string) { ready <- addr }})
	}()
	if resp, _ := send(t, "GET", "http://"+<-ready, ""); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
