package identity

import (
	"crypto/x509"
	"errors"
	"net/http"
	"slices"
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
	at     []string // listeners where it does; none: everywhere
	people *people
}

// certs are the consumers that certificates are, by what is in them.
type certs struct{ bySubject, bySAN, bySPIFFE map[string]vouchedCert }

// vouchedCert is whose a certificate is, where one of the listeners' issuers
// has vouched for it; without listeners, any.
type vouchedCert struct {
	identity  *Identity
	listeners []string
}

func newCerts() certs {
	return certs{map[string]vouchedCert{}, map[string]vouchedCert{}, map[string]vouchedCert{}}
}

func (c certs) add(cert config.ConsumerCert, id *Identity) {
	v := vouchedCert{id, cert.Listeners}
	switch {
	case cert.Subject != "":
		c.bySubject[cert.Subject] = v
	case cert.SAN != "":
		c.bySAN[config.FoldSAN(cert.SAN)] = v
	case cert.SPIFFE != "":
		c.bySPIFFE[cert.SPIFFE] = v
	}
}

func (m *certMethod) Name() string { return m.name }

func (m *certMethod) Identify(r *http.Request) (*Identity, error) {
	return m.IdentifyFrom(r, Origin{})
}

// IdentifyFrom implements Placed: listeners may believe different issuers, and
// what one of them vouches for is nothing to another.
func (m *certMethod) IdentifyFrom(r *http.Request, from Origin) (*Identity, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return nil, ErrMissing
	}
	leaf := r.TLS.VerifiedChains[0][0]
	all := m.people.Load()
	if id := all.certs.find(leaf, from.Listener); id != nil {
		return id, nil
	}
	name := ""
	if counts(m.at, from.Listener) {
		name = m.nameOf(leaf)
	}
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

// counts reports whether what is meant for some listeners counts at one.
func counts(listeners []string, listener string) bool {
	return len(listeners) == 0 || slices.Contains(listeners, listener)
}

// find returns the consumer that the certificate is at that listener: the most
// telling name decides where several would.
func (c certs) find(leaf *x509.Certificate, listener string) *Identity {
	in := func(known map[string]vouchedCert, name string) *Identity {
		if v, ok := known[name]; ok && counts(v.listeners, listener) {
			return v.identity
		}
		return nil
	}
	if len(c.bySPIFFE) > 0 {
		if id := in(c.bySPIFFE, spiffeID(leaf)); id != nil {
			return id
		}
	}
	if len(c.bySAN) > 0 {
		for _, u := range leaf.URIs {
			if id := in(c.bySAN, u.String()); id != nil {
				return id
			}
		}
		for _, name := range leaf.DNSNames {
			if id := in(c.bySAN, strings.ToLower(name)); id != nil {
				return id
			}
		}
		for _, name := range leaf.EmailAddresses {
			if id := in(c.bySAN, name); id != nil {
				return id
			}
		}
		for _, ip := range leaf.IPAddresses {
			if id := in(c.bySAN, ip.String()); id != nil {
				return id
			}
		}
	}
	if len(c.bySubject) == 0 {
		return nil
	}
	// A common name that looks like a whole name is escaped in the whole name,
	// and none that is written with an equals sign is a common name.
	if cn := leaf.Subject.CommonName; cn != "" && !strings.Contains(cn, "=") {
		if id := in(c.bySubject, cn); id != nil {
			return id
		}
	}
	return in(c.bySubject, leaf.Subject.String())
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
