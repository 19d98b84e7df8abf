package transport_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/transport"
	"github.com/proconsul/proconsul/pkg/wire"
)

// sweeps are how a header's time is kept: on the socket, on the socket because
// the time is too near for the sweeper, and by the sweeper.
var sweeps = map[string]time.Duration{"watched": 0, "near": 50 * time.Millisecond, "swept": 2 * time.Millisecond}

// A header that has not come by its time is a timeout, and the connection is
// not used again.
func TestHeaderInTime(t *testing.T) {
	for name, sweep := range sweeps {
		t.Run(name, func(t *testing.T) {
			s := serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
				answer := "ok"
				for {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					if req.URL.Path == "/late" {
						answer = "used again"
						continue
					}
					_, _ = io.WriteString(c, ok(answer))
				}
			})
			tr := client(t, transport.Options{Sweep: sweep})
			var m transport.Memory
			start := time.Now()
			if _, err := tr.RoundTripInto(request(t, "GET", s.url+"late", nil), &m, start.Add(100*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got error %v, want that the time is over", err)
			}
			if took := time.Since(start); took < 100*time.Millisecond {
				t.Errorf("it was over after %v", took)
			}
			m.Clear()
			resp, err := tr.RoundTripInto(request(t, "GET", s.url, nil), &m, time.Now().Add(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(resp.Body); string(b) != "ok" || err != nil {
				t.Errorf("got %q, %v on connection %d", b, err, s.accepted())
			}
		})
	}
}

// The time is the header's: the body may take longer, and so may the next
// request on the same connection.
func TestBodyAfterTheHeadersTime(t *testing.T) {
	for name, sweep := range sweeps {
		t.Run(name, func(t *testing.T) {
			over := make(chan struct{})
			s := serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
				for {
					if _, err := http.ReadRequest(r); err != nil {
						return
					}
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
					<-over
					_, _ = io.WriteString(c, "ok")
				}
			})
			tr := client(t, transport.Options{Sweep: sweep})
			var m transport.Memory
			by := time.Now().Add(time.Second) // which the header keeps to, also where the machine stalls
			for range 2 {
				resp, err := tr.RoundTripInto(request(t, "GET", s.url, nil), &m, by)
				if err != nil {
					t.Fatal(err)
				}
				if by.IsZero() { // the second
					if b, err := io.ReadAll(resp.Body); string(b) != "ok" || err != nil {
						t.Errorf("got %q, %v", b, err)
					}
					break
				}
				if all := resp.Body.(interface{ All() []byte }).All(); all != nil {
					t.Errorf("%q is said to be all", all)
				}
				time.AfterFunc(time.Until(by)+50*time.Millisecond, func() { close(over) })
				if b, err := io.ReadAll(resp.Body); string(b) != "ok" || err != nil {
					t.Errorf("got %q, %v", b, err)
				}
				m.Clear()
				by = time.Time{}
			}
			if s.accepted() != 1 {
				t.Errorf("%d connections, want one", s.accepted())
			}
		})
	}
}

// Interim answers are told before the final one, and leave nothing in it.
func TestInterimInto(t *testing.T) {
	s := answers(t, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"+ok("ok"))
	tr := client(t, transport.Options{Sweep: time.Second})
	var got []int
	m := transport.Memory{}
	m.Interim = func(code int, h textproto.MIMEHeader) error {
		if link := h.Get("Link"); (link != "") != (code == 103) {
			t.Errorf("%d has the link %q", code, link)
		}
		got = append(got, code)
		return nil
	}
	resp, err := tr.RoundTripInto(request(t, "GET", s.url, nil), &m, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); string(b) != "ok" || err != nil || len(got) != 2 || len(m.Lines) != 1 || m.Lines[0].Name != "Content-Length" {
		t.Errorf("got %q, %v, interim %v, header %v", b, err, got, m.Lines)
	}
}

// What is sent beside a request's header comes behind it, and an answer's header
// is a list in its order, whether it is the same as the one before on its
// connection, another, or too large to be remembered.
func TestLinesInto(t *testing.T) {
	large := "X-Large: " + strings.Repeat("v", 4<<10) + "\r\n"
	heads := []string{
		"B: 1\r\nA: 2\r\nb: 3\r\nContent-Length: 2\r\n\r\nok",
		"B: 1\r\nA: 2\r\nb: 3\r\nContent-Length: 2\r\n\r\nok",
		"C: 4\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2\r\nok\r\n0\r\nX-T: 5\r\n\r\n",
		large + "Content-Length: 2\r\n\r\nok",
		large + "Content-Length: 2\r\n\r\nok",
		"Content-Length: 2\r\n\r\nok",
	}
	want := []string{"B: 1|A: 2|B: 3|Content-Length: 2|", "", "C: 4|Trailer: X-T|", strings.ReplaceAll(large, "\r\n", "|") + "Content-Length: 2|", "", "Content-Length: 2|"}
	sent := make(chan string, len(heads))
	s := serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
		for _, h := range heads {
			head, err := readHeadOf(r)
			if err != nil {
				return
			}
			sent <- head
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n"+h)
		}
	})
	tr := client(t, transport.Options{Sweep: time.Second})
	m := transport.Memory{Fields: []wire.Line{{Name: "Via", Value: "1.1 us"}, {Name: "X-Forwarded-For", Value: "192.0.2.1"}}}
	for i := range heads {
		m.Clear()
		req := request(t, "GET", s.url, nil)
		req.Header = http.Header{"Via": {"1.0 before"}}
		resp, err := tr.RoundTripInto(req, &m, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		if head := <-sent; !strings.HasSuffix(head, "\r\nVia: 1.0 before\r\nVia: 1.1 us\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n") {
			t.Errorf("%d: sent %q", i, head)
		}
		var got strings.Builder
		for _, l := range m.Lines {
			got.WriteString(l.Name + ": " + l.Value + "|")
		}
		if want := cmp.Or(want[i], want[max(i-1, 0)]); got.String() != want || resp.Header != nil {
			t.Errorf("%d: got %.100q, and a map %v; want %.100q", i, got.String(), resp.Header, want)
		}
		if b, err := io.ReadAll(resp.Body); string(b) != "ok" || err != nil || i == 2 && resp.Trailer.Get("X-T") != "5" {
			t.Errorf("%d: %q, %v, trailer %v", i, b, err, resp.Trailer)
		}
	}
	if s.accepted() != 1 {
		t.Errorf("%d connections, want one", s.accepted())
	}
}

// What is Plain is served without the fallback; a body or an upgrade is not.
func TestPlain(t *testing.T) {
	tr := client(t, transport.Options{})
	upgrade := request(t, "GET", "http://h/", nil)
	upgrade.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}
	for _, tt := range []struct {
		name string
		req  *http.Request
		want bool
	}{
		{"get", request(t, "GET", "http://h/", nil), true},
		{"https", request(t, "GET", "https://h/", nil), false},
		{"body", request(t, "POST", "http://h/", http.MaxBytesReader(nil, http.NoBody, 1)), false},
		{"upgrade", upgrade, false},
		{"zone", request(t, "GET", "http://[fe80::1%25eth0]/", nil), false},
	} {
		if got := tr.Plain(tt.req); got != tt.want {
			t.Errorf("%s: got %v", tt.name, got)
		}
	}
}

// Memory that is used again is all that an answer needs.
func TestIntoAllocatesNothing(t *testing.T) {
	if raceEnabled() {
		t.Log("the race detector makes its own")
		return
	}
	s := echoes(t, "HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\nok", 0)
	tr := client(t, transport.Options{Sweep: 50 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", s.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	var m transport.Memory
	buf := make([]byte, 10)
	if got := testing.AllocsPerRun(500, func() {
		m.Clear()
		resp, err := tr.RoundTripInto(req, &m, time.Now().Add(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if n, err := resp.Body.Read(buf); n != 2 || err != io.EOF || len(m.Lines) != 3 || m.Lines[0].Value != "x" {
			t.Fatal(n, err, m.Lines)
		}
	}); got != 0 {
		t.Errorf("a round trip makes %v allocations, want none", got)
	}
}

// A header's time that is over before there is a connection is told as such:
// nothing was sent.
func TestNoConnectionInTime(t *testing.T) {
	for name, sweep := range sweeps {
		t.Run(name, func(t *testing.T) {
			tr := client(t, transport.Options{Sweep: sweep, ConnectTimeout: time.Minute, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}})
			var m transport.Memory
			_, err := tr.RoundTripInto(request(t, "GET", "http://h/", nil), &m, time.Now().Add(20*time.Millisecond))
			var connect *transport.ConnectError
			if !errors.As(err, &connect) || !connect.Timeout() || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want a connection that took too long", err)
			}
		})
	}
}

// cramped dials connections whose buffers take little, so that a large request
// cannot be written without waiting.
func cramped(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, addr)
	if err == nil {
		err = c.(*net.TCPConn).SetWriteBuffer(256 << 10)
	}
	return c, err
}

// A request that does not fit into the connection's buffers is written as there
// is room, and its header's time is kept all the same.
func TestRequestThatDoesNotFit(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // more than the kernel keeps for a reader that rests
	for name, sweep := range sweeps {
		t.Run(name, func(t *testing.T) {
			var reads atomic.Bool
			s := serve(t, func(c net.Conn, r *bufio.Reader, n int) {
				for reads.Load() {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					got, err := io.ReadAll(req.Body)
					if err != nil {
						return // begun before it read, and given up
					}
					if !bytes.Equal(got, body) {
						t.Errorf("%d bytes arrived", len(got))
					}
					_, _ = io.WriteString(c, ok(strconv.Itoa(n)))
				}
				<-t.Context().Done() // the first never reads
			})
			tr := client(t, transport.Options{Sweep: sweep, Dial: cramped})
			m := transport.Memory{Body: body}
			start := time.Now()
			if _, err := tr.RoundTripInto(request(t, "POST", s.url, nil), &m, start.Add(200*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got error %v, want that the time is over", err)
			}
			if took := time.Since(start); took < 200*time.Millisecond {
				t.Errorf("it was over after %v", took)
			}
			reads.Store(true)
			var on []string // connections
			for range 3 {
				m.Clear()
				resp, err := tr.RoundTripInto(request(t, "POST", s.url, nil), &m, time.Now().Add(10*time.Second))
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Error(err)
				}
				on = append(on, string(b))
			}
			if on[0] != on[1] || on[1] != on[2] {
				t.Errorf("the requests went over connections %q, want one", on)
			}
		})
	}
}

// A body that is all there is had at once, and its connection serves again.
func TestAllOfABody(t *testing.T) {
	s := answers(t, ok("all of it"))
	tr := client(t, transport.Options{})
	var m transport.Memory
	for range 3 {
		resp, err := tr.RoundTripInto(request(t, "GET", s.url, nil), &m, time.Now().Add(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		body := resp.Body.(interface {
			io.ReadCloser
			All() []byte
		})
		if got := body.All(); string(got) != "all of it" {
			t.Errorf("got %q", got)
		}
		if err := body.Close(); err != nil || body.All() != nil {
			t.Errorf("after Close: %v, %q", err, body.All())
		}
		m.Clear()
	}
	if s.accepted() != 1 {
		t.Errorf("%d connections, want one", s.accepted())
	}
}
