// Package forwarded works out who a request comes from, by which scheme and for
// which host. It believes what a request says of that only where its direct
// peer is a trusted proxy, and takes such fields out of all others, together
// with what concerns the client's connection alone. It stands in front of
// everything else.
package forwarded

import (
	"net/http"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"

	"github.com/proconsul/proconsul/pkg/middleware"
)

// Trusted are the proxies whose forwarding fields are believed. It is safe for
// concurrent use.
type Trusted struct{ prefixes []netip.Prefix }

// New returns the Trusted of those networks.
func New(prefixes []netip.Prefix) *Trusted {
	t := &Trusted{}
	for _, p := range prefixes {
		// ::ffff:10.0.0.0/104 is 10.0.0.0/8 to whoever writes it.
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		t.prefixes = append(t.prefixes, p.Masked())
	}
	return t
}

func (t *Trusted) contains(a netip.Addr) bool {
	for _, p := range t.prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Apply fills the exchange's ClientIP, Trusted, Scheme, Host and Lines from the
// request, and removes from the request what its sender may not say.
//
// The client's address is the first one from the right of all X-Forwarded-For
// lines that is not a trusted proxy's; a hop that is not an address ends the
// search at the last one that was. Scheme and host are those of
// X-Forwarded-Proto and -Host where the peer is trusted.
func (t *Trusted) Apply(ex *middleware.Exchange, r *http.Request) {
	h := r.Header
	middleware.StripRequest(h)
	ex.Sanitized = true
	ex.Scheme = "http"
	if r.TLS != nil {
		ex.Scheme = "https"
	}
	ex.Host = CanonicalHost(r.Host)
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err == nil {
		ex.ClientIP = canonicalAddr(peer.Addr())
		ex.Trusted = t.contains(ex.ClientIP)
	}
	for name, values := range h {
		ex.Lines += len(values) // a repeated field costs as much
		if !ex.Trusted && middleware.Claim(name) || middleware.Identity(name) {
			delete(h, name)
		}
	}
	if !ex.Trusted {
		return
	}
	client, index, hops := t.walk(ex.ClientIP, h["X-Forwarded-For"])
	ex.ClientIP = client
	switch strings.ToLower(pick(h["X-Forwarded-Proto"], index, hops)) {
	case "http", "ws":
		ex.Scheme = "http"
	case "https", "wss":
		ex.Scheme = "https"
	}
	if host := CanonicalHost(pick(h["X-Forwarded-Host"], index, hops)); host != "" {
		ex.Host = host
	}
}

// walk returns the client's address, its place among all hops counted from the
// left, and how many there are. The peer is the answer where no hop is.
func (t *Trusted) walk(peer netip.Addr, lines []string) (client netip.Addr, index, hops int) {
	client, index = peer, -1
	for _, line := range lines {
		hops += strings.Count(line, ",") + 1
	}
	at := hops
	for _, line := range slices.Backward(lines) {
		for rest, more := line, true; more; {
			var hop string
			if i := strings.LastIndexByte(rest, ','); i >= 0 {
				rest, hop = rest[:i], rest[i+1:]
			} else {
				hop, more = rest, false
			}
			a, ok := parseHop(hop)
			if !ok {
				return client, index, hops
			}
			at--
			client, index = a, at
			if !t.contains(a) {
				return client, index, hops
			}
		}
	}
	return client, index, hops
}

// parseHop reads an address as proxies write them: bare, with a port, or in
// brackets.
func parseHop(s string) (netip.Addr, bool) {
	s = textproto.TrimString(s)
	if a, err := netip.ParseAddr(s); err == nil {
		return canonicalAddr(a), true
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return canonicalAddr(ap.Addr()), true
	}
	if inner, ok := strings.CutPrefix(s, "["); ok {
		if inner, ok = strings.CutSuffix(inner, "]"); ok {
			if a, err := netip.ParseAddr(inner); err == nil && a.Is6() {
				return canonicalAddr(a), true
			}
		}
	}
	return netip.Addr{}, false
}

// canonicalAddr gives an address its one form: IPv4 as such, no zone.
func canonicalAddr(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// pick returns the element of a list field that belongs to the client's hop:
// the only one, the one at the hop's place where each hop has left one, or
// else the last, which the peer itself has written.
func pick(lines []string, index, hops int) string {
	switch len(lines) {
	case 0:
		return ""
	case 1:
		if strings.IndexByte(lines[0], ',') < 0 {
			return textproto.TrimString(lines[0])
		}
	}
	all := strings.Split(strings.Join(lines, ","), ",")
	at := len(all) - 1
	if len(all) == hops && index >= 0 {
		at = index
	}
	return textproto.TrimString(all[at])
}

// CanonicalHost returns a host without port, brackets and trailing dot, in
// lower case, or nothing where there is no host in it.
func CanonicalHost(host string) string {
	if rest, ok := strings.CutPrefix(host, "["); ok {
		inside, after, closed := strings.Cut(rest, "]")
		if !closed || after != "" && after[0] != ':' {
			return ""
		}
		return strings.ToLower(inside)
	}
	if i := strings.IndexByte(host, ':'); i >= 0 && strings.LastIndexByte(host, ':') == i {
		host = host[:i]
	}
	host = strings.TrimSuffix(host, ".")
	for i := range len(host) {
		switch c := host[i]; {
		case c <= ' ', c >= 0x7f, c == '/', c == '\\', c == '@', c == ',', c == '?', c == '#', c == '"', c == '<', c == '>':
			return ""
		}
	}
	return strings.ToLower(host)
}
