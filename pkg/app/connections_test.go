package app_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/parts"
)

// sealed is TLS in front of a clear server: it shows a certificate of one
// authority, and asks for one of the same.
type sealed struct {
	listener net.Listener
	conf     atomic.Pointer[tls.Config]

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func seal(t *testing.T, to string, by *parts.Authority) *sealed {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sealed{listener: l, conns: map[net.Conn]bool{}}
	s.turn(t, by)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { s.carry(raw, to) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		s.cut()
		all.Wait()
	})
	return s
}

func (s *sealed) addr() string { return s.listener.Addr().String() }

// turn has the server go over to another authority, and cuts every connection.
func (s *sealed) turn(t *testing.T, to *parts.Authority) {
	t.Helper()
	s.conf.Store(&tls.Config{Certificates: []tls.Certificate{to.Issue(t, parts.Leaf{Name: "server", Names: []string{"127.0.0.1"}}).Pair(t)},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: to.Pool()})
	s.cut()
}

func (s *sealed) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close()
	}
}

func (s *sealed) carry(raw net.Conn, to string) {
	// Known before it has an authority: one that is in its handshake at a turn
	// is cut, too.
	s.mu.Lock()
	s.conns[raw] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, raw)
		s.mu.Unlock()
	}()
	client := tls.Server(raw, s.conf.Load())
	defer client.Close()
	if client.Handshake() != nil {
		return
	}
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(server, client); _ = server.Close() })
	_, _ = io.Copy(client, server)
	_ = client.Close()
	both.Wait()
}

// TestFilesOfOwnConnectionsChange has Consul and Redis go over to another
// authority: with the new files in place the gateway reaches both again, without
// a restart or a reload, and requests never notice.
func TestFilesOfOwnConnectionsChange(t *testing.T) {
	t.Parallel()
	old, next := parts.NewAuthority(t, "old"), parts.NewAuthority(t, "next")
	consul, redis := parts.StartConsul(t), parts.StartRedis(t)
	toConsul, toRedis := seal(t, consul.Addr, old), seal(t, redis.Addr, old)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	write := func(by *parts.Authority) {
		t.Helper()
		by.WriteTo(t, in("ca.pem"))
		by.Issue(t, parts.Leaf{Name: "gateway"}).WriteTo(t, in("gateway.crt"), in("gateway.key"))
	}
	write(old)
	files := fmt.Sprintf("tls: {ca_file: %q, cert_file: %q, key_file: %q}", in("ca.pem"), in("gateway.crt"), in("gateway.key"))
	gw := startReading(t, fmt.Sprintf(`version: 1
listen: [{name: public, addr: "127.0.0.1:0"}]
admin: {addr: "127.0.0.1:0"}
shutdown: {delay: 0s, grace: 1s}
consul: {addr: %q, scheme: https, %s}
redis: {addr: %q, %s}
upstreams: [{name: mirror, instances: [{address: %q}]}, {service: web}]
routes:
  - {name: all, match: {path: "/**"}, upstream: {service: mirror}, rate_limit: {by: client_ip, rate: 1000000/1h}}
  - {name: web, match: {path: "/web/**"}, upstream: {service: web}}
`, toConsul.addr(), files, toRedis.addr(), files, strings.TrimPrefix(mirror(t).URL, "http://")), config.LoadOptions{})
	load := parts.StartLoad(t, parts.LoadOptions{URLs: []string{"http://" + gw.app.Addr("") + "/"}, Workers: 2})
	states := func() (string, string) {
		s, err := parts.Status(gw.app.AdminAddr())
		if err != nil {
			t.Fatal(err)
		}
		return s.Consul.State, s.Redis.State
	}
	await := func(what string, up bool) {
		t.Helper()
		parts.Eventually(t, patience, what, func() bool {
			c, r := states()
			return (c == "up") == up && (r == "up") == up
		})
	}
	await("Consul and Redis are not reached", true)
	load.Await(20)

	toConsul.turn(t, next)
	toRedis.turn(t, next)
	await("Consul and Redis are reached by files that they do not take", false)
	load.Await(20)
	write(next)
	await("Consul and Redis are not reached by the new files", true)
	load.Await(20)
	consul.Put("/v1/agent/service/register", `{"Name": "web", "ID": "web-1", "Address": "127.0.0.1", "Port": 9}`)
	parts.Eventually(t, patience, "an instance that Consul got after that is not known", func() bool {
		s, err := parts.Status(gw.app.AdminAddr())
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range s.Upstreams {
			if u.Name == "web" && len(u.Instances) == 1 {
				return true
			}
		}
		return false
	})
	noFailures(t, load.Stop())
	for _, of := range []string{"of=consul", "of=redis"} {
		if !strings.Contains(gw.log.String(), `msg="certificates taken over" component=tls `+of) {
			t.Errorf("the log does not tell of the files (%s)", of)
		}
	}
}

// TestAdminTokensChange takes a token from an operator by a reload: it opens
// nothing from then on, and who follows the stream by it is let go. The last
// token of a listener that others reach stays.
func TestAdminTokensChange(t *testing.T) {
	text := func(tokens string) string {
		return `version: 1
listen: [{name: public, addr: "127.0.0.1:0"}]
admin: {addr: "0.0.0.0:0", tokens: ` + tokens + `}
shutdown: {delay: 0s, grace: 1s}
consul: {disabled: true}
`
	}
	gw := startReading(t, text(`[{name: sre, role: operator, token: first-token}, {name: eye, role: viewer, token: eye-token}]`), config.LoadOptions{})
	_, port, err := net.SplitHostPort(gw.app.AdminAddr())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, path, token string) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://127.0.0.1:"+port+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	codes := func(want map[string]int) {
		t.Helper()
		for token, code := range want {
			if got := ask("GET", "/api/v1/status", token).StatusCode; got != code {
				t.Errorf("%s: %d, want %d", token, got, code)
			}
		}
	}
	codes(map[string]int{"first-token": 200, "second-token": 401, "eye-token": 200})
	stream := bufio.NewReader(ask("GET", "/api/v1/stream", "first-token").Body)
	if _, err := stream.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	kept := bufio.NewReader(ask("GET", "/api/v1/stream", "eye-token").Body)

	gw.write(text(`[{name: sre, role: operator, token: second-token}, {name: eye, role: viewer, token: eye-token}]`))
	if got := ask("POST", "/api/v1/reload", "first-token").StatusCode; got != 200 {
		t.Fatalf("reload: %d", got)
	}
	codes(map[string]int{"first-token": 401, "second-token": 200, "eye-token": 200})
	if _, err := io.Copy(io.Discard, stream); err != nil { // ends, or the test's time is over
		t.Error(err)
	}
	for range 3 {
		if _, err := kept.ReadString('\n'); err != nil {
			t.Errorf("a viewer whose token stays is let go: %v", err)
		}
	}
	if strings.Contains(gw.log.String(), "need a restart") {
		t.Error("the log says that tokens need a restart")
	}

	gw.write(text("[]"))
	if err := gw.app.Reload("file"); err == nil || !strings.Contains(err.Error(), "admin") {
		t.Errorf("a reload that leaves the listener open to everybody: %v", err)
	}
	codes(map[string]int{"second-token": 200})
}

// TestDocumentsAreFollowed changes a schema, and what it refers to, under a
// replica: each is taken over like a change of the configuration.
func TestDocumentsAreFollowed(t *testing.T) {
	t.Parallel()
	bin := binaries(t)
	echo := bin.StartEcho(t, parts.EchoOptions{Name: "echo", ID: "echo-1"})
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	replace(t, in("order.yaml"), "type: object\nproperties: {count: {$ref: count.yaml}}\n")
	replace(t, in("count.yaml"), "type: integer\n")
	r := bin.StartReplica(t, parts.ReplicaOptions{Config: fixed(echo) + fmt.Sprintf(`routes:
  - {name: orders, match: {path: "/orders"}, validate: {body_schema: %q}, upstream: {service: echo}}
`, in("order.yaml"))})
	post := func(body string) int {
		req, err := http.NewRequest(http.MethodPost, r.URL("/orders"), strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		return send(t, req).StatusCode
	}
	becomes := func(what, body string, want int) {
		t.Helper()
		parts.Eventually(t, patience, what, func() bool { return post(body) == want })
	}
	becomes("a whole number is refused", `{"count": 1}`, 200)
	becomes("a text passes", `{"count": "one"}`, 422)
	replace(t, in("count.yaml"), "type: string\n")
	becomes("a change of what the schema refers to is not taken over", `{"count": "one"}`, 200)
	replace(t, in("order.yaml"), "type: object\nrequired: [count]\n")
	becomes("a change of the schema is not taken over", `{}`, 422)
}

// replace puts a file in another's place at once.
func replace(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}
