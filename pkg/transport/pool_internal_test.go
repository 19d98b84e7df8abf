package transport

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// A connection is used again without a look at it only where that costs nobody
// anything: right after its last request, for one that can be sent again, to an
// instance that has always kept to the protocol.
func TestConnectionsAreLookedAt(t *testing.T) {
	for name, tt := range map[string]struct {
		method string
		unused time.Duration
		odd    bool
		bare   bool
		looked bool
	}{
		"just used":            {method: "GET", unused: trust / 2},
		"unused for a while":   {method: "GET", unused: trust, looked: true},
		"not to be sent twice": {method: "POST", looked: true},
		"an odd instance":      {method: "GET", odd: true, looked: true},
		"after no body":        {method: "GET", bare: true, looked: true},
	} {
		synctest.Test(t, func(t *testing.T) {
			tr := New(Options{})
			h := &host{t: tr}
			h.odd.Store(tt.odd)
			c := &conn{t: tr, h: h, bare: tt.bare, idleSince: time.Since(tr.born)}
			h.idle = []*conn{c}
			time.Sleep(tt.unused)
			e := exchange{t: tr, req: &http.Request{Method: tt.method}}
			if got := h.take(e.idempotent(), time.Since(tr.born)); got != c || c.trusted == tt.looked {
				t.Errorf("%s: trusted is %v", name, c.trusted)
			}
		})
	}
}

// An instance that has once said more than its answer, or what is no answer, is
// not trusted any more.
func TestOddInstancesAreRemembered(t *testing.T) {
	for name, tt := range map[string]struct {
		answer string
		odd    bool
	}{
		"an answer":    {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false},
		"and some":     {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok more", true},
		"no answer":    {"SSH-2.0-x\r\n", true},
		"cut off":      {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", false},
		"wrong length": {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", true},
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					_, _ = io.WriteString(c, tt.answer)
				}
			}()
			tr := New(Options{})
			defer tr.CloseIdleConnections()
			req, err := http.NewRequest("GET", "http://"+ln.Addr().String(), nil)
			if err != nil {
				t.Fatal(err)
			}
			h := tr.enter(ln.Addr().String(), false)
			h.mu.Unlock()
			defer h.leave()
			if resp, err := tr.RoundTrip(req); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			if got := h.odd.Load(); got != tt.odd {
				t.Errorf("odd is %v", got)
			}
		})
	}
}
