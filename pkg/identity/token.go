package identity

import (
	"crypto/sha256"
	"errors"
	"net/http"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/proconsul/proconsul/config"
)

// tokensKept bounds the verified tokens that are remembered for each method.
const tokensKept = 16_384

// tokenMethod knows callers by a signed token (RFC 7519) of one issuer.
type tokenMethod struct {
	rules
	algorithms []jose.SignatureAlgorithm
	secret     []byte                  // for HS; nil: keys
	keys       *keySet                 // nil: secret
	verified   *cache[digest, *passed] // by the hash of the whole token
}

// passed is a token that was verified with a key of ring, and whose it is
// among the consumers of known.
type passed struct {
	identity *Identity
	ring     *keyring
	known    *roster
}

func newTokenMethod(c config.JWTMethod, r rules, keys *Keys, sets []*keySet) (*tokenMethod, error) {
	m := &tokenMethod{rules: r, verified: newCache[digest, *passed](tokensKept)}
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
	if hs > 0 {
		m.secret = []byte(c.Secret.Reveal())
		if len(m.secret) < sha256.Size {
			return nil, errors.New("the secret is shorter than 32 bytes")
		}
		return m, nil
	}
	src := source{uri: c.JWKSURI, file: c.JWKSFile, insecure: c.Insecure, refresh: c.Refresh, cooldown: c.Cooldown}
	if src.file == "" && src.uri == "" {
		src.issuer = c.Issuer
	}
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
	sum := digestOf(token)
	var ring *keyring
	if m.keys != nil {
		ring = m.keys.ring.Load()
	}
	// A change of the issuer's keys voids what was verified with the old ones,
	// and one of the consumers whose it is.
	known := m.people.Load()
	if p, ok := m.verified.get(sum, now); ok && p.ring == ring && p.known == known {
		return p.identity, nil
	}
	payload, ring, err := m.verify(r, token)
	if err != nil {
		return nil, err
	}
	claims, ok := readClaims(payload)
	if !ok {
		return nil, malformed("the token's claims are not a JSON object")
	}
	id, expires, err := m.accept(claims, known, now)
	if err != nil {
		return nil, err
	}
	m.verified.put(sum, &passed{id, ring, known}, expires, now)
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
		if dry(r.Context()) {
			return nil, nil, ErrNotAsked
		}
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

func (m *tokenMethod) Challenge(realm string, err error) string { return challenge(realm, err) }

func (m *tokenMethod) Strip(r *http.Request) { delete(r.Header, "Authorization") }
