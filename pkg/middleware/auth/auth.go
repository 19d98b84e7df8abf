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

// Peek does with a request what New's middleware does before it passes it on,
// and counts nothing. It returns why the request may not pass; nil: it may.
func Peek(cfg config.Auth, methods func(name string) (identity.Method, error), r *http.Request, x *middleware.Exchange) (*problem.Error, error) {
	g, err := compile(cfg, methods, nil)
	if err != nil {
		return nil, err
	}
	return g.check(r, x), nil
}

func compile(cfg config.Auth, methods func(name string) (identity.Method, error), onDecision func(method, result string)) (*guard, error) {
	g := &guard{cfg: cfg, realm: cfg.Realm, tell: onDecision}
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
	return g, nil
}

// guard decides by one section.
type guard struct {
	cfg          config.Auth
	realm        string
	allOf, anyOf []identity.Method
	tell         func(method, result string)
}

// check decides about a request, and prepares one that may pass for its
// instance. x may be nil.
func (g *guard) check(r *http.Request, x *middleware.Exchange) *problem.Error {
	id, refusal := g.decide(r)
	if id != nil && x != nil {
		x.Consumer = id.Consumer // also of who is refused, for the log
	}
	if refusal != nil {
		return refusal
	}
	if g.cfg.ForwardAuthorization != "keep" {
		g.strip(r)
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
func (g *guard) decide(r *http.Request) (*identity.Identity, *problem.Error) {
	var tried [4]attempt // without an allocation where there are few
	failed := tried[:0]
	var first *identity.Identity
	var more []*identity.Identity // those after the first
	var by [4]identity.Method
	passed := by[:0]
	for _, m := range g.allOf {
		id, err := m.Identify(r)
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
			id, err := m.Identify(r)
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
		return first, g.authorise(first, passed)
	}
	if g.cfg.Anonymous && len(passed) == 0 && !slices.ContainsFunc(failed, func(a attempt) bool { return a.err != identity.ErrMissing }) {
		g.tell("", anonymous)
		return nil, nil
	}
	return nil, g.unauthenticated(failed)
}

// unauthenticated is the answer where a method failed that should not have.
func (g *guard) unauthenticated(failed []attempt) *problem.Error {
	var challenges []string
	var causes []error
	detail := ""
	unknown := false // whether the caller may be right
	for _, a := range failed {
		result := invalid
		var no *identity.Refused
		switch {
		case errors.Is(a.err, identity.ErrMissing):
			result = missing
		case errors.Is(a.err, identity.ErrUnavailable):
			result, unknown = unavailable, true
		case errors.As(a.err, &no) && detail == "":
			detail = no.Why
		}
		g.tell(a.method.Name(), result)
		challenges = append(challenges, a.method.Challenge(g.realm, a.err))
		causes = append(causes, fmt.Errorf("auth %s: %w", a.method.Name(), a.err))
	}
	if unknown {
		p := problem.New(problem.AuthUnavailable, "", errors.Join(causes...))
		p.RetryAfter = retryAfter
		return p
	}
	p := problem.New(problem.Unauthenticated, detail, errors.Join(causes...))
	p.Header = http.Header{"Www-Authenticate": challenges}
	return p
}

// authorise says whether a known caller may pass.
func (g *guard) authorise(id *identity.Identity, by []identity.Method) *problem.Error {
	why := ""
	var challenges []string
	switch {
	case len(g.cfg.Consumers) > 0 && !slices.Contains(g.cfg.Consumers, id.Consumer):
		why = "this route is for other consumers"
	case len(g.cfg.Groups) > 0 && !slices.ContainsFunc(g.cfg.Groups, func(name string) bool { return slices.Contains(id.Groups, name) }):
		why = "the consumer is in none of the groups that may pass"
	case slices.ContainsFunc(g.cfg.Scopes, func(s string) bool { return !slices.Contains(id.Scopes, s) }):
		why = "the credential lacks a scope that this route asks for"
		// RFC 6750 section 3.1.
		challenges = []string{fmt.Sprintf("Bearer realm=%q, error=\"insufficient_scope\", scope=%q", g.realm, strings.Join(g.cfg.Scopes, " "))}
	}
	result := allowed
	if why != "" {
		result = forbidden
	}
	for _, m := range by {
		g.tell(m.Name(), result)
	}
	if why == "" {
		return nil
	}
	p := problem.New(problem.Forbidden, why, nil)
	if challenges != nil {
		p.Header = http.Header{"Www-Authenticate": challenges}
	}
	return p
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
