package app_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/identity"
	"github.com/proconsul/proconsul/pkg/parts"
)

// TestListenersVouchApart has two listeners that believe different issuers:
// whom one of them vouches for is a consumer there, and nobody at the other,
// whatever the other's issuer writes into certificates.
func TestListenersVouchApart(t *testing.T) { onBothEngines(t, testListenersVouchApart) }

func testListenersVouchApart(t *testing.T, engine string) {
	ca, staff, partners := parts.NewAuthority(t, "servers"), parts.NewAuthority(t, "staff"), parts.NewAuthority(t, "partners")
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	ca.Issue(t, parts.Leaf{Name: "shop", Names: []string{"shop.example.com"}}).WriteTo(t, in("shop.crt"), in("shop.key"))
	staff.WriteTo(t, in("staff.pem"))
	partners.WriteTo(t, in("partners.pem"))
	text := func(outerCA, billing, mesh string) string {
		return fmt.Sprintf(`version: 1
listen:
  - {name: inner, addr: "127.0.0.1:0", engine: %[1]s, tls: {cert_dir: %[2]q, client_auth: optional, client_ca_file: %[3]q}}
  - {name: outer, addr: "127.0.0.1:0", engine: %[1]s, tls: {cert_dir: %[2]q, client_auth: optional, client_ca_file: %[4]q}}
admin: {addr: "127.0.0.1:0"}
shutdown: {delay: 0s, grace: 1s}
consul: {disabled: true}
consumers:
  - {name: billing, groups: [internal], mtls: [{san: billing.example.com%[6]s}]}
  - {name: shared, mtls: [{subject: shared, listeners: [inner, outer]}]}
auth: [{name: mesh, mtls: {consumer_from: dns, consumer_prefix: "mesh:"%[7]s}}]
upstreams: [{name: mirror, instances: [{address: %[5]q}]}]
routes:
  - {name: private, match: {path: "/private/**"}, auth: {any_of: [mtls]}, upstream: {service: mirror}}
  - {name: mesh, match: {path: "/mesh/**"}, auth: {any_of: [mesh]}, upstream: {service: mirror}}
`, engine, dir, in("staff.pem"), outerCA, strings.TrimPrefix(mirror(t).URL, "http://"), billing, mesh)
	}
	const only = ", listeners: [inner]"
	gw := startReading(t, text(in("partners.pem"), only, only), config.LoadOptions{})
	for _, tt := range []struct {
		name     string
		listener string
		by       *parts.Authority
		cert     parts.Leaf
		path     string
		status   int
		consumer string
	}{
		{"at its listener", "inner", staff, parts.Leaf{Names: []string{"billing.example.com"}}, "/private/", 200, "billing"},
		{"by the other's issuer", "outer", partners, parts.Leaf{Names: []string{"billing.example.com"}}, "/private/", 401, ""},
		{"by the other's issuer, where certificates name callers", "outer", partners, parts.Leaf{Names: []string{"billing.example.com"}}, "/mesh/", 401, ""},
		{"a name at its listener", "inner", staff, parts.Leaf{Names: []string{"any.example.com"}}, "/mesh/", 200, "mesh:any.example.com"},
		{"a name at the other", "outer", partners, parts.Leaf{Names: []string{"any.example.com"}}, "/mesh/", 401, ""},
		{"meant for both, at one", "inner", staff, parts.Leaf{Name: "shared"}, "/private/", 200, "shared"},
		{"meant for both, at the other", "outer", partners, parts.Leaf{Name: "shared"}, "/private/", 200, "shared"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := client(t, ca, gw.app.Addr(tt.listener), tt.by.Issue(t, tt.cert).Pair(t))
			resp, body := get(t, c, "https://shop.example.com"+tt.path)
			if resp.StatusCode != tt.status || tt.consumer != "" && !strings.Contains(body, "X-Consumer-Name: "+tt.consumer+"\r\n") {
				t.Errorf("got %s, instance was told\n%s", resp.Status, body)
			}
			if tt.status == 401 && !strings.Contains(resp.Header.Get("Www-Authenticate"), `error="invalid_certificate"`) {
				t.Errorf("WWW-Authenticate is %q", resp.Header["Www-Authenticate"])
			}
		})
	}
	// One listener's issuer is nobody's at the other.
	strange := &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.example.com", GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair := partners.Issue(t, parts.Leaf{Names: []string{"billing.example.com"}}).Pair(t)
		return &pair, nil
	}}
	if err := exchange(gw.app.Addr("inner"), strange); err == nil {
		t.Error("the inner listener takes a certificate of the outer one's issuer")
	}

	// What a session at one listener was vouched for does not come along to the other.
	session := &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.example.com", ClientSessionCache: tls.NewLRUClientSessionCache(4),
		Certificates: []tls.Certificate{staff.Issue(t, parts.Leaf{Names: []string{"billing.example.com"}}).Pair(t)}}
	resumed := func(listener string) (again bool, status int, body string) {
		t.Helper()
		c := client(t, ca, gw.app.Addr(listener))
		tr := c.Transport.(*http.Transport)
		tr.TLSClientConfig, tr.DisableKeepAlives = session, true
		resp, body := get(t, c, "https://shop.example.com/private/")
		return resp.TLS.DidResume, resp.StatusCode, body
	}
	if _, status, body := resumed("inner"); status != 200 || !strings.Contains(body, "X-Consumer-Name: billing\r\n") {
		t.Errorf("a new session: %d\n%s", status, body)
	}
	if again, status, body := resumed("inner"); !again || status != 200 || !strings.Contains(body, "X-Consumer-Name: billing\r\n") {
		t.Errorf("a resumed session (%v): %d\n%s", again, status, body)
	}
	if again, status, body := resumed("outer"); again || status != 401 || strings.Contains(body, "billing") {
		t.Errorf("a session of the other listener (resumed %v): %d\n%s", again, status, body)
	}

	// Without a word the configuration is refused, and so is one that needed
	// none if the listeners were what it says: they change with a restart only.
	for name, text := range map[string]string{
		"consumer":                   text(in("partners.pem"), "", only),
		"method":                     text(in("partners.pem"), only, ""),
		"consumer, at another start": text(in("staff.pem"), "", only),
	} {
		gw.write(text)
		if err := gw.app.Reload("api"); err == nil || !strings.Contains(err.Error(), "does not say which listeners' issuers vouch for it") {
			t.Errorf("%s: a reload got %v", name, err)
		}
	}
	c := client(t, ca, gw.app.Addr("outer"), partners.Issue(t, parts.Leaf{Names: []string{"billing.example.com"}}).Pair(t))
	if resp, _ := get(t, c, "https://shop.example.com/private/"); resp.StatusCode != 401 {
		t.Errorf("after refused reloads: %s", resp.Status)
	}
}

// TestNamesOfConsumersThatLeft takes a consumer out of Consul: a token that
// names itself by the name that it had is not it, and no consumer can be put
// where tokens name themselves.
func TestNamesOfConsumersThatLeft(t *testing.T) {
	t.Parallel()
	bin, consul := binaries(t), parts.StartConsul(t)
	echo := bin.StartEcho(t, parts.EchoOptions{Name: "echo", ID: "echo-1"})
	text := func(prefix string) string {
		return fmt.Sprintf(`consul: {addr: %q}
kv: {consumers: proconsul/consumers}
auth:
  - name: idp
    jwt: {issuer: joe, audience: [api], algorithms: [HS256], secret: %q%s}
upstreams: [{name: echo, instances: [{address: %q}]}]
routes:
  - {name: tokens, match: {path: "/tokens/**"}, auth: {any_of: [idp]}, upstream: {service: echo}}
  - {name: acme, match: {path: "/acme/**"}, auth: {any_of: [idp, api-key], consumers: [acme]}, upstream: {service: echo}}
`, consul.Addr, testSecret, prefix, echo.Addr)
	}
	put := func(name, text string) { consul.Put("/v1/kv/proconsul/consumers/"+name, text) }
	key := func(name string) string {
		return fmt.Sprintf("api_keys: [{id: %[1]q, sha256: %s}]\n", name, identity.HashKey("key-"+name))
	}
	put("acme", key("acme"))
	put("mobile", "claims: [{method: idp, claim: azp, equals: app}]\n")
	put("idp:acme", key("idp:acme"))
	put("token:late", key("token:late"))
	const prefix = `, consumer_prefix: "idp:"`
	r := bin.StartReplica(t, parts.ReplicaOptions{Config: text(prefix)})
	ask := func(path, token string) (int, string) {
		req, err := http.NewRequest(http.MethodGet, r.URL(path), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		got := send(t, req)
		return got.StatusCode, got.body
	}
	named := signed(`{"iss":"joe","aud":"api","exp":4102444800,"sub":"acme"}`)
	known := signed(`{"iss":"joe","aud":"api","exp":4102444800,"sub":"acme","azp":"app"}`)
	check := func(when string) {
		t.Helper()
		if code, _ := ask("/acme/", named); code != 403 {
			t.Errorf("%s a token that names itself acme got %d, want 403", when, code)
		}
		if code, body := ask("/tokens/", named); code != 200 || !strings.Contains(body, "idp:acme") {
			t.Errorf("%s the token is %d %s, want idp:acme's", when, code, body)
		}
		if code, body := ask("/tokens/", known); code != 200 || !strings.Contains(body, `"mobile"`) {
			t.Errorf("%s a token of the consumer mobile is %d %s", when, code, body)
		}
	}
	check("while acme is there")
	if code, _ := withKey(t, r.URL("/acme/"), "key-acme"); code != 200 {
		t.Errorf("acme got %d", code)
	}
	if code, _ := withKey(t, r.URL("/acme/"), "key-idp:acme"); code != 401 {
		t.Errorf("a consumer that has a token's name got %d, want 401", code)
	}
	why := ""
	parts.Eventually(t, patience, "the consumer with a token's name is not shown as rejected", func() bool {
		for _, x := range r.MustStatus().Rejected {
			if x.Name == "proconsul/consumers/idp:acme" {
				why = x.Reason
			}
		}
		return why != ""
	})
	if !strings.Contains(why, "consumer_prefix of the method idp") {
		t.Errorf("it is rejected for %q", why)
	}
	remove(t, consul, "acme")
	parts.Eventually(t, patience, "acme stays", func() bool { code, _ := withKey(t, r.URL("/acme/"), "key-acme"); return code == 401 })
	check("after acme has left")

	// Another prefix needs no restart, gives the name free, and takes one.
	if code, _ := withKey(t, r.URL("/acme/"), "key-token:late"); code != 403 {
		t.Errorf("a consumer whose name no token has got %d, want 403", code)
	}
	r.Configure(text(`, consumer_prefix: "token:"`))
	parts.Eventually(t, patience, "the consumer is not taken over when its name is free", func() bool {
		code, _ := withKey(t, r.URL("/acme/"), "key-idp:acme")
		return code == 403
	})
	if code, _ := withKey(t, r.URL("/acme/"), "key-token:late"); code != 401 {
		t.Errorf("a consumer that has a token's name since the reload got %d, want 401", code)
	}
	// None at all is refused.
	r.Configure(text(""))
	parts.Eventually(t, patience, "a configuration without a prefix was not refused", func() bool {
		s := r.MustStatus().Config
		return s.State == "refused" && strings.Contains(s.Error, "consumer_prefix")
	})
}

const testSecret = "a-secret-of-this-test-that-is-long-enough"

// signed returns a token with those claims, signed with testSecret.
func signed(claims string) string {
	b64 := base64.RawURLEncoding.EncodeToString
	text := b64([]byte(`{"alg":"HS256"}`)) + "." + b64([]byte(claims))
	mac := hmac.New(sha256.New, []byte(testSecret))
	mac.Write([]byte(text))
	return text + "." + b64(mac.Sum(nil))
}
