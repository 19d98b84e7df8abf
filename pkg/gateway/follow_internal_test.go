package gateway

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func showing(t *testing.T, method, target string, tokens ...string) *http.Request {
	t.Helper()
	r := httptest.NewRequest(method, target, nil)
	for _, token := range tokens {
		r.Header.Add(TraceHeader, token)
	}
	return r
}

// A ticket is good once, for the request that it was made for, for a while,
// and for no gateway but the one that made it. Whatever it is, it goes no
// further.
func TestTickets(t *testing.T) {
	const url = "http://shop.test/a?b=c"
	flip := func(token string, i int) string {
		b := []byte(token)
		if b[i] == 'A' {
			b[i] = 'B'
		} else {
			b[i] = 'A'
		}
		return string(b)
	}
	tests := []struct {
		name string
		show func(h *Handler, token string) *http.Request
		good bool
	}{
		{"the request", func(_ *Handler, token string) *http.Request { return showing(t, "GET", url, token) }, true},
		{"another method", func(_ *Handler, token string) *http.Request { return showing(t, "POST", url, token) }, false},
		{"another host", func(_ *Handler, token string) *http.Request {
			return showing(t, "GET", "http://other.test/a?b=c", token)
		}, false},
		{"another path", func(_ *Handler, token string) *http.Request {
			return showing(t, "GET", "http://shop.test/b?b=c", token)
		}, false},
		{"another query", func(_ *Handler, token string) *http.Request {
			return showing(t, "GET", "http://shop.test/a?b=d", token)
		}, false},
		{"twice in one request", func(_ *Handler, token string) *http.Request { return showing(t, "GET", url, token, token) }, false},
		{"another id", func(_ *Handler, token string) *http.Request { return showing(t, "GET", url, flip(token, 3)) }, false},
		{"a longer life", func(_ *Handler, token string) *http.Request { return showing(t, "GET", url, flip(token, 24)) }, false},
		{"another signature", func(_ *Handler, token string) *http.Request { return showing(t, "GET", url, flip(token, 60)) }, false},
		{"cut", func(_ *Handler, token string) *http.Request { return showing(t, "GET", url, token[:40]) }, false},
		{"nothing", func(*Handler, string) *http.Request { return showing(t, "GET", url, "") }, false},
		{"of another gateway", func(*Handler, string) *http.Request {
			other, err := NewHandler(nil).Ticket("GET", "shop.test", "/a?b=c", netip.Addr{})
			if err != nil {
				t.Fatal(err)
			}
			return showing(t, "GET", url, other.Token)
		}, false},
		{"late", func(_ *Handler, token string) *http.Request {
			time.Sleep(ticketLasts + time.Second)
			return showing(t, "GET", url, token)
		}, false},
		{"given back", func(h *Handler, token string) *http.Request {
			for _, ticket := range h.tickets.open {
				ticket.Close()
			}
			return showing(t, "GET", url, token)
		}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := NewHandler(nil)
				ticket, err := h.Ticket("GET", "shop.test", "/a?b=c", netip.MustParseAddr("203.0.113.9"))
				if err != nil {
					t.Fatal(err)
				}
				r := tt.show(h, ticket.Token)
				r.RequestURI = r.URL.RequestURI()
				got := h.tickets.redeem(r)
				if (got == ticket) != tt.good || got != nil && got != ticket {
					t.Errorf("got %p, the ticket is %p", got, ticket)
				}
				if _, there := r.Header[TraceHeader]; there {
					t.Error("the field stayed in the request")
				}
				if tt.good {
					if r.RemoteAddr != "203.0.113.9:50000" {
						t.Errorf("the request comes from %s", r.RemoteAddr)
					}
					again := showing(t, "GET", url, ticket.Token)
					again.RequestURI = r.RequestURI
					if h.tickets.redeem(again) != nil {
						t.Error("the ticket was good twice")
					}
				}
			})
		})
	}
}

func TestTicketsAreBounded(t *testing.T) {
	h := NewHandler(nil)
	var last *Ticket
	for range maxTickets {
		var err error
		if last, err = h.Ticket("GET", "a", "/", netip.Addr{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Ticket("GET", "a", "/", netip.Addr{}); err != ErrBusy {
		t.Errorf("one too many: %v", err)
	}
	last.Close()
	if _, err := h.Ticket("GET", "a", "/", netip.Addr{}); err != nil {
		t.Errorf("a place that was given back: %v", err)
	}
}
