package app_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/app"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/parts"
)

// shape is what a whole request goes through, for benchmarks and budgets.
type shape struct {
	name     string
	listener string // engine of the listener
	upstream string // engine of the upstream
	breaker  string // engine of the breaker; empty: it is disabled
	full     bool   // 100 routes, access log and a limit too
	routes   int    // 0: 1, or 100 where full
	body     int    // bytes of the answer; 0: 1 KiB
	upload   int    // bytes of the request
}

// text is the configuration of a gateway of that shape.
func (s shape) text(backend string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\nconsul: {disabled: true}\nadmin: {addr: 127.0.0.1:0}\nlisten: [{name: bench, addr: 127.0.0.1:0%s}]\n", s.engine())
	breaker := "{disabled: true}"
	if s.breaker != "" {
		breaker = "{engine: " + s.breaker + "}"
	}
	fmt.Fprintf(&b, "upstreams:\n  - {name: backend, instances: [{address: %q}], engine: %s, breaker: %s}\n", backend, s.upstream, breaker)
	routes, extra := max(s.routes, 1), ""
	if s.full {
		routes = max(s.routes, 100)
		extra = ", rate_limit: {by: client_ip, limits: [1000000000/1m]}"
	} else {
		b.WriteString("access_log: {disabled: true}\n")
	}
	b.WriteString("routes:\n")
	for i := range routes {
		fmt.Fprintf(&b, "  - {name: r%d, match: {path: \"/service%d/{id}\"}, upstream: {service: backend}%s}\n", i, i, extra)
	}
	return b.String()
}

func (s shape) engine() string {
	return ", engine: " + s.listener
}

// backend answers every request alike and allocates nothing while it does.
func (s shape) backend(tb testing.TB) string {
	size := s.body
	if size == 0 {
		size = 1 << 10
	}
	answer := []byte("HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 00:00:00 GMT\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nContent-Length: " +
		strconv.Itoa(size) + "\r\n\r\n" + strings.Repeat("x", size))
	return listenRaw(tb, func(c net.Conn) {
		buf := make([]byte, 256<<10)
		for {
			if !readMessage(c, buf) {
				return
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	})
}

// listenRaw serves connections until the test ends, and waits for them then.
func listenRaw(tb testing.TB, serve func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	tb.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

var (
	headEnd  = []byte("\r\n\r\n")
	lengthIs = []byte("\r\nContent-Length: ")
	statusOK = []byte("HTTP/1.1 200 ")
)

// readMessage reads one message with a Content-Length, or without a body, and
// nothing after it; buf has room for the head and some of the body. It
// allocates nothing.
func readMessage(c net.Conn, buf []byte) bool {
	n := 0
	for {
		m, err := c.Read(buf[n:])
		if err != nil {
			return false
		}
		n += m
		end := bytes.Index(buf[:n], headEnd)
		if end < 0 {
			continue
		}
		left := 0
		if i := bytes.Index(buf[:end], lengthIs); i >= 0 {
			for _, d := range buf[i+len(lengthIs) : end] {
				if d < '0' || d > '9' {
					break
				}
				left = left*10 + int(d-'0')
			}
		}
		left -= n - end - len(headEnd)
		for left > 0 {
			if m, err = c.Read(buf[end:]); err != nil { // the head stays
				return false
			}
			left -= m
		}
		return true
	}
}

// caller is one keep-alive connection of a client.
type caller struct {
	c       net.Conn
	request []byte
	buf     []byte
}

func newCaller(tb testing.TB, addr, path string, upload int) *caller {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	method, length := "GET", ""
	if upload > 0 {
		method, length = "POST", "Content-Length: "+strconv.Itoa(upload)+"\r\n"
	}
	return &caller{c: c, buf: make([]byte, 256<<10), request: []byte(method + " " + path + " HTTP/1.1\r\nHost: shop.test\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n" +
		"Accept-Encoding: gzip\r\n" + length + "\r\n" + strings.Repeat("u", upload))}
}

// call makes one request and reports whether it was answered 200.
func (c *caller) call() bool {
	_, err := c.c.Write(c.request)
	return err == nil && readMessage(c.c, c.buf) && bytes.HasPrefix(c.buf, statusOK)
}

// start runs a gateway of that shape in front of its backend.
func (s shape) start(tb testing.TB) *app.App {
	cfg, err := config.Parse("bench.yaml", []byte(s.text(s.backend(tb))), config.LoadOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	cfg.Shutdown.Delay = 0
	a, err := app.New(cfg, app.Options{Log: slog.New(slog.DiscardHandler), AccessLog: io.Discard})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
	<-a.Ready()
	return a
}

// TestAllocations holds what a request may allocate: with the server around
// it, and from the listener's handler to the backend and back. What a machine
// is and does changes nothing about it.
func TestAllocations(t *testing.T) {
	if !middleware.Reuse {
		t.Log("the race detector makes allocations of its own")
		return
	}
	for _, tt := range []struct {
		shape
		whole, handler float64
	}{
		{shape{name: "plain", listener: "std", upstream: "fast"}, 26, 4},
		{shape{name: "full", listener: "std", upstream: "fast", breaker: "direct", full: true}, 34, 10},
		{shape{name: "plain, fast", listener: "fast", upstream: "fast"}, 6, 4},
		{shape{name: "full, fast", listener: "fast", upstream: "fast", breaker: "direct", full: true}, 14, 10},
	} {
		a := tt.start(t)
		c := newCaller(t, a.Addr(""), "/service0/42", 0)
		call := func() {
			if !c.call() {
				t.Fatal("no answer")
			}
		}
		for range 100 { // buffers, series, connections
			call()
		}
		got := testing.AllocsPerRun(2000, call)
		h := newBare(a.Handler())
		for range 100 {
			h.serve()
		}
		bare := testing.AllocsPerRun(2000, h.serve)
		t.Logf("%s: %v, of them the handler %v", tt.name, got, bare)
		if got > tt.whole || bare > tt.handler {
			t.Errorf("%s: a request makes %v allocations, of them the handler %v; want at most %v and %v", tt.name, got, bare, tt.whole, tt.handler)
		}
		if h.status != http.StatusOK {
			t.Errorf("%s: got status %d", tt.name, h.status)
		}
	}
}

// bare calls a handler with one request and one writer again and again, as a
// server would that makes nothing anew.
type bare struct {
	handler http.Handler
	request http.Request
	url     url.URL
	header  http.Header // of the request
	fields  http.Header // what it begins with
	answer  http.Header
	status  int
}

func newBare(h http.Handler) *bare {
	return &bare{handler: h, header: make(http.Header, 32), answer: make(http.Header, 32),
		fields: http.Header{"User-Agent": {"bench/1.0"}, "Accept": {"*/*"}, "Accept-Encoding": {"gzip"}}}
}

func (b *bare) serve() {
	clear(b.header)
	clear(b.answer)
	for name, values := range b.fields {
		b.header[name] = values
	}
	b.url = url.URL{Path: "/service0/42"}
	b.request = http.Request{Method: "GET", URL: &b.url, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: b.header,
		Host: "shop.test", RemoteAddr: "203.0.113.9:1234", RequestURI: "/service0/42", Body: http.NoBody}
	b.handler.ServeHTTP(b, &b.request)
}

func (b *bare) Header() http.Header         { return b.answer }
func (b *bare) WriteHeader(status int)      { b.status = status }
func (b *bare) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkRequest is a whole request over loopback sockets: a client that
// allocates nothing, the gateway, and a backend that allocates nothing, all in
// one process. allocs/op and B/op are therefore the gateway's alone; cpu-us/op
// is of all three, and "direct" says what the client and the backend take of
// it.
func BenchmarkRequest(b *testing.B) {
	b.Run("direct", func(b *testing.B) { load(b, shape{}.backend(b), []string{"/service0/42"}, 0) })
	for _, s := range []shape{
		{name: "plain", listener: "std", upstream: "std"},
		{name: "plain", listener: "std", upstream: "fast"},
		{name: "plain", listener: "fast", upstream: "fast"},
		{name: "full", listener: "std", upstream: "std", breaker: "direct", full: true},
		{name: "full", listener: "std", upstream: "fast", breaker: "direct", full: true},
		{name: "full", listener: "fast", upstream: "fast", breaker: "direct", full: true},
		{name: "full command", listener: "fast", upstream: "fast", breaker: "command", full: true},
		{name: "full 1000 routes", listener: "fast", upstream: "fast", breaker: "direct", full: true, routes: 1000},
		{name: "post 512B", listener: "std", upstream: "fast", upload: 512},
		{name: "post 512B", listener: "fast", upstream: "fast", upload: 512},
		{name: "post 100KiB", listener: "std", upstream: "std", upload: 100 << 10},
		{name: "post 100KiB", listener: "fast", upstream: "fast", upload: 100 << 10},
		{name: "get 10KiB", listener: "std", upstream: "fast", body: 10 << 10},
		{name: "get 10KiB", listener: "fast", upstream: "fast", body: 10 << 10},
		{name: "get 100KiB", listener: "std", upstream: "std", body: 100 << 10},
		{name: "get 100KiB", listener: "fast", upstream: "fast", body: 100 << 10},
	} {
		b.Run(s.name+"/"+s.listener+"-"+s.upstream, func(b *testing.B) {
			paths := make([]string, max(s.routes, 1))
			for i := range paths {
				paths[i] = fmt.Sprintf("/service%d/42", i*7919%len(paths))
			}
			load(b, s.start(b).Addr(""), paths, s.upload)
		})
	}
}

// load sends requests over 64 connections at once, each with one of the paths.
func load(b *testing.B, addr string, paths []string, upload int) {
	const connections = 64
	callers := make(chan *caller, connections)
	for i := range connections {
		c := newCaller(b, addr, paths[i*len(paths)/connections%len(paths)], upload)
		for range 20 { // connections, buffers, series
			if !c.call() {
				b.Fatal("no answer")
			}
		}
		callers <- c
	}
	b.ReportAllocs()
	b.SetParallelism(connections / 2) // times GOMAXPROCS
	b.ResetTimer()
	before := parts.CPU(b)
	b.RunParallel(func(pb *testing.PB) {
		var c *caller
		select {
		case c = <-callers:
		default: // more processors than connections can keep busy
			return
		}
		for pb.Next() {
			if !c.call() {
				b.Error("no answer")
				return
			}
		}
	})
	b.ReportMetric(float64((parts.CPU(b)-before).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
}
