package app_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/identity"
	"github.com/proconsul/proconsul/pkg/parts"
)

// withKey asks with an API key and returns the status and the reason.
func withKey(t *testing.T, url, key string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", key)
	got := send(t, req)
	return got.StatusCode, got.Header.Get("X-Proconsul-Reason")
}

// TestConsumersFromConsul changes consumers in a real Consul's KV store under
// load: those that stay never see a failure, a faulty one costs only itself, no
// secret is shown, and a replica that starts while Consul is away knows them.
func TestConsumersFromConsul(t *testing.T) {
	t.Parallel()
	bin, consul := binaries(t), parts.StartConsul(t)
	echo := bin.StartEcho(t, parts.EchoOptions{Name: "echo", ID: "echo-1"})
	snapshot := filepath.Join(t.TempDir(), "catalog.json")
	config := func(more string) string {
		return fmt.Sprintf(`consul: {addr: %q, snapshot: %q}
kv: {consumers: proconsul/consumers}
shutdown: {delay: 0s}
consumers:
  - {name: filed, groups: [gold], api_keys: [{id: filed, sha256: %s}]}
upstreams: [{name: echo, instances: [{address: %q}]}]
routes:
  - {name: gold, auth: {any_of: [api-key], groups: [gold]}, upstream: {service: echo}}
%s`, consul.Addr, snapshot, identity.HashKey("key-filed"), echo.Addr, more)
	}
	put := func(name, text string) { consul.Put("/v1/kv/proconsul/consumers/"+name, text) }
	consumer := func(id, key string) string {
		return fmt.Sprintf("groups: [gold]\napi_keys: [{id: %s, sha256: %s}]\n", id, identity.HashKey(key))
	}
	put("stays", consumer("stays", "key-stays"))
	put("json", fmt.Sprintf(`{"name": "json", "groups": ["gold"], "api_keys": [{"id": "json", "sha256": %q}]}`, identity.HashKey("key-json")))
	put("", "") // a folder of the UI's

	r := bin.StartReplica(t, parts.ReplicaOptions{Config: config("")})
	url := r.URL("/x")
	for key, want := range map[string]int{"key-filed": 200, "key-stays": 200, "key-json": 200, "key-nobody": 401} {
		if code, _ := withKey(t, url, key); code != want {
			t.Errorf("%s: %d, want %d, at the start", key, code, want)
		}
	}
	load := parts.StartLoad(t, parts.LoadOptions{URLs: []string{url}, Workers: 4, Pace: time.Millisecond, Header: http.Header{"X-Api-Key": {"key-stays"}}})
	filed := parts.StartLoad(t, parts.LoadOptions{URLs: []string{url}, Workers: 2, Pace: time.Millisecond, Header: http.Header{"X-Api-Key": {"key-filed"}}})
	becomes := func(key string, want int) {
		t.Helper()
		parts.Eventually(t, patience, fmt.Sprintf("%s never answers %d", key, want), func() bool { code, _ := withKey(t, url, key); return code == want })
	}
	for i := range 5 {
		put("turns", consumer("turns", fmt.Sprintf("key-%d", i)))
		becomes(fmt.Sprintf("key-%d", i), 200)
		if i > 0 {
			becomes(fmt.Sprintf("key-%d", i-1), 401)
		}
		r.Configure(config(fmt.Sprintf("  - {name: new-%d, match: {path: /new-%d}, auth: {anonymous: true}, upstream: {service: echo}}\n", i, i)))
		parts.Eventually(t, patience, "a reload was not taken over", func() bool { return request(t, http.MethodGet, r.URL(fmt.Sprintf("/new-%d", i))).StatusCode == 200 })
		becomes(fmt.Sprintf("key-%d", i), 200)
	}
	// Not in the group.
	put("bronze", strings.Replace(consumer("bronze", "key-bronze"), "gold", "bronze", 1))
	becomes("key-bronze", 403)

	// Faults cost only themselves, and what was good before stays.
	put("turns", "groups: [gold]\napi_keyz: []\n")
	put("taker", consumer("taker", "key-filed"))
	put("filed", consumer("second", "key-second"))
	put("huge", strings.Repeat("# x\n", 20_000))
	put("pasted", "api_keys: [{id: p, sha256: leak-a-key-in-the-clear}]\n")
	put("login", "basic: [{username: slow, bcrypt: \"$2y$31$leakleakleakleakleakleakleakleakleakleakleakleakleakl\"}]\n")
	put("late", consumer("late", "key-late"))
	becomes("key-late", 200)
	wants := map[string]string{"turns": "api_keyz", "taker": "is taken by the consumer filed", "filed": `its name "filed" is taken`, "huge": "larger than", "pasted": "sha256", "login": "cost 31"}
	rejected := map[string]string{}
	parts.Eventually(t, patience, "not every faulty consumer is shown as rejected", func() bool { // the status is a moment old
		clear(rejected)
		for _, x := range r.MustStatus().Rejected {
			if x.Kind == "consumer" {
				rejected[strings.TrimPrefix(x.Name, "proconsul/consumers/")] = x.Reason
			}
		}
		return len(rejected) >= len(wants)
	})
	for name, want := range wants {
		if !strings.Contains(rejected[name], want) {
			t.Errorf("%s is rejected for %q, want %q", name, rejected[name], want)
		}
	}
	if len(rejected) != len(wants) || !strings.Contains(rejected["turns"], "stays") {
		t.Errorf("rejected %v", rejected)
	}
	for key, want := range map[string]int{"key-4": 200, "key-filed": 200, "key-second": 401} {
		if code, _ := withKey(t, url, key); code != want {
			t.Errorf("%s: %d, want %d, beside faults", key, code, want)
		}
	}
	shown := request(t, http.MethodGet, "http://"+r.Admin+"/api/v1/consumers").body
	for _, want := range []string{`"name":"late"`, `"source":"kv"`, `"key":"proconsul/consumers/late"`, `"source":"file"`, `"api_keys":["late"]`} {
		if !strings.Contains(strings.ReplaceAll(shown, ": ", ":"), want) {
			t.Errorf("the consumers do not show %s: %s", want, shown)
		}
	}
	status := request(t, http.MethodGet, "http://"+r.Admin+"/api/v1/status").body
	for _, text := range []string{shown, status, r.Log()} {
		for _, secret := range []string{"leak", identity.HashKey("key-late"), identity.HashKey("key-filed")} {
			if strings.Contains(text, secret) {
				t.Errorf("%s is shown: %s", secret, text)
			}
		}
	}
	if n, _ := r.Metric("proconsul_consumers", `source="kv"`); n != 5 { // stays, json, turns, bronze, late
		t.Errorf("proconsul_consumers{source=kv} is %v", n)
	}
	if n, _ := r.Metric("proconsul_consumers_rejected"); n != float64(len(wants)) {
		t.Errorf("proconsul_consumers_rejected is %v", n)
	}

	// Taken out, and at once nobody's.
	remove(t, consul, "late")
	becomes("key-late", 401)
	noFailures(t, load.Stop())
	noFailures(t, filed.Stop())

	// Consul goes, and so does the replica: the next one knows who was there.
	file := snapshot + ".consumers"
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info, err)
	}
	r.Stop()
	consul.Freeze()
	defer consul.Thaw()
	r.Start()
	for key, want := range map[string]int{"key-stays": 200, "key-4": 200, "key-filed": 200, "key-late": 401} {
		if code, reason := withKey(t, url, key); code != want {
			t.Errorf("%s: %d %s, want %d, without Consul", key, code, reason, want)
		}
	}
}

func remove(t *testing.T, consul *parts.Consul, name string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodDelete, "http://"+consul.Addr+"/v1/kv/proconsul/consumers/"+name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := send(t, req); got.StatusCode != http.StatusOK {
		t.Fatalf("DELETE: %d", got.StatusCode)
	}
}

// TestConsumersAreAwaited starts a replica that has never heard of its
// consumers: it is not ready, and tells nobody that a key is wrong that may be
// right.
func TestConsumersAreAwaited(t *testing.T) {
	t.Parallel()
	bin, consul := binaries(t), parts.StartConsul(t)
	echo := bin.StartEcho(t, parts.EchoOptions{Name: "echo", ID: "echo-1"})
	consul.Put("/v1/kv/proconsul/consumers/acme", fmt.Sprintf("api_keys: [{id: a, sha256: %s}]\n", identity.HashKey("key-acme")))
	consul.Freeze()
	r := bin.NewReplica(t, parts.ReplicaOptions{Config: fmt.Sprintf(`consul: {addr: %q}
kv: {consumers: proconsul/consumers/}
upstreams: [{name: echo, instances: [{address: %q}]}]
routes: [{name: echo, auth: {any_of: [api-key]}, upstream: {service: echo}}]
`, consul.Addr, echo.Addr)})
	r.Launch()
	parts.Eventually(t, patience, "it does not answer", func() bool { _, err := readyz(r); return err == nil })
	if code, err := readyz(r); code != http.StatusServiceUnavailable || err != nil {
		t.Errorf("/readyz: %d %v", code, err)
	}
	if code, reason := withKey(t, r.URL("/"), "key-acme"); code != 503 || reason != "auth_unavailable" {
		t.Errorf("before the consumers are known: %d %s", code, reason)
	}
	consul.Thaw()
	parts.Eventually(t, patience, "it never gets ready", func() bool { code, _ := readyz(r); return code == 200 })
	for key, want := range map[string]int{"key-acme": 200, "key-nobody": 401} {
		if code, _ := withKey(t, r.URL("/"), key); code != want {
			t.Errorf("%s: %d, want %d", key, code, want)
		}
	}
}
