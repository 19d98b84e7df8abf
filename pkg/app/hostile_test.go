package app_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/consul/devcatalog"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/app"
	"github.com/proconsul/proconsul/pkg/parts"
)

// inProcess is a gateway in the test's own process, whose goroutines can be
// counted.
type inProcess struct {
	*app.App
	t *testing.T
}

// runApp runs a gateway of that configuration, which leaves out version, listen
// and admin, until the test ends.
func runApp(t *testing.T, text string) *inProcess {
	t.Helper()
	cfg, err := config.Parse("test.yaml", []byte("version: 1\nlisten: [{name: public, addr: \"127.0.0.1:0\", engine: fast}]\nadmin: {addr: \"127.0.0.1:0\"}\nshutdown: {delay: 0s, grace: 5s}\n"+text), config.LoadOptions{Pure: true})
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	a, err := app.New(cfg, app.Options{Version: "test", Log: slog.New(slog.NewTextHandler(&log, nil)), AccessLog: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the gateway ended with %v", err)
		}
		if t.Failed() {
			t.Logf("log of the gateway:\n%s", log.tail())
		}
	})
	select {
	case <-a.Ready():
	case <-time.After(patience):
		t.Fatal("the gateway is not ready")
	}
	return &inProcess{a, t}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	return len(p), nil
}

func (l *lockedBuffer) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b[max(0, len(l.b)-8<<10):])
}

func (p *inProcess) url(path string) string { return "http://" + p.Addr("") + path }

func (p *inProcess) upstream(name string) admin.Upstream {
	p.t.Helper()
	s, err := parts.Status(p.AdminAddr())
	if err != nil {
		p.t.Fatal(err)
	}
	return upstreamOf(s, name)
}

// held is what a process must not gather.
type held struct{ goroutines, files, series int }

func (p *inProcess) held() held {
	p.t.Helper()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections() // of the test's own questions
	series, err := parts.Series(p.AdminAddr())
	if err != nil {
		p.t.Fatal(err)
	}
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		p.t.Fatal(err)
	}
	return held{runtime.NumGoroutine(), len(files), series}
}

// settled is held once nothing more of the test's own comes or goes.
func (p *inProcess) settled() held {
	p.t.Helper()
	last, now := held{}, p.held()
	parts.Eventually(p.t, patience, "the process does not come to rest", func() bool {
		time.Sleep(50 * time.Millisecond)
		last, now = now, p.held()
		return now == last
	})
	return now
}

// back waits until no more is held than before; a few goroutines and files
// come and go with connections of the test's own. Series are not looked at
// where a test makes new ones, and has set theirs to 0.
func (p *inProcess) back(before held) {
	p.t.Helper()
	const few = 8
	var now held
	deadline := time.Now().Add(patience)
	for {
		now = p.held()
		if before.series == 0 {
			now.series = 0
		}
		if now.goroutines <= before.goroutines+few && now.files <= before.files+few && now.series <= before.series {
			return
		}
		if time.Now().After(deadline) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	var stacks strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1) // a Builder takes everything
	p.t.Errorf("the process holds %+v, before it was %+v\n%s", now, before, stacks.String())
}

// healthy checks that an upstream has come through: nothing in flight, the
// breaker closed, and requests are answered.
func (p *inProcess) healthy(name, path string) {
	p.t.Helper()
	u := p.upstream(name)
	parts.Eventually(p.t, patience, "requests stay in flight", func() bool { u = p.upstream(name); return u.InFlight == 0 })
	if u.Breaker.State != "closed" || u.Breaker.Opened != 0 {
		p.t.Errorf("the breaker is %+v", u.Breaker)
	}
	for _, in := range u.Instances {
		if !in.Usable || in.InFlight != 0 {
			p.t.Errorf("instance %+v", in)
		}
	}
	noFailures(p.t, parts.Fire(p.t, 20, parts.LoadOptions{URLs: []string{p.url(path)}}))
}

// TestClientsThatHangUp leaves in the middle of bodies, hundreds of times: of
// uploads, downloads, streams and upgraded connections, politely and not.
func TestClientsThatHangUp(t *testing.T) {
	e := binaries(t).StartEcho(t, parts.EchoOptions{Name: "echo", ID: "echo-1"})
	// A place that a client who left keeps would soon be missed.
	text := strings.Replace(fixed(e), "name: echo,", "name: echo, max_in_flight: 64,", 1)
	p := runApp(t, text+"routes: [{name: echo, match: {path: \"/**\"}, upstream: {service: echo}}]\n")
	tests := []struct {
		name    string
		request string
		reads   int // bytes before the client leaves
	}{
		{"upload", "POST /up HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n" + strings.Repeat("x", 50_000), 0},
		{"chunked upload", "POST /up HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n10000\r\n" + strings.Repeat("x", 3000), 0},
		{"upload that waits for 100", "POST /up HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n", 5},
		{"download", "GET /down?size=32MiB HTTP/1.1\r\nHost: x\r\n\r\n", 20_000},
		{"slow header", "GET /slow?delay=30s HTTP/1.1\r\nHost: x\r\n\r\n", 0},
		{"events", "GET /events?n=1000&every=10ms HTTP/1.1\r\nHost: x\r\n\r\n", 200},
		{"upgrade", "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", 20},
		{"half a header", "GET / HTTP/1.1\r\nHost: x\r\nX-Ha", 0},
	}
	noFailures(t, parts.Fire(t, 64, parts.LoadOptions{URLs: []string{p.url("/")}, Workers: 16}))
	before := p.settled()
	before.series = 0 // methods and codes that were new
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var wg sync.WaitGroup
			for i := range 12 {
				wg.Go(func() {
					for range 10 {
						if t.Failed() {
							return
						}
						hangUp(t, p.Addr(""), tt.request, tt.reads, i%2 == 0)
					}
				})
			}
			wg.Wait()
			p.healthy("echo", "/")
		})
	}
	p.back(before)
	if in := p.upstream("echo").Instances[0]; in.Failures != 0 {
		t.Errorf("clients that left count as %d failures of the instance", in.Failures)
	}
}

// hangUp sends a request, reads a little and leaves: with a FIN, or a reset.
func hangUp(t *testing.T, addr, request string, reads int, reset bool) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Error(err)
		return
	}
	if _, err := io.WriteString(c, request); err != nil {
		t.Errorf("send: %v", err)
		return
	}
	if _, err := io.CopyN(io.Discard, bufio.NewReader(c), int64(reads)); err != nil {
		t.Errorf("read %d bytes: %v", reads, err)
	}
	if reset {
		_ = c.(*net.TCPConn).SetLinger(0)
	}
}

// TestBurstOverTheConcurrencyLimit sends ten times what a healthy upstream may
// have in flight: the limit passes, the excess is told so at once, and the
// circuit stays closed.
func TestBurstOverTheConcurrencyLimit(t *testing.T) {
	const limit = 20
	release := make(chan struct{})
	var entered atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/held" {
			return
		}
		entered.Add(1)
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer srv.Close()
	free := sync.OnceFunc(func() { close(release) })
	defer free()
	p := runApp(t, fmt.Sprintf(`consul: {disabled: true}
upstreams: [{name: web, instances: [{address: %q}], max_in_flight: %d, timeout: {idle: 1s}}]
routes: [{name: web, match: {path: "/**"}, upstream: {service: web}}]
`, srv.Listener.Addr(), limit))
	before := p.settled()
	before.series = 0 // there were no answers yet

	load := parts.StartLoad(t, parts.LoadOptions{URLs: []string{p.url("/held")}, Workers: 10 * limit, Pace: time.Hour})
	parts.Eventually(t, patience, "the excess is not refused", func() bool {
		return load.Tally().Reasons["concurrency_limited"] >= 9*limit && entered.Load() == limit
	})
	if u := p.upstream("web"); u.InFlight != limit || u.Breaker.State != "closed" {
		t.Errorf("in the burst %d requests are in flight, want %d; the breaker is %+v", u.InFlight, limit, u.Breaker)
	}
	free()
	tally := load.Stop()
	if tally.Status[200] != limit || tally.Status[503] != 9*limit || tally.Reasons["concurrency_limited"] != 9*limit {
		t.Errorf("want %d answers and %d refusals: %v", limit, 9*limit, tally)
	}
	p.healthy("web", "/")
	p.back(before)
}

// TestThousandInstancesComeAndGo fills and empties a pool a few times under
// load: no request fails, and the process holds afterwards what it held before.
func TestThousandInstancesComeAndGo(t *testing.T) {
	const many = 1000
	// One process answers at every loopback address: a thousand instances.
	port := binaries(t).StartEcho(t, parts.EchoOptions{Name: "echo", ID: "all", Everywhere: true}).Port
	catalog := startCatalog(t)
	register := func(id, address string) {
		t.Helper()
		catalog("register", fmt.Sprintf(`{"ID":%q,"Name":"echo","Address":%q,"Port":%d}`, id, address, port))
	}
	register("steady", "127.1.0.1")
	p := runApp(t, fmt.Sprintf(`consul: {addr: %q}
upstreams: [{service: echo, timeout: {idle: 1s}}]
routes: [{name: echo, match: {path: "/**"}, upstream: {service: echo}}]
`, catalog("", "")))
	parts.Eventually(t, patience, "the first instance is not used", func() bool { return p.upstream("echo").Usable == 1 })
	noFailures(t, parts.Fire(t, 50, parts.LoadOptions{URLs: []string{p.url("/")}}))
	before := p.settled()

	size := func(n int) {
		t.Helper()
		parts.Eventually(t, patience, fmt.Sprintf("the pool has not come to %d instances", n), func() bool {
			time.Sleep(25 * time.Millisecond) // a thousand rows are work for both sides
			u := p.upstream("echo")
			return u.Total == n && u.Usable == n
		})
	}
	load := parts.StartLoad(t, parts.LoadOptions{URLs: []string{p.url("/")}, Pace: time.Millisecond})
	for wave := range 2 {
		for i := range many {
			register(fmt.Sprintf("wave-%d-%d", wave, i), fmt.Sprintf("127.2.%d.%d", i/250, 1+i%250))
		}
		size(many + 1)
		load.Await(200)
		for i := range many {
			catalog(fmt.Sprintf("deregister/wave-%d-%d", wave, i), "")
		}
		size(1)
		load.Await(50)
	}
	tally := load.Stop()
	noFailures(t, tally)
	t.Log(tally.Requests, "requests, longest", tally.Longest)
	p.healthy("echo", "/")
	p.back(before)
}

// startCatalog starts an embedded Consul API. What it returns asks the agent to
// do something with a service and returns the API's address.
func startCatalog(t *testing.T) func(act, body string) (addr string) {
	t.Helper()
	catalog := devcatalog.New(devcatalog.Options{Streaming: true})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- catalog.Run(ctx) }()
	srv := httptest.NewServer(catalog)
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		srv.CloseClientConnections()
		srv.Close()
	})
	return func(act, body string) string {
		t.Helper()
		addr := srv.Listener.Addr().String()
		if act == "" {
			return addr
		}
		req, err := http.NewRequest(http.MethodPut, srv.URL+"/v1/agent/service/"+act, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", act, resp.Status)
		}
		return addr
	}
}

// TestAmbiguousFraming sends what two readers may read in two ways. Each is
// refused in the gateway's own words and counted, its connection ends, and
// nothing of it, nor of what follows, reaches the instance.
func TestAmbiguousFraming(t *testing.T) {
	var reached, outOfABody atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		if r.URL.Path == "/smuggled" {
			outOfABody.Add(1)
		}
	}))
	defer srv.Close()
	p := runApp(t, fmt.Sprintf(`consul: {disabled: true}
upstreams: [{name: web, instances: [{address: %q}]}]
routes: [{name: web, match: {path: "/**"}, upstream: {service: web}}]
`, srv.Listener.Addr()))
	const smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	tests := []struct {
		name, request string
		status        int
	}{
		{"length and chunks", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"two lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 36\r\n\r\n", 400},
		{"one length twice", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", 400},
		{"a list of lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0, 0\r\n\r\n", 400},
		{"a length that is signed", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +0\r\n\r\n", 400},
		{"another coding", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n", 501},
		{"a coding before chunks", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
		{"a coding hidden by a tab", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", 400},
		{"chunks in HTTP/1.0", "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"a folded coding", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400},
		{"a folded field", "GET / HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n Content-Length: 36\r\n\r\n", 400},
		{"a bare line feed", "GET / HTTP/1.1\r\nHost: x\nContent-Length: 36\r\n\r\n", 400},
		{"a bare carriage return", "GET / HTTP/1.1\r\nHost: x\rContent-Length: 36\r\n\r\n", 400},
		{"a space before a colon", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 36\r\n\r\n", 400},
		{"a space before the first field", "GET / HTTP/1.1\r\n X: y\r\nHost: x\r\n\r\n", 400},
		{"a NUL in a field", "GET / HTTP/1.1\r\nHost: x\r\nX-A: 1\x002\r\n\r\n", 400},
		{"two hosts", "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400},
		{"no host", "GET / HTTP/1.1\r\n\r\n", 400},
		{"a URL of another host", "GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"a line end in the target", "GET /\r/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"a long request line", "GET /" + strings.Repeat("a", 70<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n", 414},
		{"a large header", "GET / HTTP/1.1\r\nHost: x\r\nX-A: " + strings.Repeat("a", 70<<10) + "\r\n\r\n", 431},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := net.Dial("tcp", p.Addr(""))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(c, tt.request+smuggled) // the end may come first
			r := bufio.NewReader(c)
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != tt.status || !resp.Close {
				t.Errorf("got %d, close %v, %v; want %d", resp.StatusCode, resp.Close, err, tt.status)
			}
			if h := resp.Header; h.Get("X-Proconsul-Reason") != "bad_request" || h.Get("Content-Type") != "application/problem+json" || h.Get("X-Request-Id") == "" ||
				!strings.Contains(string(body), `"detail":`) {
				t.Errorf("got %v %s", h, body)
			}
			if _, err := http.ReadResponse(r, nil); err == nil {
				t.Error("what follows was answered")
			}
		})
	}
	if n := reached.Load(); n > 0 {
		t.Errorf("%d requests reached the instance", n)
	}
	// Bad chunks: the request may be under way by then, and ends with the
	// client's fault; what follows is no request.
	for _, body := range []string{"5\nhello\r\n0\r\n\r\n", "5;\x01\r\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n", "-1\r\n", "5\r\nhello!\r\n0\r\n\r\n", "0\r\nX : 1\r\n\r\n", "ffffffffffffffff1\r\n"} {
		c, err := net.Dial("tcp", p.Addr(""))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"+body+smuggled) // likewise
		answers, _ := io.ReadAll(c)                                                                                // until the gateway ends it
		c.Close()
		if n := strings.Count(string(answers), "HTTP/1.1 "); n > 1 {
			t.Errorf("%q: %d answers", body, n)
		}
	}
	if n := outOfABody.Load(); n > 0 {
		t.Errorf("%d requests out of a body reached the instance", n)
	}
	resp, err := http.Get("http://" + p.AdminAddr() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	scrape, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf(`proconsul_local_responses_total{reason="bad_request",route="_none"} %d`, len(tests)); !strings.Contains(string(scrape), want) {
		t.Errorf("the metrics lack %s", want)
	}
}
