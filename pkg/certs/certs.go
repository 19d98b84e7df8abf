// Package certs holds the certificates that a listener shows, the issuers whose
// client certificates it takes, and both for the gateway's own connections to
// what it stands on: it reads them from files, chooses one by
// the name that the client asks for, and reads them again when it is told to.
// A file that cannot be used leaves in place what was read from it before. It
// watches nothing itself, and no key leaves it but to crypto/tls.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/config"
)

// Store is one listener's certificates. It is safe for concurrent use.
type Store struct {
	cfg   config.ListenTLS
	now   func() time.Time
	other atomic.Pointer[Source]

	mu   sync.Mutex // one Load at a time
	read map[config.Certificate]*tls.Certificate
	cas  *x509.CertPool

	current atomic.Pointer[set]
}

// Source gives certificates that are in no file. It returns nil, and no error,
// for a name that is not its own.
type Source func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// set is what connections are served by. It is never changed.
type set struct {
	exact, wild map[string][]*tls.Certificate // wild by what follows the star
	fallback    *tls.Certificate              // for names that no certificate is for; nil: none
	tls         *tls.Config
	list        []Info
}

// Info is a certificate, for people and metrics.
type Info struct {
	Subject   string // common name, or else the first alternative name
	Names     []string
	Issuer    string
	NotBefore time.Time
	NotAfter  time.Time
	File      string
	Err       string // why the file's newest content is not used; empty: it is
}

// Open reads the certificates of a listener. Of those in a directory some may
// be unusable; of those that are named none may.
func Open(cfg config.ListenTLS) (*Store, error) {
	s := &Store{cfg: cfg, now: time.Now, read: map[config.Certificate]*tls.Certificate{}}
	_, err := s.Load()
	if s.current.Load() == nil {
		return nil, err
	}
	for _, in := range s.List() {
		if in.Err != "" && slices.ContainsFunc(cfg.Certificates, func(c config.Certificate) bool { return c.CertFile == in.File }) {
			return nil, err
		}
	}
	return s, nil
}

// Files lists the files and directories that the certificates are read from.
func (s *Store) Files() []string {
	var out []string
	for _, c := range s.cfg.Certificates {
		out = append(out, c.Files()...)
	}
	for _, f := range []string{s.cfg.CertDir, s.cfg.ClientCAFile} {
		if f != "" {
			out = append(out, f)
		}
	}
	return out
}

// Load reads every file again and reports whether anything is different from
// before. The error is everything that could not be used; where it was used
// before it still is.
func (s *Store) Load() (changed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var faults []error
	wanted := slices.Clone(s.cfg.Certificates)
	if s.cfg.CertDir != "" {
		found, err := config.DirCertificates(s.cfg.CertDir)
		if err != nil { // the directory may be away for a moment: what was in it stays
			faults = append(faults, fmt.Errorf("certificates: %w", err))
			for _, old := range s.list() {
				if !slices.Contains(wanted, old) {
					found = append(found, old)
				}
			}
		}
		wanted = append(wanted, found...)
	}
	next := &set{exact: map[string][]*tls.Certificate{}, wild: map[string][]*tls.Certificate{}}
	kept := map[config.Certificate]*tls.Certificate{}
	for _, c := range wanted {
		pair, err := c.Read()
		old := s.read[c]
		switch {
		case err != nil:
			faults = append(faults, fmt.Errorf("certificate: %w", err))
			if pair = old; pair == nil {
				next.list = append(next.list, Info{File: c.CertFile, Err: err.Error()})
				continue
			}
		case old != nil && same(old, pair):
			pair = old
		default:
			changed = true
		}
		kept[c] = pair
		next.add(c, pair, err)
	}
	cas := s.cas
	if s.asks() {
		pool, err := config.ReadCAs(s.cfg.ClientCAFile)
		switch {
		case err != nil:
			faults = append(faults, fmt.Errorf("client_ca_file: %w", err))
		case cas == nil || !cas.Equal(pool):
			cas, changed = pool, true
		}
		if cas == nil { // without issuers every system root would do
			return false, errors.Join(faults...)
		}
	}
	if len(kept) == 0 && s.other.Load() == nil && (s.cfg.CertDir != "" || len(s.cfg.Certificates) > 0) {
		return false, errors.Join(append(faults, errors.New("there is no certificate that can be used"))...)
	}
	changed = changed || len(kept) != len(s.read)
	s.read, s.cas = kept, cas
	next.tls = s.config(cas)
	s.current.Store(next)
	return changed, errors.Join(faults...)
}

// list is what is read now, in order.
func (s *Store) list() []config.Certificate {
	var out []config.Certificate
	if cur := s.current.Load(); cur != nil {
		for _, in := range cur.list {
			for c := range s.read {
				if c.CertFile == in.File {
					out = append(out, c)
				}
			}
		}
	}
	return out
}

func same(a, b *tls.Certificate) bool {
	return slices.EqualFunc(a.Certificate, b.Certificate, slices.Equal[[]byte])
}

func (s *Store) asks() bool { return s.cfg.ClientAuth != "" && s.cfg.ClientAuth != "none" }

// add makes a certificate known by every name that it is for.
func (n *set) add(c config.Certificate, pair *tls.Certificate, err error) {
	in := InfoOf(pair.Leaf)
	in.File = c.CertFile
	if err != nil {
		in.Err = err.Error()
	}
	n.list = append(n.list, in)
	if n.fallback == nil {
		n.fallback = pair
	}
	names := pair.Leaf.DNSNames
	for _, ip := range pair.Leaf.IPAddresses {
		names = append(names[:len(names):len(names)], ip.String())
	}
	if len(names) == 0 && pair.Leaf.Subject.CommonName != "" {
		names = []string{pair.Leaf.Subject.CommonName}
	}
	for _, name := range names {
		name = strings.ToLower(strings.TrimSuffix(name, "."))
		if rest, ok := strings.CutPrefix(name, "*."); ok {
			n.wild[rest] = append(n.wild[rest], pair)
		} else {
			n.exact[name] = append(n.exact[name], pair)
		}
	}
}

// InfoOf describes a certificate that is in no file.
func InfoOf(leaf *x509.Certificate) Info {
	in := Info{Subject: leaf.Subject.CommonName, Names: leaf.DNSNames, Issuer: leaf.Issuer.CommonName, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
	for _, ip := range leaf.IPAddresses {
		in.Names = append(in.Names[:len(in.Names):len(in.Names)], ip.String())
	}
	if in.Issuer == "" {
		in.Issuer = leaf.Issuer.String()
	}
	if in.Subject == "" && len(in.Names) > 0 {
		in.Subject = in.Names[0]
	}
	return in
}

// List returns what the listener shows.
func (s *Store) List() []Info { return s.current.Load().list }

// Also has names that no file is for, and those that it alone can serve, served
// by another source. It is called before the first connection.
func (s *Store) Also(other Source) { s.other.Store(&other) }

// TLS returns the configuration for the listener's server, which follows what
// Load reads.
func (s *Store) TLS() *tls.Config {
	c := s.config(nil)
	challenged := s.other.Load() != nil
	if !challenged && !s.asks() {
		return c
	}
	// An issuer's challenge is a protocol of its own, without a client's
	// certificate.
	challenges := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{challengeProtocol}, GetCertificate: s.choose}
	// The issuers of clients may change, and a server keeps the configuration
	// that it was started with. The keys of session tickets stay this one's; a
	// resumed session's issuer is checked against the current ones.
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if challenged && challenge(hello) {
			return challenges, nil
		}
		return s.current.Load().tls, nil
	}
	return c
}

// challengeProtocol is what an issuer of certificates speaks to find out who has
// a name (RFC 8737).
const challengeProtocol = "acme-tls/1"

func challenge(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == challengeProtocol
}

func (s *Store) config(cas *x509.CertPool) *tls.Config {
	c := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: s.choose,
		ClientCAs:      cas,
	}
	if s.cfg.MinVersion == "1.3" {
		c.MinVersion = tls.VersionTLS13
	}
	switch s.cfg.ClientAuth {
	case "optional":
		c.ClientAuth = tls.VerifyClientCertIfGiven
	case "required":
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c
}

var errNoCertificate = errors.New("no certificate for the name that the client asks for")

// choose returns the certificate for a connection: by the whole name, by a
// wildcard for its first label, by the other source, or the listener's first.
func (s *Store) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	cur := s.current.Load()
	challenged := challenge(hello)
	if !challenged {
		if c := s.pick(hello, cur.named(hello.ServerName)); c != nil {
			return c, nil
		}
	}
	if other := s.other.Load(); other != nil {
		if c, err := (*other)(hello); c != nil || err != nil {
			return c, err
		}
	}
	if challenged || cur.fallback == nil {
		return nil, errNoCertificate
	}
	return cur.fallback, nil
}

func (n *set) named(name string) []*tls.Certificate {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if list := n.exact[name]; list != nil {
		return list
	}
	_, rest, _ := strings.Cut(name, ".")
	return n.wild[rest]
}

// pick returns the first certificate that the client can use and that is
// valid now, else one that it can use, else any: a client is told by an
// expired certificate what is wrong, and by none nothing.
func (s *Store) pick(hello *tls.ClientHelloInfo, list []*tls.Certificate) *tls.Certificate {
	if len(list) <= 1 {
		if len(list) == 0 {
			return nil
		}
		return list[0]
	}
	now := s.now()
	best, bestRank := list[0], -1
	for _, c := range list {
		rank := 0
		if hello.SupportsCertificate(c) == nil {
			rank += 2
		}
		if now.Before(c.Leaf.NotAfter) && now.After(c.Leaf.NotBefore) {
			rank++
		}
		if rank > bestRank {
			best, bestRank = c, rank
		}
	}
	return best
}
