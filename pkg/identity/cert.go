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

// Holders knows who has which certificate, by what is in it. The most telling
// name decides where several would. It is safe for concurrent use once it is
// filled.
type Holders[T any] struct{ bySubject, bySAN, bySPIFFE map[string]vouchedCert[T] }

// vouchedCert is whose a certificate is, where one of the listeners' issuers has
// vouched for it; without listeners, any.
type vouchedCert[T any] struct {
	holder    T
	listeners []string
}

// NewHolders returns holders of nothing.
func NewHolders[T any]() Holders[T] {
	return Holders[T]{map[string]vouchedCert[T]{}, map[string]vouchedCert[T]{}, map[string]vouchedCert[T]{}}
}

// Add makes the certificates that have the name those of a holder.
func (c Holders[T]) Add(cert config.ConsumerCert, holder T) {
	v := vouchedCert[T]{holder, cert.Listeners}
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
	if id, ok := all.certs.Find(leaf, from.Listener); ok {
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

// Find returns who has the certificate that was shown to that listener, which
// has verified it.
func (c Holders[T]) Find(leaf *x509.Certificate, listener string) (holder T, ok bool) {
	in := func(known map[string]vouchedCert[T], name string) bool {
		v, there := known[name]
		if there && counts(v.listeners, listener) {
			holder, ok = v.holder, true
		}
		return ok
	}
	if len(c.bySPIFFE) > 0 && in(c.bySPIFFE, spiffeID(leaf)) {
		return holder, ok
	}
	if len(c.bySAN) > 0 {
		for _, u := range leaf.URIs {
			if in(c.bySAN, u.String()) {
				return holder, ok
			}
		}
		for _, name := range leaf.DNSNames {
			if in(c.bySAN, strings.ToLower(name)) {
				return holder, ok
			}
		}
		for _, name := range leaf.EmailAddresses {
			if in(c.bySAN, name) {
				return holder, ok
			}
		}
		for _, ip := range leaf.IPAddresses {
			if in(c.bySAN, ip.String()) {
				return holder, ok
			}
		}
	}
	if len(c.bySubject) == 0 {
		return holder, ok
	}
	// A common name that looks like a whole name is escaped in the whole name,
	// and none that is written with an equals sign is a common name.
	if cn := leaf.Subject.CommonName; cn != "" && !strings.Contains(cn, "=") && in(c.bySubject, cn) {
		return holder, ok
	}
	in(c.bySubject, leaf.Subject.String())
	return holder, ok
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
