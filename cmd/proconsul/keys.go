package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/proconsul/proconsul/pkg/identity"
)

func keysCommand() *cobra.Command {
	cmd := family("keys", "Make API keys for consumers")
	var consumer, id string
	flags := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&consumer, "consumer", "NAME", "the consumer whose key it is")
		c.Flags().StringVar(&id, "id", "", "what messages tell the key by (default: the consumer's name and -1)")
		return c
	}
	cmd.AddCommand(
		flags(&cobra.Command{
			Use:   "new",
			Short: "Make an API key and the stanza that goes into the configuration",
			Long: `Makes an API key of 256 random bits. The key is for the consumer, who sends it as
X-API-Key; the stanza is for the configuration, which has only the key's SHA-256.
The key is shown this once and stored nowhere.`,
			Example: "  proconsul keys new --consumer acme --id acme-2026",
			Args:    cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				key := identity.NewKey()
				fmt.Fprintf(cmd.OutOrStdout(), "# for the consumer, shown this once: %s\n", key)
				return stanza(cmd.OutOrStdout(), consumer, id, key)
			},
		}),
		flags(&cobra.Command{
			Use:   "hash",
			Short: "Read an API key from standard input and print the stanza for it",
			Long: `Reads an API key that exists already, one line on standard input, and prints the
stanza that goes into the configuration. An argument would stay in the shell's
history.`,
			Example: "  proconsul keys hash --consumer acme < key.txt",
			Args:    cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 4096)).ReadString('\n')
				if err != nil && !errors.Is(err, io.EOF) {
					return fmt.Errorf("read the key: %w", err)
				}
				key := strings.TrimRight(line, "\r\n")
				if len(key) < 16 {
					return usage("a key of %d characters can be guessed: want 16 at least, better one of proconsul keys new", len(key))
				}
				return stanza(cmd.OutOrStdout(), consumer, id, key)
			},
		}),
	)
	return cmd
}

// stanza prints what the configuration has of a key.
func stanza(w io.Writer, consumer, id, key string) error {
	if id == "" {
		id = consumer + "-1"
	}
	_, err := fmt.Fprintf(w, "consumers:\n  - name: %q\n    api_keys:\n      - {id: %q, sha256: %q}\n", consumer, id, identity.HashKey(key))
	return err
}
