package identity_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running starts what keeps the keys fresh, in the test's bubble.
func running(t *testing.T, keys *identity.Keys) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = keys.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	synctest.Wait()
}

// live makes a configuration the one that is served.
func live(t *testing.T, keys *identity.Keys, methods ...config.AuthMethod) identity.Method {
	t.Helper()
	d, err := identity.New(&config.Config{Auth: methods}, keys, nil)
	if err != nil {
		t.Fatal(err)
	}
	keys.Use(d)
	m, err := d.Method("idp")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func edToken(kid string, kv ...any) string {
	return sign(map[string]any{"alg": "EdDSA", "kid": kid}, claims(kv...), keys().ed)
}

const unknownKey = "the token is signed with a key that is not known"

var down = func(*http.Request) (int, []byte, error) { return 0, nil, errors.New("connection refused") }

// The issuer is away for an hour: tokens of known keys pass all the time, and
// a storm of unknown ones costs a fetch per cooldown, whoever sends them.
func TestIssuerAwayForAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var iss issuer
		iss.says(set(jwk("ed", keys().ed.Public())))
		k := identity.NewKeys(quiet(), &iss)
		m := live(t, k, idp(nil))
		running(t, k)
		if _, err := m.Identify(bearer(edToken("ed"))); err != nil {
			t.Fatal(err)
		}
		iss.does(down)
		before := iss.fetches.Load()
		var wg sync.WaitGroup
		end := time.Now().Add(time.Hour)
		for range 4 {
			wg.Go(func() {
				for time.Now().Before(end) {
					if _, err := m.Identify(bearer(edToken("ed"))); err != nil {
						t.Errorf("a known key: %v", err)
					}
					if _, err := m.Identify(bearer(edToken("other"))); why(err) != unknownKey {
						t.Errorf("an unknown key: %v", err)
					}
					time.Sleep(5 * time.Second)
				}
			})
		}
		wg.Wait()
		// 5,760 requests. The background asks once a minute at most, after a
		// few short pauses; the requests once per cooldown of 30 s.
		if n := iss.fetches.Load() - before; n < 60 || n > 200 {
			t.Errorf("%d fetches in an hour without the issuer", n)
		}

		iss.says(set(jwk("ed", keys().ed.Public()), jwk("other", keys().ed.Public())))
		time.Sleep(2 * time.Minute)
		if _, err := m.Identify(bearer(edToken("other"))); err != nil {
			t.Errorf("the issuer is back, and its new key: %v", err)
		}
	})
}

// A key that the issuer has just begun to use passes with the first token.
func TestNewKeyIsFetchedOnDemandOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var iss issuer
		iss.says(set(jwk("old", keys().ed.Public())))
		k := identity.NewKeys(quiet(), &iss)
		m := live(t, k, idp(nil))
		running(t, k)
		time.Sleep(time.Minute) // the cooldown after the start is over
		iss.does(func(*http.Request) (int, []byte, error) {
			time.Sleep(100 * time.Millisecond)
			return 200, set(jwk("new", keys().ed.Public())), nil
		})
		before := iss.fetches.Load()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if _, err := m.Identify(bearer(edToken("new"))); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := iss.fetches.Load() - before; n != 1 {
			t.Errorf("%d fetches for 50 tokens at once", n)
		}
		// The old key is gone, and with it what was verified by it.
		if _, err := m.Identify(bearer(edToken("old"))); why(err) != unknownKey {
			t.Errorf("a key that was taken back: %v", err)
		}
	})
}

// A token that was verified does not outlive its key.
func TestRevokedKeyVoidsVerifiedTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var iss issuer
		iss.says(set(jwk("a", keys().ed.Public()), jwk("b", &keys().rsa.PublicKey)))
		k := identity.NewKeys(quiet(), &iss)
		m := live(t, k, idp(nil))
		running(t, k)
		token := edToken("a", "exp", time.Now().Add(time.Hour).Unix())
		if _, err := m.Identify(bearer(token)); err != nil {
			t.Fatal(err)
		}
		iss.says(set(jwk("b", &keys().rsa.PublicKey)))
		time.Sleep(12 * time.Minute)
		if _, err := m.Identify(bearer(token)); why(err) != unknownKey {
			t.Errorf("got %v", err)
		}
	})
}

// While the issuer hangs, requests with unknown keys wait for one fetch only,
// and a bounded number of them; those with known keys do not wait.
func TestHangingIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var iss issuer
		iss.says(set(jwk("ed", keys().ed.Public())))
		k := identity.NewKeys(quiet(), &iss)
		m := live(t, k, idp(nil))
		running(t, k)
		time.Sleep(time.Minute)
		iss.does(func(r *http.Request) (int, []byte, error) {
			<-r.Context().Done()
			return 0, nil, r.Context().Err()
		})
		before, start := iss.fetches.Load(), time.Now()
		var wg sync.WaitGroup
		var mu sync.Mutex
		waited := 0
		for range 1000 {
			wg.Go(func() {
				if _, err := m.Identify(bearer(edToken("other"))); why(err) != unknownKey {
					t.Error(err)
				}
				if time.Since(start) > 0 {
					mu.Lock()
					waited++
					mu.Unlock()
				}
			})
		}
		synctest.Wait()
		if _, err := m.Identify(bearer(edToken("ed", "jti", "fresh"))); err != nil || time.Since(start) > 0 {
			t.Errorf("a known key: %v after %s", err, time.Since(start))
		}
		wg.Wait()
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("requests waited %s", d)
		}
		if n := iss.fetches.Load() - before; n != 1 || waited > 300 {
			t.Errorf("%d fetches, %d of 1000 requests waited", n, waited)
		}
	})
}

// Keys survive a reload that happens while the issuer is away, also one that
// changes how often they are fetched.
func TestReloadKeepsKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var iss issuer
		iss.says(set(jwk("ed", keys().ed.Public())))
		k := identity.NewKeys(quiet(), &iss)
		live(t, k, idp(nil))
		running(t, k)
		iss.does(down)
		for _, change := range []func(*config.JWTMethod){nil, func(c *config.JWTMethod) { c.Refresh = time.Minute }, func(c *config.JWTMethod) { c.Audience = []string{"api", "web"} }} {
			m := live(t, k, idp(change))
			if _, err := m.Identify(bearer(edToken("ed"))); err != nil {
				t.Errorf("after a reload: %v", err)
			}
			time.Sleep(time.Minute)
		}
	})
}

// Before the keys were read once nobody can be told right from wrong; the
// first fetch that succeeds ends that.
func TestIssuerAwayAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var iss issuer
		iss.does(down)
		k := identity.NewKeys(quiet(), &iss)
		m := live(t, k, idp(nil))
		running(t, k)
		if _, err := m.Identify(bearer(edToken("ed"))); !errors.Is(err, identity.ErrUnavailable) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
		iss.says(set(jwk("ed", keys().ed.Public())))
		time.Sleep(10 * time.Second)
		if _, err := m.Identify(bearer(edToken("ed"))); err != nil {
			t.Errorf("the issuer is there: %v", err)
		}
	})
}

// Whatever an issuer answers, the keys that were read before serve on, and the
// log says so once.
func TestBadAnswersChangeNothing(t *testing.T) {
	weak := map[string]any{"kty": "RSA", "kid": "ed", "n": b64(bytes.Repeat([]byte{0xff}, 128)), "e": "AQAB"}
	secret := map[string]any{"kty": "oct", "kid": "ed", "k": b64([]byte("a secret of the issuer that must not be one of ours"))}
	enc := jwk("ed", &keys().rsa.PublicKey)
	enc["use"] = "enc"
	many := make([]map[string]any, 101)
	for i := range many {
		many[i] = jwk("ed", keys().ed.Public())
	}
	says := func(code int, text []byte) func(*http.Request) (int, []byte, error) {
		return func(*http.Request) (int, []byte, error) { return code, text, nil }
	}
	for name, answer := range map[string]func(*http.Request) (int, []byte, error){
		"down":             down,
		"an error":         says(500, set(jwk("new", keys().ed.Public()))),
		"empty":            says(200, nil),
		"a page":           says(200, []byte("<html>maintenance</html>")),
		"no keys":          says(200, []byte(`{"keys":[]}`)),
		"a weak key":       says(200, set(weak)),
		"a secret":         says(200, set(secret)),
		"keys to encrypt":  says(200, set(enc)),
		"too many":         says(200, set(many...)),
		"too much":         says(200, append(set(jwk("new", keys().ed.Public())), bytes.Repeat([]byte(" "), 1<<20)...)),
		"a redirect":       func(r *http.Request) (int, []byte, error) { return 302, nil, nil },
		"keys of no known": says(200, []byte(`{"keys":[{"kty":"XYZ","kid":"ed"},{"kty":"RSA"},17]}`)),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var iss issuer
				var log bytes.Buffer
				iss.says(set(jwk("ed", keys().ed.Public())))
				k := identity.NewKeys(slog.New(slog.NewTextHandler(&log, nil)), &iss)
				m := live(t, k, idp(nil))
				running(t, k)
				iss.does(answer)
				time.Sleep(time.Hour)
				if _, err := m.Identify(bearer(edToken("ed"))); err != nil {
					t.Error(err)
				}
				if _, err := m.Identify(bearer(edToken("new"))); why(err) != unknownKey {
					t.Errorf("a key of a bad answer: %v", err)
				}
				if n := strings.Count(log.String(), "level=WARN"); n != 1 {
					t.Errorf("%d warnings in an hour:\n%s", n, &log)
				}
			})
		})
	}
}

// moved answers with redirects until a URL is none of its keys.
type moved map[string]string

func (m moved) RoundTrip(r *http.Request) (*http.Response, error) {
	code, header, body := 200, http.Header{}, set(jwk("ed", keys().ed.Public()))
	if to, ok := m[r.URL.String()]; ok {
		code, body = 307, nil
		header.Set("Location", to)
	}
	return &http.Response{StatusCode: code, Header: header, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
}

// Keys are followed to where they have moved, but not out of TLS, where anybody
// on the way could give us others, and not for ever.
func TestKeysThatHaveMoved(t *testing.T) {
	for name, tt := range map[string]struct {
		where moved
		taken bool
	}{
		"to another host":   {moved{issuerURL: "https://keys.example/jwks"}, true},
		"three times":       {moved{issuerURL: "https://a/", "https://a/": "https://b/", "https://b/": "https://c/"}, true},
		"four times":        {moved{issuerURL: "https://a/", "https://a/": "https://b/", "https://b/": "https://c/", "https://c/": "https://d/"}, false},
		"in a circle":       {moved{issuerURL: "https://a/", "https://a/": issuerURL}, false},
		"out of TLS":        {moved{issuerURL: "http://id.example/jwks"}, false},
		"out of TLS, later": {moved{issuerURL: "https://a/", "https://a/": "http://b/"}, false},
		"and back into it":  {moved{issuerURL: "http://a/", "http://a/": "https://b/"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := identity.NewKeys(quiet(), tt.where)
				m := live(t, k, idp(nil))
				running(t, k)
				if _, err := m.Identify(bearer(edToken("ed"))); (err == nil) != tt.taken {
					t.Errorf("a token of its key: %v", err)
				}
			})
		})
	}
}

// Keys beside those that cannot be used are taken, in whatever order.
func TestKeysBesideUnusableOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var iss issuer
		bound := jwk("rs-only", &keys().rsa.PublicKey)
		bound["alg"] = "RS256"
		iss.says(set(map[string]any{"kty": "XYZ"}, jwk("ed", keys().ed.Public()), map[string]any{"kty": "oct", "kid": "ed", "k": b64(make([]byte, 64))}, jwk("ec", &keys().ec.PublicKey), bound))
		k := identity.NewKeys(quiet(), &iss)
		m := live(t, k, idp(nil))
		running(t, k)
		for _, tt := range []struct {
			alg, kid string
			key      any
			want     string
		}{
			{"EdDSA", "ed", keys().ed, ""},
			{"EdDSA", "", keys().ed, ""}, // the only one that fits
			{"ES256", "ec", keys().ec, ""},
			{"RS256", "rs-only", keys().rsa, ""},
			{"PS256", "rs-only", keys().rsa, unknownKey}, // its alg says RS256
			{"RS256", "ec", keys().rsa, unknownKey},
			{"ES256", "ed", keys().ec, unknownKey},
		} {
			header := map[string]any{"alg": tt.alg}
			if tt.kid != "" {
				header["kid"] = tt.kid
			}
			if _, err := m.Identify(bearer(sign(header, claims(), tt.key))); why(err) != tt.want {
				t.Errorf("%s with %q: got %q, want %q", tt.alg, tt.kid, why(err), tt.want)
			}
		}
	})
}

// A file is read again when it changes; a bad one changes nothing, and at the
// start it is refused.
func TestKeysFromAFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "jwks.json")
		write := func(text []byte) {
			if err := os.WriteFile(file, text, 0o600); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
		}
		fromFile := func(c *config.JWTMethod) { c.JWKSURI, c.JWKSFile = "", file }
		k := identity.NewKeys(quiet(), nil)
		for _, text := range []string{"", "{}"} {
			if text != "" {
				write([]byte(text))
			}
			if _, err := identity.New(&config.Config{Auth: []config.AuthMethod{idp(fromFile)}}, k, nil); err == nil || !strings.Contains(err.Error(), "auth idp") {
				t.Errorf("a bad file: %v", err)
			}
		}
		write(set(jwk("a", keys().ed.Public())))
		m := live(t, k, idp(fromFile))
		running(t, k)
		for _, step := range []struct {
			text []byte
			a, b string
		}{
			{nil, "", unknownKey},
			{set(jwk("b", keys().ed.Public())), unknownKey, ""},
			{[]byte("half a fi"), unknownKey, ""},
			{set(jwk("a", keys().ed.Public())), "", unknownKey},
		} {
			if step.text != nil {
				write(step.text)
			}
			if _, err := m.Identify(bearer(edToken("a"))); why(err) != step.a {
				t.Errorf("after %.20q: a: %v", step.text, err)
			}
			if _, err := m.Identify(bearer(edToken("b"))); why(err) != step.b {
				t.Errorf("after %.20q: b: %v", step.text, err)
			}
		}
	})
}
