package app_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/parts"
)

// TestInstancesOverTLS asks instances for a certificate by the configured name,
// shows them one, and takes over renewed files under load: the gateway's own
// certificate, and then, with the instance's, the issuer that it trusts.
func TestInstancesOverTLS(t *testing.T) {
	ca, next := parts.NewAuthority(t, "first"), parts.NewAuthority(t, "second")
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	gateway := func(ca *parts.Authority, n int) parts.Issued {
		return ca.Issue(t, parts.Leaf{Name: fmt.Sprintf("gateway %d", n)})
	}
	instance := func(ca *parts.Authority) *tls.Certificate {
		pair := ca.Issue(t, parts.Leaf{Name: "instance", Names: []string{"orders.internal"}}).Pair(t)
		return &pair
	}
	var mine atomic.Pointer[tls.Certificate]
	mine.Store(instance(ca))
	clients := ca.Pool()
	clients.AddCert(next.Cert)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Caller", r.TLS.PeerCertificates[0].Subject.CommonName)
		w.Header().Set("X-Name", r.TLS.ServerName)
	}))
	s.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients, NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return mine.Load(), nil }}
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)

	gateway(ca, 0).WriteTo(t, in("gw.crt"), in("gw.key"))
	ca.WriteTo(t, in("ca.pem"))
	gw := startReading(t, fmt.Sprintf(`version: 1
listen: [{name: public, addr: "127.0.0.1:0"}]
admin: {addr: "127.0.0.1:0"}
shutdown: {delay: 0s, grace: 1s}
consul: {disabled: true}
upstreams:
  - {name: orders, scheme: https, instances: [{address: %q}], tls: {ca_file: %q, cert_file: %q, key_file: %q, server_name: orders.internal}}
  - {name: misnamed, scheme: https, instances: [{address: %q}], tls: {ca_file: %q, cert_file: %q, key_file: %q}}
  - {name: nobody, scheme: https, instances: [{address: %q}], tls: {ca_file: %q, server_name: orders.internal}}
routes:
  - {name: misnamed, match: {path: /misnamed}, upstream: {service: misnamed}}
  - {name: nobody, match: {path: /nobody}, upstream: {service: nobody}}
  - {name: orders, match: {path: "/**"}, upstream: {service: orders}}
`, s.Listener.Addr(), in("ca.pem"), in("gw.crt"), in("gw.key"), s.Listener.Addr(), in("ca.pem"), in("gw.crt"), in("gw.key"), s.Listener.Addr(), in("ca.pem")), config.LoadOptions{})
	url := "http://" + gw.app.Addr("public")
	resp, _ := get(t, http.DefaultClient, url+"/")
	if resp.StatusCode != 200 || resp.Header.Get("X-Caller") != "gateway 0" || resp.Header.Get("X-Name") != "orders.internal" {
		t.Fatalf("got %s, caller %q, name %q", resp.Status, resp.Header.Get("X-Caller"), resp.Header.Get("X-Name"))
	}
	if resp, _ := get(t, http.DefaultClient, url+"/misnamed"); resp.StatusCode != 502 || resp.Header.Get("X-Proconsul-Reason") != "upstream_tls" {
		t.Errorf("a certificate for another name: %s %s", resp.Status, resp.Header.Get("X-Proconsul-Reason"))
	}
	if resp, _ := get(t, http.DefaultClient, url+"/nobody"); resp.StatusCode != 502 {
		t.Errorf("without the certificate that the instance asks for: %s", resp.Status)
	}

	load := parts.StartLoad(t, parts.LoadOptions{URLs: []string{url + "/"}})
	shows := func(want string) {
		t.Helper()
		parts.Eventually(t, patience, "instances are not shown "+want, func() bool {
			resp, _ := get(t, http.DefaultClient, url+"/")
			return resp.Header.Get("X-Caller") == want
		})
		load.Await(20)
	}
	for n := 1; n <= 2; n++ {
		gateway(ca, n).WriteTo(t, in("gw.crt"), in("gw.key"))
		shows(fmt.Sprintf("gateway %d", n))
	}
	// Both issuers are trusted while instances change from one to the other.
	if err := os.WriteFile(in("both.new"), append(append([]byte{}, ca.PEM...), next.PEM...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(in("both.new"), in("ca.pem")); err != nil {
		t.Fatal(err)
	}
	gateway(next, 3).WriteTo(t, in("gw.crt"), in("gw.key"))
	shows("gateway 3")
	mine.Store(instance(next))
	next.WriteTo(t, in("ca.pem"))
	gateway(next, 4).WriteTo(t, in("gw.crt"), in("gw.key"))
	shows("gateway 4")
	if tally := load.Stop(); tally.Failed() > 0 {
		t.Error(tally)
	}
}

// TestSecretsChangeUnderLoad replaces the file that holds an API key's hash: the
// next requests are judged by it, without a word to the gateway, and those with
// a key that stays never fail.
func TestSecretsChangeUnderLoad(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "acme-key")
	const first, second = "85dbe15d75ef9308c7ae0f33c7a324cc6f4bf519a2ed2f3027bd33c140a4f9aa", "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"
	write := func(hash string) {
		t.Helper()
		if err := os.WriteFile(secret+".new", []byte(hash+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(secret+".new", secret); err != nil {
			t.Fatal(err)
		}
	}
	write(first)
	r := binaries(t).StartReplica(t, parts.ReplicaOptions{Config: fmt.Sprintf(`consul: {disabled: true}
consumers:
  - {name: acme, api_keys: [{id: acme, sha256: "${file:%s}"}]}
  - {name: stays, api_keys: [{id: stays, sha256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}]}
upstreams: [{name: mirror, instances: [{address: %q}]}]
routes: [{name: all, match: {path: "/**"}, auth: {any_of: [api-key]}, upstream: {service: mirror}}]
`, secret, mirror(t).Listener.Addr())})
	load := parts.StartLoad(t, parts.LoadOptions{URLs: []string{r.URL("/")}, Header: http.Header{"X-Api-Key": {"test"}}})
	passes := func(key string) bool {
		resp, _ := get(t, http.DefaultClient, r.URL("/"), "X-Api-Key: "+key)
		return resp.StatusCode == 200
	}
	if !passes("secret-key") || passes("password") {
		t.Fatal("the first key does not pass, or the second does")
	}
	for range 3 {
		write(second)
		parts.Eventually(t, patience, "the new key does not pass", func() bool { return passes("password") })
		if passes("secret-key") {
			t.Error("the old key still passes")
		}
		load.Await(20)
		write(first)
		parts.Eventually(t, patience, "the first key does not pass again", func() bool { return passes("secret-key") })
		load.Await(20)
	}
	if tally := load.Stop(); tally.Failed() > 0 || tally.Status[200] != tally.Requests {
		t.Error(tally)
	}
	for _, hash := range []string{first, second} {
		if text := r.Log() + r.AccessLog(); strings.Contains(text, hash) {
			t.Error("a secret is in the log")
		}
	}
}
