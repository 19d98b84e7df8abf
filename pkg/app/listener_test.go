package app_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/app"
	"github.com/proconsul/proconsul/pkg/parts"
)

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("proconsul.yaml", []byte(text), config.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func quiet() app.Options {
	return app.Options{Log: slog.New(slog.DiscardHandler), AccessLog: io.Discard}
}

// TestTakenPort starts with a port that is not free: the error names it, and
// the listeners that had been opened by then are closed again.
func TestTakenPort(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	first := fmt.Sprintf("127.0.0.1:%d", parts.FreePorts(t, 1)[0])
	_, err = app.New(parse(t, fmt.Sprintf("version: 1\nconsul: {disabled: true}\nlisten:\n  - {name: one, addr: %q}\n  - {name: two, addr: %q}\n",
		first, taken.Addr())), quiet())
	if err == nil || !strings.Contains(err.Error(), "listener two") || !strings.Contains(err.Error(), taken.Addr().String()) {
		t.Errorf("got error %v, want one that names the listener and its address", err)
	}
	again, err := net.Listen("tcp", first)
	if err != nil {
		t.Fatalf("the first listener was left open: %v", err)
	}
	again.Close()
}

// TestReplicasShareAPort starts two replicas on one address: the kernel spreads
// connections over them, and after one has gone all go to the other. A process
// that does not say that it shares is turned away.
func TestReplicasShareAPort(t *testing.T) {
	t.Parallel()
	bin := binaries(t)
	config := fixed(bin.StartEcho(t, parts.EchoOptions{Name: "echo", ID: "echo-1"})) +
		"shutdown: {delay: 0s, grace: 10s}\nroutes: [{name: echo, match: {path: /}, upstream: {service: echo}}]\n"
	first := bin.StartReplica(t, parts.ReplicaOptions{Config: config, Listener: "reuse_port: true"})
	second := bin.StartReplica(t, parts.ReplicaOptions{Config: config, Listener: "reuse_port: true", Addr: first.Addr})
	if _, err := app.New(parse(t, fmt.Sprintf("version: 1\nconsul: {disabled: true}\nlisten: [{name: alone, addr: %q}]\n", first.Addr)), quiet()); err == nil || !strings.Contains(err.Error(), "listener alone") {
		t.Errorf("a listener that does not share got error %v, want one that names it", err)
	}

	served := func(r *parts.Replica) float64 {
		n, _ := r.Metric("proconsul_requests_total", "route", "echo")
		return n
	}
	get := func() {
		t.Helper()
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Get(first.URL("/"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("status %d", resp.StatusCode)
		}
	}
	parts.Eventually(t, patience, "one of the two replicas gets no connection", func() bool {
		get()
		return served(first) > 0 && served(second) > 0
	})

	first.Signal(syscall.SIGTERM)
	if code := first.Wait(patience); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
	before := served(second)
	for range 50 {
		get()
	}
	if n := served(second) - before; n != 50 {
		t.Errorf("the replica that is left has served %.0f of 50 requests", n)
	}
}

// TestClientsThatTakeNothing asks for more than connections hold: a client that
// does not read is cut off, and one that reads slowly gets all of it.
func TestClientsThatTakeNothing(t *testing.T) {
	t.Parallel()
	bin := binaries(t)
	e := bin.StartEcho(t, parts.EchoOptions{Name: "echo", ID: "echo-1"})
	for _, engine := range []string{"fast", "std"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			r := bin.StartReplica(t, parts.ReplicaOptions{
				Config:   fixed(e) + "routes: [{name: echo, match: {path: /}, upstream: {service: echo}}]\n",
				Listener: "engine: " + engine + ", timeouts: {body_write: 2s}",
			})
			const size = 24 << 20
			ask := func() net.Conn {
				c, err := net.Dial("tcp", r.Addr)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				if err := c.(*net.TCPConn).SetReadBuffer(32 << 10); err != nil {
					t.Fatal(err)
				}
				_, _ = fmt.Fprintf(c, "GET /?size=%d HTTP/1.1\r\nHost: x\r\n\r\n", size)
				return c
			}
			stuck, slow := ask(), ask()
			resp, err := http.ReadResponse(bufio.NewReaderSize(slow, 4<<10), nil)
			if err != nil {
				t.Fatal(err)
			}
			// It pauses for less than it may, again and again, for longer than
			// that in all.
			pause, read := time.NewTicker(250*time.Millisecond), int64(0)
			defer pause.Stop()
			for read < size {
				<-pause.C
				n, err := io.CopyN(io.Discard, resp.Body, size/16)
				if read += n; err != nil && err != io.EOF {
					t.Fatalf("a slow client was cut off after %d of %d bytes: %v", read, size, err)
				}
			}
			parts.Eventually(t, patience, "the gateway still waits for a client that takes nothing", func() bool {
				n, _ := r.Metric("proconsul_requests_total", "route", "echo")
				return n == 2
			})
			n, err := io.Copy(io.Discard, stuck)
			if n >= size {
				t.Errorf("a client that took nothing for long got all of it (%v)", err)
			}
		})
	}
}

// TestHalfClosedTunnel ends an instance's direction of a switched connection:
// the client hears of it, and what it says after that still arrives.
func TestHalfClosedTunnel(t *testing.T) {
	instance, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer instance.Close()
	heard := make(chan string, 1)
	go func() {
		defer close(heard)
		c, err := instance.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\nbye")
		_ = c.(*net.TCPConn).CloseWrite()
		rest, _ := io.ReadAll(r)
		heard <- string(rest)
	}()
	a, err := app.New(parse(t, fmt.Sprintf(`version: 1
listen: [{name: public, addr: "127.0.0.1:0"}]
admin: {addr: "127.0.0.1:0"}
consul: {disabled: true}
shutdown: {delay: 0s, grace: 1s}
upstreams: [{name: chat, instances: [{address: %q}]}]
routes: [{name: chat, match: {path: /}, upstream: {service: chat}}]
`, instance.Addr())), quiet())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	<-a.Ready()

	c, err := net.Dial("tcp", a.Addr("public"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n")
	answer, err := io.ReadAll(c) // until the instance's direction ends
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 101 ") || !strings.HasSuffix(string(answer), "\r\n\r\nbye") {
		t.Fatalf("client got %q, %v", answer, err)
	}
	if _, err := io.WriteString(c, "one more word"); err != nil {
		t.Errorf("the client's direction was ended with the instance's: %v", err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	if got := <-heard; got != "one more word" {
		t.Errorf("instance heard %q after it had said its last", got)
	}
}
