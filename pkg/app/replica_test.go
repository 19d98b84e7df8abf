package app_test

import (
	"fmt"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/proconsul/proconsul/pkg/parts"
)

// patience is how long a test waits for what must come. It is long: only what
// never comes may fail on a machine that has other things to do.
const patience = time.Minute

// build builds the commands at the first test that needs them, once.
var build = sync.OnceValues(func() (parts.Binaries, error) {
	dir, err := os.MkdirTemp("", "proconsul-e2e-")
	if err != nil {
		return parts.Binaries{}, err
	}
	built = dir
	return parts.Build(dir)
})

var built string // what build made, to be removed

// TestMain fails the package where a gateway that ran in this process has left
// a goroutine behind. hystrix never ends those of a command.
func TestMain(m *testing.M) {
	code := m.Run()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if err := goleak.Find(
		goleak.IgnoreTopFunction("github.com/afex/hystrix-go/hystrix.(*metricExchange).Monitor"),
		goleak.IgnoreTopFunction("github.com/afex/hystrix-go/hystrix.(*poolMetrics).Monitor"),
	); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if built != "" {
		_ = os.RemoveAll(built)
	}
	os.Exit(code)
}

func binaries(t testing.TB) parts.Binaries {
	t.Helper()
	b, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// dependencies is the part of a configuration that names Consul and Redis; a
// nil Redis is none.
func dependencies(c *parts.Consul, r *parts.Redis) string {
	text := fmt.Sprintf("consul: {addr: %q}\nregistration: {enabled: true}\nshutdown: {delay: 0s, grace: 20s}\n", c.Addr)
	if r != nil {
		text += fmt.Sprintf("redis: {addr: %q}\n", r.Addr)
	}
	return text
}

// noFailures fails the test if a client of the load saw a failure.
func noFailures(t *testing.T, tally parts.Tally) {
	t.Helper()
	if tally.Failed() > 0 {
		t.Errorf("clients saw failures: %v", tally)
	}
}
