package acme

import (
	"context"
	"crypto/x509"
	"sync/atomic"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
)

// issuer is certmagic's, in the form that the present files ask for: what is
// obtained, renewed or tried again from a change on goes by the new ones.
type issuer struct {
	present atomic.Pointer[certmagic.ACMEIssuer]
}

// What certmagic does with an issuer beside obtaining is asked for by these.
var (
	_ certmagic.PreChecker        = (*issuer)(nil)
	_ certmagic.Revoker           = (*issuer)(nil)
	_ certmagic.RenewalInfoGetter = (*issuer)(nil)
)

// Issue implements certmagic.Issuer.
func (i *issuer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	return i.present.Load().Issue(ctx, csr)
}

// IssuerKey implements certmagic.Issuer.
func (i *issuer) IssuerKey() string { return i.present.Load().IssuerKey() }

// PreCheck implements certmagic.PreChecker.
func (i *issuer) PreCheck(ctx context.Context, names []string, interactive bool) error {
	return i.present.Load().PreCheck(ctx, names, interactive)
}

// Revoke implements certmagic.Revoker.
func (i *issuer) Revoke(ctx context.Context, cert certmagic.CertificateResource, reason int) error {
	return i.present.Load().Revoke(ctx, cert, reason)
}

// GetRenewalInfo implements certmagic.RenewalInfoGetter.
func (i *issuer) GetRenewalInfo(ctx context.Context, cert certmagic.Certificate) (acme.RenewalInfo, error) {
	return i.present.Load().GetRenewalInfo(ctx, cert)
}
