package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/front"
)

// engines runs a test behind either server, since what happens to a connection
// after an answer is the server's doing.
func engines(t *testing.T, test func(t *testing.T, serve func(http.Handler) (addr string))) {
	t.Run("std", func(t *testing.T) {
		test(t, func(h http.Handler) string {
			srv := httptest.NewServer(h)
			t.Cleanup(srv.Close)
			return srv.Listener.Addr().String()
		})
	})
	t.Run("fast", func(t *testing.T) {
		test(t, func(h http.Handler) string {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			srv := front.New(front.Options{Handler: h})
			ended := make(chan error, 1)
			go func() { ended <- srv.Serve(l) }()
			t.Cleanup(func() {
				_ = srv.Close()
				<-ended
			})
			return l.Addr().String()
		})
	})
}

const one = `version: 1
listen: [{addr: ":0", limits: {max_body_bytes: 0}}]
routes: [{name: a, match: {path: "/**"}, upstream: {service: a}}]
`

// What is left of a request's body when its answer is over never becomes the
// next request.
func TestBodyNeverBecomesTheNextRequest(t *testing.T) { engines(t, bodyNeverBecomesTheNextRequest) }

func bodyNeverBecomesTheNextRequest(t *testing.T, serve func(http.Handler) (addr string)) {
	for _, tt := range []struct {
		name   string
		length int
		header string
	}{
		{"more than the server reads on its own", 2 << 20, ""},
		{"less than that", 100 << 10, ""},
		{"chunked", 2 << 20, "Transfer-Encoding: chunked\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var smuggled atomic.Int32
			rig := newRig(t, map[string]http.Handler{"a": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/smuggled" {
					smuggled.Add(1)
				}
				w.WriteHeader(http.StatusUnauthorized)
			})})
			_, h := rig.handler(one)
			conn, err := net.Dial("tcp", serve(h))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			const inner = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
			body := strings.Repeat(inner, tt.length/len(inner))
			if tt.header == "" {
				fmt.Fprintf(conn, "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", len(body))
			} else {
				fmt.Fprintf(conn, "POST /x HTTP/1.1\r\nHost: a\r\n%s\r\n", tt.header)
				body = fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
			}
			br := bufio.NewReader(conn)
			answered := make(chan *http.Response, 1)
			go func() {
				resp, err := http.ReadResponse(br, nil)
				if err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
				}
				answered <- resp
			}()
			// Slowly at first, so that the answer is there before the body.
			for len(body) > 0 {
				n := min(len(body), 16<<10)
				if _, err := io.WriteString(conn, body[:n]); err != nil {
					break // the gateway has closed: as good as anything
				}
				body = body[n:]
				time.Sleep(time.Millisecond)
			}
			if resp := <-answered; resp != nil && resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("status %d", resp.StatusCode)
			}
			// Whatever else comes on the connection must not be an answer.
			if c, ok := conn.(*net.TCPConn); ok {
				_ = c.CloseWrite()
			}
			if rest, _ := io.ReadAll(br); len(rest) > 0 {
				t.Errorf("another answer: %.100q", rest)
			}
			if n := smuggled.Load(); n > 0 {
				t.Errorf("%d requests out of a body", n)
			}
		})
	}
}

// A client whose body is on its way while the gateway answers itself loses
// neither the answer nor the next request on its connection.
func TestAnswerBeforeTheBodyKeepsTheConnection(t *testing.T) {
	engines(t, answerBeforeTheBodyKeepsTheConnection)
}

func answerBeforeTheBodyKeepsTheConnection(t *testing.T, serve func(http.Handler) (addr string)) {
	rig := newRig(t, map[string]http.Handler{"a": saw})
	rig.pools["a"].Set(discovery.Snapshot{}) // nobody is there
	_, h := rig.handler(one)
	conn, err := net.Dial("tcp", serve(h))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	br := bufio.NewReader(conn)
	for i := range 20 {
		fmt.Fprint(conn, "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
		time.Sleep(5 * time.Millisecond) // the gateway could answer
		_, _ = io.WriteString(conn, "hello")
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Close {
			t.Fatalf("request %d: %d, close %v", i, resp.StatusCode, resp.Close)
		}
	}
}

// An answer that comes after the body, as nearly all do, costs no connection.
func TestBodiesKeepTheConnection(t *testing.T) { engines(t, bodiesKeepTheConnection) }

func bodiesKeepTheConnection(t *testing.T, serve func(http.Handler) (addr string)) {
	rig := newRig(t, map[string]http.Handler{"a": saw})
	_, h := rig.handler(one)
	conn, err := net.Dial("tcp", serve(h))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	br := bufio.NewReader(conn)
	for i := range 20 {
		if i%2 == 0 {
			fmt.Fprint(conn, "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
		} else {
			fmt.Fprint(conn, "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		if resp.StatusCode != http.StatusOK || resp.Close {
			t.Fatalf("request %d: %d, close %v", i, resp.StatusCode, resp.Close)
		}
	}
}
