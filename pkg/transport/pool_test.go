package transport_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/transport"
)

// numbered answers with the number of the connection.
func numbered(t *testing.T) *server {
	return serve(t, func(c net.Conn, r *bufio.Reader, n int) {
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			if _, err := io.WriteString(c, ok(string(rune('0'+n)))); err != nil {
				return
			}
		}
	})
}

// hold makes n requests at the same time and returns their answers unread.
func hold(t *testing.T, tr *transport.Transport, url string, n int) []*http.Response {
	t.Helper()
	all := make([]*http.Response, n)
	for i := range n {
		resp, err := tr.RoundTrip(request(t, "GET", url, nil))
		if err != nil {
			t.Fatal(err)
		}
		all[i] = resp
	}
	return all
}

func read(t *testing.T, resp *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return string(b)
}

func TestLastUsedGoesFirst(t *testing.T) {
	s := numbered(t)
	tr := client(t, transport.Options{})
	held := hold(t, tr, s.url, 3)
	for _, i := range []int{2, 0, 1} {
		read(t, held[i])
	}
	held = hold(t, tr, s.url, 3)
	for i, want := range []string{"1", "0", "2"} {
		if got := read(t, held[i]); got != want {
			t.Errorf("request %d went over connection %s, want %s", i, got, want)
		}
	}
	if n, known := tr.Idle(s.addr); n != 3 || !known {
		t.Errorf("%d connections kept", n)
	}
}

// A request that asks for the connection's end gets it, also from an instance
// that would keep it.
func TestClosingRequests(t *testing.T) {
	s := answers(t, ok("ok"))
	tr := client(t, transport.Options{})
	for name, make := range map[string]func(*http.Request){
		"Close":        func(r *http.Request) { r.Close = true },
		"by its field": func(r *http.Request) { r.Header.Set("Connection", "x, Close") },
	} {
		req := request(t, "GET", s.url, nil)
		make(req)
		mustDo(t, tr, req)
		if got := tr.Stats(); got.Idle != 0 || got.Active != 0 {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

func TestMaxIdlePerHost(t *testing.T) {
	for limit, want := range map[int]int64{2: 2, -1: 0} {
		s := numbered(t)
		tr := client(t, transport.Options{MaxIdlePerHost: limit})
		for _, resp := range hold(t, tr, s.url, 4) {
			read(t, resp)
		}
		if got := tr.Stats(); got.Idle != want || got.Active != 0 || got.Dials != 4 {
			t.Errorf("limit %d: got %+v", limit, got)
		}
	}
}

func TestIdleTimeout(t *testing.T) {
	closed := make(chan struct{}, 10)
	s := serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
		for {
			if _, err := http.ReadRequest(r); err != nil {
				closed <- struct{}{}
				return
			}
			_, _ = io.WriteString(c, ok("ok"))
		}
	})
	tr := client(t, transport.Options{IdleTimeout: 30 * time.Millisecond})
	for _, resp := range hold(t, tr, s.url, 3) {
		read(t, resp)
	}
	for range 3 {
		<-closed // the instance sees that they go
	}
	eventually(t, "address still known", func() bool { _, known := tr.Idle(s.addr); return !known })
	mustDo(t, tr, request(t, "GET", s.url, nil))
	if got := tr.Stats(); got.Dials != 4 || got.Idle > 1 {
		t.Errorf("got %+v", got)
	}
}

func TestCloseIdleConnections(t *testing.T) {
	s := numbered(t)
	var fell atomic.Bool
	tr := client(t, transport.Options{Fallback: closer{&fell}})
	held := hold(t, tr, s.url, 2)
	read(t, held[0])
	tr.CloseIdleConnections()
	if got := tr.Stats(); got.Idle != 0 || got.Active != 1 || !fell.Load() {
		t.Errorf("got %+v, fallback told: %v", got, fell.Load())
	}
	if got := read(t, held[1]); got != "1" {
		t.Errorf("the request in flight got %q", got)
	}
	if got := tr.Stats(); got.Idle != 0 || got.Active != 0 {
		t.Errorf("got %+v, want what was in use closed as well", got)
	}
	if got := read(t, hold(t, tr, s.url, 1)[0]); got != "2" || tr.Stats().Idle != 1 {
		t.Errorf("got connection %s, %+v", got, tr.Stats())
	}
}

type closer struct{ told *atomic.Bool }

func (c closer) RoundTrip(*http.Request) (*http.Response, error) { return nil, errors.ErrUnsupported }
func (c closer) CloseIdleConnections()                           { c.told.Store(true) }

// Connections that the instance has closed, or spoken on, are found out before
// anything is written: any request goes to another.
func TestStaleConnections(t *testing.T) {
	for name, spoil := range map[string]func(c net.Conn){
		"closed":     func(c net.Conn) { c.Close() },
		"reset":      func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0); c.Close() },
		"unasked":    func(c net.Conn) { _, _ = io.WriteString(c, ok("evil")) },
		"timeout":    func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 408 Timeout\r\n\r\n"); c.Close() },
		"empty line": func(c net.Conn) { _, _ = io.WriteString(c, "\r\n") },
	} {
		for _, verb := range []string{"GET", "POST"} {
			spoiled := make(chan struct{}, 10)
			now := make(chan struct{})
			s := serve(t, func(c net.Conn, r *bufio.Reader, n int) {
				for {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, req.Body)
					_, _ = io.WriteString(c, ok("good"))
					if n < 3 {
						<-now
						spoil(c)
						spoiled <- struct{}{}
					}
				}
			})
			tr := client(t, transport.Options{})
			for _, resp := range hold(t, tr, s.url, 3) {
				read(t, resp)
			}
			close(now)
			for range 3 {
				<-spoiled
			}
			time.Sleep(10 * time.Millisecond) // loopback delivers at once, but in another thread
			var body io.Reader
			if verb == "POST" {
				body = onlyReader{strings.NewReader("hello")}
			}
			if r := mustDo(t, tr, request(t, verb, s.url, body)); r.body != "good" {
				t.Errorf("%s on a connection that was %s: got %q", verb, name, r.body)
			}
			if got := tr.Stats(); got.Stale != 3 || got.Retried != 0 {
				t.Errorf("%s, %s: got %+v, want three stale connections", verb, name, got)
			}
		}
	}
}

// A connection that ends under a request: sent again once where that is safe,
// and told apart from an answer that broke off.
func TestKeepAliveRace(t *testing.T) {
	tests := []struct {
		name     string
		verb     string
		header   string
		body     string
		partial  string // what the instance sends before it closes
		again    bool
		answered bool
	}{
		{name: "GET", verb: "GET", again: true},
		{name: "HEAD", verb: "HEAD", again: true},
		{name: "OPTIONS", verb: "OPTIONS", again: true},
		{name: "DELETE", verb: "DELETE"},
		{name: "empty POST", verb: "POST"},
		{name: "empty POST with a key", verb: "POST", header: "Idempotency-Key", again: true},
		{name: "POST with a key", verb: "POST", header: "Idempotency-Key", body: "hello"},
		{name: "POST", verb: "POST", body: "hello"},
		{name: "half a header", verb: "GET", partial: "HTTP/1.1 200 OK\r\nConte", answered: true},
		{name: "an interim answer", verb: "GET", partial: "HTTP/1.1 103 Early Hints\r\n\r\n", answered: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, func(c net.Conn, r *bufio.Reader, n int) {
				for i := 0; ; i++ {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, req.Body)
					if n == 0 && i == 1 {
						_, _ = io.WriteString(c, tt.partial)
						return
					}
					head := ok("ok")
					if req.Method == "HEAD" {
						head = strings.TrimSuffix(head, "ok")
					}
					_, _ = io.WriteString(c, head)
				}
			})
			tr := client(t, transport.Options{})
			mustDo(t, tr, request(t, "GET", s.url, nil))
			var body io.Reader
			if tt.body != "" {
				body = strings.NewReader(tt.body)
			}
			req := request(t, tt.verb, s.url, body)
			if tt.header != "" {
				req.Header.Set(tt.header, "k")
			}
			_, err := do(t, tr, req)
			if tt.again {
				if err != nil || tr.Stats().Retried != 1 || s.accepted() != 2 {
					t.Errorf("got %v, %+v; want it sent again on a new connection", err, tr.Stats())
				}
				return
			}
			var lost *transport.LostError
			if !errors.As(err, &lost) || !lost.Reused || lost.Answered != tt.answered || tr.Stats().Retried != 0 {
				t.Errorf("got %#v, %+v", err, tr.Stats())
			}
		})
	}
	t.Run("once", func(t *testing.T) {
		s := serve(t, func(c net.Conn, r *bufio.Reader, n int) {
			if _, err := http.ReadRequest(r); err == nil && n == 0 {
				_, _ = io.WriteString(c, ok("ok"))
				_, _ = http.ReadRequest(r)
			}
		})
		tr := client(t, transport.Options{})
		mustDo(t, tr, request(t, "GET", s.url, nil))
		_, err := do(t, tr, request(t, "GET", s.url, nil))
		var lost *transport.LostError
		if !errors.As(err, &lost) || lost.Reused || s.accepted() != 2 {
			t.Errorf("got %v after %d connections", err, s.accepted())
		}
	})
	t.Run("new connection", func(t *testing.T) {
		s := serve(t, func(_ net.Conn, r *bufio.Reader, _ int) { _, _ = http.ReadRequest(r) })
		tr := client(t, transport.Options{})
		_, err := do(t, tr, request(t, "GET", s.url, nil))
		var lost *transport.LostError
		if !errors.As(err, &lost) || lost.Reused || s.accepted() != 1 {
			t.Errorf("got %v after %d connections", err, s.accepted())
		}
	})
}

// Connections without a descriptor work as well, though they are not probed.
func TestConnectionsThatCannotBeProbed(t *testing.T) {
	s := numbered(t)
	var n atomic.Int64
	tr := client(t, transport.Options{Dial: counting(&n)})
	for range 3 {
		if r := mustDo(t, tr, request(t, "GET", s.url, nil)); r.body != "0" {
			t.Errorf("went over connection %s", r.body)
		}
	}
	s.kill()
	if r := mustDo(t, tr, request(t, "GET", s.url, nil)); r.body != "1" || tr.Stats().Retried != 1 {
		t.Errorf("got %s, %+v", r.body, tr.Stats())
	}
}

// Close of a body that has not been read: what is there already does not cost
// the connection, and nothing is waited for.
func TestBodyClose(t *testing.T) {
	for name, tt := range map[string]struct {
		answer string
		keep   bool
	}{
		"all there":           {ok(strings.Repeat("x", 1000)), true},
		"all there, chunked":  {crlf("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello\n5\nworld\n0\nX: 1\n\n"), true},
		"not all there":       {"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhello", false},
		"no end of chunks":    {crlf("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello\n"), false},
		"surplus":             {ok("hello") + "x", false},
		"closing":             {crlf("HTTP/1.1 200 OK\nConnection: close\nContent-Length: 5\n\nhello"), false},
		"malformed":           {crlf("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\nz\n"), false},
		"until the end":       {"HTTP/1.1 200 OK\r\n\r\nhello", false},
		"chunk not all there": {crlf("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n500\nhello"), false},
	} {
		s := answers(t, tt.answer)
		tr := client(t, transport.Options{})
		resp, err := tr.RoundTrip(request(t, "GET", s.url, nil))
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Error(err)
		}
		_ = resp.Body.Close() // may be called twice
		if _, err := resp.Body.Read(make([]byte, 1)); err != http.ErrBodyReadAfterClose {
			t.Errorf("%s: reading after Close: %v", name, err)
		}
		if got := tr.Stats(); got.Idle == 1 != tt.keep || got.Active != 0 {
			t.Errorf("%s: got %+v, want it kept: %v", name, got, tt.keep)
		}
	}
}

// Close ends a Read that is under way in another goroutine.
func TestBodyCloseWhileReading(t *testing.T) {
	s := answers(t, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhello")
	tr := client(t, transport.Options{})
	resp, err := tr.RoundTrip(request(t, "GET", s.url, nil))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := resp.Body.Read(make([]byte, 100)); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := resp.Body.Read(make([]byte, 100))
		done <- err
	}()
	time.Sleep(5 * time.Millisecond) // most likely it waits by now; either way the end is the same
	_ = resp.Body.Close()
	select {
	case err := <-done:
		if err == nil || err == io.EOF {
			t.Errorf("Read ended with %v", err)
		}
	case <-time.After(10 * time.Second): // before the request's own deadline
		t.Fatal("Read goes on")
	}
	if got := tr.Stats(); got.Idle != 0 || got.Active != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestConnectErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := "http://" + l.Addr().String()
	l.Close()
	tr := client(t, transport.Options{})
	b := &spyBody{Reader: strings.NewReader("hello")}
	_, err = do(t, tr, request(t, "POST", refused, b))
	var connect *transport.ConnectError
	if !errors.As(err, &connect) || connect.TLS || connect.Timeout() || b.closed.Load() != 1 {
		t.Errorf("got %v, body closed %d times", err, b.closed.Load())
	}
	if got := tr.Stats(); got.DialErrors != 1 || got.Active != 0 {
		t.Errorf("got %+v", got)
	}

	slow := client(t, transport.Options{ConnectTimeout: 10 * time.Millisecond, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	_, err = do(t, slow, request(t, "GET", refused, nil))
	if !errors.As(err, &connect) || !connect.Timeout() || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want a timeout", err)
	}
}

func TestTLS(t *testing.T) {
	var conns atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = io.WriteString(w, r.Proto+" "+string(b))
	}))
	s.EnableHTTP2 = true
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			conns.Add(1)
		}
	}
	s.Config.ErrorLog = discard
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())

	t.Run("http/1.1", func(t *testing.T) {
		conns.Store(0)
		tr := client(t, transport.Options{TLS: &tls.Config{RootCAs: roots}})
		for range 5 {
			r := mustDo(t, tr, request(t, "POST", s.URL, strings.NewReader("hello")))
			if r.body != "HTTP/1.1 hello" || r.TLS == nil || r.TLS.Version < tls.VersionTLS12 {
				t.Errorf("got %q over %v", r.body, r.TLS)
			}
			eventually(t, "upload not over", func() bool { return tr.Stats().Active == 0 })
			mustDo(t, tr, request(t, "GET", s.URL, nil))
		}
		if conns.Load() != 1 || tr.Stats().Stale != 0 {
			t.Errorf("took %d connections, %+v", conns.Load(), tr.Stats())
		}
		s.CloseClientConnections()
		eventually(t, "POST not served", func() bool {
			_, err := do(t, tr, request(t, "POST", s.URL, strings.NewReader("hello")))
			return err == nil
		})
		if got := tr.Stats(); got.Stale == 0 {
			t.Errorf("got %+v, want the closed connection found out", got)
		}
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		tr := client(t, transport.Options{TLS: &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS12}})
		for range 3 {
			mustDo(t, tr, request(t, "GET", s.URL, nil))
		}
		if got := tr.Stats(); got.Dials != 1 {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("HTTP/2 goes to the fallback", func(t *testing.T) {
		fall := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
		tr := client(t, transport.Options{TLS: &tls.Config{RootCAs: roots, NextProtos: []string{"h2", "http/1.1"}}, Fallback: fall})
		for range 3 {
			if r := mustDo(t, tr, request(t, "POST", s.URL, strings.NewReader("hello"))); r.body != "HTTP/2.0 hello" {
				t.Errorf("got %q", r.body)
			}
		}
		if got := tr.Stats(); got.Dials != 1 || got.Fallback != 3 || got.DialErrors != 0 {
			t.Errorf("got %+v, want the address remembered", got)
		}
	})
	t.Run("unknown authority", func(t *testing.T) {
		tr := client(t, transport.Options{TLS: &tls.Config{}})
		_, err := do(t, tr, request(t, "GET", s.URL, nil))
		var connect *transport.ConnectError
		var authority x509.UnknownAuthorityError
		if !errors.As(err, &connect) || !connect.TLS || !errors.As(err, &authority) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("slow handshake", func(t *testing.T) {
		silent := serve(t, func(_ net.Conn, r *bufio.Reader, _ int) { _, _ = io.Copy(io.Discard, r) })
		tr := client(t, transport.Options{TLS: &tls.Config{RootCAs: roots}, ConnectTimeout: 20 * time.Millisecond})
		_, err := do(t, tr, request(t, "GET", "https://"+silent.addr, nil))
		var connect *transport.ConnectError
		if !errors.As(err, &connect) || connect.TLS || !connect.Timeout() {
			t.Errorf("got %#v, want a timeout", err)
		}
	})
	t.Run("not TLS", func(t *testing.T) {
		plain := serve(t, func(c net.Conn, _ *bufio.Reader, _ int) { _, _ = io.WriteString(c, "HTTP/1.1 400 Bad\r\n\r\n") })
		tr := client(t, transport.Options{TLS: &tls.Config{RootCAs: roots}})
		_, err := do(t, tr, request(t, "GET", "https://"+plain.addr, nil))
		var connect *transport.ConnectError
		if !errors.As(err, &connect) || !connect.TLS {
			t.Errorf("got %v", err)
		}
	})
}

// Cancellation takes effect wherever a request is, by watching the context and
// by sweeping.
func TestCancellation(t *testing.T) {
	why := errors.New("because")
	stages := map[string]struct {
		answer string // after the header of the request
		body   func() io.Reader
		dial   bool
		read   bool // the answer's header comes
	}{
		"while it dials":                 {dial: true},
		"before the answer":              {},
		"after an interim answer":        {answer: "HTTP/1.1 103 Early Hints\r\n\r\n"},
		"within the header":              {answer: "HTTP/1.1 200 OK\r\nConte"},
		"while it uploads":               {body: func() io.Reader { return &endless{flow: true, done: make(chan struct{})} }},
		"while it waits for the body":    {body: func() io.Reader { return &endless{done: make(chan struct{})} }},
		"within the body":                {answer: "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", read: true},
		"within a chunk":                 {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhello", read: true},
		"in a body without an end":       {answer: "HTTP/1.1 200 OK\r\n\r\nhello", read: true},
		"answered, while it uploads yet": {answer: "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", read: true, body: func() io.Reader { return &endless{done: make(chan struct{})} }},
	}
	for name, stage := range stages {
		for _, sweep := range []time.Duration{0, 5 * time.Millisecond} {
			for _, deadline := range []bool{false, true} {
				kind := "canceled"
				if deadline {
					kind = "timed out"
				}
				if sweep > 0 {
					kind += " (swept)"
				}
				t.Run(name+" "+kind, func(t *testing.T) {
					t.Parallel()
					reached, closed := make(chan struct{}, 1), make(chan struct{})
					s := serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
						defer close(closed)
						if _, err := readHeadOf(r); err != nil {
							return
						}
						_, _ = io.WriteString(c, stage.answer)
						reached <- struct{}{}
						_, _ = io.Copy(io.Discard, r)
					})
					o := transport.Options{Sweep: sweep}
					if stage.dial {
						o.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
							reached <- struct{}{}
							<-ctx.Done()
							return nil, ctx.Err()
						}
					}
					tr := client(t, o)
					ctx, cancel := context.WithCancelCause(t.Context())
					want := why
					if deadline {
						var stop context.CancelFunc
						left := 500 * time.Millisecond
						if stage.read {
							left = time.Second // the header has to come, also where the machine stalls
						}
						ctx, stop = context.WithTimeout(ctx, left)
						defer stop()
						want = context.DeadlineExceeded
					}
					defer cancel(nil)
					var body io.Reader
					if stage.body != nil {
						body = stage.body()
					}
					verb := "GET"
					if body != nil {
						verb = "POST"
					}
					req, err := http.NewRequestWithContext(ctx, verb, s.url, body)
					if err != nil {
						t.Fatal(err)
					}
					if !deadline && !stage.read {
						go func() {
							<-reached
							cancel(why)
						}()
					}
					resp, err := tr.RoundTrip(req)
					if stage.read {
						if err != nil {
							t.Fatal(err)
						}
						b := make([]byte, 5)
						if _, err := io.ReadFull(resp.Body, b); string(b) != "hello" {
							t.Errorf("got %q, %v before the end", b, err)
						}
						if !deadline {
							time.AfterFunc(time.Millisecond, func() { cancel(why) })
						}
						_, err = resp.Body.Read(b)
						resp.Body.Close()
					}
					if !errors.Is(err, want) {
						t.Errorf("got error %v, want %v", err, want)
					}
					if e, ok := body.(*endless); ok {
						select {
						case <-e.done:
						case <-time.After(10 * time.Second):
							t.Error("body not closed")
						}
					}
					if !stage.dial {
						select {
						case <-closed:
						case <-time.After(10 * time.Second):
							t.Error("connection not closed")
						}
					}
					eventually(t, "connection in use", func() bool { return tr.Stats().Active == 0 })
				})
			}
		}
	}
	t.Run("before", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(why)
		b := &spyBody{Reader: strings.NewReader("x")}
		req, _ := http.NewRequestWithContext(ctx, "POST", "http://127.0.0.1:1/", b)
		if _, err := client(t, transport.Options{}).RoundTrip(req); err != why || b.closed.Load() != 1 {
			t.Errorf("got %v", err)
		}
	})
	t.Run("afterwards", func(t *testing.T) {
		s := numbered(t)
		for _, sweep := range []time.Duration{0, time.Millisecond} {
			tr := client(t, transport.Options{Sweep: sweep})
			var last context.Context
			for range 3 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second) // more than a machine stalls for
				req, _ := http.NewRequestWithContext(ctx, "GET", s.url, nil)
				mustDo(t, tr, req)
				cancel()
				last = ctx
			}
			end, _ := last.Deadline() // which the connection must not remember
			time.Sleep(time.Until(end.Add(time.Millisecond)))
			req, _ := http.NewRequest("GET", s.url, nil) // without a deadline of its own
			mustDo(t, tr, req)
			if got := tr.Stats(); got.Dials != 1 || got.Stale != 0 {
				t.Errorf("sweep %v: got %+v, want one connection throughout", sweep, got)
			}
		}
	})
}

// Many at once, canceled, broken off and served, leave nothing behind.
func TestUnderLoad(t *testing.T) {
	var n atomic.Int64
	s := serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			b, err := io.ReadAll(req.Body)
			if err != nil {
				return
			}
			answer := ok(req.Header.Get("X-Id") + string(b))
			switch n.Add(1) % 11 {
			case 0:
				return
			case 1:
				_, _ = io.WriteString(c, answer[:len(answer)-1])
				return
			case 2:
				answer += "surplus"
			case 3:
				answer = strings.Replace(answer, "OK", "OK\r\nConnection: close", 1)
			}
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
	})
	files := openFiles(t)
	for _, sweep := range []time.Duration{0, 2 * time.Millisecond} {
		tr := client(t, transport.Options{Sweep: sweep, MaxIdlePerHost: 4})
		var wg sync.WaitGroup
		var served atomic.Int64
		for g := range 8 {
			wg.Go(func() {
				for i := range 150 {
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					id := string(rune('a'+g)) + strings.Repeat("i", i%5)
					var body io.Reader
					verb, want := "GET", id
					if i%3 == 0 {
						verb, want, body = "POST", id+"body", onlyReader{strings.NewReader("body")}
					}
					req, _ := http.NewRequestWithContext(ctx, verb, s.url, body)
					req.Header.Set("X-Id", id)
					if i%7 == 0 {
						time.AfterFunc(time.Duration(i)*time.Microsecond, cancel)
					}
					if r, err := do(t, tr, req); err == nil {
						served.Add(1)
						if r.body != want {
							t.Errorf("got %q, want %q", r.body, want)
						}
					}
					cancel()
				}
			})
		}
		wg.Wait()
		eventually(t, "connections in use", func() bool { return tr.Stats().Active == 0 })
		if got := tr.Stats(); got.Idle > 4 || served.Load() < 400 {
			t.Errorf("served %d, %+v", served.Load(), got)
		}
		tr.CloseIdleConnections()
	}
	eventually(t, "descriptors left open", func() bool { return openFiles(t) <= files+1 })
}
