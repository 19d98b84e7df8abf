package identity_test

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/identity"
)

// The keys and tokens of RFC 7515 appendix A, RFC 7520 section 4 and RFC 8037
// appendix A.
const (
	secretA1 = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"
	secret44 = "hJtXIZ2uSN5kbQfbtTNWbpdmhkV8FJG-Onbc6mxCcYg"

	keyA2 = `{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}`
	keyA3 = `{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}`
	key41 = `{"kty":"RSA","kid":"bilbo.baggins@hobbiton.example","use":"sig","n":"n4EPtAOCc9AlkeQHPzHStgAbgs7bTZLwUBZdR8_KuKPEHLd4rHVTeT-O-XV2jRojdNhxJWTDvNd7nqQ0VEiZQHz_AJmSCpMaJMRBSFKrKb2wqVwGU_NsYOYL-QtiWN2lbzcEe6XC0dApr5ydQLrHqkHHig3RBordaZ6Aj-oBHqFEHYpPe7Tpe-OfVfHd1E6cS6M1FZcD1NNLYD5lFHpPI9bTwJlsde3uhGqC0ZCuEHg8lhzwOHrtIQbS0FVbb9k3-tVTU4fg_3L_vniUFAKwuCLqKnS2BYwdq_mzSnbLY7h_qixoR7jig3__kRhuaxwUkRz5iaiQkqgc5gHdrNP5zw","e":"AQAB"}`
	key43 = `{"kty":"EC","kid":"bilbo.baggins@hobbiton.example","use":"sig","crv":"P-521","x":"AHKZLLOsCOzz5cY97ewNUajB957y-C-U88c3v13nmGZx6sYl_oJXu9A5RkTKqjqvjyekWF-7ytDyRXYgCF5cj0Kt","y":"AdymlHvOiLxXkEhayXQnNCvDX4h9htZaCJN34kfmC6pV5OhQHiraVySsUdaQkAgDPrwQrJmbnX9cwlGfP-HqHZR1"}`
	keyA4 = `{"kty":"EC","crv":"P-521","x":"AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk","y":"ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2"}`
	keyEd = `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`

	payloadA = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
	tokenA1  = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9." + payloadA + ".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
	tokenA2  = "eyJhbGciOiJSUzI1NiJ9." + payloadA + ".cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
	tokenA3  = "eyJhbGciOiJFUzI1NiJ9." + payloadA + ".DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
	tokenA4  = "eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn"
	tokenA5  = "eyJhbGciOiJub25lIn0." + payloadA + "."

	payload4 = "SXTigJlzIGEgZGFuZ2Vyb3VzIGJ1c2luZXNzLCBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aGUgcm9hZCwgYW5kIGlmIHlvdSBkb24ndCBrZWVwIHlvdXIgZmVldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW91IG1pZ2h0IGJlIHN3ZXB0IG9mZiB0by4"
	token41  = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9." + payload4 + ".MRjdkly7_-oTPTS3AXP41iQIGKa80A0ZmTuV5MEaHoxnW2e5CZ5NlKtainoFmKZopdHM1O2U4mwzJdQx996ivp83xuglII7PNDi84wnB-BDkoBwA78185hX-Es4JIwmDLJK3lfWRa-XtL0RnltuYv746iYTh_qHRD68BNt1uSNCrUCTJDt5aAE6x8wW1Kt9eRo4QPocSadnHXFxnt8Is9UzpERV0ePPQdLuW3IS_de3xyIrDaLGdjluPxUAhb6L2aXic1U12podGU0KLUQSE_oI-ZnmKJ3F4uOZDnd6QZWJushZ41Axf_fcIe8u9ipH84ogoree7vjbU5y18kDquDg"
	token42  = "eyJhbGciOiJQUzM4NCIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9." + payload4 + ".cu22eBqkYDKgIlTpzDXGvaFfz6WGoz7fUDcfT0kkOy42miAh2qyBzk1xEsnk2IpN6-tPid6VrklHkqsGqDqHCdP6O8TTB5dDDItllVo6_1OLPpcbUrhiUSMxbbXUvdvWXzg-UD8biiReQFlfz28zGWVsdiNAUf8ZnyPEgVFn442ZdNqiVJRmBqrYRXe8P_ijQ7p8Vdz0TTrxUeT3lm8d9shnr2lfJT8ImUjvAA2Xez2Mlp8cBE5awDzT0qI0n6uiP1aCN_2_jLAeQTlqRHtfa64QQSUmFAAjVKPbByi7xho0uTOcbH510a6GYmJUAfmWjwZ6oD4ifKo8DYM-X72Eaw"
	token43  = "eyJhbGciOiJFUzUxMiIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9." + payload4 + ".AE_R_YZCChjn4791jSQCrdPZCNYqHXCTZH0-JZGYNlaAjP2kqaluUIIUnC9qvbu9Plon7KRTzoNEuT4Va2cmL1eJAQy3mtPBu_u_sDDyYjnAMDxXPn7XrT0lw-kvAD890jl8e2puQens_IEKBpHABlsbEPX6sFY8OcGDqoRuBomu9xQ2"
	token44  = "eyJhbGciOiJIUzI1NiIsImtpZCI6IjAxOGMwYWU1LTRkOWItNDcxYi1iZmQ2LWVlZjMxNGJjNzAzNyJ9." + payload4 + ".s0h6KThzkfBBBkLspW1h84VsJZFTsPPqMDA7g1Md7p0"
	tokenEd  = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
)

// Every vector is taken by its key, and by no other; with one character of the
// payload changed it is not. Those of RFC 7520 and 8037 sign a text: that it is
// no JSON object is only found out behind the signature.
func TestPublicVectors(t *testing.T) {
	const (
		noClaims  = "malformed: the token's claims are not a JSON object"
		unsigned  = "the token's signature is wrong"
		algorithm = "the token's algorithm is not accepted"
	)
	all := []string{"RS256", "PS384", "ES256", "ES512", "EdDSA"}
	tests := []struct {
		name, token, secret, key, alg, want string
	}{
		{"RFC 7515 A.1 HS256", tokenA1, secretA1, "", "HS256", ""},
		{"RFC 7515 A.2 RS256", tokenA2, "", keyA2, "", ""},
		{"RFC 7515 A.3 ES256", tokenA3, "", keyA3, "", ""},
		{"RFC 7515 A.4 ES512", tokenA4, "", keyA4, "", noClaims},
		{"RFC 7515 A.5 none", tokenA5, "", keyA2, "", algorithm},
		{"RFC 7515 A.5 none, with a secret", tokenA5, secretA1, "", "HS256", algorithm},
		{"RFC 7520 4.1 RS256", token41, "", key41, "", noClaims},
		{"RFC 7520 4.2 PS384", token42, "", key41, "", noClaims},
		{"RFC 7520 4.3 ES512", token43, "", key43, "", noClaims},
		{"RFC 7520 4.4 HS256", token44, secret44, "", "HS256", noClaims},
		{"RFC 8037 A.4 EdDSA", tokenEd, "", keyEd, "", noClaims},
		{"the key of another", token41, "", keyA2, "", "the token is signed with a key that is not known"},
		{"the secret of another", tokenA1, secret44, "", "HS256", unsigned},
		{"an algorithm that was not named", tokenA1, "", keyA2, "", algorithm},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // in the year 2000, before the vectors expire
				c := config.DefaultJWT()
				c.Issuer, c.Algorithms, c.RequiredClaims = "joe", all, []config.Claim{{Name: "http://example.com/is_root", Equals: "true"}}
				c.ConsumerClaim = "iss"
				if tt.secret != "" {
					secret, err := base64.RawURLEncoding.DecodeString(tt.secret)
					if err != nil {
						t.Fatal(err)
					}
					c.Secret, c.Algorithms = config.NewSecret(string(secret)), []string{tt.alg}
				} else {
					c.JWKSFile = filepath.Join(t.TempDir(), "jwks.json")
					if err := os.WriteFile(c.JWKSFile, []byte(`{"keys":[`+tt.key+`]}`), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				m := method(t, &config.Config{Auth: []config.AuthMethod{{Name: "rfc", JWT: &c}}}, identity.NewKeys(quiet(), nil), "rfc")
				id, err := m.Identify(bearer(tt.token))
				if why(err) != tt.want {
					t.Fatalf("got %q, want %q", why(err), tt.want)
				}
				if err == nil && id.Consumer != "joe" {
					t.Errorf("the token is %q's, want joe's", id.Consumer)
				}
				if tt.want == algorithm {
					return
				}
				parts := strings.Split(tt.token, ".")
				changed := parts[0] + "." + parts[1][:8] + flip(parts[1][8]) + parts[1][9:] + "." + parts[2]
				if _, err := m.Identify(bearer(changed)); err == nil || why(err) == noClaims {
					t.Errorf("with another payload it is taken: %v", err)
				}
			})
		})
	}
}

// The token of RFC 7515 A.2 expired in 2011.
func TestPublicVectorsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config.DefaultJWT()
		c.Issuer, c.Algorithms, c.ConsumerClaim = "joe", []string{"ES256"}, "iss"
		c.JWKSFile = filepath.Join(t.TempDir(), "jwks.json")
		if err := os.WriteFile(c.JWKSFile, []byte(`{"keys":[`+keyA3+`]}`), 0o600); err != nil {
			t.Fatal(err)
		}
		m := method(t, &config.Config{Auth: []config.AuthMethod{{Name: "rfc", JWT: &c}}}, identity.NewKeys(quiet(), nil), "rfc")
		end := time.Unix(1300819380, 0)
		for _, step := range []struct {
			at   time.Time
			want string
		}{
			{end.Add(-time.Second), ""},
			{end.Add(29 * time.Second), ""}, // within the skew
			{end.Add(30 * time.Second), "the token has expired"},
		} {
			time.Sleep(time.Until(step.at))
			// The second time it is a token that was verified before.
			for range 2 {
				if _, err := m.Identify(bearer(tokenA3)); why(err) != step.want {
					t.Errorf("at %s: got %q, want %q", step.at, why(err), step.want)
				}
			}
		}
	})
}

func flip(c byte) string {
	if c == 'A' {
		return "B"
	}
	return "A"
}
