package identity_test

import (
	"crypto/tls"
	"crypto/x509"
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
