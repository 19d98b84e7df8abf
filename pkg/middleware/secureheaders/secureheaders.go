// Package secureheaders tells browsers what to refuse, takes out of answers
// what tells of the inside, and adds the flags that cookies lack. Its settings
// are config.SecureHeaders. It acts on the gateway's own answers as well.
//
// Whether a request came by TLS is what the listener or a trusted proxy says.
// In the clear there is no Strict-Transport-Security, whoever set it (RFC 6797
// section 7.2), and no cookie becomes Secure, since the browser would lose it.
//
// A Location that leads to an internal host becomes relative, which says
// nothing of any host and leads back through the gateway.
package secureheaders

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
)

// New returns the middleware for those settings.
func New(c config.SecureHeaders) (middleware.Middleware, error) {
	p, err := compile(c)
	if err != nil {
		return nil, err
	}
	secure := func(_ int, h http.Header) { p.apply(h, true) }
	clear := func(_ int, h http.Header) { p.apply(h, false) }
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			stamp := clear
			if x := middleware.Of(w); x != nil && x.Scheme == "https" || x == nil && r.TLS != nil {
				stamp = secure
			}
			next.ServeHTTP(middleware.NewHook(w, stamp), r)
		})
	}, nil
}

// Peek says what an answer to a request by that scheme would be given.
func Peek(c config.SecureHeaders, scheme string) string {
	p, err := compile(c)
	if err != nil { // New has said so
		return ""
	}
	var names, parts []string
	if p.hsts != nil && scheme == "https" {
		names = append(names, hstsField)
	}
	for _, f := range p.fields {
		names = append(names, f.name)
	}
	if len(names) > 0 {
		parts = append(parts, "sets "+strings.Join(names, ", "))
	}
	if p.hsts != nil && scheme != "https" {
		parts = append(parts, "no "+hstsField+" in the clear")
	}
	if len(p.remove) > 0 {
		parts = append(parts, "without "+strings.Join(p.remove, ", "))
	}
	if p.hosts.some {
		parts = append(parts, "Location without internal hosts")
	}
	var flags []string
	if p.cookies.Secure && scheme == "https" {
		flags = append(flags, "Secure")
	}
	if p.cookies.HTTPOnly {
		flags = append(flags, "HttpOnly")
	}
	if s := p.cookies.SameSite; s != "" && s != "off" {
		flags = append(flags, "SameSite")
	}
	if len(flags) > 0 {
		parts = append(parts, "cookies get "+strings.Join(flags, ", "))
	}
	return strings.Join(parts, "; ")
}

type policy struct {
	fields   []field // that are set; by TLS and in the clear
	hsts     []string
	override bool
	remove   []string
	hosts    hosts
	cookies  config.Cookies
	except   map[string]bool
	edits    bool // cookies are looked at
}

type field struct {
	name   string
	values []string // of capacity one: appending copies
	always bool     // whatever the instance says
}

const hstsField = "Strict-Transport-Security"

func compile(c config.SecureHeaders) (*policy, error) {
	p := &policy{override: c.Override, cookies: c.Cookies, except: map[string]bool{}}
	set := func(name, value string) {
		if value != "" && value != "off" {
			p.fields = append(p.fields, field{name: name, values: []string{value}, always: c.Override})
		}
	}
	if c.Nosniff {
		p.fields = append(p.fields, field{"X-Content-Type-Options", []string{"nosniff"}, true})
	}
	set("X-Frame-Options", strings.ToUpper(strings.Replace(c.FrameOptions, "off", "", 1)))
	set("Content-Security-Policy", c.ContentSecurityPolicy)
	set("Referrer-Policy", c.ReferrerPolicy)
	set("Permissions-Policy", c.PermissionsPolicy)
	set("Cross-Origin-Opener-Policy", c.CrossOriginOpenerPolicy)
	set("Cross-Origin-Resource-Policy", c.CrossOriginResourcePolicy)
	set("Cross-Origin-Embedder-Policy", c.CrossOriginEmbedderPolicy)
	if c.HSTS.MaxAge > 0 {
		value := "max-age=" + strconv.FormatInt(int64(c.HSTS.MaxAge.Seconds()), 10)
		if c.HSTS.IncludeSubdomains {
			value += "; includeSubDomains"
		}
		if c.HSTS.Preload {
			value += "; preload"
		}
		p.hsts = []string{value}
	}
	var faults []error
	for _, name := range c.Remove {
		canonical := textproto.CanonicalMIMEHeaderKey(name)
		if middleware.HopByHop(canonical) || canonical == "Content-Length" {
			faults = append(faults, fmt.Errorf("remove: %q is the connection's", name))
		}
		p.remove = append(p.remove, canonical)
	}
	if c.HideVia {
		p.remove = append(p.remove, "Via")
	}
	for _, f := range p.fields {
		if strings.ContainsFunc(f.values[0], func(r rune) bool { return r < ' ' || r >= 0x7f }) {
			faults = append(faults, fmt.Errorf("%s has characters that a header cannot have", f.name))
		}
	}
	for _, name := range c.Cookies.Except {
		p.except[name] = true
	}
	p.edits = c.Cookies.Secure || c.Cookies.HTTPOnly || c.Cookies.SameSite != "off" && c.Cookies.SameSite != ""
	var err error
	p.hosts, err = compileHosts(c.InternalHosts)
	return p, errors.Join(append(faults, err)...)
}

func (p *policy) apply(h http.Header, tls bool) {
	for _, name := range p.remove {
		delete(h, name)
	}
	switch {
	case !tls:
		delete(h, hstsField)
	case p.hsts != nil && (p.override || len(h[hstsField]) == 0):
		h[hstsField] = p.hsts
	}
	for i := range p.fields {
		f := &p.fields[i]
		if f.always || len(h[f.name]) == 0 {
			h[f.name] = f.values
		}
	}
	if p.hosts.some {
		p.hosts.relative(h, "Location")
		p.hosts.relative(h, "Content-Location")
	}
	if cookies := h["Set-Cookie"]; p.edits && len(cookies) > 0 {
		for i, c := range cookies {
			cookies[i] = p.flag(c, tls)
		}
	}
}

// flag adds to a Set-Cookie what it lacks.
func (p *policy) flag(cookie string, tls bool) string {
	pair, attributes, _ := strings.Cut(cookie, ";")
	name, _, _ := strings.Cut(pair, "=")
	if p.except[textproto.TrimString(name)] {
		return cookie
	}
	var secure, httpOnly, sameSite bool
	for a := range strings.SplitSeq(attributes, ";") {
		key, _, _ := strings.Cut(a, "=")
		switch key = textproto.TrimString(key); {
		case strings.EqualFold(key, "Secure"):
			secure = true
		case strings.EqualFold(key, "HttpOnly"):
			httpOnly = true
		case strings.EqualFold(key, "SameSite"):
			sameSite = true
		}
	}
	cookie = strings.TrimRight(cookie, "; \t")
	if p.cookies.Secure && tls && !secure {
		cookie += "; Secure"
	}
	if p.cookies.HTTPOnly && !httpOnly {
		cookie += "; HttpOnly"
	}
	if !sameSite {
		switch p.cookies.SameSite {
		case "lax":
			cookie += "; SameSite=Lax"
		case "strict":
			cookie += "; SameSite=Strict"
		}
	}
	return cookie
}

// hosts are those that nobody outside should hear of.
type hosts struct {
	some     bool
	exact    map[string]bool
	below    []string // ".service.consul"
	networks []netip.Prefix
	private  bool
}

func compileHosts(list []string) (hosts, error) {
	h := hosts{some: len(list) > 0, exact: map[string]bool{}}
	for _, text := range list {
		domain, wild := strings.CutPrefix(text, "*")
		prefix, err := netip.ParsePrefix(text)
		switch {
		case text == "private":
			h.private = true
		case wild:
			h.below = append(h.below, domain)
		case err == nil:
			h.networks = append(h.networks, prefix.Masked())
		case strings.Contains(text, "/"):
			return h, fmt.Errorf("internal_hosts: %w", err)
		default:
			h.exact[text] = true
		}
	}
	return h, nil
}

func (h *hosts) has(name string) bool {
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	if h.exact[name] {
		return true
	}
	for _, domain := range h.below {
		if strings.HasSuffix(name, domain) {
			return true
		}
	}
	ip, err := netip.ParseAddr(name)
	if err != nil {
		return h.private && name == "localhost"
	}
	ip = ip.Unmap().WithZone("")
	if h.private && (ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast()) {
		return true
	}
	for _, n := range h.networks {
		if n.Contains(ip) {
			return true
		}
	}
	return false
}

// relative takes the host out of a field that leads to an internal one.
func (h *hosts) relative(header http.Header, name string) {
	values := header[name]
	if len(values) != 1 || !strings.Contains(values[0], "//") {
		return
	}
	u, err := url.Parse(values[0])
	if err != nil || u.Host == "" || !h.has(u.Hostname()) {
		return
	}
	// What begins with two slashes would name a host again. Backslashes, which
	// browsers take for slashes, are escaped.
	path := "/" + strings.TrimLeft(u.EscapedPath(), "/")
	rest := (&url.URL{RawQuery: u.RawQuery, ForceQuery: u.ForceQuery, Fragment: u.Fragment, RawFragment: u.RawFragment}).String()
	header[name] = []string{path + rest}
}
