package ratelimit

import (
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
)

// source returns what a request is counted by. Each kind of identity has its
// own prefix, so that no header's value can pass for an address.
type source func(*http.Request, *middleware.Exchange) string

// by returns the source that settings name: one identity, or several that are
// one together.
func by(name string) (source, error) {
	names := config.SplitBy(name)
	var parts []source
	for _, n := range names {
		s, err := single(n)
		if err != nil {
			return nil, err
		}
		parts = append(parts, s)
	}
	if len(parts) == 1 {
		return parts[0], nil
	}
	return func(r *http.Request, ex *middleware.Exchange) string {
		b := make([]byte, 0, 128)
		for _, part := range parts {
			// The length keeps a value from reaching into its neighbour.
			v := part(r, ex)
			b = strconv.AppendInt(b, int64(len(v)), 10)
			b = append(append(b, ':'), v...)
		}
		return string(b)
	}, nil
}

func single(name string) (source, error) {
	header, isHeader := argument(name, "header")
	cookie, isCookie := argument(name, "cookie")
	switch {
	case name == "client_ip":
		return address, nil
	case name == "route":
		return func(*http.Request, *middleware.Exchange) string { return "route" }, nil
	case name == "method":
		return method, nil
	case name == "consumer":
		return consumer, nil
	case name == "api_key":
		return field("X-API-Key", "api_key:"), nil
	case isHeader:
		header = http.CanonicalHeaderKey(header)
		return field(header, "header:"+header+":"), nil
	case isCookie:
		return func(r *http.Request, ex *middleware.Exchange) string {
			if c, err := r.Cookie(cookie); err == nil && c.Value != "" {
				return "cookie:" + cookie + ":" + c.Value
			}
			return address(r, ex)
		}, nil
	}
	return nil, fmt.Errorf("cannot limit by %q (have: client_ip, route, consumer, api_key, method, header(NAME), cookie(NAME))", name)
}

// argument returns NAME of kind(NAME).
func argument(text, kind string) (string, bool) {
	rest, ok := strings.CutPrefix(text, kind+"(")
	if !ok {
		return "", false
	}
	rest, ok = strings.CutSuffix(rest, ")")
	rest = strings.TrimSpace(rest)
	return rest, ok && rest != ""
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
	return func(r *http.Request, ex *middleware.Exchange) string {
		if v := r.Header[name]; len(v) > 0 && v[0] != "" {
			return prefix + v[0]
		}
		return address(r, ex)
	}
}

// consumer identifies a request by who was authenticated, whichever of their
// credentials they showed.
func consumer(r *http.Request, ex *middleware.Exchange) string {
	if ex != nil && ex.Consumer != "" {
		return "consumer:" + ex.Consumer
	}
	return address(r, ex)
}

// address identifies a request by its client's address: all of an IPv4
// address, and the first 64 bits of an IPv6 one, because a single customer
// owns at least all addresses behind them.
func address(r *http.Request, ex *middleware.Exchange) string {
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
	var room [64]byte
	b := append(room[:0], "ip:"...)
	if ip = ip.Unmap().WithZone(""); ip.Is4() {
		return string(ip.AppendTo(b))
	}
	network, _ := ip.Prefix(64) // cannot fail: 64 bits are there
	return string(network.AppendTo(b))
}
