package middleware

import (
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"github.com/proconsul/proconsul/pkg/wire"
)

// HopByHop reports whether the field of that canonical name concerns one
// connection only (RFC 9110 section 7.6.1, and what older software sends), so
// that it must not be passed on, set or trusted.
func HopByHop(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
		"Transfer-Encoding", "Trailer",
		"Te", "Upgrade", "Http2-Settings": // which the functions below handle
		return true
	}
	return false
}

// StripRequest removes from h what concerns only the connection it came on,
// including the fields that Connection names. It returns the protocol that
// the client asks to switch to, or nothing; in that case "Connection: Upgrade"
// and Upgrade stay. "Te: trailers" stays, as gRPC needs it.
//
// It stands in front of everything that sets request fields, so that a client
// cannot have Connection strip a field that the gateway sets; a second call
// changes nothing.
func StripRequest(h http.Header) (upgrade string) {
	if connection, ok := h["Connection"]; ok {
		if hasToken(connection, "upgrade") {
			upgrade = printable(h.Get("Upgrade"))
		}
		removeNamed(h, connection)
	}
	trailers := hasToken(h["Te"], "trailers")
	removeHopByHop(h)
	if trailers {
		h["Te"] = []string{"trailers"}
	}
	if upgrade != "" {
		h["Connection"] = []string{"Upgrade"}
		h["Upgrade"] = []string{upgrade}
	}
	return upgrade
}

// Upgrade is what StripRequest returns, for a header that it has been through.
func Upgrade(h http.Header) string {
	if h["Connection"] == nil {
		return ""
	}
	return h.Get("Upgrade")
}

// StripResponse removes from h what concerns only the connection it came on,
// including the fields that Connection names.
func StripResponse(h http.Header) {
	removeNamed(h, h["Connection"])
	removeHopByHop(h)
}

// StripLines is StripResponse for a header as a list, in place.
func StripLines(lines []wire.Line) []wire.Line {
	var named []string
	for _, l := range lines {
		if l.Name == "Connection" {
			named = appendNamed(named, l.Value)
		}
	}
	return slices.DeleteFunc(lines, func(l wire.Line) bool { return HopByHop(l.Name) || slices.Contains(named, l.Name) })
}

func removeHopByHop(h http.Header) {
	for name := range h { // few, and fewer than the names to look for
		if HopByHop(name) {
			delete(h, name)
		}
	}
}

func removeNamed(h http.Header, connection []string) {
	for _, line := range connection {
		for _, name := range appendNamed(nil, line) {
			delete(h, name)
		}
	}
}

// appendNamed appends the names of the fields that a line of Connection takes
// along.
func appendNamed(names []string, line string) []string {
	if line == "keep-alive" || line == "close" {
		return names // what nearly all say, which names no field that could be left
	}
	for name := range strings.SplitSeq(line, ",") {
		name = textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name))
		switch name {
		case "", "Te", "Upgrade": // decided by StripRequest, which still reads them
		default:
			if !gatewayOwned(name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// gatewayOwned reports whether a field is the gateway's to set, so that no
// Connection field may take it away even where it was set before the strip.
func gatewayOwned(name string) bool {
	switch name {
	case "Forwarded", "Via", "X-Request-Id", "Host":
		return true
	}
	return strings.HasPrefix(name, "X-Forwarded-") || Identity(name)
}

// CertificatePrefix begins the fields by which the gateway tells instances of
// the client's certificate.
const CertificatePrefix = "X-Client-Cert-"

// identityPrefixes begin the fields that tell instances who called: those of
// the gateway, and those of RFC 9440, which it does not set.
var identityPrefixes = [...]string{"X-Consumer-", "X-Client-Cert", "Client-Cert"}

// Identity reports whether a field tells instances who called. Only the
// gateway may, whoever its peer is, so such fields are taken out of every
// request at the front. Many frameworks take X_Consumer_Name for the same
// field, so it is one too.
func Identity(name string) bool {
	for _, prefix := range identityPrefixes {
		if alike(name, prefix) {
			return true
		}
	}
	return false
}

// alike reports whether a name begins with prefix to whoever takes _ for - and
// small letters for large ones.
func alike(name, prefix string) bool {
	if len(name) < len(prefix) {
		return false
	}
	for i := range len(prefix) {
		c, want := name[i], prefix[i]
		if c|0x20 != want|0x20 && !(c == '_' && want == '-') {
			return false
		}
	}
	return true
}

// overrides are the fields by which some frameworks take a request for one of
// another method than it has.
var overrides = [...]string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override"}

// StripOverrides removes the fields by which some frameworks take a request for
// one of another method than was checked, in whatever spelling.
func StripOverrides(h http.Header) {
	for name := range h {
		for _, o := range overrides {
			if len(name) == len(o) && alike(name, o) {
				delete(h, name)
				break
			}
		}
	}
}

// Claim reports whether the field of that canonical name says who is asking
// and how, which only trusted proxies may.
func Claim(name string) bool {
	switch name {
	case "Forwarded", "X-Real-Ip", "True-Client-Ip":
		return true
	}
	return strings.HasPrefix(name, "X-Forwarded-")
}

// hasToken reports whether a comma-separated field holds the token, whatever
// its case and parameters.
func hasToken(lines []string, token string) bool {
	for _, line := range lines {
		for part := range strings.SplitSeq(line, ",") {
			part, _, _ = strings.Cut(part, ";")
			if strings.EqualFold(textproto.TrimString(part), token) {
				return true
			}
		}
	}
	return false
}

// printable returns s, or nothing where it holds anything but printable ASCII.
func printable(s string) string {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return ""
		}
	}
	return s
}
