package consul_test

import (
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/consul"
	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/parts"
)

// server is a fake over real sockets, for TLS, unix sockets and environment.
func server(t *testing.T, tls bool, see func(*http.Request)) (*httptest.Server, *fake) {
	t.Helper()
	f := &fake{t: t, index: 10, services: map[string][]string{}, changed: make(chan struct{}), leader: "127.0.0.1:8300"}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if see != nil {
			see(r)
		}
		f.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	if tls {
		srv.EnableHTTP2 = true
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	return srv, f
}

func (w *watching) soon(t *testing.T, key, ids string) {
	t.Helper()
	parts.Eventually(t, 10*time.Second, "pool of "+key+" is "+ids, func() bool { return w.ids(key) == ids })
}

func TestEnvironmentIsHonoured(t *testing.T) {
	var mu sync.Mutex
	var user, token string
	srv, f := server(t, true, func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		user, _, _ = r.BasicAuth()
		token = r.Header.Get("X-Consul-Token")
	})
	f.set("web", "web-1")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONSUL_HTTP_ADDR", strings.TrimPrefix(srv.URL, "https://"))
	t.Setenv("CONSUL_HTTP_SSL", "true")
	t.Setenv("CONSUL_CACERT", ca)
	t.Setenv("CONSUL_TLS_SERVER_NAME", "example.com")
	t.Setenv("CONSUL_HTTP_AUTH", "jane:secret")
	t.Setenv("CONSUL_HTTP_TOKEN", "from-env")
	w := watch(t, consul.Options{}, consul.WatchOptions{}, query("web"))
	w.soon(t, "web", "web-1")
	mu.Lock()
	if user != "jane" || token != "from-env" {
		t.Errorf("user %q, token %q", user, token)
	}
	mu.Unlock()
	w.stop()

	// What is configured beats the environment.
	w = watch(t, consul.Options{Token: "from-config"}, consul.WatchOptions{}, query("web"))
	w.soon(t, "web", "web-1")
	mu.Lock()
	if token != "from-config" {
		t.Errorf("token %q", token)
	}
	mu.Unlock()
}

// Over https hundreds of watches share a few connections.
func TestHTTP2CarriesManyWatches(t *testing.T) {
	t.Parallel()
	conns := map[string]bool{}
	var mu sync.Mutex
	srv, f := server(t, true, func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		conns[r.RemoteAddr] = true
		if r.ProtoMajor != 2 {
			t.Errorf("asked over %s", r.Proto)
		}
	})
	queries := watchQueries(300)
	f.with(func() {
		for _, q := range queries {
			f.services[q.Service] = []string{q.Service + "-1"}
		}
	})
	w := watch(t, consul.Options{Addr: srv.URL, TLS: consul.TLS{SkipVerify: true}}, consul.WatchOptions{MaxConnections: 1}, queries...)
	for _, q := range queries {
		w.soon(t, q.Service, q.Service+"-1")
	}
	for _, q := range queries {
		f.with(func() { f.services[q.Service] = []string{q.Service + "-2"} })
	}
	start := time.Now()
	f.set("svc299", "svc299-2") // wakes all
	for _, q := range queries {
		w.soon(t, q.Service, q.Service+"-2")
	}
	mu.Lock()
	defer mu.Unlock()
	t.Logf("300 watches on %d connections; all follow after %v", len(conns), time.Since(start).Round(time.Millisecond))
	if len(conns) > 64 {
		t.Errorf("%d connections", len(conns))
	}
	w.stop()
}

func TestTokenFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first\n")
	bubble(t, func(t *testing.T, f *fake) {
		var seen []string
		f.handle = func(w http.ResponseWriter, r *http.Request) bool {
			tok := r.Header.Get("X-Consul-Token")
			f.with(func() {
				if len(seen) == 0 || seen[len(seen)-1] != tok {
					seen = append(seen, tok)
				}
			})
			return false
		}
		o := f.options()
		o.TokenFile, o.Token = path, "not this one"
		w := watch(t, o, consul.WatchOptions{}, query("web"))
		time.Sleep(5 * time.Second)
		write("second token")
		time.Sleep(12 * time.Second)
		write("") // while it is being replaced
		time.Sleep(12 * time.Second)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(12 * time.Second)
		write("third, longer")
		time.Sleep(12 * time.Second)
		f.with(func() {
			if got := strings.Join(seen, " | "); got != "first | second token | third, longer" {
				t.Errorf("sent %s", got)
			}
		})
		_ = w
	})
}

func TestUnixSocketAndPathPrefix(t *testing.T) {
	dir, err := os.MkdirTemp("", "pc") // a socket's path has to be short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, index: 10, services: map[string][]string{"web": {"web-1"}}, changed: make(chan struct{}), leader: "x"}
	srv := &http.Server{Handler: f}
	go func() { _ = srv.Serve(ln) }()
	defer srv.Close()
	w := watch(t, consul.Options{Addr: "unix://" + ln.Addr().String()}, consul.WatchOptions{}, query("web"))
	w.soon(t, "web", "web-1")
	w.stop()

	tcp := httptest.NewServer(http.StripPrefix("/consul", f))
	defer tcp.Close()
	w = watch(t, consul.Options{Addr: tcp.URL + "/consul"}, consul.WatchOptions{}, query("web"))
	w.soon(t, "web", "web-1")
	w.stop()
}

// A redirect must not carry the token to another host.
func TestRedirectIsNotFollowed(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		f.handle = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Host != "127.0.0.1:8500" {
				t.Errorf("asked %s with token %q", r.Host, r.Header.Get("X-Consul-Token"))
			}
			http.Redirect(w, r, "http://evil.example/", http.StatusTemporaryRedirect)
			return true
		}
		o := f.options()
		o.Token = "secret"
		w := watch(t, o, consul.WatchOptions{}, query("web"))
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if st := w.catalog.State("web"); !strings.Contains(st.Err, "307") || strings.Contains(st.Err, "secret") {
			t.Errorf("state %+v", st)
		}
	})
}

func TestOptionsAreChecked(t *testing.T) {
	tests := []struct {
		want string
		o    consul.Options
	}{
		{`scheme "ftp"`, consul.Options{Scheme: "ftp"}},
		{"wait 11m", consul.Options{Wait: 11 * time.Minute}},
		{"wait -1s", consul.Options{Wait: -time.Second}},
		{"no such file", consul.Options{TokenFile: "/does/not/exist"}},
		{"no such file", consul.Options{Scheme: "https", TLS: consul.TLS{CAFile: "/does/not/exist"}}},
		{"both client cert and client key", consul.Options{Scheme: "https", TLS: consul.TLS{CertFile: "/x"}}},
		{"ftp is not http, https or unix", consul.Options{Addr: "ftp://x"}},
	}
	for _, tt := range tests {
		if _, err := consul.NewClient(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: error %v, want %q", tt.o, err, tt.want)
		}
	}
}

// Each failure comes with the way out.
func TestSentences(t *testing.T) {
	t.Parallel()
	plain, _ := server(t, false, nil)
	secure, _ := server(t, true, nil)
	real := parts.StartConsul(t)
	closed := parts.FreePorts(t, 1)[0]
	host := func(u string) string { return u[strings.Index(u, "//")+2:] }
	tests := []struct {
		name string
		o    consul.Options
		q    discovery.Query
		want []string
	}{
		{"nobody listens", consul.Options{Addr: fmt.Sprintf("127.0.0.1:%d", closed)}, query("web"), []string{"connection refused", "consul members", "CONSUL_HTTP_ADDR"}},
		{"https to a clear port", consul.Options{Addr: host(plain.URL), Scheme: "https"}, query("web"), []string{"does not speak TLS", "scheme http"}},
		{"clear to an https port", consul.Options{Addr: host(secure.URL)}, query("web"), []string{"use scheme https"}},
		{"a certificate of nobody", consul.Options{Addr: secure.URL}, query("web"), []string{"not trusted", "CONSUL_CACERT"}},
		{"a namespace at a community Consul", consul.Options{Addr: real.Addr}, discovery.Query{Service: "web", Namespace: "default"}, []string{"400", "Enterprise", "consul.namespace"}},
		{"a datacenter that is none", consul.Options{Addr: real.Addr}, discovery.Query{Service: "web", Datacenter: "mars"}, []string{"No path to datacenter", "consul catalog datacenters"}},
		{"a filter that is none", consul.Options{Addr: real.Addr}, discovery.Query{Service: "web", Filter: "Service.Port >"}, []string{"filter"}},
		{"a name that does not resolve", consul.Options{Addr: "consul.invalid:8500"}, query("web"), []string{"does the name resolve"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := watch(t, tt.o, consul.WatchOptions{}, tt.q)
			var err string
			parts.Eventually(t, 10*time.Second, "it fails", func() bool {
				err = w.catalog.State(tt.q.Key()).Err
				return err != ""
			})
			t.Log(err)
			for _, part := range tt.want {
				if !strings.Contains(err, part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
		})
	}
}
