// Package proxy sends one request to one instance and its answer back: it
// picks an instance, asks the breaker, rewrites what a proxy has to rewrite,
// tries another instance where that is safe, and streams both bodies. Every
// failure becomes a problem in one table, in errors.go.
//
// It never decides who may pass, never keeps a body beyond what a retry needs,
// and runs nothing that touches the client's connection inside a breaker's
// command.
package proxy

import (
	"net/http"
	"strings"
	"time"

	"github.com/proconsul/proconsul/pkg/adaptive"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
	"github.com/proconsul/proconsul/pkg/wire"
)

// RouteOptions are what a route adds to its upstream.
type RouteOptions struct {
	Name    string         // for OnAttempt
	Strip   string         // path prefix to take off, by segments
	Prepend string         // path prefix to put on
	Host    string         // "preserve" or "": as the client sent it; "instance": its address; else the value itself
	Timeout time.Duration  // of all tries until the header; 0: the upstream's
	Shed    adaptive.Class // whose requests an adaptive limit turns away first

	// Withhold takes out of a request's trailers what no client may say; those
	// of the header are gone by then. nil: there is nothing of the kind.
	Withhold func(trailer http.Header)
}

// handler is the end of a route's chain. Everything that is the same for all
// of its requests is made once. What few routes have is elsewhere: with many
// routes a handler is in none of the processor's caches, and this one is a line
// of them.
type handler struct {
	up       *Upstream
	timeout  time.Duration
	shed     adaptive.Class
	name     string
	withhold func(trailer http.Header)
	rewrite  *rewriting // nil: nothing
}

// rewriting is what a route's instances are told otherwise than the client said.
type rewriting struct {
	strip, prepend string   // of paths
	prefix         []string // X-Forwarded-Prefix; its capacity is its length, so that appending to the field copies
	host           string   // empty: as it was
	own            bool     // Host is the instance's address
}

// New returns the handler that serves a route's requests from up.
func New(up *Upstream, o RouteOptions) http.Handler {
	h := &handler{up: up, timeout: o.Timeout, shed: o.Shed, name: o.Name, withhold: o.Withhold}
	w := rewriting{strip: slashed(o.Strip), prepend: slashed(o.Prepend)}
	if w.strip != "" {
		w.prefix = []string{w.strip}
	}
	switch o.Host {
	case "", "preserve":
	case "instance":
		w.own = true
	default:
		w.host = o.Host
	}
	if w.strip != "" || w.prepend != "" || w.host != "" || w.own {
		h.rewrite = &w
	}
	return h
}

// slashed returns a prefix in the form "/a/b", or nothing for the root.
func slashed(prefix string) string {
	prefix = wireSafe(strings.Trim(prefix, "/"), false)
	if prefix == "" {
		return ""
	}
	return "/" + prefix
}

// ServeHTTP implements http.Handler. It panics with http.ErrAbortHandler where
// an answer that has begun cannot be finished, so that the server breaks the
// client's connection rather than let a part pass for the whole.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.up.marks.looped(r.Header["Via"]) {
		problem.Write(w, r, problem.New(problem.LoopDetected, "", nil))
		return
	}
	if r.Method == http.MethodConnect {
		problem.Write(w, r, &problem.Error{Reason: problem.MethodNotAllowed, Detail: "this gateway makes no tunnels", Header: http.Header{"Allow": {insteadOfConnect}}})
		return
	}
	f := h.up.flight()
	f.h, f.up, f.s = h, h.up, h.up.settings.Load()
	f.w, f.r, f.x = w, r, middleware.Of(w)
	f.start = f.x.Now()
	defer f.end()
	f.prepare()
	if f.ready() && f.enter() {
		f.run()
	}
	if !f.held && f.x != nil {
		f.x.Use(f)
	}
}

// insteadOfConnect is what the refusal of a tunnel allows, as a 405 has to say
// (RFC 9110 section 15.5.6).
const insteadOfConnect = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

// marks are how the gateway is named in Via.
type marks struct {
	via  [3]wire.Line // by protocol: 1.0, 1.1, 2
	loop string       // what a Via field of ours contains
}

func newMarks(pseudonym string) marks {
	return marks{
		via:  [3]wire.Line{{Name: "Via", Value: "1.0 " + pseudonym}, {Name: "Via", Value: "1.1 " + pseudonym}, {Name: "Via", Value: "2 " + pseudonym}},
		loop: " " + pseudonym,
	}
}

// looped reports whether a request has been through this gateway before.
func (m *marks) looped(via []string) bool {
	for _, line := range via {
		for entry := range strings.SplitSeq(line, ",") {
			// An entry is "1.1 name", then perhaps a comment.
			entry, _, _ = strings.Cut(entry, "(")
			if strings.HasSuffix(strings.TrimRight(entry, " \t"), m.loop) {
				return true
			}
		}
	}
	return false
}

// viaFor returns the Via line for a message of that protocol version.
func (m *marks) viaFor(major, minor int) wire.Line {
	switch {
	case major >= 2:
		return m.via[2]
	case minor == 0:
		return m.via[0]
	}
	return m.via[1]
}
