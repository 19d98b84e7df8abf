package proxy_test

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/front"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/proxy"
)

// engine is the one that the tests run on now, on both sides of the gateway:
// TestMain runs them all on both.
var engine = proxy.EngineStd

// server is net/http's or the gateway's own.
type server interface {
	Serve(net.Listener) error
	Close() error
}

type bothEngines struct{ m *testing.M }

// Run implements goleak.TestingM.
func (b bothEngines) Run() int {
	code := b.m.Run()
	if f := flag.Lookup("test.bench"); code != 0 || f != nil && f.Value.String() != "" {
		return code
	}
	fmt.Println("engine fast:")
	engine = proxy.EngineFast
	return b.m.Run()
}

func TestMain(m *testing.M) {
	// hystrix keeps two goroutines per command for the life of the process,
	// and go-cmp of its own makes none.
	goleak.VerifyTestMain(bothEngines{m},
		goleak.IgnoreAnyFunction("github.com/afex/hystrix-go/hystrix.(*metricExchange).Monitor"),
		goleak.IgnoreAnyFunction("github.com/afex/hystrix-go/hystrix.(*poolMetrics).Monitor"),
	)
}

// gate is a gateway of one route in front of an upstream, on a real server.
type gate struct {
	t        testing.TB
	up       *proxy.Upstream
	pool     *balancer.Pool
	addr     string
	handler  http.Handler
	settings proxy.Settings

	mu        sync.Mutex
	attempts  []proxy.Attempt
	exchanges []*middleware.Exchange
	finished  chan *middleware.Exchange
}

type gateOptions struct {
	settings func(*proxy.Settings)
	breaker  breaker.Settings
	route    proxy.RouteOptions
	trusted  bool
	exchange func(*middleware.Exchange, *http.Request) // before the proxy
	via      string
	wrap     func(http.Handler) http.Handler
}

func defaults() proxy.Settings {
	return proxy.Settings{
		Scheme: "http", Engine: engine, Connect: time.Second, Response: 5 * time.Second, Total: 10 * time.Second, Idle: 30 * time.Second,
		Retry: proxy.Retry{Attempts: 2, On: []string{"refused", "reset"}, Methods: []string{"GET", "HEAD", "OPTIONS", "PUT", "DELETE"}, Budget: 0.2, MinRate: 100},
	}
}

func newGate(t testing.TB, o gateOptions, addresses ...string) *gate {
	t.Helper()
	name := strings.NewReplacer("/", "_", " ", "_", "%", "_").Replace(t.Name())
	pool, err := balancer.New(name, balancer.Options{Policy: "round_robin"})
	if err != nil {
		t.Fatal(err)
	}
	o.breaker.ErrorPercent, o.breaker.OpenFor = max(o.breaker.ErrorPercent, 50), max(o.breaker.OpenFor, time.Second)
	if o.breaker.MinRequests == 0 {
		o.breaker.MinRequests = 1000
	}
	log := slog.New(slog.DiscardHandler)
	b, err := breaker.NewRegistry(log, nil).Breaker(name, o.breaker)
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{t: t, pool: pool, settings: defaults(), finished: make(chan *middleware.Exchange, 10000)}
	if o.settings != nil {
		o.settings(&g.settings)
	}
	g.up, err = proxy.NewUpstream(name, pool, b, g.settings, proxy.Options{Log: log, Via: o.via, OnAttempt: func(a proxy.Attempt) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.attempts = append(g.attempts, a)
	}})
	if err != nil {
		t.Fatal(err)
	}
	g.set(addresses...)
	var end http.Handler = proxy.New(g.up, o.route)
	if o.wrap != nil {
		end = o.wrap(end)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = l.Addr().String()
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	g.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := middleware.NewExchange(w, time.Now())
		x.ClientIP, x.Trusted, x.Scheme = netip.MustParseAddr("127.0.0.1"), o.trusted, "http"
		if o.exchange != nil {
			o.exchange(x, r)
		}
		defer func() { g.finished <- x }()
		alone := r.Body == http.NoBody
		end.ServeHTTP(x, r)
		if alone || x.Settled() { // as the listener does
			x.End()
		}
	})
	std := &http.Server{Protocols: &protocols, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), Handler: g.handler}
	var s server = std
	if engine == proxy.EngineFast {
		s = front.New(front.Options{Handler: g.handler, HTTP2: std})
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		g.up.Close()
		_ = s.Close()
		<-served
		g.up.Close()
	})
	return g
}

// set puts instances at the addresses into the pool.
func (g *gate) set(addresses ...string) {
	s := discovery.Snapshot{Service: "svc", Index: 1, At: time.Now()}
	for i, a := range addresses {
		id := fmt.Sprintf("node/i%d", i)
		s.Instances = append(s.Instances, discovery.Instance{ID: id, Service: "svc", ServiceID: fmt.Sprintf("i%d", i), Node: "node",
			Address: a, Status: discovery.StatusPassing, Weight: 1})
	}
	g.pool.Set(s)
}

// exchange returns the account of the next request that has ended.
func (g *gate) exchange() *middleware.Exchange {
	g.t.Helper()
	select {
	case x := <-g.finished:
		return x
	case <-time.After(10 * time.Second):
		g.t.Fatal("no request ended within 10 s")
		return nil
	}
}

func (g *gate) tries() []proxy.Attempt {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]proxy.Attempt(nil), g.attempts...)
}

func (g *gate) url(path string) string { return "http://" + g.addr + path }

// backend starts a real server that speaks HTTP/1.1 and h2c.
func backend(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s.Config.Protocols = &protocols
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.Start()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s.Listener.Addr().String()
}

// rawBackend answers each connection with a function of its own.
func rawBackend(t testing.TB, serve func(c net.Conn, r *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				serve(c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// refused returns an address that nobody listens on.
func refused(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// client returns an HTTP/1.1 client whose connections end with the test.
func client(t testing.TB) *http.Client {
	tr := &http.Transport{DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// clientH2 returns a client that speaks HTTP/2 in the clear.
func clientH2(t testing.TB) *http.Client {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &p, DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

type reply struct {
	*http.Response
	body string
}

func do(t testing.TB, c *http.Client, req *http.Request) reply {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: read body: %v", req.Method, req.URL, err)
	}
	return reply{resp, string(b)}
}

func get(t testing.TB, c *http.Client, url string, header ...string) reply {
	t.Helper()
	return do(t, c, request(t, http.MethodGet, url, nil, header...))
}

// request builds a request; header holds names and values in turn.
func request(t testing.TB, method, url string, body io.Reader, header ...string) *http.Request {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return req
}

// raw sends bytes to the gateway and returns the connection.
func raw(t testing.TB, addr, text string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	if _, err := io.WriteString(c, strings.ReplaceAll(text, "\n", "\r\n")); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

// readHead reads up to and with the empty line.
func readHead(t testing.TB, r *bufio.Reader) string {
	t.Helper()
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		b.WriteString(line)
		if err != nil {
			t.Fatalf("head ends early (%v): %q", err, b.String())
		}
		if line == "\r\n" {
			return b.String()
		}
	}
}

// drainHead is readHead for goroutines other than the test's.
func drainHead(r *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		b.WriteString(line)
		if err != nil || line == "\r\n" {
			return b.String(), err
		}
	}
}

func mustEOF(t testing.TB, r io.Reader) {
	t.Helper()
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("read after the end: got %v, want EOF", err)
	}
}
