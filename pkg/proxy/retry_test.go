package proxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/proxy"
)

// How an instance fails in these tests. Every kind counts the requests whose
// head it saw.
func failing(t testing.TB, how string, seen *atomic.Int64) string {
	switch how {
	case "refused":
		return refused(t)
	case "reset":
		return rawBackend(t, func(c net.Conn, r *bufio.Reader) {
			if _, err := drainHead(r); err == nil {
				seen.Add(1)
			}
			_ = c.(*net.TCPConn).SetLinger(0)
		})
	case "silent":
		return rawBackend(t, func(c net.Conn, r *bufio.Reader) {
			if _, err := drainHead(r); err == nil {
				seen.Add(1)
			}
			_, _ = io.Copy(io.Discard, r)
		})
	case "garbage":
		return rawBackend(t, func(c net.Conn, r *bufio.Reader) {
			if _, err := drainHead(r); err == nil {
				seen.Add(1)
			}
			_, _ = io.WriteString(c, "SSH-2.0-OpenSSH_9.9\r\n\r\n")
		})
	case "torn": // half of a declared length
		return rawBackend(t, func(c net.Conn, r *bufio.Reader) {
			if _, err := drainHead(r); err == nil {
				seen.Add(1)
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf.")
		})
	default:
		return backend(t, func(w http.ResponseWriter, r *http.Request) {
			seen.Add(1)
			var code int
			_, _ = fmt.Sscan(how, &code)
			w.WriteHeader(code)
			_, _ = io.WriteString(w, how)
		})
	}
}

func TestRetry(t *testing.T) {
	all := []string{"refused", "reset", "timeout", "503"}
	body := func(n int) func() io.Reader {
		return func() io.Reader { return strings.NewReader(strings.Repeat("b", n)) }
	}
	none := func() io.Reader { return nil }
	tests := []struct {
		name     string
		how      string // how the first instance fails
		on       []string
		method   string
		body     func() io.Reader
		header   []string
		attempts int
		want     int
		reason   string
		tries    int
	}{
		{"refused, GET", "refused", all, "GET", none, nil, 2, 200, "", 2},
		{"refused, POST with a body: nothing was sent", "refused", all, "POST", body(100 << 10), nil, 2, 200, "", 2},
		{"refused, not asked for", "refused", []string{"reset"}, "GET", none, nil, 2, 502, "upstream_refused", 1},
		{"refused, no attempts left", "refused", all, "GET", none, nil, 0, 502, "upstream_refused", 1},
		{"reset, GET", "reset", all, "GET", none, nil, 2, 200, "", 2},
		{"reset, PUT with a small body", "reset", all, "PUT", body(1000), nil, 2, 200, "", 2},
		{"reset, POST: bytes were sent", "reset", all, "POST", body(1000), nil, 2, 502, "upstream_reset", 1},
		{"reset, POST without a body: its head was sent", "reset", all, "POST", none, nil, 2, 502, "upstream_reset", 1},
		{"reset, POST with an Idempotency-Key", "reset", all, "POST", body(1000), []string{"Idempotency-Key", "k"}, 2, 200, "", 2},
		{"garbage, GET", "garbage", all, "GET", none, nil, 2, 200, "", 2},
		{"garbage, POST", "garbage", all, "POST", none, nil, 2, 502, "upstream_protocol", 1},
		{"503, GET", "503", all, "GET", none, nil, 2, 200, "", 2},
		{"503, POST", "503", all, "POST", none, nil, 2, 503, "", 1},
		{"503 not listed", "503", []string{"refused"}, "GET", none, nil, 2, 503, "", 1},
		{"500 not listed", "500", all, "GET", none, nil, 2, 500, "", 1},
		{"silent, GET", "silent", all, "GET", none, nil, 2, 200, "", 2},
		{"silent, POST", "silent", all, "POST", none, nil, 2, 504, "upstream_timeout", 1},
		{"torn answer, GET", "torn", all, "GET", none, nil, 2, 200, "", 2},
		{"torn answer, POST", "torn", all, "POST", none, nil, 2, 502, "upstream_reset", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var bad, good atomic.Int64
			sent := ""
			ok := backend(t, func(w http.ResponseWriter, r *http.Request) {
				good.Add(1)
				b, _ := io.ReadAll(r.Body)
				fmt.Fprintf(w, "%d", len(b))
			})
			g := newGate(t, gateOptions{settings: func(s *proxy.Settings) {
				s.Retry.Attempts, s.Retry.On = tt.attempts, tt.on
				if tt.how == "silent" {
					s.Response = time.Second // which the other instance has as well, on a machine that stalls
				}
			}})
			g.set(failing(t, tt.how, &bad), ok)
			for range 2 { // one of two consecutive requests begins with the failing one
				var payload io.Reader
				if b := tt.body(); b != nil {
					payload = b
				}
				resp := do(t, client(t), request(t, tt.method, g.url("/"), payload, tt.header...))
				x := g.exchange()
				if x.Attempts[0].Instance != "node/i0" {
					continue
				}
				sent = "yes"
				if resp.StatusCode != tt.want || resp.Header.Get("X-Proconsul-Reason") != tt.reason {
					t.Errorf("got %d %q, want %d %q", resp.StatusCode, resp.Header.Get("X-Proconsul-Reason"), tt.want, tt.reason)
				}
				if len(x.Attempts) != tt.tries {
					t.Errorf("got attempts %+v, want %d", x.Attempts, tt.tries)
				}
				if tt.want == 200 {
					n := 0
					if p := tt.body(); p != nil {
						b, _ := io.ReadAll(p)
						n = len(b)
					}
					if resp.body != fmt.Sprint(n) {
						t.Errorf("the second instance read %q bytes, want %d", resp.body, n)
					}
					if x.Instance != "node/i1" {
						t.Errorf("got instance %q, want the second", x.Instance)
					}
				}
				if bad.Load() > 1 {
					t.Errorf("the failing instance saw %d requests, want at most 1", bad.Load())
				}
				break
			}
			if sent == "" {
				t.Fatal("no request began with the failing instance")
			}
		})
	}
}

// A body beyond what is kept cannot be sent again, and one that fits can.
func TestRetryKeepsBodiesUpTo64KiB(t *testing.T) {
	for _, tt := range []struct {
		size, want int
	}{{64 << 10, 200}, {64<<10 + 1, 502}} {
		for _, chunked := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d chunked=%v", tt.size, chunked), func(t *testing.T) {
				// The failing instance reads all of the body before it resets.
				first := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, req.Body)
					_ = c.(*net.TCPConn).SetLinger(0)
				})
				second := backend(t, func(w http.ResponseWriter, r *http.Request) {
					b, _ := io.ReadAll(r.Body)
					fmt.Fprint(w, len(b))
				})
				g := newGate(t, gateOptions{}, first, second)
				for range 2 {
					var body io.Reader = strings.NewReader(strings.Repeat("b", tt.size))
					if chunked {
						body = io.MultiReader(body)
					}
					resp := do(t, client(t), request(t, "PUT", g.url("/"), body))
					x := g.exchange()
					if x.Attempts[0].Instance != "node/i0" {
						continue
					}
					if tt.want == 502 && len(x.Attempts) != 1 {
						t.Errorf("got attempts %v for a body that is lost, want one", x.Attempts)
					}
					if resp.StatusCode != tt.want || tt.want == 200 && resp.body != fmt.Sprint(tt.size) {
						t.Errorf("got %d %q, want %d", resp.StatusCode, resp.body, tt.want)
					}
				}
			})
		}
	}
}

func TestNeverTheSameInstanceWhileAnotherIsThere(t *testing.T) {
	var seen atomic.Int64
	g := newGate(t, gateOptions{settings: func(s *proxy.Settings) { s.Retry.Attempts = 3 }},
		failing(t, "reset", &seen), failing(t, "reset", &seen), failing(t, "reset", &seen), failing(t, "reset", &seen))
	resp := get(t, client(t), g.url("/"))
	x := g.exchange()
	var names []string
	for _, a := range x.Attempts {
		names = append(names, a.Instance)
	}
	slices.Sort(names)
	if want := []string{"node/i0", "node/i1", "node/i2", "node/i3"}; resp.StatusCode != 502 || !slices.Equal(names, want) {
		t.Errorf("got %d and attempts at %v, want 502 and %v", resp.StatusCode, names, want)
	}
	for i, a := range g.tries() {
		if a.Number != i || a.Failure != "reset" || a.Retried != (i < 3) {
			t.Errorf("attempt %d: %+v", i, a)
		}
	}
}

// Where there is only one instance it gets a second chance.
func TestLoneInstanceIsRetried(t *testing.T) {
	var n atomic.Int64
	addr := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := drainHead(r); err != nil {
			return
		}
		if n.Add(1) == 1 {
			_ = c.(*net.TCPConn).SetLinger(0)
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	g := newGate(t, gateOptions{}, addr)
	if resp := get(t, client(t), g.url("/")); resp.StatusCode != 200 {
		t.Errorf("got %d, want 200", resp.StatusCode)
	}
}

// An instance that closes idle connections without a word costs no request,
// whatever the method.
func TestKeepAliveRaceIsInvisible(t *testing.T) {
	addr := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		b, _ := io.ReadAll(req.Body)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d", len(b)%10)
		_ = c.(*net.TCPConn).CloseWrite() // while the gateway believes it to be idle
	})
	g := newGate(t, gateOptions{settings: func(s *proxy.Settings) { s.Retry.Attempts = 0 }}, addr)
	c := client(t)
	for i := range 200 {
		if resp := get(t, c, g.url("/")); resp.StatusCode != 200 {
			t.Fatalf("request %d: got %d", i, resp.StatusCode)
		}
	}
}

func TestRetryBudget(t *testing.T) {
	var seen atomic.Int64
	g := newGate(t, gateOptions{settings: func(s *proxy.Settings) {
		s.Retry = proxy.Retry{Attempts: 1, On: []string{"503"}, Methods: []string{"GET"}, Budget: 0.2}
	}}, failing(t, "503", &seen), failing(t, "503", &seen))
	c := client(t)
	for range 100 {
		if resp := get(t, c, g.url("/")); resp.StatusCode != 503 || resp.body != "503" {
			t.Fatalf("got %d %q, want the instance's own 503", resp.StatusCode, resp.body)
		}
	}
	retried, refused := 0, 0
	for _, a := range g.tries() {
		if a.Retried {
			retried++
		}
		if a.Budget {
			refused++
		}
	}
	if retried != 20 || refused != 80 {
		t.Errorf("got %d retries and %d refused by the budget, want 20 and 80 of 100 requests", retried, refused)
	}
}

func TestTotalDeadlineCoversAllTries(t *testing.T) {
	var seen atomic.Int64
	g := newGate(t, gateOptions{route: proxy.RouteOptions{Timeout: 250 * time.Millisecond}, settings: func(s *proxy.Settings) {
		s.Response = 150 * time.Millisecond
		s.Retry.Attempts, s.Retry.On = 5, []string{"timeout"}
	}}, failing(t, "silent", &seen), failing(t, "silent", &seen), failing(t, "silent", &seen), failing(t, "silent", &seen))
	start := time.Now()
	resp := get(t, client(t), g.url("/"))
	took := time.Since(start)
	x := g.exchange()
	// A machine that stalls over the first try's end may leave no time for a second.
	only := len(x.Attempts) == 1 && took >= 250*time.Millisecond
	if resp.StatusCode != 504 || resp.Header.Get("X-Proconsul-Reason") != "upstream_timeout" || len(x.Attempts) != 2 && !only {
		t.Errorf("got %d %q after %d attempts and %v, want 504 upstream_timeout after 2", resp.StatusCode, resp.Header.Get("X-Proconsul-Reason"), len(x.Attempts), took)
	}
}

func TestErrors(t *testing.T) {
	var seen atomic.Int64
	plain := backend(t, func(w http.ResponseWriter, r *http.Request) {})
	tests := []struct {
		name    string
		addr    []string
		set     func(*proxy.Settings)
		breaker breaker.Settings
		method  string
		want    int
		reason  string
		after   bool
		failure string
	}{
		{name: "no instance", want: 503, reason: "no_instances", after: true},
		{name: "refused", addr: []string{refused(t)}, want: 502, reason: "upstream_refused", failure: "refused"},
		{name: "reset", addr: []string{failing(t, "reset", &seen)}, want: 502, reason: "upstream_reset", failure: "reset"},
		{name: "silent", addr: []string{failing(t, "silent", &seen)}, set: func(s *proxy.Settings) { s.Response = 200 * time.Millisecond }, want: 504, reason: "upstream_timeout", failure: "ttfb_timeout"},
		{name: "not HTTP", addr: []string{failing(t, "garbage", &seen)}, want: 502, reason: "upstream_protocol", failure: "protocol"},
		{name: "TLS against a clear instance", addr: []string{plain}, set: func(s *proxy.Settings) { s.Scheme = "https" }, want: 502, reason: "upstream_tls", failure: "tls"},
		{name: "CONNECT", addr: []string{plain}, method: "CONNECT", want: 405, reason: "method_not_allowed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newGate(t, gateOptions{breaker: tt.breaker, settings: func(s *proxy.Settings) {
				s.Retry.Attempts = 0
				if tt.set != nil {
					tt.set(s)
				}
			}}, tt.addr...)
			method := tt.method
			if method == "" {
				method = "GET"
			}
			_, r := raw(t, g.addr, method+" / HTTP/1.1\nHost: gw.test\nConnection: close\n\n")
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			x := g.exchange()
			if resp.StatusCode != tt.want || resp.Header.Get("X-Proconsul-Reason") != tt.reason || string(x.Reason) != tt.reason {
				t.Errorf("got %d %q (account: %q), want %d %q", resp.StatusCode, resp.Header.Get("X-Proconsul-Reason"), x.Reason, tt.want, tt.reason)
			}
			if got := resp.Header.Get("Retry-After") != ""; got != tt.after {
				t.Errorf("Retry-After present: %v, want %v", got, tt.after)
			}
			if got := resp.Header.Get("Allow") != ""; got != (tt.want == 405) {
				t.Errorf("Allow present: %v with a %d", got, tt.want)
			}
			if got := resp.Header.Get("Content-Type"); got != "application/problem+json" {
				t.Errorf("got Content-Type %q", got)
			}
			tries := g.tries()
			if tt.failure == "" && len(tries) != 0 || tt.failure != "" && (len(tries) != 1 || tries[0].Failure != tt.failure) {
				t.Errorf("got attempts %+v, want one with %q", tries, tt.failure)
			}
			if x.Status != tt.want {
				t.Errorf("account has status %d, want %d", x.Status, tt.want)
			}
			_ = r
		})
	}
}

func TestConcurrencyLimit(t *testing.T) {
	entered, release := make(chan struct{}, 10), make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-release
	})
	g := newGate(t, gateOptions{breaker: breaker.Settings{MaxInFlight: 2}}, addr)
	c := client(t)
	done := make(chan int, 2)
	for range 2 {
		req := request(t, "GET", g.url("/"), nil)
		go func() {
			resp, err := c.Do(req)
			if err != nil {
				done <- 0
				return
			}
			resp.Body.Close()
			done <- resp.StatusCode
		}()
		<-entered
	}
	resp := get(t, c, g.url("/"))
	if resp.StatusCode != 503 || resp.Header.Get("X-Proconsul-Reason") != "concurrency_limited" || resp.Header.Get("Retry-After") == "" {
		t.Errorf("got %d %q, want 503 concurrency_limited with Retry-After", resp.StatusCode, resp.Header.Get("X-Proconsul-Reason"))
	}
	close(release)
	for range 2 {
		if code := <-done; code != 200 {
			t.Errorf("a request within the limit got %d", code)
		}
	}
	if resp := get(t, c, g.url("/")); resp.StatusCode != 200 {
		t.Errorf("after the permits came back: got %d", resp.StatusCode)
	}
}

// What a client does to its own request is not the instance's fault: nothing
// is counted against it, and nothing is tried again.
func TestClientLeaves(t *testing.T) {
	canceled := make(chan struct{}, 1)
	entered := make(chan struct{}, 1)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		canceled <- struct{}{}
	})
	tests := []struct{ name, send string }{
		{"while it waits", "GET / HTTP/1.1\nHost: x\n\n"},
		{"in the middle of its body", "PUT / HTTP/1.1\nHost: x\nContent-Length: 100000\n\nhalf"},
		{"in the middle of a chunk", "PUT / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n10\nhalf"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newGate(t, gateOptions{}, addr)
			c, _ := raw(t, g.addr, tt.send)
			<-entered
			c.Close()
			select {
			case <-canceled:
			case <-time.After(5 * time.Second):
				t.Fatal("the instance's request was not cancelled")
			}
			x := g.exchange()
			if x.Reason != "client_canceled" || x.Status != 499 || len(x.Attempts) != 1 {
				t.Errorf("account: reason %q status %d attempts %v, want client_canceled, 499, one", x.Reason, x.Status, x.Attempts)
			}
			if tries := g.tries(); len(tries) != 1 || tries[0].Failure != "canceled" || tries[0].Retried {
				t.Errorf("got attempts %+v", tries)
			}
		})
	}
}

func TestMalformedBodyIsTheClientsFault(t *testing.T) {
	g := newGate(t, gateOptions{}, backend(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
	}))
	_, r := raw(t, g.addr, "PUT / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\nzz\n")
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 400 || resp.Header.Get("X-Proconsul-Reason") != "bad_request" {
		t.Errorf("got %d %q, want 400 bad_request", resp.StatusCode, resp.Header.Get("X-Proconsul-Reason"))
	}
}

func TestBodyTooLarge(t *testing.T) {
	g := newGate(t, gateOptions{exchange: nil, wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, 10)
			next.ServeHTTP(w, r)
		})
	}}, backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	resp := do(t, client(t), request(t, "POST", g.url("/"), io.MultiReader(strings.NewReader("more than ten bytes"))))
	if resp.StatusCode != 413 || resp.Header.Get("X-Proconsul-Reason") != "body_too_large" {
		t.Errorf("got %d %q, want 413 body_too_large", resp.StatusCode, resp.Header.Get("X-Proconsul-Reason"))
	}
}

// A part of an answer never passes for the whole.
func TestInstanceDiesMidBody(t *testing.T) {
	for _, framing := range []string{"Content-Length: 100000", "Transfer-Encoding: chunked"} {
		t.Run(framing, func(t *testing.T) {
			sent := make(chan struct{})
			addr := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
				if _, err := drainHead(r); err != nil {
					return
				}
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%s\r\n\r\n", framing)
				if strings.HasPrefix(framing, "T") {
					_, _ = io.WriteString(c, "5\r\nhello\r\n")
				} else {
					_, _ = io.WriteString(c, "hello")
				}
				<-sent
				_ = c.(*net.TCPConn).SetLinger(0)
			})
			g := newGate(t, gateOptions{}, addr)
			resp, err := client(t).Do(request(t, "GET", g.url("/"), nil))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b := make([]byte, 5)
			if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "hello" {
				t.Fatalf("got %q, %v", b, err)
			}
			close(sent)
			if n, err := resp.Body.Read(b); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("after the instance died: read %d, %v; want an error other than EOF", n, err)
			}
			if x := g.exchange(); x.Reason != "upstream_reset" {
				t.Errorf("account has reason %q, want upstream_reset", x.Reason)
			}
		})
	}
}

// An instance that dies in the middle of an answer costs a client nothing while
// the answer is held back as a whole, however many came before and beside it.
func TestInstanceDiesInAnAnswerOfModerateSize(t *testing.T) {
	const size, beside = 200_000, 40
	whole := strings.Repeat("0123456789", size/10)
	var dying atomic.Bool
	serve := func(dies bool) string {
		return rawBackend(t, func(c net.Conn, r *bufio.Reader) {
			for {
				if _, err := drainHead(r); err != nil {
					return
				}
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
				if dies && dying.Load() {
					_, _ = io.WriteString(c, whole[:3*size/4])
					_ = c.(*net.TCPConn).SetLinger(0)
					return
				}
				if _, err := io.WriteString(c, whole); err != nil {
					return
				}
			}
		})
	}
	g := newGate(t, gateOptions{}, serve(true), serve(false))
	c := client(t)
	get := func() error {
		resp, err := c.Do(request(t, "GET", g.url("/"), nil))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && (resp.StatusCode != 200 || string(b) != whole) {
			err = fmt.Errorf("status %d, %d bytes", resp.StatusCode, len(b))
		}
		return err
	}
	together := func() {
		var wg sync.WaitGroup
		for range beside {
			wg.Go(func() {
				if err := get(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	together()
	together()
	dying.Store(true)
	broken := 0
	for range 30 {
		if err := get(); err != nil {
			t.Log(err)
			broken++
		}
	}
	// A machine that stops for longer than an answer is held back lets some out.
	if broken > 5 {
		t.Errorf("%d of 30 answers broken, half of which were begun by an instance that died", broken)
	}
}
