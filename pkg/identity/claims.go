package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/proconsul/proconsul/config"
)

// Bounds of what a token can put into header fields.
const (
	maxName   = 256
	maxClaim  = 1024
	maxGroups = 64
)

// rules turn a token's claims into an identity, whoever vouches for them.
type rules struct {
	name    string // of the method
	issuer  string // that iss has to be; empty: any
	endless bool   // a token may be without an expiry
	c       config.TokenRules
	asked   []string // claims that routes ask for
	people  *people
}

// readClaims reads a JSON object, with its numbers as they are written.
func readClaims(text []byte) (map[string]any, bool) {
	var claims map[string]any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	return claims, d.Decode(&claims) == nil && claims != nil
}

// lookup returns a claim by its name, or, where there is none of the whole
// name, one inside others by their names with dots between.
func lookup(claims map[string]any, name string) any {
	if v, ok := claims[name]; ok {
		return v
	}
	first, rest, nested := strings.Cut(name, ".")
	if inner, ok := claims[first].(map[string]any); ok && nested {
		return lookup(inner, rest)
	}
	return nil
}

// accept checks the claims of a token that is known to be the issuer's and
// returns who it names and until when it holds: the zero time for one without
// an expiry.
func (m *rules) accept(claims map[string]any, known *roster, now time.Time) (*Identity, time.Time, error) {
	var none time.Time
	expires, err := m.times(claims, now)
	if err != nil {
		return nil, none, err
	}
	if iss, _ := claims["iss"].(string); m.issuer != "" && iss != m.issuer {
		return nil, none, refused("the token is not from the issuer that is accepted")
	}
	if len(m.c.Audience) > 0 && !slices.ContainsFunc(texts(claims["aud"]), func(aud string) bool { return slices.Contains(m.c.Audience, aud) }) {
		return nil, none, refused("the token is for another audience")
	}
	for _, want := range m.c.RequiredClaims {
		if v := lookup(claims, want.Name); v == nil || want.Equals != "" && !slices.Contains(texts(v), want.Equals) {
			return nil, none, refused("the token lacks the claim %s that is asked for", want.Name)
		}
	}
	scopes := scopesOf(claims)
	for _, want := range m.c.Scopes {
		if !slices.Contains(scopes, want) {
			return nil, none, refused("the token lacks the scope %s", want)
		}
	}
	id, err := m.identify(claims, known)
	if err != nil {
		return nil, none, err
	}
	id.Scopes = scopes
	if m.c.GroupsClaim != "" {
		id.Groups = union(id.Groups, groupsOf(lookup(claims, m.c.GroupsClaim)))
	}
	if m.c.RolesClaim != "" {
		id.Roles = union(id.Roles, groupsOf(lookup(claims, m.c.RolesClaim)))
	}
	for _, name := range m.c.ForwardClaims {
		if text, ok := fieldValue(lookup(claims, name)); ok {
			id.Claims = append(id.Claims, Claim{textproto.CanonicalMIMEHeaderKey(HeaderClaimPrefix + strings.ReplaceAll(name, ".", "-")), text})
		}
	}
	for _, name := range m.asked {
		if v := lookup(claims, name); v != nil {
			if id.asked == nil {
				id.asked = map[string][]string{}
			}
			id.asked[name] = texts(v)
		}
	}
	return id.sealed(), expires, nil
}

// times checks exp, nbf and iat (RFC 7519 section 4.1). A token that nobody is
// asked about again has to have an expiry: one without would be good for ever.
func (m *rules) times(claims map[string]any, now time.Time) (expires time.Time, err error) {
	exp, has, ok := date(claims["exp"])
	if !has && !m.endless {
		return expires, refused("the token has no expiry")
	}
	nbf, hasNBF, okNBF := date(claims["nbf"])
	iat, hasIAT, okIAT := date(claims["iat"])
	if has && !ok || hasNBF && !okNBF || hasIAT && !okIAT {
		return expires, malformed("a time in the token is not a number")
	}
	if has {
		expires = exp.Add(m.c.ClockSkew)
	}
	switch {
	case has && !now.Before(expires):
		return expires, refused("the token has expired")
	case hasNBF && now.Add(m.c.ClockSkew).Before(nbf):
		return expires, refused("the token is not valid yet")
	case hasIAT && now.Add(m.c.ClockSkew).Before(iat):
		return expires, refused("the token was issued in the future")
	}
	return expires, nil
}

// date reads a NumericDate: seconds since 1970, whole or not. Dates beyond the
// year 9999 are that year's end.
func date(v any) (t time.Time, has, ok bool) {
	if v == nil {
		return t, false, false
	}
	n, isNumber := v.(json.Number)
	if !isNumber {
		return t, true, false
	}
	f, err := n.Float64()
	if err != nil || math.IsNaN(f) || f < 0 {
		return t, true, false
	}
	const last = 253402300799
	seconds, fraction := math.Modf(min(f, last))
	return time.Unix(int64(seconds), int64(fraction*1e9)), true, true
}

// identify returns whose token it is: a consumer's by one of its claims, or
// the one that consumer_claim names. A token that is not a configured
// consumer's by the configuration's own word cannot name itself one.
func (m *rules) identify(claims map[string]any, known *roster) (*Identity, error) {
	for _, c := range known.claims[m.name] {
		if slices.Contains(texts(lookup(claims, c.name)), c.equals) {
			return &Identity{Consumer: c.identity.Consumer, Groups: c.identity.Groups, Roles: c.identity.Roles}, nil
		}
	}
	if known.partial {
		return nil, errPartial
	}
	claim := lookup(claims, m.c.ConsumerClaim)
	if _, list := claim.([]any); list { // names one caller, not several
		claim = nil
	}
	text, ok := fieldValue(claim)
	name := m.c.ConsumerPrefix + text
	switch {
	case !ok || text == "":
		return nil, refused("the token does not say whose it is")
	case len(name) > maxName:
		return nil, refused("the token names somebody by too long a name")
	case known.names[name] != nil:
		return nil, refused("the token names a consumer that it is not known for")
	}
	return &Identity{Consumer: name}, nil
}

// texts returns a claim that is a text, or a list of texts, as a list.
func texts(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case json.Number:
		return []string{v.String()}
	case bool:
		return []string{strconv.FormatBool(v)}
	case []any:
		var out []string
		for _, e := range v {
			if s, ok := e.(string); ok {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

// scopesOf returns the scopes of a token: words in scope (RFC 8693 section
// 4.2), or words or a list in scp.
func scopesOf(claims map[string]any) []string {
	var out []string
	for _, name := range [...]string{"scope", "scp"} {
		for _, text := range texts(claims[name]) {
			out = union(out, strings.Fields(text))
		}
	}
	return out
}

// groupsOf returns the groups or roles in a claim that can stand in a header
// field.
func groupsOf(v any) []string {
	var out []string
	for _, g := range texts(v) {
		if len(out) < maxGroups && g != "" && len(g) <= maxName && !strings.ContainsAny(g, ", ") && printable(g) {
			out = append(out, g)
		}
	}
	return out
}

// fieldValue returns a claim as the value of a header field.
func fieldValue(v any) (string, bool) {
	if v == nil {
		return "", false
	}
	text := strings.Join(texts(v), ",")
	return text, text != "" && len(text) <= maxClaim && printable(text)
}

// printable reports whether a text can stand in a header field as it is, and
// cannot be taken for another one when spaces around it are trimmed.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] == 0x7f {
			return false
		}
	}
	return s == strings.TrimSpace(s)
}

// challenge is the WWW-Authenticate of a method that takes bearer tokens (RFC
// 6750 section 3).
func challenge(realm string, err error) string {
	out := "Bearer realm=" + quoted(realm)
	var no *Refused
	if errors.As(err, &no) {
		out += fmt.Sprintf(", error=%s, error_description=%s", quoted(no.code("invalid_token")), quoted(no.Why))
	}
	return out
}
