// Package requestid gives every request an id: the one that a trusted proxy
// sent, or a new one. It goes to the instance, back to the client and into
// every line of the log that concerns the request.
package requestid

import (
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
)

// maxLength is how long an id from outside may be.
const maxLength = 128

// New returns the middleware. It stands inside what finds out whether the peer
// is trusted.
func New() middleware.Middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			x := middleware.Of(w)
			id := ""
			if x != nil && x.Trusted {
				if sent := r.Header[problem.HeaderRequestID]; len(sent) == 1 && Valid(sent[0]) {
					id = sent[0]
				}
			}
			if id == "" {
				if x != nil {
					id = Make(x.Start)
				} else {
					id = Make(time.Now())
				}
			}
			var value []string
			if x != nil {
				value = x.SetRequestID(id)
			} else {
				value = []string{id}
			}
			r.Header[problem.HeaderRequestID] = value
			w.Header()[problem.HeaderRequestID] = value
			next.ServeHTTP(w, r)
		})
	}
}

// Valid reports whether an id from outside may be taken over: 1 to 128 letters,
// digits, dots, underscores and hyphens, so that it can stand in any log, URL
// or header.
func Valid(id string) bool {
	if id == "" || len(id) > maxLength {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

// Make returns a new id in the form of a ULID (github.com/ulid/spec): 26
// characters, of which the first ten are the time in milliseconds and the rest
// 80 random bits, so that ids sort by when they were made.
func Make(now time.Time) string {
	const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	var b [26]byte
	ms := uint64(now.UnixMilli())
	for i := 9; i >= 0; i-- {
		b[i] = alphabet[ms&31]
		ms >>= 5
	}
	for half := range 2 {
		bits := rand.Uint64() // ChaCha8: not to be guessed from earlier ones
		for i := range 8 {
			b[10+8*half+i] = alphabet[bits&31]
			bits >>= 5
		}
	}
	return string(b[:])
}
