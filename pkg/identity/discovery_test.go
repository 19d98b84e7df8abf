package identity_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/identity"
)

// discovers is a method that knows its issuer's name alone.
func discovers(issuer string, insecure bool) config.AuthMethod {
	return idp(func(c *config.JWTMethod) { c.Issuer, c.JWKSURI, c.Insecure = issuer, "", insecure })
}

func TestDiscovery(t *testing.T) {
	const https, http1, local = "https://id.example/realms/a", "http://id.example", "http://127.0.0.1:8080"
	tests := []struct {
		name, issuer, metadata string
		insecure, found        bool
	}{
		{"found", https, `{"issuer":"https://id.example/realms/a","jwks_uri":"https://keys.example/k"}`, false, true},
		{"another issuer", https, `{"issuer":"https://evil.example","jwks_uri":"https://keys.example/k"}`, false, false},
		{"the issuer with a slash", https, `{"issuer":"https://id.example/realms/a/","jwks_uri":"https://keys.example/k"}`, false, false},
		{"no issuer", https, `{"jwks_uri":"https://keys.example/k"}`, false, false},
		{"no keys", https, `{"issuer":"https://id.example/realms/a"}`, false, false},
		{"keys over http", https, `{"issuer":"https://id.example/realms/a","jwks_uri":"http://keys.example/k"}`, false, false},
		{"keys in a file", https, `{"issuer":"https://id.example/realms/a","jwks_uri":"file:///etc/passwd"}`, false, false},
		{"keys behind a password", https, `{"issuer":"https://id.example/realms/a","jwks_uri":"https://a:b@keys.example/k"}`, false, false},
		{"not JSON", https, `<html>`, false, false},
		{"too much", https, `{"issuer":"https://id.example/realms/a","jwks_uri":"https://keys.example/k"}` + strings.Repeat(" ", 256<<10), false, false},
		{"over http", http1, `{"issuer":"http://id.example","jwks_uri":"http://id.example/k"}`, false, false},
		{"over http, as named", http1, `{"issuer":"http://id.example","jwks_uri":"http://id.example/k"}`, true, true},
		{"on this machine", local, `{"issuer":"http://127.0.0.1:8080","jwks_uri":"http://localhost:8080/k"}`, false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var iss issuer
				iss.does(func(r *http.Request) (int, []byte, error) {
					switch {
					case r.URL.String() == tt.issuer+"/.well-known/openid-configuration":
						return 200, []byte(tt.metadata), nil
					case strings.HasSuffix(r.URL.Path, "/k"):
						return 200, set(jwk("ed", keys().ed.Public())), nil
					}
					return 404, nil, nil
				})
				k := identity.NewKeys(quiet(), &iss)
				m := live(t, k, discovers(tt.issuer, tt.insecure))
				running(t, k)
				_, err := m.Identify(bearer(edToken("ed", "iss", tt.issuer)))
				if found := err == nil; found != tt.found {
					t.Errorf("got %v, want found %v", err, tt.found)
				}
				if !tt.found && !errors.Is(err, identity.ErrUnavailable) {
					t.Errorf("got %v, want ErrUnavailable", err)
				}
			})
		})
	}
}

// Keys that were found once serve on while the metadata is away, and a new
// place of the keys is followed.
func TestDiscoveryFollowsTheIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const name = "https://id.example"
		var iss issuer
		at := func(place, kid string) {
			iss.does(func(r *http.Request) (int, []byte, error) {
				switch r.URL.Path {
				case "/.well-known/openid-configuration":
					return 200, []byte(`{"issuer":"` + name + `","jwks_uri":"https://keys.example` + place + `"}`), nil
				case place:
					return 200, set(jwk(kid, keys().ed.Public())), nil
				}
				return 404, nil, nil
			})
		}
		at("/one", "a")
		k := identity.NewKeys(quiet(), &iss)
		m := live(t, k, discovers(name, false))
		running(t, k)
		check := func(kid, want string) {
			t.Helper()
			if _, err := m.Identify(bearer(edToken(kid))); why(err) != want {
				t.Errorf("kid %s: got %q, want %q", kid, why(err), want)
			}
		}
		check("a", "")
		iss.does(down)
		time.Sleep(time.Hour)
		check("a", "")
		at("/two", "b")
		time.Sleep(2 * time.Minute)
		check("b", "")
		check("a", unknownKey)
	})
}
