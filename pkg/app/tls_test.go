package app_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/parts"
)

// mirror is an instance that answers with what it was told.
func mirror(t testing.TB) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Echo-Instance", "mirror")
		_ = r.Header.Write(w)
	}))
	t.Cleanup(s.Close)
	return s
}

// secureText is a gateway in front of one instance, with a TLS listener.
func secureText(engine, instance, tls, rest string) string {
	return fmt.Sprintf(`version: 1
listen:
  - {name: clear, addr: "127.0.0.1:0", engine: %s, redirect_to_tls: 8443}
  - {name: tls, addr: "127.0.0.1:0", engine: %s, tls: {%s}}
admin: {addr: "127.0.0.1:0"}
shutdown: {delay: 0s, grace: 1s}
consul: {disabled: true}
upstreams: [{name: mirror, instances: [{address: %q}]}]
%s`, engine, engine, tls, strings.TrimPrefix(instance, "http://"), rest)
}

const toMirror = `routes: [{name: all, match: {path: "/**"}, upstream: {service: mirror}}]
`

// client trusts ca, asks addr whatever the URL's host is, and keeps nothing.
func client(t testing.TB, ca *parts.Authority, addr string, certs ...tls.Certificate) *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
		TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), Certificates: certs}, ForceAttemptHTTP2: true,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// get returns the answer and its body.
func get(t testing.TB, c *http.Client, url string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		req.Header[http.CanonicalHeaderKey(name)] = []string{value}
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	return resp, string(text)
}

// shown returns the common name of the certificate that a listener shows.
func shown(t testing.TB, addr, name string, conf *tls.Config) (subject, protocol string) {
	t.Helper()
	conf = conf.Clone()
	conf.ServerName, conf.InsecureSkipVerify = name, true
	conn, err := (&tls.Dialer{Config: conf, NetDialer: &net.Dialer{Timeout: patience}}).Dial("tcp", addr)
	if err != nil {
		t.Fatalf("handshake for %q: %v", name, err)
	}
	defer conn.Close()
	state := conn.(*tls.Conn).ConnectionState()
	return state.PeerCertificates[0].Subject.CommonName, state.NegotiatedProtocol
}

// TestTLSListener serves by name over both protocols, tells instances of the
// scheme, and sends clients of the clear listener there.
func TestTLSListener(t *testing.T) { onBothEngines(t, testTLSListener) }

// onBothEngines runs a test once for each engine of listeners.
func onBothEngines(t *testing.T, test func(t *testing.T, engine string)) {
	for _, engine := range []string{"std", "fast"} {
		t.Run(engine, func(t *testing.T) { test(t, engine) })
	}
}

func testTLSListener(t *testing.T, engine string) {
	ca := parts.NewAuthority(t, "test")
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for name, names := range map[string][]string{"default": {"default.example.com"}, "shop": {"shop.example.com", "Store.Example.com"}, "any": {"*.example.com"}, "deep": {"*.deep.example.com"}} {
		ca.Issue(t, parts.Leaf{Name: name, Names: names}).WriteTo(t, in(name+".crt"), in(name+".key"))
	}
	gw := startReading(t, secureText(engine, mirror(t).URL, fmt.Sprintf("cert_dir: %q", dir), toMirror), config.LoadOptions{})
	addr := gw.app.Addr("tls")

	for name, want := range map[string]string{"shop.example.com": "shop", "STORE.example.com": "shop", "other.example.com": "any", "a.deep.example.com": "deep",
		"a.b.example.com": "default", "elsewhere.test": "default", "": "default"} {
		if got, _ := shown(t, addr, name, &tls.Config{}); got != want {
			t.Errorf("%q was shown the certificate %s, want %s", name, got, want)
		}
	}
	for _, tt := range []struct {
		offer []string
		want  string
	}{{[]string{"h2", "http/1.1"}, "h2"}, {[]string{"http/1.1"}, "http/1.1"}, {nil, ""}} {
		if _, got := shown(t, addr, "shop.example.com", &tls.Config{NextProtos: tt.offer}); got != tt.want {
			t.Errorf("offered %q the listener chose %q, want %q", tt.offer, got, tt.want)
		}
	}
	if _, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
	c := client(t, ca, addr)
	resp, body := get(t, c, "https://shop.example.com/a?b=c")
	if resp.ProtoMajor != 2 || resp.StatusCode != 200 || !strings.Contains(body, "X-Forwarded-Proto: https\r\n") || !strings.Contains(body, "X-Forwarded-Host: shop.example.com\r\n") {
		t.Errorf("%s %s, instance was told\n%s", resp.Proto, resp.Status, body)
	}

	clear := client(t, ca, gw.app.Addr("clear"))
	for _, tt := range []struct{ url, want string }{
		{"http://shop.example.com/a%2Fb?x=%20&y", ""}, // refused as everywhere
		{"http://shop.example.com/a/../b?x=%20&y", "https://shop.example.com:8443/b?x=%20&y"},
		{"http://SHOP.example.com:8080/", "https://shop.example.com:8443/"},
		{"http://[::1]:8080/x", "https://[::1]:8443/x"},
	} {
		resp, _ := get(t, clear, tt.url)
		if got := resp.Header.Get("Location"); got != tt.want || tt.want != "" && resp.StatusCode != http.StatusPermanentRedirect || resp.Header.Get("X-Request-Id") == "" {
			t.Errorf("%s: %s to %q, want 308 to %q (and a request id: %q)", tt.url, resp.Status, got, tt.want, resp.Header.Get("X-Request-Id"))
		}
	}
	if resp, body := get(t, clear, "http://shop.example.com/.well-known/acme-challenge/token"); resp.StatusCode != 200 || !strings.Contains(body, "X-Forwarded-Proto: http\r\n") {
		t.Errorf("an issuer's challenge got %s", resp.Status)
	}

	s, err := parts.Status(gw.app.AdminAddr())
	if err != nil {
		t.Fatal(err)
	}
	if s.TLS.State != "up" || len(s.Certificates) != 4 || s.Certificates[0].Subject != "default" || s.Certificates[0].Issuer != "test" || s.Certificates[0].State != "ok" {
		t.Errorf("status: %+v, certificates %+v", s.TLS, s.Certificates)
	}
	resp, body = get(t, http.DefaultClient, "http://"+gw.app.AdminAddr()+"/metrics")
	if !strings.Contains(body, `proconsul_tls_cert_not_after_timestamp_seconds{subject="shop"} `) || !strings.Contains(body, `proconsul_tls_reloads_total{result="refused"} 0`) {
		t.Errorf("%s: metrics lack the certificates", resp.Status)
	}
}

// TestClientCertificates asks for certificates, knows consumers by them, and
// tells instances of them; nobody else can.
func TestClientCertificates(t *testing.T) { onBothEngines(t, testClientCertificates) }

func testClientCertificates(t *testing.T, engine string) {
	ca, clients, strangers := parts.NewAuthority(t, "servers"), parts.NewAuthority(t, "clients"), parts.NewAuthority(t, "strangers")
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	ca.Issue(t, parts.Leaf{Name: "shop", Names: []string{"shop.example.com"}}).WriteTo(t, in("shop.crt"), in("shop.key"))
	clients.WriteTo(t, in("clients.pem"))
	rest := `consumers:
  - {name: orders, groups: [internal], mtls: [{spiffe: "spiffe://example.org/orders"}]}
  - {name: billing, mtls: [{san: billing.example.com}, {subject: "CN=billing,O=Example"}]}
  - {name: batch, mtls: [{subject: batch}]}
routes:
  - {name: private, match: {path: "/private/**"}, auth: {any_of: [mtls]}, upstream: {service: mirror}}
  - {name: internal, match: {path: "/internal/**"}, auth: {any_of: [mtls], groups: [internal]}, upstream: {service: mirror}}
  - {name: all, match: {path: "/**"}, upstream: {service: mirror}}
`
	var failures func() float64
	start := func(mode string) string {
		gw := startReading(t, secureText(engine, mirror(t).URL, fmt.Sprintf("cert_dir: %q, client_auth: %s, client_ca_file: %q, forward_client_cert: true", dir, mode, in("clients.pem")), rest), config.LoadOptions{})
		failures = func() float64 {
			_, body := get(t, http.DefaultClient, "http://"+gw.app.AdminAddr()+"/metrics")
			_, rest, _ := strings.Cut(body, "\nproconsul_tls_handshake_failures_total{listener=\"tls\"} ")
			n := -1.0
			_, _ = fmt.Sscan(rest, &n)
			return n
		}
		return gw.app.Addr("tls")
	}
	optional, required := start("optional"), start("required")
	issue := func(l parts.Leaf) tls.Certificate { return clients.Issue(t, l).Pair(t) }

	for _, tt := range []struct {
		name     string
		cert     *parts.Leaf // nil: none
		path     string
		status   int
		consumer string
		says     string // in WWW-Authenticate or the body
	}{
		{"none", nil, "/", 200, "", ""},
		{"none where one is needed", nil, "/private/", 401, "", `ClientCertificate realm="proconsul"`},
		{"nobody's", &parts.Leaf{Name: "nobody"}, "/private/", 401, "", `error="invalid_certificate"`},
		{"nobody's where none is needed", &parts.Leaf{Name: "nobody"}, "/", 200, "", ""},
		{"SPIFFE id", &parts.Leaf{Names: []string{"spiffe://example.org/orders"}}, "/internal/", 200, "orders", "X-Consumer-Groups: internal"},
		{"SPIFFE id in a certificate with two", &parts.Leaf{Names: []string{"spiffe://example.org/orders", "spiffe://example.org/other"}}, "/private/", 401, "", "invalid_certificate"},
		{"SPIFFE id as a name", &parts.Leaf{Name: "spiffe://example.org/orders"}, "/private/", 401, "", "invalid_certificate"},
		{"alternative name", &parts.Leaf{Names: []string{"other.example.com", "Billing.example.com"}}, "/private/", 200, "billing", ""},
		{"alternative name as a common name", &parts.Leaf{Name: "billing.example.com"}, "/private/", 401, "", "invalid_certificate"},
		{"whole subject", &parts.Leaf{Name: "billing", Org: "Example"}, "/private/", 200, "billing", ""},
		{"part of a subject", &parts.Leaf{Name: "billing"}, "/private/", 401, "", "invalid_certificate"},
		{"subject inside a common name", &parts.Leaf{Name: "CN=billing,O=Example"}, "/private/", 401, "", "invalid_certificate"},
		{"common name", &parts.Leaf{Name: "batch", Org: "Any"}, "/private/", 200, "batch", ""},
		{"not in the group", &parts.Leaf{Name: "batch"}, "/internal/", 403, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var certs []tls.Certificate
			if tt.cert != nil {
				certs = append(certs, issue(*tt.cert))
			}
			c := client(t, ca, optional, certs...)
			resp, body := get(t, c, "https://shop.example.com"+tt.path, "X-Consumer-Name: forged", "X-Client-Cert-Subject: CN=forged", "x_client_cert_san: forged", "Client-Cert: :forged:", "X-Client-Cert: forged")
			if resp.StatusCode != tt.status || !strings.Contains(body+resp.Header.Get("Www-Authenticate"), tt.says) {
				t.Fatalf("got %s %q\n%s", resp.Status, resp.Header["Www-Authenticate"], body)
			}
			if strings.Contains(body, "forged") {
				t.Errorf("what the client claimed came through:\n%s", body)
			}
			if tt.consumer != "" && !strings.Contains(body, "X-Consumer-Name: "+tt.consumer+"\r\n") {
				t.Errorf("instance was told\n%s\nwant consumer %s", body, tt.consumer)
			}
			if told := strings.Contains(body, "X-Client-Cert-Sha256: "); resp.StatusCode == 200 && told != (tt.cert != nil) {
				t.Errorf("instance was told\n%s", body)
			}
		})
	}

	for _, tt := range []struct {
		name  string
		addr  string
		certs []tls.Certificate
		ok    bool
	}{
		{"required and given", required, []tls.Certificate{issue(parts.Leaf{Name: "batch"})}, true},
		{"required and not given", required, nil, false},
		{"of strangers, required", required, []tls.Certificate{strangers.Issue(t, parts.Leaf{Name: "batch"}).Pair(t)}, false},
		{"of strangers, optional", optional, []tls.Certificate{strangers.Issue(t, parts.Leaf{Name: "batch"}).Pair(t)}, false},
		{"expired", optional, []tls.Certificate{issue(parts.Leaf{Name: "batch", NotAfter: time.Now().Add(-time.Minute)})}, false},
	} {
		// Forced on the listener, whatever it asks for.
		conf := &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.example.com", GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if tt.certs == nil {
				return new(tls.Certificate), nil
			}
			return &tt.certs[0], nil
		}}
		err := exchange(tt.addr, conf)
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}

	// Of the last gateway, which refused two of those; a third speaks no TLS.
	if conn, err := net.Dial("tcp", required); err != nil {
		t.Fatal(err)
	} else {
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
		_, _ = io.ReadAll(conn)
		_ = conn.Close()
	}
	parts.Eventually(t, patience, "failed handshakes are not counted", func() bool { return failures() == 3 })
}

// exchange sends one request on a connection of its own.
func exchange(addr string, conf *tls.Config) error {
	conn, err := (&tls.Dialer{Config: conf, NetDialer: &net.Dialer{Timeout: patience}}).Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	answer, err := io.ReadAll(conn)
	if err == nil && !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 ")) {
		err = fmt.Errorf("got %q", answer)
	}
	return err
}

// TestCertificatesChangeUnderLoad renews the certificate again and again while
// clients of both protocols are served, with and without connections of their
// own: nobody notices. A bad file changes nothing and is told of.
func TestCertificatesChangeUnderLoad(t *testing.T) { onBothEngines(t, testCertificatesChange) }

func testCertificatesChange(t *testing.T, engine string) {
	ca := parts.NewAuthority(t, "test")
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "shop.crt"), filepath.Join(dir, "shop.key")
	renew := func(n int) parts.Issued {
		return ca.Issue(t, parts.Leaf{Name: fmt.Sprintf("renewal %d", n), Names: []string{"shop.example.com", "127.0.0.1"}})
	}
	renew(0).WriteTo(t, cert, key)
	gw := startReading(t, secureText(engine, mirror(t).URL, fmt.Sprintf("certificates: [{cert_file: %q, key_file: %q}]", cert, key), toMirror), config.LoadOptions{})
	addr := gw.app.Addr("tls")
	trust := &tls.Config{RootCAs: ca.Pool()}
	var loads []*parts.Load
	for _, o := range []parts.LoadOptions{{}, {HTTP2: true}, {Fresh: true, Workers: 2}, {Fresh: true, HTTP2: true, Workers: 2}} {
		o.URLs, o.TLS, o.Pace = []string{"https://" + addr + "/"}, trust, 2*time.Millisecond
		loads = append(loads, parts.StartLoad(t, o))
	}
	for n := 1; n <= 3; n++ {
		renew(n).WriteTo(t, cert, key)
		want := fmt.Sprintf("renewal %d", n)
		parts.Eventually(t, patience, "the renewed certificate is not shown", func() bool {
			got, _ := shown(t, addr, "shop.example.com", &tls.Config{})
			return got == want
		})
		for _, l := range loads {
			l.Await(20)
		}
	}
	// The key of another renewal, and then no PEM at all. A renewal above may have
	// been looked at between its two files, and refused.
	refused := func() (n int) {
		t.Helper()
		_, body := get(t, http.DefaultClient, "http://"+gw.app.AdminAddr()+"/metrics")
		_, rest, _ := strings.Cut(body, "\nproconsul_tls_reloads_total{result=\"refused\"} ")
		_, _ = fmt.Sscan(rest, &n)
		return n
	}
	before := refused()
	parts.Issued{Cert: renew(4).Cert, Key: renew(5).Key}.WriteTo(t, cert, key)
	parts.Eventually(t, patience, "the bad certificate was not refused", func() bool { return refused() > before })
	before = refused()
	if err := os.WriteFile(key, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	parts.Eventually(t, patience, "the bad key was not refused", func() bool { return refused() > before })
	if got, _ := shown(t, addr, "shop.example.com", &tls.Config{}); got != "renewal 3" {
		t.Errorf("after a bad file %q is shown, want the one before", got)
	}
	s, err := parts.Status(gw.app.AdminAddr())
	if err != nil {
		t.Fatal(err)
	}
	told := false
	for _, e := range s.Events {
		told = told || e.Kind == "tls" && e.Severity == admin.Error && strings.Contains(e.Message, "shop.key")
	}
	if !told || s.TLS.State != "down" || s.Certificates[0].Error == "" || !strings.Contains(gw.log.String(), "certificate refused, the one before stays") {
		t.Errorf("the refusal is not told: event %v, status %+v", told, s.TLS)
	}
	if strings.Contains(gw.log.String(), "no key") {
		t.Error("the log has what is in the key's file")
	}
	renew(6).WriteTo(t, cert, key)
	parts.Eventually(t, patience, "the mended certificate is not shown", func() bool {
		got, _ := shown(t, addr, "shop.example.com", &tls.Config{})
		return got == "renewal 6"
	})
	for i, l := range loads {
		tally := l.Stop()
		if tally.Failed() > 0 || tally.Requests < 60 {
			t.Errorf("load %d: %v", i, tally)
		}
	}
}

// TestIssuersOfClientsChange withdraws the issuer of a client: its certificate
// is refused from then on, also where it comes with a session from before.
func TestIssuersOfClientsChange(t *testing.T) { onBothEngines(t, testIssuersChange) }

func testIssuersChange(t *testing.T, engine string) {
	ca, before, after := parts.NewAuthority(t, "servers"), parts.NewAuthority(t, "before"), parts.NewAuthority(t, "after")
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	ca.Issue(t, parts.Leaf{Name: "shop", Names: []string{"shop.example.com"}}).WriteTo(t, in("shop.crt"), in("shop.key"))
	before.WriteTo(t, in("clients.pem"))
	gw := startReading(t, secureText(engine, mirror(t).URL, fmt.Sprintf("cert_dir: %q, client_auth: required, client_ca_file: %q", dir, in("clients.pem")), toMirror), config.LoadOptions{})
	addr := gw.app.Addr("tls")
	old := &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.example.com", ClientSessionCache: tls.NewLRUClientSessionCache(4), Certificates: []tls.Certificate{before.Issue(t, parts.Leaf{Name: "old"}).Pair(t)}}
	if err := exchange(addr, old); err != nil {
		t.Fatal(err)
	}
	after.WriteTo(t, in("clients.pem"))
	renewed := &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.example.com", Certificates: []tls.Certificate{after.Issue(t, parts.Leaf{Name: "new"}).Pair(t)}}
	parts.Eventually(t, patience, "the new issuer's clients are not let in", func() bool { return exchange(addr, renewed) == nil })
	if err := exchange(addr, old); err == nil {
		t.Error("a client of the issuer that was withdrawn is let in with its old session")
	}
}
