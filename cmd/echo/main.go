// Command echo is the sample service: it answers each request with what it
// saw, and registers itself with Consul. See package pkg/echo for what a
// request can ask of it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/proconsul/proconsul/consul"
	"github.com/proconsul/proconsul/pkg/echo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:]))
}

// run returns the exit code: 0 after an orderly end, 1 when it failed, 2 when
// it was asked wrongly.
func run(ctx context.Context, args []string) int {
	flags := flag.NewFlagSet("echo", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: echo [flags]\n\nA sample service that echoes requests and registers itself with Consul.")
		flags.PrintDefaults()
	}
	c := echo.Config{Meta: map[string]string{}, Log: slog.New(slog.NewJSONHandler(os.Stderr, nil))}
	flags.StringVar(&c.Name, "name", "echo", "service `name`")
	flags.StringVar(&c.ID, "id", "", "instance `id` (default NAME-HOST-PORT)")
	flags.StringVar(&c.Addr, "addr", "127.0.0.1", "`address` to listen on and to register; 0.0.0.0 registers the one that reaches Consul")
	flags.IntVar(&c.Port, "port", 0, "`port`; 0 picks a free one")
	flags.IntVar(&c.Weight, "weight", 1, "Consul `weight`")
	flags.Float64Var(&c.FailRate, "fail-rate", 0, "`share` of requests, 0 to 1, that get 500")
	flags.DurationVar(&c.Delay, "delay", 0, "wait before every answer")
	flags.IntVar(&c.Places, "places", 0, "how many requests are worked on at once, while others wait; 0 for all")
	flags.DurationVar(&c.CheckInterval, "check-interval", time.Second, "gap between Consul's health checks")
	flags.DurationVar(&c.DrainDelay, "drain-delay", 3*time.Second, "how long to serve on after deregistering; 0 for not at all")
	agent := flags.String("consul", "", "Consul `address` (default CONSUL_HTTP_ADDR, else 127.0.0.1:8500); \"none\" does not register")
	flags.Func("tags", "comma-separated `tags`", func(v string) error {
		c.Tags = append(c.Tags, split(v)...)
		return nil
	})
	flags.Func("tag", "one `tag` as it is, with its commas; may be repeated", func(v string) error {
		c.Tags = append(c.Tags, v)
		return nil
	})
	flags.Func("meta", "comma-separated `key=value` pairs", func(v string) error {
		for _, pair := range split(v) {
			key, value, ok := strings.Cut(pair, "=")
			if !ok || key == "" {
				return fmt.Errorf("%q is not key=value", pair)
			}
			c.Meta[key] = value
		}
		return nil
	})
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "echo: unexpected argument %q\n", flags.Arg(0))
		return 2
	}
	if c.DrainDelay == 0 {
		c.DrainDelay = -1
	}
	if *agent != "none" {
		c.Consul = &consul.Options{Addr: *agent}
	}
	if err := echo.Run(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func split(list string) []string {
	var items []string
	for item := range strings.SplitSeq(list, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}
