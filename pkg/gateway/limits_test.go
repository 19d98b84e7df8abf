package gateway_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"testing"
	"time"
)

const limited = `version: 1
listen: [{addr: ":0"}]
auth:
  - {name: idp, jwt: {issuer: "https://id.example", algorithms: [HS256], secret: "a secret of thirty-two bytes, or so"}}
rate_limit: {by: all, rate: 8/1h}
upstreams:
  - {service: a, rate_limit: {by: all, rate: 6/1h}}
routes:
  - {name: org, match: {path: /org}, auth: {any_of: [idp]}, rate_limit: {by: claim(org), rate: 2/1h}, upstream: {service: a}}
  - {name: open, match: {path: /open}, upstream: {service: a}}
  - {name: moved, match: {path: /moved}, redirect: {to: /open}}
`

// bearer is the Authorization of a token with that organisation.
func bearer(org string) string {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	text := part(`{"alg":"HS256","typ":"JWT"}`) + "." +
		part(fmt.Sprintf(`{"iss":"https://id.example","sub":"u-%s","org":%q,"exp":%d}`, org, org, time.Now().Add(time.Hour).Unix()))
	mac := hmac.New(sha256.New, []byte("a secret of thirty-two bytes, or so"))
	mac.Write([]byte(text))
	return "Authorization: Bearer " + text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// Requests are counted by a claim of their verified token, and beside that over
// the whole upstream and the whole gateway.
func TestLimitsByClaimUpstreamAndGateway(t *testing.T) {
	_, h := newRig(t, map[string]http.Handler{"a": told}).secured(limited)
	for i, c := range []struct {
		path, org string
		want      int
	}{
		{"/org", "x", 200}, {"/org", "x", 200}, {"/org", "x", 429}, {"/org", "y", 200},
		{"/org", "", 401},                      // costs nobody anything
		{"/open", "", 200}, {"/open", "", 200}, // five of the upstream's six
		{"/org", "x", 429}, {"/org", "y", 200}, // six: a refusal costs the upstream nothing
		{"/org", "z", 429}, {"/open", "", 429}, // it is used up
		{"/moved", "", 307}, {"/moved", "", 307}, // eight of the gateway's
		{"/moved", "", 429},
	} {
		var lines []string
		if c.org != "" {
			lines = []string{bearer(c.org)}
		}
		if w := fetch(h, c.path, "", lines...); w.Code != c.want {
			t.Errorf("request %d of %q to %s: %d, want %d: %s", i, c.org, c.path, w.Code, c.want, w.Body)
		}
	}
}
