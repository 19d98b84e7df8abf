package identity

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/proconsul/proconsul/config"
)

// tokensKept bounds the verified tokens that are remembered for each method.
const tokensKept = 16_384

// Bounds of what a token can put into header fields.
const (
	maxName   = 256
	maxClaim  = 1024
	maxGroups = 64
)

// tokenMethod knows callers by a signed token (RFC 7519) of one issuer.
type tokenMethod struct {
	name       string
	c          config.JWTMethod
	algorithms []jose.SignatureAlgorithm
	secret     []byte  // for HS; nil: keys
	keys       *keySet // nil: secret

	consumers map[string]bool         // the names of all that are configured
	claims    []consumerClaim         // that make a token a consumer's
	verified  *cache[digest, *passed] // by the hash of the whole token
}

type consumerClaim struct {
	name, equals string
	consumer     config.Consumer
}

// passed is a token that was verified with a key of ring.
type passed struct {
	identity *Identity
	ring     *keyring
}

func newTokenMethod(name string, c config.JWTMethod, consumers []config.Consumer, keys *Keys, sets []*keySet) (*tokenMethod, error) {
	m := &tokenMethod{
		name: name, c: c, consumers: map[string]bool{},
		verified: newCache[digest, *passed](tokensKept),
	}
	hs := 0
	for _, alg := range c.Algorithms {
		if strings.HasPrefix(alg, "HS") {
			hs++
		}
		m.algorithms = append(m.algorithms, jose.SignatureAlgorithm(alg))
	}
	// The configuration has been checked; these two are what key confusion
	// would need.
	if hs > 0 && (hs < len(c.Algorithms) || c.Secret.Empty()) || hs == 0 && !c.Secret.Empty() {
		return nil, errors.New("HS algorithms go with a secret and nothing else with one")
	}
	for _, consumer := range consumers {
		m.consumers[consumer.Name] = true
		for _, claim := range consumer.JWT {
			if claim.Method == name {
				m.claims = append(m.claims, consumerClaim{claim.Claim, claim.Equals, consumer})
			}
		}
	}
	if hs > 0 {
		m.secret = []byte(c.Secret.Reveal())
		if len(m.secret) < sha256.Size {
			return nil, errors.New("the secret is shorter than 32 bytes")
		}
		return m, nil
	}
	src := source{uri: c.JWKSURI, file: c.JWKSFile, refresh: c.Refresh, cooldown: c.Cooldown}
	if src.file != "" {
		src.refresh = min(src.refresh, fileInterval)
		src.cooldown = src.refresh
	}
	var err error
	m.keys, err = keys.set(src, sets)
	return m, err
}

func (m *tokenMethod) Name() string { return m.name }

func (m *tokenMethod) Identify(r *http.Request) (*Identity, error) {
	token, err := credentials(r, "Bearer")
	if err != nil {
		return nil, err
	}
	if len(token) > int(m.c.MaxTokenBytes) {
		return nil, malformed("the token is too long")
	}
	now := time.Now()
	sum := sha256.Sum256([]byte(token))
	var ring *keyring
	if m.keys != nil {
		ring = m.keys.ring.Load()
	}
	// A change of the issuer's keys voids what was verified with the old ones.
	if p, ok := m.verified.get(sum, now); ok && p.ring == ring {
		return p.identity, nil
	}
	payload, ring, err := m.verify(r, token)
	if err != nil {
		return nil, err
	}
	id, expires, err := m.accept(payload, now)
	if err != nil {
		return nil, err
	}
	m.verified.put(sum, &passed{id, ring}, expires, now)
	return id, nil
}

// verify returns the payload of a token whose signature is right, and the keys
// by which it is.
func (m *tokenMethod) verify(r *http.Request, token string) ([]byte, *keyring, error) {
	jws, err := jose.ParseSignedCompact(token, m.algorithms)
	if err != nil {
		var alg *jose.ErrUnexpectedSignatureAlgorithm
		if errors.As(err, &alg) {
			return nil, nil, refused("the token's algorithm is not accepted")
		}
		return nil, nil, malformed("the token is not a signed JWT")
	}
	header := jws.Signatures[0].Protected
	if _, critical := header.ExtraHeaders["crit"]; critical {
		return nil, nil, refused("the token asks for extensions that are not supported")
	}
	if m.secret != nil {
		payload, err := jws.Verify(m.secret)
		if err != nil {
			return nil, nil, refused("the token's signature is wrong")
		}
		return payload, nil, nil
	}
	ring := m.keys.ring.Load()
	var candidates []issuerKey
	if ring != nil {
		candidates = ring.find(header.KeyID, header.Algorithm)
	}
	if len(candidates) == 0 {
		m.keys.demand(r.Context())
		if ring = m.keys.ring.Load(); ring == nil {
			return nil, nil, ErrUnavailable
		}
		candidates = ring.find(header.KeyID, header.Algorithm)
	}
	if len(candidates) == 0 {
		return nil, nil, refused("the token is signed with a key that is not known")
	}
	for _, k := range candidates {
		if payload, err := jws.Verify(k.key); err == nil {
			return payload, ring, nil
		}
	}
	return nil, nil, refused("the token's signature is wrong")
}

// accept checks the claims of a verified token and returns who it names and
// until when it holds.
func (m *tokenMethod) accept(payload []byte, now time.Time) (*Identity, time.Time, error) {
	var none time.Time
	var claims map[string]any
	d := json.NewDecoder(strings.NewReader(string(payload)))
	d.UseNumber()
	if err := d.Decode(&claims); err != nil || claims == nil {
		return nil, none, malformed("the token's claims are not a JSON object")
	}
	expires, err := m.times(claims, now)
	if err != nil {
		return nil, none, err
	}
	if iss, _ := claims["iss"].(string); iss != m.c.Issuer {
		return nil, none, refused("the token is not from the issuer that is accepted")
	}
	if len(m.c.Audience) > 0 && !slices.ContainsFunc(texts(claims["aud"]), func(aud string) bool { return slices.Contains(m.c.Audience, aud) }) {
		return nil, none, refused("the token is for another audience")
	}
	for _, want := range m.c.RequiredClaims {
		if v, ok := claims[want.Name]; !ok || v == nil || want.Equals != "" && !slices.Contains(texts(v), want.Equals) {
			return nil, none, refused("the token lacks the claim %s that is asked for", want.Name)
		}
	}
	scopes := scopesOf(claims)
	for _, want := range m.c.Scopes {
		if !slices.Contains(scopes, want) {
			return nil, none, refused("the token lacks the scope %s", want)
		}
	}
	id, err := m.identify(claims)
	if err != nil {
		return nil, none, err
	}
	id.Scopes = scopes
	if m.c.GroupsClaim != "" {
		id.Groups = union(id.Groups, groupsOf(claims[m.c.GroupsClaim]))
	}
	for _, name := range m.c.ForwardClaims {
		if text, ok := fieldValue(claims[name]); ok {
			id.Claims = append(id.Claims, Claim{textproto.CanonicalMIMEHeaderKey(HeaderClaimPrefix + name), text})
		}
	}
	return id.sealed(), expires, nil
}

// times checks exp, nbf and iat (RFC 7519 section 4.1). Every token has to
// have an expiry: one without would be good for ever.
func (m *tokenMethod) times(claims map[string]any, now time.Time) (expires time.Time, err error) {
	exp, has, ok := date(claims["exp"])
	if !has {
		return expires, refused("the token has no expiry")
	}
	nbf, hasNBF, okNBF := date(claims["nbf"])
	iat, hasIAT, okIAT := date(claims["iat"])
	if !ok || hasNBF && !okNBF || hasIAT && !okIAT {
		return expires, malformed("a time in the token is not a number")
	}
	expires = exp.Add(m.c.ClockSkew)
	switch {
	case !now.Before(expires):
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
func (m *tokenMethod) identify(claims map[string]any) (*Identity, error) {
	for _, c := range m.claims {
		if slices.Contains(texts(claims[c.name]), c.equals) {
			return &Identity{Consumer: c.consumer.Name, Groups: c.consumer.Groups}, nil
		}
	}
	claim := claims[m.c.ConsumerClaim]
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
	case m.consumers[name]:
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

// groupsOf returns the groups in a claim that can stand in a header field.
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

func (m *tokenMethod) Challenge(realm string, err error) string {
	out := "Bearer realm=" + quoted(realm)
	var no *Refused
	if errors.As(err, &no) {
		out += fmt.Sprintf(", error=%s, error_description=%s", quoted(no.code("invalid_token")), quoted(no.Why))
	}
	return out
}

func (m *tokenMethod) Strip(r *http.Request) { delete(r.Header, "Authorization") }
