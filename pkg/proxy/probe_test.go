package proxy_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/proxy"
)

func TestProbe(t *testing.T) {
	var seen atomic.Value
	alive := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		line, _ := r.ReadString('\n')
		seen.Store(strings.TrimSpace(line))
		_, _ = io.WriteString(c, "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
	})
	var n atomic.Int64
	g := newGate(t, gateOptions{}, backend(t, func(http.ResponseWriter, *http.Request) {}))
	probe := func(address string, patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return g.up.Probe(ctx, address)
	}
	if err := probe(alive, 10*time.Second); err != nil {
		t.Errorf("an instance that answers: %v", err)
	}
	if got := seen.Load(); got != "OPTIONS * HTTP/1.1" {
		t.Errorf("it was asked %q", got)
	}
	for _, how := range []string{"refused", "silent", "reset", "garbage"} {
		patience := 10 * time.Second
		if how == "silent" {
			patience = 300 * time.Millisecond
		}
		if err := probe(failing(t, how, &n), patience); err == nil || !strings.HasPrefix(err.Error(), "probe 127.0.0.1:") {
			t.Errorf("%s: got %v", how, err)
		}
	}
}

// An answer that breaks off after its header is one try, and one failure of
// it, whether another try follows or not.
func TestBrokenAnswersAreAccountedFor(t *testing.T) {
	var n atomic.Int64
	g := newGate(t, gateOptions{}, failing(t, "torn", &n), failing(t, "torn", &n))
	g.settings.Retry.Attempts = 1
	if err := g.up.Configure(g.settings); err != nil {
		t.Fatal(err)
	}
	if resp := do(t, client(t), request(t, "GET", g.url("/"), nil)); resp.StatusCode != 502 {
		t.Fatalf("status %d", resp.StatusCode)
	}
	var told, broken []proxy.Attempt
	for _, a := range g.tries() {
		if a.Broken {
			broken = append(broken, a)
		} else {
			told = append(told, a)
		}
	}
	if len(told) != 2 || len(broken) != 2 || !broken[0].Retried || broken[1].Retried || broken[0].Failure != "reset" || broken[1].Number != 1 {
		t.Errorf("tries %+v\nbroken %+v", told, broken)
	}
	if x := g.exchange(); len(x.Attempts) != 2 || x.Attempts[0].Reason != "upstream_reset" {
		t.Errorf("account %+v", x.Attempts)
	}
}
