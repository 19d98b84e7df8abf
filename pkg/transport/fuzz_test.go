package transport_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/transport"
)

// tape is a connection that plays back an answer, in pieces of at most step
// bytes, and then ends.
type tape struct {
	rest []byte
	step int
}

func (c *tape) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.step)], c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *tape) Write(p []byte) (int, error)      { return len(p), nil }
func (c *tape) Close() error                     { return nil }
func (c *tape) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *tape) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *tape) SetDeadline(time.Time) error      { return nil }
func (c *tape) SetReadDeadline(time.Time) error  { return nil }
func (c *tape) SetWriteDeadline(time.Time) error { return nil }

// playback is what the transport makes of an answer.
func playback(t *testing.T, method string, answer []byte, step int) (r result, kept bool, err error) {
	tr := transport.New(transport.Options{Dial: func(context.Context, string, string) (net.Conn, error) {
		return &tape{rest: slices.Clone(answer), step: step}, nil
	}})
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(context.Background(), method, "http://instance/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err = do(t, tr, req)
	s := tr.Stats()
	if s.Active != 0 {
		t.Fatal("the connection is neither closed nor kept")
	}
	return r, s.Idle == 1, err
}

// repeater is a connection that answers each request alike.
type repeater struct {
	tape
	answer []byte
}

func (c *repeater) Write(p []byte) (int, error) {
	c.rest = slices.Clone(c.answer)
	return len(p), nil
}

// replay is what RoundTripInto makes of an answer the third time that it comes on
// a connection.
func replay(t *testing.T, method string, answer []byte) (h http.Header, body string) {
	tr := transport.New(transport.Options{Dial: func(context.Context, string, string) (net.Conn, error) {
		return &repeater{tape{step: 1 << 20}, answer}, nil
	}})
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(context.Background(), method, "http://instance/", nil)
	if err != nil {
		t.Fatal(err)
	}
	var m transport.Memory
	for n := range 3 {
		m.Clear()
		resp, err := tr.RoundTripInto(req, &m, time.Time{})
		if err != nil {
			t.Fatalf("time %d: %v", n, err)
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("the body, time %d: %v", n, err)
		}
		body, h = string(b), http.Header{}
		for _, l := range m.Lines {
			h[l.Name] = append(h[l.Name], l.Value)
		}
		if len(resp.TransferEncoding) > 0 {
			delete(h, "Trailer")
		}
	}
	return h, body
}

// FuzzResponse: what the transport takes for a whole answer net/http takes for
// the same one, and it is the same in whatever pieces it comes, and as a list each
// time that it comes again.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		ok("hello"),
		crlf("HTTP/1.1 103 Early Hints\nLink: </a>\n\nHTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: X\n\n5;a=b\nhello\n0\nX: 1\n\n"),
		crlf("HTTP/1.0 200\nConnection: keep-alive\n\nhello"),
		crlf("HTTP/1.1 204 No Content\nContent-Length: 0\n\n"),
		crlf("HTTP/1.1 200 OK\nContent-Length: 5\nContent-Length: 5\n\nhello"),
		crlf("HTTP/1.1 200 OK\nContent-Length: 5\nTransfer-Encoding: chunked\n\n0\n\n"),
		"HTTP/1.1 200 OK\nX: 1\r\n\r\n",
		crlf("HTTP/1.1 200 OK\nX: 1\n 2\n\n"),
		crlf("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello\n0\n\nsurplus"),
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	for seed := range uint64(60) {
		s := generate(seed)
		if len(s.answer) < 2000 {
			f.Add(s.answer, s.method == "HEAD")
		}
	}
	f.Fuzz(func(t *testing.T, answer []byte, head bool) {
		method := http.MethodGet
		if head {
			method = http.MethodHead
		}
		got, kept, err := playback(t, method, answer, 1<<20)
		slow, slowKept, slowErr := playback(t, method, answer, 1)
		if (err == nil) != (slowErr == nil) || (got.Response == nil) != (slow.Response == nil) || got.body != slow.body {
			t.Fatalf("at once: %q, %v; byte by byte: %q, %v", got.body, err, slow.body, slowErr)
		}
		if kept && !slowKept {
			t.Fatal("kept only if it comes at once")
		}
		if err != nil {
			return
		}
		r := bufio.NewReader(bytes.NewReader(answer))
		var want *http.Response
		for {
			want, err = http.ReadResponse(r, &http.Request{Method: method})
			if err != nil {
				t.Fatalf("net/http refuses it: %v", err)
			}
			if want.StatusCode >= 200 {
				break
			}
		}
		body, err := io.ReadAll(want.Body)
		if err != nil && !strings.Contains(err.Error(), "suspiciously long trailer") {
			t.Fatalf("net/http refuses the body: %v", err)
		}
		if err == nil && !bytes.Equal(body, []byte(got.body)) {
			t.Fatalf("got body %q, net/http %q", got.body, body)
		}
		if want.Header.Get("Pragma") == "no-cache" {
			delete(want.Header, "Cache-Control") // which net/http invents
			delete(got.Header, "Cache-Control")
		}
		if got.StatusCode != want.StatusCode || got.Status != want.Status || got.ContentLength != want.ContentLength || got.Close != want.Close ||
			!equalHeader(got.Header, want.Header) {
			t.Fatalf("got %q %d %v %v, net/http %q %d %v %v", got.Status, got.ContentLength, got.Close, got.Header, want.Status, want.ContentLength, want.Close, want.Header)
		}
		if kept {
			if _, err := r.ReadByte(); err != io.EOF {
				t.Fatal("kept with something left to read")
			}
			if want.Close {
				t.Fatal("kept though it is to be closed")
			}
			if h, body := replay(t, method, answer); body != got.body || !equalHeader(h, got.Header) {
				t.Fatalf("again: %q, %v; before %q, %v", body, h, got.body, got.Header)
			}
		}
	})
}
