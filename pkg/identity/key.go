package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"strings"
)

// KeyPrefix begins every API key that NewKey makes, so that scanners of leaked
// secrets know one.
const KeyPrefix = "pck_"

// maxKey bounds what is hashed for a request.
const maxKey = 512

// NewKey returns a new API key of 256 random bits.
func NewKey() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails, see crypto/rand
	return KeyPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// HashKey returns the form in which a configuration has the key: the SHA-256
// in hex.
func HashKey(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

type digest = [sha256.Size]byte

// digestOf returns a text's SHA-256. Texts of a usual length cost no memory.
func digestOf(text string) digest {
	var small [1 << 10]byte
	if len(text) <= len(small) {
		return sha256.Sum256(small[:copy(small[:], text)])
	}
	return sha256.Sum256([]byte(text))
}

// keyMethod knows callers by an API key. Keys are random, so a hash without
// salt and stretching tells nothing about them; it is looked up by that hash,
// of which a caller cannot choose the bits, and compared in constant time.
type keyMethod struct {
	name, header, query string
	people              *people
}

func (m *keyMethod) Name() string { return m.name }

func (m *keyMethod) Identify(r *http.Request) (*Identity, error) {
	key, err := m.key(r)
	if err != nil {
		return nil, err
	}
	sum := digestOf(key)
	all := m.people.Load()
	known := all.keys[sum]
	if known.identity == nil || subtle.ConstantTimeCompare(sum[:], known.digest[:]) != 1 {
		if all.partial {
			return nil, errPartial
		}
		return nil, refused("the API key is not known")
	}
	return known.identity, nil
}

// key returns the one key that the request shows.
func (m *keyMethod) key(r *http.Request) (string, error) {
	var values []string
	if m.header != "" {
		values = r.Header[m.header]
	}
	if m.query != "" && r.URL.RawQuery != "" {
		for pair := range strings.SplitSeq(r.URL.RawQuery, "&") {
			name, value, _ := strings.Cut(pair, "=")
			if !named(name, m.query) {
				continue
			}
			text, err := url.QueryUnescape(value)
			if err != nil {
				return "", malformed("the API key in the query is not escaped as it should be")
			}
			values = append(values[:len(values):len(values)], text)
		}
	}
	switch {
	case len(values) == 0:
		return "", ErrMissing
	case len(values) > 1:
		return "", malformed("there is more than one API key")
	case values[0] == "":
		return "", malformed("the API key is empty")
	case len(values[0]) > maxKey:
		return "", malformed("the API key is too long")
	}
	return values[0], nil
}

// named reports whether an escaped parameter name is that name.
func named(escaped, name string) bool {
	if escaped == name {
		return true
	}
	text, err := url.QueryUnescape(escaped)
	return err == nil && text == name
}

func (m *keyMethod) Challenge(realm string, err error) string {
	// No scheme is registered for API keys; this one says where the key goes.
	out := "ApiKey realm=" + quoted(realm)
	if m.header != "" {
		out += ", header=" + quoted(m.header)
	}
	if m.query != "" {
		out += ", query=" + quoted(m.query)
	}
	var no *Refused
	if errors.As(err, &no) {
		out += ", error=" + quoted(no.code("invalid_key")) + ", error_description=" + quoted(no.Why)
	}
	return out
}

// code is the error code of a challenge: RFC 6750 3.1 has invalid_request and
// invalid_token, and the others follow its example.
func (e *Refused) code(invalid string) string {
	if e.Malformed {
		return "invalid_request"
	}
	return invalid
}

func (m *keyMethod) Strip(r *http.Request) {
	if m.header != "" {
		delete(r.Header, m.header)
	}
	if m.query == "" || r.URL.RawQuery == "" {
		return
	}
	var kept []string
	found := false
	for pair := range strings.SplitSeq(r.URL.RawQuery, "&") {
		if name, _, _ := strings.Cut(pair, "="); named(name, m.query) {
			found = true
			continue
		}
		kept = append(kept, pair)
	}
	if found {
		u := *r.URL // others may hold the URL
		u.RawQuery = strings.Join(kept, "&")
		r.URL = &u
	}
}
