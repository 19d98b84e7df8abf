package proxy_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"

	"github.com/proconsul/proconsul/pkg/breaker"
)

// discarder is the least a server's writer can be.
type discarder struct{ h http.Header }

func (d *discarder) Header() http.Header         { return d.h }
func (d *discarder) WriteHeader(int)             {}
func (d *discarder) Write(b []byte) (int, error) { return len(b), nil }
func (d *discarder) FlushError() error           { return nil }

// buffers are what a tuned ReverseProxy copies through.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }

// cheapBackend answers each request with 1 KiB and does no more than that, so
// that it hardly counts in a benchmark.
func cheapBackend(b *testing.B) string {
	body := make([]byte, 1024)
	answer := append([]byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Sat, 21 Nov 2026 00:00:00 GMT\r\nContent-Length: 1024\r\n\r\n"), body...)
	return rawBackend(b, func(c net.Conn, r *bufio.Reader) {
		for {
			for {
				line, err := r.ReadSlice('\n')
				if err != nil {
					return
				}
				if len(line) == 2 {
					break
				}
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	})
}

// BenchmarkHandler is a whole request through the handler and a real
// connection, without the server: pool, breaker, transport, body.
func BenchmarkHandler(b *testing.B) {
	addr := cheapBackend(b)
	g := newGate(b, gateOptions{}, addr)
	ours := g.handler
	bare := newGate(b, gateOptions{breaker: breaker.Settings{Disabled: true}}, addr)
	target := &url.URL{Scheme: "http", Host: addr}
	tr := &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true}
	defer tr.CloseIdleConnections()
	stock := &httputil.ReverseProxy{Transport: tr, BufferPool: &buffers{}, Rewrite: func(p *httputil.ProxyRequest) {
		p.SetURL(target)
		p.SetXForwarded()
	}}
	for _, tt := range []struct {
		name string
		h    http.Handler
		g    *gate
	}{{"proconsul", ours, g}, {"breaker disabled", bare.handler, bare}, {"ReverseProxy", stock, nil}} {
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := &http.Request{Method: "GET", URL: &url.URL{Path: "/api/orders/42"}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
					Header: http.Header{"Accept": {"*/*"}, "User-Agent": {"bench"}}, Host: "shop.test", RemoteAddr: "203.0.113.9:1234", Body: http.NoBody}
				tt.h.ServeHTTP(&discarder{http.Header{}}, r.WithContext(b.Context()))
				if tt.g != nil {
					<-tt.g.finished
				}
			}
		})
	}
}

func BenchmarkEndToEnd(b *testing.B) {
	g := newGate(b, gateOptions{}, cheapBackend(b))
	c := client(b)
	b.ReportAllocs()
	for b.Loop() {
		resp, err := c.Get(g.url("/"))
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		<-g.finished
	}
}
