package transport

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
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

// A connection that is unused holds nothing of a header that was too large to be
// remembered, nor of one before the last.
func TestHeadersAreLetGo(t *testing.T) {
	large := strings.Repeat("A: 1\r\n", 1000)
	small := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	longer := "HTTP/1.1 200 OK\r\nB: 1\r\nB: 2\r\nB: 3\r\nContent-Length: 2\r\n\r\nok"
	for name, answers := range map[string][]string{
		"large":         {"HTTP/1.1 200 OK\r\n" + large + "Content-Length: 2\r\n\r\nok"},
		"large interim": {"HTTP/1.1 103 Early Hints\r\n" + large + "\r\n" + small},
		"longer before": {longer, small},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer theirs.Close()
			go func() {
				r := bufio.NewReader(theirs)
				for _, a := range answers {
					if _, err := http.ReadRequest(r); err != nil {
						return
					}
					_, _ = io.WriteString(theirs, a)
				}
			}()
			tr := New(Options{Dial: func(context.Context, string, string) (net.Conn, error) { return ours, nil }})
			defer tr.CloseIdleConnections()
			for range answers {
				req, err := http.NewRequest("GET", "http://instance:1/", nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := tr.RoundTripInto(req, &Memory{}, time.Time{})
				if err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(resp.Body); string(b) != "ok" || err != nil {
					t.Fatalf("got %q, %v", b, err)
				}
			}
			h := tr.enter("instance:1", false)
			defer h.leave()
			defer h.mu.Unlock()
			if len(h.idle) != 1 {
				t.Fatalf("%d connections are kept, want one", len(h.idle))
			}
			c := h.idle[0]
			if n := cap(c.head.lines); n > 16 {
				t.Errorf("there is room for %d lines", n)
			}
			for _, l := range c.head.lines[len(c.head.lines):cap(c.head.lines)] {
				if l.Name != "" || l.Value != "" {
					t.Errorf("%v is kept", l)
				}
			}
			if len(c.head.text) > 0 && c.last == "" {
				t.Errorf("%q is kept of a header that is not", c.head.text)
			}
		})
	}
}
