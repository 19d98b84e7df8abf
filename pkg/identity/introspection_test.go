package identity_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/identity"
)

// asks is a configuration with a method that asks about tokens.
func asks(change func(*config.IntrospectionMethod)) *config.Config {
	c := config.DefaultIntrospection()
	c.URL, c.ClientID, c.ClientSecret = "https://id.example/introspect", "gate way", config.NewSecret("s:cret+")
	c.Issuer, c.Audience = "https://id.example", []string{"api"}
	if change != nil {
		change(&c)
	}
	return &config.Config{
		Consumers: []config.Consumer{{Name: "acme"}, {Name: "mobile", Groups: []string{"apps"}, Claims: []config.ConsumerClaim{{Method: "ask", Claim: "client_id", Equals: "mobile-app"}}}},
		Auth:      []config.AuthMethod{{Name: "ask", Introspection: &c}},
	}
}

// says answers every question with claims that are valid but for what kv says.
func active(kv ...any) []byte {
	c := claims(kv...)
	if _, ok := c["active"]; !ok {
		c["active"] = true
	}
	text, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return text
}

func TestIntrospectionCases(t *testing.T) {
	now := time.Now().Unix()
	const unavailable = "the credential cannot be checked for now"
	tests := []struct {
		name   string
		answer []byte
		code   int
		want   string // a prefix; empty: it passes
		who    string
	}{
		{"active", active(), 200, "", "alice"},
		{"without exp", active("exp", nil), 200, "", "alice"},
		{"a consumer by its client", active("client_id", "mobile-app"), 200, "", "mobile"},
		{"not active", []byte(`{"active":false}`), 200, "the token is not active", ""},
		{"not active with claims", active("active", false), 200, "the token is not active", ""},
		{"expired", active("exp", now-31), 200, "the token has expired", ""},
		{"not yet valid", active("nbf", now+60), 200, "the token is not valid yet", ""},
		{"exp is a text", active("exp", "9999999999"), 200, "malformed: a time in the token is not a number", ""},
		{"another issuer", active("iss", "https://evil.example"), 200, "the token is not from the issuer that is accepted", ""},
		{"no issuer", active("iss", nil), 200, "the token is not from the issuer that is accepted", ""},
		{"another audience", active("aud", []string{"web"}), 200, "the token is for another audience", ""},
		{"nobody's", active("sub", nil), 200, "the token does not say whose it is", ""},
		{"a configured consumer's name", active("sub", "acme"), 200, "the token names a consumer that it is not known for", ""},
		{"active is a text", active("active", "true"), 200, unavailable, ""},
		{"no active", []byte(`{"sub":"alice"}`), 200, unavailable, ""},
		{"not JSON", []byte(`<html>`), 200, unavailable, ""},
		{"a list", []byte(`[{"active":true}]`), 200, unavailable, ""},
		{"nothing", nil, 200, unavailable, ""},
		{"too much", append(active(), bytes.Repeat([]byte(" "), 64<<10)...), 200, unavailable, ""},
		{"active, but 500", active(), 500, unavailable, ""},
		{"a redirect", active(), 302, unavailable, ""},
		{"the gateway is not known there", active(), 401, unavailable, ""},
		{"it does not like the token", active(), 400, unavailable, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var srv issuer
			srv.does(func(*http.Request) (int, []byte, error) { return tt.code, tt.answer, nil })
			m := method(t, asks(nil), identity.NewKeys(quiet(), &srv), "ask")
			id, err := m.Identify(bearer("opaque-token-1"))
			if !strings.HasPrefix(why(err), tt.want) || (err == nil) != (tt.want == "") {
				t.Fatalf("got %q, want %q", why(err), tt.want)
			}
			if tt.want == unavailable != errors.Is(err, identity.ErrUnavailable) {
				t.Errorf("%v is ErrUnavailable: %v", err, errors.Is(err, identity.ErrUnavailable))
			}
			if err == nil && id.Consumer != tt.who {
				t.Errorf("it is %q's, want %q's", id.Consumer, tt.who)
			}
			if err != nil && strings.Contains(err.Error(), "opaque-token") {
				t.Errorf("the error tells the token: %v", err)
			}
			if srv.fetches.Load() != 1 {
				t.Errorf("%d questions", srv.fetches.Load())
			}
		})
	}
	for name, tt := range map[string]struct {
		r    *http.Request
		want string
	}{
		"missing":    {httptest.NewRequest("GET", "/", nil), "no credential"},
		"huge":       {bearer(strings.Repeat("x", 9<<10)), "malformed: the token is too long"},
		"no token":   {bearer("a b"), "malformed: the token has characters that no token has"},
		"form":       {bearer("a&token=b"), "malformed: the token has characters that no token has"},
		"duplicated": {twice("opaque-token-1"), "malformed: there is more than one Authorization field"},
		"elsewhere":  {httptest.NewRequest("GET", "/?access_token=opaque-token-1", nil), "no credential"},
	} {
		t.Run(name, func(t *testing.T) {
			var srv issuer
			srv.says(active())
			m := method(t, asks(nil), identity.NewKeys(quiet(), &srv), "ask")
			if _, err := m.Identify(tt.r); why(err) != tt.want || srv.fetches.Load() != 0 {
				t.Errorf("got %q and %d questions, want %q and none", why(err), srv.fetches.Load(), tt.want)
			}
		})
	}
}

func twice(token string) *http.Request {
	r := bearer(token)
	r.Header.Add("Authorization", "Bearer "+token)
	return r
}

// The question is RFC 7662's, and the gateway is known by its client's secret,
// either way that RFC 6749 has.
func TestIntrospectionRequest(t *testing.T) {
	for _, auth := range []string{"basic", "post"} {
		var srv issuer
		srv.does(func(r *http.Request) (int, []byte, error) {
			text, _ := io.ReadAll(r.Body)
			form, err := url.ParseQuery(string(text))
			if err != nil || r.Method != "POST" || r.URL.String() != "https://id.example/introspect" || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" || r.Header.Get("Accept") != "application/json" {
				t.Errorf("asked %s %s %v: %v", r.Method, r.URL, r.Header, err)
			}
			want := url.Values{"token": {"t+/="}, "token_type_hint": {"access_token"}}
			user, password, _ := r.BasicAuth()
			if auth == "post" {
				want.Set("client_id", "gate way")
				want.Set("client_secret", "s:cret+")
			} else if user != "gate+way" || password != "s%3Acret%2B" {
				t.Errorf("asked as %q with %q", user, password)
			}
			if form.Encode() != want.Encode() {
				t.Errorf("%s: asked %v", auth, form)
			}
			return 200, active(), nil
		})
		m := method(t, asks(func(c *config.IntrospectionMethod) { c.ClientAuth = auth }), identity.NewKeys(quiet(), &srv), "ask")
		if _, err := m.Identify(bearer("t+/=")); err != nil {
			t.Error(err)
		}
	}
}

// What the server said is believed for a while, but never beyond the token's
// own end; a token that is not active is not asked about at once again.
func TestIntrospectionIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var srv issuer
		end := time.Now().Add(70 * time.Second)
		srv.does(func(r *http.Request) (int, []byte, error) {
			text, _ := io.ReadAll(r.Body)
			if strings.Contains(string(text), "revoked") {
				return 200, []byte(`{"active":false}`), nil
			}
			return 200, active("exp", end.Unix()), nil
		})
		k := identity.NewKeys(quiet(), &srv)
		cfg := asks(func(c *config.IntrospectionMethod) { c.CacheTTL = time.Minute })
		m := method(t, cfg, k, "ask")
		ask := func(token string, want string, questions int64) {
			t.Helper()
			before := srv.fetches.Load()
			for range 3 {
				if _, err := m.Identify(bearer(token)); why(err) != want {
					t.Errorf("got %q, want %q", why(err), want)
				}
			}
			if n := srv.fetches.Load() - before; n != questions {
				t.Errorf("%d questions, want %d", n, questions)
			}
		}
		ask("good", "", 1)
		ask("revoked", "the token is not active", 1)
		time.Sleep(9 * time.Second)
		ask("revoked", "the token is not active", 0)
		time.Sleep(2 * time.Second)
		ask("revoked", "the token is not active", 1)
		time.Sleep(48 * time.Second) // 59 s
		ask("good", "", 0)
		time.Sleep(2 * time.Second) // 61 s
		ask("good", "", 1)
		time.Sleep(10 * time.Second) // 71 s: within the skew, and no longer remembered
		ask("good", "", 3)
		time.Sleep(30 * time.Second)
		ask("good", "the token has expired", 3)
	})
}

// A reload forgets nothing, and consumers that change are seen at once.
func TestIntrospectionOverReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var srv issuer
		srv.says(active("client_id", "mobile-app"))
		k := identity.NewKeys(quiet(), &srv)
		d, err := identity.New(asks(nil), k, nil)
		if err != nil {
			t.Fatal(err)
		}
		k.Use(d)
		who := func(d *identity.Directory) string {
			m, err := d.Method("ask")
			if err != nil {
				t.Fatal(err)
			}
			id, err := m.Identify(bearer("t"))
			if err != nil {
				return why(err)
			}
			return id.Consumer
		}
		if got := who(d); got != "mobile" {
			t.Errorf("it is %s", got)
		}
		if d, err = identity.New(asks(nil), k, nil); err != nil {
			t.Fatal(err)
		}
		k.Use(d)
		if got := who(d); got != "mobile" || srv.fetches.Load() != 1 {
			t.Errorf("after a reload it is %s's, after %d questions", got, srv.fetches.Load())
		}
		if err := d.SetConsumers([]config.Consumer{{Name: "handset", Claims: []config.ConsumerClaim{{Method: "ask", Claim: "client_id", Equals: "mobile-app"}}}}, false); err != nil {
			t.Fatal(err)
		}
		if got := who(d); got != "handset" || srv.fetches.Load() != 1 {
			t.Errorf("after a change of consumers it is %s's, after %d questions", got, srv.fetches.Load())
		}
	})
}

// However many requests bring a token, one question is under way; tokens by
// the thousand ask no more than some at once, and those that are known pass.
func TestIntrospectionIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var srv issuer
		var mu sync.Mutex
		now, most := 0, 0
		srv.does(func(r *http.Request) (int, []byte, error) {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			now--
			mu.Unlock()
			return 200, active(), nil
		})
		m := method(t, asks(nil), identity.NewKeys(quiet(), &srv), "ask")
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() {
				if _, err := m.Identify(bearer("same")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := srv.fetches.Load(); n != 1 {
			t.Errorf("%d questions about one token", n)
		}
		start := time.Now()
		for i := range 2000 {
			wg.Go(func() {
				if _, err := m.Identify(bearer(fmt.Sprintf("other-%d", i))); err != nil && !errors.Is(err, identity.ErrUnavailable) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if _, err := m.Identify(bearer("same")); err != nil || time.Since(start) > 0 {
			t.Errorf("a known token: %v after %s", err, time.Since(start))
		}
		wg.Wait()
		if most > 64 || time.Since(start) > 2*time.Second {
			t.Errorf("%d questions at once, %s in all", most, time.Since(start))
		}
	})
}

// A server that is away for an hour costs nobody time but for a few, and tokens
// that it was not asked about are not let in; when it is back, they are.
func TestIntrospectionServerAwayForAnHour(t *testing.T) {
	for name, dead := range map[string]func(*http.Request) (int, []byte, error){
		"refuses": down,
		"hangs":   func(r *http.Request) (int, []byte, error) { <-r.Context().Done(); return 0, nil, r.Context().Err() },
		"fails":   func(*http.Request) (int, []byte, error) { return 500, nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var srv issuer
				var log bytes.Buffer
				srv.does(dead)
				m := method(t, asks(nil), identity.NewKeys(slog.New(slog.NewTextHandler(&log, nil)), &srv), "ask")
				waited := time.Duration(0)
				end := time.Now().Add(time.Hour)
				for i := 0; time.Now().Before(end); i++ {
					start := time.Now()
					if _, err := m.Identify(bearer(fmt.Sprintf("t-%d", i%100))); !errors.Is(err, identity.ErrUnavailable) {
						t.Fatalf("got %v", err)
					}
					waited += time.Since(start)
					time.Sleep(500 * time.Millisecond)
				}
				// About 7,200 requests; a probe every 30 s, of 2 s at most.
				if n := srv.fetches.Load(); n < 100 || n > 160 {
					t.Errorf("%d questions in an hour", n)
				}
				if waited > 6*time.Minute {
					t.Errorf("requests waited %s in all", waited)
				}
				if n := strings.Count(log.String(), "level=WARN"); n != 1 || strings.Contains(log.String(), "cret") {
					t.Errorf("%d warnings:\n%s", n, &log)
				}
				srv.says(active())
				time.Sleep(35 * time.Second)
				if _, err := m.Identify(bearer("t-1")); err != nil {
					t.Errorf("the server is back: %v", err)
				}
			})
		})
	}
}

// Tokens that the server does not like make it look ill to nobody else.
func TestIntrospectionHostileTokensTripNothing(t *testing.T) {
	var srv issuer
	srv.does(func(r *http.Request) (int, []byte, error) {
		text, _ := io.ReadAll(r.Body)
		if strings.Contains(string(text), "junk") {
			return 400, []byte(`{"error":"invalid_request"}`), nil
		}
		return 200, active(), nil
	})
	m := method(t, asks(nil), identity.NewKeys(quiet(), &srv), "ask")
	for i := range 100 {
		if _, err := m.Identify(bearer(fmt.Sprintf("junk-%d", i))); !errors.Is(err, identity.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if _, err := m.Identify(bearer("good")); err != nil {
		t.Errorf("a good token among junk: %v", err)
	}
}

// An explanation asks nobody.
func TestDryAsksNobody(t *testing.T) {
	var srv issuer
	srv.says(active())
	cfg := asks(nil)
	cfg.Auth = append(cfg.Auth, idp(nil))
	k := identity.NewKeys(quiet(), &srv)
	for _, name := range []string{"ask", "idp"} {
		r := bearer("t")
		if name == "idp" {
			r = bearer(edToken("ed"))
		}
		m := method(t, cfg, k, name)
		if _, err := m.Identify(r.WithContext(identity.Dry(t.Context()))); !errors.Is(err, identity.ErrNotAsked) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if n := srv.fetches.Load(); n != 0 {
		t.Errorf("%d questions", n)
	}
}
