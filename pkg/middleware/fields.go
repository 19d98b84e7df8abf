package middleware

import (
	"net/http"

	"github.com/proconsul/proconsul/pkg/wire"
)

// FieldWriter is a ResponseWriter that takes an answer's fields as a list, beside
// those of its Header, which they do not get into: filling a map that somebody
// goes through once costs several times as much.
//
// A writer around another is one where it need not see the fields, or can look at
// them in the list. Any other gets them by Header.
type FieldWriter interface {
	http.ResponseWriter

	// WriteFields is WriteHeader with these fields. It may change the list, and
	// does not keep it.
	WriteFields(code int, lines []wire.Line)
}

// WriteFields writes an answer's header: the fields of w.Header(), and these
// after them. It may change the list.
func WriteFields(w http.ResponseWriter, code int, lines []wire.Line) {
	if fw, ok := w.(FieldWriter); ok {
		fw.WriteFields(code, lines)
		return
	}
	wire.Fill(w.Header(), lines, nil)
	w.WriteHeader(code)
}

// ByHeader returns w for handlers whose answer's fields are looked at in Header
// once they have returned.
func ByHeader(w http.ResponseWriter) http.ResponseWriter { return byHeader{w} }

// byHeader is no FieldWriter, whatever it is around.
type byHeader struct{ http.ResponseWriter }

// Unwrap lets http.ResponseController reach everything else.
func (b byHeader) Unwrap() http.ResponseWriter { return b.ResponseWriter }
