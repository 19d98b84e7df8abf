package front_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/front"
)

// Clients that are too slow are cut off, those that are not are left alone.
func TestSlowClients(t *testing.T) {
	var refused atomic.Int32
	// Longer than a machine stalls between two lines of this test.
	const readHeader, idle = 500 * time.Millisecond, 700 * time.Millisecond
	s := serve(t, front.Options{ReadHeader: readHeader, Idle: idle, Refuse: func(w http.ResponseWriter, _ *http.Request, why *front.Refusal) {
		refused.Add(1)
		w.WriteHeader(why.Status)
	}}, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })

	start := time.Now()
	c := dial(t, s.addr) // says nothing
	c.ends()
	if d := time.Since(start); d < readHeader {
		t.Errorf("a new connection was closed after %v", d)
	}

	c = dial(t, s.addr) // a byte now and then
	go func(c net.Conn) {
		for _, b := range []byte(crlf("GET / HTTP/1.1\nHost: x\nX-Slow: " + strings.Repeat("a", 1000))) {
			if _, err := c.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}(c.Conn)
	if got := c.hear("GET"); got.StatusCode != 408 || refused.Load() != 1 {
		t.Errorf("a client that takes its time for the header got %d; refused %d", got.StatusCode, refused.Load())
	}
	c.ends()

	c = dial(t, s.addr) // between two requests
	start = time.Now()  // it is idle since the answer, of which we hear later
	c.say(get)
	c.hear("GET")
	c.ends()
	if d := time.Since(start); d < idle {
		t.Errorf("an idle connection was closed after %v", d)
	}

	c = dial(t, s.addr) // a second request, slowly
	c.say(get)
	c.hear("GET")
	c.say("GET / HT")
	if got := c.hear("GET"); got.StatusCode != 408 {
		t.Errorf("got %d", got.StatusCode)
	}

	c = dial(t, s.addr) // a body may take longer
	c.say("POST / HTTP/1.1\nHost: x\nContent-Length: 6\n\n")
	for i := range 6 {
		time.Sleep(100 * time.Millisecond)
		c.say(fmt.Sprint(i))
	}
	if got := c.hear("POST"); got.body != "012345" {
		t.Errorf("got %q, %v", got.body, got.err)
	}
}

// A server that shuts down answers what it was asked, in whatever state the
// asking is.
func TestShutdown(t *testing.T) {
	release, entered := make(chan bool), make(chan bool, 10)
	s := serve(t, front.Options{ReadHeader: 2 * time.Second}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/held" {
			entered <- true
			<-release
		}
		_, _ = io.WriteString(w, "ok")
	})
	held, idle, partial := dial(t, s.addr), dial(t, s.addr), dial(t, s.addr)
	held.say("GET /held HTTP/1.1\nHost: x\n\n")
	<-entered
	idle.say(get)
	idle.hear("GET")
	partial.say(get)
	partial.hear("GET")
	partial.say("GET / HTTP/1.1\nHos")
	fresh := dial(t, s.addr)
	eventually(t, "connections are missing", func() bool { return s.Stats().Open == 4 })

	ended := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(background(), patience)
		defer cancel()
		ended <- s.Shutdown(ctx)
	}()
	eventually(t, "it still listens", func() bool {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	// A new connection is waited for no longer than an idle one.
	fresh.say(get)
	partial.say("t: x\n\n")
	for name, c := range map[string]*wire{"in the middle of a header": partial, "before its first request": fresh} {
		if got := c.hear("GET"); got.body != "ok" || !got.Close {
			t.Errorf("a client %s got %q, close %v", name, got.body, got.Close)
		}
		c.ends()
	}
	idle.ends()
	select {
	case err := <-ended:
		t.Fatalf("it has not waited for the request under way: %v", err)
	default:
	}
	close(release)
	if got := held.hear("GET"); got.body != "ok" || !got.Close {
		t.Errorf("got %q, close %v", got.body, got.Close)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestShutdownThatDoesNotEnd(t *testing.T) {
	entered := make(chan bool)
	s := serve(t, front.Options{}, func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	})
	c := dial(t, s.addr)
	c.say(get)
	<-entered
	ctx, cancel := context.WithTimeout(background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	_ = s.Close() // ends the request's context
	c.ends()
}

// Under load no request is lost: every one that was sent on a connection which
// had not been said to end is answered.
func TestShutdownUnderLoad(t *testing.T) {
	for range 5 {
		s := serve(t, front.Options{}, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ok") })
		var lost, answered atomic.Int32
		var down atomic.Bool
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for !down.Load() {
					c, err := net.Dial("tcp", s.addr)
					if err != nil {
						return
					}
					_ = c.SetDeadline(time.Now().Add(patience))
					r := bufio.NewReader(c)
					for kept := false; ; kept = true {
						_, err := io.WriteString(c, crlf(get))
						var resp *http.Response
						if err == nil {
							resp, err = http.ReadResponse(r, nil)
						}
						if err != nil {
							// A connection that was not accepted any more is as
							// one that was refused.
							if kept {
								lost.Add(1)
							}
							break
						}
						_, _ = io.Copy(io.Discard, resp.Body)
						answered.Add(1)
						if resp.Close {
							break
						}
					}
					c.Close()
				}
			})
		}
		eventually(t, "no load", func() bool { return answered.Load() > 200 })
		ctx, cancel := context.WithTimeout(background(), patience)
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		down.Store(true)
		wg.Wait()
		if n := lost.Load(); n > 0 {
			t.Errorf("%d requests lost of %d", n, answered.Load())
		}
	}
}

// certificate is one for 127.0.0.1, and who trusts it.
func certificate(t testing.TB) (server, client *tls.Config) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	c := s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	c.NextProtos = nil
	return &tls.Config{Certificates: s.TLS.Certificates}, c
}

func TestTLS(t *testing.T) {
	conf, trust := certificate(t)
	std := &http.Server{Protocols: new(http.Protocols), TLSConfig: conf}
	std.Protocols.SetHTTP2(true)
	std.Protocols.SetHTTP1(true)
	left := make(chan bool, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			<-r.Context().Done()
			left <- true
			return
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprint(w, r.Proto, r.TLS != nil, len(body), r.Context().Value(http.LocalAddrContextKey) != nil)
	})
	std.Handler = h
	for name, listener := range map[string]func(net.Listener) (net.Listener, front.Options){
		"by option":   func(l net.Listener) (net.Listener, front.Options) { return l, front.Options{TLS: conf, HTTP2: std} },
		"by listener": func(l net.Listener) (net.Listener, front.Options) { return tls.NewListener(l, conf), front.Options{} },
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			l, o := listener(l)
			o.ReadHeader, o.Sweep = time.Second, 10*time.Millisecond
			s := serveOn(t, l, o, h)
			tr := &http.Transport{TLSClientConfig: trust.Clone()}
			defer tr.CloseIdleConnections()
			for i := range 10 {
				resp, err := (&http.Client{Transport: tr}).Post("https://"+s.addr+"/", "", strings.NewReader(strings.Repeat("x", i*5000)))
				if err != nil {
					t.Fatal(err)
				}
				b, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if want := fmt.Sprintf("HTTP/1.1 true %d true", i*5000); strings.ReplaceAll(string(b), " ", "") != strings.ReplaceAll(want, " ", "") {
					t.Errorf("got %q, want %q", b, want)
				}
			}
			if o.HTTP2 != nil {
				tr2 := &http.Transport{TLSClientConfig: trust.Clone(), ForceAttemptHTTP2: true}
				defer tr2.CloseIdleConnections()
				resp, err := (&http.Client{Transport: tr2}).Get("https://" + s.addr + "/")
				if err != nil {
					t.Fatal(err)
				}
				b, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if !strings.HasPrefix(string(b), "HTTP/2.0") {
					t.Errorf("got %q", b)
				}
				// It is counted once it is another's, who may have answered by then.
				eventually(t, "a connection is not counted", func() bool { return s.Stats().HTTP2 == 1 })
			}
			// Two requests in one record, one in two.
			c, err := tls.Dial("tcp", s.addr, trust)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			w := &wire{t, c, bufio.NewReader(c)}
			w.say(get + get)
			w.hear("GET")
			w.hear("GET")
			w.say("GET / HT")
			w.say("TP/1.1\nHost: x\n\n")
			w.hear("GET")
			// A client that leaves is noticed.
			w.say("GET /wait HTTP/1.1\nHost: x\n\n")
			_ = c.Close()
			select {
			case <-left:
			case <-time.After(patience):
				t.Error("a client has left unnoticed")
			}
			// One that speaks plainly is told so, one that says nothing is let go.
			p := dial(t, s.addr)
			p.say(get)
			if got := p.hear("GET"); got.StatusCode != 400 {
				t.Errorf("got %d", got.StatusCode)
			}
			p = dial(t, s.addr)
			p.ends()
		})
	}
}

// HTTP/2 by its preface reaches net/http's server, whatever the pieces.
// A client that has negotiated another protocol is not served HTTP: behind an
// issuer's challenge nobody was asked for a certificate.
func TestOtherProtocolsAreNotServed(t *testing.T) {
	conf, trust := certificate(t)
	more := &tls.Config{Certificates: conf.Certificates, NextProtos: []string{"http/1.1", "acme-tls/1", "http/1.0"}}
	conf.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return more, nil }
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "served") })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := serveOn(t, l, front.Options{TLS: conf}, h)
	for protocol, want := range map[string]bool{"": true, "http/1.1": true, "acme-tls/1": false, "http/1.0": false} {
		own := trust.Clone()
		if protocol != "" {
			own.NextProtos = []string{protocol}
		}
		c, err := tls.Dial("tcp", s.addr, own)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") // it may be closed already
		answer, _ := io.ReadAll(c)
		if c.ConnectionState().NegotiatedProtocol != protocol || strings.Contains(string(answer), "served") != want {
			t.Errorf("%q: got %q", protocol, answer)
		}
		_ = c.Close()
	}
}

func TestHTTP2InTheClear(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) })
	std := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	std.Protocols.SetHTTP1(true)
	std.Protocols.SetUnencryptedHTTP2(true)
	s := serve(t, front.Options{HTTP2: std}, h)
	for _, step := range []int{1, 5, 1 << 20} {
		var p http.Protocols
		p.SetUnencryptedHTTP2(true)
		tr := &http.Transport{Protocols: &p, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, addr)
			return &stepped{Conn: c, step: step}, err
		}}
		resp, err := (&http.Client{Transport: tr}).Get("http://" + s.addr + "/")
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != "HTTP/2.0" {
			t.Errorf("got %q", b)
		}
		tr.CloseIdleConnections()
	}
	eventually(t, "connections are not counted", func() bool { return s.Stats().HTTP2 >= 3 }) // as above
	if got := s.Stats(); got.HTTP2 != 3 || got.Requests != 0 {
		t.Errorf("counted %+v", got)
	}
	// What only begins like it is refused here, and net/http hears nothing.
	for _, text := range []string{"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "PRI /x HTTP/1.1\r\n\r\n"} {
		c := dial(t, s.addr)
		_, _ = io.WriteString(c, text)
		if got := c.hear("GET"); got.StatusCode < 400 {
			t.Errorf("%q got %d", text, got.StatusCode)
		}
	}
	ctx, cancel := context.WithTimeout(background(), patience)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

// stepped writes its first bytes in pieces.
type stepped struct {
	net.Conn
	step, written int
}

func (c *stepped) Write(p []byte) (n int, err error) {
	for n < len(p) {
		end := len(p)
		if c.written < 40 {
			end = min(len(p), n+c.step)
		}
		m, err := c.Conn.Write(p[n:end])
		n += m
		c.written += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// counting is a connection that wraps another without need to read through it.
type counting struct {
	net.Conn
	closed *atomic.Int32
}

func (c *counting) Close() error        { c.closed.Add(1); return c.Conn.Close() }
func (c *counting) Unwrapped() net.Conn { return c.Conn }

type countingListener struct {
	net.Listener
	accepted, closed atomic.Int32
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.accepted.Add(1)
	return &counting{c, &l.closed}, nil
}

// Connections that come and go, in every way, leave nothing behind.
func TestChurn(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &countingListener{Listener: inner}
	s := serveOn(t, l, front.Options{Sweep: 5 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hijack":
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				c.Close()
			}
		case "/panic":
			panic(http.ErrAbortHandler)
		case "/wait":
			<-r.Context().Done()
		default:
			_, _ = io.Copy(w, r.Body)
		}
	})
	wave := func() {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for i := range 60 {
					c, err := net.Dial("tcp", s.addr)
					if err != nil {
						t.Error(err)
						return
					}
					text := []string{get, "GET /hijack HTTP/1.1\nHost: x\n\n", "GET /panic HTTP/1.1\nHost: x\n\n", "GET /wait HTTP/1.1\nHost: x\n\n", "GET / HT", "", "nonsense\n\n",
						"POST / HTTP/1.1\nHost: x\nContent-Length: 10\n\nhalf", "GET /hijack HTTP/1.1\nHost: x\nConnection: Upgrade\n\n"}[i%9]
					_, _ = io.WriteString(c, crlf(text))
					if i%2 == 0 {
						_ = c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
						_, _ = c.Read(make([]byte, 100))
					}
					if i%3 == 0 {
						_ = c.(*net.TCPConn).SetLinger(0)
					}
					c.Close()
				}
			})
		}
		wg.Wait()
		eventually(t, "connections are left", func() bool { return s.Stats().Open == 0 && l.closed.Load() >= l.accepted.Load() })
	}
	held := func() (goroutines int, heap uint64) {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), m.HeapAlloc
	}
	wave()
	goroutines, heap := held()
	for range 3 {
		wave()
	}
	eventually(t, "goroutines are left", func() bool { return runtime.NumGoroutine() <= goroutines+1 })
	if _, now := held(); now > heap+1<<20 {
		t.Errorf("the heap has grown from %d to %d bytes", heap, now)
	}
}

// An idle connection holds no buffer.
func TestIdleConnectionsAreSmall(t *testing.T) {
	if raceEnabled() {
		t.Log("the race detector has memory of its own")
		return
	}
	s := serve(t, front.Options{Idle: time.Minute}, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(kilobyte) })
	const n = 500
	var m runtime.MemStats
	measured := func() uint64 {
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	conns := make([]*wire, n)
	for i := range conns {
		conns[i] = dial(t, s.addr)
	}
	eventually(t, "connections are missing", func() bool { return s.Stats().Open == n })
	before := measured()
	for _, c := range conns {
		c.say(get)
		c.hear("GET")
	}
	// What a connection costs beyond having been accepted: the reader's side
	// of this test keeps nothing either.
	after := measured()
	if grown := (int64(after) - int64(before)) / n; grown > 4<<10 {
		t.Errorf("a connection that has served costs %d bytes more than one that has not", grown)
	} else {
		t.Log(grown, "bytes more than one that has not served")
	}
}

func TestPanicsAreLogged(t *testing.T) {
	var mu sync.Mutex
	var text strings.Builder
	log := slog.New(slog.NewTextHandler(writer(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return text.Write(p)
	}), nil))
	s := serve(t, front.Options{Log: log}, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/abort" {
			panic(http.ErrAbortHandler)
		}
		panic("nobody has thought of this")
	})
	for _, path := range []string{"/abort", "/"} {
		c := dial(t, s.addr)
		c.say("GET " + path + " HTTP/1.1\nHost: x\n\n")
		c.ends()
	}
	mu.Lock()
	defer mu.Unlock()
	if got := text.String(); strings.Count(got, "panic in a handler") != 1 || !strings.Contains(got, "nobody has thought of this") {
		t.Errorf("the log has %q", got)
	}
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// What a request costs in allocations, on average: the exchange, its header in
// one string, and little beside.
func TestAllocations(t *testing.T) {
	if raceEnabled() {
		t.Log("the race detector makes its own")
		return
	}
	for name, most := range map[string]float64{"get": 3, "post": 3} {
		if _, got := measure(t, "front", name, 20_000); got > most {
			t.Errorf("%s: %.2f allocations, want at most %v", name, got, most)
		} else {
			t.Logf("%s: %.2f allocations", name, got)
		}
	}
}

// crampedListener accepts connections whose buffers take little.
type crampedListener struct{ net.Listener }

func (l crampedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		err = c.(*net.TCPConn).SetWriteBuffer(16 << 10)
	}
	return c, err
}

// A client that does not read gets every answer whole and in order once it does,
// whether its requests came one by one or all at once.
func TestAnswersThatDoNotFit(t *testing.T) {
	for name, atOnce := range map[string]bool{"one by one": false, "all at once": true} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var served atomic.Int32
			s := serveOn(t, crampedListener{l}, front.Options{Idle: patience}, func(w http.ResponseWriter, _ *http.Request) {
				body := strings.Repeat(strconv.Itoa(int(served.Load())%10), 3000)
				w.Header().Set("Content-Length", "3000")
				_, _ = io.WriteString(w, body)
				served.Add(1)
			})
			c := dial(t, s.addr)
			const most = 5000 // 15 MB, which no buffers hold
			sent := most
			if atOnce {
				go func() { _, _ = io.WriteString(c, strings.Repeat(crlf(get), most)) }() // until the server reads no more
			} else {
				for n := range most {
					c.say(get)
					// One that stays unserved waits for the answer before it.
					for end := time.Now().Add(time.Second); int(served.Load()) <= n && time.Now().Before(end); {
						runtime.Gosched()
					}
					if int(served.Load()) <= n {
						sent = n + 1
						break
					}
				}
				if sent == most {
					t.Fatal("all answers fit")
				}
			}
			for n := range sent {
				if r := c.hear("GET"); r.err != nil || r.body != strings.Repeat(strconv.Itoa(n%10), 3000) {
					t.Fatalf("answer %d of %d: %.20q, %v", n, sent, r.body, r.err)
				}
			}
			c.say(get)
			if r := c.hear("GET"); r.err != nil || r.StatusCode != 200 {
				t.Errorf("after that: %v, %v", r.Status, r.err)
			}
		})
	}
}

// An answer that waits for others is out when its server goes down, and when
// its connection ends.
func TestLastAnswersAreWritten(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // so that many answers are due at once
	s := serve(t, front.Options{}, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	clients := make([]*wire, 64)
	for i := range clients {
		clients[i] = dial(t, s.addr)
	}
	for range 20 {
		for _, c := range clients {
			c.say(get)
		}
		for _, c := range clients {
			if r := c.hear("GET"); r.body != "ok" || r.err != nil {
				t.Fatalf("got %q, %v", r.body, r.err)
			}
		}
	}
	for _, c := range clients {
		c.say(get)
		_ = c.Conn.(*net.TCPConn).CloseWrite() // no more requests: the answer all the same
	}
	ctx, cancel := context.WithTimeout(background(), patience)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	for _, c := range clients {
		if r := c.hear("GET"); r.body != "ok" || r.err != nil {
			t.Errorf("got %q, %v", r.body, r.err)
		}
		c.ends()
	}
}

// A client that sends all of a long upload before it reads gets the answer that
// came early, whole: a connection that is closed while something of the upload
// is unread takes back what was written last.
func TestEarlyAnswerToALongUpload(t *testing.T) {
	answer := strings.Repeat("no", 256<<10)
	s := serve(t, front.Options{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, answer)
	})
	for range 5 {
		c := dial(t, s.addr)
		const length = 6 << 20
		c.say("POST / HTTP/1.1\nHost: x\nContent-Length: " + strconv.Itoa(length) + "\n\n")
		body := make([]byte, 64<<10)
		for n := 0; n < length; n += len(body) {
			if _, err := c.Write(body); err != nil {
				t.Fatalf("after %d bytes: %v", n, err)
			}
		}
		if r := c.hear("POST"); r.StatusCode != http.StatusForbidden || r.body != answer || r.err != nil || !r.Close {
			t.Errorf("%d, %d bytes, %v, close %v", r.StatusCode, len(r.body), r.err, r.Close)
		}
		c.Close()
	}
}
