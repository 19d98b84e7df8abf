package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/proconsul/proconsul/pkg/admin/client"
)

// remote is what every command has that talks to a running gateway.
type remote struct {
	gatewayFlags
	token            string
	output, template string
	watch            bool
	interval         time.Duration
}

// add adds the flags by which a command finds its gateway.
func (r *remote) add(cmd *cobra.Command) {
	r.gatewayFlags.add(cmd)
	cmd.Flags().StringVar(&r.token, "token", "", "admin token (PROCONSUL_TOKEN, or a file: PROCONSUL_TOKEN_FILE)")
}

// addOutput adds the flags that say how a command prints what it was told.
func (r *remote) addOutput(cmd *cobra.Command) {
	r.add(cmd)
	cmd.Flags().StringVarP(&r.output, "output", "o", "table", "table, wide, json or yaml")
	cmd.Flags().StringVarP(&r.template, "template", "t", "", "Go template for the JSON, as '{{range .}}{{.name}}{{end}}'")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "wide", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
}

// addWatch adds the flags of commands that can repeat themselves.
func (r *remote) addWatch(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&r.watch, "watch", "w", false, "repeat until interrupted")
	cmd.Flags().DurationVar(&r.interval, "interval", time.Second, "of --watch")
}

// client returns the client that the flags and the environment ask for.
func (r *remote) client() (*client.Client, error) {
	if r.output != "" && !slices.Contains([]string{"table", "wide", "json", "yaml"}, r.output) {
		return nil, usage("-o %s: want table, wide, json or yaml", r.output)
	}
	if r.watch && r.interval < 100*time.Millisecond {
		return nil, usage("--interval %v: want at least 100ms", r.interval)
	}
	token := r.token
	if token == "" {
		token = os.Getenv("PROCONSUL_TOKEN")
	}
	if path := os.Getenv("PROCONSUL_TOKEN_FILE"); token == "" && path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, usage("PROCONSUL_TOKEN_FILE: %w", err)
		}
		token = strings.TrimSpace(string(text))
	}
	return r.gatewayFlags.client(client.Options{Token: token})
}

// told adds to a gateway's error what its caller can do about it.
func told(err error) error {
	var e *client.Error
	switch {
	case err == nil || errors.As(err, &invalid{}):
		return err
	case errors.As(err, &e) && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden):
		return fmt.Errorf("%s\nset --token, PROCONSUL_TOKEN or PROCONSUL_TOKEN_FILE to one of the gateway's admin.tokens that allows this, or show a certificate by --client-cert", e.Title)
	case errors.As(err, &e) && (e.Status == http.StatusBadRequest || e.Status == http.StatusNotFound):
		return invalid{fmt.Errorf("proconsul: %w", err)} // the caller's to mend
	case errors.As(err, &e):
		return err
	}
	return fmt.Errorf("%w\nis it running? its admin address is --address or PROCONSUL_ADDR", err)
}

// show fetches and prints, once or until interrupted. print writes what fetch
// returned as text for people.
func show[T any](cmd *cobra.Command, r *remote, fetch func(c *client.Client) (T, error), print func(p *paper, v T)) error {
	c, err := r.client()
	if err != nil {
		return err
	}
	once := func() error {
		v, err := fetch(c)
		if err != nil {
			return told(err)
		}
		var page bytes.Buffer
		if err := r.render(&page, cmd.OutOrStdout(), v, func(p *paper) { print(p, v) }); err != nil {
			return err
		}
		if r.watch && isTerminal(cmd.OutOrStdout()) && r.output != "json" && r.output != "yaml" {
			fmt.Fprint(cmd.OutOrStdout(), "\x1b[H\x1b[2J") // home, clear
		}
		_, err = cmd.OutOrStdout().Write(page.Bytes())
		return err
	}
	if !r.watch {
		return once()
	}
	tick := time.NewTicker(r.interval)
	defer tick.Stop()
	for first := true; ; first = false {
		if err := once(); err != nil {
			if cmd.Context().Err() != nil {
				return nil
			}
			if first || errors.As(err, &invalid{}) {
				return err
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "proconsul:", err) // it may come back
		}
		select {
		case <-cmd.Context().Done():
			return nil
		case <-tick.C:
		}
		if !isTerminal(cmd.OutOrStdout()) && r.output != "json" {
			fmt.Fprintln(cmd.OutOrStdout())
		}
	}
}

// render writes v in the form that the flags ask for.
func (r *remote) render(w io.Writer, screen io.Writer, v any, print func(p *paper)) error {
	if r.template != "" {
		return renderTemplate(w, r.template, v)
	}
	switch r.output {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "yaml":
		return renderYAML(w, v)
	}
	p := &paper{w: w, wide: r.output == "wide", color: colored(screen)}
	print(p)
	return p.err
}

// renderYAML writes the JSON of v as YAML, in its order.
func renderYAML(w io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var n yaml.Node
	if err := yaml.Unmarshal(text, &n); err != nil { // JSON is YAML
		return err
	}
	block(&n)
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	return e.Encode(&n)
}

func block(n *yaml.Node) {
	n.Style &^= yaml.FlowStyle | yaml.DoubleQuotedStyle
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
		n.SetString(n.Value) // quoted where it has to be
	}
	for _, c := range n.Content {
		block(c)
	}
}

// renderTemplate runs a template over the JSON of v, whose names are those that
// -o json shows.
func renderTemplate(w io.Writer, text string, v any) error {
	t, err := template.New("--template").Parse(strings.NewReplacer(`\n`, "\n", `\t`, "\t").Replace(text))
	if err != nil {
		return invalid{err}
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var tree any
	if err := json.Unmarshal(b, &tree); err != nil {
		return err
	}
	var out strings.Builder
	if err := t.Execute(&out, tree); err != nil {
		return invalid{err}
	}
	_, err = fmt.Fprintln(w, strings.TrimSuffix(out.String(), "\n"))
	return err
}
