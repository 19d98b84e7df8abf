package identity

import (
	"crypto/x509"
	"errors"
	"net/http"
	"strings"

	"github.com/proconsul/proconsul/config"
)

// certMethod knows callers by the client certificate that the listener has
// verified: crypto/tls has checked chain, purpose and time by then, and what is
// left is whose it is.
type certMethod struct {
	name   string
	from   string // what names the caller where it is no consumer's; none: nothing
	prefix string
	people *people
}

// certs are the consumers that certificates are, by what is in them.
type certs struct{ bySubject, bySAN, bySPIFFE map[string]*Identity }

func newCerts() certs {
	return certs{map[string]*Identity{}, map[string]*Identity{}, map[string]*Identity{}}
}

func (c certs) add(cert config.ConsumerCert, id *Identity) {
	switch {
	case cert.Subject != "":
		c.bySubject[cert.Subject] = id
	case cert.SAN != "":
		c.bySAN[config.FoldSAN(cert.SAN)] = id
	case cert.SPIFFE != "":
		c.bySPIFFE[cert.SPIFFE] = id
	}
}

func (m *certMethod) Name() string { return m.name }

func (m *certMethod) Identify(r *http.Request) (*Identity, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return nil, ErrMissing
	}
	leaf := r.TLS.VerifiedChains[0][0]
	all := m.people.Load()
	if id := all.certs.find(leaf); id != nil {
		return id, nil
	}
	name := m.nameOf(leaf)
	switch {
	case all.partial:
		return nil, errPartial
	case name == "":
		return nil, refused("the client certificate is no consumer's")
	case all.names[m.prefix+name] != nil:
		return nil, refused("the client certificate names a consumer that it is not known for")
	}
	return (&Identity{Consumer: m.prefix + name}).sealed(), nil
}

// find returns the consumer that the certificate is: the most telling name
// decides where several would.
func (c certs) find(leaf *x509.Certificate) *Identity {
	if len(c.bySPIFFE) > 0 {
		if id := c.bySPIFFE[spiffeID(leaf)]; id != nil {
			return id
		}
	}
	if len(c.bySAN) > 0 {
		for _, u := range leaf.URIs {
			if id := c.bySAN[u.String()]; id != nil {
				return id
			}
		}
		for _, name := range leaf.DNSNames {
			if id := c.bySAN[strings.ToLower(name)]; id != nil {
				return id
			}
		}
		for _, name := range leaf.EmailAddresses {
			if id := c.bySAN[name]; id != nil {
				return id
			}
		}
		for _, ip := range leaf.IPAddresses {
			if id := c.bySAN[ip.String()]; id != nil {
				return id
			}
		}
	}
	if len(c.bySubject) == 0 {
		return nil
	}
	// A common name that looks like a whole name is escaped in the whole name,
	// and none that is written with an equals sign is a common name.
	if cn := leaf.Subject.CommonName; !strings.Contains(cn, "=") {
		if id := c.bySubject[cn]; cn != "" && id != nil {
			return id
		}
	}
	return c.bySubject[leaf.Subject.String()]
}

// spiffeID returns the certificate's SPIFFE id. A certificate with another URI
// beside it has none (SPIFFE X509-SVID section 2).
func spiffeID(leaf *x509.Certificate) string {
	if len(leaf.URIs) != 1 || leaf.URIs[0].Scheme != "spiffe" {
		return ""
	}
	return leaf.URIs[0].String()
}

// nameOf returns what the certificate itself names its holder, as far as it can
// stand in a header field.
func (m *certMethod) nameOf(leaf *x509.Certificate) (name string) {
	switch m.from {
	case "common_name":
		name = leaf.Subject.CommonName
	case "dns":
		if len(leaf.DNSNames) > 0 {
			name = strings.ToLower(leaf.DNSNames[0])
		}
	case "email":
		if len(leaf.EmailAddresses) > 0 {
			name = leaf.EmailAddresses[0]
		}
	case "uri":
		if len(leaf.URIs) > 0 {
			name = leaf.URIs[0].String()
		}
	case "spiffe":
		name = spiffeID(leaf)
	}
	for i := range len(name) {
		if c := name[i]; c < 0x21 || c > 0x7e || c == ',' {
			return ""
		}
	}
	return name
}

func (m *certMethod) Challenge(realm string, err error) string {
	// No scheme is registered for TLS; this one says what is asked for.
	out := "ClientCertificate realm=" + quoted(realm)
	var no *Refused
	if errors.As(err, &no) {
		out += ", error=" + quoted(no.code("invalid_certificate")) + ", error_description=" + quoted(no.Why)
	}
	return out
}

// Strip has nothing to do: the certificate is not part of the request.
func (m *certMethod) Strip(*http.Request) {}
