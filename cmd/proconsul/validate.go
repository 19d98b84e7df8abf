package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/proconsul/proconsul/config"
)

func validateCommand() *cobra.Command {
	var from configFlags
	var strict bool
	var format string
	cmd := &cobra.Command{
		Use:   "validate",
		Short: "Check a configuration and list every fault",
		Long: `Reads a configuration as run would and lists every fault at once, with its file,
line, column, key path and a hint. Nothing is started. Exit code 2 if it is not
valid.`,
		Example: "  proconsul validate -c proconsul.yaml\n  proconsul validate -c conf.d/ -o github",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains([]string{"text", "json", "github"}, format) {
				return usage("-o %s: want text, json or github", format)
			}
			o, err := from.options()
			if err != nil {
				return err
			}
			cfg, err := config.Load(from.path, o)
			var found *config.Faults
			switch {
			case err == nil:
				found = cfg.Warnings
			case !errors.As(err, &found):
				return invalid{err}
			}
			if err := found.Write(cmd.OutOrStdout(), format); err != nil {
				return err
			}
			if err != nil || strict && found.Len() > 0 {
				return invalid{errors.New(from.path + " is not valid")}
			}
			if format == "text" {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is valid: %d routes, %d upstreams\n", from.path, len(cfg.Routes), len(cfg.Upstreams))
			}
			return nil
		},
	}
	from.add(cmd)
	cmd.Flags().BoolVar(&strict, "strict", false, "warnings are faults")
	cmd.Flags().StringVarP(&format, "output", "o", "text", "text, json or github")
	return cmd
}

func configCommand() *cobra.Command {
	cmd := family("config", "Look at the configuration")
	var from configFlags
	var o config.PrintOptions
	print := &cobra.Command{
		Use:     "print",
		Short:   "Print the configuration as the gateway understands it, with secrets masked",
		Example: "  proconsul config print -c proconsul.yaml --defaults --sources",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := from.load()
			if err != nil {
				return err
			}
			return cfg.Print(cmd.OutOrStdout(), o)
		},
	}
	from.add(print)
	print.Flags().BoolVar(&o.Defaults, "defaults", false, "also print what nobody wrote")
	print.Flags().BoolVar(&o.Sources, "sources", false, "say where each value comes from")
	schema := &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of configurations, for editors",
		Long: `Prints the JSON Schema of configurations. Editors complete and check a file that
begins with "# yaml-language-server: $schema=./proconsul.schema.json".`,
		Example: "  proconsul config schema > proconsul.schema.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(config.Schema())
			return err
		},
	}
	cmd.AddCommand(print, schema)
	return cmd
}
