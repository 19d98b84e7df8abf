package identity_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/bcrypt"
	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/identity"
)

func logins(t testing.TB, cost int) identity.Method {
	hash, err := bcrypt.GenerateFromPassword([]byte("hunter2:and:colons"), cost)
	if err != nil {
		t.Fatal(err)
	}
	return method(t, &config.Config{Consumers: []config.Consumer{{Name: "acme", Groups: []string{"gold"},
		Basic: []config.BasicLogin{{Username: "müller", Bcrypt: config.NewSecret(string(hash))}}}}}, identity.NewKeys(quiet(), nil), "basic")
}

func TestLogin(t *testing.T) {
	m := logins(t, bcrypt.MinCost)
	for _, tt := range []struct{ name, password, want string }{
		{"müller", "hunter2:and:colons", ""},
		{"müller", "hunter2:and:colons", ""}, // remembered
		{"müller", "hunter2:and:colon", "user name or password is wrong"},
		{"müller", "", "user name or password is wrong"},
		{"acme", "hunter2:and:colons", "user name or password is wrong"},
		{"müller", "hunter2:and:colons" + strings.Repeat("x", 72), "user name or password is wrong"},
		// What is remembered is the pair, not the two texts in a row.
		{"mülle", "rhunter2:and:colons", "user name or password is wrong"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.SetBasicAuth(tt.name, tt.password)
		id, err := m.Identify(r)
		if why(err) != tt.want {
			t.Errorf("%q %q: got %q", tt.name, tt.password, why(err))
		}
		if err == nil && (id.Consumer != "acme" || len(id.Groups) != 1) {
			t.Errorf("got %+v", id)
		}
	}
}

// Checks are slow by design: who goes away does not wait for one, and right
// passwords that are known do not either.
func TestLoginDoesNotQueueWhoLeft(t *testing.T) {
	m := logins(t, bcrypt.MinCost+4)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			r := httptest.NewRequest("GET", "/", nil)
			r.SetBasicAuth("müller", "wrong")
			_, _ = m.Identify(r)
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r := httptest.NewRequest("GET", "/", nil).WithContext(ctx)
	r.SetBasicAuth("müller", "hunter2:and:colons")
	if _, err := m.Identify(r); err != nil && !strings.Contains(err.Error(), "context canceled") {
		t.Errorf("got %v", err)
	}
	wg.Wait()
}

// However many guess at once, few wait, and who has logged in before does not.
func TestAFloodOfGuessesIsBounded(t *testing.T) {
	m := logins(t, bcrypt.MinCost+4)
	ask := func(password string) error {
		r := httptest.NewRequest("GET", "/", nil)
		r.SetBasicAuth("müller", password)
		_, err := m.Identify(r)
		return err
	}
	const right = "hunter2:and:colons"
	if err := ask(right); err != nil {
		t.Fatal(err)
	}
	const guesses = 1000
	var wrong, away, late atomic.Int64
	var all sync.WaitGroup
	for i := range guesses {
		all.Go(func() {
			switch err := ask(fmt.Sprint("guess ", i)); {
			case errors.Is(err, identity.ErrUnavailable) && strings.Contains(err.Error(), "wait for a check already"):
				away.Add(1)
			case errors.Is(err, identity.ErrUnavailable): // it has waited for too long
				late.Add(1)
			case why(err) == "user name or password is wrong":
				wrong.Add(1)
			default:
				t.Errorf("a guess got %v", err)
			}
		})
	}
	for away.Load() == 0 && wrong.Load()+late.Load() < guesses {
		runtime.Gosched()
	}
	if err := ask(right); err != nil {
		t.Errorf("a login that is remembered, beside guesses: %v", err)
	}
	all.Wait()
	// Those who wait, those who are checked, and those who came while the first were.
	if w, a, l := wrong.Load(), away.Load(), late.Load(); w+a+l != guesses || w == 0 || a < guesses/2 {
		t.Errorf("of %d guesses at once %d were checked, %d sent away and %d too late", guesses, w, a, l)
	}
	// With the guesses gone a login that is not remembered is checked again.
	if err := ask("another guess"); why(err) != "user name or password is wrong" {
		t.Errorf("after the guesses: %v", err)
	}
}

// Whatever stands in the credential, nobody is let pass, nothing panics, and
// the error holds none of it.
func TestGarbageIsRefusedAndNotTold(t *testing.T) {
	cfg := &config.Config{Auth: []config.AuthMethod{idp(func(c *config.JWTMethod) {
		c.JWKSURI, c.Algorithms, c.Secret = "", []string{"HS256"}, config.NewSecret("0123456789abcdef0123456789abcdef")
	}), {Name: "key", APIKey: &config.APIKeyMethod{Header: "X-Api-Key", Query: "key"}}}}
	k := identity.NewKeys(quiet(), nil)
	methods := []identity.Method{method(t, cfg, k, "idp"), method(t, cfg, k, "key"), method(t, cfg, k, "basic")}
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(
			rapid.StringMatching(`[A-Za-z0-9_-]{12,80}`),
			rapid.StringMatching(`eyJhbGciOiJIUzI1NiJ9\.[A-Za-z0-9_-]{12,80}\.[A-Za-z0-9_-]{12,44}`),
			rapid.String(),
		).Draw(t, "text")
		scheme := rapid.SampledFrom([]string{"Bearer ", "Basic ", "", "Bearer", "bearer  "}).Draw(t, "scheme")
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", scheme+text)
		r.Header.Set("X-Api-Key", text)
		if rapid.Bool().Draw(t, "query") {
			r.URL.RawQuery = "key=" + text
		}
		for _, m := range methods {
			id, err := m.Identify(r)
			if err == nil {
				t.Fatalf("%s: %q is %q", m.Name(), text, id.Consumer)
			}
			if len(text) >= 12 && strings.Contains(err.Error()+m.Challenge("r", err), text) {
				t.Fatalf("%s tells the credential: %v", m.Name(), err)
			}
			m.Strip(r)
		}
		if r.Header.Get("Authorization")+r.Header.Get("X-Api-Key") != "" || strings.HasPrefix(r.URL.RawQuery, "key=") {
			t.Fatalf("left behind: %v %q", r.Header, r.URL.RawQuery)
		}
	})
}
