package consul_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/consul"
	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/parts"
)

func serving(t *testing.T, addr string, srv *http.Server, ln net.Listener, delay time.Duration) (end func() error) {
	t.Helper()
	client, err := consul.NewClient(consul.Options{Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdle)
	r, err := consul.NewRegistrar(client, consul.Registration{Name: "web", ID: "web-s", Address: "127.0.0.1", Port: ln.Addr().(*net.TCPAddr).Port,
		Check: consul.Check{HTTP: "/", Interval: time.Second}},
		consul.RegistrarOptions{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), DrainDelay: delay})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx, srv, ln) }()
	return func() error { cancel(); return <-done }
}

// Requests that a gateway sends until it has heard of the end, and those in
// flight, are all answered.
func TestServeGoesDownInOrder(t *testing.T) {
	t.Parallel()
	c := parts.StartConsul(t)
	w := watch(t, consul.Options{Addr: c.Addr}, consul.WatchOptions{}, query("web"))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	inside, leave := make(chan struct{}), make(chan struct{})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(inside)
			<-leave
		}
		_, _ = io.WriteString(w, "ok")
	})}
	first := make(chan discovery.Status, 100)
	cancel := w.catalog.Subscribe("web", func(s discovery.Snapshot) {
		for _, in := range s.Instances {
			first <- in.Status
		}
	})
	defer cancel()
	const delay = time.Second
	end := serving(t, c.Addr, srv, ln, delay)
	parts.Eventually(t, 5*time.Second, "it is registered and passing", func() bool { return w.first("web").Usable() })

	if got := <-first; got != discovery.StatusPassing {
		t.Errorf("its first state is %v: no traffic until Consul's first look", got)
	}

	url := "http://" + ln.Addr().String()
	slow := make(chan string, 1)
	go func() { _, text := get(t, url+"/slow"); slow <- text }()
	<-inside
	asked, ended := time.Now(), make(chan error, 1)
	go func() { ended <- end() }()
	parts.Eventually(t, 5*time.Second, "it is deregistered", func() bool { return w.first("web").ID == "" })
	if code, text := get(t, url); code != 200 && time.Since(asked) < delay { // later it may have stopped
		t.Errorf("a request right after the deregistration got %d %s", code, text)
	}
	parts.Eventually(t, 5*time.Second, "it stops accepting", func() bool {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	select {
	case err := <-ended:
		t.Fatalf("ended with a request in flight: %v", err)
	default:
	}
	close(leave)
	if text := <-slow; text != "ok" {
		t.Errorf("the request in flight got %q", text)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestServeDeregistersWhenTheServerFails(t *testing.T) {
	t.Parallel()
	c := parts.StartConsul(t)
	w := watch(t, consul.Options{Addr: c.Addr}, consul.WatchOptions{}, query("web"))
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := &failing{Listener: inner}
	end := serving(t, c.Addr, &http.Server{Handler: http.NotFoundHandler()}, ln, 0)
	parts.Eventually(t, 5*time.Second, "it is registered", func() bool { return w.first("web").ID != "" })
	ln.fail.Store(true)
	inner.Close()
	parts.Eventually(t, 5*time.Second, "it is deregistered", func() bool { return w.first("web").ID == "" })
	if err := end(); !errors.Is(err, errBroken) {
		t.Fatalf("ended with %v, want the server's error", err)
	}
}

var errBroken = errors.New("broken listener")

type failing struct {
	net.Listener
	fail atomic.Bool
}

func (f *failing) Accept() (net.Conn, error) {
	c, err := f.Listener.Accept()
	if f.fail.Load() {
		return nil, errBroken
	}
	return c, err
}
