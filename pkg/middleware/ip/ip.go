// Package ip lets a request pass by the address that it comes from, before
// anybody is asked who it is. Its settings are config.IP.
//
// The address is the client's as the listener's trusted proxies tell it; what
// anybody else writes into X-Forwarded-For counts for nothing. One that is not
// allowed, or is denied, is answered 403, and so is a request whose address
// cannot be told. The answer does not say which list it was.
package ip

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
)

// New returns the middleware of a section.
func New(cfg config.IP) middleware.Middleware {
	g := compile(cfg)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if refusal := g.check(r.Method, clientIP(w)); refusal != nil {
				problem.Write(w, r, refusal)
				return
			}
			if g.byMethod != nil {
				middleware.StripOverrides(r.Header)
			}
			next.ServeHTTP(w, r)
		})
	}
}

// Peek returns why New's middleware would refuse a request of that method from
// that address; nil: it would not.
func Peek(cfg config.IP, method string, from netip.Addr) *problem.Error {
	return compile(cfg).check(method, from)
}

func clientIP(w http.ResponseWriter) netip.Addr {
	if x := middleware.Of(w); x != nil {
		return x.ClientIP
	}
	return netip.Addr{}
}

// guard decides by one section.
type guard struct {
	all      lists
	byMethod map[string]lists // nil: no method has lists of its own
}

type lists struct{ allow, deny *networks }

func compile(cfg config.IP) *guard {
	g := &guard{all: lists{newNetworks(cfg.Allow), newNetworks(cfg.Deny)}}
	for _, m := range cfg.ByMethod {
		own := lists{newNetworks(m.Allow), newNetworks(m.Deny)}
		for _, name := range config.WithHead(m.Methods) {
			if g.byMethod == nil {
				g.byMethod = map[string]lists{}
			}
			g.byMethod[name] = own
		}
	}
	return g
}

func (g *guard) check(method string, from netip.Addr) *problem.Error {
	if g.all.admit(from) && (g.byMethod == nil || g.ofMethod(method).admit(from)) {
		return nil
	}
	return problem.New(problem.Forbidden, "requests from this address are not taken here", fmt.Errorf("ip: %s may not %s", from, method))
}

// ofMethod returns a method's own lists. A service may take a method in any
// case, so that the lists do too.
func (g *guard) ofMethod(method string) lists { return g.byMethod[strings.ToUpper(method)] }

func (l lists) admit(a netip.Addr) bool {
	if l.allow == nil && l.deny == nil {
		return true
	}
	return a.IsValid() && (l.allow == nil || l.allow.contain(a)) && !l.deny.contain(a)
}

// networks is a set of networks, which is asked once for each length of prefix
// that occurs in it, however many networks there are.
type networks struct {
	v4, v6 []int // lengths
	set    map[netip.Prefix]struct{}
}

// newNetworks returns nil for an empty list.
func newNetworks(list []netip.Prefix) *networks {
	if len(list) == 0 {
		return nil
	}
	n := &networks{set: make(map[netip.Prefix]struct{}, len(list))}
	for _, p := range list {
		// ::ffff:10.0.0.0/104 is 10.0.0.0/8 to whoever writes it, and clients'
		// addresses come unmapped.
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		n.set[p.Masked()] = struct{}{}
		lengths := &n.v6
		if p.Addr().Is4() {
			lengths = &n.v4
		}
		if !slices.Contains(*lengths, p.Bits()) {
			*lengths = append(*lengths, p.Bits())
		}
	}
	return n
}

func (n *networks) contain(a netip.Addr) bool {
	if n == nil {
		return false
	}
	lengths := n.v6
	if a.Is4() {
		lengths = n.v4
	}
	for _, bits := range lengths {
		p, err := a.Prefix(bits)
		if err != nil {
			continue // the lengths are those of its family
		}
		if _, ok := n.set[p]; ok {
			return true
		}
	}
	return false
}
