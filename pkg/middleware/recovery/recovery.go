// Package recovery turns a panic of a handler into a log entry and a 500, or,
// where an answer has begun already, into a broken connection. The panic by
// which a handler aborts an answer on purpose passes through.
package recovery

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"

	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
)

// New returns the middleware. It logs to log.
func New(log *slog.Logger) middleware.Middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				v := recover()
				if v == nil {
					return
				}
				if v == http.ErrAbortHandler { // compared as net/http does
					panic(v)
				}
				answer(log, w, r, v)
			}()
			next.ServeHTTP(w, r)
		})
	}
}

func answer(log *slog.Logger, w http.ResponseWriter, r *http.Request, v any) {
	p := problem.New(problem.Internal, "", fmt.Errorf("panic: %v", v))
	attrs := []any{"method", r.Method, "err", p.Err, "stack", string(debug.Stack())}
	begun := false
	x := middleware.Of(w)
	if x != nil {
		attrs = append(attrs, "request_id", x.RequestID, "route", x.Route, "upstream", x.Upstream)
		if t := x.Trace; t != nil {
			attrs = append(attrs, "trace_id", t.ID.String(), "span_id", t.Span.String())
		}
		begun = x.Status != 0 || x.Hijacked
	}
	log.Error("handler panicked", attrs...)
	if begun {
		// What the client has is a part; the server breaks the connection.
		x.RecordProblem(p)
		panic(http.ErrAbortHandler)
	}
	problem.Write(w, r, p)
}
