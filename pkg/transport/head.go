package transport

import (
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// head is an answer's header.
type head struct {
	minor       int
	status      int
	text        string      // "200 OK"
	header      http.Header // where there is one already, empty, it is filled
	length      int64       // of the body by Content-Length, or -1
	chunked     bool
	close       bool // Connection has "close"
	keepAlive   bool // or "keep-alive"
	trailers    bool // Trailer is there
	contentSeen bool
}

// parseHead parses a header as readHead returns it: lines that end in CRLF,
// an empty one last. known says that the same header was parsed before, whose
// bytes need no second look. values is room for the values; it may be short.
func parseHead(s string, known bool, values []string, h *head) error {
	h.length = -1
	line, rest := cutLine(s)
	if err := h.statusLine(line, known); err != nil {
		return err
	}
	fields := 0
	for i := range len(rest) {
		if rest[i] == '\n' {
			fields++
		}
	}
	fields-- // the empty line
	if fields > cap(values) {
		values = make([]string, 0, fields)
	}
	if h.header == nil {
		h.header = make(http.Header, fields)
	}
	transfer := false
	for {
		line, rest = cutLine(rest)
		if line == "" {
			break
		}
		name, value, err := field(line, known)
		if err != nil {
			return err
		}
		switch name {
		case "Content-Length":
			if h.contentSeen {
				return malformed("more than one Content-Length")
			}
			h.contentSeen = true
			if h.length, err = contentLength(value); err != nil {
				return err
			}
		case "Transfer-Encoding":
			if transfer {
				return malformed("more than one Transfer-Encoding")
			}
			transfer = true
			if len(value) != len("chunked") || !strings.EqualFold(value, "chunked") {
				return malformed("unsupported transfer encoding")
			}
			h.chunked = true
			continue // not the caller's business
		case "Connection":
			h.close = h.close || hasToken(value, "close")
			h.keepAlive = h.keepAlive || hasToken(value, "keep-alive")
		case "Trailer":
			h.trailers = true
		}
		if old, ok := h.header[name]; ok {
			h.header[name] = append(old, value) // copies: the capacity is 1
			continue
		}
		values = append(values, value)
		h.header[name] = values[len(values)-1 : len(values) : len(values)]
	}
	if h.chunked {
		if h.contentSeen {
			return malformed("Content-Length and Transfer-Encoding in one answer; it cannot contain both")
		}
		if h.minor == 0 {
			return malformed("Transfer-Encoding in an HTTP/1.0 answer")
		}
	}
	return nil
}

// cutLine splits at the first CRLF. There is one.
func cutLine(s string) (line, rest string) {
	i := strings.IndexByte(s, '\n')
	return s[:i-1], s[i+1:]
}

// statusLine parses "HTTP/1.1 200 OK"; the reason and the space before it may
// be missing.
func (h *head) statusLine(s string, known bool) error {
	if len(s) < len("HTTP/1.1 200") || s[:len(protocol)] != protocol || s[7] != '0' && s[7] != '1' || s[8] != ' ' ||
		len(s) > 12 && s[12] != ' ' {
		return malformed("status line")
	}
	h.minor = int(s[7] - '0')
	for _, c := range []byte(s[9:12]) {
		if c < '0' || c > '9' {
			return malformed("status code")
		}
		h.status = h.status*10 + int(c-'0')
	}
	if h.status < 100 {
		return malformed("status code")
	}
	if !known && !validValue(s[12:]) {
		return malformed("control character in the status line")
	}
	h.text = s[9:]
	return nil
}

// field parses a line of a header or of trailers.
func field(line string, known bool) (name, value string, err error) {
	if line[0] == ' ' || line[0] == '\t' {
		return "", "", malformed("folded header line")
	}
	i := strings.IndexByte(line, ':')
	if i <= 0 {
		return "", "", malformed("header line without a name")
	}
	name, value = line[:i], trim(line[i+1:])
	if !known {
		if !validToken(name) {
			return "", "", malformed("character in a field name")
		}
		if !validValue(value) {
			return "", "", malformed("control character in field %s", name)
		}
	}
	return textproto.CanonicalMIMEHeaderKey(name), value, nil
}

// contentLength parses the value: digits and nothing else.
func contentLength(s string) (int64, error) {
	if s == "" {
		return -1, malformed("bad Content-Length")
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return -1, malformed("bad Content-Length")
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return -1, malformed("bad Content-Length")
	}
	return n, nil
}

// trim removes white space around a value.
func trim(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// hasToken reports whether a list has an element, whatever the case.
func hasToken(list, token string) bool {
	for list != "" {
		var item string
		item, list, _ = strings.Cut(list, ",")
		if item = trim(item); len(item) == len(token) && strings.EqualFold(item, token) {
			return true
		}
	}
	return false
}

// Sets of characters by RFC 9110, section 5.6.2, and RFC 9112, section 5.
const (
	tokenLow  = 1<<'!' | 1<<'#' | 1<<'$' | 1<<'%' | 1<<'&' | 1<<'\'' | 1<<'*' | 1<<'+' | 1<<'-' | 1<<'.' | (1<<10-1)<<'0'
	tokenHigh = (1<<26-1)<<('A'-64) | (1<<26-1)<<('a'-64) | 1<<('^'-64) | 1<<('_'-64) | 1<<('`'-64) | 1<<('|'-64) | 1<<('~'-64)
)

func tokenChar(c byte) bool {
	if c < 64 {
		return uint64(tokenLow)>>c&1 != 0
	}
	return c < 128 && uint64(tokenHigh)>>(c-64)&1 != 0
}

func validToken(s string) bool {
	for i := range len(s) {
		if !tokenChar(s[i]) {
			return false
		}
	}
	return s != ""
}

// validValue reports whether s has no control character but tabs.
func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
