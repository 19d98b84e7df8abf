package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http/httptest"
	"testing"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/identity"
	"github.com/proconsul/proconsul/pkg/parts"
)

// BenchmarkClientCertificate is what it costs to know one of 1,000 consumers by
// the certificate that the connection has shown.
func BenchmarkClientCertificate(b *testing.B) {
	cfg := &config.Config{}
	for i := range 1000 {
		cfg.Consumers = append(cfg.Consumers, config.Consumer{Name: fmt.Sprint("c", i), MTLS: []config.ConsumerCert{
			{SPIFFE: fmt.Sprintf("spiffe://example.org/%d", i), Listeners: []string{"inner", "alike"}}}})
	}
	m := method(b, cfg, identity.NewKeys(quiet(), nil), "mtls")
	pair := parts.NewAuthority(b, "clients").Issue(b, parts.Leaf{Names: []string{"spiffe://example.org/999"}}).Pair(b)
	r := httptest.NewRequest("GET", "/", nil)
	r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{pair.Leaf}}}
	at := m.(identity.Placed)
	if id, err := at.IdentifyFrom(r, identity.Origin{Listener: "outer"}); err == nil {
		b.Fatalf("another listener's is %s", id.Consumer)
	}
	b.ReportAllocs()
	for b.Loop() {
		if id, err := at.IdentifyFrom(r, identity.Origin{Listener: "alike"}); err != nil || id.Consumer != "c999" {
			b.Fatal(id, err)
		}
	}
}

// Where listeners have issuers of their own a certificate counts at those that
// are named and nowhere else, by whatever in it somebody is known, and whatever
// a listener is called. Without a word it counts everywhere.
func TestWhereCertificatesCount(t *testing.T) {
	issuer := parts.NewAuthority(t, "clients")
	leaf := func(l parts.Leaf) *x509.Certificate { return issuer.Issue(t, l).Pair(t).Leaf }
	ways := map[string]struct {
		known config.ConsumerCert
		leaf  *x509.Certificate
	}{
		"SPIFFE id":   {config.ConsumerCert{SPIFFE: "spiffe://example.org/a"}, leaf(parts.Leaf{Names: []string{"spiffe://example.org/a"}})},
		"URI":         {config.ConsumerCert{SAN: "https://a.example.org/x"}, leaf(parts.Leaf{Names: []string{"https://a.example.org/x"}})},
		"DNS name":    {config.ConsumerCert{SAN: "a.example.org"}, leaf(parts.Leaf{Names: []string{"A.example.org"}})},
		"e-mail":      {config.ConsumerCert{SAN: "a@example.org"}, leaf(parts.Leaf{Names: []string{"a@example.org"}})},
		"address":     {config.ConsumerCert{SAN: "192.0.2.1"}, leaf(parts.Leaf{Names: []string{"192.0.2.1"}})},
		"subject":     {config.ConsumerCert{Subject: "CN=a,O=Example"}, leaf(parts.Leaf{Name: "a", Org: "Example"})},
		"common":      {config.ConsumerCert{Subject: "a"}, leaf(parts.Leaf{Name: "a", Org: "Example"})},
		"named by it": {config.ConsumerCert{}, leaf(parts.Leaf{Name: "a"})}, // consumer_from
	}
	for name, way := range ways {
		for _, tt := range []struct {
			listeners []string
			at        map[string]bool // whether it counts there
		}{
			{nil, map[string]bool{"": true, "inner": true, "outer": true}},
			{[]string{"inner"}, map[string]bool{"": false, "inner": true, "outer": false, "inner2": false, "inne": false, "Inner": false}},
			{[]string{"inner", "alike"}, map[string]bool{"": false, "inner": true, "alike": true, "outer": false}},
		} {
			cert, by := way.known, config.MTLSMethod{}
			cert.Listeners = tt.listeners
			cfg := &config.Config{Consumers: []config.Consumer{{Name: "a", MTLS: []config.ConsumerCert{cert}}}}
			if name == "named by it" {
				by.ConsumerFrom, by.ConsumerPrefix, by.Listeners = "common_name", "mesh:", tt.listeners
				cfg.Consumers = nil
			}
			cfg.Auth = []config.AuthMethod{{Name: "certs", MTLS: &by}}
			m := method(t, cfg, identity.NewKeys(quiet(), nil), "certs").(identity.Placed)
			r := httptest.NewRequest("GET", "/", nil)
			r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{way.leaf, issuer.Cert}}}
			for listener, want := range tt.at {
				id, err := m.IdentifyFrom(r, identity.Origin{Listener: listener})
				var no *identity.Refused
				if (err == nil) != want || err == nil && id.Consumer != by.ConsumerPrefix+"a" || err != nil && !errors.As(err, &no) {
					t.Errorf("%s for %q at %q: %+v, %v", name, tt.listeners, listener, id, err)
				}
			}
			// What nobody has verified is nothing, whatever was shown.
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{way.leaf}}
			if id, err := m.IdentifyFrom(r, identity.Origin{Listener: "inner"}); err != identity.ErrMissing {
				t.Errorf("%s, not verified: %+v, %v", name, id, err)
			}
		}
	}
}
