package certs_test

import (
	"crypto/tls"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/certs"
	"github.com/proconsul/proconsul/pkg/parts"
)

// BenchmarkHandshake is what one handshake costs client and server together, of
// a new session and of one that is resumed, without and with a certificate of
// the client. What the choice among certificates adds is BenchmarkChoose.
func BenchmarkHandshake(b *testing.B) {
	for _, bb := range []struct {
		name           string
		client, resume bool
	}{{"new", false, false}, {"resumed", false, true}, {"new mutual", true, false}, {"resumed mutual", true, true}} {
		b.Run(bb.name, func(b *testing.B) {
			store, ca := open(b, 1, bb.client)
			l, err := tls.Listen("tcp", "127.0.0.1:0", store.TLS())
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					one := make([]byte, 1)
					_, _ = c.Read(one)
					_, _ = c.Write(one)
					c.Close()
				}
			}()
			conf := &tls.Config{RootCAs: ca.Pool(), ServerName: "0.example.com"}
			if bb.client {
				conf.Certificates = []tls.Certificate{ca.Issue(b, parts.Leaf{Name: "client"}).Pair(b)}
			}
			if bb.resume {
				conf.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			}
			one := []byte{1}
			for b.Loop() {
				c, err := tls.Dial("tcp", l.Addr().String(), conf)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := c.Write(one); err != nil {
					b.Fatal(err)
				}
				_, _ = c.Read(one) // takes in the ticket
				c.Close()
			}
			l.Close()
			<-done
		})
	}
}

// BenchmarkChoose is what the choice of a certificate among a thousand names
// costs a handshake.
func BenchmarkChoose(b *testing.B) {
	store, _ := open(b, 1000, false)
	choose := store.TLS().GetCertificate
	for _, name := range []string{"999.example.com", "a.wild.example.com", "elsewhere.test"} {
		b.Run(name, func(b *testing.B) {
			hello := &tls.ClientHelloInfo{ServerName: name}
			b.ReportAllocs()
			for b.Loop() {
				if c, err := choose(hello); err != nil || c == nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// open returns a store of a certificate for n names and a wildcard.
func open(t testing.TB, n int, client bool) (*certs.Store, *parts.Authority) {
	t.Helper()
	dir := t.TempDir()
	ca := parts.NewAuthority(t, "test")
	names := []string{"*.wild.example.com"}
	for i := range n {
		names = append(names, fmt.Sprintf("%d.example.com", i))
	}
	ca.Issue(t, parts.Leaf{Name: "all", Names: names}).WriteTo(t, filepath.Join(dir, "all.crt"), filepath.Join(dir, "all.key"))
	c := config.ListenTLS{CertDir: dir, ClientAuth: "none"}
	if client {
		c.ClientAuth, c.ClientCAFile = "required", filepath.Join(dir, "clients.pem")
		ca.WriteTo(t, c.ClientCAFile)
	}
	store, err := certs.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return store, ca
}
