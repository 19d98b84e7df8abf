package gateway

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/identity"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/cors"
	"github.com/proconsul/proconsul/pkg/middleware/ratelimit"
	"github.com/proconsul/proconsul/pkg/middleware/requestid"
	"github.com/proconsul/proconsul/pkg/problem"
	"github.com/proconsul/proconsul/pkg/proxy"
)

// Question is a request to be explained.
type Question struct {
	Method string // empty: GET
	URL    string // absolute, or a path; a missing scheme is http
	Header http.Header
	Peer   netip.Addr // who connects; a trusted proxy may speak for others. Zero: 127.0.0.1
}

// Explanation is what the gateway would do with a request, worked out by the
// code that serves requests.
type Explanation struct {
	Method  string
	Scheme  string
	Host    string // canonical
	Path    string // canonical, as matching sees it; empty where it is refused
	Query   string
	Client  netip.Addr // who the request is counted for
	Trusted bool       // the peer is a trusted proxy

	Route  *Route // nil: none matches
	Others []Other
	More   int // that came near too, and are left out

	Steps    []Step         // of the route's chain, outermost first
	Upstream string         // where it goes; empty: nowhere
	Location string         // of a redirect
	Answered int            // the status with which a step answers it; 0: none does
	Send     *proxy.Preview // nil: nothing is sent

	// Refusal is the gateway's own answer; nil: it redirects, or passes on what
	// an instance answers.
	Refusal *problem.Error
}

// Other is a route that came near and does not serve the request.
type Other struct {
	Route string
	Why   string // host, path, method, header, query, or order: it matches, behind the one that serves
	Text  string // for people
}

// Step is one step of a route's chain.
type Step struct {
	Name    string
	Text    string           // its settings and what it would do, for people
	Limits  []ratelimit.Left // of a rate limit
	Refusal *problem.Error   // nil: it lets the request pass, or answers it
	Answers int              // the status of its own answer that is no refusal; nothing behind it sees the request
}

// asked is a request under explanation, as the steps of a chain see it.
type asked struct {
	ctx context.Context
	r   *http.Request
	x   *middleware.Exchange
}

// maxOthers is how many routes that came near are told.
const maxOthers = 20

// Explain returns what the gateway would do with a request on the listener c,
// and does nothing of it: nothing is sent, counted, logged or taken from a
// limit. The error says why q is no request.
func (h *Handler) Explain(ctx context.Context, c config.Listen, q Question) (*Explanation, error) {
	r, err := q.Request()
	if err != nil {
		return nil, err
	}
	l := h.Listener(c).(*listener)
	x := middleware.NewExchange(nowhere{}, time.Now())
	x.Listener = l.name
	e := &Explanation{Method: r.Method, Query: r.URL.RawQuery}
	l.trusted.Apply(x, r)
	e.Refusal = l.check(x, r)
	e.Scheme, e.Host, e.Path, e.Client, e.Trusted = x.Scheme, x.Host, x.Path, x.ClientIP, x.Trusted
	if e.Refusal == nil {
		h.table.Load().explain(e, &asked{ctx, r.WithContext(identity.Dry(ctx)), x})
	}
	if e.Route != nil && e.Refusal == nil {
		e.Refusal = l.admit(e.Route)
	}
	return e, nil
}

// Request makes the question a request as a server reads it.
func (q Question) Request() (*http.Request, error) {
	text := q.URL
	if strings.HasPrefix(text, "/") {
		text = "http://" + cmp.Or(q.Header.Get("Host"), "localhost") + text
	} else if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	scheme, rest, _ := strings.Cut(text, "://")
	if scheme != "http" && scheme != "https" {
		return nil, fmt.Errorf("the URL %q is neither http nor https", q.URL)
	}
	rest, _, _ = strings.Cut(rest, "#") // stays with the client
	host, target := rest, "/"
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		host, target = rest[:i], rest[i:]
		if target[0] == '?' {
			target = "/" + target
		}
	}
	if strings.Contains(host, "@") {
		return nil, errors.New("the URL holds credentials, and no request has them there")
	}
	if host == "" || strings.ContainsAny(host, " \\") {
		return nil, fmt.Errorf("the URL %q names no host", host+target)
	}
	method := cmp.Or(q.Method, http.MethodGet)
	if strings.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~") != "" {
		return nil, fmt.Errorf("%q is not a method", method)
	}
	u, err := url.ParseRequestURI(target)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("the URL %q has a path that no server reads: %w", q.URL, err)
	}
	r := &http.Request{Method: method, URL: u, Host: host, RequestURI: target, Header: q.Header.Clone(),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody}
	if r.Header == nil {
		r.Header = http.Header{}
	}
	if h := r.Header.Get("Host"); h != "" { // where servers keep it
		r.Host = h
		r.Header.Del("Host")
	}
	if scheme == "https" {
		r.TLS = &tls.ConnectionState{}
	}
	peer := q.Peer
	if !peer.IsValid() {
		peer = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	r.RemoteAddr = netip.AddrPortFrom(peer, 50_000).String()
	return r, nil
}

// explain fills in what the table does with the request.
func (t *Table) explain(e *Explanation, q *asked) {
	rt, allow := t.match(q.r, q.x.Host)
	e.Others, e.More = t.others(q.r, q.x.Host, rt)
	switch {
	case rt == nil && allow != nil:
		e.Refusal = &problem.Error{Reason: problem.MethodNotAllowed, Detail: "the path has routes for " + strings.Join(allow, ", ")}
		return
	case rt == nil:
		e.Refusal = problem.New(problem.NoRoute, "", nil)
		return
	}
	e.Route = rt
	in := rt.input(t.deps)
	for _, s := range steps() {
		if mw, err := s.build(in); mw == nil || err != nil {
			continue // not in this chain
		}
		step := Step{Name: s.name}
		if s.explain != nil {
			step = s.explain(in, q)
			step.Name = s.name
		}
		e.Steps = append(e.Steps, step)
		if e.Refusal == nil {
			e.Refusal = step.Refusal
		}
		if step.Answers != 0 || step.Refusal != nil && step.Refusal.Reason == problem.CORSDenied {
			e.Answered = step.Answers
			return // a preflight goes no further
		}
	}
	if rt.Config.Redirect != nil {
		e.Location = location(*rt.Config.Redirect, q.r)
		return
	}
	e.Upstream = rt.Config.Upstream.Service
	up, err := t.deps.Upstream(e.Upstream)
	if err != nil { // Build has asked for it before
		e.Refusal = problem.From(err)
		return
	}
	if rules := rt.settings.Headers; rules != nil {
		rename(q.r.Header, rules.Request)
	}
	send := proxy.NewPreview(up, proxyOptions(&rt.Config, t.deps), q.r, q.x)
	e.Send = &send
	if e.Refusal == nil {
		e.Refusal = refusalOf(up, send, q.r.Method)
	}
}

// rename gives the header the names that the rules leave it with. Values that
// an operator has written may be credentials and are not shown.
func rename(h http.Header, rules config.HeaderRules) {
	for _, name := range rules.Remove {
		h.Del(name)
	}
	for _, f := range slices.Concat(rules.Set, rules.Add) {
		h.Set(f.Name, "(set by the route)")
	}
}

// refusalOf says why an upstream would not be asked, in the order in which the
// proxy finds out; nil: it would be.
func refusalOf(up *proxy.Upstream, send proxy.Preview, method string) *problem.Error {
	b, pool := up.Breaker().Status(), up.Pool().Stats()
	limit, adaptively := up.Adaptive()
	switch {
	case send.Looped:
		return problem.New(problem.LoopDetected, "", nil)
	case method == http.MethodConnect:
		return problem.New(problem.MethodNotAllowed, "this gateway makes no tunnels", nil)
	case b.Settings.MaxInFlight > 0 && b.InFlight >= b.Settings.MaxInFlight:
		return problem.New(problem.ConcurrencyLimited, fmt.Sprintf("%d requests are in flight, which is the upstream's limit", b.InFlight), nil)
	case adaptively && limit.InFlight >= limit.Limit:
		return problem.New(problem.ConcurrencyLimited, fmt.Sprintf("%d requests wait for an answer, which is the limit that was found for the service", limit.InFlight), nil)
	case pool.Total == 0:
		return problem.New(problem.NoInstances, "", nil)
	case pool.Serving == 0:
		return problem.New(problem.NoHealthyInstances, "", nil)
	case b.State == breaker.Open && b.RetryAfter > 0:
		return &problem.Error{Reason: problem.BreakerOpen, RetryAfter: b.RetryAfter}
	}
	return nil
}

// others returns the routes that nearly serve the request: those that match
// and stand behind the one that does, and those that only one thing keeps from
// matching.
func (t *Table) others(r *http.Request, host string, served *Route) (list []Other, more int) {
	r = matchable(r)
	for _, rt := range t.Routes {
		if rt == served {
			continue
		}
		if o, ok := t.near(r, host, rt, served); ok {
			list = append(list, o)
		}
	}
	rank := []string{"order", "method", "header", "query", "host", "path"}
	slices.SortStableFunc(list, func(a, b Other) int {
		return cmp.Compare(slices.Index(rank, a.Why), slices.Index(rank, b.Why))
	})
	if more = len(list) - maxOthers; more > 0 {
		return list[:maxOthers], more
	}
	return list, 0
}

// near says why a route does not serve the request; ok is false where more
// than one thing keeps it from doing so.
func (t *Table) near(r *http.Request, host string, rt, served *Route) (o Other, ok bool) {
	var misses []Other
	miss := func(why, format string, args ...any) {
		misses = append(misses, Other{rt.Config.Name, why, fmt.Sprintf(format, args...)})
	}
	m := rt.Config.Match
	if !t.covers(m.Host, host) {
		miss("host", "host %s differs", m.Host)
	}
	if path := spelled(r.URL); !rt.pattern.matches(path) {
		s := rt.pattern.segments
		if len(s) == 0 || s[0].template || s[0].text != firstSegment(path) {
			return o, false // it has nothing to do with the request
		}
		miss("path", "path %s differs", m.Path)
	}
	if !fits(r, only(config.Match{Methods: m.Methods})) {
		miss("method", "wants %s", strings.Join(m.Methods, ", "))
	}
	for _, f := range m.Headers {
		if !fits(r, only(config.Match{Headers: []config.MatchField{f}})) {
			miss("header", "header %s differs", wanted(f))
		}
	}
	for _, f := range m.Query {
		if !fits(r, only(config.Match{Query: []config.MatchField{f}})) {
			miss("query", "query parameter %s differs", wanted(f))
		}
	}
	switch {
	case len(misses) == 1:
		return misses[0], true
	case len(misses) == 0 && served != nil:
		return Other{rt.Config.Name, "order", behind(rt, served)}, true
	}
	return o, false
}

// covers reports whether a route's host takes in a request's.
func (t *Table) covers(pattern, host string) bool {
	for b := range t.hosts(host) {
		switch {
		case b == t.any && pattern == "", pattern != "" && b == t.exact[pattern]:
			return true
		case slices.ContainsFunc(t.wild, func(w wildHost) bool { return w.table == b && pattern == "*"+w.suffix }):
			return true
		}
	}
	return false
}

// fits reports whether a route that asks only for what apply puts on it
// matches the request.
func fits(r *http.Request, apply func(*mux.Route) error) bool {
	router := newRouter()
	route := router.NewRoute().Handler(http.NotFoundHandler())
	return apply(route) == nil && router.Match(r, &mux.RouteMatch{})
}

func only(m config.Match) func(*mux.Route) error {
	return func(route *mux.Route) error { return applyMatch(route, m) }
}

// wanted words what a route asks of a header field or query parameter.
func wanted(f config.MatchField) string {
	switch {
	case f.Regex != "":
		return f.Name + "=~" + f.Regex
	case f.Value != "":
		return f.Name + "=" + f.Value
	}
	return f.Name + " (any value)"
}

// behind says why a route that matches too stands behind the one that serves:
// the order of newTable.
func behind(rt, served *Route) string {
	a, b := rt.Config, served.Config
	switch {
	case hostRank(a.Match.Host) != hostRank(b.Match.Host):
		return "its host is less specific"
	case rt.pattern.compare(served.pattern) != 0 && rt.pattern.prefix && len(rt.pattern.segments) < len(served.pattern.segments):
		return "shorter prefix"
	case rt.pattern.compare(served.pattern) != 0:
		return "its path is less specific"
	case a.Priority != b.Priority:
		return fmt.Sprintf("priority %d is below %d", a.Priority, b.Priority)
	case constraints(a.Match) != constraints(b.Match):
		return "it asks for less"
	}
	return "it stands behind in the configuration"
}

// nowhere is the client of a request that is only explained.
type nowhere struct{}

func (nowhere) Header() http.Header         { return http.Header{} }
func (nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (nowhere) WriteHeader(int)             {}

func explainRequestID(_ buildInput, q *asked) Step {
	id := q.r.Header.Values(problem.HeaderRequestID)
	switch {
	case len(id) == 1 && q.x.Trusted && requestid.Valid(id[0]):
		return Step{Text: "keeps the trusted proxy's id"}
	case len(id) > 0:
		return Step{Text: "replaces the client's id by a new one"}
	}
	return Step{Text: "gives it a new id"}
}

func explainCORS(b buildInput, q *asked) Step {
	text, answered, refusal := cors.Peek(*b.settings.CORS, b.route.Match.Methods, q.r)
	s := Step{Text: text, Refusal: refusal}
	if answered {
		s.Answers = http.StatusNoContent
	}
	return s
}

func explainTracing(b buildInput, q *asked) Step {
	return Step{Text: b.deps.Tracer.Explain(q.r.Header, q.x.Trusted)}
}

func explainHeaders(b buildInput, _ *asked) Step {
	var parts []string
	for _, d := range []struct {
		name  string
		rules config.HeaderRules
	}{{"request", b.settings.Headers.Request}, {"answer", b.settings.Headers.Response}} {
		var acts []string
		if len(d.rules.Remove) > 0 {
			acts = append(acts, "without "+strings.Join(d.rules.Remove, ", "))
		}
		if names := fieldNames(d.rules.Set); names != "" {
			acts = append(acts, "sets "+names)
		}
		if names := fieldNames(d.rules.Add); names != "" {
			acts = append(acts, "adds "+names)
		}
		if len(acts) > 0 {
			parts = append(parts, d.name+" "+strings.Join(acts, ", "))
		}
	}
	return Step{Text: strings.Join(parts, "; ")}
}

// fieldNames leaves the values out: they may be credentials.
func fieldNames(fields []config.HeaderField) string {
	var names []string
	for _, f := range fields {
		names = append(names, f.Name)
	}
	return strings.Join(names, ", ")
}

func explainRateLimit(b buildInput, q *asked) Step {
	var parts []string
	for _, l := range b.limits {
		text := LimitText(l.RateLimit)
		if l.Name != b.route.Name {
			text = l.Name + " " + text
		}
		parts = append(parts, text)
	}
	s := Step{Text: strings.Join(parts, "; ")}
	out, err := ratelimit.Peek(q.ctx, b.route.Name, b.limits, b.deps.Limiter, q.r, q.x)
	if err != nil { // Build has compiled it before
		s.Refusal = problem.From(err)
		return s
	}
	switch out.Decision {
	case "allowed", "limited":
	case "delayed":
		s.Text += fmt.Sprintf(", after a wait of %v", out.Delay.Round(time.Millisecond))
	default:
		s.Text += ", without the shared store: " + out.Decision
	}
	s.Limits, s.Refusal = out.Limits, out.Refusal
	return s
}

// LimitText words a limit for people.
func LimitText(l config.RateLimit) string {
	var limits []string
	for _, limit := range l.Limits {
		limits = append(limits, limit.String())
	}
	text := strings.Join(limits, ", ") + " by " + l.By
	if l.Over == "delay" {
		text += fmt.Sprintf(", above that up to %d wait up to %v", l.MaxQueue, l.MaxDelay)
	}
	return text
}
