package proxy

import (
	"net/url"
	"strings"
)

// RewritePath takes the prefix strip off an escaped path and puts the prefix
// prepend on, both by whole segments: "/api" is a prefix of "/api" and
// "/api/x" and not of "/apix". Escapes are compared by what they mean and
// otherwise kept as they are, so that "%2F" never becomes a separator. The
// result always begins with a slash. A path that lacks the prefix keeps all of
// its segments.
func RewritePath(path, strip, prepend string) string {
	strip, prepend = strings.TrimRight(strip, "/"), strings.TrimRight(prepend, "/")
	if strip != "" {
		path, _ = cutSegments(path, strip)
	}
	if prepend != "" {
		path = prepend + path
	}
	if path == "" || path[0] != '/' {
		path = "/" + path
	}
	return path
}

// cutSegments returns path without the leading segments of prefix, which has
// no slash at its end.
func cutSegments(path, prefix string) (rest string, ok bool) {
	if rest, ok = strings.CutPrefix(path, prefix); ok && (rest == "" || rest[0] == '/') {
		return rest, true
	}
	if strings.IndexByte(path, '%') < 0 && strings.IndexByte(prefix, '%') < 0 {
		return path, false
	}
	rest = path
	for prefix != "" {
		var want, have string
		want, prefix = nextSegment(prefix)
		if rest == "" || rest[0] != '/' {
			return path, false
		}
		have, rest = nextSegment(rest)
		if !sameSegment(want, have) {
			return path, false
		}
	}
	return rest, true
}

// nextSegment splits "/a/b" into "a" and "/b".
func nextSegment(path string) (segment, rest string) {
	path = path[1:]
	if i := strings.IndexByte(path, '/'); i >= 0 {
		return path[:i], path[i:]
	}
	return path, ""
}

func sameSegment(a, b string) bool {
	if a == b {
		return true
	}
	x, err := url.PathUnescape(a)
	if err != nil {
		return false
	}
	y, err := url.PathUnescape(b)
	return err == nil && x == y
}

// wireSafe returns s with every byte escaped that could end or split a request
// line: HTTP/2 lets clients send them in :path. Everything else, valid or not,
// stays as the client wrote it.
func wireSafe(s string, query bool) string {
	bad := 0
	for i := range len(s) {
		if unsafeByte(s[i], query) {
			bad++
		}
	}
	if bad == 0 {
		return s
	}
	const hex = "0123456789ABCDEF"
	b := make([]byte, 0, len(s)+2*bad)
	for i := range len(s) {
		if c := s[i]; unsafeByte(c, query) {
			b = append(b, '%', hex[c>>4], hex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}

func unsafeByte(c byte, query bool) bool {
	return c <= 0x20 || c == 0x7f || c == '#' || !query && (c == '?' || c >= 0x80)
}
