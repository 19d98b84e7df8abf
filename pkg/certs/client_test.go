package certs_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/certs"
	"github.com/proconsul/proconsul/pkg/parts"
)

// TestClientFiles renews the files of a connection one by one: what does not fit
// together, or is nothing, leaves in place what was read before.
func TestClientFiles(t *testing.T) {
	ca := parts.NewAuthority(t, "first")
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	ca.WriteTo(t, in("ca.pem"))
	first, second := ca.Issue(t, parts.Leaf{Name: "first"}), ca.Issue(t, parts.Leaf{Name: "second"})
	first.WriteTo(t, in("crt"), in("key"))
	c, err := certs.OpenClient(config.ClientTLS{CAFile: in("ca.pem"), CertFile: in("crt"), KeyFile: in("key"), ServerName: "consul.internal"})
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Files(); len(got) != 3 {
		t.Errorf("files %q", got)
	}
	look := func(step string, wantChange, wantErr bool, wantName string) {
		t.Helper()
		changed, err := c.Refresh()
		if changed != wantChange || (err != nil) != wantErr {
			t.Errorf("%s: changed %v, %v", step, changed, err)
		}
		got := c.Current()
		if name := got.Certificates[0].Leaf.Subject.CommonName; name != wantName || got.RootCAs == nil || got.ServerName != "consul.internal" {
			t.Errorf("%s: %s, %+v", step, name, got)
		}
	}
	look("nothing new", false, false, "first")
	roots := c.Current().RootCAs
	parts.Issued{Cert: second.Cert, Key: first.Key}.WriteTo(t, in("crt"), in("key"))
	look("half of a renewal", false, true, "first")
	second.WriteTo(t, in("crt"), in("key"))
	look("the other half", true, false, "second")
	if err := os.WriteFile(in("ca.pem"), []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	look("no issuer", false, true, "second")
	if err := os.Remove(in("ca.pem")); err != nil {
		t.Fatal(err)
	}
	look("no file", false, true, "second")
	parts.NewAuthority(t, "next").WriteTo(t, in("ca.pem"))
	look("another issuer", true, false, "second")
	if c.Current().RootCAs.Equal(roots) {
		t.Error("the issuers are the ones before")
	}
	if _, err := certs.OpenClient(config.ClientTLS{CAFile: in("none.pem")}); err == nil {
		t.Error("opened without its file")
	}
}
