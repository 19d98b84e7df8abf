// Package wire is the grammar that HTTP/1.1 requests and answers share, read
// strictly: field lines, lengths, lists and the chunked coding. What may be
// read in two ways is Malformed. It reads and writes no connection and keeps
// nothing.
package wire

import (
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// Malformed says what is wrong with a message. It holds nothing of the message
// but field names.
type Malformed string

// Error implements error.
func (m Malformed) Error() string { return string(m) }

// CutLine splits at the first CRLF, which has to be there.
func CutLine(s string) (line, rest string) {
	i := strings.IndexByte(s, '\n')
	return s[:i-1], s[i+1:]
}

// Field parses a line of a header or of trailers, without its CRLF and not
// empty. The name is canonical.
func Field(line string) (name, value string, err error) {
	if line[0] == ' ' || line[0] == '\t' {
		return "", "", Malformed("folded header line")
	}
	i := strings.IndexByte(line, ':')
	if i <= 0 {
		return "", "", Malformed("header line without a name")
	}
	name, value = line[:i], Trim(line[i+1:])
	valid, canonical := look(name)
	if !valid {
		return "", "", Malformed("character in a field name")
	}
	if !ValidValue(value) {
		return "", "", Malformed("control character in field " + name)
	}
	if !canonical {
		name = textproto.CanonicalMIMEHeaderKey(name)
	}
	return name, value, nil
}

// look reports whether a name is a token, and whether it is in its canonical
// form: most are.
func look(name string) (valid, canonical bool) {
	canonical = true
	first := true
	for i := range len(name) {
		c := name[i]
		if !TokenChar(c) {
			return false, false
		}
		if first {
			canonical = canonical && (c < 'a' || c > 'z')
		} else {
			canonical = canonical && (c < 'A' || c > 'Z')
		}
		first = c == '-'
	}
	return true, canonical
}

// Announced takes the names of trailers from the values of Trailer. They are the
// keys of what it returns, without values; nil where there are none.
func Announced(trailer []string) (http.Header, error) {
	var names http.Header
	for _, list := range trailer {
		for name := range strings.SplitSeq(list, ",") {
			if name = Trim(name); name == "" {
				continue
			}
			if !ValidToken(name) {
				return nil, Malformed("bad trailer name")
			}
			name = textproto.CanonicalMIMEHeaderKey(name)
			if Framing(name) {
				return nil, Malformed(name + " as a trailer")
			}
			if names == nil {
				names = http.Header{}
			}
			names[name] = nil
		}
	}
	return names, nil
}

// ContentLength parses the value: digits and nothing else.
func ContentLength(s string) (int64, error) {
	if s == "" {
		return -1, Malformed("bad Content-Length")
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return -1, Malformed("bad Content-Length")
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return -1, Malformed("bad Content-Length")
	}
	return n, nil
}

// Framing reports whether a field of that canonical name can never be a
// trailer, since it would change where the message ends.
func Framing(name string) bool {
	return name == "Content-Length" || name == "Transfer-Encoding" || name == "Trailer"
}

// Trim removes white space around a value.
func Trim(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// HasToken reports whether a list has an element, whatever the case.
func HasToken(list, token string) bool {
	for list != "" {
		var item string
		item, list, _ = strings.Cut(list, ",")
		if item = Trim(item); len(item) == len(token) && strings.EqualFold(item, token) {
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

// TokenChar reports whether c may be in a token.
func TokenChar(c byte) bool {
	if c < 64 {
		return uint64(tokenLow)>>c&1 != 0
	}
	return c < 128 && uint64(tokenHigh)>>(c-64)&1 != 0
}

// ValidToken reports whether s is a token: a method, a field name.
func ValidToken(s string) bool {
	for i := range len(s) {
		if !TokenChar(s[i]) {
			return false
		}
	}
	return s != ""
}

// ValidValue reports whether s has no control character but tabs.
func ValidValue(s string) bool {
	for ; len(s) >= 8; s = s[8:] {
		if unusual(load(s)) && !validBytes(s[:8]) {
			return false
		}
	}
	return validBytes(s)
}

const (
	ones = 0x0101010101010101
	tops = 0x8080808080808080
)

// load returns the first eight bytes of s as one number.
func load(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// unusual reports whether one of eight bytes is below ' ', is DEL or has its
// top bit set. The borrow of a byte may make the next one seem so too.
func unusual(v uint64) bool {
	del := v ^ 0x7f*ones
	return (v|(v-' '*ones)|(del-ones))&tops != 0
}

func validBytes(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
