package config

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// checkMiddleware checks the sections of a policy or route at path.
func (b *builder) checkMiddleware(path string, m Middleware) {
	b.checkIP(join(path, "ip"), m.IP)
	b.checkAuth(join(path, "auth"), m.Auth)
	if m.RateLimit != nil {
		b.checkRateLimit(join(path, "rate_limit"), *m.RateLimit)
	}
	if m.CORS != nil {
		b.checkCORS(join(path, "cors"), *m.CORS)
	}
	if m.SecureHeaders != nil {
		b.checkSecureHeaders(join(path, "secure_headers"), *m.SecureHeaders)
	}
	if c := m.Compress; c != nil {
		b.codings(join(path, "compress.encodings"), c.Encodings)
		b.mediaTypes(join(path, "compress.types"), c.Types)
		for i, t := range c.Types {
			p := at(join(path, "compress.types"), i)
			switch {
			case t == "text/event-stream" || strings.HasPrefix(t, "application/grpc"):
				b.bad(p, t, CodeContradicts, "goes out message by message and is never compressed", "")
			}
		}
	}
	if m.Decompress != nil {
		b.codings(join(path, "decompress.encodings"), m.Decompress.Encodings)
	}
	if m.Validate != nil {
		b.checkValidate(join(path, "validate"), m.Validate)
	}
	if h := m.Headers; h != nil {
		b.checkHeaders(join(path, "headers.request"), h.Request)
		b.checkHeaders(join(path, "headers.response"), h.Response)
	}
}

// mediaTypes checks a list of media types.
func (b *builder) mediaTypes(path string, types []string) {
	for i, t := range types {
		front, back, ok := strings.Cut(t, "/")
		if !ok || front == "*" || !token(front) || !token(back) || strings.Count(t, "*") > 1 {
			b.bad(at(path, i), t, CodeFormat, "is no media type (want text/html, text/* or application/*+json)", "")
		}
	}
}

// codings checks a list of content codings.
func (b *builder) codings(path string, names []string) {
	have := []string{"zstd", "br", "gzip"}
	if len(names) == 0 && b.sound(path) {
		b.fault(Fault{Path: path, Code: CodeMissing, Message: path + " is empty", Hint: "leave it out for " + strings.Join(have, ", ")})
	}
	for i, n := range names {
		switch p := at(path, i); {
		case slices.Contains(names[:i], n):
			b.bad(p, n, CodeNameTwice, "is listed twice", "")
		case !slices.Contains(have, n):
			b.bad(p, n, CodeChoice, "is none of "+strings.Join(have, ", "), didYouMean(n, have))
		}
	}
}

// framing are the fields that frame a message or belong to one connection; the
// gateway owns them.
var framing = [...]string{
	"Connection", "Content-Length", "Host", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

func (b *builder) checkHeaders(path string, rules HeaderRules) {
	for i, name := range rules.Remove {
		b.headerName(at(join(path, "remove"), i), name)
	}
	for _, list := range []struct {
		key    string
		fields []HeaderField
	}{{"set", rules.Set}, {"add", rules.Add}} {
		for i, f := range list.fields {
			p := at(join(path, list.key), i)
			if f.Name != "" {
				b.headerName(join(p, "name"), f.Name)
			}
			if strings.ContainsFunc(f.Value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				v := join(p, "value")
				b.fault(Fault{Path: v, Code: CodeHeader, Message: v + " has line breaks or control characters"})
			}
		}
	}
}

func (b *builder) headerName(path, name string) {
	switch {
	case !token(name):
		b.bad(path, name, CodeHeader, "is no header name", "")
	case slices.Contains(framing[:], http.CanonicalHeaderKey(name)):
		hint := ""
		if name == "Host" {
			hint = "use upstream.host"
		}
		b.bad(path, name, CodeHeader, "belongs to the connection and is the gateway's", hint)
	}
}

func (b *builder) method(path, method string) {
	if !token(method) {
		b.bad(path, method, CodeHeader, "is no method", "")
		return
	}
	known := []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
	if m := closest(method, known); m != "" && m != method && !slices.Contains(known, method) && distance(method, m, 2) == 1 {
		b.bad(path, method, CodeHeader, "is no method that clients use", fmt.Sprintf("did you mean %q?", m))
	}
}

// token reports whether s is a token of RFC 9110 5.6.2.
func token(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}
