package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// checkCORS checks the section of a policy or route.
func (b *builder) checkCORS(path string, c CORS) {
	origins := join(path, "origins")
	for i, o := range c.Origins {
		p := at(origins, i)
		switch {
		case slices.Contains(c.Origins[:i], o):
			b.bad(p, o, CodeNameTwice, "is listed twice", "")
		case o == "*" && len(c.Origins) > 1:
			b.bad(p, o, CodeContradicts, "stands beside other origins, which it takes in", "")
		case o == "*" && c.Credentials:
			// Browsers refuse the pair, and an echo of every origin would let
			// every site act as the user.
			b.bad(p, o, CodeContradicts, "with credentials would let every site act as its visitors", "list the origins")
		case o == "*":
		case o == "null" && c.Credentials:
			b.bad(p, o, CodeContradicts, "with credentials would let every site act as its visitors: any page can have this origin", "")
		case o == "null":
			b.warn(p, CodeContradicts, p+` "null" takes in any page that puts itself into a sandboxed frame`, "")
		default:
			b.origin(p, o)
		}
	}
	for i, m := range c.Methods {
		if m == "*" {
			b.anything(at(join(path, "methods"), i), c)
			continue
		}
		b.method(at(join(path, "methods"), i), m)
	}
	for _, list := range []struct {
		key   string
		names []string
	}{{"headers", c.Headers}, {"expose", c.Expose}} {
		for i, name := range list.names {
			p := at(join(path, list.key), i)
			switch {
			case name == "*":
				b.anything(p, c)
			case !token(name):
				b.bad(p, name, CodeHeader, "is no header name", "")
			}
		}
	}
}

// anything refuses a * that browsers would take for a name.
func (b *builder) anything(path string, c CORS) {
	if c.Credentials {
		b.bad(path, "*", CodeContradicts, "is a name and no wildcard where credentials are allowed", "list the names")
	}
}

// origin checks SCHEME://HOST[:PORT] as browsers send it; HOST may be
// *.DOMAIN.
func (b *builder) origin(path, o string) {
	const is = "is no origin (want https://shop.example.com, https://*.example.com, with :PORT where it is not the scheme's own)"
	scheme, rest, ok := strings.Cut(o, "://")
	if !ok || scheme == "" || rest == "" {
		hint := ""
		if hostName(o) {
			hint = fmt.Sprintf("did you mean %q?", "https://"+o)
		}
		b.bad(path, o, CodeFormat, is, hint)
		return
	}
	if host, ok := strings.CutPrefix(rest, "*."); ok {
		rest = host
		if domain, _, _ := strings.Cut(host, ":"); !strings.Contains(domain, ".") && domain != "localhost" {
			b.bad(path, o, CodeFormat, "takes in every host of a whole top-level domain", "")
			return
		}
	}
	u, err := url.Parse(scheme + "://" + rest)
	switch {
	case err != nil || u.Host != rest && u.Host+"/" != rest:
		b.bad(path, o, CodeFormat, is, "")
	case strings.HasSuffix(rest, "/"):
		b.bad(path, o, CodeFormat, is, fmt.Sprintf("did you mean %q?", strings.TrimSuffix(o, "/")))
	case scheme == "https" && u.Port() == "443", scheme == "http" && u.Port() == "80":
		b.bad(path, o, CodeFormat, "has the port that browsers leave out", fmt.Sprintf("did you mean %q?", strings.TrimSuffix(o, ":"+u.Port())))
	case !hostName(u.Hostname()) && !isAddress(u.Hostname()):
		b.bad(path, o, CodeFormat, is, "")
	}
}

func isAddress(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// checkSecureHeaders checks the section of a policy or route.
func (b *builder) checkSecureHeaders(path string, s SecureHeaders) {
	for _, f := range []struct{ key, value string }{{"content_security_policy", s.ContentSecurityPolicy}, {"permissions_policy", s.PermissionsPolicy}} {
		p := join(path, f.key)
		if strings.ContainsFunc(f.value, func(r rune) bool { return r < ' ' || r >= 0x7f }) {
			b.fault(Fault{Path: p, Code: CodeHeader, Message: p + " has line breaks or characters that a header cannot have", Hint: "write it on one line, or with >-"})
		}
	}
	for i, name := range s.Remove {
		b.headerName(at(join(path, "remove"), i), name)
	}
	hsts := join(path, "hsts")
	switch {
	case s.HSTS.Preload && (!s.HSTS.IncludeSubdomains || s.HSTS.MaxAge.Hours() < 365*24):
		b.bad(join(hsts, "preload"), "true", CodeContradicts, "needs include_subdomains and a max_age of at least 8760h: browsers' lists take nothing else", "")
	case s.HSTS.MaxAge == 0 && s.HSTS.IncludeSubdomains:
		b.warn(join(hsts, "include_subdomains"), CodeNoEffect, join(hsts, "include_subdomains")+" has no effect: max_age is 0", "")
	}
	for i, host := range s.InternalHosts {
		p := at(join(path, "internal_hosts"), i)
		if host == "private" || isAddress(host) || hostName(strings.TrimPrefix(host, "*.")) {
			continue
		}
		if _, err := netip.ParsePrefix(host); err != nil {
			b.bad(p, host, CodeHost, "is neither a host's name, *.NAME, an address, a network nor private", "")
		}
	}
	for i, name := range s.Cookies.Except {
		if !token(name) {
			b.bad(at(join(path, "cookies.except"), i), name, CodeFormat, "is no cookie's name", "")
		}
	}
}
