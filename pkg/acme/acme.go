// Package acme obtains and renews certificates from an issuer that speaks ACME
// (RFC 8555), such as Let's Encrypt, and answers its challenges. What it
// obtains is in a storage that replicas share. It is the only door to
// certmagic.
package acme

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/consul"
	"github.com/proconsul/proconsul/pkg/certs"
)

// Options are what certificates are obtained with.
type Options struct {
	Config config.ACME
	Names  []string      // of all listeners
	KV     *consul.Store // storage; nil: Config.Path is

	// Clear and Secure are the addresses of the listeners that challenges reach;
	// empty: there is none, and its challenge is not used.
	Clear, Secure string

	// OnEvent is told of what became of a certificate, in a goroutine of
	// certmagic's. It must not block.
	OnEvent func(Event)
}

// Event is something that happened to a certificate.
type Event struct {
	Name string
	Err  error // why it was not obtained; nil: it was
}

// Certificates are those of the names. It is safe for concurrent use.
type Certificates struct {
	names  []string
	magic  *certmagic.Config
	issuer issuer
	asked  certmagic.ACMEIssuer // the issuer but for whom it is trusted by
	files  *certs.Client        // that say so; nil: the system does
	cache  *certmagic.Cache
	stop   func()
}

// New returns the certificates of the names. It asks nobody for anything.
func New(o Options) (*Certificates, error) {
	c := &Certificates{names: o.Names}
	quiet := zap.NewNop() // events tell what people need, without a second log
	c.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return c.magic, nil }, Logger: quiet,
	})
	c.stop = sync.OnceFunc(c.cache.Stop)
	var storage certmagic.Storage = &certmagic.FileStorage{Path: o.Config.Path}
	if o.KV != nil {
		storage = newShared(o.KV)
	}
	c.magic = certmagic.New(c.cache, certmagic.Config{
		Storage: storage, Logger: quiet,
		OCSP: certmagic.OCSPConfig{DisableStapling: true}, // issuers give it up
		OnEvent: func(_ context.Context, event string, data map[string]any) error {
			name, _ := data["identifier"].(string)
			switch event {
			case "cert_obtained":
				o.OnEvent(Event{Name: name})
			case "cert_failed":
				err, _ := data["error"].(error)
				if err == nil {
					err = fmt.Errorf("no certificate for %s", name)
				}
				o.OnEvent(Event{Name: name, Err: err})
			}
			return nil
		},
	})
	c.asked = certmagic.ACMEIssuer{
		CA: o.Config.Directory, TestCA: o.Config.Directory, // of a test issuer's certificates nobody has any use
		Email: o.Config.Email, Agreed: o.Config.Agree, Logger: quiet, CertObtainTimeout: 5 * time.Minute,
		DisableHTTPChallenge:    o.Clear == "" || !slices.Contains(o.Config.Challenges, "http-01"),
		DisableTLSALPNChallenge: o.Secure == "" || !slices.Contains(o.Config.Challenges, "tls-alpn-01"),
	}
	if c.asked.DisableHTTPChallenge && c.asked.DisableTLSALPNChallenge {
		c.stop()
		return nil, fmt.Errorf("acme: no listener is there for any of the challenges %s", strings.Join(o.Config.Challenges, ", "))
	}
	// Our own listeners answer the challenges. certmagic would open its own where
	// it found nobody at these ports.
	c.asked.AltHTTPPort, c.asked.AltTLSALPNPort = port(o.Clear), port(o.Secure)
	if o.Config.CAFile != "" {
		files, err := certs.OpenClient(config.ClientTLS{CAFile: o.Config.CAFile})
		if err != nil {
			c.stop()
			return nil, fmt.Errorf("acme: %w", err)
		}
		c.files = files
	}
	c.trust()
	c.magic.Issuers = []certmagic.Issuer{c.issuer.present.Load()} // in its own form it tells the issuer what a renewal replaces
	if c.files != nil {
		c.magic.Issuers[0] = &c.issuer
	}
	return c, nil
}

// trust makes the issuer the one that the files vouch for.
func (c *Certificates) trust() {
	next := c.asked
	if c.files != nil {
		next.TrustedRoots = c.files.Current().RootCAs
	}
	c.issuer.present.Store(certmagic.NewACMEIssuer(c.magic, next))
}

// Files lists the files by which the issuer is trusted.
func (c *Certificates) Files() []string {
	if c.files == nil {
		return nil
	}
	return c.files.Files()
}

// Refresh reads those files again. Where one cannot be used, what was read
// before stays. What is under way with the issuer ends as it began.
func (c *Certificates) Refresh() (changed bool, err error) {
	if c.files == nil {
		return false, nil
	}
	if changed, err = c.files.Refresh(); changed {
		c.trust()
	}
	return changed, err
}

func port(addr string) int {
	_, text, err := net.SplitHostPort(addr)
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(text)
	return n
}

// Run obtains what is missing, renews what ends, and tries again where that
// fails, until ctx ends.
func (c *Certificates) Run(ctx context.Context) error {
	if err := c.magic.ManageAsync(ctx, c.names); err != nil {
		return fmt.Errorf("acme: %w", err)
	}
	<-ctx.Done()
	return nil
}

// Close lets go of what New made.
func (c *Certificates) Close() error {
	c.stop()
	return nil
}

// Get returns the certificate for a connection, or the issuer's challenge;
// nothing where the name is none of ours or its certificate is not there yet.
func (c *Certificates) Get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if !c.ours(hello.ServerName) {
		return nil, nil
	}
	if slices.Contains(hello.SupportedProtos, challengeProtocol) {
		return c.magic.GetCertificate(hello)
	}
	cert, err := c.magic.GetCertificate(hello)
	if err != nil {
		return nil, nil // the listener's first is better than none
	}
	return cert, nil
}

// ours reports whether a name is one to obtain a certificate for. No other is
// looked for in the storage, which anybody could keep busy.
func (c *Certificates) ours(name string) bool {
	return slices.Contains(c.names, strings.ToLower(strings.TrimSuffix(name, ".")))
}

const challengeProtocol = "acme-tls/1" // RFC 8737

// Challenges answers the issuer's requests on clear listeners and leaves all
// others to next.
func (c *Certificates) Challenges(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		if !c.ours(host) {
			next.ServeHTTP(w, r)
			return
		}
		c.issuer.present.Load().HTTPChallengeHandler(next).ServeHTTP(w, r)
	})
}

// List returns the certificates that are there.
func (c *Certificates) List() []*tls.Certificate {
	var list []*tls.Certificate
	for _, name := range c.names {
		for _, cert := range c.cache.AllMatchingCertificates(name) {
			if !slices.ContainsFunc(list, func(l *tls.Certificate) bool { return l.Leaf.Equal(cert.Leaf) }) {
				list = append(list, &cert.Certificate)
			}
		}
	}
	return list
}
