// Package gateway turns a configuration into one immutable table of routes
// and serves requests by it: match, the route's chain of middlewares, then its
// upstream. It is the only door to gorilla/mux. It never touches what lives on
// across a reload: pools, breakers and connections are handed in by name.
package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/adaptive"
	"github.com/proconsul/proconsul/pkg/identity"
	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/metrics"
	"github.com/proconsul/proconsul/pkg/middleware/accesslog"
	"github.com/proconsul/proconsul/pkg/middleware/ratelimit"
	"github.com/proconsul/proconsul/pkg/proxy"
	"github.com/proconsul/proconsul/pkg/tracing"
)

// Deps is what routes are built from. Everything in it but Identity outlives a
// table.
type Deps struct {
	Log       *slog.Logger
	AccessLog *accesslog.Log // nil: none
	Metrics   *metrics.Metrics
	Tracer    *tracing.Tracer // nil: none
	Limiter   *limiter.Limiter
	Identity  *identity.Directory // of the configuration; nil where no route has auth

	// Upstream returns the upstream of that name.
	Upstream func(name string) (*proxy.Upstream, error)

	guards *ratelimit.Guards // Build's
}

// Build compiles every route of cfg, or returns every fault that keeps it from
// doing so. It changes nothing that is live.
func Build(cfg *config.Config, d Deps) (*Table, error) {
	d.guards = ratelimit.NewGuards(d.Limiter, ratelimit.Account{Decision: d.Metrics.RateLimitDecision, Delay: d.Metrics.RateLimitDelay})
	var routes []*Route
	var faults []error
	for i := range cfg.Routes {
		rt, err := buildRoute(cfg, &cfg.Routes[i], d)
		if err != nil {
			faults = append(faults, fmt.Errorf("route %s: %w", cfg.Routes[i].Name, err))
			continue
		}
		routes = append(routes, rt)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	t, err := newTable(routes)
	if err != nil {
		return nil, err
	}
	t.deps = d
	t.front, err = buildInput{deps: d}.wrap(http.HandlerFunc(arrive), shared(), unmarked)
	if err != nil {
		return nil, err
	}
	// Requests that match no route go through the same chain, without the
	// steps that only a route can ask for.
	t.nowhere = &Route{recorder: d.Metrics.Route("", ""), compiled: &compiled{}}
	t.nowhere.handler, err = buildInput{deps: d}.wrap(http.HandlerFunc(refuse), own(), unmarked)
	return t, err
}

func buildRoute(cfg *config.Config, rc *config.Route, d Deps) (*Route, error) {
	p, err := parsePattern(rc.Match.Path)
	if err != nil {
		return nil, err
	}
	last, err := destination(rc, d)
	if err != nil {
		return nil, err
	}
	rt := &Route{name: rc.Name, service: rc.Upstream.Service, recorder: d.Metrics.Route(rc.Name, rc.Upstream.Service), compiled: &compiled{Config: *rc, settings: cfg.Chain(*rc), limits: cfg.Limits(*rc), pattern: p}}
	rt.handler, err = rt.input(d).wrap(last, own(), unmarked)
	return rt, err
}

// input is what the steps of the route's chain are built from, whether they are
// to serve, to be explained or to be followed.
func (rt *Route) input(d Deps) buildInput {
	return buildInput{route: &rt.Config, settings: rt.settings, limits: rt.limits, deps: d}
}

// destination is what stands at the end of a route's chain.
func destination(rc *config.Route, d Deps) (http.Handler, error) {
	if rc.Redirect != nil {
		return redirect(*rc.Redirect), nil
	}
	up, err := d.Upstream(rc.Upstream.Service)
	if err != nil {
		return nil, err
	}
	return proxy.New(up, proxyOptions(rc, d)), nil
}

func proxyOptions(rc *config.Route, d Deps) proxy.RouteOptions {
	class, _ := adaptive.ParseClass(rc.Shed) // the configuration has checked it
	o := proxy.RouteOptions{
		Shed:    class,
		Name:    rc.Name,
		Strip:   rc.Upstream.Strip,
		Prepend: rc.Upstream.Prepend,
		Host:    rc.Upstream.Host,
		Timeout: rc.Upstream.Timeout,
	}
	if owned := d.Identity.Owned(); len(owned) > 0 { // software behind may merge trailers into the header
		o.Withhold = owned.Strip
	}
	return o
}

// redirect answers with a Location in which {path} and {query} are those of
// the request; {query} brings its own question mark.
func redirect(c config.Redirect) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", location(c, r))
		w.WriteHeader(c.Code)
	})
}

func location(c config.Redirect, r *http.Request) string {
	query := ""
	if r.URL.RawQuery != "" {
		query = "?" + r.URL.RawQuery
	}
	return strings.NewReplacer("{path}", r.URL.EscapedPath(), "{query}", query).Replace(c.To)
}

// Identity returns who the table's routes know; nil where none asks.
func (t *Table) Identity() *identity.Directory { return t.deps.Identity }

// Handler serves requests by the current table. It is safe for concurrent use.
type Handler struct {
	table   atomic.Pointer[Table]
	tickets *tickets
}

// NewHandler returns a handler that serves by t.
func NewHandler(t *Table) *Handler {
	h := &Handler{tickets: newTickets()}
	h.table.Store(t)
	return h
}

// Swap makes t the current table. Requests that have been matched finish by
// the table that they were matched in.
func (h *Handler) Swap(t *Table) { h.table.Store(t) }

// Table returns the current table.
func (h *Handler) Table() *Table { return h.table.Load() }
