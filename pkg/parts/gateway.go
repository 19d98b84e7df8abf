package parts

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/admin"
)

// Binaries are the project's commands, built for tests.
type Binaries struct{ dir string }

// Build builds ./cmd/... into dir, with the race detector: a replica that runs
// into a data race ends with exit code 66, which fails its test. Build once
// per test binary (TestMain, sync.OnceValues); it takes seconds.
func Build(dir string) (Binaries, error) {
	cmd := exec.Command("go", "build", "-race", "-o", dir+string(filepath.Separator), module+"/cmd/...")
	if out, err := cmd.CombinedOutput(); err != nil {
		return Binaries{}, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return Binaries{dir: dir}, nil
}

const module = "github.com/proconsul/proconsul"

// Proconsul is the path of the gateway's command.
func (b Binaries) Proconsul() string { return filepath.Join(b.dir, "proconsul") }

// Echo is the path of the sample service's command.
func (b Binaries) Echo() string { return filepath.Join(b.dir, "echo") }

// ReplicaOptions are what a replica of the gateway is started with.
type ReplicaOptions struct {
	// Config is the configuration without version, listen and admin, which
	// StartReplica writes in front of it.
	Config string
	// Addr is the public listener's; empty: one with a free port.
	Addr string
	// Listener is more keys of the public listener, as
	// `trusted_proxies: [127.0.0.1/32]`.
	Listener string
	// Tokens is the list of admin.tokens in YAML, as
	// `[{name: test, role: operator, token: secret}]`.
	Tokens string
	Args   []string // further flags of proconsul run
	Env    []string // NAME=value, beside the test's own
}

// Replica is a running gateway.
type Replica struct {
	process
	Addr  string // public, host:port
	Admin string // host:port
	Path  string // of the configuration file

	head string
}

// StartReplica starts `proconsul run` on free ports and waits until it is
// ready. When the test ends it is killed, and its log is printed if the test
// has failed.
func (b Binaries) StartReplica(t testing.TB, o ReplicaOptions) *Replica {
	t.Helper()
	r := b.NewReplica(t, o)
	r.start()
	return r
}

// NewReplica prepares what StartReplica starts.
func (b Binaries) NewReplica(t testing.TB, o ReplicaOptions) *Replica {
	t.Helper()
	dir := t.TempDir()
	ports := FreePorts(t, 2)
	r := &Replica{Addr: fmt.Sprintf("127.0.0.1:%d", ports[0]), Admin: fmt.Sprintf("127.0.0.1:%d", ports[1]),
		Path: filepath.Join(dir, "conf", "proconsul.yaml")}
	if err := os.Mkdir(filepath.Dir(r.Path), 0o700); err != nil {
		t.Fatal(err)
	}
	if o.Addr != "" {
		r.Addr = o.Addr
	}
	listener := fmt.Sprintf("name: public, addr: %q", r.Addr)
	if o.Listener != "" {
		listener += ", " + o.Listener
	}
	tokens := o.Tokens
	if tokens == "" {
		tokens = "[]"
	}
	r.head = fmt.Sprintf("version: 1\nlisten: [{%s}]\nadmin: {addr: %q, tokens: %s}\n", listener, r.Admin, tokens)
	r.process = process{t: t, path: b.Proconsul(), args: append([]string{"run", "-c", r.Path}, o.Args...), env: o.Env,
		stdout: filepath.Join(dir, "stdout"), stderr: filepath.Join(dir, "stderr"), ready: r.isReady}
	r.Configure(o.Config)
	t.Cleanup(func() { r.end(syscall.SIGKILL); r.report("replica " + r.Addr) })
	return r
}

func (r *Replica) isReady() error {
	resp, err := get("http://" + r.Admin + "/readyz")
	if err != nil {
		return err
	}
	if resp.code != http.StatusOK {
		return fmt.Errorf("/readyz: %d %s", resp.code, resp.body)
	}
	return nil
}

// Configure replaces the configuration file as editors and ConfigMaps do, by a
// rename. The text is that of ReplicaOptions.Config.
func (r *Replica) Configure(text string) {
	r.t.Helper()
	next := r.Path + ".new"
	if err := os.WriteFile(next, []byte(r.head+text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(next, r.Path); err != nil {
		r.t.Fatal(err)
	}
}

// URL returns the address of a path on the public listener.
func (r *Replica) URL(path string) string { return "http://" + r.Addr + path }

// Status asks for the status; the error is that of a replica which does not
// answer.
func (r *Replica) Status() (admin.Status, error) { return Status(r.Admin) }

// Status asks the gateway whose admin listener is at addr for its status.
func Status(addr string) (admin.Status, error) {
	var s admin.Status
	resp, err := get("http://" + addr + "/api/v1/status")
	if err != nil {
		return s, err
	}
	if resp.code != http.StatusOK {
		return s, fmt.Errorf("status: %d %s", resp.code, resp.body)
	}
	return s, json.Unmarshal(resp.body, &s)
}

// MustStatus is Status of a replica that has to answer.
func (r *Replica) MustStatus() admin.Status {
	r.t.Helper()
	s, err := r.Status()
	if err != nil {
		r.t.Fatalf("replica %s: %v", r.Addr, err)
	}
	return s
}

// Upstream returns the row of the upstream of that name; the zero row where
// there is none.
func (r *Replica) Upstream(name string) admin.Upstream {
	r.t.Helper()
	for _, u := range r.MustStatus().Upstreams {
		if u.Name == name {
			return u
		}
	}
	return admin.Upstream{}
}

// AwaitUsable waits until the upstream has exactly n instances that may be
// picked.
func (r *Replica) AwaitUsable(upstream string, n int) {
	r.t.Helper()
	Eventually(r.t, startPatience, fmt.Sprintf("replica %s has not come to %d usable instances of %s", r.Addr, n, upstream), func() bool {
		u := r.Upstream(upstream)
		return u.Name != "" && u.Usable == n
	})
}

// Metric returns the sum of the samples whose series contains every one of
// parts, the first being the name of the family: Metric("proconsul_consul_up").
// ok is false where there is no such series.
func (r *Replica) Metric(family string, labels ...string) (sum float64, ok bool) {
	r.t.Helper()
	resp, err := get("http://" + r.Admin + "/metrics")
	if err != nil || resp.code != http.StatusOK {
		r.t.Fatalf("replica %s: metrics: %d %v", r.Addr, resp.code, err)
	}
	for line := range strings.Lines(string(resp.body)) {
		series, value, found := cutLast(strings.TrimSpace(line), " ")
		name, _, _ := strings.Cut(series, "{")
		if !found || name != family || !containsAll(series, labels) {
			continue
		}
		var v float64
		if _, err := fmt.Sscan(value, &v); err != nil {
			r.t.Fatalf("metrics: %q: %v", line, err)
		}
		sum, ok = sum+v, true
	}
	return sum, ok
}

// Series returns how many series the gateway whose admin listener is at addr
// exposes.
func Series(addr string) (int, error) {
	resp, err := get("http://" + addr + "/metrics")
	if err != nil {
		return 0, err
	}
	if resp.code != http.StatusOK {
		return 0, fmt.Errorf("metrics: %d %s", resp.code, resp.body)
	}
	n := 0
	for line := range strings.Lines(string(resp.body)) {
		if !strings.HasPrefix(line, "#") {
			n++
		}
	}
	return n, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func containsAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// Log returns what the replica has logged so far; access lines are apart.
func (r *Replica) Log() string { return read(r.stderr) }

// AccessLog returns the access lines written so far.
func (r *Replica) AccessLog() string { return read(r.stdout) }

// EchoOptions are what an instance of the sample service is started with.
type EchoOptions struct {
	Consul string // address of the agent; empty: it does not register
	Name   string // of the service
	ID     string // of the instance
	Weight int    // 0: 1
	Args   []string
	// Everywhere makes the one process answer at every loopback address, so
	// that it can be registered as many instances.
	Everywhere bool
}

// Echo is a running instance of the sample service.
type Echo struct {
	process
	Addr string // host:port
	Port int
	ID   string
}

// StartEcho starts cmd/echo on a free port, which it keeps over restarts, and
// waits until it serves. Whether it is registered yet is for the replicas to
// say: see Replica.AwaitUsable.
func (b Binaries) StartEcho(t testing.TB, o EchoOptions) *Echo {
	t.Helper()
	dir := t.TempDir()
	port := FreePorts(t, 1)[0]
	e := &Echo{Addr: fmt.Sprintf("127.0.0.1:%d", port), Port: port, ID: o.ID}
	agent := o.Consul
	if agent == "" {
		agent = "none"
	}
	args := append([]string{"-name", o.Name, "-id", o.ID, "-port", fmt.Sprint(port), "-weight", fmt.Sprint(max(o.Weight, 1)),
		"-consul", agent, "-drain-delay", "500ms"}, o.Args...)
	if o.Everywhere {
		args = append(args, "-addr", "0.0.0.0")
	}
	e.process = process{t: t, path: b.Echo(), args: args,
		stdout: filepath.Join(dir, "stdout"), stderr: filepath.Join(dir, "stderr"), ready: func() error {
			resp, err := get("http://" + e.Addr + "/healthz")
			if err == nil && resp.code != http.StatusOK {
				err = fmt.Errorf("/healthz: %d", resp.code)
			}
			return err
		}}
	t.Cleanup(func() { e.end(syscall.SIGKILL); e.report("echo " + o.ID) })
	e.start()
	return e
}

// SetHealthy makes the instance's health check pass or fail.
func (e *Echo) SetHealthy(ok bool) {
	e.t.Helper()
	req, err := http.NewRequest(http.MethodPut, fmt.Sprintf("http://%s/healthz?ok=%t", e.Addr, ok), nil)
	if err != nil {
		e.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		e.t.Fatalf("echo %s: %v", e.ID, err)
	}
	resp.Body.Close()
}

// report prints the part's log if the test has failed, and fails it if the race
// detector ended the part.
func (p *process) report(name string) {
	if log := read(p.stderr); strings.Contains(log, "WARNING: DATA RACE") {
		p.t.Errorf("%s: data race", name)
	}
	if p.t.Failed() {
		p.t.Logf("log of %s:\n%s", name, tail(p.stderr))
	}
}

// tailed is how much of a log a failed test shows.
const tailed = 12 << 10

func tail(path string) string {
	text := read(path)
	if len(text) > tailed {
		text = "...\n" + text[len(text)-tailed:]
	}
	return text
}

func read(path string) string {
	if path == "" {
		return ""
	}
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err.Error()
	}
	return string(b)
}

func appendTo(t testing.TB, path string) *os.File {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

type answer struct {
	code int
	body []byte
}

// get asks once, and never for long.
func get(url string) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return answer{}, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, err = io.Copy(&b, resp.Body)
	return answer{code: resp.StatusCode, body: b.Bytes()}, err
}
