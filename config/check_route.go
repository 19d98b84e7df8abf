package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

func (b *builder) checkRoute(path string, r Route) {
	b.plainName(join(path, "name"), r.Name)
	if strings.HasPrefix(r.Name, "@") {
		b.bad(join(path, "name"), r.Name, CodeFormat, "begins with @, as limits do that are not a route's", "")
	}
	b.checkMatch(join(path, "match"), r.Match)
	b.checkMiddleware(path, r.Middleware)

	up := join(path, "upstream")
	service := join(up, "service")
	switch {
	case r.Redirect != nil:
		b.exclusive(path, "upstream", "redirect", b.written(up), true)
	case !b.written(up) && !b.meant[join(path, "redirect")]:
		b.fault(Fault{Path: path, Code: CodeMissing, Message: b.label(path) + " has neither upstream nor redirect", Hint: "write upstream: {service: NAME}"})
	case !b.written(up), b.meant[up] && b.places[up].val == nil:
	case r.Upstream.Service == "":
		b.need(up, "service", "", "")
	default:
		b.plainName(service, r.Upstream.Service)
	}
	b.checkRewrite(up, r)
	if r.Redirect != nil {
		b.checkRedirect(join(path, "redirect.to"), r.Redirect.To)
	}
}

// names are what a reference can name: for looking up, and in their order for
// messages.
type names struct {
	list []string
	set  map[string]bool
}

func (n *names) add(name string) {
	if n.set == nil {
		n.set = map[string]bool{}
	}
	n.list, n.set[name] = append(n.list, name), true
}

// String lists a few names, as " (have: a, b)".
func (n names) String() string {
	switch k := len(n.list); {
	case k == 0:
		return " (there are none)"
	case k > 6:
		return fmt.Sprintf(" (have: %s and %d more)", strings.Join(n.list[:5], ", "), k-5)
	}
	return " (have: " + strings.Join(n.list, ", ") + ")"
}

func (b *builder) checkUse(policies names, path string, use []string) {
	for i, name := range use {
		switch p := at(path, i); {
		case !b.sound(p):
		case slices.Contains(use[:i], name):
			b.bad(p, name, CodeNameTwice, "is used twice", "")
		case !policies.set[name]:
			b.bad(p, name, CodeReference, "is no policy"+policies.String(), didYouMean(name, policies.list))
		}
	}
}

// maxGuesses bounds how many upstreams a service's name is compared with.
const maxGuesses = 300

func (b *builder) checkService(c *Config, upstreams names, path, service string) {
	if service == "" || upstreams.set[service] || !b.sound(path) {
		return
	}
	if c.Consul.Disabled {
		b.bad(path, service, CodeReference, "is no upstream"+upstreams.String()+", and consul is disabled", didYouMean(service, upstreams.list))
		return
	}
	if len(service) < 4 || len(upstreams.list) > maxGuesses {
		return
	}
	// Names that differ in digits only (orders-v1, orders-v2) are meant to.
	m := closest(service, upstreams.list)
	if m != "" && digits(m) == digits(service) && distance(service, m, 3) < 3 {
		b.warn(path, CodeClose, fmt.Sprintf("%s %q is no upstream here, so it is taken as a Consul service with default settings", path, service), fmt.Sprintf("did you mean %q?", m))
	}
}

func digits(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, s)
}

func (b *builder) checkMatch(path string, m Match) {
	if host := join(path, "host"); m.Host != "" && b.sound(host) {
		b.hostPattern(host, m.Host)
	}
	if p := join(path, "path"); b.sound(p) {
		if is, hint := pathPattern(m.Path); is != "" {
			b.bad(p, m.Path, CodePath, is, hint)
		}
	}
	for i, method := range m.Methods {
		p := at(join(path, "methods"), i)
		b.method(p, method)
		if slices.Contains(m.Methods[:i], method) {
			b.bad(p, method, CodeNameTwice, "is listed twice", "")
		}
	}
	for i, f := range m.Headers {
		p := at(join(path, "headers"), i)
		if f.Name != "" && !token(f.Name) {
			b.bad(join(p, "name"), f.Name, CodeHeader, "is no header name", "")
		}
		b.matchField(p, f)
	}
	for i, f := range m.Query {
		b.matchField(at(join(path, "query"), i), f)
	}
}

func (b *builder) matchField(path string, f MatchField) {
	b.exclusive(path, "value", "regex", f.Value != "", f.Regex != "")
	if f.Regex == "" {
		return
	}
	if len(f.Regex) > 1024 {
		b.bad(join(path, "regex"), f.Regex, CodeRegex, "is longer than 1024 bytes", "")
	} else if _, err := regexp.Compile("^(?:" + f.Regex + ")$"); err != nil {
		reason, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "error parsing regexp: "), ":")
		b.bad(join(path, "regex"), f.Regex, CodeRegex, "is no regular expression: "+reason, "")
	}
}

func (b *builder) hostPattern(path, host string) {
	written := b.text(path, host)
	if _, port, err := net.SplitHostPort(written); err == nil && port != "" && !strings.Contains(written, "/") {
		b.warn(path, CodeNoEffect, path+b.quote(path, written)+" names a port, and ports are not matched", fmt.Sprintf("write %q", host))
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return
	}
	name := strings.TrimPrefix(host, "*.")
	hint := ""
	switch {
	case strings.Contains(written, "/"):
		hint = "paths go to match.path"
		if u, err := url.Parse(written); err == nil && u.Hostname() != "" {
			hint = fmt.Sprintf("did you mean %q?", u.Hostname())
		}
	case strings.Contains(name, "*"):
		hint = "a * stands alone and in front: *.example.com"
	case strings.ContainsFunc(name, func(r rune) bool { return r > 127 }):
		hint = "write it as browsers send it, in punycode (xn--...)"
	}
	if !hostName(name) {
		b.bad(path, written, CodeHost, "is no host (want shop.example.com, *.example.com or an IP address)", hint)
	}
}

// text returns the value of a path as it was written, or else the given one.
func (b *builder) text(path, value string) string {
	if p := b.places[path]; p.val != nil && p.outside == "" && p.origin == "" {
		return resolved(p.val).Value
	}
	return value
}

// hostName reports whether name is a host's name in lower case. Docker and
// Consul names may have underscores.
func hostName(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, r := range label {
			if !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_') {
				return false
			}
		}
	}
	return true
}

var (
	templateSegment = regexp.MustCompile(`^\{[A-Za-z0-9_]+\}$`)
	colonSegment    = regexp.MustCompile(`^:([A-Za-z0-9_]+)$`)
)

// pathPattern says what is wrong with a path pattern; is is empty where
// nothing is.
func pathPattern(pattern string) (is, hint string) {
	if pattern[0] != '/' {
		return "does not begin with a slash", fmt.Sprintf("did you mean %q?", "/"+pattern)
	}
	body, prefix := strings.CutSuffix(pattern, "/**")
	if i := strings.IndexFunc(body, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\\' || r == '?' || r == '#' || r == ';' }); i >= 0 {
		if body[i] == '?' {
			return "has a query", "query parameters go to match.query"
		}
		return fmt.Sprintf("has the character %q, which no path that the gateway forwards has", body[i]), ""
	}
	if body == "" {
		return "", ""
	}
	segments := strings.Split(body[1:], "/")
	names := map[string]bool{}
	for i, s := range segments {
		last := i == len(segments)-1
		switch {
		case s == "" && last && !prefix: // "/a/" or "/"
		case s == "":
			return "has an empty segment", ""
		case s == "." || s == "..":
			return "has a dot segment", ""
		case s == "*" && last && !prefix:
			return "ends in /*, and prefixes end in /**", fmt.Sprintf("did you mean %q?", pattern+"*")
		case colonSegment.MatchString(s):
			return "has " + s + ", and templates are written {" + s[1:] + "}", ""
		case templateSegment.MatchString(s):
			if names[s] {
				return "has " + s + " twice", ""
			}
			names[s] = true
		case strings.ContainsAny(s, "{}*"):
			return fmt.Sprintf("has %q: {name} takes a whole segment, and ** stands at the end", s), ""
		default:
			if _, err := url.PathUnescape(s); err != nil {
				return "has a bad percent escape", ""
			}
		}
	}
	return "", ""
}

// shape is a path pattern without the names of its templates: patterns of one
// shape match the same paths.
func shape(pattern string) string {
	segments := strings.Split(pattern, "/")
	for i, s := range segments {
		if templateSegment.MatchString(s) {
			segments[i] = "{}"
		}
	}
	return strings.Join(segments, "/")
}

func (b *builder) checkRewrite(up string, r Route) {
	match := join(parent(up), "match")
	if s := join(up, "strip"); r.Upstream.Strip != "" && b.sound(s) {
		strip := r.Upstream.Strip
		pattern := strings.TrimSuffix(r.Match.Path, "/**")
		switch {
		case strip[0] != '/':
			b.bad(s, strip, CodeStrip, "does not begin with a slash", fmt.Sprintf("did you mean %q?", "/"+strip))
		case strings.ContainsAny(strip, "{}*?#"):
			b.bad(s, strip, CodeStrip, "is not plain text", "")
		case !b.sound(match) || b.meant[match+".path"]:
		case pattern != strip && !strings.HasPrefix(pattern, strip+"/"):
			b.bad(s, strip, CodeStrip, fmt.Sprintf("is not in front of the route's path %q", r.Match.Path), "")
		}
	}
	if p := join(up, "prepend"); r.Upstream.Prepend != "" && b.sound(p) {
		if is, hint := pathPattern(r.Upstream.Prepend); is != "" || strings.ContainsAny(r.Upstream.Prepend, "{}*") {
			if is == "" {
				is = "is not plain text"
			}
			b.bad(p, r.Upstream.Prepend, CodePath, is, hint)
		}
	}
	h := r.Upstream.Host
	if p := join(up, "host"); h != "preserve" && h != "instance" && b.sound(p) {
		host := h
		if name, _, err := net.SplitHostPort(h); err == nil {
			host = name
		}
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil && !hostName(host) {
			b.bad(p, h, CodeHost, "is none of preserve, instance or a host to send", "")
		} else if m := closest(h, []string{"preserve", "instance"}); m != "" {
			b.bad(p, h, CodeChoice, "is none of preserve, instance or a host to send", fmt.Sprintf("did you mean %q?", m))
		}
	}
}

var placeholder = regexp.MustCompile(`\{[^}]*\}?`)

func (b *builder) checkRedirect(path, to string) {
	if to == "" || !b.sound(path) {
		return
	}
	for _, p := range placeholder.FindAllString(to, -1) {
		if p != "{path}" && p != "{query}" {
			b.bad(path, to, CodeFormat, fmt.Sprintf("has %s, and only {path} and {query} are replaced", p), "")
			return
		}
	}
	if strings.ContainsFunc(to, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\\' }) {
		b.bad(path, to, CodeFormat, "has spaces, control characters or backslashes", "")
		return
	}
	plain := placeholder.ReplaceAllString(to, "x")
	u, err := url.Parse(plain)
	switch {
	case strings.HasPrefix(to, "{path}"), err == nil && u.Scheme == "" && u.Host == "" && strings.HasPrefix(plain, "/"):
	case err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		if host, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(to, "https://"), "http://"), "/"); strings.Contains(host, "{") {
			// "https://example.com{path}" is fine: the path begins with a slash.
			if name, rest, _ := strings.Cut(host, "{"); name == "" || !strings.HasPrefix(rest, "path}") && !strings.Contains(name, "?") {
				b.bad(path, to, CodeFormat, "lets the request choose the host", "")
			}
		}
	default:
		b.bad(path, to, CodeFormat, "is no place to go (want https://host{path} or /path)", "")
	}
}

// condition is what a route asks for beside host and path, in one spelling.
func condition(list []MatchField) string {
	parts := make([]string, len(list))
	for i, f := range list {
		parts[i] = fmt.Sprintf("%q=%q~%q", f.Name, f.Value, f.Regex)
	}
	slices.Sort(parts)
	return strings.Join(parts, "&")
}

// checkOverlaps reports routes that match the same requests. The gateway
// tries routes for the same host and path by priority, then by how much they
// ask for, then in their written order.
func (b *builder) checkOverlaps(c *Config) {
	type group struct {
		host, path string
		priority   int
		asks       int
		methods    bool
	}
	groups := map[group][]int{}
	for i, r := range c.Routes {
		if p := at("routes", i); b.broken[p] || !b.sound(join(p, "match")) {
			continue
		}
		g := group{r.Match.Host, shape(r.Match.Path), r.Priority, len(r.Match.Headers) + len(r.Match.Query), len(r.Match.Methods) > 0}
		before := groups[g]
		groups[g] = append(before, i)
		for _, j := range before[max(0, len(before)-maxOverlaps):] {
			o := c.Routes[j]
			methods := shared(r.Match.Methods, o.Match.Methods)
			if len(methods) == 0 && g.methods {
				continue
			}
			if b.overlap(c, j, i, methods) {
				break
			}
		}
	}
}

// maxOverlaps bounds how many routes for one host and path are compared with
// each other.
const maxOverlaps = 500

func (b *builder) overlap(c *Config, j, i int, methods []string) (reported bool) {
	r, o := c.Routes[i], c.Routes[j]
	what := cmpOr(r.Match.Host, "any host") + " " + r.Match.Path
	if len(methods) > 0 {
		what += " " + strings.Join(methods, ",")
	}
	if condition(r.Match.Headers) == condition(o.Match.Headers) && condition(r.Match.Query) == condition(o.Match.Query) {
		where := ""
		if o.Line > 0 {
			where = fmt.Sprintf(" at %s:%d", o.File, o.Line)
		}
		b.fault(Fault{
			Path: join(at("routes", i), "match"), Code: CodeMatchTwice,
			Message: fmt.Sprintf("%s matches the same as %s%s: %s", b.label(at("routes", i)), b.label(at("routes", j)), where, what),
			Hint:    "narrow one, or give the one that should win a priority",
		})
		return true
	}
	if disjoint(r.Match.Headers, o.Match.Headers) || disjoint(r.Match.Query, o.Match.Query) {
		return false
	}
	b.warn(join(at("routes", i), "match"), CodeOverlap,
		fmt.Sprintf("routes %q and %q both match %s; add priority or narrow one", o.Name, r.Name, what), "")
	return true
}

func cmpOr(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func shared(a, b []string) []string {
	var out []string
	for _, s := range a {
		if slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}

// disjoint reports whether two sets of conditions cannot hold at once, as far
// as that can be seen: they want different values of the same name.
func disjoint(a, b []MatchField) bool {
	for _, f := range a {
		for _, g := range b {
			if f.Name == g.Name && f.Value != "" && g.Value != "" && f.Value != g.Value {
				return true
			}
		}
	}
	return false
}
