package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// CertSoon is how long before its end a certificate is warned of.
const CertSoon = 14 * 24 * time.Hour

// maxPEM bounds a file of certificates: a bundle of every public root is a
// quarter of it.
const maxPEM = 1 << 20

// checkListenTLS checks a listener's TLS, and its files where the source may
// read any.
func (b *builder) checkListenTLS(path string, l Listen) {
	if l.TLS == nil {
		if b.written(join(path, "tls")) && b.sound(join(path, "tls")) {
			b.fault(Fault{Path: join(path, "tls"), Code: CodeMissing, Message: join(path, "tls") + " is empty", Hint: "write certificates: [{cert_file: ..., key_file: ...}] or cert_dir"})
		}
		return
	}
	t, path := *l.TLS, join(path, "tls")
	if !b.sound(path) {
		return
	}
	if l.RedirectToTLS != 0 {
		b.fault(Fault{Path: join(parent(path), "redirect_to_tls"), Code: CodeContradicts, Message: b.label(parent(path)) + " has both tls and redirect_to_tls", Hint: "write redirect_to_tls at the clear listener"})
	}
	if t.CertDir == "" && len(t.Certificates) == 0 && len(t.ACME) == 0 {
		b.fault(Fault{Path: path, Code: CodeMissing, Message: path + " has no certificate", Hint: "write certificates: [{cert_file: ..., key_file: ...}] or cert_dir"})
	}
	for i, name := range t.ACME {
		p := at(join(path, "acme"), i)
		switch _, isIP := netip.ParseAddr(name); {
		case strings.Contains(name, "*"):
			b.bad(p, name, CodeHost, "is a wildcard, which needs a challenge by DNS", "name the hosts one by one, or renew the certificate elsewhere and write cert_dir")
		case !issuedName.MatchString(name) || isIP == nil:
			b.bad(p, name, CodeHost, "is no name that an issuer makes a certificate for", "")
		case slices.Contains(t.ACME[:i], name):
			b.bad(p, name, CodeNameTwice, "is listed twice", "")
		}
	}
	asks := t.ClientAuth != "none"
	switch {
	case asks && t.ClientCAFile == "":
		b.fault(Fault{Path: join(path, "client_auth"), Code: CodeContradicts, Message: join(path, "client_auth") + " is " + t.ClientAuth + " without client_ca_file, so no client certificate would be valid"})
	case !asks && t.ClientCAFile != "":
		b.fault(Fault{Path: join(path, "client_ca_file"), Code: CodeContradicts, Message: path + " has client_ca_file, but client_auth is none: nobody is asked for a certificate", Hint: "write client_auth: required or optional"})
	case !asks && t.ForwardClientCert:
		b.warn(join(path, "forward_client_cert"), CodeNoEffect, join(path, "forward_client_cert")+" has no effect: client_auth is none", "")
	}
	if b.o.Pure {
		return
	}
	for i, c := range t.Certificates {
		if p := at(join(path, "certificates"), i); c.CertFile != "" && b.sound(p) {
			b.checkCertificate(p, c, false)
		}
	}
	if t.CertDir != "" {
		b.checkCertDir(path, t)
	}
	if asks && t.ClientCAFile != "" {
		if _, err := ReadCAs(t.ClientCAFile); err != nil {
			b.fault(Fault{Path: join(path, "client_ca_file"), Code: CodeCertificate, Message: fmt.Sprintf("%s: %v", join(path, "client_ca_file"), err)})
		}
	}
}

var issuedName = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// checkACME checks the section where a listener asks for it.
func (b *builder) checkACME(c *Config) {
	asked := slices.ContainsFunc(c.Listen, func(l Listen) bool { return l.TLS != nil && len(l.TLS.ACME) > 0 })
	if !b.sound("acme") {
		return
	}
	a := c.ACME
	for i, name := range a.Challenges {
		if name != "tls-alpn-01" && name != "http-01" {
			b.bad(at("acme.challenges", i), name, CodeChoice, "is none of tls-alpn-01, http-01", didYouMean(name, []string{"tls-alpn-01", "http-01"}))
		}
	}
	if !asked {
		if b.written("acme") {
			b.warn("acme", CodeNoEffect, "acme has no effect: no listener has tls.acme", "write tls: {acme: [shop.example.com]} at a listener")
		}
		return
	}
	u, err := url.Parse(a.Directory)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "":
		b.bad("acme.directory", a.Directory, CodeAddress, "is no URL (want https://HOST/PATH)", "")
	case !a.Agree:
		b.fault(Fault{Path: "acme.agree", Code: CodeMissing, Message: "acme.agree is not true: the issuer gives certificates only to those who agree to its terms of service", Hint: "read them, then write acme: {agree: true}"})
	case len(a.Challenges) == 0:
		b.fault(Fault{Path: "acme.challenges", Code: CodeMissing, Message: "acme.challenges is empty: no name could be shown to be yours"})
	case a.Storage == "consul" && c.Consul.Disabled:
		b.bad("acme.storage", a.Storage, CodeContradicts, "needs Consul, and consul is disabled", "write acme: {storage: file, path: /var/lib/proconsul/acme}")
	case a.Storage == "file" && a.Path == "":
		b.need("acme", "path", "", "write the directory for accounts, keys and certificates")
	}
	if a.CAFile != "" && !b.o.Pure {
		if _, err := ReadCAs(a.CAFile); err != nil {
			b.fault(Fault{Path: "acme.ca_file", Code: CodeCertificate, Message: fmt.Sprintf("acme.ca_file: %v", err)})
		}
	}
}

// checkCertDir warns of single certificates that cannot be used: they cost
// themselves alone, unless nothing is left.
func (b *builder) checkCertDir(path string, t ListenTLS) {
	p := join(path, "cert_dir")
	found, err := DirCertificates(t.CertDir)
	if err != nil {
		b.bad(p, t.CertDir, CodeCertificate, "cannot be read: "+readReason(err), "")
		return
	}
	good := 0
	for _, c := range found {
		if b.checkCertificate(p, c, true) {
			good++
		}
	}
	if good == 0 && len(t.Certificates) == 0 {
		b.bad(p, t.CertDir, CodeCertificate, "holds no certificate that can be used (NAME.crt or NAME.pem, with NAME.key)", "")
	}
}

// checkCertificate reports whether a certificate can be used, and what is to
// be said of it.
func (b *builder) checkCertificate(path string, c Certificate, warning bool) bool {
	pair, err := c.Read()
	if err != nil {
		hint := ""
		if strings.Contains(err.Error(), "does not match") {
			hint = "the two files are not of the same renewal"
		}
		b.fault(Fault{Path: path, Code: CodeCertificate, Message: fmt.Sprintf("%s: %v", b.label(path), err), Hint: hint, Warning: warning})
		return false
	}
	if state := Expiry(pair.Leaf.NotBefore, pair.Leaf.NotAfter, time.Now()); state != "" {
		b.warn(path, CodeExpiry, fmt.Sprintf("%s: certificate %s %s", b.label(path), c.CertFile, state), "")
	}
	key := c.keyFile()
	if info, err := os.Stat(key); err == nil && info.Mode().Perm()&0o007 != 0 && runtime.GOOS != "windows" {
		b.warn(path, CodeKeyOpen, fmt.Sprintf("%s: every user may read the key %s", b.label(path), key), "chmod o-rwx "+key)
	}
	return true
}

// Expiry says in words what is wrong with a certificate's time; nothing where
// it is valid for two weeks more.
func Expiry(notBefore, notAfter, now time.Time) string {
	day := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }
	switch {
	case now.After(notAfter):
		return "has expired on " + day(notAfter)
	case now.Before(notBefore):
		return "is not valid before " + day(notBefore)
	case notAfter.Sub(now) < CertSoon:
		return "expires on " + day(notAfter)
	}
	return ""
}

func (c Certificate) keyFile() string {
	if c.KeyFile == "" {
		return c.CertFile
	}
	return c.KeyFile
}

// Files lists the files that the certificate is in.
func (c Certificate) Files() []string { return slices.Compact([]string{c.CertFile, c.keyFile()}) }

// Read reads the certificate and its key and checks that they belong together.
// The error names the files and holds nothing of what is in them.
func (c Certificate) Read() (*tls.Certificate, error) {
	cert, err := readPEM(c.CertFile)
	if err != nil {
		return nil, err
	}
	key := cert
	if c.keyFile() != c.CertFile {
		if key, err = readPEM(c.keyFile()); err != nil {
			return nil, err
		}
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s: %s", strings.Join(c.Files(), " and "), strings.TrimPrefix(err.Error(), "tls: "))
	}
	return &pair, nil
}

// DirCertificates lists the certificates in a directory, those of a default.*
// first, then by name: NAME.crt or NAME.pem, with the key in NAME.key or in the
// same file. A .pem or .crt file without any key is a chain or an issuer's, and
// left out.
func DirCertificates(dir string) ([]Certificate, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []Certificate
	for _, e := range entries { // in the order of their names
		name := e.Name()
		ext := filepath.Ext(name)
		if strings.HasPrefix(name, ".") || ext != ".crt" && ext != ".pem" {
			continue
		}
		c := Certificate{CertFile: filepath.Join(dir, name), KeyFile: filepath.Join(dir, strings.TrimSuffix(name, ext)+".key")}
		if _, err := os.Stat(c.KeyFile); errors.Is(err, fs.ErrNotExist) {
			c.KeyFile = ""
			if text, err := readPEM(c.CertFile); err == nil && !strings.Contains(string(text), "PRIVATE KEY-----") {
				continue
			}
		}
		if strings.TrimSuffix(name, ext) == "default" {
			out = slices.Insert(out, 0, c)
		} else {
			out = append(out, c)
		}
	}
	return out, nil
}

// ReadCAs reads a PEM bundle of issuers.
func ReadCAs(file string) (*x509.CertPool, error) {
	text, err := readPEM(file)
	if err != nil {
		return nil, err
	}
	pool, n := x509.NewCertPool(), 0
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate %d: %w", file, n+1, err)
		}
		pool.AddCert(c)
		n++
	}
	if n == 0 {
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	return pool, nil
}

func readPEM(file string) ([]byte, error) {
	text, err := readBounded(file, maxPEM)
	switch {
	case errors.Is(err, errTooLarge):
		return nil, fmt.Errorf("%s is larger than %d MiB", file, maxPEM>>20)
	case err != nil:
		return nil, fmt.Errorf("%s: %s", file, readReason(err))
	}
	return text, nil
}
