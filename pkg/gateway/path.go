package gateway

import (
	"errors"
	"strings"
)

// Why a path is refused. None of these spellings has an honest use that the
// canonical one does not serve, and each has been used to make a proxy and the
// service behind it see two different paths.
var (
	errPathControl      = errors.New("control characters in the path")
	errPathBackslash    = errors.New("a backslash in the path")
	errPathEncodedSlash = errors.New("an encoded slash (%2F) in the path")
	errPathDotParam     = errors.New("a dot segment with parameters in the path")
	errPathEscape       = errors.New("a bad percent escape in the path")
	errPathRelative     = errors.New("the path does not start with a slash")
)

// canonicalPath brings an escaped path into the one spelling that matching
// sees and instances get: unreserved characters decoded, all others encoded
// with upper-case digits, empty and dot segments resolved (RFC 3986 6.2.2).
// keepSlash lets %2F through as data; it never becomes a separator.
//
// The usual path is already canonical and is returned without a copy.
func canonicalPath(escaped string, keepSlash bool) (string, error) {
	if escaped == "" || escaped == "*" { // "OPTIONS *" and authority-form
		return "/", nil
	}
	if escaped[0] != '/' {
		return "", errPathRelative
	}
	if plain(escaped) {
		return escaped, nil
	}
	var b strings.Builder
	b.Grow(len(escaped) + 8)
	for i := 0; i < len(escaped); i++ {
		c := escaped[i]
		decoded := false
		if c == '%' {
			if i+2 >= len(escaped) || !hex(escaped[i+1]) || !hex(escaped[i+2]) {
				return "", errPathEscape
			}
			c, decoded = unhex(escaped[i+1])<<4|unhex(escaped[i+2]), true
			i += 2
		}
		switch {
		case c < 0x20 || c == 0x7f:
			return "", errPathControl
		case c == '\\':
			return "", errPathBackslash
		case decoded && c == '/':
			if !keepSlash {
				return "", errPathEncodedSlash
			}
			b.WriteString("%2F")
		case unreserved(c), !decoded && pathDelimiter(c):
			b.WriteByte(c)
		default:
			const digits = "0123456789ABCDEF"
			b.Write([]byte{'%', digits[c>>4], digits[c&15]})
		}
	}
	return removeDots(b.String())
}

// plain reports whether a path is canonical as it stands.
func plain(p string) bool {
	for i := 0; i < len(p); i++ {
		c := p[i]
		if c == '/' && i+1 < len(p) && (p[i+1] == '/' || p[i+1] == '.') {
			return false // may be an empty or a dot segment
		}
		if !unreserved(c) && (c == ';' || !pathDelimiter(c)) {
			return false
		}
	}
	return true
}

// removeDots drops empty segments, resolves "." and ".." and refuses dot
// segments that hide behind a parameter or an encoded slash, which some
// servers strip or decode before they resolve dots themselves.
func removeDots(p string) (string, error) {
	segments := make([]string, 0, strings.Count(p, "/")+1)
	rest := p[1:]
	slash := false // the result ends in a slash
	for more := true; more; {
		var s string
		s, rest, more = strings.Cut(rest, "/")
		slash = false
		name, _, params := strings.Cut(s, ";")
		if params && (name == "." || name == "..") {
			return "", errPathDotParam
		}
		if strings.Contains(s, "%2F") {
			for part := range strings.SplitSeq(s, "%2F") {
				if part, _, _ = strings.Cut(part, ";"); part == "." || part == ".." {
					return "", errPathEncodedSlash
				}
			}
		}
		switch s {
		case "", ".":
			slash = true
		case "..":
			if len(segments) > 0 {
				segments = segments[:len(segments)-1]
			}
			slash = true
		default:
			segments = append(segments, s)
		}
	}
	if len(segments) == 0 {
		return "/", nil
	}
	out := "/" + strings.Join(segments, "/")
	if slash {
		out += "/"
	}
	return out, nil
}

// matchPath is the canonical path as routes see it: without the parameters of
// its segments ("/admin;v=1/x" is "/admin/x"), because a service that strips
// them would otherwise be reached past the policies of the route it belongs
// to. The instance gets them all the same.
func matchPath(canonical string) string {
	if strings.IndexByte(canonical, ';') < 0 {
		return canonical
	}
	var b strings.Builder
	b.Grow(len(canonical))
	skip := false
	for i := 0; i < len(canonical); i++ {
		switch c := canonical[i]; {
		case c == '/':
			skip = false
			b.WriteByte(c)
		case c == ';':
			skip = true
		case !skip:
			b.WriteByte(c)
		}
	}
	// A segment of parameters only leaves an empty one behind.
	out, _ := removeDots(b.String()) // no dots, slashes or parameters are left to refuse
	return out
}

// firstSegment returns the text between the first two slashes.
func firstSegment(p string) string {
	p = p[1:]
	if i := strings.IndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return p
}

// unreserved is RFC 3986's set that never needs an escape.
func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

// pathDelimiter is the set that may stand in a path as itself: '/' and
// RFC 3986's sub-delims, ':' and '@'.
func pathDelimiter(c byte) bool { return strings.IndexByte("/!$&'()*+,;=:@", c) >= 0 }

func hex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}
