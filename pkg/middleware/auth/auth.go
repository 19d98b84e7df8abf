// Package auth lets a request pass only from a caller that one of the route's
// methods knows and that may do what it asks for. Its settings are config.Auth.
//
// Without a valid credential the answer is 401 with one WWW-Authenticate for
// each method that would do; with one that does not suffice it is 403. A
// credential that is not valid never passes as none, also where anonymous
// callers may pass. Where the issuer's keys have never been read the answer is
// 503, since the caller may be right.
//
// Instances learn who called from X-Consumer-Name, X-Consumer-Groups and
// X-Consumer-Claim-*; the credentials themselves they see only with
// forward_authorization: keep.
package auth

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/identity"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
)

// The results, as the metrics name them.
const (
	allowed     = "allowed"
	anonymous   = "anonymous" // passed without a credential; of no method
	missing     = "missing"
	invalid     = "invalid"
	forbidden   = "forbidden"
	unavailable = "unavailable"
	failOpen    = "fail_open" // passed because nobody could be asked
)

const defaultRealm = "proconsul"

// retryAfter is what a caller is told to wait where it cannot be checked.
const retryAfter = 5 * time.Second

// New returns the middleware of a route, whose methods come from methods.
// onDecision is told each method's part in a decision, with an empty method
// where none had one; it may be nil.
func New(cfg config.Auth, methods func(name string) (identity.Method, error), onDecision func(method, result string)) (middleware.Middleware, error) {
	g, err := compile(cfg, methods, onDecision)
	if err != nil {
		return nil, err
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if refusal := g.check(r, middleware.Of(w)); refusal != nil {
				problem.Write(w, r, refusal)
				return
			}
			next.ServeHTTP(w, r)
		})
	}, nil
}

// Strip returns a middleware that takes fields out of requests which only the
// answers of services may set.
func Strip(owned identity.Owned) middleware.Middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			owned.Strip(r.Header)
			next.ServeHTTP(w, r)
		})
	}
}

// Peek does with a request what New's middleware does before it passes it on,
// and counts nothing. It returns why the request may not pass; nil: it may, or,
// where asked is not empty, it depends on what the method of that name would
// hear: the request's context keeps methods from asking (identity.Dry).
func Peek(cfg config.Auth, methods func(name string) (identity.Method, error), r *http.Request, x *middleware.Exchange) (refusal *problem.Error, asked string, err error) {
	g, err := compile(cfg, methods, nil)
	if err != nil {
		return nil, "", err
	}
	if asked = g.asks(r, x); asked != "" {
		return nil, asked, nil
	}
	return g.check(r, x), "", nil
}

// asks returns the method on whose unheard word it depends whether a request
// may pass; empty: it does not.
func (g *guard) asks(r *http.Request, x *middleware.Exchange) (method string) {
	for _, m := range g.allOf {
		switch _, err := identify(m, r, x); {
		case errors.Is(err, identity.ErrNotAsked):
			method = m.Name()
		case err != nil:
			return "" // refused, whatever others say
		}
	}
	for _, m := range g.anyOf {
		switch _, err := identify(m, r, x); {
		case err == nil:
			return method
		case errors.Is(err, identity.ErrNotAsked):
			return m.Name()
		}
	}
	return method
}

func compile(cfg config.Auth, methods func(name string) (identity.Method, error), onDecision func(method, result string)) (*guard, error) {
	g := &guard{cfg: cfg, realm: cfg.Realm, tell: onDecision, byMethod: needsOf(cfg.ByMethod)}
	if g.realm == "" {
		g.realm = defaultRealm
	}
	if g.tell == nil {
		g.tell = func(string, string) {}
	}
	if len(cfg.AnyOf)+len(cfg.AllOf) == 0 && !cfg.Anonymous {
		return nil, errors.New("neither a method nor anonymous callers are named")
	}
	var faults []error
	for _, list := range []struct {
		names []string
		to    *[]identity.Method
	}{{cfg.AllOf, &g.allOf}, {cfg.AnyOf, &g.anyOf}} {
		for _, name := range list.names {
			m, err := methods(name)
			faults = append(faults, err)
			*list.to = append(*list.to, m)
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	g.toldMethod = g.byMethod != nil || slices.ContainsFunc(g.allOf, identity.Asks) || slices.ContainsFunc(g.anyOf, identity.Asks)
	return g, nil
}

// guard decides by one section.
type guard struct {
	cfg          config.Auth
	realm        string
	allOf, anyOf []identity.Method
	byMethod     map[string][]config.Needs // beside those of all methods; nil: none
	toldMethod   bool                      // the decision may go by the request's method
	tell         func(method, result string)
}

func needsOf(list []config.MethodNeeds) map[string][]config.Needs {
	if len(list) == 0 {
		return nil
	}
	out := map[string][]config.Needs{}
	for _, m := range list {
		for _, name := range config.WithHead(m.Methods) {
			out[name] = append(out[name], m.Needs)
		}
	}
	return out
}

// check decides about a request, and prepares one that may pass for its
// instance. x may be nil.
func (g *guard) check(r *http.Request, x *middleware.Exchange) *problem.Error {
	id, refusal := g.decide(r, x)
	if id != nil && x != nil {
		x.Consumer = id.Consumer // also of who is refused, for the log
		x.Claims = id.Asked()
	}
	if refusal != nil {
		return refusal
	}
	if g.cfg.ForwardAuthorization != "keep" {
		g.strip(r)
	}
	if g.toldMethod {
		middleware.StripOverrides(r.Header)
	}
	if id != nil {
		id.Tell(r.Header)
	}
	return nil
}

// attempt is what one method says of a request.
type attempt struct {
	method identity.Method
	id     *identity.Identity
	err    error
}

// decide returns who called, if anybody was authenticated, and why the request
// may not pass; nil: it may.
func (g *guard) decide(r *http.Request, x *middleware.Exchange) (*identity.Identity, *problem.Error) {
	var tried [4]attempt // without an allocation where there are few
	failed := tried[:0]
	var first *identity.Identity
	var more []*identity.Identity // those after the first
	var by [4]identity.Method
	passed := by[:0]
	for _, m := range g.allOf {
		id, err := identify(m, r, x)
		if err != nil {
			failed = append(failed, attempt{m, nil, err})
			continue
		}
		passed = append(passed, m)
		if first == nil {
			first = id
		} else {
			more = append(more, id)
		}
	}
	complete := len(failed) == 0
	if len(g.anyOf) > 0 {
		found := false
		for _, m := range g.anyOf {
			id, err := identify(m, r, x)
			if err != nil {
				failed = append(failed, attempt{m, nil, err})
				continue
			}
			found = true
			passed = append(passed, m)
			if first == nil {
				first = id
			} else {
				more = append(more, id)
			}
			break
		}
		complete = complete && found
	}
	if complete && first != nil {
		if len(more) > 0 {
			first = identity.Merge(append([]*identity.Identity{first}, more...)...)
		}
		return first, g.authorise(r.Method, first, passed)
	}
	if g.cfg.Anonymous && len(passed) == 0 && !slices.ContainsFunc(failed, func(a attempt) bool { return a.err != identity.ErrMissing }) {
		g.tell("", anonymous)
		return nil, nil
	}
	return nil, g.unauthenticated(failed)
}

// identify asks a method, and tells one that has to know where the request
// comes from.
func identify(m identity.Method, r *http.Request, x *middleware.Exchange) (*identity.Identity, error) {
	p, ok := m.(identity.Placed)
	if !ok || x == nil {
		return m.Identify(r)
	}
	return p.IdentifyFrom(r, identity.Origin{Client: x.ClientIP, Listener: x.Listener, Scheme: x.Scheme, Host: x.Host})
}

// unauthenticated is the answer where a method failed that should not have.
func (g *guard) unauthenticated(failed []attempt) *problem.Error {
	var challenges []string
	var causes []error
	detail := ""
	unknown := false // whether the caller may be right
	var answered *identity.Answered
	for _, a := range failed {
		result := invalid
		var no *identity.Refused
		switch {
		case answered == nil && errors.As(a.err, &answered):
			if answered.Status == http.StatusForbidden {
				result = forbidden
			}
		case errors.Is(a.err, identity.ErrMissing):
			result = missing
		case errors.Is(a.err, identity.ErrUnavailable):
			result, unknown = unavailable, true
		case errors.As(a.err, &no) && detail == "":
			detail = no.Why
		}
		g.tell(a.method.Name(), result)
		if text := a.method.Challenge(g.realm, a.err); text != "" {
			challenges = append(challenges, text)
		}
		causes = append(causes, fmt.Errorf("auth %s: %w", a.method.Name(), a.err))
	}
	if unknown {
		p := problem.New(problem.AuthUnavailable, "", errors.Join(causes...))
		p.RetryAfter = retryAfter
		return p
	}
	if answered != nil {
		p := problem.New(problem.Unauthenticated, "", errors.Join(causes...))
		if answered.Status == http.StatusForbidden {
			p.Reason = problem.Forbidden
		}
		p.Status, p.Answer = answered.Status, &problem.Answer{Header: answered.Header, Body: answered.Body}
		return p
	}
	p := problem.New(problem.Unauthenticated, detail, errors.Join(causes...))
	p.Header = http.Header{"Www-Authenticate": challenges}
	return p
}

// authorise says whether a known caller may pass.
func (g *guard) authorise(method string, id *identity.Identity, by []identity.Method) *problem.Error {
	why, scopes := lacks(id, g.cfg.Needs)
	if why == "" && g.byMethod != nil {
		// A service may take a method in any case, so that the needs do too.
		for _, needs := range g.byMethod[strings.ToUpper(method)] {
			if why, scopes = lacks(id, needs); why != "" {
				break
			}
		}
	}
	result := allowed
	if why != "" {
		result = forbidden
	}
	for _, m := range by {
		if id.Unchecked && result == allowed {
			g.tell(m.Name(), failOpen)
		} else {
			g.tell(m.Name(), result)
		}
	}
	if why == "" {
		return nil
	}
	p := problem.New(problem.Forbidden, why, nil)
	if scopes != nil { // RFC 6750 section 3.1
		p.Header = http.Header{"Www-Authenticate": {fmt.Sprintf("Bearer realm=%q, error=\"insufficient_scope\", scope=%q", g.realm, strings.Join(scopes, " "))}}
	}
	return p
}

// lacks says what a caller has not that is needed, and the scopes that would
// do where it is one; nothing: it has all.
func lacks(id *identity.Identity, n config.Needs) (why string, scopes []string) {
	switch {
	case len(n.Consumers) > 0 && !slices.Contains(n.Consumers, id.Consumer):
		return "this route is for other consumers", nil
	case len(n.Groups) > 0 && !overlap(n.Groups, id.Groups):
		return "the consumer is in none of the groups that may pass", nil
	case len(n.Roles) > 0 && !overlap(n.Roles, id.Roles):
		return "the consumer has none of the roles that may pass", nil
	}
	for _, c := range n.Claims {
		if !id.Has(c.Name, c.Equals) {
			return "the credential lacks a claim that this route asks for", nil
		}
	}
	for _, s := range n.Scopes {
		if !slices.Contains(id.Scopes, s) {
			return "the credential lacks a scope that this route asks for", n.Scopes
		}
	}
	return "", nil
}

func overlap(a, b []string) bool {
	for _, s := range a {
		if slices.Contains(b, s) {
			return true
		}
	}
	return false
}

// strip takes the credentials of every method of the route out of the request,
// also of those that were not needed.
func (g *guard) strip(r *http.Request) {
	for _, m := range g.allOf {
		m.Strip(r)
	}
	for _, m := range g.anyOf {
		m.Strip(r)
	}
}
