package config_test

import (
	"strings"
	"testing"

	"github.com/proconsul/proconsul/config"
)

// No consumer that comes later takes the certificate of one that is there, in
// whatever spelling and under whatever key it names it.
func TestCrowdKeepsCertificates(t *testing.T) {
	one := func(name string, c config.ConsumerCert) config.Consumer {
		return config.Consumer{Name: name, MTLS: []config.ConsumerCert{c}}
	}
	for _, tt := range []struct {
		first, second config.ConsumerCert
		taken         bool
	}{
		{config.ConsumerCert{SAN: "acme.example.com"}, config.ConsumerCert{SAN: "ACME.example.com"}, true},
		{config.ConsumerCert{SAN: "Acme.Example.com"}, config.ConsumerCert{SAN: "acme.example.com"}, true},
		{config.ConsumerCert{SAN: "spiffe://example.com/Acme"}, config.ConsumerCert{SPIFFE: "spiffe://example.com/Acme"}, true},
		{config.ConsumerCert{SPIFFE: "spiffe://example.com/acme"}, config.ConsumerCert{SAN: "spiffe://example.com/acme"}, true},
		{config.ConsumerCert{SAN: "spiffe://example.com/Acme"}, config.ConsumerCert{SPIFFE: "spiffe://example.com/acme"}, false},
		{config.ConsumerCert{Subject: "acme"}, config.ConsumerCert{Subject: "acme"}, true},
		{config.ConsumerCert{Subject: "acme"}, config.ConsumerCert{Subject: "Acme"}, false},
		{config.ConsumerCert{SAN: "A@example.com"}, config.ConsumerCert{SAN: "a@example.com"}, false},
	} {
		err := config.NewCrowd(&config.Config{Consumers: []config.Consumer{one("filed", tt.first)}}).Add(one("later", tt.second))
		if (err != nil) != tt.taken || tt.taken && !strings.Contains(err.Error(), "filed") {
			t.Errorf("%+v after %+v: %v", tt.second, tt.first, err)
		}
	}
}
