package echo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/proconsul/proconsul/consul"
)

// Config is one instance as a process: what it is, where it listens, how it
// registers.
type Config struct {
	Options
	Addr string // to listen on and to register; default 127.0.0.1
	Port int    // 0: a free one
	Tags []string
	Meta map[string]string
	// Weight is Consul's weight while passing, and while warning; 0: 1.
	Weight int
	// Consul is how to reach the agent; nil: do not register.
	Consul        *consul.Options
	CheckInterval time.Duration // 0: 1s
	// DrainDelay and Grace are those of consul.RegistrarOptions.
	DrainDelay time.Duration
	Grace      time.Duration
	Log        *slog.Logger // nil: slog.Default
	// Ready, if set, is called with the instance's handler and address: once
	// it is registered, or with no Consul, once it listens.
	Ready func(s *Server, addr string)
}

// Run serves one instance until ctx ends: it listens, registers itself,
// deregisters when it is told to end, drains and returns nil. Consul's absence
// is no reason to end.
func Run(ctx context.Context, c Config) error {
	if c.Name == "" {
		return errors.New("echo: name is empty")
	}
	if c.FailRate < 0 || c.FailRate > 1 {
		return fmt.Errorf("echo: fail rate %v is not between 0 and 1", c.FailRate)
	}
	if c.Delay < 0 || c.Delay > maxDelay {
		return fmt.Errorf("echo: delay %v is not between 0 and %v", c.Delay, maxDelay)
	}
	if c.Places < 0 {
		return fmt.Errorf("echo: places %d are below 0", c.Places)
	}
	if c.Addr == "" {
		c.Addr = "127.0.0.1"
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Weight == 0 {
		c.Weight = 1
	}
	if c.CheckInterval == 0 {
		c.CheckInterval = time.Second
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(c.Addr, strconv.Itoa(c.Port)))
	if err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	if c.ID == "" {
		c.ID = defaultID(c.Name, port)
	}
	if c.Version == "" {
		c.Version = c.Meta["version"]
	}
	handler := New(c.Options)
	srv := newServer(handler, c.Log)

	// An unspecified address is one to listen on, not one to be reached at:
	// the registrar finds that out by how the agent is reached.
	address := c.Addr
	if ip := net.ParseIP(address); ip != nil && ip.IsUnspecified() {
		address = ""
	}
	ready := func(addr string) {
		c.Log.Info("echo ready", "service", c.Name, "instance", c.ID, "address", addr)
		if c.Ready != nil {
			c.Ready(handler, addr)
		}
	}
	if c.Consul == nil {
		ready(ln.Addr().String())
		return serve(ctx, srv, ln, c.Grace)
	}
	client, err := consul.NewClient(*c.Consul)
	if err != nil {
		ln.Close()
		return fmt.Errorf("echo: %w", err)
	}
	defer client.CloseIdle()
	registrar, err := consul.NewRegistrar(client, consul.Registration{Name: c.Name, ID: c.ID, Address: address, Port: port,
		Tags: c.Tags, Meta: c.Meta, Weights: consul.Weights{Passing: c.Weight, Warning: c.Weight},
		Check: consul.Check{HTTP: "/healthz", Interval: c.CheckInterval}},
		consul.RegistrarOptions{Log: c.Log, DrainDelay: c.DrainDelay, Grace: c.Grace, OnRegistered: onFirst(ready)})
	if err != nil {
		ln.Close()
		return fmt.Errorf("echo: %w", err)
	}
	return registrar.Serve(ctx, srv, ln)
}

// onFirst calls ready for the first registration only: a repair is none.
func onFirst(ready func(string)) func(id, addr string) {
	done := false
	return func(_, addr string) {
		if !done {
			done = true
			ready(addr)
		}
	}
}

func defaultID(name string, port int) string {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return fmt.Sprintf("%s-%s-%d", name, host, port)
}

func newServer(h http.Handler, log *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // for upstreams of scheme h2c
	return &http.Server{Handler: h, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
}

// serve is the way without Consul.
func serve(ctx context.Context, srv *http.Server, ln net.Listener, grace time.Duration) error {
	if grace == 0 {
		grace = 30 * time.Second
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	rest, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err := srv.Shutdown(rest)
	if err != nil {
		_ = srv.Close()
	}
	<-done
	return err
}
