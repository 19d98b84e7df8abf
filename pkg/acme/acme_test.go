package acme_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/acme"
	"github.com/proconsul/proconsul/pkg/app"
	"github.com/proconsul/proconsul/pkg/parts"
)

const patience = 40 * time.Second

// issuer is an ACME server that finds every name on this machine.
type issuer struct {
	url    string
	caFile string         // what its own listener is to be trusted by
	roots  *x509.CertPool // of what it issues
	orders atomic.Int64
}

// startIssuer starts Pebble, which asks its challenges at those ports.
func startIssuer(t *testing.T, httpPort, tlsPort int) *issuer {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "0") // an order that is sent twice for it would be counted twice
	byTCP, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	names, err := net.ListenPacket("udp", byTCP.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	answer := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg)
		a.SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			a.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(127, 0, 0, 1)}}
		}
		_ = w.WriteMsg(a)
	})
	for _, resolver := range []*dns.Server{{PacketConn: names, Handler: answer}, {Listener: byTCP, Handler: answer}} {
		go func() { _ = resolver.ActivateAndServe() }()
		t.Cleanup(func() { _ = resolver.Shutdown() })
	}

	is := &issuer{roots: x509.NewCertPool(), caFile: filepath.Join(t.TempDir(), "issuer.pem")}
	quiet := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	authority := ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {}})
	validator := va.New(quiet, httpPort, tlsPort, false, names.LocalAddr().String(), store)
	front := wfe.New(quiet, store, validator, authority, []string{"pebble.test"}, false, false, 0, 0)
	handler := front.Handler()
	own := parts.NewAuthority(t, "issuer's own")
	own.WriteTo(t, is.caFile)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/order-plz") {
			is.orders.Add(1)
		}
		handler.ServeHTTP(w, r)
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{own.Issue(t, parts.Leaf{Name: "issuer", Names: []string{"127.0.0.1"}}).Pair(t)}}
	s.StartTLS()
	t.Cleanup(s.Close)
	is.url = s.URL + wfe.DirectoryPath
	block, _ := pem.Decode(authority.GetRootCert(0).PEM())
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	is.roots.AddCert(root)
	return is
}

// logged is a log that tests show where they fail.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// gateway runs a gateway with a clear and a TLS listener.
func gateway(t *testing.T, is *issuer, httpPort, tlsPort int, engine, acme, rest string) *app.App {
	t.Helper()
	instance := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("X-Forwarded-Proto"))
	}))
	t.Cleanup(instance.Close)
	cfg, err := config.Parse("test.yaml", fmt.Appendf(nil, `version: 1
listen:
  - {name: clear, addr: "127.0.0.1:%d", engine: %s, redirect_to_tls: %d}
  - {name: tls, addr: "127.0.0.1:%d", engine: %s, tls: {acme: [Shop.example.com]}}
admin: {addr: "127.0.0.1:0"}
shutdown: {delay: 0s, grace: 1s}
acme: {directory: %q, ca_file: %q, agree: true, %s}
upstreams: [{name: all, instances: [{address: %q}]}]
routes: [{name: all, match: {path: "/**"}, upstream: {service: all}}]
%s`, httpPort, engine, tlsPort, tlsPort, engine, is.url, is.caFile, acme, instance.Listener.Addr(), rest), config.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var text logged
	a, err := app.New(cfg, app.Options{Version: "test", Log: slog.New(slog.NewTextHandler(&text, nil)), AccessLog: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", text.b.String())
		}
	})
	return a
}

// serial asks over TLS until there is a certificate that the issuer's roots
// vouch for, and returns its serial number.
func serial(t *testing.T, a *app.App, is *issuer) string {
	t.Helper()
	var got string
	parts.Eventually(t, patience, "no certificate was obtained", func() bool {
		conn, err := tls.Dial("tcp", a.Addr("tls"), &tls.Config{RootCAs: is.roots, ServerName: "shop.example.com"})
		if err != nil {
			time.Sleep(20 * time.Millisecond)
			return false
		}
		defer conn.Close()
		got = conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
		return true
	})
	return got
}

// TestObtains obtains a certificate by each challenge, from an issuer that asks
// the gateway's own listeners, and serves with it.
func TestObtains(t *testing.T) {
	for _, challenge := range []string{"http-01", "tls-alpn-01"} {
		for _, engine := range []string{"std", "fast"} {
			t.Run(challenge+" "+engine, func(t *testing.T) {
				ports := parts.FreePorts(t, 2)
				is := startIssuer(t, ports[0], ports[1])
				a := gateway(t, is, ports[0], ports[1], engine, fmt.Sprintf("challenges: [%s], storage: file, path: %q", challenge, t.TempDir()), "consul: {disabled: true}")
				serial(t, a, is)
				client := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: is.roots, ServerName: "shop.example.com"}}}
				defer client.CloseIdleConnections()
				resp, err := client.Get("https://" + a.Addr("tls") + "/")
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 200 || string(body) != "https" {
					t.Errorf("got %s %q", resp.Status, body)
				}
				s, err := parts.Status(a.AdminAddr())
				if err != nil {
					t.Fatal(err)
				}
				if len(s.Certificates) != 1 || s.Certificates[0].State != "ok" || len(s.Certificates[0].Names) != 1 || s.Certificates[0].Names[0] != "shop.example.com" {
					t.Errorf("status: %+v", s.Certificates)
				}
				if conn, err := tls.Dial("tcp", a.Addr("tls"), &tls.Config{RootCAs: is.roots, ServerName: "other.example.com"}); err == nil {
					conn.Close()
					t.Error("a name that nobody asked for has a certificate")
				}

				// Who vouches for the issuer is followed.
				both, err := os.ReadFile(is.caFile)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(is.caFile, append(both, parts.NewAuthority(t, "next").PEM...), 0o600); err != nil {
					t.Fatal(err)
				}
				parts.Eventually(t, patience, "a change of ca_file is not taken over", func() bool {
					resp, err := http.Get("http://" + a.AdminAddr() + "/api/v1/events")
					if err != nil {
						t.Fatal(err)
					}
					defer resp.Body.Close()
					text, _ := io.ReadAll(resp.Body)
					return bytes.Contains(text, []byte("acme: new certificates taken over"))
				})
			})
		}
	}
}

// TestReplicasObtainOnce starts two replicas at once, of which the issuer
// reaches one, and a third one later: one certificate is ordered, and all serve
// it.
func TestReplicasObtainOnce(t *testing.T) {
	agent := parts.StartConsul(t)
	ports := parts.FreePorts(t, 6)
	is := startIssuer(t, ports[0], ports[1])
	start := func(n int) *app.App {
		return gateway(t, is, ports[2*n], ports[2*n+1], "std", "challenges: [http-01]", fmt.Sprintf("consul: {addr: %q}", agent.Addr))
	}
	first, second := start(0), start(1)
	a, b := serial(t, first, is), serial(t, second, is)
	third := start(2)
	c := serial(t, third, is)
	if n := is.orders.Load(); n != 1 || a != b || b != c {
		t.Errorf("%d orders, certificates %s, %s and %s", n, a, b, c)
	}
}

// TestTrustInTheIssuerChanges writes another ca_file: the issuer is asked by
// those who it vouches for from then on, and by no others before. A file that
// cannot be used changes nothing.
func TestTrustInTheIssuerChanges(t *testing.T) {
	ports := parts.FreePorts(t, 2)
	is := startIssuer(t, ports[0], ports[1])
	right, err := os.ReadFile(is.caFile)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	parts.NewAuthority(t, "another").WriteTo(t, file)
	clear := fmt.Sprintf("127.0.0.1:%d", ports[0])
	open := func() (*acme.Certificates, <-chan acme.Event) {
		events := make(chan acme.Event, 10)
		c, err := acme.New(acme.Options{Names: []string{"shop.example.com"}, Clear: clear, OnEvent: func(e acme.Event) { events <- e },
			Config: config.ACME{Directory: is.url, CAFile: file, Agree: true, Challenges: []string{"http-01"}, Storage: "file", Path: t.TempDir()}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if got := c.Files(); len(got) != 1 || got[0] != file {
			t.Fatalf("files %q", got)
		}
		return c, events
	}
	run := func(c *acme.Certificates, events <-chan acme.Event) acme.Event {
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx) }()
		defer func() {
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}()
		select {
		case e := <-events:
			return e
		case <-time.After(patience):
			t.Fatal("nothing became of the certificate")
			return acme.Event{}
		}
	}
	early, failing := open()
	if e := run(early, failing); e.Err == nil || is.orders.Load() != 0 {
		t.Fatalf("an issuer that nobody vouches for was asked: %v, %d orders", e.Err, is.orders.Load())
	}

	c, events := open()
	socket, err := net.Listen("tcp", clear)
	if err != nil {
		t.Fatal(err)
	}
	challenges := httptest.NewUnstartedServer(c.Challenges(http.NotFoundHandler()))
	challenges.Listener.Close()
	challenges.Listener = socket
	challenges.Start()
	defer challenges.Close()
	refresh := func(text []byte) (bool, error) {
		t.Helper()
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return c.Refresh()
	}
	if changed, err := refresh(right); !changed || err != nil {
		t.Fatalf("the right file: %v, %v", changed, err)
	}
	if changed, err := refresh(right); changed || err != nil {
		t.Fatalf("the same file again: %v, %v", changed, err)
	}
	if changed, err := refresh([]byte("no certificate")); changed || err == nil {
		t.Fatalf("a file without a certificate: %v, %v", changed, err)
	}
	if e := run(c, events); e.Err != nil || is.orders.Load() != 1 {
		t.Errorf("by the right file: %v, %d orders", e.Err, is.orders.Load())
	}
}
