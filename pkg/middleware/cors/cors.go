// Package cors lets pages of other origins call a route from a browser, by the
// Fetch standard. Its settings are config.CORS.
//
// It answers preflights itself: 204, or 403 cors_denied where the origin, the
// method or a header is none that may. They never reach auth, a limit or an
// instance, since a browser sends them without the user's credentials. Other
// requests always pass: CORS keeps a page from reading an answer, and keeps
// nobody from asking. What an instance says of CORS is taken out, so that there
// is one answer to who may read.
//
// An origin is compared as a whole. *.example.com is every name below
// example.com, by whole labels, with the scheme and port that are written; null
// is allowed by its own name only. An answer that depends on the origin says so
// in Vary, also where the request has none.
package cors

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
)

// The fields of the Fetch standard, in canonical form.
const (
	fieldOrigin         = "Origin"
	requestMethod       = "Access-Control-Request-Method"
	requestHeaders      = "Access-Control-Request-Headers"
	requestPrivate      = "Access-Control-Request-Private-Network"
	allowOrigin         = "Access-Control-Allow-Origin"
	allowCredentials    = "Access-Control-Allow-Credentials"
	allowMethods        = "Access-Control-Allow-Methods"
	allowHeaders        = "Access-Control-Allow-Headers"
	allowPrivateNetwork = "Access-Control-Allow-Private-Network"
	exposeHeaders       = "Access-Control-Expose-Headers"
	maxAge              = "Access-Control-Max-Age"
)

var answerFields = [...]string{allowOrigin, allowCredentials, allowMethods, allowHeaders, allowPrivateNetwork, exposeHeaders, maxAge}

// maxNamed bounds how many header fields one preflight may ask for.
const maxNamed = 100

// Preflight returns the method of the request that r asks leave for, where r is
// a preflight (Fetch standard, 4.8).
func Preflight(r *http.Request) (method string, ok bool) {
	if r.Method != http.MethodOptions {
		return "", false
	}
	asked := r.Header[requestMethod]
	if len(asked) != 1 || len(r.Header[fieldOrigin]) != 1 || !token(asked[0]) {
		return "", false
	}
	return asked[0], true
}

// New returns the middleware of a route that takes those methods; none stands
// for all.
func New(cfg config.CORS, methods []string) (middleware.Middleware, error) {
	p, err := compile(cfg, methods)
	if err != nil {
		return nil, err
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if method, ok := Preflight(r); ok {
				p.answer(w, r, method)
				return
			}
			next.ServeHTTP(middleware.NewHook(w, p.stampFor(r.Header[fieldOrigin])), r)
		})
	}, nil
}

// Peek says what New's middleware would do with r: answered is set for a
// preflight, and refusal for one that is denied.
func Peek(cfg config.CORS, methods []string, r *http.Request) (text string, answered bool, refusal *problem.Error) {
	p, err := compile(cfg, methods)
	if err != nil { // Build has compiled it before
		return "", false, problem.From(err)
	}
	if method, ok := Preflight(r); ok {
		if refusal = p.judge(r, method); refusal != nil {
			return "denies the preflight", false, refusal
		}
		return "answers the preflight: " + r.Header.Get(fieldOrigin) + " may " + method, true, nil
	}
	origin := r.Header[fieldOrigin]
	switch {
	case len(origin) == 0:
		return "no Origin: not from another site's page", false, nil
	case p.allowed(origin) == nil:
		return "the page's origin may not read the answer", false, nil
	}
	return "the page's origin may read the answer", false, nil
}

type policy struct {
	any         bool
	origins     map[string]func(int, http.Header) // stamps by exact origin
	below       []below
	nobody      func(int, http.Header) // the stamp for other origins
	everybody   func(int, http.Header)
	credentials bool
	private     bool

	methods    []string // nil: any
	headers    []string // canonical; nil: any
	methodList []string // values of fields: shared by all answers
	headerList []string
	exposeList []string
	age        []string
	yes        []string
	star       []string
}

// below is every origin of a scheme whose host is below a domain.
type below struct{ scheme, domain string } // "https://", ".example.com:8443"

func compile(cfg config.CORS, methods []string) (*policy, error) {
	if len(cfg.Origins) == 0 {
		return nil, errors.New("no origins")
	}
	p := &policy{origins: map[string]func(int, http.Header){}, credentials: cfg.Credentials, private: cfg.PrivateNetwork,
		yes: []string{"true"}, star: []string{"*"}}
	if cfg.MaxAge > 0 {
		p.age = []string{strconv.FormatInt(int64(cfg.MaxAge.Seconds()), 10)}
	}
	p.methods = slices.Clone(cfg.Methods)
	if len(p.methods) == 0 {
		p.methods = slices.Clone(methods)
	}
	if len(p.methods) == 0 {
		p.methods = []string{http.MethodGet, http.MethodHead, http.MethodPost}
	}
	if slices.Contains(p.methods, http.MethodGet) && !slices.Contains(p.methods, http.MethodHead) {
		p.methods = append(p.methods, http.MethodHead)
	}
	p.headers = slices.Clone(cfg.Headers)
	if len(p.headers) == 0 {
		p.headers = []string{"Accept", "Accept-Language", "Content-Language", "Content-Type", "Range"}
	}
	p.methodList = []string{strings.Join(p.methods, ", ")}
	p.headerList = []string{strings.Join(p.headers, ", ")}
	if slices.Contains(p.methods, "*") {
		p.methods, p.methodList = nil, p.star
	}
	if slices.Contains(p.headers, "*") {
		p.headers, p.headerList = nil, p.star
	}
	if len(cfg.Expose) > 0 {
		p.exposeList = []string{strings.Join(cfg.Expose, ", ")}
	}
	p.nobody = func(_ int, h http.Header) { p.stamp(h, nil) }
	p.everybody = func(_ int, h http.Header) { p.stamp(h, p.star) }
	for _, o := range cfg.Origins {
		scheme, host, _ := strings.Cut(o, "://")
		switch domain, wild := strings.CutPrefix(host, "*."); {
		case o == "*" && cfg.Credentials:
			return nil, errors.New("every origin with credentials")
		case o == "*":
			p.any = true
		case wild:
			p.below = append(p.below, below{scheme + "://", "." + domain})
		default:
			values := []string{o}
			p.origins[o] = func(_ int, h http.Header) { p.stamp(h, values) }
		}
	}
	return p, nil
}

// allowed returns what Access-Control-Allow-Origin says to an origin; nil:
// nothing.
func (p *policy) allowed(origin []string) []string {
	switch {
	case p.any:
		return p.star
	case len(origin) != 1:
		return nil
	case p.origins[origin[0]] != nil:
		return []string{origin[0]}
	}
	for _, b := range p.below {
		if b.matches(origin[0]) {
			return []string{origin[0]}
		}
	}
	return nil
}

// matches reports whether an origin is below the domain: what stands in front
// has to be whole labels of a host's name, or a user name or path could.
func (b below) matches(origin string) bool {
	if len(origin) > 300 { // a host's name has 253
		return false
	}
	rest, ok := strings.CutPrefix(origin, b.scheme)
	if !ok {
		return false
	}
	name, ok := strings.CutSuffix(rest, b.domain)
	if !ok {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" {
			return false
		}
		for i := range len(label) {
			if c := label[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}

// stampFor returns what puts the fields into an answer to that origin.
func (p *policy) stampFor(origin []string) func(int, http.Header) {
	if p.any {
		return p.everybody
	}
	if len(origin) != 1 {
		return p.nobody
	}
	if stamp := p.origins[origin[0]]; stamp != nil {
		return stamp
	}
	if values := p.allowed(origin); values != nil {
		return func(_ int, h http.Header) { p.stamp(h, values) }
	}
	return p.nobody
}

// stamp replaces what an answer says of CORS.
func (p *policy) stamp(h http.Header, origin []string) {
	for _, name := range answerFields {
		delete(h, name)
	}
	if !p.any {
		middleware.Vary(h, fieldOrigin)
	}
	if origin == nil {
		return
	}
	h[allowOrigin] = origin
	if p.credentials {
		h[allowCredentials] = p.yes
	}
	if p.exposeList != nil {
		h[exposeHeaders] = p.exposeList
	}
}

// answer ends a preflight.
func (p *policy) answer(w http.ResponseWriter, r *http.Request, method string) {
	h := w.Header()
	for _, name := range [...]string{fieldOrigin, requestMethod, requestHeaders} {
		middleware.Vary(h, name)
	}
	if p.private {
		middleware.Vary(h, requestPrivate)
	}
	if refusal := p.judge(r, method); refusal != nil {
		problem.Write(w, r, refusal)
		return
	}
	h[allowOrigin] = p.allowed(r.Header[fieldOrigin])
	if p.credentials {
		h[allowCredentials] = p.yes
	}
	h[allowMethods], h[allowHeaders] = p.methodList, p.headerList
	if p.age != nil {
		h[maxAge] = p.age
	}
	if p.private && r.Header.Get(requestPrivate) == "true" {
		h[allowPrivateNetwork] = p.yes
	}
	w.WriteHeader(http.StatusNoContent)
}

// judge says why a preflight is denied; nil: it is not.
func (p *policy) judge(r *http.Request, method string) *problem.Error {
	if p.allowed(r.Header[fieldOrigin]) == nil {
		return problem.New(problem.CORSDenied, "pages of this origin may not call the route", nil)
	}
	if p.methods != nil && !slices.Contains(p.methods, method) {
		return problem.New(problem.CORSDenied, fmt.Sprintf("pages may not use the method %.32s", method), nil)
	}
	named := 0
	for _, line := range r.Header[requestHeaders] {
		for name := range strings.SplitSeq(line, ",") {
			if name = textproto.TrimString(name); name == "" {
				continue
			}
			if named++; named > maxNamed {
				return problem.New(problem.CORSDenied, fmt.Sprintf("the preflight names more than %d header fields", maxNamed), nil)
			}
			if !token(name) {
				return problem.New(problem.CORSDenied, requestHeaders+" is malformed", nil)
			}
			if p.headers != nil && !slices.ContainsFunc(p.headers, func(h string) bool { return strings.EqualFold(h, name) }) {
				return problem.New(problem.CORSDenied, fmt.Sprintf("pages may not send the header field %.64s", name), nil)
			}
		}
	}
	return nil
}

// token reports whether s is a token of RFC 9110 section 5.6.2.
func token(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}
