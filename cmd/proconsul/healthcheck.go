package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func healthcheckCommand() *cobra.Command {
	var ready bool
	var address string
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask a running gateway whether it lives (for container health checks)",
		Long: `Asks the admin listener's /livez, or /readyz with --ready, and exits 0 or 1.
An image without a shell or curl can use it as its health check.`,
		Example: "  proconsul healthcheck --ready --address 127.0.0.1:8081",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := "/livez"
			if ready {
				path = "/readyz"
			}
			url := "http://" + strings.TrimPrefix(address, "http://") + path
			req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, url, nil)
			if err != nil {
				return usage("address %q: %w", address, err)
			}
			client := http.Client{Timeout: 3 * time.Second}
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // for the message only
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s answered %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&ready, "ready", false, "ask whether it is ready for traffic, not only alive")
	addressFlag(cmd, &address)
	return cmd
}
