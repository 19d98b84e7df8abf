package transport_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/proconsul/proconsul/pkg/cohort"
	"github.com/proconsul/proconsul/pkg/transport"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // http.Transport complains of what instances send unasked
	goleak.VerifyTestMain(m)
}

// writes is where all transports' requests meet, as in the gateway.
var writes = cohort.New()

// server answers each connection with a function, and counts them.
type server struct {
	addr string
	url  string

	mu    sync.Mutex
	conns int
	open  map[net.Conn]bool
}

func (s *server) accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns
}

// kill closes all connections.
func (s *server) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		c.Close()
	}
}

// serve starts a raw server; n is the connection's number, from 0.
func serve(t testing.TB, handle func(c net.Conn, r *bufio.Reader, n int)) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: l.Addr().String(), url: "http://" + l.Addr().String() + "/", open: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			n := s.conns
			s.conns++
			s.open[c] = true
			s.mu.Unlock()
			wg.Go(func() {
				defer func() {
					c.Close()
					s.mu.Lock()
					delete(s.open, c)
					s.mu.Unlock()
				}()
				handle(c, bufio.NewReader(c), n)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.kill()
		wg.Wait()
	})
	return s
}

// answers starts a server that reads whole requests and gives each the same
// answer, as it is.
func answers(t testing.TB, answer string) *server {
	return serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
	})
}

// answersOnce is the like, but closes the connection after an answer.
func answersOnce(t testing.TB, answer string) *server {
	return serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
		if _, err := http.ReadRequest(r); err == nil {
			_, _ = io.WriteString(c, answer)
		}
	})
}

func client(t testing.TB, o transport.Options) *transport.Transport {
	t.Helper()
	o.Writes = writes
	tr := transport.New(o)
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		eventually(t, "connections left in use", func() bool { return tr.Stats().Active == 0 })
		tr.CloseIdleConnections()
		if s := tr.Stats(); s.Idle != 0 {
			t.Errorf("%d idle connections after CloseIdleConnections", s.Idle)
		}
	})
	return tr
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s after 10 s", what)
		}
	}
}

func request(t testing.TB, method, url string, body io.Reader) *http.Request {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// result is an answer that has been read.
type result struct {
	*http.Response
	body string
}

func do(t testing.TB, rt http.RoundTripper, req *http.Request) (result, error) {
	t.Helper()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return result{}, err
	}
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	return result{resp, string(b)}, err
}

func mustDo(t testing.TB, rt http.RoundTripper, req *http.Request) result {
	t.Helper()
	r, err := do(t, rt, req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	return r
}

// openFiles counts the process's descriptors, where that can be.
func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(d)
}

func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

func ok(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

var discard = log.New(io.Discard, "", 0)
