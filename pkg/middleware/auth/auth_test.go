package auth_test

import (
	"cmp"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/identity"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/auth"
	"github.com/proconsul/proconsul/pkg/parts"
)

const (
	goldKey   = "pck_gold-key-of-the-consumer-acme"
	bronzeKey = "pck_bronze-key-of-the-consumer-tin"
	hsSecret  = "a-secret-that-is-longer-than-32-bytes"
	password  = "correct horse battery staple"
)

var b64 = base64.RawURLEncoding.EncodeToString

// fixture is one configuration's methods and the keys that sign for it.
type fixture struct {
	dir    *identity.Directory
	ed     ed25519.PrivateKey
	rsa    *rsa.PrivateKey
	rsaPEM []byte // the public key, as a confused verifier would take for a secret
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{}
	_, f.ed, _ = ed25519.GenerateKey(rand.Reader)
	var err error
	if f.rsa, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&f.rsa.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	f.rsaPEM = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	jwks, err := json.Marshal(map[string]any{"keys": []any{
		map[string]any{"kty": "OKP", "crv": "Ed25519", "kid": "ed-1", "x": b64(f.ed.Public().(ed25519.PublicKey))},
		map[string]any{"kty": "RSA", "kid": "rsa-1", "n": b64(f.rsa.N.Bytes()), "e": "AQAB"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(file, jwks, 0o600); err != nil {
		t.Fatal(err)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	idp, hs := config.DefaultJWT(), config.DefaultJWT()
	idp.Issuer, idp.Audience, idp.Algorithms, idp.JWKSFile = "https://id.example", []string{"api"}, []string{"EdDSA", "RS256"}, file
	idp.GroupsClaim, idp.ForwardClaims = "groups", []string{"email"}
	hs.Issuer, hs.Audience, hs.Algorithms, hs.Secret = "internal", []string{"api"}, []string{"HS256"}, config.NewSecret(hsSecret)
	away := config.DefaultJWT()
	away.Issuer, away.Algorithms, away.JWKSURI = "https://away.example", []string{"EdDSA"}, "https://away.example/jwks"
	f.dir, err = identity.New(&config.Config{
		Consumers: []config.Consumer{
			{Name: "acme", Groups: []string{"gold", "partners"}, APIKeys: []config.APIKey{{ID: "a", SHA256: config.NewSecret(identity.HashKey(goldKey))}},
				Basic: []config.BasicLogin{{Username: "acme", Bcrypt: config.NewSecret(string(hash))}}},
			{Name: "tin", APIKeys: []config.APIKey{{ID: "t", SHA256: config.NewSecret(identity.HashKey(bronzeKey))}}},
			{Name: "mobile", Groups: []string{"apps"}, Claims: []config.ConsumerClaim{{Method: "idp", Claim: "azp", Equals: "mobile-app"}}},
		},
		Auth: []config.AuthMethod{
			{Name: "idp", JWT: &idp}, {Name: "hs", JWT: &hs}, {Name: "away", JWT: &away},
			{Name: "query-key", APIKey: &config.APIKeyMethod{Header: "X-Api-Key", Query: "key"}},
		},
	}, identity.NewKeys(slog.New(slog.DiscardHandler), refusing{}), nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// refusing is the way to an issuer that is away.
type refusing struct{}

func (refusing) RoundTrip(*http.Request) (*http.Response, error) { return nil, os.ErrDeadlineExceeded }

// token signs claims that are valid but for what kv says; a nil takes one away.
func (f *fixture) token(kid string, kv ...any) string {
	now := time.Now().Unix()
	c := map[string]any{"iss": "https://id.example", "aud": []string{"other", "api"}, "sub": "alice", "exp": now + 300, "nbf": now - 1, "iat": now - 1}
	for i := 0; i < len(kv); i += 2 {
		c[kv[i].(string)] = kv[i+1]
		if kv[i+1] == nil {
			delete(c, kv[i].(string))
		}
	}
	return signed(map[string]any{"alg": "EdDSA", "kid": kid}, c, func(in []byte) []byte { return ed25519.Sign(f.ed, in) })
}

func signed(header, claims any, sign func([]byte) []byte) string {
	h, _ := json.Marshal(header)
	c, _ := json.Marshal(claims)
	in := b64(h) + "." + b64(c)
	return in + "." + b64(sign([]byte(in)))
}

func mac(secret []byte) func([]byte) []byte {
	return func(in []byte) []byte {
		m := hmac.New(sha256.New, secret)
		m.Write(in)
		return m.Sum(nil)
	}
}

// answer is what came of one request.
type answer struct {
	*http.Response
	reason    string
	detail    string
	exchange  *middleware.Exchange
	seen      *http.Request // what reached the instance; nil: nothing did
	decisions []string
}

func (f *fixture) ask(t testing.TB, cfg config.Auth, r *http.Request) answer {
	t.Helper()
	var out answer
	mw, err := auth.New(cfg, f.dir.Method, func(method, result string) { out.decisions = append(out.decisions, method+" "+result) })
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	out.exchange = middleware.NewExchange(w, time.Now())
	mw(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { out.seen = r })).ServeHTTP(out.exchange, r)
	out.Response = w.Result()
	var body struct{ Reason, Detail string }
	_ = json.NewDecoder(out.Body).Decode(&body)
	out.reason, out.detail = body.Reason, body.Detail
	return out
}

// request builds one from header lines "Name: value" and a target.
func request(target string, lines ...string) *http.Request {
	r := httptest.NewRequest("GET", target, nil)
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ": ")
		r.Header.Add(name, value)
	}
	return r
}

func TestEachMethodsCases(t *testing.T) {
	f := newFixture(t)
	now := time.Now().Unix()
	good := f.token("ed-1")
	parts := strings.Split(good, ".")
	claims := map[string]any{"iss": "https://id.example", "aud": "api", "sub": "alice", "exp": now + 300}
	none := signed(map[string]any{"alg": "none", "kid": "ed-1"}, claims, func([]byte) []byte { return nil })
	confused := signed(map[string]any{"alg": "HS256", "kid": "rsa-1"}, claims, mac(f.rsaPEM))
	confusedN := signed(map[string]any{"alg": "HS256", "kid": "rsa-1"}, claims, mac(f.rsa.N.Bytes()))
	hsClaims := map[string]any{"iss": "internal", "aud": "api", "sub": "job", "exp": now + 300}
	hsGood := signed(map[string]any{"alg": "HS256"}, hsClaims, mac([]byte(hsSecret)))
	hsWrong := signed(map[string]any{"alg": "HS256"}, hsClaims, mac([]byte(hsSecret+"!")))
	hsAsRS := signed(map[string]any{"alg": "RS256"}, hsClaims, mac([]byte(hsSecret)))
	public, evil, _ := ed25519.GenerateKey(rand.Reader)
	ownKey := signed(map[string]any{"alg": "EdDSA", "jwk": map[string]any{"kty": "OKP", "crv": "Ed25519", "x": b64(public)}}, claims, func(in []byte) []byte { return ed25519.Sign(evil, in) })
	critical := signed(map[string]any{"alg": "EdDSA", "kid": "ed-1", "crit": []string{"b64"}, "b64": true}, claims, func(in []byte) []byte { return ed25519.Sign(f.ed, in) })
	basic := func(text string) string {
		return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(text))
	}

	const (
		bare      = `Bearer realm="proconsul"`
		inRequest = `Bearer realm="proconsul", error="invalid_request", error_description="`
		invalid   = `Bearer realm="proconsul", error="invalid_token", error_description="`
		key       = `ApiKey realm="proconsul", header="X-Api-Key"`
		keyNo     = `ApiKey realm="proconsul", header="X-Api-Key", error="`
		basicCh   = `Basic realm="proconsul", charset="UTF-8"`
	)
	tests := []struct {
		name, method string
		r            *http.Request
		consumer     string // empty: 401
		challenge    string
		decision     string
	}{
		{"api key", "api-key", request("/", "X-API-Key: "+goldKey), "acme", "", "allowed"},
		{"api key missing", "api-key", request("/"), "", key, "missing"},
		{"api key empty", "api-key", request("/", "X-API-Key: "), "", keyNo + `invalid_request", error_description="the API key is empty"`, "invalid"},
		{"api key unknown", "api-key", request("/", "X-API-Key: "+goldKey+"x"), "", keyNo + `invalid_key", error_description="the API key is not known"`, "invalid"},
		{"api key by its hash", "api-key", request("/", "X-API-Key: "+identity.HashKey(goldKey)), "", keyNo + `invalid_key", error_description="the API key is not known"`, "invalid"},
		{"api key twice", "api-key", request("/", "X-API-Key: "+goldKey, "X-API-Key: "+goldKey), "", keyNo + `invalid_request", error_description="there is more than one API key"`, "invalid"},
		{"api key huge", "api-key", request("/", "X-API-Key: "+strings.Repeat("k", 4096)), "", keyNo + `invalid_request", error_description="the API key is too long"`, "invalid"},
		{"api key in the query", "api-key", request("/?X-API-Key=" + goldKey + "&key=" + goldKey), "", key, "missing"},
		{"api key as a token", "api-key", request("/", "Authorization: Bearer "+goldKey), "", key, "missing"},
		{"api key in a cookie", "api-key", request("/", "Cookie: X-API-Key="+goldKey), "", key, "missing"},
		{"api key in the query, allowed", "query-key", request("/?a=1&%6bey=" + strings.ReplaceAll(goldKey, "-", "%2d")), "acme", "", "allowed"},
		{"api key in query and header", "query-key", request("/?key="+goldKey, "X-API-Key: "+goldKey), "", `ApiKey realm="proconsul", header="X-Api-Key", query="key", error="invalid_request", error_description="there is more than one API key"`, "invalid"},

		{"token", "idp", request("/", "Authorization: Bearer "+good), "alice", "", "allowed"},
		{"token, scheme in another case", "idp", request("/", "Authorization: bEaReR "+good), "alice", "", "allowed"},
		{"token missing", "idp", request("/"), "", bare, "missing"},
		{"token of another scheme", "idp", request("/", basic("acme:"+password)), "", bare, "missing"},
		{"token as an API key", "idp", request("/", "X-API-Key: "+good), "", bare, "missing"},
		{"token in the query", "idp", request("/?access_token=" + good), "", bare, "missing"},
		{"token empty", "idp", request("/", "Authorization: Bearer "), "", inRequest + `Authorization has no credential"`, "invalid"},
		{"token twice", "idp", request("/", "Authorization: Bearer "+good, "Authorization: Bearer "+good), "", inRequest + `there is more than one Authorization field"`, "invalid"},
		{"two tokens in a line", "idp", request("/", "Authorization: Bearer "+good+", Bearer "+good), "", inRequest + `the token is not a signed JWT"`, "invalid"},
		{"token malformed", "idp", request("/", "Authorization: Bearer a.b.c"), "", inRequest + `the token is not a signed JWT"`, "invalid"},
		{"token of two parts", "idp", request("/", "Authorization: Bearer "+parts[0]+"."+parts[1]), "", inRequest + `the token is not a signed JWT"`, "invalid"},
		{"token without a signature", "idp", request("/", "Authorization: Bearer "+parts[0]+"."+parts[1]+"."), "", invalid + `the token's signature is wrong"`, "invalid"},
		{"token with another's claims", "idp", request("/", "Authorization: Bearer "+parts[0]+"."+strings.Split(f.token("ed-1", "sub", "root"), ".")[1]+"."+parts[2]), "", invalid + `the token's signature is wrong"`, "invalid"},
		{"token huge", "idp", request("/", "Authorization: Bearer "+f.token("ed-1", "x", strings.Repeat("x", 8<<10))), "", inRequest + `the token is too long"`, "invalid"},
		{"token in JSON", "idp", request("/", `Authorization: Bearer {"payload":"`+parts[1]+`","protected":"`+parts[0]+`","signature":"`+parts[2]+`"}`), "", inRequest + `the token is not a signed JWT"`, "invalid"},
		{"alg none", "idp", request("/", "Authorization: Bearer "+none), "", invalid + `the token's algorithm is not accepted"`, "invalid"},
		{"alg none for a secret", "hs", request("/", "Authorization: Bearer "+none), "", invalid + `the token's algorithm is not accepted"`, "invalid"},
		{"the public key as a secret", "idp", request("/", "Authorization: Bearer "+confused), "", invalid + `the token's algorithm is not accepted"`, "invalid"},
		{"the modulus as a secret", "idp", request("/", "Authorization: Bearer "+confusedN), "", invalid + `the token's algorithm is not accepted"`, "invalid"},
		{"RS256 where HS256 is named", "hs", request("/", "Authorization: Bearer "+hsAsRS), "", invalid + `the token's algorithm is not accepted"`, "invalid"},
		{"a key that the token brings", "idp", request("/", "Authorization: Bearer "+ownKey), "", invalid + `the token's signature is wrong"`, "invalid"},
		{"an extension that is critical", "idp", request("/", "Authorization: Bearer "+critical), "", invalid + `the token asks for extensions that are not supported"`, "invalid"},
		{"an unknown kid", "idp", request("/", "Authorization: Bearer "+f.token("ed-2")), "", invalid + `the token is signed with a key that is not known"`, "invalid"},
		{"another key's kid", "idp", request("/", "Authorization: Bearer "+f.token("rsa-1")), "", invalid + `the token is signed with a key that is not known"`, "invalid"},
		{"another issuer", "idp", request("/", "Authorization: Bearer "+f.token("ed-1", "iss", "https://id.example/")), "", invalid + `the token is not from the issuer that is accepted"`, "invalid"},
		{"no issuer", "idp", request("/", "Authorization: Bearer "+f.token("ed-1", "iss", nil)), "", invalid + `the token is not from the issuer that is accepted"`, "invalid"},
		{"another audience", "idp", request("/", "Authorization: Bearer "+f.token("ed-1", "aud", []string{"API", "apis"})), "", invalid + `the token is for another audience"`, "invalid"},
		{"no audience", "idp", request("/", "Authorization: Bearer "+f.token("ed-1", "aud", nil)), "", invalid + `the token is for another audience"`, "invalid"},
		{"expired", "idp", request("/", "Authorization: Bearer "+f.token("ed-1", "exp", now-31)), "", invalid + `the token has expired"`, "invalid"},
		{"expired within the skew", "idp", request("/", "Authorization: Bearer "+f.token("ed-1", "exp", now-10)), "alice", "", "allowed"},
		{"no expiry", "idp", request("/", "Authorization: Bearer "+f.token("ed-1", "exp", nil)), "", invalid + `the token has no expiry"`, "invalid"},
		{"expiry is a text", "idp", request("/", "Authorization: Bearer "+f.token("ed-1", "exp", "9999999999")), "", inRequest + `a time in the token is not a number"`, "invalid"},
		{"not yet valid", "idp", request("/", "Authorization: Bearer "+f.token("ed-1", "nbf", now+60)), "", invalid + `the token is not valid yet"`, "invalid"},
		{"issued in the future", "idp", request("/", "Authorization: Bearer "+f.token("ed-1", "iat", now+60)), "", invalid + `the token was issued in the future"`, "invalid"},
		{"nobody's", "idp", request("/", "Authorization: Bearer "+f.token("ed-1", "sub", nil)), "", invalid + `the token does not say whose it is"`, "invalid"},
		{"a configured consumer's name", "idp", request("/", "Authorization: Bearer "+f.token("ed-1", "sub", "acme")), "", invalid + `the token names a consumer that it is not known for"`, "invalid"},
		{"a consumer by its claim", "idp", request("/", "Authorization: Bearer "+f.token("ed-1", "azp", "mobile-app")), "mobile", "", "allowed"},
		{"a name that breaks lines", "idp", request("/", "Authorization: Bearer "+f.token("ed-1", "sub", "a\r\nX: y")), "", invalid + `the token does not say whose it is"`, "invalid"},
		{"secret", "hs", request("/", "Authorization: Bearer "+hsGood), "job", "", "allowed"},
		{"another secret", "hs", request("/", "Authorization: Bearer "+hsWrong), "", invalid + `the token's signature is wrong"`, "invalid"},

		{"password", "basic", request("/", basic("acme:"+password)), "acme", "", "allowed"},
		{"password missing", "basic", request("/"), "", basicCh, "missing"},
		{"password wrong", "basic", request("/", basic("acme:"+password+"!")), "", basicCh, "invalid"},
		{"password of nobody", "basic", request("/", basic("nobody:"+password)), "", basicCh, "invalid"},
		{"password empty", "basic", request("/", basic("acme:")), "", basicCh, "invalid"},
		{"no colon", "basic", request("/", basic("acme")), "", basicCh, "invalid"},
		{"not base64", "basic", request("/", "Authorization: Basic ***"), "", basicCh, "invalid"},
		{"password twice", "basic", request("/", basic("acme:"+password), basic("acme:"+password)), "", basicCh, "invalid"},
		{"password huge", "basic", request("/", basic("acme:"+strings.Repeat("x", 4096))), "", basicCh, "invalid"},
		{"the hash as a password", "basic", request("/", basic("acme:$2a$04$")), "", basicCh, "invalid"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			shown := strings.Join(slices.Concat(tt.r.Header["Authorization"], tt.r.Header["X-Api-Key"], tt.r.Header["Cookie"]), " ")
			a := f.ask(t, config.Auth{AnyOf: []string{tt.method}}, tt.r)
			if want := []string{tt.method + " " + tt.decision}; !slices.Equal(a.decisions, want) {
				t.Errorf("counted as %q, want %q", a.decisions, want)
			}
			if tt.consumer != "" {
				if a.seen == nil || a.StatusCode != 200 || a.exchange.Consumer != tt.consumer || a.seen.Header.Get("X-Consumer-Name") != tt.consumer {
					t.Fatalf("got %d %s, consumer %q, want %q to pass", a.StatusCode, a.detail, a.exchange.Consumer, tt.consumer)
				}
				if left := a.seen.Header.Get("Authorization") + a.seen.Header.Get("X-Api-Key"); left != "" || strings.Contains(a.seen.URL.RawQuery, "pck_") {
					t.Errorf("the instance sees the credential: %q %q", left, a.seen.URL.RawQuery)
				}
				return
			}
			if a.seen != nil {
				t.Fatal("the request reached the instance")
			}
			if a.StatusCode != 401 || a.reason != "unauthenticated" || a.Header.Get("X-Proconsul-Reason") != "unauthenticated" || a.exchange.Consumer != "" {
				t.Errorf("got %d %s, consumer %q", a.StatusCode, a.reason, a.exchange.Consumer)
			}
			got := a.Header.Values("WWW-Authenticate")
			want := []string{tt.challenge}
			if !slices.Equal(got, want) {
				t.Errorf("WWW-Authenticate\n got %q\nwant %q", got, want)
			}
			if a.exchange.Err == nil {
				t.Error("the log has no cause")
			}
			// Nothing that was shown is told to anybody.
			told := a.exchange.Err.Error() + a.detail + strings.Join(got, "")
			for word := range strings.FieldsFuncSeq(shown, func(r rune) bool { return strings.ContainsRune(" .,=\"", r) }) {
				if len(word) >= 12 && strings.Contains(told, word) {
					t.Errorf("%q of the credential is told: %s", word, told)
				}
			}
		})
	}
}

// What a server says of a token, and whose certificate was shown, is told with
// the exact answer too, and nothing that is refused reaches the instance.
func TestAskedAndShownCases(t *testing.T) {
	now := time.Now().Unix()
	ca := parts.NewAuthority(t, "clients")
	shown := func(l parts.Leaf) *tls.ConnectionState {
		leaf := ca.Issue(t, l).Pair(t).Leaf
		return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf, ca.Cert}}}
	}
	unverified := shown(parts.Leaf{Name: "batch"})
	unverified.VerifiedChains = nil
	const (
		bare      = `Bearer realm="proconsul"`
		inRequest = bare + `, error="invalid_request", error_description="`
		invalid   = bare + `, error="invalid_token", error_description="`
		cert      = `ClientCertificate realm="proconsul"`
		opaque    = "Authorization: Bearer opaque-token-of-a-client"
		live      = `"active":true,"iss":"https://id.example","aud":"api","sub":"alice"`
	)
	for _, tt := range []struct {
		name, method string
		answer       string // of the server
		code         int    // likewise; 0: 200
		tls          *tls.ConnectionState
		lines        []string
		status       int
		challenge    string
	}{
		{"active", "ask", `{` + live + `}`, 0, nil, []string{opaque}, 200, ""},
		{"missing", "ask", `{` + live + `}`, 0, nil, nil, 401, bare},
		{"as an API key", "ask", `{` + live + `}`, 0, nil, []string{"X-API-Key: opaque"}, 401, bare},
		{"in a cookie", "ask", `{` + live + `}`, 0, nil, []string{"Cookie: access_token=opaque"}, 401, bare},
		{"empty", "ask", `{` + live + `}`, 0, nil, []string{"Authorization: Bearer "}, 401, inRequest + `Authorization has no credential"`},
		{"twice", "ask", `{` + live + `}`, 0, nil, []string{opaque, opaque}, 401, inRequest + `there is more than one Authorization field"`},
		{"huge", "ask", `{` + live + `}`, 0, nil, []string{opaque + strings.Repeat("x", 16<<10)}, 401, inRequest + `the token is too long"`},
		{"a form in it", "ask", `{` + live + `}`, 0, nil, []string{opaque + "&token=x"}, 401, inRequest + `the token has characters that no token has"`},
		{"not active", "ask", `{"active":false}`, 0, nil, []string{opaque}, 401, invalid + `the token is not active"`},
		{"expired", "ask", fmt.Sprintf(`{%s,"exp":%d}`, live, now-60), 0, nil, []string{opaque}, 401, invalid + `the token has expired"`},
		{"not yet valid", "ask", fmt.Sprintf(`{%s,"nbf":%d}`, live, now+60), 0, nil, []string{opaque}, 401, invalid + `the token is not valid yet"`},
		{"another issuer", "ask", `{"active":true,"iss":"https://evil.example","aud":"api","sub":"alice"}`, 0, nil, []string{opaque}, 401, invalid + `the token is not from the issuer that is accepted"`},
		{"another audience", "ask", `{"active":true,"iss":"https://id.example","aud":"web","sub":"alice"}`, 0, nil, []string{opaque}, 401, invalid + `the token is for another audience"`},
		{"the server fails", "ask", `{` + live + `}`, 500, nil, []string{opaque}, 503, ""},
		{"the server sends it elsewhere", "ask", `{` + live + `}`, 302, nil, []string{opaque}, 503, ""},

		{"certificate", "mtls", "", 0, shown(parts.Leaf{Name: "batch"}), nil, 200, ""},
		{"no TLS", "mtls", "", 0, nil, nil, 401, cert},
		{"no certificate", "mtls", "", 0, new(tls.ConnectionState), nil, 401, cert},
		{"not verified", "mtls", "", 0, unverified, nil, 401, cert},
		{"in a field", "mtls", "", 0, new(tls.ConnectionState), []string{"X-Client-Cert-Subject: CN=batch", "Client-Cert: :batch:"}, 401, cert},
		{"nobody's", "mtls", "", 0, shown(parts.Leaf{Name: "Batch"}), nil, 401, cert + `, error="invalid_certificate", error_description="the client certificate is no consumer's"`},
		{"of a name within the name", "mtls", "", 0, shown(parts.Leaf{Name: "CN=batch"}), nil, 401, cert + `, error="invalid_certificate", error_description="the client certificate is no consumer's"`},
	} {
		t.Run(tt.method+" "+tt.name, func(t *testing.T) {
			c := config.DefaultIntrospection()
			c.URL, c.ClientID, c.Issuer, c.Audience = "https://id.example/i", "gw", "https://id.example", []string{"api"}
			dir, err := identity.New(&config.Config{
				Consumers: []config.Consumer{{Name: "batch", MTLS: []config.ConsumerCert{{Subject: "batch"}}}},
				Auth:      []config.AuthMethod{{Name: "ask", Introspection: &c}},
			}, identity.NewKeys(slog.New(slog.DiscardHandler), saying{cmp.Or(tt.code, 200), tt.answer}), nil)
			if err != nil {
				t.Fatal(err)
			}
			r := request("/?access_token=opaque", tt.lines...)
			r.TLS = tt.tls
			a := (&fixture{dir: dir}).ask(t, config.Auth{AnyOf: []string{tt.method}}, r)
			reason := map[int]string{200: "", 401: "unauthenticated", 503: "auth_unavailable"}[tt.status]
			if a.StatusCode != tt.status || a.reason != reason || a.Header.Get("Www-Authenticate") != tt.challenge || len(a.Header["Www-Authenticate"]) > 1 || (a.seen != nil) != (tt.status == 200) {
				t.Errorf("%d %s, WWW-Authenticate %q, reached the instance: %v; want %d %s %q", a.StatusCode, a.reason, a.Header["Www-Authenticate"], a.seen != nil, tt.status, reason, tt.challenge)
			}
		})
	}
}

// saying is a server that always says the same.
type saying struct {
	code int
	text string
}

func (s saying) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: s.code, Header: http.Header{"Location": {"https://evil.example/"}}, Body: io.NopCloser(strings.NewReader(s.text)), Request: r}, nil
}

func TestWhoMayPass(t *testing.T) {
	f := newFixture(t)
	bearer := "Authorization: Bearer " + f.token("ed-1", "scope", "orders.read orders.write", "groups", []string{"staff", "a,b"}, "email", "alice@example.com")
	gold, bronze, unknown := "X-API-Key: "+goldKey, "X-API-Key: "+bronzeKey, "X-API-Key: no"
	const keyChallenge, tokenChallenge = `ApiKey realm="proconsul", header="X-Api-Key"`, `Bearer realm="proconsul"`
	tests := []struct {
		name       string
		cfg        config.Auth
		lines      []string
		status     int
		consumer   string
		groups     string
		challenges []string
		decisions  []string
	}{
		{"any: the first", config.Auth{AnyOf: []string{"idp", "api-key"}}, []string{bearer}, 200, "alice", "staff", nil, []string{"idp allowed"}},
		{"any: the second", config.Auth{AnyOf: []string{"idp", "api-key"}}, []string{gold}, 200, "acme", "gold,partners", nil, []string{"api-key allowed"}},
		{"any: none", config.Auth{AnyOf: []string{"idp", "api-key"}}, nil, 401, "", "", []string{tokenChallenge, keyChallenge}, []string{"idp missing", "api-key missing"}},
		{"any: another realm", config.Auth{AnyOf: []string{"idp"}, Realm: `my "shop"`}, nil, 401, "", "", []string{`Bearer realm="my \"shop\""`}, []string{"idp missing"}},
		{"all", config.Auth{AllOf: []string{"api-key", "idp"}}, []string{gold, bearer}, 200, "acme", "gold,partners,staff", nil, []string{"api-key allowed", "idp allowed"}},
		{"all: one lacks", config.Auth{AllOf: []string{"api-key", "idp"}}, []string{gold}, 401, "", "", []string{tokenChallenge}, []string{"idp missing"}},
		{"all and any", config.Auth{AllOf: []string{"api-key"}, AnyOf: []string{"idp", "basic"}}, []string{gold, bearer}, 200, "acme", "gold,partners,staff", nil, []string{"api-key allowed", "idp allowed"}},
		{"all and any: any lacks", config.Auth{AllOf: []string{"api-key"}, AnyOf: []string{"idp"}}, []string{gold}, 401, "", "", []string{tokenChallenge}, []string{"idp missing"}},
		{"anonymous", config.Auth{AnyOf: []string{"idp", "api-key"}, Anonymous: true}, nil, 200, "", "", nil, []string{" anonymous"}},
		{"anonymous: known", config.Auth{AnyOf: []string{"idp", "api-key"}, Anonymous: true}, []string{gold}, 200, "acme", "gold,partners", nil, []string{"api-key allowed"}},
		{"anonymous: a wrong key is not none", config.Auth{AnyOf: []string{"api-key"}, Anonymous: true}, []string{unknown}, 401, "", "", []string{keyChallenge + `, error="invalid_key", error_description="the API key is not known"`}, []string{"api-key invalid"}},
		{"anonymous: an expired token is not none", config.Auth{AnyOf: []string{"idp", "api-key"}, Anonymous: true}, []string{"Authorization: Bearer " + f.token("ed-1", "exp", time.Now().Unix()-60)}, 401, "", "",
			[]string{tokenChallenge + `, error="invalid_token", error_description="the token has expired"`, keyChallenge}, []string{"idp invalid", "api-key missing"}},
		{"any: an expired token beside a key", config.Auth{AnyOf: []string{"idp", "api-key"}}, []string{gold, "Authorization: Bearer " + f.token("ed-1", "exp", time.Now().Unix()-60)}, 200, "acme", "gold,partners", nil, []string{"api-key allowed"}},
		{"all: an expired token beside a key", config.Auth{AllOf: []string{"api-key", "idp"}}, []string{gold, "Authorization: Bearer " + f.token("ed-1", "exp", time.Now().Unix()-60)}, 401, "", "",
			[]string{tokenChallenge + `, error="invalid_token", error_description="the token has expired"`}, []string{"idp invalid"}},
		{"anonymous: half of all is not none", config.Auth{AllOf: []string{"api-key", "idp"}, Anonymous: true}, []string{gold}, 401, "", "", []string{tokenChallenge}, []string{"idp missing"}},
		{"everybody", config.Auth{Anonymous: true}, []string{unknown}, 200, "", "", nil, []string{" anonymous"}},
		{"group", config.Auth{AnyOf: []string{"api-key"}, Needs: config.Needs{Groups: []string{"silver", "gold"}}}, []string{gold}, 200, "acme", "gold,partners", nil, []string{"api-key allowed"}},
		{"group: not in it", config.Auth{AnyOf: []string{"api-key"}, Needs: config.Needs{Groups: []string{"gold"}}}, []string{bronze}, 403, "tin", "", nil, []string{"api-key forbidden"}},
		{"consumer", config.Auth{AnyOf: []string{"api-key"}, Needs: config.Needs{Consumers: []string{"tin"}}}, []string{bronze}, 200, "tin", "", nil, []string{"api-key allowed"}},
		{"consumer: another", config.Auth{AnyOf: []string{"api-key"}, Needs: config.Needs{Consumers: []string{"tin"}}}, []string{gold}, 403, "acme", "", nil, []string{"api-key forbidden"}},
		{"scopes", config.Auth{AnyOf: []string{"idp"}, Needs: config.Needs{Scopes: []string{"orders.read", "orders.write"}}}, []string{bearer}, 200, "alice", "staff", nil, []string{"idp allowed"}},
		{"scopes: one lacks", config.Auth{AnyOf: []string{"idp"}, Needs: config.Needs{Scopes: []string{"orders.read", "orders.delete"}}}, []string{bearer}, 403, "alice", "", []string{`Bearer realm="proconsul", error="insufficient_scope", scope="orders.read orders.delete"`}, []string{"idp forbidden"}},
		{"scopes: a key has none", config.Auth{AnyOf: []string{"idp", "api-key"}, Needs: config.Needs{Scopes: []string{"orders.read"}}}, []string{gold}, 403, "acme", "", []string{`Bearer realm="proconsul", error="insufficient_scope", scope="orders.read"`}, []string{"api-key forbidden"}},
		{"an issuer that was never there", config.Auth{AnyOf: []string{"away"}}, []string{bearer}, 503, "", "", nil, []string{"away unavailable"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := f.ask(t, tt.cfg, request("/", tt.lines...))
			if a.StatusCode != tt.status || a.exchange.Consumer != tt.consumer || !slices.Equal(a.decisions, tt.decisions) || !slices.Equal(a.Header.Values("WWW-Authenticate"), tt.challenges) {
				t.Errorf("got %d, consumer %q, %q, challenges %q", a.StatusCode, a.exchange.Consumer, a.decisions, a.Header.Values("WWW-Authenticate"))
			}
			if (a.seen != nil) != (tt.status == 200) {
				t.Errorf("reached the instance: %v", a.seen != nil)
			}
			if want := map[int]string{200: "", 401: "unauthenticated", 403: "forbidden", 503: "auth_unavailable"}[tt.status]; a.reason != want {
				t.Errorf("reason %q, want %q", a.reason, want)
			}
			if a.seen != nil && (a.seen.Header.Get("X-Consumer-Name") != tt.consumer || a.seen.Header.Get("X-Consumer-Groups") != tt.groups) {
				t.Errorf("the instance is told %v", a.seen.Header)
			}
			if tt.status == 503 && a.Header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
		})
	}
}

func TestInstancesLearnClaimsAndCredentialsAsConfigured(t *testing.T) {
	f := newFixture(t)
	token := f.token("ed-1", "email", "alice@example.com")
	for _, mode := range []string{"", "remove", "keep"} {
		a := f.ask(t, config.Auth{AnyOf: []string{"idp", "query-key"}, ForwardAuthorization: mode}, request("/x?a=%41&key=leftover&b", "Authorization: Bearer "+token))
		if a.seen == nil {
			t.Fatal(a.StatusCode, a.detail)
		}
		if got := a.seen.Header.Get("X-Consumer-Claim-Email"); got != "alice@example.com" {
			t.Errorf("the claim is %q", got)
		}
		wantHeader, wantQuery := "", "a=%41&b"
		if mode == "keep" {
			wantHeader, wantQuery = "Bearer "+token, "a=%41&key=leftover&b"
		}
		if got := a.seen.Header.Get("Authorization"); got != wantHeader || a.seen.URL.RawQuery != wantQuery {
			t.Errorf("%q: the instance sees %q, query %q", mode, got, a.seen.URL.RawQuery)
		}
	}
}

func TestFaultsOfTheSection(t *testing.T) {
	f := newFixture(t)
	for _, cfg := range []config.Auth{{}, {AnyOf: []string{"api-key", "nothing"}}, {AllOf: []string{"nothing"}}} {
		if _, err := auth.New(cfg, f.dir.Method, nil); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}

func BenchmarkAPIKey(b *testing.B) { benchmark(b, "api-key", "X-API-Key: "+goldKey) }

func BenchmarkCachedToken(b *testing.B) { benchmark(b, "idp", "") }

func BenchmarkCachedIntrospection(b *testing.B) {
	benchmark(b, "ask", "Authorization: Bearer opaque-"+strings.Repeat("x", 40))
}

// server answers questions about tokens, without a socket: every one is
// somebody's.
type server struct{ asked int }

func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	s.asked++
	text := fmt.Sprintf(`{"active":true,"sub":"alice","aud":"api","scope":"read","exp":%d}`, time.Now().Add(time.Hour).Unix())
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(text)), Request: r}, nil
}

// asking is a directory with a method that asks a server.
func asking(t testing.TB, srv http.RoundTripper) *identity.Directory {
	t.Helper()
	ask := config.DefaultIntrospection()
	ask.URL, ask.ClientID, ask.ClientSecret, ask.Audience, ask.CacheTTL = "https://id.example/i", "gw", config.NewSecret("secret"), []string{"api"}, time.Hour
	d, err := identity.New(&config.Config{Auth: []config.AuthMethod{{Name: "ask", Introspection: &ask}}}, identity.NewKeys(slog.New(slog.DiscardHandler), srv), nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// decided returns a handler that decides about a request which passes, and
// what it decides about.
func decided(t testing.TB, method, line string) (decide func(), passed *int) {
	t.Helper()
	f := newFixture(t)
	if line == "" {
		line = "Authorization: Bearer " + f.token("ed-1", "x", strings.Repeat("x", 300))
	}
	methods := f.dir.Method
	if method == "ask" {
		methods = asking(t, &server{}).Method
	}
	mw, err := auth.New(config.Auth{AnyOf: []string{method}, ForwardAuthorization: "keep"}, methods, nil)
	if err != nil {
		t.Fatal(err)
	}
	passed = new(int)
	h := mw(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { *passed++ }))
	r := request("/", line)
	w := middleware.NewExchange(httptest.NewRecorder(), time.Now())
	return func() { h.ServeHTTP(w, r) }, passed
}

// A decision that was made before costs no memory.
func TestKnownCallersCostNoMemory(t *testing.T) {
	for method, line := range map[string]string{"api-key": "X-API-Key: " + goldKey, "idp": "", "ask": "Authorization: Bearer opaque"} {
		decide, passed := decided(t, method, line)
		if n := testing.AllocsPerRun(100, decide); n != 0 || *passed != 101 {
			t.Errorf("%s: %v allocations for a decision, %d of 101 passed", method, n, *passed)
		}
	}
}

// benchmark is one whole decision, with the fields for the instance.
func benchmark(b *testing.B, method, line string) {
	decide, passed := decided(b, method, line)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		decide()
		n++
	}
	if *passed != n {
		b.Fatalf("%d of %d passed", *passed, n)
	}
}
