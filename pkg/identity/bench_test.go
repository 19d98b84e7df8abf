package identity_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/identity"
)

// What a token costs that was not seen before.
func BenchmarkFreshToken(b *testing.B) {
	for _, alg := range []struct {
		name string
		key  any
	}{{"EdDSA", keys().ed}, {"RS256", keys().rsa}, {"ES256", keys().ec}} {
		b.Run(alg.name, func(b *testing.B) {
			file := filepath.Join(b.TempDir(), "jwks.json")
			if err := os.WriteFile(file, set(jwk("EdDSA", keys().ed.Public()), jwk("RS256", &keys().rsa.PublicKey), jwk("ES256", &keys().ec.PublicKey)), 0o600); err != nil {
				b.Fatal(err)
			}
			fresh := func() identity.Method {
				return method(b, &config.Config{Auth: []config.AuthMethod{idp(func(c *config.JWTMethod) { c.JWKSURI, c.JWKSFile = "", file })}}, identity.NewKeys(quiet(), nil), "idp")
			}
			var requests []*http.Request
			for i := range 500 {
				requests = append(requests, bearer(sign(map[string]any{"alg": alg.name, "kid": alg.name}, claims("jti", fmt.Sprint(i)), alg.key)))
			}
			m, i := fresh(), 0
			b.ReportAllocs()
			for b.Loop() {
				if i == len(requests) { // they are all known by now
					b.StopTimer()
					m, i = fresh(), 0
					b.StartTimer()
				}
				if _, err := m.Identify(requests[i]); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}
