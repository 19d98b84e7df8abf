// Command proconsul is the gateway: an API gateway that asks Consul who is
// alive and proxies to them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the build, see the Makefile.
var version = "dev"

// Exit codes of every command.
const (
	exitOK      = 0
	exitFailed  = 1
	exitInvalid = 2 // bad usage or a configuration that is not valid
)

// invalid marks an error that is the caller's to mend: exit code 2.
type invalid struct{ error }

func (e invalid) Unwrap() error { return e.error }

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is main with its surroundings as parameters, for tests.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signalContext()
	defer stop()
	root := newRoot(stdout, stderr)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &invalid{}):
		fmt.Fprintln(stderr, err)
		return exitInvalid
	}
	fmt.Fprintln(stderr, "proconsul:", err)
	return exitFailed
}

// signalContext ends with the first SIGINT or SIGTERM, which asks for a clean
// stop; the second ends the process at once.
func signalContext() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		<-signals
		os.Exit(exitFailed)
	}()
	return ctx, cancel
}

func newRoot(stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "proconsul",
		Short: "An API gateway that asks Consul who is alive and proxies to them",
		Long: `Proconsul is an API gateway for services that register themselves in Consul.

It watches the health-checked catalog with blocking queries, keeps pools of live
instances, and proxies to them with circuit breakers and rate limits that all
replicas share.`,
		Example:       "  proconsul demo\n  proconsul run -c /etc/proconsul/proconsul.yaml\n  proconsul validate -c proconsul.yaml",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return invalid{fmt.Errorf("%w\nsee '%s --help'", err, c.CommandPath())}
	})
	root.AddCommand(runCommand(), demoCommand(), validateCommand(), configCommand(), healthcheckCommand(), versionCommand())
	return root
}

func usage(format string, args ...any) error { return invalid{fmt.Errorf(format, args...)} }
