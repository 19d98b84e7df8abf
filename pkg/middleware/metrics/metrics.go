// Package metrics counts each request of a route from its Exchange when it
// ends: status, duration, bytes, the gateway's own overhead and the reason of
// an answer that the gateway made itself. It has no settings and changes
// nothing about a request.
package metrics

import (
	"net/http"

	"github.com/proconsul/proconsul/pkg/metrics"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
)

// New returns the middleware. recorder says who counts a request: its route's.
func New(recorder func(x *middleware.Exchange) *metrics.Route) middleware.Middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex, w := middleware.Account(w)
			method := r.Method // handlers below may have their own idea of it
			recorder := recorder(ex)
			recorder.Begin()
			returned := false
			// Deferred, because a handler that gives up on an answer that is
			// under way panics with http.ErrAbortHandler.
			defer func() { recorder.End(account(ex, method, returned)) }()
			next.ServeHTTP(w, r)
			returned = true
		})
	}
}

func account(ex *middleware.Exchange, method string, returned bool) metrics.Request {
	ended := ex.Now()
	took := ended.Sub(ex.Start)
	q := metrics.Request{
		Method:   method,
		Status:   ex.Told(returned),
		Ended:    ended,
		Duration: took,
		BytesIn:  ex.BytesIn,
		BytesOut: ex.Bytes,
		Reason:   string(ex.Reason),
		Overhead: -1,
	}
	if t := ex.Trace; t != nil && t.Sampled {
		q.TraceID = t.ID.String()
	}
	switch {
	case ex.Hijacked || q.Status == http.StatusSwitchingProtocols:
		// How long people keep a connection open says nothing of latency.
		if ex.FirstByte > 0 {
			q.Duration = ex.FirstByte
		}
	case ex.FirstByte > 0:
		// The body is streamed at the pace of the two ends: not ours.
		q.Overhead = max(0, ex.FirstByte-ex.Upstreamed)
	case q.Status != problem.StatusClientClosedRequest && returned:
		q.Overhead = max(0, took-ex.Upstreamed)
	}
	return q
}
