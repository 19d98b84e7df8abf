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

// No consumer comes in that could be taken for whom a method or another
// listener's issuer names.
func TestCrowdKeepsNamesApart(t *testing.T) {
	listen := func(name, ca string) config.Listen {
		return config.Listen{Name: name, TLS: &config.ListenTLS{ClientAuth: "optional", ClientCAFile: ca}}
	}
	cfg := &config.Config{
		Auth:   []config.AuthMethod{{Name: "idp", JWT: &config.JWTMethod{TokenRules: config.TokenRules{ConsumerPrefix: "idp:"}}}},
		Listen: []config.Listen{listen("inner", "a.pem"), listen("outer", "b.pem")},
	}
	cert := func(at ...string) []config.ConsumerCert {
		return []config.ConsumerCert{{SAN: "acme.example.com", Listeners: at}}
	}
	for _, tt := range []struct {
		one config.Consumer
		why string // empty: it comes in
	}{
		{config.Consumer{Name: "acme"}, ""},
		{config.Consumer{Name: "idp"}, ""},
		{config.Consumer{Name: "idp:acme"}, "consumer_prefix of the method idp"},
		{config.Consumer{Name: "unsaid", MTLS: cert()}, "does not say which listeners' issuers vouch for it, and those of inner, outer"},
		{config.Consumer{Name: "said", MTLS: cert("inner")}, ""},
	} {
		err := config.NewCrowd(cfg).Add(tt.one)
		if (err != nil) != (tt.why != "") || err != nil && !strings.Contains(err.Error(), tt.why) {
			t.Errorf("%s: %v, want %q", tt.one.Name, err, tt.why)
		}
	}
	cfg.Listen[1].TLS.ClientCAFile = "./a.pem"
	if err := config.NewCrowd(cfg).Add(config.Consumer{Name: "unsaid", MTLS: cert()}); err != nil {
		t.Errorf("with the same issuers everywhere: %v", err)
	}
}
