// Package identity finds out who is calling: API keys, signed tokens (JWT),
// client certificates and user names with passwords. It is the only door to go-jose and to bcrypt. It
// answers no request and decides nothing about what a caller may do; the
// middleware auth does.
//
// No key, token or password is kept in the clear, logged or part of an error.
package identity

import (
	"cmp"
	"context"
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
	Roles    []string // likewise
	Scopes   []string // of the token
	Claims   []Claim  // of the token, for instances

	// Unchecked says that whoever would know did not answer, and that the
	// configuration lets such requests pass.
	Unchecked bool

	asked  map[string][]string // claims that some route asks for, as texts
	told   []field             // that a service's answer has for instances
	fields []field             // all of them
}

// Has reports whether the token has a claim that a route asks for: any, or,
// where equals is not empty, one with that text.
func (id *Identity) Has(claim, equals string) bool {
	texts, ok := id.asked[claim]
	return ok && (equals == "" || slices.Contains(texts, equals))
}

// Asked returns the claims of the token that a route asks for or a limit counts
// by, as texts. It is shared and must not be changed.
func (id *Identity) Asked() map[string][]string { return id.asked }

// Claim is a claim that instances get as a header field.
type Claim struct{ Header, Value string }

// The header fields that tell instances who called.
const (
	HeaderConsumer    = "X-Consumer-Name"
	HeaderGroups      = "X-Consumer-Groups"
	HeaderRoles       = "X-Consumer-Roles"
	HeaderClaimPrefix = "X-Consumer-Claim-"
)

type field struct {
	name   string
	values []string
}

// sealed prepares the fields for instances once, instead of for each request.
func (id *Identity) sealed() *Identity {
	if id.Consumer != "" {
		id.fields = append(id.fields, field{HeaderConsumer, []string{id.Consumer}})
	}
	if len(id.Groups) > 0 {
		id.fields = append(id.fields, field{HeaderGroups, []string{strings.Join(id.Groups, ",")}})
	}
	if len(id.Roles) > 0 {
		id.fields = append(id.fields, field{HeaderRoles, []string{strings.Join(id.Roles, ",")}})
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
// the groups, roles, scopes and claims of all.
func Merge(all ...*Identity) *Identity {
	if len(all) == 1 {
		return all[0]
	}
	out := &Identity{}
	var told []field
	for _, id := range all {
		out.Consumer = cmp.Or(out.Consumer, id.Consumer)
		told = append(told, id.told...)
		out.Groups = union(out.Groups, id.Groups)
		out.Roles = union(out.Roles, id.Roles)
		out.Scopes = union(out.Scopes, id.Scopes)
		for name, texts := range id.asked {
			if out.asked == nil {
				out.asked = map[string][]string{}
			}
			out.asked[name] = union(out.asked[name], texts)
		}
		for _, c := range id.Claims {
			if !slices.ContainsFunc(out.Claims, func(o Claim) bool { return o.Header == c.Header }) {
				out.Claims = append(out.Claims, c)
			}
		}
	}
	out.sealed()
	out.tells(told)
	return out
}

// tells adds the fields that a service's answer has for instances.
func (id *Identity) tells(told []field) {
	id.told = told
	id.fields = append(id.fields, told...)
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
	ErrUnavailable = errors.New("the credential cannot be checked for now")
	// ErrNotAsked says that somebody else would have to be asked, which a
	// request that is only explained does not do.
	ErrNotAsked = errors.New("not asked")

	errPartial = fmt.Errorf("%w: not all consumers are known yet", ErrUnavailable)
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

type dryKey struct{}

// Dry returns a context in which methods ask nobody: where they would have to,
// they answer ErrNotAsked.
func Dry(ctx context.Context) context.Context { return context.WithValue(ctx, dryKey{}, true) }

func dry(ctx context.Context) bool { return ctx.Value(dryKey{}) != nil }

// Via returns the way to a service of the configuration.
type Via func(service string) (http.RoundTripper, error)

// Directory is every consumer and method of one configuration. It is safe for
// concurrent use; only its consumers change.
type Directory struct {
	methods map[string]Method
	sets    []*keySet
	desks   []*desk
	people  *people
}

// New returns the directory of a configuration, with what keys know of its
// issuers already, or every fault in it. Services that methods ask are reached
// by via, which may be nil where there are none. New reads jwks_file files and
// asks nobody.
func New(cfg *config.Config, keys *Keys, via Via) (*Directory, error) {
	d := &Directory{methods: map[string]Method{}, people: new(people)}
	var faults []error
	all, err := newRoster(cfg.Consumers)
	faults = append(faults, err)
	d.people.Store(all)
	asked := askedClaims(cfg)
	for _, m := range cfg.Methods() {
		var err error
		switch {
		case m.APIKey != nil:
			d.methods[m.Name] = &keyMethod{name: m.Name, header: http.CanonicalHeaderKey(m.APIKey.Header), query: m.APIKey.Query, people: d.people}
		case m.Basic != nil:
			d.methods[m.Name] = &basicMethod{name: m.Name, realm: m.Basic.Realm, people: d.people, passwords: keys.passwords}
		case m.MTLS != nil:
			d.methods[m.Name] = &certMethod{name: m.Name, from: m.MTLS.ConsumerFrom, prefix: m.MTLS.ConsumerPrefix, at: m.MTLS.Listeners, people: d.people}
		case m.JWT != nil:
			err = d.addToken(*m.JWT, rules{name: m.Name, issuer: m.JWT.Issuer, c: m.JWT.TokenRules, asked: asked, people: d.people}, keys)
		case m.Introspection != nil:
			err = d.addIntrospection(*m.Introspection, rules{name: m.Name, issuer: m.Introspection.Issuer, endless: true, c: m.Introspection.TokenRules, asked: asked, people: d.people}, keys, via)
		}
		if m.ForwardAuth != nil {
			d.methods[m.Name], err = newForward(m.Name, *m.ForwardAuth, d.people, keys, via)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("auth %s: %w", m.Name, err))
		}
	}
	return d, errors.Join(faults...)
}

func (d *Directory) addToken(c config.JWTMethod, r rules, keys *Keys) error {
	t, err := newTokenMethod(c, r, keys, d.sets)
	if err != nil {
		return err
	}
	if t.keys != nil && !slices.Contains(d.sets, t.keys) {
		d.sets = append(d.sets, t.keys)
	}
	d.methods[r.name] = t
	return nil
}

func (d *Directory) addIntrospection(c config.IntrospectionMethod, r rules, keys *Keys, via Via) error {
	m, err := newIntrospection(c, r, keys, d.desks, via)
	if err != nil {
		return err
	}
	d.desks = append(d.desks, m.desk)
	d.methods[r.name] = m
	return nil
}

// SetConsumers makes those the directory's consumers, or changes nothing and
// returns every fault in them. While partial is set, more are to come: a
// credential that is nobody's yet cannot be judged.
func (d *Directory) SetConsumers(consumers []config.Consumer, partial bool) error {
	all, err := newRoster(consumers)
	if err != nil {
		return err
	}
	all.partial = partial
	d.people.Store(all)
	return nil
}

// Partial reports whether there are consumers that are not known yet.
func (d *Directory) Partial() bool { return d.people.Load().partial }

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

// askedClaims are the claims that the routes of a configuration ask for. Of a
// token's others nothing is kept.
func askedClaims(cfg *config.Config) []string {
	var out []string
	ask := func(n config.Needs) {
		for _, c := range n.Claims {
			if !slices.Contains(out, c.Name) {
				out = append(out, c.Name)
			}
		}
	}
	section := func(m config.Middleware) {
		if m.Auth == nil {
			return
		}
		ask(m.Auth.Needs)
		for _, by := range m.Auth.ByMethod {
			ask(by.Needs)
		}
	}
	for _, p := range cfg.Policies {
		section(p.Middleware)
	}
	for _, r := range cfg.Routes {
		section(r.Middleware)
	}
	for _, name := range cfg.CountedClaims() {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
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
