// Package accesslog writes one line per request when it has ended, as JSON in
// our keys or OpenTelemetry's, as Apache's common and combined formats, or by
// a template. A line holds no query string, no credential and no body, and no
// header field but those that a format is asked for.
//
// Requests never wait for the log: lines go into a bounded buffer that one
// goroutine writes out, and what does not fit is dropped and counted.
package accesslog

import (
	"net/http"

	"github.com/proconsul/proconsul/pkg/middleware"
)

// New returns the middleware that writes to log. It stands outside recovery,
// so that a request that panics is logged with what was answered.
func New(log *Log) middleware.Middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			x, w := middleware.Account(w)
			// Handlers below may rewrite the request; the line is about what
			// the client sent.
			e := entry{x: x, form: log.form.Load(), method: r.Method, host: x.Host, path: x.Path, proto: r.Proto, peer: r.RemoteAddr, aborted: true}
			if e.host == "" {
				e.host = r.Host
			}
			if e.path == "" {
				e.path = r.URL.EscapedPath()
			}
			if x.Trace == nil {
				// Not ours, but what instances may log too.
				e.claimed, _, _, _ = middleware.ParseTraceparent(r.Header["Traceparent"])
			}
			if e.form.fields != nil {
				e.header = e.form.keep(r.Header)
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
	x                         *middleware.Exchange
	form                      *form // as it was when the request came
	method, host, path, proto string
	peer                      string
	claimed                   middleware.TraceID // zero: none
	header                    []string           // values of the fields that the format names
	aborted                   bool               // the handler gave up on the answer
}

// status is what the client was told, or would have been.
func (e *entry) status() int { return e.x.Told(!e.aborted) }

// trace returns the id of the request's trace, and of the gateway's span in it
// where there is one.
func (e *entry) trace() (id middleware.TraceID, span middleware.SpanID) {
	if t := e.x.Trace; t != nil {
		return t.ID, t.Span
	}
	return e.claimed, span
}
