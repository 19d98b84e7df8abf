package auth_test

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/identity"
	"github.com/proconsul/proconsul/pkg/middleware/auth"
)

// vectors are the keys and tokens of RFC 7515 to 7520, as they stand there.
type vectors struct {
	Keys   map[string][]json.RawMessage
	Tokens []struct{ Name, Form, Token string }
}

func readVectors(t *testing.T) (v vectors) {
	t.Helper()
	text, err := os.ReadFile("testdata/rfc.json")
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	if err != nil || len(v.Tokens) != 68 || len(v.Keys) != 16 {
		t.Fatalf("%d tokens, %d keys, %v", len(v.Tokens), len(v.Keys), err)
	}
	return v
}

// jwks writes a JWK set of the keys of those sections.
func (v vectors) jwks(t *testing.T, names ...string) string {
	t.Helper()
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	for _, name := range names {
		if v.Keys[name] == nil {
			t.Fatalf("no keys of %s", name)
		}
		set.Keys = append(set.Keys, v.Keys[name]...)
	}
	text, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// secret returns the symmetric key of a section.
func (v vectors) secret(t *testing.T, name string) config.Secret {
	t.Helper()
	var key struct{ K string }
	if err := json.Unmarshal(v.Keys[name][0], &key); err != nil {
		t.Fatal(err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(key.K)
	if err != nil || len(raw) < 32 {
		t.Fatalf("%d bytes, %v", len(raw), err)
	}
	return config.NewSecret(string(raw))
}

// guarded returns a route that asks for a token by that method, which counts
// the requests that reach its instance.
func guarded(t *testing.T, c config.JWTMethod, reached *int) (http.Handler, error) {
	t.Helper()
	keys := identity.NewKeys(slog.New(slog.DiscardHandler), nil)
	dir, err := identity.New(&config.Config{Auth: []config.AuthMethod{{Name: "rfc", JWT: &c}}}, keys, nil)
	if err != nil {
		return nil, err
	}
	m, err := auth.New(config.Auth{AnyOf: []string{"rfc"}}, dir.Method, nil)
	if err != nil {
		t.Fatal(err)
	}
	return m(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*reached++
		_, _ = io.WriteString(w, r.Header.Get("X-Consumer-Name"))
	})), nil
}

// TestPublicVectors shows every token of RFC 7515 to 7520 to routes that know
// every key there. Signed ones in compact form are verified; those of RFC 7520
// sign a text, which is found out behind the signature alone. All others are no
// bearer tokens to us, and get the exact answer of the table; no other key, and
// no change of a token, makes them any.
func TestPublicVectors(t *testing.T) {
	const (
		noClaims  = `error="invalid_request", error_description="the token's claims are not a JSON object"`
		notSigned = `error="invalid_request", error_description="the token is not a signed JWT"`
		algorithm = `error="invalid_token", error_description="the token's algorithm is not accepted"`
		wrong     = `error="invalid_token", error_description="the token's signature is wrong"`
	)
	type want struct {
		consumer, why string
		secret        string // whose; none: the public keys
	}
	wants := map[string]want{
		"RFC 7515 A.1 compact":      {"joe", "", "RFC 7515 A.1"}, // RFC 7519 3.1 too
		"RFC 7515 A.2 compact":      {"joe", "", ""},
		"RFC 7515 A.3 compact":      {"joe", "", ""},
		"RFC 7515 A.4 compact":      {"", noClaims, ""},
		"RFC 7515 A.5 compact":      {"", algorithm, ""}, // none; RFC 7519 6.1 too
		"RFC 7520 4.1 compact":      {"", noClaims, ""},
		"RFC 7520 4.2 compact":      {"", noClaims, ""},
		"RFC 7520 4.3 compact":      {"", noClaims, ""},
		"RFC 7520 4.4 compact":      {"", noClaims, "RFC 7520 3.5"},
		"RFC 7520 4.5 compact":      {"", wrong, "RFC 7520 3.5"}, // its payload is elsewhere
		"RFC 7520 6 signed compact": {"hobbiton.example", "", ""},
		"RFC 7520 4.4 flattened":    {"", notSigned, "RFC 7520 3.5"},
		"RFC 7520 4.4 general":      {"", notSigned, "RFC 7520 3.5"},
		"RFC 7520 4.5 flattened":    {"", notSigned, "RFC 7520 3.5"},
		"RFC 7520 4.5 general":      {"", notSigned, "RFC 7520 3.5"},
		"RFC 7520 4.6 flattened":    {"", notSigned, "RFC 7520 3.5"},
		"RFC 7520 4.6 general":      {"", notSigned, "RFC 7520 3.5"},
		"RFC 7520 4.7 flattened":    {"", notSigned, "RFC 7520 3.5"},
		"RFC 7520 4.7 general":      {"", notSigned, "RFC 7520 3.5"},
	}
	v := readVectors(t)
	verified := 0
	for _, token := range v.Tokens {
		name := token.Name + " " + token.Form
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // in the year 2000, before the tokens expire
				w, listed := wants[name]
				if !listed {
					w.why = notSigned // in JSON, or encrypted
				}
				c := config.DefaultJWT()
				c.Issuer, c.ConsumerClaim, c.RequiredClaims = "joe", "iss", []config.Claim{{Name: "http://example.com/is_root", Equals: "true"}}
				if token.Name == "RFC 7520 6 signed" {
					c.Issuer = "hobbiton.example"
				}
				if w.secret != "" {
					c.Algorithms, c.Secret = []string{"HS256"}, v.secret(t, w.secret)
				} else {
					c.Algorithms = []string{"RS256", "PS256", "PS384", "ES256", "ES512"}
					c.JWKSFile = v.jwks(t, "RFC 7515 A.2", "RFC 7515 A.3", "RFC 7515 A.4", "RFC 7517 A.1", "RFC 7517 B", "RFC 7520 3.1", "RFC 7520 3.3", "RFC 7520 6")
				}
				reached := 0
				h, err := guarded(t, c, &reached)
				if err != nil {
					t.Fatal(err)
				}
				ask := func(token string) *httptest.ResponseRecorder {
					r := httptest.NewRequest("GET", "/", nil)
					r.Header.Set("Authorization", "Bearer "+token)
					rec := httptest.NewRecorder()
					h.ServeHTTP(rec, r)
					return rec
				}
				got := ask(token.Token)
				if w.why == "" {
					if got.Code != 200 || got.Body.String() != w.consumer || reached != 1 {
						t.Fatalf("%d %s (%d reached the instance), want 200 for %s", got.Code, got.Body, reached, w.consumer)
					}
					verified++
				} else {
					challenge := `Bearer realm="proconsul", ` + w.why
					if got.Code != 401 || got.Header().Get("X-Proconsul-Reason") != "unauthenticated" || got.Header().Get("Www-Authenticate") != challenge || reached != 0 {
						t.Fatalf("%d %s, WWW-Authenticate %q (%d reached the instance), want 401 %s", got.Code, got.Body, got.Header()["Www-Authenticate"], reached, challenge)
					}
				}
				if w.why == noClaims {
					verified++
				}
				if w.why != "" && w.why != noClaims {
					return
				}
				// With another payload the signature is wrong.
				part := strings.Split(token.Token, ".")
				part[1] = base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"joe","exp":1300819380,"http://example.com/is_root":true} `))
				if got := ask(strings.Join(part, ".")); got.Code != 401 || !strings.Contains(got.Header().Get("Www-Authenticate"), wrong) {
					t.Errorf("with another payload: %d %q", got.Code, got.Header()["Www-Authenticate"])
				}
			})
		})
	}
	if verified != 9 {
		t.Errorf("%d tokens were verified, want 9", verified)
	}
}

// TestPublicVectorKeys reads every key of RFC 7515, 7517, 7518 and 7520 as a set
// of an issuer: public halves verify what the private ones signed, and keys that
// are secret or not for signatures are nobody's.
func TestPublicVectorKeys(t *testing.T) {
	const none = "is a public key for signatures"
	v := readVectors(t)
	tokens := map[string]string{}
	for _, token := range v.Tokens {
		tokens[token.Name+" "+token.Form] = token.Token
	}
	for _, tt := range []struct {
		keys     string
		refused  string // why the set is; empty: it is not
		verifies string // tokens, and no others; none: no RFC has one
	}{
		{"RFC 7515 A.1", none, ""}, // a secret
		{"RFC 7515 A.2", "", "RFC 7515 A.2 compact"},
		{"RFC 7515 A.3", "", "RFC 7515 A.3 compact"},
		{"RFC 7515 A.4", "", "RFC 7515 A.4 compact"},
		{"RFC 7517 A.1", "", ""},
		{"RFC 7517 A.2", "", ""},
		{"RFC 7517 A.3", none, ""}, // secrets
		{"RFC 7517 B", "", ""},     // with its certificate
		{"RFC 7518 C", "", ""},
		{"RFC 7520 3.1", "", "RFC 7520 4.3 compact"},
		{"RFC 7520 3.2", "", "RFC 7520 4.3 compact"}, // the private key: its public half counts
		{"RFC 7520 3.3", "", "RFC 7520 4.1 compact, RFC 7520 4.2 compact"},
		{"RFC 7520 3.4", "", "RFC 7520 4.1 compact, RFC 7520 4.2 compact"}, // of the same key
		{"RFC 7520 3.5", none, ""},
		{"RFC 7520 3.6", none, ""},
		{"RFC 7520 6", "", "RFC 7520 6 signed compact"},
	} {
		t.Run(tt.keys, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := config.DefaultJWT()
				c.Issuer, c.ConsumerClaim, c.Algorithms = "joe", "iss", []string{"RS256", "PS256", "PS384", "ES256", "ES512"}
				c.JWKSFile = v.jwks(t, tt.keys)
				reached := 0
				h, err := guarded(t, c, &reached)
				if tt.refused != "" {
					if err == nil || !strings.Contains(err.Error(), tt.refused) {
						t.Errorf("the set got %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				for name, token := range tokens {
					if strings.Count(token, ".") != 2 {
						continue
					}
					r := httptest.NewRequest("GET", "/", nil)
					r.Header.Set("Authorization", "Bearer "+token)
					rec := httptest.NewRecorder()
					h.ServeHTTP(rec, r)
					why := rec.Header().Get("Www-Authenticate")
					known := rec.Code == 200 || strings.Contains(why, "not a JSON object") || strings.Contains(why, "not from the issuer")
					signed := strings.Contains(tt.verifies, name)
					if signed && !known {
						t.Errorf("%s is not verified: %d %s", name, rec.Code, why)
					}
					if known && !signed {
						t.Errorf("%s is verified with a key that did not sign it: %d %s", name, rec.Code, why)
					}
				}
			})
		})
	}
}
