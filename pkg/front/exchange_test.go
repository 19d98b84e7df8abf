package front_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/front"
)

const get = "GET / HTTP/1.1\nHost: x\n\n"

func TestAnswers(t *testing.T) {
	big := strings.Repeat("0123456789", 2000)
	type want struct {
		code    int
		header  map[string]string // "-": not there
		body    string
		close   bool
		trailer http.Header
	}
	for _, tt := range []struct {
		name, request string
		handler       http.HandlerFunc
		want          want
	}{
		{"silence", get, func(http.ResponseWriter, *http.Request) {}, want{200, map[string]string{"Content-Length": "0", "Content-Type": "-"}, "", false, nil}},
		{"a short body", get, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") },
			want{200, map[string]string{"Content-Length": "5", "Content-Type": "text/plain; charset=utf-8"}, "hello", false, nil}},
		{"in parts", get, func(w http.ResponseWriter, _ *http.Request) {
			for range 10 {
				_, _ = io.WriteString(w, "<b>hello")
			}
		}, want{200, map[string]string{"Content-Length": "80", "Content-Type": "text/html; charset=utf-8"}, strings.Repeat("<b>hello", 10), false, nil}},
		{"a long body", get, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, big) },
			want{200, map[string]string{"Content-Length": "-", "Transfer-Encoding": "-"}, big, false, nil}},
		{"a long body in parts", get, func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(big); i += 100 {
				_, _ = io.WriteString(w, big[i:i+100])
			}
		}, want{200, map[string]string{"Content-Length": "-"}, big, false, nil}},
		{"a declared length", get, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			for i := 0; i < len(big); i += 1000 {
				_, _ = io.WriteString(w, big[i:i+1000])
			}
		}, want{200, map[string]string{"Content-Length": fmt.Sprint(len(big))}, big, false, nil}},
		{"flushed", get, func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, "hello")
			w.(http.Flusher).Flush()
		}, want{200, map[string]string{"Content-Length": "-"}, "hello", false, nil}},
		{"no type wanted", get, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil
			_, _ = io.WriteString(w, "hello")
		}, want{200, map[string]string{"Content-Type": "-"}, "hello", false, nil}},
		{"no date wanted", get, func(w http.ResponseWriter, _ *http.Request) { w.Header()["Date"] = nil }, want{200, map[string]string{"Date": "-"}, "", false, nil}},
		{"a line end in a value", get, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-A", "1\r\nX-B: 2\n\x00")
			w.Header()["X Y"] = []string{"not a name"}
			w.Header()["X-C:\r\nX-D"] = []string{"not a name"}
		}, want{200, map[string]string{"X-A": "1  X-B: 2", "X-B": "-", "X-D": "-"}, "", false, nil}},
		{"changed after the header", get, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-A", "1")
			w.WriteHeader(201)
			w.Header().Set("X-A", "2")
			w.WriteHeader(500)
			_, _ = io.WriteString(w, "hello")
		}, want{201, map[string]string{"X-A": "1"}, "hello", false, nil}},
		{"close", get, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") }, want{200, nil, "", true, nil}},
		{"the client wants close", "GET / HTTP/1.1\nHost: x\nConnection: close\n\n", func(http.ResponseWriter, *http.Request) {}, want{200, map[string]string{"Content-Length": "0"}, "", true, nil}},
		{"HEAD", "HEAD / HTTP/1.1\nHost: x\n\n", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") },
			want{200, map[string]string{"Content-Length": "5"}, "", false, nil}},
		{"HEAD with a length", "HEAD / HTTP/1.1\nHost: x\n\n", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "77") },
			want{200, map[string]string{"Content-Length": "77"}, "", false, nil}},
		{"HEAD of much", "HEAD / HTTP/1.1\nHost: x\n\n", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, big) }, want{200, nil, "", false, nil}},
		{"204", get, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			w.WriteHeader(204)
			if _, err := io.WriteString(w, "hello"); !errors.Is(err, http.ErrBodyNotAllowed) {
				panic(err)
			}
		}, want{204, map[string]string{"Content-Length": "-"}, "", false, nil}},
		{"304", get, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			w.Header().Set("Etag", `"1"`)
			w.WriteHeader(304)
		}, want{304, map[string]string{"Etag": `"1"`, "Content-Type": "-", "Content-Length": "-"}, "", false, nil}},
		{"announced trailers", get, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-Sum, X-None")
			_, _ = io.WriteString(w, "hello")
			w.Header().Set("X-Sum", "1")
		}, want{200, map[string]string{"Content-Length": "-"}, "hello", false, http.Header{"X-Sum": {"1"}}}},
		{"trailers by prefix", get, func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, "hello")
			w.Header().Set(http.TrailerPrefix+"X-Sum", "1")
		}, want{200, nil, "hello", false, http.Header{"X-Sum": {"1"}}}},
		{"two framings", get, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Transfer-Encoding", "chunked")
			w.Header().Set("Content-Length", "3")
			_, _ = io.WriteString(w, "hello")
		}, want{200, map[string]string{"Content-Length": "-"}, "hello", false, nil}},
		{"no framing at all", get, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Transfer-Encoding", "identity")
			_, _ = io.WriteString(w, "hello")
		}, want{200, map[string]string{"Content-Length": "-"}, "hello", true, nil}},
		{"a length that is none", get, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "many")
			_, _ = io.WriteString(w, "hello")
		}, want{200, map[string]string{"Content-Length": "5"}, "hello", false, nil}},
		{"HTTP/1.0", "GET / HTTP/1.0\n\n", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, big) }, want{200, map[string]string{"Content-Length": "-"}, big, true, nil}},
		{"HTTP/1.0 kept alive", "GET / HTTP/1.0\nConnection: keep-alive\n\n", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") },
			want{200, map[string]string{"Connection": "keep-alive"}, "hello", false, nil}},
		{"HTTP/1.0 cannot be kept alive", "GET / HTTP/1.0\nConnection: keep-alive\n\n", func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, "hello")
		}, want{200, nil, "hello", true, nil}},
		{"OPTIONS of the server", "OPTIONS * HTTP/1.1\nHost: x\n\n", func(http.ResponseWriter, *http.Request) { panic("asked") }, want{200, map[string]string{"Content-Length": "0"}, "", false, nil}},
		{"an odd status", get, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(599) }, want{599, nil, "", false, nil}},
		{"a large header", get, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-A", big)
			_, _ = io.WriteString(w, "hello")
		}, want{200, map[string]string{"X-A": big}, "hello", false, nil}},
		{"read from a file", get, func(w http.ResponseWriter, _ *http.Request) {
			f, err := os.CreateTemp(t.TempDir(), "")
			if err != nil {
				panic(err)
			}
			defer f.Close()
			_, _ = io.WriteString(f, big)
			_, _ = f.Seek(0, io.SeekStart)
			w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			if n, err := io.Copy(w, f); n != int64(len(big)) || err != nil {
				panic(fmt.Sprint(n, err))
			}
		}, want{200, nil, big, false, nil}},
		{"read from a reader", get, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.(io.ReaderFrom).ReadFrom(io.LimitReader(strings.NewReader(big), 10000))
		}, want{200, nil, big[:10000], false, nil}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, front.Options{}, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/second" {
					_, _ = io.WriteString(w, "second")
					return
				}
				tt.handler(w, r)
			})
			method, _, _ := strings.Cut(tt.request, " ")
			c := dial(t, s.addr)
			c.say(tt.request)
			got := c.hear(method)
			if got.err != nil || got.StatusCode != tt.want.code || got.body != tt.want.body {
				t.Errorf("got %d %.100q (%d), %v", got.StatusCode, got.body, len(got.body), got.err)
			}
			for name, v := range tt.want.header {
				if _, there := got.Header[name]; v == "-" && there || v != "-" && got.Header.Get(name) != v {
					t.Errorf("%s: got %.100q, want %.100q", name, got.Header[name], v)
				}
			}
			if _, dated := tt.want.header["Date"]; !dated {
				if d, err := http.ParseTime(got.Header.Get("Date")); err != nil || time.Since(d).Abs() > time.Minute {
					t.Errorf("Date %q", got.Header.Get("Date"))
				}
			}
			for name, v := range tt.want.trailer {
				if got.Trailer.Get(name) != v[0] {
					t.Errorf("trailers %v, want %v", got.Trailer, tt.want.trailer)
				}
			}
			if tt.want.close {
				c.ends()
				return
			}
			c.say("GET /second HTTP/1.1\nHost: x\n\n")
			if got := c.hear("GET"); got.body != "second" {
				t.Errorf("the connection is not good for a second request: %q", got.body)
			}
		})
	}
}

// A body that is not what its header says is never taken for what it is not.
func TestBodiesOfTheWrongLength(t *testing.T) {
	s := serve(t, front.Options{}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "5")
		switch r.URL.Path {
		case "/short":
			_, _ = io.WriteString(w, "hi")
		case "/long":
			_, _ = io.WriteString(w, "hello")
			if _, err := io.WriteString(w, "!"); !errors.Is(err, http.ErrContentLength) {
				t.Errorf("too much was taken: %v", err)
			}
		case "/panic":
			_, _ = io.WriteString(w, "hel")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "/chunks":
			w.Header().Del("Content-Length")
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, "hello")
			_ = http.NewResponseController(w).Flush()
			panic("a fault of the handler")
		}
	})
	for path, body := range map[string]string{"/short": "hi", "/long": "hello", "/panic": "hel", "/chunks": "hello"} {
		c := dial(t, s.addr)
		c.say("GET " + path + " HTTP/1.1\nHost: x\n\n" + get)
		got := c.hear("GET")
		if got.body != body || (got.err == nil) != (path == "/long") {
			t.Errorf("%s: got %q, %v", path, got.body, got.err)
		}
		c.ends()
	}
	// Where nothing but the connection's end says where the body ends, a part
	// must not look like the whole.
	s = serve(t, front.Options{}, func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, "hello")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	c := dial(t, s.addr)
	c.say("GET / HTTP/1.0\n\n")
	if b, err := io.ReadAll(c); err == nil {
		t.Errorf("a part passes for the whole: %q", b)
	}
}

func TestPipelining(t *testing.T) {
	s := serve(t, front.Options{}, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, describe(r)) })
	c := dial(t, s.addr)
	var text strings.Builder
	const n = 200
	for i := range n {
		switch i % 3 {
		case 0:
			fmt.Fprintf(&text, "GET /%d HTTP/1.1\nHost: x\n\n", i)
		case 1:
			fmt.Fprintf(&text, "POST /%d HTTP/1.1\nHost: x\nContent-Length: 5\n\nhello\n", i)
		default:
			fmt.Fprintf(&text, "PUT /%d HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n5\nhello\n0\n\n", i)
		}
	}
	// A POST may be followed by an empty line, and by one only.
	go c.say(text.String())
	for i := range n {
		got := c.hear("GET")
		if !strings.Contains(got.body, fmt.Sprintf("path=/%d ", i)) || i%3 > 0 && !strings.HasSuffix(got.body, "body=hello") {
			t.Fatalf("answer %d: %s", i, got.body)
		}
	}
	if got := s.Stats(); got.Accepted != 1 || got.Requests != n {
		t.Errorf("counted %+v", got)
	}
}

func TestExpectContinue(t *testing.T) {
	const post = "POST %s HTTP/1.1\nHost: x\nContent-Length: 5\nExpect: 100-continue\n\n"
	s := serve(t, front.Options{}, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/read":
			_, _ = io.WriteString(w, describe(r))
		case "/said":
			w.WriteHeader(100)
			_, _ = io.WriteString(w, describe(r))
		default:
			w.WriteHeader(403)
		}
	})
	for _, path := range []string{"/read", "/said"} {
		c := dial(t, s.addr)
		for range 3 {
			c.say(fmt.Sprintf(post, path))
			if resp, err := http.ReadResponse(c.r, nil); err != nil || resp.StatusCode != 100 {
				t.Fatalf("want 100, got %v, %v", resp, err)
			}
			c.say("hello")
			if got := c.hear("POST"); got.StatusCode != 200 || !strings.HasSuffix(got.body, "body=hello") {
				t.Errorf("got %d %q", got.StatusCode, got.body)
			}
		}
	}
	// A client that is refused is not asked, and what it may send all the same
	// is no request.
	c := dial(t, s.addr)
	c.say(fmt.Sprintf(post, "/refused"))
	if got := c.hear("POST"); got.StatusCode != 403 || !got.Close {
		t.Errorf("got %d, close %v", got.StatusCode, got.Close)
	}
	c.ends()
	// One that does not wait gets no more than the answer and perhaps a 100.
	c = dial(t, s.addr)
	c.say(fmt.Sprintf(post, "/read") + "hello")
	if resp, err := http.ReadResponse(c.r, nil); err != nil || resp.StatusCode != 100 {
		t.Errorf("want 100, got %v, %v", resp, err)
	}
	if got := c.hear("POST"); !strings.HasSuffix(got.body, "body=hello") {
		t.Errorf("got %q", got.body)
	}
	// HTTP/1.0 has no 100.
	c = dial(t, s.addr)
	c.say("POST /read HTTP/1.0\nContent-Length: 5\nExpect: 100-continue\n\n")
	c.say("hello")
	if got := c.hear("POST"); got.StatusCode != 200 {
		t.Errorf("got %d", got.StatusCode)
	}
}

func TestInterimAnswers(t *testing.T) {
	s := serve(t, front.Options{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a>; rel=preload")
		w.Header().Set("Content-Length", "2")
		w.WriteHeader(103)
		w.Header().Del("Link")
		w.WriteHeader(102)
		_, _ = io.WriteString(w, "ok")
	})
	c := dial(t, s.addr)
	c.say(get)
	for _, want := range []struct {
		code int
		link string
	}{{103, "</a>; rel=preload"}, {102, ""}} {
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil || resp.StatusCode != want.code || resp.Header.Get("Link") != want.link || resp.Header.Get("Content-Length") != "" {
			t.Fatalf("got %v, %v", resp, err)
		}
	}
	if got := c.hear("GET"); got.StatusCode != 200 || got.body != "ok" || got.Header.Get("Link") != "" {
		t.Errorf("got %d %q %v", got.StatusCode, got.body, got.Header)
	}
	c = dial(t, s.addr)
	c.say("GET / HTTP/1.0\n\n")
	if got := c.hear("GET"); got.StatusCode != 200 {
		t.Errorf("HTTP/1.0 got %d", got.StatusCode)
	}
}

// In full duplex an answer flows while the body does.
func TestFullDuplex(t *testing.T) {
	s := serve(t, front.Options{}, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := rc.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			_ = rc.Flush()
			if err != nil {
				return
			}
		}
	})
	c := dial(t, s.addr)
	c.say("POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n")
	var resp *http.Response
	for i := range 5 {
		c.say("1\n" + fmt.Sprint(i) + "\n")
		if resp == nil {
			var err error
			if resp, err = http.ReadResponse(c.r, nil); err != nil {
				t.Fatal(err)
			}
		}
		b := make([]byte, 1)
		if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != fmt.Sprint(i) {
			t.Fatalf("echo of %d: %q, %v", i, b, err)
		}
	}
	c.say("0\n\n")
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
		t.Fatalf("%q, %v", rest, err)
	}
	c.say("POST / HTTP/1.1\nHost: x\nContent-Length: 2\n\nok")
	if got := c.hear("POST"); got.body != "ok" {
		t.Errorf("the next request got %q", got.body)
	}
}

// What a handler leaves of a body is read if it is little, and ends the
// connection if it is much; it never becomes a request.
func TestBodiesThatAreNotRead(t *testing.T) {
	s := serve(t, front.Options{ReadHeader: 500 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			_, _ = io.WriteString(w, r.URL.Path)
			return
		}
		if r.URL.Query().Has("duplex") {
			_ = http.NewResponseController(w).EnableFullDuplex()
		}
		if r.URL.Query().Has("close") {
			_ = r.Body.Close()
		}
		w.WriteHeader(401)
	})
	const next = "GET /next HTTP/1.1\nHost: x\n\n"
	for _, size := range []int{5, 3000, 100 << 10, 1 << 20} {
		for _, query := range []string{"", "?duplex", "?close"} {
			for _, chunks := range []bool{false, true} {
				body := strings.Repeat("x", size)
				head := fmt.Sprintf("POST /%s HTTP/1.1\nHost: x\nContent-Length: %d\n\n", query, size)
				if chunks {
					head = fmt.Sprintf("POST /%s HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n", query)
					body = fmt.Sprintf("%x\n%s\n0\n\n", size, body)
				}
				c := dial(t, s.addr)
				sent := make(chan bool)
				go func() {
					defer close(sent)
					_, _ = io.WriteString(c, crlf(head+body+next)) // the end may come first
				}()
				got := c.hear("POST")
				if got.StatusCode != 401 {
					t.Fatalf("%d %s: got %d", size, query, got.StatusCode)
				}
				resp, err := http.ReadResponse(c.r, nil)
				switch {
				case size <= 100<<10 && err != nil:
					t.Errorf("%d%s: the next request failed: %v", size, query, err)
				case size > 256<<10 && err == nil:
					t.Errorf("%d%s: the next request was answered with %d", size, query, resp.StatusCode)
				}
				c.Close()
				<-sent
			}
		}
	}
	// A client that does not send what it has announced holds nothing up.
	c := dial(t, s.addr)
	c.say("POST / HTTP/1.1\nHost: x\nContent-Length: 100\n\nhalf")
	if got := c.hear("POST"); got.StatusCode != 401 || !got.Close {
		t.Errorf("got %d, close %v", got.StatusCode, got.Close)
	}
	c.ends()
}

// The context ends when the client leaves, however it does, and not before.
func TestClientsThatLeave(t *testing.T) {
	var running atomic.Int32
	ended := make(chan error, 1)
	s := serve(t, front.Options{Sweep: 5 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		running.Add(1)
		defer running.Add(-1)
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-r.Context().Done():
			ended <- context.Cause(r.Context())
		case <-time.After(patience):
			ended <- errors.New("the client has left unnoticed")
		}
	})
	for _, request := range []string{get, "POST / HTTP/1.1\nHost: x\nContent-Length: 5\n\nhello", "POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n5\nhello\n0\n\n"} {
		for _, how := range []string{"FIN", "RST", "half", "late RST with more sent"} {
			c := dial(t, s.addr)
			c.say(request)
			if how != "FIN" {
				eventually(t, "the request is not served", func() bool { return running.Load() == 1 })
			}
			tc := c.Conn.(*net.TCPConn)
			switch how {
			case "half":
				_ = tc.CloseWrite()
			case "RST":
				_ = tc.SetLinger(0)
				_ = tc.Close()
			case "late RST with more sent":
				c.say(get)
				_ = tc.SetLinger(0)
				_ = tc.Close()
			default:
				_ = tc.Close()
			}
			if err := <-ended; err != context.Canceled {
				t.Errorf("%s: %v", how, err)
			}
			eventually(t, "the request goes on", func() bool { return running.Load() == 0 })
		}
	}
	eventually(t, "connections are left", func() bool { return s.Stats().Open == 0 })
}

// A client that has said its last word is answered, and then let go at once.
func TestHalfClosedClients(t *testing.T) {
	s := serve(t, front.Options{Sweep: 20 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.Path) })
	for range 20 {
		c := dial(t, s.addr)
		c.say("GET /a HTTP/1.1\nHost: x\n\nGET /b HTTP/1.1\nHost: x\n\n")
		_ = c.Conn.(*net.TCPConn).CloseWrite()
		if a, b := c.hear("GET"), c.hear("GET"); a.body != "/a" || b.body != "/b" {
			t.Errorf("got %q, %q", a.body, b.body)
		}
		start := time.Now()
		c.ends()
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("the connection was kept for %v", d)
		}
	}
}

func TestHijack(t *testing.T) {
	ended := make(chan error, 1)
	s := serve(t, front.Options{}, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "echo")
			w.WriteHeader(101)
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		if _, _, err := http.NewResponseController(w).Hijack(); !errors.Is(err, http.ErrHijacked) {
			t.Errorf("hijacked twice: %v", err)
		}
		if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrHijacked) {
			t.Errorf("written after the hijack: %v", err)
		}
		b := make([]byte, rw.Reader.Buffered())
		_, _ = io.ReadFull(rw, b)
		_, _ = conn.Write(b)
		_, err = io.Copy(conn, rw)
		if half, ok := conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
			t.Error("one direction cannot be ended")
		}
		ended <- err
	})
	for _, head := range []string{
		"GET / HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: echo\n\n",
		"GET / HTTP/1.1\nHost: x\n\n", // nobody asked, and the connection is being read
		"POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n",
		"CONNECT x:1 HTTP/1.1\nHost: x:1\n\n",
	} {
		c := dial(t, s.addr)
		c.say(head + "one")
		if strings.Contains(head, "Upgrade") {
			resp, err := http.ReadResponse(c.r, nil)
			if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "echo" || resp.Header.Get("Connection") != "Upgrade" {
				t.Fatalf("got %v, %v", resp, err)
			}
		}
		b := make([]byte, 3)
		for _, word := range []string{"one", "two"} {
			if word == "two" {
				c.say(word)
			}
			if _, err := io.ReadFull(c.r, b); err != nil || string(b) != word {
				t.Fatalf("%.10s: echo %q, %v", head, b, err)
			}
		}
		eventually(t, "a hijacked connection is counted", func() bool { return s.Stats().Open == 0 })
		_ = c.Conn.(*net.TCPConn).CloseWrite()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		c.ends()
	}
}

// What a handler leaves behind that panics after it has taken the connection,
// or in a refusal, is in nobody else's answer.
func TestFieldsOfAPanicAreGone(t *testing.T) {
	s := serve(t, front.Options{Refuse: func(w http.ResponseWriter, _ *http.Request, _ *front.Refusal) {
		w.Header().Set("X-Left", "1")
		panic(http.ErrAbortHandler)
	}}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/take" {
			return
		}
		w.Header().Set("X-Left", "1")
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		c.Close()
		panic(http.ErrAbortHandler)
	})
	for range 20 { // the memory that another connection gets is up to chance
		for _, bad := range []string{"GET /take HTTP/1.1\nHost: x\n\n", "GET / HTTP/1.1\n\n"} {
			c := dial(t, s.addr)
			c.say(bad)
			_, _ = io.Copy(io.Discard, c)
			eventually(t, "connection not ended", func() bool { return s.Stats().Open == 0 })
			d := dial(t, s.addr)
			d.say(get)
			if r := d.hear("GET"); r.StatusCode != 200 || r.Header.Get("X-Left") != "" {
				t.Fatalf("after %q: got %d %v", bad, r.StatusCode, r.Header)
			}
			d.Close()
			eventually(t, "connection not ended", func() bool { return s.Stats().Open == 0 })
		}
	}
}

func TestDeadlines(t *testing.T) {
	failed := make(chan error, 1)
	s := serve(t, front.Options{}, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		switch r.URL.Path {
		case "/read":
			_ = rc.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			_, err := io.ReadAll(r.Body)
			failed <- err
			if r.Context().Err() != nil {
				t.Error("a client that is slow is taken for one that has left")
			}
			w.WriteHeader(408)
		case "/write":
			_ = rc.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
			var err error
			for err == nil {
				_, err = w.Write(many)
			}
			failed <- err
		case "/set":
			_ = rc.SetReadDeadline(time.Unix(1, 0))
			_ = rc.SetWriteDeadline(time.Now().Add(time.Minute))
		}
	})
	c := dial(t, s.addr)
	for range 3 { // a deadline is the request's and not the connection's
		c.say("GET /set HTTP/1.1\nHost: x\n\n")
		if got := c.hear("GET"); got.StatusCode != 200 {
			t.Fatalf("got %d", got.StatusCode)
		}
	}
	c.say("POST /read HTTP/1.1\nHost: x\nContent-Length: 5\n\nhel")
	if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reading failed with %v", err)
	}
	if got := c.hear("POST"); got.StatusCode != 408 || !got.Close {
		t.Errorf("got %d, close %v", got.StatusCode, got.Close)
	}
	c.ends()
	c = dial(t, s.addr)
	c.say("GET /write HTTP/1.1\nHost: x\n\n")
	if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("writing failed with %v", err)
	}
}

// Somebody who still reads the body when the handler returns is made to stop.
func TestBodyReadAfterTheHandler(t *testing.T) {
	failed := make(chan error, 1)
	s := serve(t, front.Options{}, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		reading := make(chan bool)
		go func() {
			b := make([]byte, 1)
			_, _ = r.Body.Read(b)
			close(reading)
			_, err := io.ReadAll(r.Body)
			failed <- err
		}()
		<-reading
	})
	c := dial(t, s.addr)
	c.say("POST / HTTP/1.1\nHost: x\nContent-Length: 100\n\nhalf")
	if got := c.hear("POST"); got.StatusCode != 200 {
		t.Errorf("got %d", got.StatusCode)
	}
	c.ends()
	if err := <-failed; err == nil {
		t.Error("the body could be read to its end")
	}
}

func TestKeptAfterTheHandler(t *testing.T) {
	var kept *http.Request
	var header http.Header
	var writer http.ResponseWriter
	s := serve(t, front.Options{}, func(w http.ResponseWriter, r *http.Request) {
		if kept != nil {
			return
		}
		kept, header, writer = r, r.Header, w
		if r.URL.Path == "/release" {
			w.(interface{ ReleaseRequest() }).ReleaseRequest()
		}
	})
	c := dial(t, s.addr)
	c.say("GET /a?b HTTP/1.1\nHost: x\nX-A: 1\n\n")
	c.hear("GET")
	for range 5 {
		c.say("GET /other HTTP/1.1\nHost: y\nX-A: 2\nX-B: 3\n\n")
		c.hear("GET")
	}
	if got := describe(kept); got != `GET /a?b HTTP/1.1 host=x uri=/a?b path=/a query=b close=false length=0 X-A=["1"]` {
		t.Errorf("a request that was kept has become %s", got)
	}
	if kept.Context().Err() == nil {
		t.Error("its context has not ended")
	}
	fails := func() (ok bool) {
		defer func() { ok = recover() != nil || ok }()
		_, err := writer.Write([]byte("x"))
		return err != nil
	}
	if !fails() {
		t.Error("the writer still works")
	}
	if err := http.NewResponseController(writer).SetReadDeadline(time.Now()); err == nil {
		t.Error("deadlines can still be set")
	}

	kept = nil
	c.say("GET /release HTTP/1.1\nHost: x\nX-A: 1\n\n")
	c.hear("GET")
	for range 5 {
		c.say("GET /other HTTP/1.1\nHost: y\nX-A: 2\n\n")
		c.hear("GET")
	}
	if raceEnabled() && kept.URL != nil {
		t.Errorf("a request that was released and kept is %s", describe(kept))
	}
	if _, spoiled := header["Released-By-The-Handler"]; raceEnabled() && !spoiled {
		t.Errorf("a header that was released and kept is %v", header)
	}
}

// What releasing a request does not give away stays good while others follow,
// on the same connection and on others.
func TestKeptOfAReleasedRequest(t *testing.T) {
	type kept struct {
		path, host, a string
		list          []string
		ctx           context.Context
	}
	var mu sync.Mutex
	var all []kept
	s := serve(t, front.Options{}, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		all = append(all, kept{r.URL.Path, r.Host, r.Header.Get("X-A"), r.Header["X-A"], r.Context()})
		mu.Unlock()
		_, _ = io.WriteString(w, r.URL.Path)
		w.(interface{ ReleaseRequest() }).ReleaseRequest()
	})
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			c := dial(t, s.addr)
			for i := range 50 {
				path := fmt.Sprintf("/%d/%d", n, i)
				c.say("GET " + path + " HTTP/1.1\nHost: h" + path[1:2] + "\nX-A: " + path + "\n\n")
				if got := c.hear("GET"); got.body != path {
					t.Errorf("%s was answered with %q", path, got.body)
				}
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, k := range all {
		if seen[k.path] = true; k.host != "h"+k.path[1:2] || k.a != k.path || len(k.list) != 1 || k.list[0] != k.path || k.ctx.Err() == nil {
			t.Errorf("%+v, context ended: %v", k, k.ctx.Err())
		}
	}
	if len(seen) != 200 {
		t.Errorf("%d requests, want 200", len(seen))
	}
}
