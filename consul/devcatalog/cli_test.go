package devcatalog_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/consul/devcatalog"
)

// consulBinary is the one that the other tests start agents of.
func consulBinary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("PROCONSUL_TEST_CONSUL"); path != "" {
		return path
	}
	path, err := filepath.Abs("../../.tools/consul")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// The consul command that people have works against it, as the demo promises.
func TestConsulCommand(t *testing.T) {
	t.Parallel()
	_, a := dev(t, devcatalog.Options{NodeName: "demo-node"})
	consul := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), consulBinary(t), args...)
		cmd.Env = append(os.Environ(), "CONSUL_HTTP_ADDR="+a.addr)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("consul %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	contains := func(got string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%q is not in:\n%s", w, got)
			}
		}
	}
	contains(consul("members"), "demo-node", "127.0.0.1:8301", "alive", "server", "1.15.3", "dc1")
	contains(consul("services", "register", "-name=cli", "-port=99", "-tag=x"), "Registered service: cli")
	contains(consul("catalog", "services", "-tags"), "cli", "x", "consul")
	contains(consul("catalog", "nodes", "-service=cli"), "demo-node")
	contains(consul("kv", "put", "config/a", "one"), "Success! Data written to: config/a")
	contains(consul("kv", "get", "config/a"), "one")
	contains(consul("maint", "-enable", "-service=cli", "-reason=upgrade"), "maintenance is now enabled")
	contains(consul("maint"), "cli", "upgrade")
	contains(consul("services", "deregister", "-id=cli"), "Deregistered service: cli")
}
