package proxy

import (
	"net/http"
	"slices"
	"time"

	"github.com/proconsul/proconsul/pkg/middleware"
)

// Preview is what a request would be sent as, worked out by the code that
// sends requests.
type Preview struct {
	Scheme string      // http or https
	Host   string      // of the request; empty: the instance's own address
	Target string      // path and query, as they go out
	Header http.Header // that the instance gets

	Connect  time.Duration // bound of one connection; 0: the transport's own
	Response time.Duration // bound of one try; 0: none
	Total    time.Duration // bound of all tries; 0: none

	Retry      Retry
	Replayable bool // a request that may have been handled may be sent again
	Looped     bool // it has been through this gateway before and is refused
}

// NewPreview returns what New's handler would send for r, and sends nothing.
// It uses up r's header. x is the account of the request; it may be nil.
func NewPreview(up *Upstream, o RouteOptions, r *http.Request, x *middleware.Exchange) Preview {
	h := New(up, o).(*handler)
	f := &flight{h: h, up: up, s: up.settings.Load(), r: r, x: x}
	p := Preview{Looped: h.up.marks.looped(r.Header["Via"])}
	f.rewrite()
	f.merge()
	f.bound()
	out := f.request("")
	p.Scheme, p.Host, p.Header = out.URL.Scheme, out.Host, out.Header
	p.Target = out.URL.RequestURI()
	p.Connect, p.Response, p.Total = f.s.Connect, f.s.Response, f.total
	p.Retry, p.Replayable = f.s.Retry, f.replayable
	p.Retry.On, p.Retry.Methods = slices.Clone(p.Retry.On), slices.Clone(p.Retry.Methods)
	return p
}
