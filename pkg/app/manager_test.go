package app_test

import (
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/parts"
)

// A service manager hears when the gateway is ready, reloads, refuses a
// reload, lives, and goes down.
func TestTheServiceManagerHearsEverything(t *testing.T) {
	t.Parallel()
	bin := binaries(t)
	socket := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	alive := 0
	// next returns the next message that is not about being alive.
	next := func(beginning string) string {
		t.Helper()
		_ = c.SetReadDeadline(time.Now().Add(patience))
		for b := make([]byte, 8192); ; {
			n, err := c.Read(b)
			if err != nil {
				t.Fatalf("%v while waiting for %s", err, beginning)
			}
			text := string(b[:n])
			if text == "WATCHDOG=1" {
				alive++
				continue
			}
			if !strings.HasPrefix(text, beginning) {
				t.Fatalf("heard %q, want %s", text, beginning)
			}
			return text
		}
	}
	const routes = "consul: {disabled: true}\nshutdown: {delay: 0s, grace: 5s}\nupstreams: [{name: a, instances: [{address: \"127.0.0.1:1\"}]}]\nroutes:\n  - {name: a, match: {path: /a}, upstream: {service: a}}\n"
	r := bin.StartReplica(t, parts.ReplicaOptions{Config: routes, Args: []string{"--watch=false"},
		Env: []string{"NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=300000"}})
	if got := next("READY=1\n"); !strings.Contains(got, "STATUS=serving by configuration ") || !strings.HasSuffix(got, ", 1 routes") {
		t.Errorf("ready: %q", got)
	}

	r.Configure(routes + "  - {name: b, match: {path: /b}, upstream: {service: a}}\n")
	r.Signal(syscall.SIGHUP)
	if got := next("RELOADING=1\n"); !strings.Contains(got, "MONOTONIC_USEC=") {
		t.Errorf("a reload: %q", got)
	}
	if got := next("READY=1\n"); !strings.HasSuffix(got, ", 2 routes") {
		t.Errorf("after the reload: %q", got)
	}
	r.Configure("routs: []\n")
	r.Signal(syscall.SIGHUP)
	next("RELOADING=1\n")
	if got := next("READY=1\n"); !strings.Contains(got, "a newer one was refused") || !strings.Contains(got, "routs") {
		t.Errorf("after a reload that was refused: %q", got)
	}
	if s := r.MustStatus(); s.Config.State != "refused" || len(s.Config.Faults) == 0 || s.Config.Faults[0].Line == 0 || s.Config.Faults[0].Hint == "" {
		t.Errorf("the status says of it %+v", s.Config)
	}
	r.Signal(syscall.SIGTERM)
	next("STOPPING=1")
	if code := r.Wait(patience); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if alive == 0 {
		t.Error("the watchdog heard nothing")
	}
}
