// Package parts starts the real parts that tests run against: a Consul agent, a
// redis-server, replicas of the gateway and sample services, each a process of
// its own on free loopback ports with a directory of its own, stopped when the
// test ends; and the load that counts what clients saw meanwhile. Only tests
// import it; it never downloads and never skips: a part that is missing fails
// the test with the way out.
package parts

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// given are the ports that this process has handed out.
var given struct {
	sync.Mutex
	ports map[int]bool
}

// FreePorts returns n loopback TCP ports that nobody listens on. They lie below
// those that kernels give to connections: one of these would be somebody's
// before the part that is to have it has started. None is returned twice.
func FreePorts(t testing.TB, n int) []int {
	t.Helper()
	given.Lock()
	defer given.Unlock()
	if given.ports == nil {
		given.ports = map[int]bool{}
	}
	var ports []int
	for tries := 0; len(ports) < n; tries++ {
		if tries == 10_000 {
			t.Fatal("no free port between 10000 and 32000")
		}
		port := 10_000 + rand.IntN(22_000)
		if given.ports[port] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue // somebody's
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		given.ports[port] = true
		ports = append(ports, port)
	}
	return ports
}

// CPU is the processor time that the test's own process has used so far.
func CPU(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Eventually calls ok until it returns true, and fails the test with what
// after the patience has run out.
func Eventually(t testing.TB, patience time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// startPatience is how long a part may take until it serves, on a machine that
// has other things to do.
const startPatience = time.Minute

// process is a part that can be stopped, killed, frozen and started again on
// the same ports.
type process struct {
	t     testing.TB
	path  string
	args  []string
	ready func() error

	// stdout and stderr are files that the part's output is appended to; empty:
	// it is kept for the message of a failed start only.
	stdout, stderr string
	env            []string // beside the test's own, see plainEnvironment

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

// Launch starts the part and does not wait until it serves, which it may never.
func (p *process) Launch() { p.t.Helper(); p.launch() }

func (p *process) launch() (cmd *exec.Cmd, out *bytes.Buffer, done <-chan struct{}) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	out = &bytes.Buffer{}
	cmd = exec.Command(p.path, p.args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(plainEnvironment(), p.env...)
	if p.stdout != "" {
		stdout, stderr := appendTo(p.t, p.stdout), appendTo(p.t, p.stderr)
		defer stdout.Close() // the part has its own
		defer stderr.Close()
		cmd.Stdout, cmd.Stderr = stdout, stderr
	}
	// The kernel ends the part with us, even where the test binary is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		p.t.Fatalf("start %s: %v", p.path, err)
	}
	ended := make(chan struct{})
	p.cmd, p.done = cmd, ended
	go func() { _ = cmd.Wait(); close(ended) }()
	return cmd, out, ended
}

func (p *process) start() {
	p.t.Helper()
	cmd, out, done := p.launch()
	deadline := time.Now().Add(startPatience)
	for {
		err := p.ready()
		if err == nil {
			return
		}
		select {
		case <-done:
			p.t.Fatalf("%s ended at start: %v\n%s%s", p.path, cmd.ProcessState, out, tail(p.stderr))
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			p.Kill()
			p.t.Fatalf("%s was not ready in %v: %v\n%s%s", p.path, startPatience, err, out, tail(p.stderr))
		}
	}
}

// plainEnvironment is the test's own without what would configure a part.
func plainEnvironment() []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "PROCONSUL_") || strings.HasPrefix(e, "CONSUL_")
	})
}

func (p *process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(s) // an ended process is what was asked for
	}
}

func (p *process) end(s syscall.Signal) {
	p.signal(syscall.SIGCONT)
	p.signal(s)
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	if done == nil {
		return
	}
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		p.signal(syscall.SIGKILL)
		<-done
	}
}

// Stop ends the part with SIGTERM and waits for it.
func (p *process) Stop() { p.end(syscall.SIGTERM) }

// Kill ends the part with SIGKILL and waits for it.
func (p *process) Kill() { p.end(syscall.SIGKILL) }

// Freeze stops the part's clock: it keeps its sockets and answers nothing.
func (p *process) Freeze() { p.signal(syscall.SIGSTOP) }

// Thaw ends Freeze.
func (p *process) Thaw() { p.signal(syscall.SIGCONT) }

// Signal sends s to the part and does not wait.
func (p *process) Signal(s syscall.Signal) { p.signal(s) }

// Wait waits until the part has ended by itself, and returns its exit code; -1
// where a signal ended it. It fails the test when the patience has run out.
func (p *process) Wait(patience time.Duration) int {
	p.t.Helper()
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	select {
	case <-done:
	case <-time.After(patience):
		p.t.Fatalf("%s had not ended after %v\n%s", p.path, patience, tail(p.stderr))
	}
	return cmd.ProcessState.ExitCode()
}

// Start starts the part again, on the same ports, and waits until it serves.
func (p *process) Start() { p.t.Helper(); p.start() }

// Consul is a running Consul agent.
type Consul struct {
	process
	Addr string // of the HTTP API, host:port
	Node string

	data string // the directory that its catalog is in
}

// ConsulPath is where the Consul that tests run is.
func ConsulPath(t testing.TB) string {
	t.Helper()
	path := os.Getenv("PROCONSUL_TEST_CONSUL")
	if path == "" {
		path = filepath.Join(moduleRoot(t), ".tools", "consul")
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("no Consul at %s: run `make tools` (it builds one), or set PROCONSUL_TEST_CONSUL to a consul binary", path)
	}
	return path
}

// StartConsul starts a single Consul server with its data on disk, so that it
// can be stopped and started again with its catalog. Further configuration may
// be given as JSON objects, which the agent merges.
func StartConsul(t testing.TB, extra ...string) *Consul {
	t.Helper()
	path := ConsulPath(t)
	dir := t.TempDir()
	p := FreePorts(t, 5)
	node := fmt.Sprintf("node-%d", p[0])
	config := fmt.Sprintf(`{"datacenter":"dc1","node_name":%q,"server":true,"bootstrap_expect":1,
"bind_addr":"127.0.0.1","client_addr":"127.0.0.1","data_dir":%q,"log_level":"warn",
"disable_update_check":true,"leave_on_terminate":false,"performance":{"raft_multiplier":1},
"ports":{"http":%d,"grpc":-1,"grpc_tls":-1,"dns":-1,"serf_lan":%d,"serf_wan":-1,"server":%d},
"limits":{"http_max_conns_per_client":2000}}`, node, filepath.Join(dir, "data"), p[0], p[1], p[2])
	args := []string{"agent", "-config-file", writeFile(t, dir, "agent.json", config)}
	for i, e := range extra {
		args = append(args, "-config-file", writeFile(t, dir, fmt.Sprintf("extra%d.json", i), e))
	}
	c := &Consul{Addr: fmt.Sprintf("127.0.0.1:%d", p[0]), Node: node, data: filepath.Join(dir, "data")}
	c.process = process{t: t, path: path, args: args, ready: func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.Addr+"/v1/catalog/node/"+node, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var b bytes.Buffer
		if _, err := b.ReadFrom(resp.Body); err != nil {
			return err
		}
		// The node is in the catalog only once there is a leader and the
		// agent has synced itself.
		if resp.StatusCode != http.StatusOK || !strings.Contains(b.String(), `"serfHealth"`) && !strings.Contains(b.String(), `"consul"`) {
			return fmt.Errorf("GET catalog/node: %s %s", resp.Status, b.String())
		}
		return nil
	}}
	t.Cleanup(c.Kill)
	c.start()
	return c
}

// Put sends a PUT to the agent's API, as Put("/v1/agent/check/fail/x", ""), and
// fails the test unless the answer is 200. It returns when Consul has answered.
func (c *Consul) Put(path, body string) {
	c.t.Helper()
	req, err := http.NewRequest(http.MethodPut, "http://"+c.Addr+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, _ = b.ReadFrom(resp.Body) // for the message only
	if resp.StatusCode != http.StatusOK {
		c.t.Fatalf("PUT %s: %s %s", path, resp.Status, b.String())
	}
}

// Redis is a running redis-server.
type Redis struct {
	process
	Addr string
}

// StartRedis starts a redis-server that persists nothing. Further arguments
// are passed on, as "--appendonly", "yes".
func StartRedis(t testing.TB, args ...string) *Redis {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal("no redis-server on PATH: run `make tools` as root, or install it (Debian, Ubuntu: apt-get install redis-server)")
	}
	port := FreePorts(t, 1)[0]
	r := &Redis{Addr: fmt.Sprintf("127.0.0.1:%d", port)}
	r.process = process{t: t, path: path, ready: func() error {
		conn, err := net.DialTimeout("tcp", r.Addr, time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if _, err := conn.Write([]byte("PING\r\n")); err != nil {
			return err
		}
		b := make([]byte, 64)
		n, err := conn.Read(b)
		if err != nil || !strings.HasPrefix(string(b[:n]), "+PONG") {
			return fmt.Errorf("PING: %q %v", b[:n], err)
		}
		return nil
	}}
	r.args = append([]string{"--port", fmt.Sprint(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
		"--dir", t.TempDir(), "--daemonize", "no"}, args...)
	t.Cleanup(r.Kill)
	r.start()
	return r
}

func writeFile(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// moduleRoot is the folder above the test's own that holds go.mod.
func moduleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod above the test's folder")
		}
		dir = parent
	}
}
