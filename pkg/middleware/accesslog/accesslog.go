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
			var e entry
			e.begin(x, log.form.Load(), r)
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

// begin notes what the client sent: handlers below may rewrite the request.
func (e *entry) begin(x *middleware.Exchange, f *form, r *http.Request) {
	e.x, e.form, e.aborted = x, f, true
	e.method, e.host, e.path, e.proto, e.peer = r.Method, x.Host, x.Path, r.Proto, r.RemoteAddr
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
	if f.fields != nil {
		e.header = f.keep(r.Header)
	}
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
