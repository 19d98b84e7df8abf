package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/gorilla/mux"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/metrics"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/cors"
)

// Route is one compiled route: what it matches and the chain that serves it.
type Route struct {
	// What each request reads is in one line of memory, see Table.
	handler       http.Handler // its own steps, and what they lead to
	name, service string       // of Config
	recorder      *metrics.Route

	*compiled
}

// compiled is what only some requests need of a route.
type compiled struct {
	Config   config.Route
	settings config.Middleware   // of its chain
	limits   []config.NamedLimit // that its requests are under
	pattern  pattern
}

// ServeHTTP runs the route's own steps. Route is an http.Handler so that mux and
// the Exchange can carry it.
func (rt *Route) ServeHTTP(w http.ResponseWriter, r *http.Request) { rt.handler.ServeHTTP(w, r) }

// routeOf returns the route that a request has come to.
func routeOf(x *middleware.Exchange) *Route { return x.Rest.(*Route) }

// recorderOf returns who counts a request.
func recorderOf(x *middleware.Exchange) *metrics.Route { return routeOf(x).recorder }

// templateOf returns what http.route calls a request's route; nothing where none
// matched.
func templateOf(x *middleware.Exchange) string {
	rt := routeOf(x)
	if rt.name == "" {
		return ""
	}
	return cmp.Or(rt.Config.Match.Path, "/**")
}

// serve serves a request that has come to rt.
func (t *Table) serve(rt *Route, ex *middleware.Exchange, r *http.Request) {
	ex.Rest = rt
	t.front.ServeHTTP(ex, r)
}

// arrive is the end of the steps that all routes share.
func arrive(w http.ResponseWriter, r *http.Request) { middleware.Of(w).Rest.ServeHTTP(w, r) }

// Table is every compiled route. It is immutable: a change of configuration
// builds a new one and swaps it whole.
//
// mux tries its routes one after another, about 60 ns for each that does not
// match, so the table keeps many small routers: by host, then by the path's
// leading segments. Each holds, in order, the routes that can match there. Where
// these settle all that the first of them asks for, mux has nothing to decide and
// is not asked: with many routes each object of one's that a request reads is a
// wait for memory, a tenth of a microsecond, and mux has eight.
type Table struct {
	Routes []*Route // in the order in which they are tried

	exact map[string]*bucket
	wild  []wildHost // longest first
	any   *bucket

	front   http.Handler // the steps that all routes share
	nowhere *Route       // of requests that no route serves
	deps    Deps
}

type wildHost struct {
	suffix string // ".example.com"
	table  *bucket
}

// bucket holds the routes that can match where the path begins with certain
// segments. It is split by the segment that comes next while that leaves less
// to try.
type bucket struct {
	next map[string]below // by that segment's text; nil: not split
	sure *Route           // the first of rest, if it matches whatever is looked up there
	ends bool             // and has no segments after these
	rest *mux.Router      // for every other text, and for paths that end before it
}

// below is what is under a segment.
type below struct {
	bucket *bucket
	all    *Route // that every path below belongs to; nil: ask the bucket
}

// splitAbove is how many routes are left to mux's search.
const splitAbove = 4

// newTable orders the routes and files them. An error names the route.
func newTable(routes []*Route) (*Table, error) {
	t := &Table{Routes: slices.Clone(routes), exact: map[string]*bucket{}}
	slices.SortStableFunc(t.Routes, func(a, b *Route) int {
		return cmp.Or(
			-cmp.Compare(hostRank(a.Config.Match.Host), hostRank(b.Config.Match.Host)),
			a.pattern.compare(b.pattern),
			-cmp.Compare(a.Config.Priority, b.Config.Priority),
			-cmp.Compare(constraints(a.Config.Match), constraints(b.Config.Match)),
		)
	})
	byHost := map[string][]*Route{}
	for _, rt := range t.Routes {
		byHost[rt.Config.Match.Host] = append(byHost[rt.Config.Match.Host], rt)
	}
	for host, list := range byHost {
		b, err := newBucket(list, 0)
		if err != nil {
			return nil, err
		}
		switch {
		case host == "":
			t.any = b
		case strings.HasPrefix(host, "*."):
			t.wild = append(t.wild, wildHost{host[1:], b})
		default:
			t.exact[host] = b
		}
	}
	slices.SortFunc(t.wild, func(a, b wildHost) int {
		return cmp.Or(-cmp.Compare(len(a.suffix), len(b.suffix)), strings.Compare(a.suffix, b.suffix))
	})
	return t, nil
}

// hostRank puts exact hosts first, then wildcards, the longest first, then
// routes for any host.
func hostRank(host string) int {
	switch {
	case host == "":
		return 0
	case strings.HasPrefix(host, "*."):
		return len(host)
	}
	return 1 << 20
}

// constraints counts what a route asks for beside host and path, so that the
// one that asks for more is tried first.
func constraints(m config.Match) int {
	return 2*(len(m.Headers)+len(m.Query)) + b2i(len(m.Methods) > 0)
}

// newBucket files routes, which are in order and can match up to depth.
func newBucket(routes []*Route, depth int) (*bucket, error) {
	b := &bucket{}
	rest := routes
	if len(routes) > splitAbove {
		b.next = map[string]below{}
		for _, text := range texts(routes, depth) {
			next, err := newBucket(keep(routes, func(p pattern) bool { return p.under(depth, text, true) }), depth+1)
			if err != nil {
				return nil, err
			}
			b.next[text] = next.below()
		}
		rest = keep(routes, func(p pattern) bool { _, literal := p.literal(depth); return !literal })
	}
	if len(rest) > 0 && rest[0].settled(depth) {
		b.sure, b.ends = rest[0], !rest[0].pattern.prefix
	}
	b.rest = newRouter()
	for _, rt := range rest {
		route := b.rest.NewRoute().Handler(rt)
		rt.pattern.apply(route)
		err := applyMatch(route, rt.Config.Match)
		if err := errors.Join(err, route.GetError()); err != nil {
			return nil, fmt.Errorf("route %s: %w", rt.Config.Name, err)
		}
	}
	return b, nil
}

// texts are the literals that routes have at depth. They are parts of one string:
// for a comparison the processor has them at hand, which it has not where each
// lies beside what else was read with it.
func texts(routes []*Route, depth int) []string {
	set := map[string]bool{}
	for _, rt := range routes {
		if text, ok := rt.pattern.literal(depth); ok {
			set[text] = true
		}
	}
	list := slices.Sorted(maps.Keys(set))
	whole := strings.Join(list, "")
	for i, text := range list {
		list[i], whole = whole[:len(text)], whole[len(text):]
	}
	return list
}

func keep(routes []*Route, ok func(pattern) bool) (list []*Route) {
	for _, rt := range routes {
		if ok(rt.pattern) {
			list = append(list, rt)
		}
	}
	return list
}

// settled reports whether a route asks for nothing but its host and for at most
// depth leading segments, all of them literal.
func (rt *Route) settled(depth int) bool {
	m, p := rt.Config.Match, rt.pattern
	return len(p.segments) <= depth && !slices.ContainsFunc(p.segments, func(s segment) bool { return s.template }) &&
		len(m.Methods)+len(m.Headers)+len(m.Query) == 0
}

func (b *bucket) below() below {
	if b.next == nil && !b.ends {
		return below{b, b.sure}
	}
	return below{bucket: b}
}

// match returns the route of a request whose path, from the bucket's segments
// on, is path; wrong is set where only the method differs.
func (b *bucket) match(r *http.Request, path string) (rt *Route, wrong bool) {
	for b.next != nil && path != "" {
		text, left := path[1:], ""
		if end := strings.IndexByte(text, '/'); end >= 0 {
			text, left = text[:end], text[end:]
		}
		next := b.next[text]
		if next.all != nil {
			return next.all, false
		}
		if next.bucket == nil {
			break
		}
		b, path = next.bucket, left
	}
	if b.sure != nil && (path == "" || !b.ends) {
		return b.sure, false
	}
	m := matches.Get().(*mux.RouteMatch)
	defer matches.Put(m)
	*m = mux.RouteMatch{Vars: m.Vars}
	if b.rest.Match(r, m) {
		return m.Handler.(*Route), false
	}
	return nil, errors.Is(m.MatchErr, mux.ErrMethodMismatch)
}

// newRouter returns a router that sees paths as we do: canonicalPath has
// cleaned them, and an encoded character is not a separator.
func newRouter() *mux.Router { return mux.NewRouter().UseEncodedPath().SkipClean(true) }

// matches are made with the map of variables that mux would else make for each
// request; without regular expressions it puts nothing there.
var matches = sync.Pool{New: func() any { return &mux.RouteMatch{Vars: map[string]string{}} }}

// match finds the route for a request whose URL path is canonical. Where only
// the method differs it returns the methods that would match instead.
//
// A browser's preflight belongs to the route of the request that it asks leave
// for, if that has cors: cors answers it there, whatever the route's methods
// are. What a route asks of header fields is not in a preflight, so it never
// finds a route that asks for one.
func (t *Table) match(r *http.Request, host string) (rt *Route, allow []string) {
	r = matchable(r)
	if method, ok := cors.Preflight(r); ok {
		meant := *r
		meant.Method = method
		if rt, _ := t.lookup(&meant, host); rt != nil && rt.settings.CORS != nil {
			return rt, nil
		}
	}
	rt, mismatch := t.lookup(r, host)
	if mismatch {
		allow = t.allowed(r, host)
	}
	return rt, allow
}

// matchable returns the request as routes see it: r itself, or a copy that
// only matching may read.
func matchable(r *http.Request) *http.Request {
	path := spelled(r.URL)
	p := matchPath(path)
	if p == path {
		return r
	}
	u := *r.URL
	setPath(&u, p)
	clone := *r // mux reads it and keeps nothing
	clone.URL = &u
	return &clone
}

// lookup asks the routers that can know the request, the most specific host
// first. mismatch is set where a route matched but for its method, and none
// matched in full.
func (t *Table) lookup(r *http.Request, host string) (rt *Route, mismatch bool) {
	path := spelled(r.URL)
	for b := range t.hosts(host) {
		rt, wrong := b.match(r, path)
		if rt != nil {
			return rt, false
		}
		mismatch = mismatch || wrong
	}
	return nil, mismatch
}

// hosts yields the tables that a host's requests are looked up in, the most
// specific first.
func (t *Table) hosts(host string) func(yield func(*bucket) bool) {
	return func(yield func(*bucket) bool) {
		if b := t.exact[host]; b != nil && !yield(b) {
			return
		}
		for _, w := range t.wild {
			if len(host) > len(w.suffix) && strings.HasSuffix(host, w.suffix) && !yield(w.table) {
				return
			}
		}
		if t.any != nil {
			yield(t.any)
		}
	}
}

// allowed lists the methods under which the request would have found a route
// (RFC 9110 section 10.2.1). It looks up once per method: a wrong method is
// rare and the list of methods short.
func (t *Table) allowed(r *http.Request, host string) []string {
	clone := *r
	var allow []string
	for _, m := range t.methods() {
		clone.Method = m
		if rt, _ := t.lookup(&clone, host); rt != nil {
			allow = append(allow, m)
		}
	}
	return allow
}

// methods returns every method that a route names, sorted.
func (t *Table) methods() []string {
	set := map[string]bool{}
	for _, rt := range t.Routes {
		for _, m := range rt.Config.Match.Methods {
			set[m] = true
			if m == http.MethodGet {
				set[http.MethodHead] = true
			}
		}
	}
	list := make([]string, 0, len(set))
	for m := range set {
		list = append(list, m)
	}
	slices.Sort(list)
	return list
}

// spelled is the escaped path of a URL that setPath has given it.
func spelled(u *url.URL) string {
	if u.RawPath != "" {
		return u.RawPath
	}
	return u.Path
}

// setPath gives u an escaped path.
func setPath(u *url.URL, escaped string) {
	// The URL escapes these itself where RawPath does not say otherwise.
	if !strings.ContainsAny(escaped, "%!'()*") {
		u.Path, u.RawPath = escaped, ""
		return
	}
	path, err := url.PathUnescape(escaped)
	if err != nil { // a canonical path always unescapes
		return
	}
	u.Path, u.RawPath = path, escaped
}
