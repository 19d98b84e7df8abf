package config

import (
	"maps"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

// canonicalise brings every name to its one spelling, fills names that follow
// from others, and makes the upstreams that only routes name. It runs before
// check and may not assume that anything is right.
func (b *builder) canonicalise(c *Config) {
	for i := range c.Listen {
		l := &c.Listen[i]
		if l.Name == "" {
			l.Name = l.Addr
		}
		if l.TLS != nil {
			for j, name := range l.TLS.ACME {
				l.TLS.ACME[j] = strings.ToLower(strings.TrimSuffix(name, "."))
			}
		}
	}
	if prefix := strings.Trim(c.KV.Consumers, "/"); prefix != "" {
		c.KV.Consumers = prefix + "/"
	}
	for _, scheme := range []string{"http", "https"} {
		if rest, ok := strings.CutPrefix(c.Consul.Addr, scheme+"://"); ok {
			c.Consul.Addr = strings.TrimSuffix(rest, "/")
			if b.places["consul.scheme"].src == nil { // a written one is checked against it
				c.Consul.Scheme = scheme
			}
		}
	}
	if !c.Consul.Token.Empty() && c.Consul.TokenFile != "" {
		// One is enough: that of the higher layer. Of one layer both are a
		// fault, which check reports.
		switch token, file := b.layerOf("consul.token"), b.layerOf("consul.token_file"); {
		case token > file:
			c.Consul.TokenFile = ""
		case token < file:
			c.Consul.Token = Secret{}
		}
	}
	for _, m := range c.Auth {
		if m.APIKey != nil {
			m.APIKey.Header = http.CanonicalHeaderKey(m.APIKey.Header)
		}
		if f := m.ForwardAuth; f != nil {
			canonicalKeys(f.RequestHeaders)
			canonicalKeys(f.ResponseHeaders)
			f.ConsumerHeader, f.GroupsHeader = http.CanonicalHeaderKey(f.ConsumerHeader), http.CanonicalHeaderKey(f.GroupsHeader)
		}
	}
	for i := range c.Policies {
		c.Policies[i].Middleware.canonicalise()
	}
	c.RateLimit.canonicalise()
	for i := range c.Upstreams {
		u := &c.Upstreams[i]
		if u.Name == "" {
			u.Name = u.Service
		}
		u.RateLimit.canonicalise()
		upper(u.Retry.Methods)
		for j, on := range u.Retry.On {
			u.Retry.On[j] = strings.ToLower(on)
		}
	}
	for i := range c.Routes {
		r := &c.Routes[i]
		if p, ok := b.places[at("routes", i)]; ok && p.src != nil {
			r.File, r.Line = p.src.name, p.val.Line
		}
		r.Middleware.canonicalise()
		r.Match.canonicalise()
		r.Upstream.Strip = strings.TrimRight(r.Upstream.Strip, "/")
		r.Upstream.Prepend = strings.TrimRight(r.Upstream.Prepend, "/")
		if h := r.Upstream.Host; h == "" {
			r.Upstream.Host = "preserve"
		} else {
			r.Upstream.Host = strings.ToLower(h)
		}
	}
	c.addImplicit()
}

// layerOf ranks where a value comes from: CONSUL_* variables, the file,
// PROCONSUL_* variables, the command line.
func (b *builder) layerOf(path string) int {
	switch o := b.places[path].origin; {
	case strings.HasPrefix(o, "env CONSUL_"):
		return 0
	case o == "":
		return 1
	case strings.HasPrefix(o, "env "):
		return 2
	}
	return 3
}

// canonicalSource returns header(NAME) and response_header(NAME) with the name
// as fields have it, and all else as it is.
func canonicalSource(text string) string {
	for _, kind := range [...]string{"header", "response_header"} {
		if name, ok := Argument(text, kind); ok {
			return kind + "(" + http.CanonicalHeaderKey(name) + ")"
		}
	}
	return text
}

func (m *Middleware) canonicalise() {
	if a := m.Auth; a != nil {
		for i := range a.ByMethod {
			upper(a.ByMethod[i].Methods)
		}
	}
	if c := m.IP; c != nil {
		for i := range c.ByMethod {
			upper(c.ByMethod[i].Methods)
		}
	}
	m.RateLimit.canonicalise()
	if c := m.CORS; c != nil {
		for i, o := range c.Origins {
			c.Origins[i] = strings.ToLower(o)
		}
		upper(c.Methods)
		canonicalNames(c.Headers)
		canonicalNames(c.Expose)
	}
	if s := m.SecureHeaders; s != nil {
		canonicalNames(s.Remove)
		for i, host := range s.InternalHosts {
			s.InternalHosts[i] = strings.TrimSuffix(strings.ToLower(host), ".")
		}
	}
	if v := m.Validate; v != nil {
		for i, t := range v.ContentTypes {
			v.ContentTypes[i] = strings.ToLower(t)
		}
		for i := range v.Params {
			if p := &v.Params[i]; p.In == "header" {
				p.Name = http.CanonicalHeaderKey(p.Name)
			}
		}
	}
	if h := m.Headers; h != nil {
		for _, rules := range []*HeaderRules{&h.Request, &h.Response} {
			canonicalNames(rules.Remove)
			for _, list := range [][]HeaderField{rules.Set, rules.Add} {
				for i := range list {
					list[i].Name = http.CanonicalHeaderKey(list[i].Name)
				}
			}
		}
	}
}

func canonicalNames(names []string) {
	for i, name := range names {
		names[i] = http.CanonicalHeaderKey(name)
	}
}

func (l *RateLimit) canonicalise() {
	if l == nil {
		return
	}
	if l.Rate != (Limit{}) && len(l.Limits) == 0 {
		l.Limits, l.Rate = []Limit{l.Rate}, Limit{}
	}
	by := SplitBy(l.By)
	for i := range by {
		by[i] = canonicalSource(by[i])
	}
	l.By = strings.Join(by, "+")
	l.Cost = canonicalSource(l.Cost)
}

// Argument takes NAME out of text such as header(NAME), where it is of that
// kind.
func Argument(text, kind string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(text, kind+"(")
	if !ok {
		return "", false
	}
	name, ok = strings.CutSuffix(rest, ")")
	return strings.TrimSpace(name), ok
}

func (m *Match) canonicalise() {
	m.Host = canonicalHost(m.Host)
	if m.Path == "" {
		m.Path = "/**"
	}
	upper(m.Methods)
	for i := range m.Headers {
		m.Headers[i].Name = http.CanonicalHeaderKey(m.Headers[i].Name)
	}
}

func canonicalKeys(list []string) {
	for i, s := range list {
		list[i] = http.CanonicalHeaderKey(s)
	}
}

func upper(list []string) {
	for i, s := range list {
		list[i] = strings.ToUpper(s)
	}
}

// canonicalHost returns a host pattern in lower case, without port and without
// the dot at its end; "*" is any host, as is "".
func canonicalHost(host string) string {
	host = strings.ToLower(host)
	if _, err := netip.ParseAddr(host); err == nil {
		return host
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	host = strings.TrimSuffix(host, ".")
	if host == "*" {
		return ""
	}
	return host
}

// addImplicit appends an upstream by defaults for every Consul service that a
// route or a method of auth names and no upstream is for.
func (c *Config) addImplicit() {
	if c.Consul.Disabled {
		return
	}
	have := make(map[string]bool, len(c.Upstreams))
	for _, u := range c.Upstreams {
		have[u.Name] = true
	}
	var services []string
	for _, r := range c.Routes {
		if r.Redirect == nil {
			services = append(services, r.Upstream.Service)
		}
	}
	services = slices.AppendSeq(services, maps.Values(c.asked()))
	for _, service := range services {
		if service == "" || have[service] {
			continue
		}
		have[service] = true
		u := DefaultUpstream()
		u.Name, u.Service, u.Implicit = service, service, true
		c.Upstreams = append(c.Upstreams, u)
	}
}

// Upstream returns the upstream of that name.
func (c *Config) Upstream(name string) (Upstream, bool) {
	i := slices.IndexFunc(c.Upstreams, func(u Upstream) bool { return u.Name == name })
	if i < 0 {
		return Upstream{}, false
	}
	return c.Upstreams[i], true
}

// Policy returns the policy of that name.
func (c *Config) Policy(name string) (Policy, bool) {
	i := slices.IndexFunc(c.Policies, func(p Policy) bool { return p.Name == name })
	if i < 0 {
		return Policy{}, false
	}
	return c.Policies[i], true
}

// Chain returns the middleware settings of a route: those of its policies in
// the order of use, each section replacing the one before it, and at last the
// route's own.
func (c *Config) Chain(r Route) Middleware {
	var out Middleware
	for _, name := range r.Use {
		if p, ok := c.Policy(name); ok {
			out.overlay(p.Middleware)
		}
	}
	out.overlay(r.Middleware)
	return out
}

// NamedLimit is a rate limit and the name of its counts.
type NamedLimit struct {
	Name string
	RateLimit
}

// The names of limits that are not a route's own. No route has such a name.
const (
	GlobalLimit   = "@global"
	upstreamLimit = "@upstream/"
)

// Limits returns what limits a route's requests: its own limit, which has its
// name, its upstream's, and that of all routes.
func (c *Config) Limits(r Route) (limits []NamedLimit) {
	if l := c.Chain(r).RateLimit; l != nil {
		limits = append(limits, NamedLimit{r.Name, *l})
	}
	if r.Redirect == nil {
		if u, ok := c.Upstream(r.Upstream.Service); ok && u.RateLimit != nil {
			limits = append(limits, NamedLimit{upstreamLimit + u.Name, *u.RateLimit})
		}
	}
	if c.RateLimit != nil {
		limits = append(limits, NamedLimit{GlobalLimit, *c.RateLimit})
	}
	return limits
}

// AllLimits returns every limit that a route's requests are under, once each.
func (c *Config) AllLimits() (limits []NamedLimit) {
	seen := map[string]bool{}
	for _, r := range c.Routes {
		for _, l := range c.Limits(r) {
			if !seen[l.Name] {
				seen[l.Name] = true
				limits = append(limits, l)
			}
		}
	}
	return limits
}

// CountedClaims returns the claims of tokens that limits count by.
func (c *Config) CountedClaims() (names []string) {
	for _, l := range c.AllLimits() {
		for _, part := range SplitBy(l.By) {
			if name, ok := Argument(part, "claim"); ok && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// overlay takes over every section that m has. Reflection keeps a new
// middleware from being forgotten here.
func (out *Middleware) overlay(m Middleware) {
	dst, src := reflect.ValueOf(out).Elem(), reflect.ValueOf(m)
	for i := range src.NumField() {
		if !src.Field(i).IsNil() {
			dst.Field(i).Set(src.Field(i))
		}
	}
}

// NeedsRestart returns the key paths whose values differ in next and that are
// read at start only, in order. A reload keeps the running values and says so.
func (c *Config) NeedsRestart(next *Config) []string {
	var out []string
	restarts(&out, "", reflect.ValueOf(c).Elem(), reflect.ValueOf(next).Elem())
	return out
}

func restarts(out *[]string, path string, a, b reflect.Value) {
	for _, f := range fieldsOf(a.Type()) {
		switch {
		case f.restart:
			differences(out, join(path, f.key), a.FieldByIndex(f.index), b.FieldByIndex(f.index))
		case f.typ.Kind() == reflect.Struct && !isScalar(f.typ):
			restarts(out, join(path, f.key), a.FieldByIndex(f.index), b.FieldByIndex(f.index))
		}
	}
}

func differences(out *[]string, path string, a, b reflect.Value) {
	switch {
	case reflect.DeepEqual(a.Interface(), b.Interface()):
	case a.Kind() == reflect.Struct && !isScalar(a.Type()):
		for _, f := range fieldsOf(a.Type()) {
			differences(out, join(path, f.key), a.FieldByIndex(f.index), b.FieldByIndex(f.index))
		}
	case a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil():
		differences(out, path, a.Elem(), b.Elem())
	case a.Kind() == reflect.Slice && a.Len() == b.Len() && !isScalar(a.Type().Elem()):
		for i := range a.Len() {
			differences(out, at(path, i), a.Index(i), b.Index(i))
		}
	default:
		*out = append(*out, path)
	}
}

// WithHead returns the methods of a list as requests have them: a list with GET
// has HEAD as well, which asks for the same without its body.
func WithHead(methods []string) []string {
	if slices.Contains(methods, http.MethodGet) && !slices.Contains(methods, http.MethodHead) {
		return append(slices.Clone(methods), http.MethodHead)
	}
	return methods
}
