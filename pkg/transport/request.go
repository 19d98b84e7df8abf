package transport

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/proconsul/proconsul/pkg/wire"
)

// checkRequest refuses what would not arrive as it is meant. The header's fields
// are looked at when they are written.
func checkRequest(req *http.Request) error {
	if req.Method != "" && !wire.ValidToken(req.Method) {
		return &RequestError{Reason: fmt.Sprintf("method %q", req.Method)}
	}
	host := req.Host
	if host == "" {
		host = req.URL.Host
	}
	for i := range len(host) {
		if c := host[i]; c <= ' ' || c >= 0x7f || c == '/' || c == '\\' || c == '"' || c == '#' || c == '<' || c == '>' || c == '?' || c == '@' {
			return &RequestError{Reason: "Host header"}
		}
	}
	for name := range req.Trailer {
		if !wire.ValidToken(name) || wire.Framing(http.CanonicalHeaderKey(name)) {
			return &RequestError{Reason: fmt.Sprintf("trailer field name %q", name)}
		}
	}
	// A path is escaped when it is written, as far as it has to be.
	if !validTarget(req.URL.Opaque) || !validTarget(req.URL.RawQuery) {
		return &RequestError{Reason: "character in Request.URL"}
	}
	return nil
}

func validTarget(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

// expects reports whether the client wants to be asked for the body.
func expects(h http.Header) bool {
	v := h["Expect"]
	return len(v) > 0 && wire.HasToken(v[0], "100-continue")
}

// closes reports whether the request's own header ends the connection.
func (e *exchange) closes() bool {
	for _, v := range e.req.Header["Connection"] {
		if wire.HasToken(v, "close") {
			return true
		}
	}
	return false
}

// appendHead appends the request's header without what frames the body, which
// is appendFraming's, and the empty line, unless there is no body. It fails where
// a field would not arrive as it is meant.
func (e *exchange) appendHead(b []byte) ([]byte, error) {
	req := e.req
	method := req.Method
	if method == "" {
		method = http.MethodGet
	}
	b = append(b, method...)
	b = append(b, ' ')
	b = appendTarget(b, req)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	if req.Host != "" {
		b = append(b, req.Host...)
	} else {
		b = append(b, req.URL.Host...)
	}
	b = append(b, "\r\n"...)
	for name, values := range req.Header {
		if written(name) || req.Close && strings.EqualFold(name, "Connection") {
			continue
		}
		if !wire.ValidToken(name) {
			return nil, &RequestError{Reason: fmt.Sprintf("header field name %q", name)}
		}
		for _, v := range values {
			if !wire.ValidValue(v) {
				return nil, &RequestError{Reason: fmt.Sprintf("header field value for %q", name)} // the value may be a secret
			}
			b = append(b, name...)
			b = append(b, ": "...)
			b = append(b, wire.Trim(v)...)
			b = append(b, "\r\n"...)
		}
	}
	if e.m != nil {
		for _, l := range e.m.Fields {
			b = l.Append(b)
		}
	}
	if req.Close {
		b = append(b, "Connection: close\r\n"...)
	}
	if e.body != nil {
		return b, nil
	}
	if e.m != nil && len(e.m.Body) > 0 {
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, int64(len(e.m.Body)), 10)
		return append(b, "\r\n\r\n"...), nil
	}
	switch method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		b = append(b, "Content-Length: 0\r\n"...)
	}
	return append(b, "\r\n"...), nil
}

// appendFraming says how long the body is and ends the header.
func (e *exchange) appendFraming(b []byte) []byte {
	if e.length >= 0 {
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, e.length, 10)
		return append(b, "\r\n\r\n"...)
	}
	b = append(b, "Transfer-Encoding: chunked\r\n"...)
	if e.announced != "" {
		b = append(b, "Trailer: "...)
		b = append(b, e.announced...)
		b = append(b, "\r\n"...)
	}
	return append(b, "\r\n"...)
}

// announce returns the names of trailers as the header has them.
func announce(trailer http.Header) string {
	if len(trailer) == 0 {
		return ""
	}
	names := make([]string, 0, len(trailer))
	for name := range trailer {
		names = append(names, http.CanonicalHeaderKey(name))
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

// written reports whether a field is the transport's to write, in whatever
// case the name is.
func written(name string) bool {
	switch len(name) {
	case len("Host"):
		return strings.EqualFold(name, "Host")
	case len("Trailer"):
		return strings.EqualFold(name, "Trailer")
	case len("Content-Length"):
		return strings.EqualFold(name, "Content-Length")
	case len("Transfer-Encoding"):
		return strings.EqualFold(name, "Transfer-Encoding")
	}
	return false
}

// appendTarget appends what URL.RequestURI returns.
func appendTarget(b []byte, req *http.Request) []byte {
	u := req.URL
	switch {
	case u.Opaque == "":
		path := u.EscapedPath()
		if path == "" {
			path = "/"
		}
		b = append(b, path...)
	case strings.HasPrefix(u.Opaque, "//"):
		b = append(b, u.Scheme...)
		b = append(b, ':')
		fallthrough
	default:
		b = append(b, u.Opaque...)
	}
	if u.ForceQuery || u.RawQuery != "" {
		b = append(b, '?')
		b = append(b, u.RawQuery...)
	}
	return b
}
