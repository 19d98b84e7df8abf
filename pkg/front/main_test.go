package front_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/proconsul/proconsul/pkg/cohort"
	"github.com/proconsul/proconsul/pkg/front"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(loadVariable); spec != "" {
		load(spec)
		return
	}
	goleak.VerifyTestMain(m)
}

const patience = 20 * time.Second

// writes is where all servers' answers meet, as in the gateway.
var writes = cohort.New()

// server is a front on a port of its own.
type server struct {
	*front.Server
	addr string
}

// serve starts one, which ends with the test.
func serve(t testing.TB, o front.Options, h http.HandlerFunc) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, o, h)
}

func serveOn(t testing.TB, l net.Listener, o front.Options, h http.HandlerFunc) *server {
	t.Helper()
	if h != nil {
		o.Handler = h
	}
	o.Writes = writes
	s := &server{front.New(o), l.Addr().String()}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve ended with %v", err)
		}
		eventually(t, "connections are left", func() bool { return s.Stats().Open == 0 })
	})
	return s
}

// wire is a client's connection.
type wire struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

func dial(t testing.TB, addr string) *wire {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return &wire{t, c, bufio.NewReader(c)}
}

// say sends text, whose line ends may be bare.
func (w *wire) say(text string) {
	w.t.Helper()
	if _, err := io.WriteString(w, crlf(text)); err != nil {
		w.t.Fatalf("send: %v", err)
	}
}

// reply is an answer that has been read.
type reply struct {
	*http.Response
	body string
	err  error // of reading the body
}

// hear reads an answer to a request of that method.
func (w *wire) hear(method string) reply {
	w.t.Helper()
	resp, err := http.ReadResponse(w.r, &http.Request{Method: method})
	if err != nil {
		w.t.Fatalf("read an answer: %v", err)
	}
	b, err := io.ReadAll(resp.Body)
	return reply{resp, string(b), err}
}

// ends reports that nothing more comes, and nothing did.
func (w *wire) ends() {
	w.t.Helper()
	b, err := io.ReadAll(w.r)
	if len(b) > 0 || err != nil && !strings.Contains(err.Error(), "reset by peer") {
		w.t.Errorf("want the end of the connection, got %.200q, %v", b, err)
	}
}

func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s after %v", what, patience)
		}
	}
}

func background() context.Context { return context.Background() }
