package front

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/proconsul/proconsul/pkg/wire"
)

// plausible reports whether b can be the beginning of a request line.
func plausible(b []byte) bool {
	for i, c := range b {
		if c == ' ' {
			return i > 0
		}
		if i == 32 || !wire.TokenChar(c) {
			return false
		}
	}
	return true
}

// framing is how the body of a request ends, and what becomes of its
// connection.
type framing struct {
	length    int64
	counted   bool // it has a Content-Length
	chunked   bool
	transfer  bool // it has a Transfer-Encoding
	close     bool // Connection has "close"
	keepAlive bool // or "keep-alive"
	upgrade   bool // or "upgrade"
	hosts     int
	host      string
	expect    bool        // Expect is there
	trailer   bool        // Trailer is there
	header    http.Header // as it was given to the handler, who may put another in its place
}

// parse makes the request of a header as conn.head returns it. It returns why
// the request is refused, or nil.
func (x *exchange) parse(s string) *Refusal {
	r := &x.req
	line, rest := wire.CutLine(s)
	method, line, ok := strings.Cut(line, " ")
	if !ok || !wire.ValidToken(method) {
		return badRequest("the request line has no method")
	}
	target, version, ok := strings.Cut(line, " ")
	if !ok || target == "" {
		return badRequest("the request line has not three parts")
	}
	r.Method, r.RequestURI = method, target
	switch version {
	case "HTTP/1.1":
		r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/1.1", 1, 1
	case "HTTP/1.0":
		r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/1.0", 1, 0
	default:
		if len(version) == len("HTTP/1.1") && version[:5] == "HTTP/" && digit(version[5]) && version[6] == '.' && digit(version[7]) {
			return &Refusal{http.StatusHTTPVersionNotSupported, "this server speaks HTTP/1.1"}
		}
		return badRequest("the request line has not three parts")
	}
	if !visible(target) {
		return badRequest("control character in the request line")
	}
	f := &x.framing
	if bad := x.fields(rest, f); bad != nil {
		return bad
	}
	if bad := x.frame(f); bad != nil {
		return bad
	}
	if bad := x.target(target, f); bad != nil {
		return bad
	}
	x.close = f.close || r.ProtoMinor == 0 && !f.keepAlive
	r.Close = x.close
	if f.expect {
		if !expectsContinue(r.Header["Expect"]) {
			return &Refusal{http.StatusExpectationFailed, "only 100-continue may be expected"}
		}
		x.expecting = r.ProtoMinor == 1 && x.body.more()
	}
	return nil
}

func badRequest(detail string) *Refusal { return &Refusal{http.StatusBadRequest, detail} }

func digit(c byte) bool { return c >= '0' && c <= '9' }

// visible reports whether s has neither control characters nor spaces.
func visible(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

func expectsContinue(values []string) bool {
	return len(values) == 1 && strings.EqualFold(values[0], "100-continue")
}

// fields fills the header's map.
func (x *exchange) fields(rest string, f *framing) *Refusal {
	n := strings.Count(rest, "\n") - 1 // the empty line
	values := x.kept.values[:0]
	if n > cap(values) {
		values = make([]string, 0, n)
	}
	h := x.takeHeader(n)
	x.req.Header, f.header = h, h
	for {
		var line string
		line, rest = wire.CutLine(rest)
		if line == "" {
			return nil
		}
		name, value, err := wire.Field(line)
		if err != nil {
			return badRequest(err.Error())
		}
		switch name {
		case "Host":
			f.hosts++
			f.host = value
			continue // not the handler's business
		case "Content-Length":
			if f.counted {
				return badRequest("more than one Content-Length")
			}
			f.counted = true
			if f.length, err = wire.ContentLength(value); err != nil {
				return badRequest(err.Error())
			}
		case "Transfer-Encoding":
			if f.transfer {
				return badRequest("more than one Transfer-Encoding")
			}
			f.transfer = true
			f.chunked = len(value) == len("chunked") && strings.EqualFold(value, "chunked")
			continue // likewise
		case "Connection":
			f.close = f.close || wire.HasToken(value, "close")
			f.keepAlive = f.keepAlive || wire.HasToken(value, "keep-alive")
			f.upgrade = f.upgrade || wire.HasToken(value, "upgrade")
		case "Expect":
			f.expect = f.expect || value != ""
		case "Trailer":
			f.trailer = true
		}
		if old, ok := h[name]; ok {
			h[name] = append(old, value) // copies: the capacity is 1
			continue
		}
		values = append(values, value)
		h[name] = values[len(values)-1 : len(values) : len(values)]
	}
}

// frame decides where the request ends.
func (x *exchange) frame(f *framing) *Refusal {
	r, b := &x.req, &x.body
	switch {
	case f.transfer && f.counted:
		return badRequest("both Content-Length and Transfer-Encoding")
	case f.transfer && r.ProtoMinor == 0:
		return badRequest("Transfer-Encoding in an HTTP/1.0 request")
	case f.transfer && !f.chunked:
		return &Refusal{http.StatusNotImplemented, "the transfer coding is not chunked"}
	case f.hosts > 1:
		return badRequest("more than one Host")
	case f.hosts == 0 && r.ProtoMinor == 1:
		return badRequest("no Host")
	case !validHost(f.host):
		return badRequest("character in Host")
	}
	r.Host = f.host
	b.x = x
	switch {
	case f.chunked && !f.trailer && !f.expect && b.unchunk():
		r.ContentLength, r.Body = b.left, b
	case f.chunked:
		r.ContentLength, r.TransferEncoding = -1, chunkedCoding()
		b.chunked = true
		b.chunks.MaxTrailers, b.chunks.Trailer = x.c.s.o.MaxHeader, &r.Trailer
		if f.trailer {
			var err error
			if r.Trailer, err = wire.Announced(r.Header["Trailer"]); err != nil {
				return badRequest(err.Error())
			}
			delete(r.Header, "Trailer")
		}
		r.Body = b
	case f.length > 0:
		r.ContentLength, b.left = f.length, f.length
		r.Body = b
	default:
		r.Body = http.NoBody
		b.eof.Store(true)
	}
	return nil
}

func chunkedCoding() []string { return []string{"chunked"} }

// target makes the request's URL.
func (x *exchange) target(t string, f *framing) *Refusal {
	r, u := &x.req, &x.url
	r.URL = u
	switch {
	case r.Method == http.MethodConnect && t[0] != '/':
		parsed, err := url.ParseRequestURI("http://" + t)
		if err != nil || parsed.Host != t || !validHost(t) {
			return badRequest("CONNECT without an authority")
		}
		u.Host, r.Host = t, t
	case t == "*":
		if r.Method != http.MethodOptions {
			return badRequest("only OPTIONS has the target *")
		}
		u.Path = "*"
	case t[0] == '/':
		path, query, has := t, "", false
		if i := strings.IndexByte(t, '?'); i >= 0 {
			path, query, has = t[:i], t[i+1:], true
		}
		if plainPath(path) {
			u.Path, u.RawQuery = path, query
			u.ForceQuery = has && query == ""
			return nil
		}
		parsed, err := url.ParseRequestURI(t)
		if err != nil {
			return badRequest("the target is not a path")
		}
		*u = *parsed
	default:
		parsed, err := url.ParseRequestURI(t)
		if err != nil || parsed.Host == "" || parsed.User != nil || parsed.Opaque != "" || parsed.Scheme != "http" && parsed.Scheme != "https" || !validHost(parsed.Host) {
			return badRequest("the target is neither a path nor a URL")
		}
		if f.hosts > 0 && !strings.EqualFold(withoutPort(parsed.Scheme, f.host), withoutPort(parsed.Scheme, parsed.Host)) {
			return badRequest("the target and Host name different hosts")
		}
		*u = *parsed
		r.Host = u.Host
	}
	return nil
}

// withoutPort takes the port off that a scheme has anyway.
func withoutPort(scheme, host string) string {
	if scheme == "https" {
		return strings.TrimSuffix(host, ":443")
	}
	return strings.TrimSuffix(host, ":80")
}

// plainPath reports whether a path is its own spelling, for which net/url would
// change nothing.
func plainPath(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '&' && c <= ';' && c != '\'' && c != '(' && c != ')' && c != '*':
		case c == '=', c == '@', c == '_', c == '~', c == '$':
		default:
			return false
		}
	}
	return true
}

// validHost reports whether s has only characters of names, addresses and
// ports. An empty one is valid: there are targets without an authority.
func validHost(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '-', c == '.', c == '_', c == '~', c == ':', c == '[', c == ']', c == '%':
		default:
			return false
		}
	}
	return true
}
