package gateway

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
)

// challengePath begins the paths by which issuers of certificates find out who
// has a host (RFC 8555 section 8.3). They have to be served in the clear.
const challengePath = "/.well-known/acme-challenge/"

// toTLS sends a client to the same resource over TLS. 308 keeps the method, so
// that nothing turns a POST into a GET.
func (t *Table) toTLS(ex *middleware.Exchange, r *http.Request, port int) {
	if ex.Host == "" {
		t.reject(ex, r, problem.New(problem.BadRequest, "there is no host to send the client to", nil))
		return
	}
	host := ex.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port != 443 {
		host = net.JoinHostPort(ex.Host, strconv.Itoa(port))
	}
	ex.Location = "https://" + host + r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		ex.Location += "?" + r.URL.RawQuery
	}
	t.serve(t.nowhere, ex, r)
}

// The fields by which instances learn of a client's certificate.
const (
	headerCertSubject     = middleware.CertificatePrefix + "Subject"
	headerCertSAN         = middleware.CertificatePrefix + "San"
	headerCertFingerprint = middleware.CertificatePrefix + "Sha256"
)

// tellCertificate sets the fields for the certificate that the listener has
// verified. A client's own ones are gone by now, whether it has shown one or
// not.
func tellCertificate(r *http.Request) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return
	}
	leaf := r.TLS.VerifiedChains[0][0]
	sum := sha256.Sum256(leaf.Raw)
	r.Header[headerCertSubject] = []string{fieldText(leaf.Subject.String())}
	r.Header[headerCertFingerprint] = []string{fmt.Sprintf("%x", sum)}
	if names := alternativeNames(leaf); names != "" {
		r.Header[headerCertSAN] = []string{names}
	}
}

// alternativeNames lists a certificate's names as "DNS:a, URI:b".
func alternativeNames(leaf *x509.Certificate) string {
	var out []string
	add := func(kind, name string) { out = append(out, kind+":"+fieldText(strings.ReplaceAll(name, ",", "%2C"))) }
	for _, name := range leaf.DNSNames {
		add("DNS", name)
	}
	for _, u := range leaf.URIs {
		add("URI", u.String())
	}
	for _, name := range leaf.EmailAddresses {
		add("EMAIL", name)
	}
	for _, ip := range leaf.IPAddresses {
		add("IP", ip.String())
	}
	return strings.Join(out, ", ")
}

// fieldText makes text fit for a header field: an issuer may put anything into
// a name.
func fieldText(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
