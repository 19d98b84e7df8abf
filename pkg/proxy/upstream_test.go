package proxy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/proxy"
)

// pair writes a certificate for name, signed by itself, and its key.
func pair(t *testing.T, dir, name string) (cert, key string, tc tls.Certificate) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	c := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	kp := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb})
	cert, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	for path, b := range map[string][]byte{cert: c, key: kp} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if tc, err = tls.X509KeyPair(c, kp); err != nil {
		t.Fatal(err)
	}
	return cert, key, tc
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	serverCA, _, serverCert := pair(t, dir, "inner.test")
	clientCert, clientKey, _ := pair(t, dir, "gateway")
	otherCA, _, _ := pair(t, dir, "other")
	pool := x509.NewCertPool()
	pem, _ := os.ReadFile(clientCert)
	pool.AppendCertsFromPEM(pem)
	start := func(auth tls.ClientAuthType) string {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }))
		s.EnableHTTP2 = true
		s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		s.TLS = &tls.Config{Certificates: []tls.Certificate{serverCert}, ClientAuth: auth, ClientCAs: pool}
		s.StartTLS()
		t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
		return s.Listener.Addr().String()
	}
	open, mutual := start(tls.NoClientCert), start(tls.RequireAndVerifyClientCert)
	tests := []struct {
		name   string
		addr   string
		tls    proxy.TLS
		status int
		want   string
	}{
		{"verified by name", open, proxy.TLS{CAFile: serverCA, ServerName: "inner.test"}, 200, "HTTP/2.0"},
		{"verified by address", open, proxy.TLS{CAFile: serverCA}, 200, "HTTP/2.0"},
		{"another name", open, proxy.TLS{CAFile: serverCA, ServerName: "evil.test"}, 502, "upstream_tls"},
		{"another authority", open, proxy.TLS{CAFile: otherCA}, 502, "upstream_tls"},
		{"not verified", open, proxy.TLS{SkipVerify: true}, 200, "HTTP/2.0"},
		{"client certificate", mutual, proxy.TLS{CAFile: serverCA, CertFile: clientCert, KeyFile: clientKey}, 200, "HTTP/2.0"},
		{"client certificate missing", mutual, proxy.TLS{CAFile: serverCA}, 502, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newGate(t, gateOptions{settings: func(s *proxy.Settings) { s.Scheme, s.TLS, s.Retry.Attempts = "https", tt.tls, 0 }}, tt.addr)
			resp := get(t, client(t), g.url("/"))
			got := resp.body
			if resp.StatusCode != 200 {
				got = resp.Header.Get("X-Proconsul-Reason")
			}
			if resp.StatusCode != tt.status || tt.want != "" && got != tt.want {
				t.Errorf("got %d %q, want %d %q", resp.StatusCode, got, tt.status, tt.want)
			}
		})
	}
}

func TestSettingsAreChecked(t *testing.T) {
	garbage := filepath.Join(t.TempDir(), "garbage.pem")
	if err := os.WriteFile(garbage, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := newGate(t, gateOptions{}, backend(t, func(w http.ResponseWriter, r *http.Request) {}))
	for _, tt := range []struct {
		name string
		set  func(*proxy.Settings)
		want string
	}{
		{"scheme", func(s *proxy.Settings) { s.Scheme = "ftp" }, `scheme "ftp"`},
		{"retry on", func(s *proxy.Settings) { s.Retry.On = []string{"200"} }, `retry on "200"`},
		{"CA file", func(s *proxy.Settings) { s.Scheme, s.TLS.CAFile = "https", "/does/not/exist" }, "read TLS file"},
		{"CA content", func(s *proxy.Settings) { s.Scheme, s.TLS.CAFile = "https", garbage }, "holds no certificate"},
		{"client certificate", func(s *proxy.Settings) { s.Scheme, s.TLS.CertFile, s.TLS.KeyFile = "https", garbage, garbage }, "client certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := defaults()
			tt.set(&s)
			err := g.up.Configure(s)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if resp := get(t, client(t), g.url("/")); resp.StatusCode != 200 {
				t.Errorf("after a refused change: got %d", resp.StatusCode)
			}
		})
	}
}

// A reload changes what the next request obeys, costs none under way, and
// keeps the connections.
func TestConfigureLive(t *testing.T) {
	var conns atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			select {
			case <-r.Context().Done():
			case <-time.After(time.Second):
			}
		}
	}))
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	defer s.Close()
	g := newGate(t, gateOptions{}, s.Listener.Addr().String())
	c := client(t)
	get(t, c, g.url("/"))
	next := g.settings
	next.Response, next.Retry.Attempts = 50*time.Millisecond, 0
	if err := g.up.Configure(next); err != nil {
		t.Fatal(err)
	}
	get(t, c, g.url("/"))
	if n := conns.Load(); n != 1 {
		t.Errorf("a reload of timeouts cost %d connections, want the first to be used again", n)
	}
	if resp := get(t, c, g.url("/slow")); resp.StatusCode != 504 {
		t.Errorf("got %d, want the new timeout's 504", resp.StatusCode)
	}
	next.Response = g.settings.Response // what follows is answered, if late
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 200 {
			next.Idle = time.Duration(i+1) * time.Second // makes a new transport each time
			if err := g.up.Configure(next); err != nil {
				t.Error(err)
			}
		}
	}()
	for {
		if resp := get(t, c, g.url("/")); resp.StatusCode != 200 {
			t.Errorf("during reloads: got %d", resp.StatusCode)
		}
		select {
		case <-done:
			return
		default:
		}
	}
}

func TestOpenBreakerStopsRetriesAndAnswersAtOnce(t *testing.T) {
	var seen atomic.Int64
	g := newGate(t, gateOptions{
		breaker:  breaker.Settings{MinRequests: 5, ErrorPercent: 50, OpenFor: 30 * time.Second},
		settings: func(s *proxy.Settings) { s.Retry.Attempts = 3 },
	}, failing(t, "reset", &seen), failing(t, "reset", &seen))
	c := client(t)
	var last reply
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		if last = get(t, c, g.url("/")); last.Header.Get("X-Proconsul-Reason") == "breaker_open" {
			break
		}
	}
	if last.StatusCode != 503 || last.Header.Get("X-Proconsul-Reason") != "breaker_open" || last.Header.Get("Retry-After") == "" {
		t.Fatalf("got %d %q Retry-After %q", last.StatusCode, last.Header.Get("X-Proconsul-Reason"), last.Header.Get("Retry-After"))
	}
	before, tries := seen.Load(), len(g.tries())
	for range 5 {
		get(t, c, g.url("/"))
	}
	if n := seen.Load() - before; n != 0 {
		t.Errorf("an open breaker let %d attempts through", n)
	}
	// Nor are there any in the metrics: no instance has been asked.
	if n := len(g.tries()) - tries; n != 0 {
		t.Errorf("%d attempts are on the account of an open breaker", n)
	}
	for _, m := range g.pool.Members() {
		if m.InFlight != 0 {
			t.Errorf("%s has %d in flight after all requests have ended", m.Instance.ID, m.InFlight)
		}
	}
}

// What the pool is told decides about ejection: only the instance's own
// failures count against it.
func TestThePoolIsToldOnce(t *testing.T) {
	var seen atomic.Int64
	ok := func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ok") }
	tests := []struct {
		name string
		addr string
		want balancer.Result
	}{
		{"answer", backend(t, ok), balancer.Success},
		{"client's error", failing(t, "404", &seen), balancer.Success},
		{"server's error", failing(t, "503", &seen), balancer.ServerError},
		{"refused", refused(t), balancer.Refused},
		{"reset", failing(t, "reset", &seen), balancer.Reset},
		{"torn", failing(t, "torn", &seen), balancer.Reset},
		{"garbage", failing(t, "garbage", &seen), balancer.Reset},
		{"silent", failing(t, "silent", &seen), balancer.Timeout},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newGate(t, gateOptions{settings: func(s *proxy.Settings) {
				s.Retry.Attempts = 0
				if tt.name == "silent" {
					s.Response = 100 * time.Millisecond
				}
			}}, tt.addr)
			get(t, client(t), g.url("/"))
			g.exchange()
			m := g.pool.Members()[0]
			var want [balancer.Canceled + 1]uint64
			want[tt.want] = 1
			if m.Results != want || m.InFlight != 0 || m.Picks != 1 {
				t.Errorf("got results %v, %d in flight, %d picks; want one of %d", m.Results, m.InFlight, m.Picks, tt.want)
			}
		})
	}
	t.Run("client leaves", func(t *testing.T) {
		g := newGate(t, gateOptions{}, failing(t, "silent", &seen))
		before := seen.Load()
		c, _ := raw(t, g.addr, "GET / HTTP/1.1\nHost: x\n\n")
		for seen.Load() == before {
			runtime.Gosched()
		}
		c.Close()
		g.exchange()
		m := g.pool.Members()[0]
		if m.Results[balancer.Canceled] != 1 || m.Failures != 0 || m.InFlight != 0 {
			t.Errorf("got results %v, %d in flight; want one canceled", m.Results, m.InFlight)
		}
	})
}

// panicking is a middleware's writer with a bug in it.
type panicking struct{ http.ResponseWriter }

func (panicking) WriteHeader(int)               { panic("bug") }
func (p panicking) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// A bug outside leaves nothing behind: no permit, no pick, no lock, whatever
// goroutine it strikes in.
func TestPanicInAWriter(t *testing.T) {
	more := make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/big":
			_, _ = w.Write(make([]byte, 100<<10))
		case "/slow": // the relay's timer is the first to write
			_, _ = io.WriteString(w, "part")
			w.(http.Flusher).Flush()
			select {
			case <-more:
			case <-r.Context().Done():
			}
		}
	})
	g := newGate(t, gateOptions{breaker: breaker.Settings{MaxInFlight: 1}, wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/ok" {
				w = panicking{w}
			}
			next.ServeHTTP(w, r)
		})
	}}, addr)
	for _, path := range []string{"/empty", "/big", "/slow"} {
		if path == "/slow" {
			time.AfterFunc(100*time.Millisecond, func() { close(more) })
		}
		resp, err := client(t).Do(request(t, "GET", g.url(path), nil))
		if err == nil {
			resp.Body.Close()
			t.Errorf("%s: got %d, want a broken connection", path, resp.StatusCode)
		}
		g.exchange()
		if m := g.pool.Members()[0]; m.InFlight != 0 {
			t.Errorf("%s: %d in flight afterwards", path, m.InFlight)
		}
		if resp := get(t, client(t), g.url("/ok")); resp.StatusCode != 200 {
			t.Errorf("%s: the next request got %d: the permit is lost", path, resp.StatusCode)
		}
		g.exchange()
	}
}
