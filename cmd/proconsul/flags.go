package main

import (
	"os"

	"github.com/spf13/cobra"
)

// addressFlag adds the flag that names the admin listener of the gateway to
// talk to.
func addressFlag(cmd *cobra.Command, address *string) {
	preset := os.Getenv("PROCONSUL_ADDR")
	if preset == "" {
		preset = "127.0.0.1:8081"
	}
	cmd.Flags().StringVar(address, "address", preset, "the gateway's admin address (PROCONSUL_ADDR)")
}
