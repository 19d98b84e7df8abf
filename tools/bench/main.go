//go:build linux

// Command bench compares what a proxied request costs here and in nginx,
// HAProxy and Caddy, on one machine, in one interleaved run: make bench.
//
// Load and backend share one core, the proxy under test has the other alone.
// All proxies run all the time; each round measures each of them once, so that
// a machine whose speed drifts drifts for all. What is compared is processor
// time per request, user and system, as the kernel accounts it: it holds on a
// machine with neighbours, where wall time does not. A measurement beside
// which other processes used more than a seventh of a core is taken again.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
)

// options are what a run can be told.
type options struct {
	rounds  int
	length  time.Duration
	only    string
	targets string
	report  string
	traefik string
	rate    int
}

// own are the parts of the benchmark that run as processes on a core of their own.
var own = map[string]func(args []string) error{"paced": paced, "syslog": syslogServer}

func main() {
	if len(os.Args) > 1 && own[os.Args[1]] != nil {
		if err := own[os.Args[1]](os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "measurements of each cell")
	flag.DurationVar(&o.length, "length", 3*time.Second, "of one measurement")
	flag.StringVar(&o.only, "only", "", "experiments to run, by name, with commas between them; empty: all")
	flag.StringVar(&o.targets, "targets", "", "targets to run, likewise")
	flag.StringVar(&o.report, "report", "", "document whose tables are replaced")
	flag.StringVar(&o.traefik, "traefik", "", "a traefik binary to compare with, where there is one")
	flag.IntVar(&o.rate, "rate", 3000, "requests a second of the experiments with a fixed rate")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	for _, tool := range []string{"nginx", "haproxy", "caddy", "wrk", "taskset"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed: deploy/scripts/install-bench.sh brings it on Debian", tool)
		}
	}
	dir, err := os.MkdirTemp("", "proconsul-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // nginx's worker is another user
		return err
	}
	gateway := filepath.Join(dir, "proconsul")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", gateway, "./cmd/proconsul")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the gateway: %w\n%s", err, out)
	}
	b := &bench{options: o, dir: dir, gateway: gateway, ctx: ctx}
	defer b.stop()
	if err := b.startBackend(); err != nil {
		return err
	}
	results, err := b.all()
	if err != nil {
		return err
	}
	fmt.Println(b.markdown(results, ""))
	if o.report != "" {
		return replace(o.report, func(old string) string { return b.markdown(results, old) })
	}
	return nil
}

// chosen reports whether a name is in a flag's list, or the list is empty.
func chosen(list, name string) bool {
	if list == "" {
		return true
	}
	for _, n := range strings.Split(list, ",") {
		if n == name {
			return true
		}
	}
	return false
}
