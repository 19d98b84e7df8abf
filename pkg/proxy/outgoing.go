package proxy

import (
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
	"github.com/proconsul/proconsul/pkg/wire"
)

// rewrite turns the client's header and target into what instances get. The
// client's header map is used up for it: copying it would be a large part of
// what a request costs.
func (f *flight) rewrite() {
	h := f.r.Header
	if f.x != nil && f.x.Sanitized {
		f.upgrade = middleware.Upgrade(h)
	} else {
		f.upgrade = middleware.StripRequest(h)
	}
	if f.upgrade != "" && (f.bodied() || listsH2C(f.upgrade)) {
		// A server may ignore the wish (RFC 9110, section 7.8). The body would
		// have to be sent before the switch, and within HTTP/2 in the clear
		// requests would pass that the gateway does not see.
		f.upgrade = ""
		delete(h, "Connection")
		delete(h, "Upgrade")
	}
	f.header, f.own = h, f.owned[:0]
	f.retarget()
	f.forwarded(h)
	f.own = append(f.own, f.up.marks.viaFor(f.r.ProtoMajor, f.r.ProtoMinor))
	if f.x != nil && f.x.RequestID != "" {
		if now := h[problem.HeaderRequestID]; len(now) != 1 || now[0] != f.x.RequestID {
			h[problem.HeaderRequestID] = []string{f.x.RequestID}
		}
	}
}

// merge puts what the gateway says itself into the header, for transports that
// take nothing else.
func (f *flight) merge() {
	wire.Fill(f.header, f.own, nil)
	f.own = nil
	if _, ok := f.header["User-Agent"]; !ok {
		f.header["User-Agent"] = nil // net/http would send its own
	}
}

// bodied reports whether the client's request has a body.
func (f *flight) bodied() bool {
	return f.r.Body != nil && f.r.Body != http.NoBody && f.r.ContentLength != 0
}

// listsH2C reports whether HTTP/2 in the clear is among the protocols.
func listsH2C(upgrade string) bool {
	for protocol := range strings.SplitSeq(upgrade, ",") {
		name, _, _ := strings.Cut(protocol, "/")
		if strings.EqualFold(strings.Trim(name, " \t"), "h2c") {
			return true
		}
	}
	return false
}

// retarget makes the target's path and query. Both go out byte for byte, as
// the client or the gateway's canonical form has them, since instances may
// tell "%2F" from "/" and ";" from "&".
func (f *flight) retarget() {
	path := ""
	if f.x != nil {
		path = f.x.Path
	}
	if path == "" {
		path = f.r.URL.EscapedPath()
	}
	if w := f.h.rewrite; w != nil {
		whole := len(path)
		path = RewritePath(path, w.strip, w.prepend)
		if w.strip != "" && len(path) != whole+len(w.prepend) {
			f.r.Header["X-Forwarded-Prefix"] = w.prefix
		}
	} else if path == "" || path[0] != '/' {
		path = RewritePath(path, "", "")
	}
	path = wireSafe(path, false)
	f.target.Scheme = f.s.scheme
	if strings.HasPrefix(path, "//") {
		// As Opaque this would be taken for an authority.
		f.target.RawPath = path
		f.target.Path, _ = url.PathUnescape(path)
	} else {
		f.target.Opaque = path
	}
	f.target.RawQuery = wireSafe(f.r.URL.RawQuery, true)
	f.target.ForceQuery = f.r.URL.ForceQuery
}

// forwarded says who asked, by what scheme and for which host. What the client
// says of that itself is kept only where the peer is a trusted proxy.
func (f *flight) forwarded(h http.Header) {
	prefix, stripped := h["X-Forwarded-Prefix"]
	stripped = stripped && f.h.rewrite != nil && len(prefix) == 1 && len(f.h.rewrite.prefix) == 1 && &prefix[0] == &f.h.rewrite.prefix[0]
	trusted := f.x != nil && f.x.Trusted
	if !trusted && (f.x == nil || !f.x.Sanitized) {
		for name := range h {
			if middleware.Claim(name) && !(stripped && name == "X-Forwarded-Prefix") {
				delete(h, name)
			}
		}
	}
	peer, _, err := net.SplitHostPort(f.r.RemoteAddr)
	if err != nil {
		peer = f.r.RemoteAddr
	}
	if old := h["X-Forwarded-For"]; trusted && len(old) > 0 {
		peer = strings.Join(old, ", ") + ", " + peer
	}
	f.say(h, "X-Forwarded-For", peer)
	scheme := "http"
	if f.r.TLS != nil {
		scheme = "https"
	}
	if f.x != nil && f.x.Scheme != "" {
		scheme = f.x.Scheme
	}
	f.say(h, "X-Forwarded-Proto", scheme)
	if old := h["X-Forwarded-Host"]; (!trusted || len(old) == 0) && f.r.Host != "" { // HTTP/1.0 has none
		f.say(h, "X-Forwarded-Host", f.r.Host)
	}
}

// say puts a field among those that the gateway says itself, in the place of what
// anybody has said before; not one that is empty, or could not be written as it is.
func (f *flight) say(h http.Header, name, value string) {
	delete(h, name)
	if value = wire.Trim(value); value != "" && wire.ValidValue(value) {
		f.own = append(f.own, wire.Line{Name: name, Value: value})
	}
}

// hasForwardedPrefix reports whether a field is one of the X-Forwarded family.
func hasForwardedPrefix(name string) bool { return strings.HasPrefix(name, "X-Forwarded-") }
