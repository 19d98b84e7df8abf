package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/app"
)

var update = flag.Bool("update", false, "write the transcripts anew")

const steered = `version: 1
listen: [{name: public, addr: "127.0.0.1:0"}]
admin: {addr: "127.0.0.1:0", tokens: [{name: sre, role: operator, token: op-secret}, {name: graphs, role: viewer, token: view-secret}]}
consul: {disabled: true}
shutdown: {delay: 0s, grace: 1s}
policies:
  - {name: public, rate_limit: {by: api_key, limits: [5/2h]}}
upstreams:
  - {name: orders, instances: [{address: "127.0.0.1:7001", weight: 10}, {address: "127.0.0.1:7002", weight: 5}, {address: "127.0.0.1:7003", weight: 5}]}
  - {name: users, balance: round_robin, instances: [{address: "127.0.0.1:7011"}]}
routes:
  - {name: orders, match: {host: shop.example.com, path: "/api/orders/**", methods: [GET, POST]}, use: [public], upstream: {service: orders, strip: /api/orders}}
  - {name: orders-beta, match: {host: shop.example.com, path: "/api/orders/**", headers: [{name: X-Beta, value: "1"}]}, upstream: {service: orders, prepend: /beta}}
  - {name: users, match: {path: "/api/users/**"}, upstream: {service: users}}
  - {name: old, match: {host: old.example.com}, redirect: {to: "https://shop.example.com{path}", code: 308}}
  - {name: root, match: {path: "/**", methods: [GET]}, upstream: {service: users}}
`

// steer starts a gateway in this process and makes it the one that commands
// find. A reload reads the file at path.
func steer(t *testing.T) (path string) {
	t.Helper()
	path = write(t, "gateway.yaml", steered)
	load := func() (*config.Config, error) { return config.Load(path, config.LoadOptions{Pure: true}) }
	cfg, err := load()
	if err != nil {
		t.Fatal(err)
	}
	level := new(slog.LevelVar)
	a, err := app.New(cfg, app.Options{Version: "v0.0.0-test", Log: slog.New(slog.DiscardHandler), AccessLog: io.Discard, Load: load, Level: level})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	<-a.Ready()
	t.Setenv("PROCONSUL_ADDR", a.AdminAddr())
	t.Setenv("PROCONSUL_TOKEN", "op-secret")
	t.Setenv("NO_COLOR", "1")
	return path
}

// settled makes a transcript the same on every run.
func settled(text string) string {
	for _, r := range []struct{ pattern, with string }{
		{`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`, "TIME"},
		{`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`, "TIME"},
		{`\b(29m|30m|9m|10m|59m|1h)(\d+s|0m)?\b`, "LEFT"},
		{`proconsul-[0-9a-f]{8}`, "proconsul-ID"},
		{`\b[0-9a-f]{12}\b`, "HASH"},
		{`/\S*/gateway.yaml`, "gateway.yaml"},
		{`/\S*/next.yaml`, "next.yaml"},
		{`\b127\.0\.0\.1:\d{5}\b`, "ADMIN"},
	} {
		text = regexp.MustCompile(r.pattern).ReplaceAllString(text, r.with)
	}
	return regexp.MustCompile(` +LEFT`).ReplaceAllString(text, " LEFT")
}

// settledAll leaves the commands themselves as they are.
func settledAll(text string) string {
	var b strings.Builder
	for line := range strings.SplitAfterSeq(text, "\n") {
		if !strings.HasPrefix(line, "$ ") {
			line = settled(line)
		}
		b.WriteString(line)
	}
	return b.String()
}

// TestTranscripts runs the commands one after another against one gateway, and
// holds what they print, where, and how they end against the transcript.
func TestTranscripts(t *testing.T) {
	path := steer(t)
	next := filepath.Join(filepath.Dir(path), "next.yaml")
	if err := os.WriteFile(next, []byte(strings.NewReplacer("5/2h", "9/2h", "name: root", "name: rest", "weight: 10", "weight: 20").Replace(steered)), 0o600); err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(filepath.Dir(path), "bad", "next.yaml")
	if err := os.Mkdir(filepath.Dir(bad), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bad, []byte(strings.Replace(steered, "policies:", "polices:", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, line := range strings.Split(strings.TrimSpace(`
services
services -o wide
instances orders
instances nobody
routes
routes show orders
routes show nobody
explain GET http://shop.example.com/api/orders/./42?q=1 --ip 203.0.113.9 -H X-API-Key:k
explain PUT http://shop.example.com/api/orders/42
explain GET http://old.example.com/cart
explain GET http://shop.example.com/%2e%2e%2fetc
explain GET http://shop.example.com/api/orders/42 -H nonsense
drain orders/127.0.0.1:7001 --for 30m --reason new_kernel
drain orders/config/127.0.0.1:7001 --for 30m
eject orders/127.0.0.1:7002 --for 30m --reason odd_answers
drain orders/nobody
drain orders
drain
breaker open users --for 10m
breaker open nobody
overrides
instances orders
services
explain GET http://shop.example.com/api/orders/42 -H X-Beta:1 -o wide
explain GET http://a.example.com/api/users/1
undrain orders/127.0.0.1:7001
restore orders/127.0.0.1:7002
breaker reset users
overrides
ratelimit show orders k
ratelimit show orders
ratelimit reset orders k
ratelimit top
ratelimit top -n 0
plan NEXT
plan NEXT --detailed-exitcode
plan FILE --detailed-exitcode
plan BAD
plan BAD --detailed-exitcode
plan NEXT -o yaml
reload
log-level
log-level debug --for 10m
log-level loud
drain --self --for 30m
undrain --self
events
services -t {{range.}}{{.name}}\n{{end}}
instances users -o json
routes -o yaml
services -o xml
services --address nonsense/x
`), "\n") {
		args := strings.Fields(line)
		for i, a := range args {
			args[i] = strings.NewReplacer("NEXT", next, "FILE", path, "BAD", bad).Replace(a)
		}
		code, stdout, stderr := call(args...)
		fmt.Fprintf(&got, "$ proconsul %s\n", line)
		got.WriteString(stdout)
		for l := range strings.SplitSeq(strings.TrimSuffix(stderr, "\n"), "\n") {
			if l != "" {
				got.WriteString("! " + l + "\n")
			}
		}
		if code != 0 {
			fmt.Fprintf(&got, "exit %d\n", code)
		}
		got.WriteString("\n")
	}
	text := settledAll(got.String())
	golden := filepath.Join("testdata", "commands.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	a, b := strings.Split(string(want), "\n\n$ "), strings.Split(text, "\n\n$ ")
	if len(a) != len(b) {
		t.Errorf("%d commands, the transcript has %d; run with -update", len(b), len(a))
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			t.Errorf("got\n$ %s\n\nwant\n$ %s\n(-update writes the transcript anew)", b[i], a[i])
		}
	}
}

// Who reads JSON gets what the API says, as it says it.
func TestOutputsAgree(t *testing.T) {
	steer(t)
	for _, args := range [][]string{{"services"}, {"instances"}, {"routes"}, {"explain", "GET", "/api/users/1"}, {"overrides"}, {"events"}, {"ratelimit", "show", "orders", "k"}} {
		_, asJSON, _ := call(append(args, "-o", "json")...)
		_, asYAML, _ := call(append(args, "-o", "yaml")...)
		var a, b any
		if err := json.Unmarshal([]byte(asJSON), &a); err != nil {
			t.Fatalf("%v: %v in %s", args, err, asJSON)
		}
		if err := yaml.Unmarshal([]byte(asYAML), &b); err != nil {
			t.Fatalf("%v: %v in %s", args, err, asYAML)
		}
		// Numbers and times differ in type and by the moment, names do not.
		if x, y := keysOf(a), keysOf(b); x != y {
			t.Errorf("%v: JSON has\n%s\nYAML has\n%s", args, x, y)
		}
	}
}

func keysOf(v any) string {
	switch v := v.(type) {
	case map[string]any:
		var b strings.Builder
		text, _ := json.Marshal(v) // sorts the keys
		var order json.RawMessage = text
		d := json.NewDecoder(bytes.NewReader(order))
		_, _ = d.Token()
		for d.More() {
			key, _ := d.Token()
			b.WriteString(fmt.Sprint(key) + "{" + keysOf(v[fmt.Sprint(key)]) + "}")
			var skip json.RawMessage
			_ = d.Decode(&skip)
		}
		return b.String()
	case []any:
		var b strings.Builder
		for _, e := range v {
			b.WriteString("[" + keysOf(e) + "]")
		}
		return b.String()
	}
	return ""
}

func TestTokensAndRoles(t *testing.T) {
	steer(t)
	file := write(t, "token", "op-secret\n")
	for _, tc := range []struct {
		name, token, file, flag string
		code                    int
		want                    string
	}{
		{"of the environment", "op-secret", "", "", 0, "draining"},
		{"of a file", "", file, "", 0, "draining"},
		{"of a flag, which beats the others", "nonsense", file, "op-secret", 0, "draining"},
		{"none", "", "", "", 1, "--token"},
		{"wrong", "nonsense", "", "", 1, "--token"},
		{"a viewer's", "view-secret", "", "", 1, "does not allow"},
		{"a file that is not there", "", file + ".not", "", 2, "PROCONSUL_TOKEN_FILE"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("PROCONSUL_TOKEN", tc.token)
			t.Setenv("PROCONSUL_TOKEN_FILE", tc.file)
			args := []string{"drain", "--self"}
			if tc.flag != "" {
				args = append(args, "--token", tc.flag)
			}
			code, stdout, stderr := call(args...)
			if code != tc.code || stdout != "" || !strings.Contains(stderr, tc.want) || strings.Contains(stderr, "secret") {
				t.Errorf("exit %d: %s%s", code, stdout, stderr)
			}
		})
	}
}

func TestAGatewayThatIsNotThere(t *testing.T) {
	code, stdout, stderr := call("services", "--address", "127.0.0.1:1")
	if code != 1 || stdout != "" || !strings.Contains(stderr, "127.0.0.1:1: connection refused") || !strings.Contains(stderr, "PROCONSUL_ADDR") {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }))
	defer other.Close()
	if code, _, stderr := call("services", "--address", other.URL); code != 1 || !strings.Contains(stderr, "not a gateway's admin listener") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// What a service says of itself cannot steer the terminal.
func TestHostileTextStaysText(t *testing.T) {
	hostile := "\x1b[2J\x1b]0;owned\x07\nfake line\u202e"
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		in := admin.Instance{ID: "n/" + hostile, Address: hostile, State: "critical", Version: hostile, Zone: hostile, Tags: []string{hostile},
			Checks: []admin.Check{{Name: hostile, Status: "critical", Output: hostile}}}
		u := admin.Upstream{Name: hostile, Service: hostile, Health: "down", Instances: []admin.Instance{in}, Breaker: admin.Breaker{State: hostile}}
		var v any
		switch r.URL.Path {
		case "/api/v1/services":
			v = map[string]any{"services": []admin.Upstream{u}}
		case "/api/v1/instances":
			v = map[string]any{"instances": []admin.Instance{in}}
		case "/api/v1/events":
			v = map[string]any{"events": []admin.Event{{Seq: 1, At: time.Now(), Instance: hostile, Message: hostile}}}
		case "/api/v1/explain":
			v = admin.Explanation{Request: admin.Explained{Method: hostile, Path: hostile, Host: hostile}, PassedOver: []admin.PassedOver{{Route: hostile, Text: hostile}},
				Upstream: &admin.Considered{Name: hostile, Candidates: []admin.Candidate{{ID: hostile, Why: hostile}}}, Outcome: admin.Outcome{Answer: "refused", Detail: hostile}}
		default:
			w.WriteHeader(http.StatusTeapot)
			v = map[string]any{"title": hostile, "detail": hostile}
		}
		_ = json.NewEncoder(w).Encode(v)
	}))
	defer gateway.Close()
	for _, args := range [][]string{{"services", "-o", "wide"}, {"instances", "-o", "wide"}, {"events"}, {"explain", "GET", "/"}, {"routes"}} {
		_, stdout, stderr := call(append(args, "--address", gateway.URL)...)
		if strings.ContainsAny(stdout+stderr, "\x1b\x07\u202e") || strings.Contains(stdout+stderr, "\nfake line") {
			t.Errorf("%v prints %q %q", args, stdout, stderr)
		}
	}
}

func TestWatchGoesOnThroughAnOutage(t *testing.T) {
	var mu sync.Mutex
	calls := 0
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		calls++
		n := calls
		mu.Unlock()
		if n == 2 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, `{"services":[{"name":"call-%d"}]}`, n)
	}))
	defer gateway.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var out, notes output
	root := newRoot(&out, &notes)
	root.SetArgs([]string{"services", "--watch", "--interval", "100ms", "--address", gateway.URL})
	done := make(chan error, 1)
	go func() { done <- root.ExecuteContext(ctx) }()
	for deadline := time.Now().Add(patience); !strings.Contains(out.String(), "call-4"); {
		if time.Now().After(deadline) {
			t.Fatalf("it prints %s%s", out.String(), notes.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("ended with %v", err)
	}
	if text := out.String(); !strings.Contains(text, "call-1") || !strings.Contains(text, "call-3") || strings.Contains(text, "\x1b") {
		t.Errorf("it prints %q", text)
	}
	if !strings.Contains(notes.String(), "500") {
		t.Errorf("it does not tell of the outage: %q", notes.String())
	}
}

func TestColorsAreForTerminals(t *testing.T) {
	var plain, colored bytes.Buffer
	rows := [][]string{{"orders", "ok 2/2"}, {"users", "down 0/1"}}
	(&paper{w: &plain}).table([]string{"SERVICE", "HEALTH"}, rows)
	(&paper{w: &colored, color: true}).table([]string{"SERVICE", "HEALTH"}, rows)
	if strings.Contains(plain.String(), "\x1b") || strings.Count(colored.String(), "\x1b[") != 4 {
		t.Errorf("plain %q, colored %q", plain.String(), colored.String())
	}
	if got := regexp.MustCompile("\x1b\\[\\d+m").ReplaceAllString(colored.String(), ""); got != plain.String() {
		t.Errorf("colors move columns:\n%s\n%s", got, plain.String())
	}
}

func TestCompletionKnowsTheCommands(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if code, stdout, stderr := call("completion", shell); code != 0 || !strings.Contains(stdout, "proconsul") {
			t.Errorf("completion %s: exit %d: %s", shell, code, stderr)
		}
	}
	if _, stdout, _ := call("__complete", "services", "-o", ""); !strings.Contains(stdout, "yaml") {
		t.Errorf("formats complete to %q", stdout)
	}
}
