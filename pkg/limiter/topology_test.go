package limiter_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/parts"
	"github.com/redis/go-redis/v9"
)

// do runs commands at one node.
func do(t testing.TB, addr string, args ...any) any {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr, DisableIdentity: true})
	defer func() { _ = c.Close() }()
	v, err := c.Do(t.Context(), args...).Result()
	if err != nil {
		t.Fatalf("%v at %s: %v", args, addr, err)
	}
	return v
}

func ask(addr string, args ...any) string {
	c := redis.NewClient(&redis.Options{Addr: addr, DisableIdentity: true})
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	v, err := c.Do(ctx, args...).Text()
	if err != nil {
		return ""
	}
	return v
}

// Every identity of a cluster is counted exactly, wherever its slot is, and
// while it moves; and a master that is away takes only its own identities
// along.
func TestCluster(t *testing.T) {
	t.Parallel()
	nodes, addrs := limiter.StartCluster(t)
	var ls []*limiter.Limiter
	for range 2 {
		ls = append(ls, start(t, limiter.Options{Redis: &limiter.Redis{Mode: limiter.Cluster, Addrs: addrs, Timeout: patient}}))
	}
	parts.Eventually(t, 5*time.Second, "the replicas do not know each other", func() bool {
		return ls[0].State().Replicas == 2 && ls[1].State().Replicas == 2
	})
	p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(6, time.Hour)}, Precision: limiter.Exact, OnStoreError: limiter.FailClosed})
	const identities = 60
	for i := range identities {
		admitted := 0
		for j := range 10 {
			d := ls[j%2].Take(t.Context(), p, fmt.Sprint("id", i), 1)
			if d.Source != limiter.Store {
				t.Fatalf("identity %d was decided by %v", i, d.Source)
			}
			if d.Allowed {
				admitted++
			}
		}
		if admitted != 6 {
			t.Errorf("identity %d: %d admitted of 6", i, admitted)
		}
	}
	for _, n := range nodes {
		if keys, _ := do(t, n.Addr, "DBSIZE").(int64); keys < identities/10 {
			t.Errorf("%s holds %d keys", n.Addr, keys)
		}
	}

	// One master goes. Its identities have their policy's mode, the others are
	// decided by the store.
	nodes[0].Kill()
	fresh := policy(t, limiter.Settings{Name: "fresh", Limits: []limiter.Limit{sliding(1e6, time.Hour)}, Precision: limiter.Exact, OnStoreError: limiter.FailClosed})
	parts.Eventually(t, 5*time.Second, "the outage is not noticed", func() bool {
		for i := range identities {
			ls[0].Take(t.Context(), fresh, fmt.Sprint("id", i), 1)
		}
		return !ls[0].State().Up
	})
	sources := map[limiter.Source]int{}
	slow := 0
	for range 5 {
		for i := range identities {
			began := time.Now()
			sources[ls[0].Take(t.Context(), fresh, fmt.Sprint("id", i), 1).Source]++
			if time.Since(began) > patient {
				slow++
			}
		}
	}
	t.Logf("with a master away: %v, %d slow", sources, slow)
	if sources[limiter.Closed] < 5*identities/6 || sources[limiter.Store] < 5*identities/3 {
		t.Errorf("with a master away: decided by %v", sources)
	}
	nodes[0].Start()
	parts.Eventually(t, 15*time.Second, "the master's return is not noticed", func() bool {
		for i := range identities {
			if ls[0].Take(t.Context(), fresh, fmt.Sprint("id", i), 1).Source != limiter.Store {
				return false
			}
		}
		return ls[0].State().Up
	})
}

// A slot that moves to another master while it is used loses nothing.
func TestAMovedSlot(t *testing.T) {
	t.Parallel()
	nodes, addrs := limiter.StartCluster(t)
	l := start(t, limiter.Options{Redis: &limiter.Redis{Mode: limiter.Cluster, Addrs: addrs, Timeout: patient}})
	p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(20, time.Hour)}, Precision: limiter.Exact, OnStoreError: limiter.FailClosed})
	parts.Eventually(t, 5*time.Second, "the cluster is not reached", func() bool { return l.State().Up })
	for i := range 10 {
		if d := l.Take(t.Context(), p, "x", 1); !d.Allowed {
			t.Fatalf("take %d: %+v", i, d)
		}
	}
	from := slices.IndexFunc(nodes, func(n *parts.Redis) bool {
		keys, _ := do(t, n.Addr, "KEYS", "rl:{*}").([]any)
		return slices.ContainsFunc(keys, func(k any) bool { return len(k.(string)) == 4+11+1+22+1 })
	})
	keys, _ := do(t, nodes[from].Addr, "KEYS", "rl:{*}").([]any)
	key := keys[slices.IndexFunc(keys, func(k any) bool { return len(k.(string)) == 4+11+1+22+1 })].(string)
	slot := do(t, nodes[from].Addr, "CLUSTER", "KEYSLOT", key)
	to := (from + 1) % 3
	src, dst := ask(nodes[from].Addr, "CLUSTER", "MYID"), ask(nodes[to].Addr, "CLUSTER", "MYID")
	do(t, nodes[to].Addr, "CLUSTER", "SETSLOT", slot, "IMPORTING", src)
	do(t, nodes[from].Addr, "CLUSTER", "SETSLOT", slot, "MIGRATING", dst)
	host, port, _ := net.SplitHostPort(nodes[to].Addr)
	do(t, nodes[from].Addr, "MIGRATE", host, port, key, 0, 1000)
	admitted := 0
	take := func() {
		if d := l.Take(t.Context(), p, "x", 1); d.Allowed {
			admitted++
		}
	}
	take() // asked for with ASK
	for _, n := range []int{to, from, 3 - to - from} {
		do(t, nodes[n].Addr, "CLUSTER", "SETSLOT", slot, "NODE", dst)
		take()
	}
	for range 20 {
		take()
	}
	parts.Eventually(t, 5*time.Second, "the rest is not admitted", func() bool { take(); return admitted >= 10 })
	for range 5 {
		take()
	}
	if admitted != 10 {
		t.Errorf("%d admitted after the move, want 10", admitted)
	}
}

// startSentinel starts a sentinel, which rewrites its file, and returns its
// address.
func startSentinel(t testing.TB, conf string) string {
	t.Helper()
	port := fmt.Sprint(parts.FreePorts(t, 1)[0])
	cmd := exec.Command("redis-server", conf, "--port", port, "--bind", "127.0.0.1", "--sentinel")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be gone
		_ = cmd.Wait()
	})
	return "127.0.0.1:" + port
}

// A replica that sentinels promote is followed, and what was replicated counts.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	master := parts.StartRedis(t)
	host, port, _ := net.SplitHostPort(master.Addr)
	replica := parts.StartRedis(t, "--replicaof", host+" "+port, "--repl-diskless-sync-delay", "0")
	parts.Eventually(t, 10*time.Second, "the replica does not follow", func() bool {
		return strings.Contains(ask(replica.Addr, "INFO", "replication"), "master_link_status:up")
	})
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	text := fmt.Sprintf("sentinel monitor main %s %s 1\nsentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n", host, port)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sentinel := startSentinel(t, conf)
	parts.Eventually(t, 15*time.Second, "the sentinel does not know the replica", func() bool {
		return strings.Contains(ask(sentinel, "INFO", "sentinel"), "slaves=1")
	})
	var ls []*limiter.Limiter
	for range 2 {
		ls = append(ls, start(t, limiter.Options{Redis: &limiter.Redis{Mode: limiter.Sentinel, Addrs: []string{sentinel}, Master: "main", Timeout: patient}}))
	}
	parts.Eventually(t, 5*time.Second, "the replicas do not know each other", func() bool {
		return ls[0].State().Replicas == 2 && ls[1].State().Replicas == 2
	})
	const limit = 200
	p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(limit, time.Hour)}, Precision: limiter.Exact})
	admitted := 0
	take := func(l *limiter.Limiter) limiter.Source {
		d := l.Take(t.Context(), p, "x", 1)
		if d.Allowed {
			admitted++
		}
		return d.Source
	}
	for i := range 80 {
		if s := take(ls[i%2]); s != limiter.Store {
			t.Fatalf("take %d was decided by %v", i, s)
		}
	}
	parts.Eventually(t, 5*time.Second, "nothing is replicated", func() bool {
		return do(t, replica.Addr, "DBSIZE") == do(t, master.Addr, "DBSIZE")
	})
	master.Kill()
	began := time.Now()
	parts.Eventually(t, 20*time.Second, "the failover is not followed", func() bool {
		for _, l := range ls {
			take(l)
		}
		return !ls[0].State().Up
	})
	parts.Eventually(t, 20*time.Second, "the failover is not followed", func() bool {
		return ls[0].State().Up && ls[1].State().Up
	})
	t.Logf("followed after %v", time.Since(began).Round(time.Millisecond))
	for range limit {
		for _, l := range ls {
			take(l)
		}
	}
	// What was taken alone in the outage was settled: the limit holds.
	if admitted > limit*3/2 || admitted < limit {
		t.Errorf("%d admitted of %d", admitted, limit)
	}
	t.Logf("%d admitted of %d over a failover", admitted, limit)
}

// Redis behind TLS, with a user that may do only what the limiter does.
func TestTLSAndACL(t *testing.T) {
	t.Parallel()
	cert, pool := certificate(t)
	port := parts.FreePorts(t, 1)[0]
	args := []string{"--tls-port", fmt.Sprint(port), "--tls-cert-file", cert + ".crt", "--tls-key-file", cert + ".key", "--tls-auth-clients", "no", "--user"}
	parts.StartRedis(t, append(args, strings.Fields("proconsul on >s3cret ~rl:* resetchannels -@all "+limiter.Commands)...)...)
	o := limiter.Redis{Addr: fmt.Sprintf("127.0.0.1:%d", port), Username: "proconsul", Password: "s3cret", TLS: func() *tls.Config { return &tls.Config{RootCAs: pool} }, Timeout: patient}
	l := start(t, limiter.Options{Redis: &o})
	p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(2, time.Hour)}})
	parts.Eventually(t, 5*time.Second, "the store is not reached", func() bool { return l.State().Up })
	for i, want := range []bool{true, true, false} {
		if d := l.Take(t.Context(), p, "x", 1); d.Allowed != want || d.Source != limiter.Store {
			t.Errorf("take %d: %+v", i, d)
		}
	}
	o.Password = "wrong"
	bad, err := limiter.New(limiter.Options{Redis: &o})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- bad.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	parts.Eventually(t, 5*time.Second, "a wrong password is not told", func() bool { return strings.Contains(bad.State().LastError, "WRONGPASS") })
	if bad.State().Up {
		t.Error("a wrong password opens the store")
	}
}

// certificate writes a certificate for 127.0.0.1 and its key.
func certificate(t testing.TB) (path string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "redis"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "redis")
	for ext, b := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "EC PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(path+ext, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(parsed)
	return path, pool
}

// What cannot work is said at once.
func TestBadRedis(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]limiter.Redis{
		"no address":          {},
		"no port":             {Addr: "redis"},
		"several":             {Addr: "a:1", Addrs: []string{"b:1"}},
		"sentinels nowhere":   {Mode: limiter.Sentinel, Master: "m"},
		"no master":           {Mode: limiter.Sentinel, Addrs: []string{"a:1"}},
		"one for a cluster":   {Mode: limiter.Cluster, Addr: "a:1"},
		"a cluster's db":      {Mode: limiter.Cluster, Addrs: []string{"a:1"}, DB: 1},
		"a cluster's address": {Mode: limiter.Cluster, Addrs: []string{"a"}},
		"negative timeout":    {Addr: "a:1", Timeout: -1},
		"no such mode":        {Mode: 9, Addr: "a:1"},
	} {
		if _, err := limiter.New(limiter.Options{Redis: &o}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := limiter.ParseTopology("ring"); err == nil {
		t.Error("an unknown mode is taken")
	}
}
