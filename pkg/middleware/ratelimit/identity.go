package ratelimit

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
)

// source returns what a request is counted by; empty: the request lacks it.
// Each kind of identity has its own prefix, so that no header's value can pass
// for an address.
type source func(*http.Request, *middleware.Exchange) string

// by returns the source that settings name: one identity, or several that are
// one together. A request that lacks a part is counted by its client's address
// there, or lacks the whole where that is not wanted.
func by(l config.RateLimit, routeName string) (source, error) {
	address := addressOf(cmp.Or(l.IPv4Prefix, 32), cmp.Or(l.IPv6Prefix, 64))
	var parts []source
	for _, n := range config.SplitBy(l.By) {
		s, err := single(n, routeName, address)
		if err != nil {
			return nil, err
		}
		if l.Missing != "deny" {
			part := s
			s = func(r *http.Request, ex *middleware.Exchange) string {
				if v := part(r, ex); v != "" {
					return v
				}
				return address(r, ex)
			}
		}
		parts = append(parts, s)
	}
	if len(parts) == 1 {
		return parts[0], nil
	}
	return func(r *http.Request, ex *middleware.Exchange) string {
		b := make([]byte, 0, 128)
		for _, part := range parts {
			v := part(r, ex)
			if v == "" {
				return ""
			}
			// The length keeps a value from reaching into its neighbour.
			b = strconv.AppendInt(b, int64(len(v)), 10)
			b = append(append(b, ':'), v...)
		}
		return string(b)
	}, nil
}

func single(name, routeName string, address source) (source, error) {
	header, isHeader := config.Argument(name, "header")
	cookie, isCookie := config.Argument(name, "cookie")
	claim, isClaim := config.Argument(name, "claim")
	switch {
	case name == "client_ip":
		return address, nil
	case name == "all":
		return func(*http.Request, *middleware.Exchange) string { return "all" }, nil
	case name == "route":
		key := "route:" + routeName
		return func(*http.Request, *middleware.Exchange) string { return key }, nil
	case name == "method":
		return method, nil
	case name == "consumer":
		return consumer, nil
	case name == "api_key":
		return field("X-API-Key", "api_key:"), nil
	case isHeader && header != "":
		header = http.CanonicalHeaderKey(header)
		return field(header, "header:"+header+":"), nil
	case isCookie && cookie != "":
		return func(r *http.Request, _ *middleware.Exchange) string {
			if c, err := r.Cookie(cookie); err == nil && c.Value != "" {
				return "cookie:" + cookie + ":" + c.Value
			}
			return ""
		}, nil
	case isClaim && claim != "":
		return func(_ *http.Request, ex *middleware.Exchange) string {
			if ex == nil || len(ex.Claims[claim]) == 0 {
				return ""
			}
			return "claim:" + claim + ":" + strings.Join(ex.Claims[claim], ",")
		}, nil
	}
	return nil, fmt.Errorf("cannot limit by %q (have: client_ip, route, all, consumer, api_key, method, header(NAME), cookie(NAME), claim(NAME))", name)
}

// method identifies a request by its method. Methods that nobody registered
// are one, or a client could invent identities without end.
func method(r *http.Request, _ *middleware.Exchange) string {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodOptions, http.MethodTrace, http.MethodConnect:
		return "method:" + r.Method
	}
	return "method:_OTHER"
}

func field(name, prefix string) source {
	name = http.CanonicalHeaderKey(name)
	return func(r *http.Request, _ *middleware.Exchange) string {
		if v := r.Header[name]; len(v) > 0 && v[0] != "" {
			return prefix + v[0]
		}
		return ""
	}
}

// consumer identifies a request by who was authenticated, whichever of their
// credentials they showed.
func consumer(_ *http.Request, ex *middleware.Exchange) string {
	if ex != nil && ex.Consumer != "" {
		return "consumer:" + ex.Consumer
	}
	return ""
}

// addressOf identifies a request by so many bits of its client's address.
func addressOf(bits4, bits6 int) source {
	return func(r *http.Request, ex *middleware.Exchange) string {
		var ip netip.Addr
		if ex != nil {
			ip = ex.ClientIP
		}
		if !ip.IsValid() {
			peer, err := netip.ParseAddrPort(r.RemoteAddr)
			if err != nil {
				return "peer:" + r.RemoteAddr // a test's, or a unix socket's: still not an empty key
			}
			ip = peer.Addr()
		}
		ip = ip.Unmap().WithZone("")
		bits := bits6
		if ip.Is4() {
			bits = bits4
		}
		var room [64]byte
		b := append(room[:0], "ip:"...)
		network, err := ip.Prefix(bits)
		if err != nil || bits == ip.BitLen() { // config lets no others through
			return string(ip.AppendTo(b))
		}
		return string(network.AppendTo(b))
	}
}
