// Package tracing gives each request its place in a distributed trace when it
// comes, and makes its spans when it has ended. Without a tracer it is not in
// the chain.
package tracing

import (
	"net/http"
	"time"

	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/tracing"
)

// New returns the middleware; route returns the pattern that a request has
// matched, or nothing.
func New(t *tracing.Tracer, route func(x *middleware.Exchange) string) middleware.Middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			x, w := middleware.Account(w)
			q := tracing.Request{Method: r.Method, Proto: r.ProtoMajor, Route: route(x)} // handlers below may rewrite it
			t.Begin(x, r)
			returned := false
			// Deferred, because a handler that gives up on an answer that is
			// under way panics with http.ErrAbortHandler.
			defer func() {
				q.Status, q.End = x.Told(returned), time.Now()
				t.End(x, q)
			}()
			next.ServeHTTP(w, r)
			returned = true
		})
	}
}
