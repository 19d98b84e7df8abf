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
	exitChanges = 2 // plan --detailed-exitcode: there are changes
)

// exit is how a command ends whose output has said it all.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

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
	ran := false
	onRun(root, func() { ran = true })
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !ran { // what cobra refuses is a matter of usage
		err = invalid{fmt.Errorf("%w\nsee '%s --help'", err, cmd.CommandPath())}
	}
	var code exit
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &fail{}):
	case errors.As(err, &invalid{}):
		fmt.Fprintln(stderr, err)
		return exitInvalid
	}
	fmt.Fprintln(stderr, "proconsul:", err)
	return exitFailed
}

// onRun has told called before any command does its work.
func onRun(cmd *cobra.Command, told func()) {
	if do := cmd.RunE; do != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			told()
			return do(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		onRun(sub, told)
	}
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
	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Run and configure:"},
		&cobra.Group{ID: "see", Title: "See a running gateway:"},
		&cobra.Group{ID: "act", Title: "Steer a running gateway:"},
	)
	for group, commands := range map[string][]*cobra.Command{
		"run": {runCommand(), demoCommand(), validateCommand(), configCommand(), keysCommand()},
		"see": {servicesCommand(), instancesCommand(), routesCommand(), explainCommand(), traceCommand(), eventsCommand(), overridesCommand(), healthcheckCommand()},
		"act": {reloadCommand(), planCommand(), drainCommand(), undrainCommand(), ejectCommand(), restoreCommand(), breakerCommand(), rateLimitCommand(), logLevelCommand()},
	} {
		for _, cmd := range commands {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	root.AddCommand(versionCommand())
	return root
}

// family returns a command that is there for those below it. Without the check
// cobra would answer one that does not exist with the help, and be content.
func family(name, short string) *cobra.Command {
	return &cobra.Command{
		Use:   name,
		Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage("unknown command %q for %q\nsee '%s --help'", args[0], cmd.CommandPath(), cmd.CommandPath())
			}
			return cmd.Help()
		},
	}
}

func usage(format string, args ...any) error { return invalid{fmt.Errorf(format, args...)} }
