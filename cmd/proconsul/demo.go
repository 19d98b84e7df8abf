package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/proconsul/proconsul/pkg/demo"
)

func demoCommand() *cobra.Command {
	var o demo.Options
	var verbose bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run the gateway with everything it needs embedded",
		Long: `Runs the gateway with a Consul API, a Redis and sample services in one process, some
traffic, and keys that break things. It needs nothing installed, leaves nothing
behind and binds loopback addresses only. A default port that is taken is
replaced by a free one.`,
		Example: "  proconsul demo\n  proconsul demo --listen 127.0.0.1:9090 --admin 127.0.0.1:9091",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Version, o.Command = version, os.Args[0]
			o.Out = cmd.OutOrStdout()
			o.Log = slog.New(slog.DiscardHandler)
			if verbose {
				o.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			}
			keys, restore := terminalKeys(os.Stdin)
			defer restore()
			o.Keys = keys
			return demo.Run(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.Listen, "listen", demo.DefaultListen, "public address")
	cmd.Flags().StringVar(&o.Admin, "admin", demo.DefaultAdmin, "admin address")
	cmd.Flags().IntVar(&o.Traffic, "traffic", 40, "synthetic requests a second")
	cmd.Flags().BoolVar(&verbose, "verbose", false, "print the gateway's log to standard error")
	return cmd
}
