package identity_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/identity"
)

const issuerURL = "https://id.example/jwks"

var (
	b64  = base64.RawURLEncoding.EncodeToString
	keys = sync.OnceValue(func() testKeys {
		r, err1 := rsa.GenerateKey(rand.Reader, 2048)
		e, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		_, d, err3 := ed25519.GenerateKey(rand.Reader)
		if err := errors.Join(err1, err2, err3); err != nil {
			panic(err)
		}
		return testKeys{r, e, d}
	})
)

type testKeys struct {
	rsa *rsa.PrivateKey
	ec  *ecdsa.PrivateKey
	ed  ed25519.PrivateKey
}

// jwk returns the public key as issuers publish it. It is written here once
// more so that nothing checks itself.
func jwk(kid string, public any) map[string]any {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return map[string]any{"kty": "RSA", "kid": kid, "use": "sig", "n": b64(k.N.Bytes()), "e": "AQAB"}
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			panic(err)
		}
		half := (len(point) - 1) / 2
		return map[string]any{"kty": "EC", "kid": kid, "crv": k.Curve.Params().Name, "x": b64(point[1 : 1+half]), "y": b64(point[1+half:])}
	case ed25519.PublicKey:
		return map[string]any{"kty": "OKP", "kid": kid, "crv": "Ed25519", "x": b64(k)}
	}
	panic("no such key")
}

func set(list ...map[string]any) []byte {
	text, err := json.Marshal(map[string]any{"keys": list})
	if err != nil {
		panic(err)
	}
	return text
}

// sign makes a token; key may be any of testKeys or the bytes of a secret.
func sign(header, claims map[string]any, key any) string {
	h, _ := json.Marshal(header)
	c, _ := json.Marshal(claims)
	return signText(string(h), string(c), key)
}

func signText(header, claims string, key any) string {
	input := b64([]byte(header)) + "." + b64([]byte(claims))
	sum := sha256.Sum256([]byte(input))
	var sig []byte
	var err error
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if strings.Contains(header, `"PS256"`) {
			sig, err = rsa.SignPSS(rand.Reader, k, crypto.SHA256, sum[:], nil)
		} else {
			sig, err = rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, sum[:])
		}
	case *ecdsa.PrivateKey:
		r, s, signErr := ecdsa.Sign(rand.Reader, k, sum[:])
		sig, err = make([]byte, 64), signErr
		r.FillBytes(sig[:32])
		s.FillBytes(sig[32:])
	case ed25519.PrivateKey:
		sig = ed25519.Sign(k, []byte(input))
	case []byte:
		mac := hmac.New(sha256.New, k)
		mac.Write([]byte(input))
		sig = mac.Sum(nil)
	}
	if err != nil {
		panic(err)
	}
	return input + "." + b64(sig)
}

// issuer answers as an issuer's JWKS endpoint, without a socket.
type issuer struct {
	fetches atomic.Int64
	mu      sync.Mutex
	answer  func(*http.Request) (int, []byte, error)
}

func (i *issuer) says(text []byte) {
	i.does(func(*http.Request) (int, []byte, error) { return 200, text, nil })
}

func (i *issuer) does(f func(*http.Request) (int, []byte, error)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answer = f
}

func (i *issuer) RoundTrip(r *http.Request) (*http.Response, error) {
	i.fetches.Add(1)
	i.mu.Lock()
	f := i.answer
	i.mu.Unlock()
	code, body, err := f(r)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: code, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(string(body))), Request: r}, nil
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// idp is a method that takes the issuer's tokens.
func idp(change func(*config.JWTMethod)) config.AuthMethod {
	c := config.DefaultJWT()
	c.Issuer, c.Audience, c.JWKSURI = "https://id.example", []string{"api"}, issuerURL
	c.Algorithms = []string{"RS256", "PS256", "ES256", "EdDSA"}
	if change != nil {
		change(&c)
	}
	return config.AuthMethod{Name: "idp", JWT: &c}
}

func method(t testing.TB, cfg *config.Config, keys *identity.Keys, name string) identity.Method {
	t.Helper()
	d, err := identity.New(cfg, keys, nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := d.Method(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func bearer(token string) *http.Request {
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	return r
}

// claims of a token that is valid, with some changed; nil takes one away.
func claims(kv ...any) map[string]any {
	now := time.Now().Unix()
	out := map[string]any{"iss": "https://id.example", "aud": "api", "sub": "alice", "exp": now + 300, "nbf": now, "iat": now}
	for i := 0; i < len(kv); i += 2 {
		out[kv[i].(string)] = kv[i+1]
		if kv[i+1] == nil {
			delete(out, kv[i].(string))
		}
	}
	return out
}

func why(err error) string {
	if err == nil {
		return ""
	}
	var no *identity.Refused
	if errors.As(err, &no) && no.Malformed {
		return "malformed: " + no.Why
	}
	return err.Error()
}
