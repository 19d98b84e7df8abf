package middleware_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
)

type wrapped struct{ http.ResponseWriter }

func (w wrapped) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func TestOfFindsTheExchangeBehindWrappers(t *testing.T) {
	x := middleware.NewExchange(httptest.NewRecorder(), time.Now())
	if got := middleware.Of(wrapped{wrapped{x}}); got != x {
		t.Errorf("got %p, want %p", got, x)
	}
	if got := middleware.Of(wrapped{httptest.NewRecorder()}); got != nil {
		t.Errorf("got %v, want nil", got)
	}
}

func TestExchangeAccount(t *testing.T) {
	tests := []struct {
		name   string
		do     func(x *middleware.Exchange)
		status int
		bytes  int64
	}{
		{"nothing", func(*middleware.Exchange) {}, 0, 0},
		{"header", func(x *middleware.Exchange) { x.WriteHeader(404) }, 404, 0},
		{"interim first", func(x *middleware.Exchange) { x.WriteHeader(103); x.WriteHeader(201) }, 201, 0},
		{"switch", func(x *middleware.Exchange) { x.WriteHeader(101) }, 101, 0},
		{"body only", func(x *middleware.Exchange) { _, _ = x.Write([]byte("abc")) }, 200, 3},
		{"flush only", func(x *middleware.Exchange) { _ = http.NewResponseController(wrapped{x}).Flush() }, 200, 0},
		{"read from", func(x *middleware.Exchange) { _, _ = io.Copy(x, struct{ io.Reader }{strings.NewReader("abcd")}) }, 200, 4},
		{"problem", func(x *middleware.Exchange) {
			problem.Write(wrapped{x}, httptest.NewRequest("HEAD", "/", nil), problem.New(problem.Draining, "", nil))
		}, 503, 0},
		{"client gone", func(x *middleware.Exchange) {
			problem.Write(x, httptest.NewRequest("GET", "/", nil), problem.New(problem.ClientCanceled, "", nil))
		}, 499, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x := middleware.NewExchange(httptest.NewRecorder(), time.Now())
			tt.do(x)
			if x.Status != tt.status || x.Bytes != tt.bytes {
				t.Errorf("got status %d and %d bytes, want %d and %d", x.Status, x.Bytes, tt.status, tt.bytes)
			}
		})
	}
}

func TestExchangeKeepsTheCause(t *testing.T) {
	x := middleware.NewExchange(httptest.NewRecorder(), time.Now())
	cause := errors.New("dial tcp 10.0.0.1:1: refused")
	problem.Write(x, httptest.NewRequest("GET", "/", nil), problem.New(problem.UpstreamRefused, "", cause))
	if x.Reason != problem.UpstreamRefused || x.Err != cause {
		t.Errorf("got %q, %v", x.Reason, x.Err)
	}
}

type releaser struct{ n int }

func (r *releaser) Release() { r.n++ }

// Whoever keeps an exchange is found out, and what a request has used is free
// once, when nothing of its answer is still to be written.
func TestEnd(t *testing.T) {
	var used releaser
	e := middleware.NewExchange(httptest.NewRecorder(), time.Now())
	if !e.Use(&used) || e.Use(&used) {
		t.Error("there is place for one")
	}
	e.WriteHeader(204)
	e.End()
	if used.n != 1 {
		t.Errorf("released %d times, want once", used.n)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a write after the end does not panic")
			}
		}()
		_, _ = e.Write([]byte("late"))
	}()
	e.Begin(httptest.NewRecorder(), time.Now())
	e.Use(&used)
	e.End() // the server has still to write the header
	if used.n != 1 || e.Status != 0 {
		t.Errorf("released %d times, status %d", used.n, e.Status)
	}
}
