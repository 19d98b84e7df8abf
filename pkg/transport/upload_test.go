package transport_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/transport"
)

// counting dials connections whose writes are counted.
func counting(n *atomic.Int64) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &countedConn{Conn: c, n: n}, nil
	}
}

// countedConn has no SyscallConn, so it also stands for connections that
// cannot be probed.
type countedConn struct {
	net.Conn
	n *atomic.Int64
}

func (c *countedConn) Write(p []byte) (int, error) { c.n.Add(1); return c.Conn.Write(p) }

// readHeadOf reads a request's header.
func readHeadOf(r *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		b.WriteString(line)
		if err != nil {
			return b.String(), err
		}
		if line == "\r\n" {
			return b.String(), nil
		}
	}
}

// A body that is slow to begin does not keep the header from the instance, and
// both bodies stream at once.
func TestBothBodiesStream(t *testing.T) {
	s := serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		b := make([]byte, 100)
		for {
			n, err := req.Body.Read(b)
			if n > 0 {
				_, _ = io.WriteString(c, "4\r\n"+string(b[:n])+"\r\n")
			}
			if err != nil {
				break
			}
		}
		_, _ = io.WriteString(c, "0\r\n\r\n")
	})
	tr := client(t, transport.Options{})
	pr, pw := io.Pipe()
	resp, err := tr.RoundTrip(request(t, "POST", s.url, pr)) // before there is anything of a body
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b := make([]byte, 4)
	for _, want := range []string{"msg1", "msg2", "msg3"} {
		_, _ = io.WriteString(pw, want)
		if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != want {
			t.Fatalf("got %q, %v; want %q back while the request goes on", b, err, want)
		}
	}
	pw.Close()
	if n, err := resp.Body.Read(b); n != 0 || err != io.EOF {
		t.Errorf("got %d, %v at the end", n, err)
	}
	eventually(t, "connection not kept", func() bool { return tr.Stats().Idle == 1 })
}

// An early answer is returned while the body still uploads. The upload is
// given up and the connection with it.
func TestEarlyAnswer(t *testing.T) {
	for _, length := range []int64{-1, 1 << 30} {
		s := serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
			if _, err := readHeadOf(r); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 403 No\r\nContent-Length: 4\r\n\r\nstop")
			_, _ = io.Copy(io.Discard, r)
		})
		tr := client(t, transport.Options{})
		for name, body := range map[string]*endless{"that flows": {flow: true}, "that stalls": {}} {
			body.done = make(chan struct{})
			req := request(t, "POST", s.url, body)
			req.ContentLength = length
			r := mustDo(t, tr, req)
			if r.StatusCode != 403 || r.body != "stop" {
				t.Errorf("body %s: got %d %q", name, r.StatusCode, r.body)
			}
			select {
			case <-body.done:
			case <-time.After(10 * time.Second):
				t.Fatalf("body %s was not closed", name)
			}
			eventually(t, "connection in use", func() bool { return tr.Stats().Active == 0 })
			if st := tr.Stats(); st.Idle != 0 {
				t.Errorf("body %s: %+v, want the connection closed", name, st)
			}
		}
	}
}

// endless is a body without end, or one that gives nothing until it is closed.
type endless struct {
	flow bool
	done chan struct{}
	over atomic.Bool
}

func (b *endless) Read(p []byte) (int, error) {
	if b.over.Load() {
		return 0, errors.New("read after close")
	}
	if b.flow {
		return len(p), nil
	}
	<-b.done
	return 0, errors.New("closed")
}

func (b *endless) Close() error {
	if !b.over.Swap(true) {
		close(b.done)
	}
	return nil
}

// An instance that answers and leaves without reading the request is heard.
func TestAnswerAndClose(t *testing.T) {
	s := serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
		if _, err := readHeadOf(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.CopyN(io.Discard, r, 1<<20)
	})
	tr := client(t, transport.Options{})
	for range 20 {
		body := &endless{flow: true, done: make(chan struct{})}
		req := request(t, "POST", s.url, body)
		req.ContentLength = 1 << 30
		if r := mustDo(t, tr, req); r.StatusCode != 413 || r.body != "big" {
			t.Errorf("got %d %q", r.StatusCode, r.body)
		}
		<-body.done
	}
}

// A body that fails, or has another length than declared, fails the request.
func TestUploadFailures(t *testing.T) {
	wrong := errors.New("wrong")
	tests := []struct {
		name   string
		body   io.Reader
		length int64
		want   error
	}{
		{"at once", io.MultiReader(failing{wrong}), 10, wrong},
		{"at once, chunked", failing{wrong}, -1, wrong},
		{"later", io.MultiReader(strings.NewReader("hello"), failing{wrong}), 10, wrong},
		{"later, chunked", io.MultiReader(strings.NewReader("hello"), failing{wrong}), -1, wrong},
		{"short", strings.NewReader("hello"), 10, nil},
		{"empty", strings.NewReader(""), 10, nil},
		{"long", strings.NewReader("hello"), 4, nil},
		{"long, seen when all is sent", io.MultiReader(strings.NewReader("hell"), strings.NewReader("o")), 4, nil},
		{"long, seen when much is sent", strings.NewReader(strings.Repeat("x", 100<<10)), 64 << 10, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			whole := make(chan bool, 1)
			s := serve(t, func(_ net.Conn, r *bufio.Reader, _ int) {
				req, err := http.ReadRequest(r)
				if err == nil {
					_, err = io.Copy(io.Discard, req.Body)
				}
				whole <- err == nil
				_, _ = io.Copy(io.Discard, r)
			})
			tr := client(t, transport.Options{})
			b := &spyBody{Reader: tt.body}
			req := request(t, "POST", s.url, b)
			req.ContentLength = tt.length
			_, err := do(t, tr, req)
			var up *transport.UploadError
			if !errors.As(err, &up) || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got error %v", err)
			}
			eventually(t, "body not closed once", func() bool { return b.closed.Load() == 1 })
			if got := <-whole; got && !strings.HasPrefix(tt.name, "long, seen") {
				t.Error("the instance took the request for complete")
			}
			// The upload's goroutine may be the last to let go of it.
			eventually(t, "connection in use", func() bool { return tr.Stats().Active == 0 })
			if st := tr.Stats(); st.Idle != 0 {
				t.Errorf("got %+v, want the connection closed", st)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestExpectContinue(t *testing.T) {
	tests := []struct {
		name     string
		first    string // before the body is read
		read     bool   // the instance reads the body
		body     string
		status   int
		asked    bool
		reused   bool
		patience time.Duration
	}{
		{name: "asked", first: "HTTP/1.1 100 Continue\r\n\r\n", read: true, status: 200, asked: true, reused: true, patience: time.Minute},
		{name: "asked twice", first: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n", read: true, status: 200, asked: true, reused: true, patience: time.Minute},
		{name: "after a hint", first: "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n", read: true, status: 200, asked: true, reused: true, patience: time.Minute},
		{name: "ignored", read: true, status: 200, reused: true, patience: 20 * time.Millisecond},
		{name: "refused", first: "HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno", status: 401, patience: time.Minute},
		{name: "accepted unseen", first: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", status: 200, patience: time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			read := make(chan string, 1)
			s := serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
				head, err := readHeadOf(r)
				if err != nil || !strings.Contains(head, "Expect: 100-continue\r\n") || r.Buffered() > 0 {
					read <- "bad header: " + head
					return
				}
				_, _ = io.WriteString(c, tt.first)
				if !tt.read {
					b, _ := io.ReadAll(r)
					read <- string(b)
					return
				}
				b := make([]byte, 5)
				_, _ = io.ReadFull(r, b)
				read <- string(b)
				_, _ = io.WriteString(c, ok("yes"))
				_, _ = io.Copy(io.Discard, r)
			})
			tr := client(t, transport.Options{ContinueTimeout: tt.patience})
			b := &spyBody{Reader: strings.NewReader("hello")}
			req := request(t, "POST", s.url, b)
			req.ContentLength = 5
			req.Header.Set("Expect", "100-continue")
			asked := 0
			req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{Got100Continue: func() { asked++ }}))
			r := mustDo(t, tr, req)
			if r.StatusCode != tt.status {
				t.Errorf("got status %d", r.StatusCode)
			}
			want := ""
			if tt.read {
				want = "hello"
			}
			if got := <-read; got != want {
				t.Errorf("the instance got body %q, want %q", got, want)
			}
			if (asked > 0) != tt.asked || asked > 1 {
				t.Errorf("Got100Continue called %d times", asked)
			}
			eventually(t, "body not closed", func() bool { return b.closed.Load() == 1 })
			eventually(t, "connection in use", func() bool { return tr.Stats().Active == 0 })
			if got := tr.Stats().Idle == 1; got != tt.reused {
				t.Errorf("connection kept: %v, want %v", got, tt.reused)
			}
		})
	}
}

// 300 KB each way, both framings, at once, by several goroutines.
func TestLargeBodies(t *testing.T) {
	s := serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			resp := http.Response{StatusCode: 200, ProtoMajor: 1, ProtoMinor: 1, Body: req.Body, ContentLength: req.ContentLength}
			if req.ContentLength < 0 {
				resp.TransferEncoding = []string{"chunked"}
			}
			if err := resp.Write(c); err != nil {
				return
			}
		}
	})
	tr := client(t, transport.Options{})
	payload := strings.Repeat("0123456789abcdef", 20000)
	done := make(chan struct{})
	for i := range 4 {
		go func() {
			defer func() { done <- struct{}{} }()
			for j := range 10 {
				var body io.Reader = strings.NewReader(payload)
				if (i+j)%2 == 0 {
					body = onlyReader{body}
				}
				r, err := do(t, tr, request(t, "POST", s.url, body))
				if err != nil || r.body != payload {
					t.Errorf("got %d bytes, %v", len(r.body), err)
				}
			}
		}()
	}
	for range 4 {
		<-done
	}
	if got := s.accepted(); got > 8 {
		t.Errorf("40 requests, four at a time, took %d connections", got)
	}
}

// A body puts its trailers into the request's map when it ends, which may be
// while the header is written: they are announced all the same, and arrive.
func TestTrailersOfABodyThatEndsWithTheHeader(t *testing.T) {
	s, requests := captured(t)
	tr := client(t, transport.Options{})
	for range 10 {
		req := request(t, "POST", s.url, nil)
		req.Trailer = http.Header{"X-B": nil, "X-A": nil}
		req.Body, req.ContentLength = &trailing{req.Trailer}, -1
		mustDo(t, tr, req)
		_, fields, body := dissect(<-requests)
		if !slices.Contains(fields, "Trailer: X-A,X-B") || !strings.Contains(body, "0\r\n") || !strings.Contains(body, "X-A: 1\r\n") {
			t.Fatalf("got header %q and body %q", fields, body)
		}
	}
}

// trailing is a body without content that ends when the header has most likely
// gone without it. Nothing orders the two, as nothing orders them for a client.
type trailing struct{ trailer http.Header }

func (b *trailing) Read([]byte) (int, error) {
	<-time.After(5 * time.Millisecond)
	b.trailer["X-A"] = []string{"1"}
	return 0, io.EOF
}

func (b *trailing) Close() error { return nil }

// Who follows a request hears that it is written before its answer has ended.
func TestWrittenBeforeTheEnd(t *testing.T) {
	s := answers(t, ok("hello"))
	tr := client(t, transport.Options{})
	late := 0
	for range 3000 {
		var written atomic.Bool
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { written.Store(true) }})
		resp, err := tr.RoundTrip(request(t, "POST", s.url, strings.NewReader("hello")).WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if b, err := io.ReadAll(resp.Body); string(b) != "hello" || err != nil {
			t.Fatalf("got %q, %v", b, err)
		}
		// The end of an answer waits only so long, which a machine may stall for.
		if !written.Load() && time.Since(start) < transport.UploadGrace {
			late++
		}
	}
	if late > 0 {
		t.Errorf("%d of 3000 had ended before", late)
	}
}
