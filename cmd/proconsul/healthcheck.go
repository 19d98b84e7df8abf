package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/proconsul/proconsul/pkg/admin/client"
)

func healthcheckCommand() *cobra.Command {
	var ready bool
	var where gatewayFlags
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask a running gateway whether it lives (for container health checks)",
		Long: `Asks the admin listener's /livez, or /readyz with --ready, and exits 0 or 1.
An image without a shell or curl can use it as its health check.`,
		Example: "  proconsul healthcheck --ready --address 127.0.0.1:8081\n  proconsul healthcheck --address unix:/run/proconsul/admin.sock",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := where.client(client.Options{Timeout: 3 * time.Second})
			if err != nil {
				return err
			}
			if ready {
				return c.Ready(cmd.Context())
			}
			return c.Lives(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&ready, "ready", false, "ask whether it is ready for traffic, not only alive")
	where.add(cmd)
	return cmd
}
