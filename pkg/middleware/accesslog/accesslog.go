// Package accesslog writes one line of JSON per request when it has ended. A
// line holds no header field, no query string and no body, so that no secret
// gets into it.
//
// Requests never wait for the log: lines go into a bounded buffer that one
// goroutine writes out, and what does not fit is dropped and counted.
package accesslog

import (
	"net/http"
	"time"

	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
)

// New returns the middleware that writes to log. It stands outside recovery,
// so that a request that panics is logged with what was answered.
func New(log *Log) middleware.Middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			x := middleware.Of(w)
			if x == nil { // outside the gateway, as in a test of one handler
				x = middleware.NewExchange(w, time.Now())
				w = x
			}
			// Handlers below may rewrite the request; the line is about what
			// the client sent.
			e := entry{x: x, method: r.Method, host: x.Host, path: x.Path, proto: r.Proto, aborted: true, trace: traceID(r.Header["Traceparent"])}
			if e.host == "" {
				e.host = r.Host
			}
			if e.path == "" {
				e.path = r.URL.EscapedPath()
			}
			// Deferred, because a handler that cannot finish an answer panics
			// with http.ErrAbortHandler.
			defer log.write(&e)
			next.ServeHTTP(w, r)
			e.aborted = false
		})
	}
}

// entry is what a line is made of.
type entry struct {
	x                                *middleware.Exchange
	method, host, path, proto, trace string
	aborted                          bool // the handler gave up on the answer
}

// status is what the client was told, or would have been.
func (e *entry) status() int {
	switch {
	case e.x.Status != 0:
		return e.x.Status
	case e.x.Hijacked:
		return http.StatusSwitchingProtocols
	case e.x.Reason == problem.ClientCanceled:
		return problem.StatusClientClosedRequest
	case e.aborted:
		return http.StatusInternalServerError
	}
	return http.StatusOK // net/http's own answer for a handler that said nothing
}

// traceID returns the trace id of a W3C traceparent field, or nothing.
func traceID(field []string) string {
	if len(field) != 1 || len(field[0]) < 55 || field[0][2] != '-' || field[0][35] != '-' {
		return ""
	}
	id := field[0][3:35]
	for i := range len(id) {
		if c := id[i]; !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return ""
		}
	}
	return id
}
