package config_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/parts"
)

// tlsText is a configuration with one TLS listener.
func tlsText(tls string) []byte {
	return fmt.Appendf(nil, "version: 1\nconsul: {disabled: true}\nlisten:\n  - {name: tls, addr: \":8443\", tls: {%s}}\n", tls)
}

// TestCertificateFiles loads configurations whose certificates are good, bad
// and about to be bad.
func TestCertificateFiles(t *testing.T) {
	clearEnv(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	ca := parts.NewAuthority(t, "test")
	now := time.Now()
	ca.Issue(t, parts.Leaf{Name: "good", Names: []string{"good.example.com"}}).WriteTo(t, in("good.crt"), in("good.key"))
	ca.Issue(t, parts.Leaf{Name: "other", Names: []string{"other.example.com"}}).WriteTo(t, in("other.crt"), in("other.key"))
	ca.Issue(t, parts.Leaf{Name: "soon", NotAfter: now.Add(13 * 24 * time.Hour)}).WriteTo(t, in("soon.crt"), in("soon.key"))
	ca.Issue(t, parts.Leaf{Name: "late", NotAfter: now.Add(-time.Minute)}).WriteTo(t, in("late.crt"), in("late.key"))
	ca.Issue(t, parts.Leaf{Name: "early", NotBefore: now.Add(time.Hour)}).WriteTo(t, in("early.crt"), in("early.key"))
	ca.Issue(t, parts.Leaf{Name: "open"}).WriteTo(t, in("open.crt"), in("open.key"))
	if err := os.Chmod(in("open.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	ca.WriteTo(t, in("ca.pem"))
	one := func(cert, key string) string {
		return fmt.Sprintf("certificates: [{cert_file: %q, key_file: %q}]", in(cert), in(key))
	}
	mixed := filepath.Join(dir, "mixed")
	broken := filepath.Join(dir, "broken")
	for _, d := range []string{mixed, broken} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	a, b := ca.Issue(t, parts.Leaf{Name: "a"}), ca.Issue(t, parts.Leaf{Name: "b"})
	a.WriteTo(t, filepath.Join(mixed, "a.crt"), filepath.Join(mixed, "a.key"))
	parts.Issued{Cert: a.Cert, Key: b.Key}.WriteTo(t, filepath.Join(mixed, "b.crt"), filepath.Join(mixed, "b.key"))
	parts.Issued{Cert: a.Cert, Key: b.Key}.WriteTo(t, filepath.Join(broken, "b.crt"), filepath.Join(broken, "b.key"))
	ca.WriteTo(t, filepath.Join(mixed, "ca.crt")) // cert-manager puts the issuer beside the certificate

	tests := []struct {
		name, tls string
		fault     string // empty: it loads
		warnings  []string
	}{
		{"good", one("good.crt", "good.key"), "", nil},
		{"mismatched", one("good.crt", "other.key"), "PC1040 listen[0].tls.certificates[0]: " + in("good.crt") + " and " + in("other.key") + ": private key does not match public key", nil},
		{"no key", one("good.crt", "none.key"), "none.key: no such file", nil},
		{"the key twice", one("good.key", "good.key"), "PC1040", nil},
		{"soon", one("soon.crt", "soon.key"), "", []string{"PC1041", "soon.crt expires on"}},
		{"late", one("late.crt", "late.key"), "", []string{"PC1041", "late.crt has expired on"}},
		{"early", one("early.crt", "early.key"), "", []string{"PC1041", "early.crt is not valid before"}},
		{"open", one("open.crt", "open.key"), "", []string{"PC1042", "every user may read the key " + in("open.key")}},
		{"one bad in a directory", fmt.Sprintf("cert_dir: %q", mixed), "", []string{"PC1040", "b.key: private key does not match"}},
		{"only bad in a directory", fmt.Sprintf("cert_dir: %q", broken), "holds no certificate that can be used", nil},
		{"issuers", one("good.crt", "good.key") + fmt.Sprintf(", client_auth: required, client_ca_file: %q", in("ca.pem")), "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := config.Parse("proconsul.yaml", tlsText(tt.tls), config.LoadOptions{})
			if tt.fault != "" {
				if err == nil || !strings.Contains(faultText(t, c, err), tt.fault) {
					t.Fatalf("got %v, want a fault with %q", err, tt.fault)
				}
				return
			}
			if err != nil {
				t.Fatal(faultText(t, c, err))
			}
			text := faultText(t, c, nil)
			for _, want := range tt.warnings {
				if !strings.Contains(text, want) {
					t.Errorf("warnings %q lack %q", text, want)
				}
			}
			if tt.warnings == nil && c.Warnings.Len() > 0 {
				t.Errorf("warnings: %s", text)
			}
		})
	}
	// What others may write reads no file.
	if _, err := config.Parse("kv", tlsText(one("none.crt", "none.key")), config.LoadOptions{Pure: true}); err != nil {
		var fs *config.Faults
		errors.As(err, &fs)
		t.Errorf("a pure load looked for files: %v", fs.All)
	}
}

// TestReferencedFiles changes a file that the configuration refers to: it is
// another configuration then, with the same text and hash, and the watch says so.
func TestReferencedFiles(t *testing.T) {
	clearEnv(t)
	dir := t.TempDir()
	secret, file := filepath.Join(dir, "secrets", "token"), filepath.Join(dir, "conf", "proconsul.yaml")
	for _, f := range []string{secret, file} {
		if err := os.Mkdir(filepath.Dir(f), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, secret, "first")
	write(t, file, "version: 1\nconsul: {disabled: true}\nadmin: {tokens: [{name: a, token: \"${file:../secrets/token}\"}]}\n")
	var named []string
	load := func() *config.Config {
		t.Helper()
		named = nil
		c, err := config.Load(file, config.LoadOptions{OnFile: func(path string) { named = append(named, path) }})
		if err != nil {
			t.Fatal(faultText(t, c, err))
		}
		return c
	}
	first := load()
	if len(named) != 1 || named[0] != secret {
		t.Fatalf("files named: %q, want %q", named, secret)
	}
	if !first.Same(load()) {
		t.Error("the same files are another configuration")
	}
	calls := watchingAlso(t, file, func() []string { return []string{secret} })
	write(t, secret, "second")
	if !until(10*time.Second, func() bool { return calls.Load() > 0 }) {
		t.Error("a change of the secret was not seen")
	}
	second := load()
	if first.Same(second) {
		t.Error("another secret is the same configuration")
	}
	if first.Hash != second.Hash {
		t.Error("the hash, which is shown, tells of the secret")
	}
}
