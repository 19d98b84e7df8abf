package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"runtime"

	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/proxy"
)

// both runs a test for both kinds of clients and instances.
func both(t *testing.T, h http.HandlerFunc, f func(t *testing.T, g *gate, c *http.Client)) {
	for _, scheme := range []string{"http", "h2c"} {
		for _, proto := range []string{"h1", "h2"} {
			t.Run(proto+" to "+scheme, func(t *testing.T) {
				g := newGate(t, gateOptions{settings: func(s *proxy.Settings) { s.Scheme = scheme }}, backend(t, h))
				c := client(t)
				if proto == "h2" {
					c = clientH2(t)
				}
				f(t, g, c)
			})
		}
	}
}

func TestServerSentEventsArriveAtOnce(t *testing.T) {
	for _, kind := range []string{"text/event-stream", "application/octet-stream"} {
		next := make(chan string)
		both(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.(http.Flusher).Flush()
			for {
				select {
				case line := <-next:
					if line == "end" {
						return
					}
					fmt.Fprintf(w, "data: %s\n\n", line)
					w.(http.Flusher).Flush()
				case <-r.Context().Done():
					return
				}
			}
		}, func(t *testing.T, g *gate, c *http.Client) {
			resp, err := c.Do(request(t, "GET", g.url("/"), nil)) // returns on the header, before any event
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			r := bufio.NewReader(resp.Body)
			for i := range 3 {
				want := fmt.Sprintf("data: %d\n", i)
				next <- fmt.Sprint(i)
				if got, err := r.ReadString('\n'); got != want {
					t.Fatalf("got %q, %v; want %q before the next event is made", got, err, want)
				}
				_, _ = r.ReadString('\n')
			}
			next <- "end"
			mustEOF(t, r)
		})
	}
}

// A declared length does not keep what there is from the client.
func TestSlowAnswerOfDeclaredLengthStreams(t *testing.T) {
	for _, size := range []int{10, 100 << 10} {
		more := make(chan struct{})
		both(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(size))
			_, _ = io.WriteString(w, "hello")
			w.(http.Flusher).Flush()
			select {
			case <-more:
			case <-r.Context().Done():
			}
			_, _ = io.WriteString(w, strings.Repeat("x", size-5))
		}, func(t *testing.T, g *gate, c *http.Client) {
			resp, err := c.Do(request(t, "GET", g.url("/"), nil))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b := make([]byte, 5)
			if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "hello" {
				t.Fatalf("got %q, %v; want what the instance has sent so far", b, err)
			}
			more <- struct{}{}
			rest, err := io.ReadAll(resp.Body)
			if err != nil || len(rest) != size-5 {
				t.Errorf("got %d more bytes, %v; want %d", len(rest), err, size-5)
			}
		})
	}
}

// Both bodies stream at the same time, as gRPC's calls do, with trailers.
func TestBothWaysAtOnce(t *testing.T) {
	both(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		w.WriteHeader(200)
		_ = rc.Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			if n > 0 {
				_, _ = w.Write(buf[:n])
				_ = rc.Flush()
			}
			if err != nil {
				break
			}
		}
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", "unannounced")
		w.Header().Set(http.TrailerPrefix+"X-Got", r.Trailer.Get("X-Sum"))
	}, func(t *testing.T, g *gate, c *http.Client) {
		pr, pw := io.Pipe()
		req := request(t, "POST", g.url("/svc/Method"), pr, "Te", "trailers")
		req.Trailer = http.Header{"X-Sum": nil}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b := make([]byte, 4)
		for i := range 5 {
			want := fmt.Sprintf("msg%d", i)
			_, _ = io.WriteString(pw, want)
			if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != want {
				t.Fatalf("got %q, %v; want the echo of %q while the request goes on", b, err, want)
			}
		}
		req.Trailer.Set("X-Sum", "5")
		pw.Close()
		mustEOF(t, resp.Body)
		if got := resp.Trailer; got.Get("Grpc-Status") != "0" || got.Get("Grpc-Message") != "unannounced" || got.Get("X-Got") != "5" {
			t.Errorf("got trailers %v, want the instance's, announced or not, and the client's seen by it", got)
		}
	})
}

func TestTrailersOnShortAnswers(t *testing.T) {
	both(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, "short")
		w.Header().Set("X-Sum", "s")
	}, func(t *testing.T, g *gate, c *http.Client) {
		resp := get(t, c, g.url("/"))
		if resp.body != "short" || resp.Trailer.Get("X-Sum") != "s" {
			t.Errorf("got %q with trailers %v", resp.body, resp.Trailer)
		}
	})
}

func TestRequestTrailers(t *testing.T) {
	addr := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		head, err := drainHead(r)
		if err != nil {
			return
		}
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			head += line
			if line == "\r\n" && strings.Contains(head, "\r\n0\r\n") {
				break
			}
		}
		_, after, _ := strings.Cut(head, "\r\n0\r\n")
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(after), after)
	})
	g := newGate(t, gateOptions{}, addr)
	_, r := raw(t, g.addr, "POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\nTrailer: X-Told\n\n3\nabc\n0\nX-Told: 1\nX-Untold: 2\nX-Forwarded-For: 6.6.6.6\nX-Request-Id: evil\n\n")
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	got := strings.Fields(strings.TrimSpace(string(b)))
	slices.Sort(got)
	if want := []string{"1", "2", "X-Told:", "X-Untold:"}; !slices.Equal(got, want) {
		t.Errorf("instance got trailers %q, want X-Told and X-Untold only", b)
	}
}

func TestInterimAnswers(t *testing.T) {
	both(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(103)
		w.Header().Set("Link", "</b.css>; rel=preload")
		w.WriteHeader(103)
		w.Header().Del("Link")
		w.Header().Set("X-Final", "1")
		_, _ = io.WriteString(w, "done")
	}, func(t *testing.T, g *gate, c *http.Client) {
		var mu sync.Mutex
		var got []string
		req := request(t, "GET", g.url("/"), nil)
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, fmt.Sprint(code, h.Get("Link"), h.Get("X-Final")))
			return nil
		}}))
		resp := do(t, c, req)
		mu.Lock()
		defer mu.Unlock()
		if want := []string{"103</a.css>; rel=preload", "103</b.css>; rel=preload"}; !slices.Equal(got, want) {
			t.Errorf("got interim answers %q, want %q", got, want)
		}
		if resp.StatusCode != 200 || resp.body != "done" || resp.Header.Get("X-Final") != "1" || resp.Header.Get("Link") != "" {
			t.Errorf("got %d %q %v", resp.StatusCode, resp.body, resp.Header)
		}
	})
}

// The server's "100 Continue" goes out when the instance wants the body, and
// not before.
func TestExpectContinue(t *testing.T) {
	want := make(chan bool)
	addr := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		head, err := drainHead(r)
		if err != nil {
			return
		}
		if !strings.Contains(head, "Expect: 100-continue") {
			_, _ = io.WriteString(c, "HTTP/1.1 500 No Expect\r\nContent-Length: 0\r\n\r\n")
			return
		}
		if !<-want {
			_, _ = io.WriteString(c, "HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno")
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		b := make([]byte, 5)
		if _, err := io.ReadFull(r, b); err != nil {
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
	})
	g := newGate(t, gateOptions{}, addr)
	send := "POST / HTTP/1.1\nHost: x\nExpect: 100-continue\nContent-Length: 5\n\n"

	t.Run("wanted", func(t *testing.T) {
		c, r := raw(t, g.addr, send)
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if b, err := r.Peek(1); err == nil {
			t.Fatalf("got %q before the instance asked for the body", b)
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		r.Reset(c)
		want <- true
		if head := readHead(t, r); head != "HTTP/1.1 100 Continue\r\n\r\n" {
			t.Fatalf("got %q, want 100 Continue", head)
		}
		_, _ = io.WriteString(c, "hello")
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != "hello" {
			t.Errorf("got %d %q", resp.StatusCode, b)
		}
	})
	t.Run("refused", func(t *testing.T) {
		_, r := raw(t, g.addr, send)
		want <- false
		head := readHead(t, r)
		if !strings.HasPrefix(head, "HTTP/1.1 401") {
			t.Errorf("got %q, want the final answer and no 100", head)
		}
	})
}

// An instance may answer before it has read the request: the client gets the
// answer while it still uploads.
func TestEarlyAnswer(t *testing.T) {
	addr := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := drainHead(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 403 No\r\nContent-Length: 4\r\nConnection: close\r\n\r\nstop")
		_, _ = io.Copy(io.Discard, r)
	})
	g := newGate(t, gateOptions{}, addr)
	c, r := raw(t, g.addr, "POST / HTTP/1.1\nHost: x\nContent-Length: 10000000\n\nbegin")
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); resp.StatusCode != 403 || string(b) != "stop" {
		t.Errorf("got %d %q %v", resp.StatusCode, b, err)
	}
	c.Close()
	if x := g.exchange(); x.Status != 403 || x.Reason != "" {
		t.Errorf("account: status %d reason %q", x.Status, x.Reason)
	}
}

// The instance learns that the client has left, also while it answers.
func TestClientLeavesMidAnswer(t *testing.T) {
	gone := make(chan struct{}, 1)
	both(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil || r.Context().Err() != nil {
				gone <- struct{}{}
				return
			}
		}
	}, func(t *testing.T, g *gate, c *http.Client) {
		ctx, cancel := context.WithCancel(context.Background())
		req := request(t, "GET", g.url("/"), nil).WithContext(ctx)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadFull(resp.Body, make([]byte, 1000))
		cancel()
		resp.Body.Close()
		select {
		case <-gone:
		case <-time.After(5 * time.Second):
			t.Fatal("the instance was left writing")
		}
		if x := g.exchange(); x.Reason != "client_canceled" || x.Status != 200 {
			t.Errorf("account: reason %q status %d, want client_canceled and the 200 that was sent", x.Reason, x.Status)
		}
	})
}

// upgradeEcho switches to a protocol and echoes; when the client has finished,
// it says so and finishes too.
func upgradeEcho(t testing.TB, protocol string) string {
	return rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		head, err := drainHead(r)
		if err != nil {
			return
		}
		if !strings.Contains(head, "Upgrade: "+protocol+"\r\n") || !strings.Contains(head, "Connection: Upgrade\r\n") {
			fmt.Fprintf(c, "HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n%s", len(head), head)
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: "+protocol+"\r\nSec-X: y\r\n\r\nhi:")
		_, _ = io.Copy(c, r)
		_, _ = io.WriteString(c, "bye")
	})
}

func TestUpgrade(t *testing.T) {
	for _, scheme := range []string{"http", "h2c"} {
		g := newGate(t, gateOptions{
			settings: func(s *proxy.Settings) { s.Scheme = scheme },
			exchange: func(x *middleware.Exchange, _ *http.Request) { x.RequestID = "id" },
		}, upgradeEcho(t, "chat/2"))
		before := runtime.NumGoroutine()
		c, r := raw(t, g.addr, "GET /x HTTP/1.1\nHost: x\nConnection: keep-alive, Upgrade\nUpgrade: chat/2\n\nearly,")
		head := readHead(t, r)
		for _, want := range []string{"HTTP/1.1 101 ", "Connection: Upgrade\r\n", "Upgrade: chat/2\r\n", "Sec-X: y\r\n", "Via: 1.1 proconsul\r\n"} {
			if !strings.Contains(head, want) {
				t.Errorf("%s: head lacks %q:\n%s", scheme, want, head)
			}
		}
		for _, no := range []string{"Content-Length", "Transfer-Encoding", "Content-Type"} {
			if strings.Contains(head, no) {
				t.Errorf("%s: head has %q:\n%s", scheme, no, head)
			}
		}
		_, _ = io.WriteString(c, "later")
		b := make([]byte, len("hi:early,later"))
		if _, err := io.ReadFull(r, b); err != nil || string(b) != "hi:early,later" {
			t.Fatalf("%s: got %q, %v", scheme, b, err)
		}
		if n := runtime.NumGoroutine() - before; n > 12 {
			t.Errorf("%s: a switched connection costs %d goroutines", scheme, n)
		}
		// The client has no more to say; the instance's last words still come.
		_ = c.(*net.TCPConn).CloseWrite()
		rest, err := io.ReadAll(r)
		if err != nil || string(rest) != "bye" {
			t.Errorf("%s: after half-close: got %q, %v; want bye", scheme, rest, err)
		}
		x := g.exchange()
		if x.Status != 101 || !x.Hijacked || x.BytesIn != 11 || x.Bytes != 17 {
			t.Errorf("%s: account: status %d hijacked %v in %d out %d, want 101, 11, 17", scheme, x.Status, x.Hijacked, x.BytesIn, x.Bytes)
		}
	}
}

func TestUpgradeRefusedIsAnOrdinaryAnswer(t *testing.T) {
	g := newGate(t, gateOptions{}, upgradeEcho(t, "chat/2"))
	_, r := raw(t, g.addr, "GET / HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: other\n\n")
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 400 || resp.Header.Get("Connection") != "" && resp.Header.Get("Connection") != "close" {
		t.Errorf("got %d, Connection %q", resp.StatusCode, resp.Header.Get("Connection"))
	}
}

// A wish for another protocol that comes with a body is not passed on, nor is
// one for HTTP/2 in the clear: the request is served without it.
func TestUpgradeIsIgnored(t *testing.T) {
	addr := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		for {
			head, err := drainHead(r)
			if err != nil {
				return
			}
			body := ""
			if strings.Contains(head, "Content-Length: 5\r\n") {
				b := make([]byte, 5)
				if _, err := io.ReadFull(r, b); err != nil {
					return
				}
				body = string(b)
			}
			if strings.Contains(head, "Upgrade:") || strings.Contains(head, "Connection:") || strings.Contains(strings.ToLower(head), "http2-settings") {
				body = head
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
	})
	g := newGate(t, gateOptions{}, addr)
	for _, tt := range []struct{ request, want string }{
		{"POST / HTTP/1.1\nHost: x\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAEAAEAAAAIAAAAB\nContent-Length: 5\n\nhello", "hello"},
		{"POST / HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: websocket\nContent-Length: 5\n\nhello", "hello"},
		{"GET / HTTP/1.1\nHost: x\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAEAAEAAAAIAAAAB\n\n", ""},
		{"GET / HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: chat/2, H2C/1\n\n", ""},
	} {
		_, r := raw(t, g.addr, tt.request)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != tt.want {
			t.Errorf("%q: got %d %q, want %q", tt.request, resp.StatusCode, b, tt.want)
		}
	}
}

// An instance that switches to what nobody asked for is not believed.
func TestWrongSwitch(t *testing.T) {
	addr := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := drainHead(r); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: evil\r\n\r\n")
		}
	})
	g := newGate(t, gateOptions{settings: func(s *proxy.Settings) { s.Retry.Attempts = 0 }}, addr)
	for _, ask := range []string{"", "Connection: Upgrade\nUpgrade: good\n"} {
		_, r := raw(t, g.addr, "GET / HTTP/1.1\nHost: x\n"+ask+"\n")
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 502 || resp.Header.Get("X-Proconsul-Reason") != "upstream_protocol" {
			t.Errorf("asked %q: got %d %q, want 502 upstream_protocol", ask, resp.StatusCode, resp.Header.Get("X-Proconsul-Reason"))
		}
	}
}

// At the end of a drain a WebSocket is told, on both sides and only between
// frames.
func TestGoAwayWebSocket(t *testing.T) {
	fromClient := make(chan []byte, 1)
	send := make(chan string)
	addr := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := drainHead(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		done := make(chan struct{})
		go func() {
			defer close(done)
			b, _ := io.ReadAll(r)
			fromClient <- b
		}()
		for s := range send {
			_, _ = io.WriteString(c, s)
		}
		<-done
	})
	defer close(send)
	g := newGate(t, gateOptions{}, addr)
	c, r := raw(t, g.addr, "GET / HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: websocket\n\n")
	readHead(t, r)
	send <- "\x82\x05he" // a frame of five bytes, of which two have come
	b := make([]byte, 4)
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	if n := g.up.GoAway("node/other"); n != 0 {
		t.Errorf("another instance's drain ended %d", n)
	}
	if n := g.up.GoAway("node/i0"); n != 1 {
		t.Fatalf("GoAway ended %d, want 1", n)
	}
	send <- "l" // still within the frame
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		t.Fatal(err)
	}
	send <- "lo\x82\x03abc"
	rest := make([]byte, 2+4)
	if _, err := io.ReadFull(r, rest); err != nil || string(rest) != "lo\x88\x02\x03\xe9" {
		t.Errorf("client got %q, %v; want the end of the frame, then close 1001", rest, err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	if got := <-fromClient; string(got) != "\x88\x82\x00\x00\x00\x00\x03\xe9" {
		t.Errorf("instance got %q, want a masked close 1001", got)
	}
	if x := g.exchange(); x.Status != 101 || x.Err != nil {
		t.Errorf("account: status %d err %v", x.Status, x.Err)
	}
}

// An event stream ends as if the instance had ended it; EventSource comes back.
func TestGoAwayEventStream(t *testing.T) {
	both(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: 1\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}, func(t *testing.T, g *gate, c *http.Client) {
		resp, err := c.Do(request(t, "GET", g.url("/"), nil))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.ReadFull(resp.Body, make([]byte, 9)); err != nil {
			t.Fatal(err)
		}
		if n := g.up.GoAway(""); n != 1 {
			t.Fatalf("GoAway ended %d, want 1", n)
		}
		mustEOF(t, resp.Body)
	})
}

// An instance that dies while the client pauses its upload must not leave the
// client waiting: it may be waiting for an answer itself.
func TestInstanceDiesWhileTheClientPauses(t *testing.T) {
	for _, scheme := range []string{"http", "h2c"} {
		for _, proto := range []string{"h1", "h2"} {
			t.Run(proto+" to "+scheme, func(t *testing.T) {
				entered := make(chan struct{}, 1)
				s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.ReadFull(r.Body, make([]byte, 5))
					entered <- struct{}{}
					_, _ = io.Copy(io.Discard, r.Body)
				}))
				var p http.Protocols
				p.SetHTTP1(true)
				p.SetUnencryptedHTTP2(true)
				s.Config.Protocols = &p
				s.Start()
				defer s.Close()
				g := newGate(t, gateOptions{settings: func(st *proxy.Settings) { st.Scheme = scheme }}, s.Listener.Addr().String())
				c := client(t)
				if proto == "h2" {
					c = clientH2(t)
				}
				pr, pw := io.Pipe()
				defer pw.Close()
				go func() {
					_, _ = io.WriteString(pw, "hello")
					<-entered
					s.CloseClientConnections()
				}()
				resp, err := c.Do(request(t, "POST", g.url("/"), pr))
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if resp.StatusCode != 502 || resp.Header.Get("X-Proconsul-Reason") != "upstream_reset" {
					t.Errorf("got %d %q, want 502 upstream_reset", resp.StatusCode, resp.Header.Get("X-Proconsul-Reason"))
				}
			})
		}
	}
}

// A part of the body that is still on its way when the instance dies is waited
// for, so that the request can go to another. (A small body is taken in before
// any instance is asked.)
func TestInstanceDiesMidUploadAndTheRestComes(t *testing.T) {
	half := make(chan struct{}, 1)
	first := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := drainHead(r); err != nil {
			return
		}
		if _, err := io.ReadFull(r, make([]byte, 5)); err != nil {
			return
		}
		half <- struct{}{}
		_ = c.(*net.TCPConn).SetLinger(0)
	})
	second := backend(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
	})
	g := newGate(t, gateOptions{}, first)
	c, r := raw(t, g.addr, "PUT / HTTP/1.1\nHost: x\nContent-Length: 20000\n\nhello")
	<-half
	g.set(first, second)
	time.Sleep(50 * time.Millisecond) // the instance's reset gets through first; the test holds either way
	rest := strings.Repeat("world", 3999)
	_, _ = io.WriteString(c, rest)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != "hello"+rest {
		t.Errorf("got %d and %d bytes, want both parts from the second instance", resp.StatusCode, len(b))
	}
}

// Streams of an instance that is deregistered end at the drain deadline.
func TestStreamsEndWhenTheirInstanceLeaves(t *testing.T) {
	addr := upgradeEcho(t, "chat/2")
	g := newGate(t, gateOptions{settings: func(s *proxy.Settings) { s.Drain = 50 * time.Millisecond }}, addr)
	_, r := raw(t, g.addr, "GET / HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: chat/2\n\n")
	readHead(t, r)
	_, _ = io.ReadFull(r, make([]byte, 3))
	g.set() // an answer from Consul with nobody in it
	if b, err := io.ReadAll(r); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("got %q, %v; want the end", b, err)
	}
	if x := g.exchange(); x.Status != 101 {
		t.Errorf("account has status %d", x.Status)
	}
}

// What an answer's header holds is the request's until everything around the
// proxy has returned, although the memory serves other requests after that.
func TestAnswersDoNotMix(t *testing.T) {
	addr := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		for {
			head, err := drainHead(r)
			if err != nil {
				return
			}
			target := strings.Fields(head)[1]
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Target: %s\r\nContent-Length: %d\r\n\r\n%s", target, len(target), target)
		}
	})
	wrong := make(chan string, 1000)
	g := newGate(t, gateOptions{wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			target := r.URL.Path
			if strings.HasPrefix(target, "/1") {
				next.ServeHTTP(w, r) // by the list, of which the client tells
				return
			}
			w = middleware.ByHeader(w)
			next.ServeHTTP(w, r)
			for range 20 { // others get their turn
				runtime.Gosched()
			}
			if got := w.Header().Get("X-Target"); got != target {
				wrong <- fmt.Sprintf("%s has the header of %q", target, got)
			}
		})
	}}, addr)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			c := client(t)
			for j := range 50 {
				target := fmt.Sprintf("/%d/%d", i, j)
				resp, err := c.Get(g.url(target))
				if err != nil {
					t.Error(err)
					return
				}
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if got := resp.Header.Get("X-Target"); got != target || string(body) != target {
					t.Errorf("%s was answered with %q and %q", target, got, body)
				}
			}
		})
	}
	wg.Wait()
	close(wrong)
	for w := range wrong {
		t.Error(w)
	}
}

// A small body is taken in before an instance is asked, by whatever pieces it
// comes: the instance gets it in one go, every try gets all of it, and a client
// that leaves before its end has bothered nobody.
func TestSmallBodyIsTakenInFirst(t *testing.T) {
	var asked atomic.Int32
	first := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		asked.Add(1)
		_, _ = drainHead(r)
		_ = c.(*net.TCPConn).SetLinger(0)
	})
	second := backend(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %d %s %v", r.Method, r.ContentLength, b, err)
	})
	g := newGate(t, gateOptions{}, first)
	if g.settings.Engine != proxy.EngineFast {
		return // net/http's transport streams all bodies
	}
	c, _ := raw(t, g.addr, "PUT / HTTP/1.1\nHost: x\nContent-Length: 10\n\nhello")
	c.Close()
	if x := g.exchange(); x.Reason != "client_canceled" || x.BytesIn != 5 || len(x.Attempts) != 0 || asked.Load() != 0 {
		t.Errorf("a client that left: reason %q, %d bytes in, attempts %v, %d connections", x.Reason, x.BytesIn, x.Attempts, asked.Load())
	}
	g.set(first, second)
	for range 4 { // round robin: some begin with the one that fails
		c, r := raw(t, g.addr, "PUT / HTTP/1.1\nHost: x\nContent-Length: 10\n\nhello")
		_, _ = io.WriteString(c, "world")
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(resp.Body); string(b) != "PUT 10 helloworld <nil>" {
			t.Errorf("got %d %q", resp.StatusCode, b)
		}
		if x := g.exchange(); x.BytesIn != 10 {
			t.Errorf("%d bytes in", x.BytesIn)
		}
	}
}
