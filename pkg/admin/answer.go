package admin

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"unicode"
)

// secure sets what every answer carries. The page needs nothing but its own
// origin; nothing of it may be framed or guessed at.
func secure(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; object-src 'none'; frame-ancestors 'none'; form-action 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// problem is an RFC 9457 body.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Reason string `json:"reason"`
}

func writeProblem(w http.ResponseWriter, r *http.Request, code int, reason, title, detail string) {
	write(w, r, code, "application/problem+json", problem{"about:blank", title, code, detail, reason})
}

func writeJSON(w http.ResponseWriter, r *http.Request, code int, v any) {
	write(w, r, code, "application/json", v)
}

// write encodes v before it sends anything, so that an answer is whole or an
// error. ?pretty indents, as Consul's API does.
func write(w http.ResponseWriter, r *http.Request, code int, contentType string, v any) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	if r.URL.Query().Has("pretty") {
		e.SetIndent("", "  ")
	}
	if err := e.Encode(v); err != nil {
		b.Reset()
		code, contentType = http.StatusInternalServerError, "application/problem+json"
		b.WriteString(`{"type":"about:blank","title":"The answer could not be encoded","status":500,"reason":"internal_error"}` + "\n")
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(code)
	if r.Method != http.MethodHead {
		_, _ = w.Write(b.Bytes()) // the caller may have gone
	}
}

func writeText(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text)) // the caller may have gone
}

// printable makes one line of text that may be anything, for terminals.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}
