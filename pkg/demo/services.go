package demo

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/consul"
	"github.com/proconsul/proconsul/pkg/echo"
)

// instance is one sample service. Killing it closes its sockets and leaves its
// registration behind, as a crash does.
type instance struct {
	name, id, version string
	weight            int
	log               *slog.Logger

	delay atomic.Int64 // nanoseconds, before every answer
	fails atomic.Bool  // every other answer is a 500
	count atomic.Int64
	gone  atomic.Bool // has deregistered

	mu   sync.Mutex
	port int
	srv  *http.Server // nil while dead
}

// sampleServices is what the demo runs.
func sampleServices(log *slog.Logger) []*instance {
	list := []*instance{
		{name: "orders", id: "orders-1", version: "v1", weight: 10},
		{name: "orders", id: "orders-2", version: "v1", weight: 10},
		{name: "orders", id: "orders-3", version: "v2-canary", weight: 1},
		{name: "users", id: "users-1", version: "v1", weight: 1},
		{name: "users", id: "users-2", version: "v1", weight: 1},
		{name: "inventory", id: "inventory-1", version: "v1", weight: 1},
		{name: "inventory", id: "inventory-2", version: "v1", weight: 1},
		{name: "flaky", id: "flaky-1", version: "v1", weight: 1},
		{name: "flaky", id: "flaky-2", version: "v1", weight: 1},
	}
	for _, in := range list {
		in.log = log.With("component", "service", "instance", in.id)
	}
	return list
}

func (d *demo) startServices(ctx context.Context, running *sync.WaitGroup, catalog string) error {
	client, err := consul.NewClient(consul.Options{Addr: catalog})
	if err != nil {
		return err
	}
	d.services = sampleServices(d.o.Log)
	registered := make(chan struct{}, len(d.services))
	for _, in := range d.services {
		if err := in.start(); err != nil {
			return err
		}
		r, err := consul.NewRegistrar(client, consul.Registration{
			Name: in.name, ID: in.id, Address: "127.0.0.1", Port: in.port, Meta: map[string]string{"version": in.version},
			Weights: consul.Weights{Passing: in.weight, Warning: 1},
			// Long enough for the gateway's own traffic to be the first to find
			// an instance dead, which is what there is to see.
			Check: consul.Check{HTTP: "/healthz", Interval: 3 * time.Second},
		}, consul.RegistrarOptions{Log: in.log, OnRegistered: func(string, string) {
			select {
			case registered <- struct{}{}:
			default: // a repair
			}
		}})
		if err != nil {
			return err
		}
		running.Go(func() {
			_ = r.Run(ctx) // what it cannot deregister goes with the catalog
			in.gone.Store(true)
			in.kill()
		})
	}
	for range d.services {
		select {
		case <-registered:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (d *demo) servicesGone() bool {
	for _, in := range d.services {
		if !in.gone.Load() {
			return false
		}
	}
	return true
}

// start listens, on the port that it had before if it was killed.
func (in *instance) start() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.srv != nil {
		return nil
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(in.port)))
	if err != nil {
		return err
	}
	in.port = l.Addr().(*net.TCPAddr).Port
	in.srv = &http.Server{Handler: in.handler(), ReadHeaderTimeout: 10 * time.Second}
	go in.serve(in.srv, l) // ends when kill closes the server, which Run waits for
	return nil
}

func (in *instance) serve(srv *http.Server, l net.Listener) {
	if err := srv.Serve(l); err != http.ErrServerClosed {
		in.log.Error("sample service ended", "err", err)
	}
}

// kill closes every socket at once.
func (in *instance) kill() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.srv != nil {
		_ = in.srv.Close() // a crash asks nobody
		in.srv = nil
	}
}

// handler is the sample service with the demo's faults in front of it. Health
// checks are never slow and never fail while the process lives.
func (in *instance) handler() http.Handler {
	service := echo.New(echo.Options{Name: in.name, ID: in.id, Version: in.version})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			q := url.Values{}
			if delay := time.Duration(in.delay.Load()); delay > 0 {
				q.Set("delay", delay.String())
			}
			if in.fails.Load() {
				q.Set("status", "500")
			}
			if len(q) > 0 {
				r.URL.RawQuery = q.Encode()
			}
		}
		service.ServeHTTP(w, r)
	})
}

func waitFor(limit time.Duration, done func() bool) {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-timeout.C:
			return
		case <-tick.C:
		}
	}
}
