package front_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/front"
)

// tape is a connection that plays back what a client sends, in pieces of at
// most step bytes, and then ends.
type tape struct {
	rest   []byte
	step   int
	mu     sync.Mutex
	said   bytes.Buffer
	closed chan struct{}
	once   sync.Once
}

func (c *tape) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.step)], c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *tape) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.said.Write(p)
}

func (c *tape) Close() error                     { c.once.Do(func() { close(c.closed) }); return nil }
func (c *tape) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *tape) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *tape) SetDeadline(time.Time) error      { return nil }
func (c *tape) SetReadDeadline(time.Time) error  { return nil }
func (c *tape) SetWriteDeadline(time.Time) error { return nil }

// one is a listener with one connection.
type one struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *one) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *one) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *one) Addr() net.Addr { return &net.TCPAddr{} }

// seen is a request as a handler sees it.
type seen struct {
	method, uri, host, proto string
	header                   http.Header
	body                     string
	failed                   bool
	trailer                  http.Header
}

func see(r *http.Request) seen {
	b, err := io.ReadAll(r.Body)
	return seen{r.Method, r.RequestURI, r.Host, r.Proto, r.Header, string(b), err != nil, r.Trailer}
}

// playback is what front makes of what a client sends.
func playback(t *testing.T, text []byte, step int) (all []seen, said string) {
	c := &tape{rest: slices.Clone(text), step: step, closed: make(chan struct{})}
	l := &one{conns: make(chan net.Conn, 1), done: make(chan struct{})}
	l.conns <- c
	s := front.New(front.Options{MaxHeader: 16 << 10, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		all = append(all, see(r))
		_, _ = io.WriteString(w, "ok")
	})})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Serve(l)
	}()
	select {
	case <-c.closed:
	case <-time.After(patience):
		t.Fatal("the connection does not end")
	}
	_ = s.Close()
	<-ended
	return all, c.said.String()
}

// FuzzRequest: what front serves net/http takes for the same requests, and it
// is the same in whatever pieces it comes, and each time that it comes again.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: 1\r\n\r\nGET / HTTP/1.0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET http://x:80/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nA: 1\r\n 2\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	for seed := range uint64(60) {
		if s := generate(seed); len(s.text) < 2000 {
			f.Add(s.text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		all, said := playback(t, text, 1<<20)
		slow, slowly := playback(t, text, 1)
		if fmt.Sprint(all) != fmt.Sprint(slow) || statuses(said) != statuses(slowly) {
			t.Fatalf("at once: %v, %q; byte by byte: %v, %q", all, said, slow, slowly)
		}
		r := bufio.NewReader(bytes.NewReader(text))
		for i, got := range all {
			if i > 0 && all[i-1].method == "POST" {
				if b, _ := r.Peek(2); string(b) == "\r\n" {
					_, _ = r.Discard(2)
				}
			}
			req, err := http.ReadRequest(r)
			for err == nil && req.RequestURI == "*" && req.Method == "OPTIONS" && got.uri != "*" { // which the handler is not told of
				_, _ = io.Copy(io.Discard, req.Body)
				req, err = http.ReadRequest(r)
			}
			if err != nil {
				t.Fatalf("request %d: net/http refuses it: %v", i, err)
			}
			if req.Header.Get("Pragma") == "no-cache" {
				delete(req.Header, "Cache-Control") // which net/http invents
				delete(got.header, "Cache-Control")
			}
			delete(req.Header, "Host")
			want := see(req)
			if got.failed && i == len(all)-1 {
				continue // net/http may be content with it
			}
			if want.failed { // it bounds trailers by a buffer
				return
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("request %d: got %+v, net/http %+v", i, got, want)
			}
		}
		if _, err := r.Peek(1); err == nil || len(all) == 0 || all[len(all)-1].failed {
			return // something is left that may change what comes next
		}
		often, _ := playback(t, bytes.Repeat(text, 4), 1<<20)
		if len(often) > len(all) && len(often) != 4*len(all) {
			t.Fatalf("%d requests once, %d four times", len(all), len(often))
		}
		for i, got := range often {
			if want := all[i%len(all)]; fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("request %d again: got %+v, before %+v", i, got, want)
			}
		}
	})
}

// statuses are the first lines of answers.
func statuses(said string) string {
	var b strings.Builder
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, "HTTP/1.") {
			b.WriteString(line)
		}
	}
	return b.String()
}
