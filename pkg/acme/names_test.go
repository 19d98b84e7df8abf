package acme_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/acme"
)

// What is in the storage for names of others is nobody's here: it is not even
// looked for.
func TestChallengesOfOthers(t *testing.T) {
	dir := t.TempDir()
	c, err := acme.New(acme.Options{
		Config: config.ACME{Directory: "https://issuer.example/dir", Path: dir, Agree: true, Challenges: []string{"http-01", "tls-alpn-01"}},
		Names:  []string{"ours.example"}, Clear: "127.0.0.1:80", Secure: "127.0.0.1:443",
		OnEvent: func(acme.Event) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	tokens := filepath.Join(dir, "acme", "issuer.example-dir", "challenge_tokens")
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ours.example", "theirs.example"} {
		pending := fmt.Sprintf(`{"type": "http-01", "token": "t", "keyAuthorization": "t.proof", "identifier": {"type": "dns", "value": %q}}`, name)
		if err := os.WriteFile(filepath.Join(tokens, name+".json"), []byte(pending), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := c.Challenges(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "next") }))
	for host, want := range map[string]string{"ours.example": "t.proof", "OURS.example:80": "t.proof", "theirs.example": "next", "theirs.example:80": "next", "": "next"} {
		r := httptest.NewRequest("GET", "/.well-known/acme-challenge/t", nil)
		r.Host = host
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Body.String() != want {
			t.Errorf("http-01 for %q: got %q, want %q", host, w.Body, want)
		}
	}
	for name, want := range map[string]bool{"ours.example": true, "Ours.example": true, "theirs.example": false} {
		near, far := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			defer far.Close()
			_ = tls.Server(far, &tls.Config{GetCertificate: c.Get, NextProtos: []string{"acme-tls/1"}}).Handshake() // the client tells
		})
		err := tls.Client(near, &tls.Config{ServerName: name, NextProtos: []string{"acme-tls/1"}, InsecureSkipVerify: true}).Handshake()
		_ = near.Close()
		wg.Wait()
		if (err == nil) != want {
			t.Errorf("tls-alpn-01 for %q: %v", name, err)
		}
	}
}
