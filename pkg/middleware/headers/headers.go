// Package headers sets, adds and removes header fields of requests and
// answers, in the order remove, set, add. Rules for answers reach those that
// the gateway makes itself too, and have the last word over the instance's.
// What frames a message, concerns one connection or is the gateway's own is
// refused when the rules are read.
package headers

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"slices"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
)

// New returns the middleware for those rules, or every fault in them.
func New(c config.Headers) (middleware.Middleware, error) {
	request, err1 := compile("request", c.Request)
	response, err2 := compile("response", c.Response)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	stamp := func(_ int, h http.Header) { response.apply(h) }
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			request.apply(r.Header)
			if !response.empty() {
				w = middleware.NewHook(w, stamp)
			}
			next.ServeHTTP(w, r)
		})
	}, nil
}

// rules are HeaderRules with canonical names and values as headers hold them.
type rules struct {
	remove   []string
	set, add []field
}

type field struct {
	name   string
	values []string // of capacity one: appending copies
}

func compile(direction string, c config.HeaderRules) (*rules, error) {
	out := &rules{}
	var faults []error
	check := func(list string, i int, name, value string) string {
		if why := refused(direction, name, value); why != "" {
			faults = append(faults, fmt.Errorf("%s.%s[%d]: %q %s", direction, list, i, name, why))
		}
		return textproto.CanonicalMIMEHeaderKey(name)
	}
	for i, name := range c.Remove {
		out.remove = append(out.remove, check("remove", i, name, ""))
	}
	for i, f := range c.Set {
		out.set = append(out.set, field{check("set", i, f.Name, f.Value), []string{f.Value}})
	}
	for i, f := range c.Add {
		out.add = append(out.add, field{check("add", i, f.Name, f.Value), []string{f.Value}})
	}
	return out, errors.Join(faults...)
}

// refused says why a rule may not be, or nothing.
func refused(direction, name, value string) string {
	if !token(name) {
		return "is not a field name"
	}
	for i := range len(value) {
		if c := value[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return "has a value with control characters"
		}
	}
	canonical := textproto.CanonicalMIMEHeaderKey(name)
	switch {
	case middleware.HopByHop(canonical):
		return "concerns one connection only"
	case canonical == "Content-Length":
		return "frames the message"
	case canonical == "Via" || canonical == "X-Request-Id":
		return "is the gateway's own"
	}
	if direction == "request" {
		switch canonical {
		case "Host":
			return "is set by upstream.host"
		case "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host":
			return "is the gateway's own"
		case "Expect":
			return "concerns how the body is sent"
		}
	} else if canonical == "X-Proconsul-Reason" {
		return "is the gateway's own"
	}
	return ""
}

// token reports whether s is a token of RFC 9110 section 5.6.2.
func token(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case slices.Contains([]byte("!#$%&'*+-.^_`|~"), c):
		default:
			return false
		}
	}
	return s != ""
}

func (r *rules) empty() bool { return len(r.remove) == 0 && len(r.set) == 0 && len(r.add) == 0 }

func (r *rules) apply(h http.Header) {
	for _, name := range r.remove {
		delete(h, name)
	}
	for _, f := range r.set {
		h[f.name] = f.values
	}
	for _, f := range r.add {
		h[f.name] = append(slices.Clip(h[f.name]), f.values...)
	}
}
