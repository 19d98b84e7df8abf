// Package identity finds out who is calling: API keys, signed tokens (JWT),
// client certificates and user names with passwords. It is the only door to go-jose and to bcrypt. It
// answers no request and decides nothing about what a caller may do; the
// middleware auth does.
//
// No key, token or password is kept in the clear, logged or part of an error.
package identity

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/proconsul/proconsul/config"
)

// Identity is who was authenticated. It is shared between requests and must
// not be changed.
type Identity struct {
	Consumer string   // the name of a configured consumer, or what a token names
	Groups   []string // of the consumer and, where configured, of the token
	Scopes   []string // of the token
	Claims   []Claim  // of the token, for instances

	fields []field
}

// Claim is a claim that instances get as a header field.
type Claim struct{ Header, Value string }

// The header fields that tell instances who called.
const (
	HeaderConsumer    = "X-Consumer-Name"
	HeaderGroups      = "X-Consumer-Groups"
	HeaderClaimPrefix = "X-Consumer-Claim-"
)

type field struct {
	name   string
	values []string
}

// sealed prepares the fields for instances once, instead of for each request.
func (id *Identity) sealed() *Identity {
	id.fields = []field{{HeaderConsumer, []string{id.Consumer}}}
	if len(id.Groups) > 0 {
		id.fields = append(id.fields, field{HeaderGroups, []string{strings.Join(id.Groups, ",")}})
	}
	for _, c := range id.Claims {
		id.fields = append(id.fields, field{c.Header, []string{c.Value}})
	}
	return id
}

// Tell sets the header fields by which instances learn who called.
func (id *Identity) Tell(h http.Header) {
	for _, f := range id.fields {
		h[f.name] = f.values
	}
}

// Merge returns who several methods found together: the first one's name, and
// the groups, scopes and claims of all.
func Merge(all ...*Identity) *Identity {
	if len(all) == 1 {
		return all[0]
	}
	out := &Identity{Consumer: all[0].Consumer}
	for _, id := range all {
		out.Groups = union(out.Groups, id.Groups)
		out.Scopes = union(out.Scopes, id.Scopes)
		for _, c := range id.Claims {
			if !slices.ContainsFunc(out.Claims, func(o Claim) bool { return o.Header == c.Header }) {
				out.Claims = append(out.Claims, c)
			}
		}
	}
	return out.sealed()
}

func union(a, b []string) []string {
	for _, s := range b {
		if !slices.Contains(a, s) {
			a = append(slices.Clip(a), s)
		}
	}
	return a
}

var (
	// ErrMissing says that the request shows no credential of the method.
	ErrMissing = errors.New("no credential")
	// ErrUnavailable says that a credential cannot be checked for now.
	ErrUnavailable = errors.New("the issuer's keys are not to be had")
)

// Refused says that a credential is not valid. Its text is fit for the client:
// it never holds any of the credential.
type Refused struct {
	Malformed bool // not in its form, or shown in a way that is not allowed
	Why       string
}

func (e *Refused) Error() string { return e.Why }

func refused(format string, args ...any) error { return &Refused{Why: fmt.Sprintf(format, args...)} }

func malformed(format string, args ...any) error {
	return &Refused{Malformed: true, Why: fmt.Sprintf(format, args...)}
}

// Method is one way to find out who calls. It is safe for concurrent use.
type Method interface {
	// Name returns the name that routes ask for it by.
	Name() string

	// Identify returns who sent the request, or ErrMissing, a *Refused, or an
	// error that wraps ErrUnavailable.
	Identify(r *http.Request) (*Identity, error)

	// Challenge returns the value of WWW-Authenticate for a request that
	// Identify answered with that error.
	Challenge(realm string, err error) string

	// Strip takes the credential out of the request.
	Strip(r *http.Request)
}

// Directory is every consumer and method of one configuration. It is
// immutable and safe for concurrent use.
type Directory struct {
	methods map[string]Method
	sets    []*keySet
}

// New returns the directory of a configuration, with the issuers' keys taken
// from keys where they are known already, or every fault in it. It reads
// jwks_file files and fetches nothing.
func New(cfg *config.Config, keys *Keys) (*Directory, error) {
	d := &Directory{methods: map[string]Method{}}
	var faults []error
	byKey, err := apiKeys(cfg.Consumers)
	faults = append(faults, err)
	logins, err := newLogins(cfg.Consumers)
	faults = append(faults, err)
	for _, m := range cfg.Methods() {
		switch {
		case m.APIKey != nil:
			d.methods[m.Name] = &keyMethod{name: m.Name, header: http.CanonicalHeaderKey(m.APIKey.Header), query: m.APIKey.Query, consumers: byKey}
		case m.Basic != nil:
			d.methods[m.Name] = &basicMethod{name: m.Name, realm: m.Basic.Realm, logins: logins}
		case m.MTLS != nil:
			d.methods[m.Name] = newCertMethod(m.Name, *m.MTLS, cfg.Consumers)
		case m.JWT != nil:
			t, err := newTokenMethod(m.Name, *m.JWT, cfg.Consumers, keys, d.sets)
			if err != nil {
				faults = append(faults, fmt.Errorf("auth %s: %w", m.Name, err))
				continue
			}
			if t.keys != nil && !slices.Contains(d.sets, t.keys) {
				d.sets = append(d.sets, t.keys)
			}
			d.methods[m.Name] = t
		}
	}
	return d, errors.Join(faults...)
}

// Method returns the method of that name. A nil Directory has none.
func (d *Directory) Method(name string) (Method, error) {
	if d == nil {
		return nil, fmt.Errorf("no method of auth is named %q: there are none", name)
	}
	if m := d.methods[name]; m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("no method of auth is named %q", name)
}

// quoted writes a quoted-string of RFC 9110 5.6.4.
func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c >= 0x20 && c < 0x7f:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// credentials returns what follows the scheme in Authorization. A request with
// two such fields says two things at once, and neither counts.
func credentials(r *http.Request, scheme string) (string, error) {
	lines := r.Header["Authorization"]
	if len(lines) == 0 {
		return "", ErrMissing
	}
	if len(lines) > 1 {
		return "", malformed("there is more than one Authorization field")
	}
	got, rest, _ := strings.Cut(lines[0], " ")
	if !strings.EqualFold(got, scheme) {
		return "", ErrMissing
	}
	rest = strings.Trim(rest, " ")
	if rest == "" {
		return "", malformed("Authorization has no credential")
	}
	return rest, nil
}
