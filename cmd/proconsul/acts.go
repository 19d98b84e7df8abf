package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/admin/client"
)

// orderFlags say how long an override holds, where, and why.
type orderFlags struct{ client.Order }

func (o *orderFlags) add(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&o.For, "for", 0, "how long it holds, 1s to 168h (default 1h)")
	cmd.Flags().StringVar(&o.Reason, "reason", "", "why, for the gateway's log and events")
}

// did writes what an act came to: a note, and so to standard error. Standard
// output is for data.
func did(cmd *cobra.Command, target string, d admin.Done) {
	text := target + " " + d.Result
	if len(d.Upstreams) > 0 && target != strings.Join(d.Upstreams, ", ") {
		text += " in " + strings.Join(d.Upstreams, ", ")
	}
	if !d.Until.IsZero() {
		text += ", for " + shortDuration(time.Until(d.Until))
	}
	if !d.Changed {
		text += " (as it was)"
	}
	fmt.Fprintln(cmd.ErrOrStderr(), printable(text))
}

// instanceCommand is an act on an instance, or with --self on the gateway.
func instanceCommand(act admin.InstanceAct, short, long, example string, self func(*cobra.Command, *client.Client, client.Order) (admin.Done, error)) *cobra.Command {
	var r remote
	var o orderFlags
	var itself bool
	cmd := &cobra.Command{
		Use:     string(act) + " SERVICE/INSTANCE",
		Short:   short,
		Long:    long,
		Example: example,
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if itself == (len(args) == 1) {
				if self != nil {
					return usage("want SERVICE/INSTANCE, or --self")
				}
				return usage("want SERVICE/INSTANCE")
			}
			c, err := r.client()
			if err != nil {
				return err
			}
			if itself {
				d, err := self(cmd, c, o.Order)
				if err == nil {
					did(cmd, "this gateway is", d)
				}
				return told(err)
			}
			id, err := findInstance(cmd, c, args[0])
			if err != nil {
				return told(err)
			}
			d, err := c.Instance(cmd.Context(), act, id, o.Order)
			if err == nil {
				did(cmd, id, d)
			}
			return told(err)
		},
	}
	r.add(cmd)
	if act == admin.Drain || act == admin.Eject {
		o.add(cmd)
	}
	cmd.Flags().StringVar(&o.Upstream, "upstream", "", "in this upstream only (default wherever the instance is)")
	if self != nil {
		cmd.Flags().BoolVar(&itself, "self", false, "the gateway itself instead of an instance")
	}
	return cmd
}

// findInstance returns the id of the instance that SERVICE/INSTANCE means: its
// whole id, NODE/SERVICE-ID, or the last part alone where that is enough.
func findInstance(cmd *cobra.Command, c *client.Client, name string) (string, error) {
	service, rest, ok := strings.Cut(name, "/")
	if !ok || service == "" || rest == "" {
		return "", usage("%q: want SERVICE/INSTANCE, as orders/orders-2", name)
	}
	list, err := c.Instances(cmd.Context(), service)
	if e := (*client.Error)(nil); errors.As(err, &e) && e.Status == 404 {
		// Not a service: perhaps the name is an instance's whole id.
		list, err = c.Instances(cmd.Context(), "")
		rest = name
	}
	if err != nil {
		return "", err
	}
	var ids []string
	for _, in := range list {
		_, short, _ := strings.Cut(in.ID, "/")
		if (in.ID == rest || in.ID == name || short == rest) && !slices.Contains(ids, in.ID) {
			ids = append(ids, in.ID)
		}
	}
	switch len(ids) {
	case 1:
		return ids[0], nil
	case 0:
		return "", usage("proconsul: %s: no such instance; 'proconsul instances' lists them", name)
	}
	return "", usage("proconsul: %s may be any of %s: give the whole id", name, strings.Join(ids, ", "))
}

func drainCommand() *cobra.Command {
	return instanceCommand(admin.Drain, "Send an instance, or this gateway, no more requests for a while",
		`Takes an instance out of its pools: it is sent no new requests, and those in
flight finish. It stays out through new registrations and reloads until the time
is up or undrain is called. With --self the gateway turns unready, deregisters
and sends clients to other replicas; what arrives all the same is served.`,
		"  proconsul drain orders/orders-2 --for 30m --reason 'new kernel'\n  proconsul drain --self",
		func(cmd *cobra.Command, c *client.Client, o client.Order) (admin.Done, error) {
			return c.Drain(cmd.Context(), o)
		})
}

func undrainCommand() *cobra.Command {
	return instanceCommand(admin.Undrain, "End a drain", "", "  proconsul undrain orders/orders-2\n  proconsul undrain --self",
		func(cmd *cobra.Command, c *client.Client, _ client.Order) (admin.Done, error) {
			return c.Undrain(cmd.Context())
		})
}

func ejectCommand() *cobra.Command {
	return instanceCommand(admin.Eject, "Eject an instance; it comes back after a probe",
		"Takes an instance out of its pools as its own failures would. When the time is up\nit has to pass a probe.", "  proconsul eject orders/orders-2 --for 10m", nil)
}

func restoreCommand() *cobra.Command {
	return instanceCommand(admin.Restore, "Let an ejected instance in at once", "", "  proconsul restore orders/orders-2", nil)
}

func breakerCommand() *cobra.Command {
	cmd := family("breaker", "Hold a circuit breaker open or closed, or reset it")
	for _, b := range []struct {
		act   admin.BreakerAct
		short string
		timed bool
	}{
		{admin.BreakerOpen, "Refuse every request to an upstream for a while", true},
		{admin.BreakerClose, "Let every request to an upstream pass for a while, whatever happens to it", true},
		{admin.BreakerReset, "Let a breaker go by its numbers again, from zero", false},
	} {
		var r remote
		var o orderFlags
		sub := &cobra.Command{
			Use: string(b.act) + " SERVICE", Short: b.short, Args: cobra.ExactArgs(1),
			Example: "  proconsul breaker " + string(b.act) + " orders",
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := r.client()
				if err != nil {
					return err
				}
				d, err := c.Breaker(cmd.Context(), b.act, args[0], o.Order)
				if err == nil {
					d.Upstreams = nil
					did(cmd, "breaker "+args[0], d)
				}
				return told(err)
			},
		}
		r.add(sub)
		if b.timed {
			o.add(sub)
			sub.Example += " --for 10m"
		}
		cmd.AddCommand(sub)
	}
	return cmd
}

func rateLimitCommand() *cobra.Command {
	cmd := family("ratelimit", "Look at what a caller has left of a route's limits, or give it back")
	var r remote
	showing := &cobra.Command{
		Use: "show ROUTE [KEY]", Short: "Show what a caller has left", Args: cobra.RangeArgs(1, 2),
		Long: `Shows what is left of a route's limits, and takes nothing. KEY is what the route
tells callers apart by: an address for client_ip, the value for api_key,
header(NAME), cookie(NAME) and claim(NAME); nothing for route and all. ROUTE may
be @upstream/NAME or @global.`,
		Example: "  proconsul ratelimit show limited 203.0.113.9",
		RunE: func(cmd *cobra.Command, args []string) error {
			return show(cmd, &r, func(c *client.Client) (admin.RateLimit, error) {
				return c.RateLimit(cmd.Context(), args[0], strings.Join(args[1:], ""))
			}, func(p *paper, l admin.RateLimit) {
				p.printf("route %s by %s: a request now would be %s\n", printable(l.Route), printable(l.By), l.Decision)
				var rows [][]string
				for _, x := range l.Limits {
					more := "-"
					if x.Reset > 0 {
						more = shortDuration(max(time.Duration(x.Reset), time.Second))
					}
					rows = append(rows, []string{x.Limit, fmt.Sprint(x.Remaining), more})
				}
				p.table([]string{"LIMIT", "#LEFT", "#MORE IN"}, rows)
			})
		},
	}
	r.addOutput(showing)
	var q remote
	reset := &cobra.Command{
		Use: "reset ROUTE [KEY]", Short: "Give a caller the whole limit back, on every replica", Args: cobra.RangeArgs(1, 2),
		Example: "  proconsul ratelimit reset limited 203.0.113.9",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := q.client()
			if err != nil {
				return err
			}
			if _, err := c.ResetRateLimit(cmd.Context(), args[0], strings.Join(args[1:], "")); err != nil {
				return told(err)
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "the limit of route "+args[0]+" is whole again")
			return nil
		},
	}
	q.add(reset)
	var t remote
	n := 20
	top := &cobra.Command{
		Use: "top", Short: "Show who is limited most, and what leases save", Args: cobra.NoArgs,
		Long: `Shows whom this replica limited most within about an hour, and how many calls to
Redis a decision costs. Callers are told by a hash, but where their limit says
show_keys.`,
		Example: "  proconsul ratelimit top -n 5",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, &t, func(c *client.Client) (admin.RateLimits, error) {
				return c.TopLimits(cmd.Context(), n)
			}, func(p *paper, l admin.RateLimits) {
				p.printf("%d decisions, %d calls to redis (%.4f each), %d callers remembered, %d wait\n",
					l.Decisions, l.StoreCalls, l.CallsPerDecision, l.Keys, l.Waiting)
				var rows [][]string
				for _, x := range l.Top {
					denied := fmt.Sprint(x.Denied)
					if x.Error > 0 {
						denied = fmt.Sprintf("%d to %d", x.Denied-x.Error, x.Denied)
					}
					rows = append(rows, []string{printable(x.Route), printable(x.Key), denied, shortDuration(time.Since(x.Last)) + " ago"})
				}
				p.table([]string{"LIMIT", "WHO", "#DENIED", "#LAST"}, rows)
			})
		},
	}
	t.addOutput(top)
	top.Flags().IntVarP(&n, "number", "n", n, "how many")
	cmd.AddCommand(top, showing, reset)
	return cmd
}

func logLevelCommand() *cobra.Command {
	var r remote
	var o orderFlags
	cmd := &cobra.Command{
		Use: "log-level [debug|info|warn|error]", Short: "Show or change what a running gateway logs", Args: cobra.MaximumNArgs(1),
		Example: "  proconsul log-level debug --for 10m",
		RunE: func(cmd *cobra.Command, args []string) error {
			return show(cmd, &r, func(c *client.Client) (admin.LogLevel, error) {
				if len(args) == 0 {
					return c.LogLevel(cmd.Context())
				}
				return c.SetLogLevel(cmd.Context(), args[0], o.For)
			}, func(p *paper, l admin.LogLevel) {
				if l.Until.IsZero() {
					p.printf("%s\n", l.Level)
				} else {
					p.printf("%s, for %s\n", l.Level, shortDuration(time.Until(l.Until)))
				}
			})
		},
	}
	r.addOutput(cmd)
	cmd.Flags().DurationVar(&o.For, "for", 0, "how long it holds, 1s to 168h (default 1h)")
	return cmd
}

func reloadCommand() *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have a running gateway take over its configuration, and say what changed",
		Long: `Has the gateway read its configuration anew, as SIGHUP does, and prints what that
changed. A configuration that is not valid changes nothing: the reason is
printed, and the exit code is 1.`,
		Example: "  proconsul reload",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, &r, func(c *client.Client) (admin.Plan, error) { return c.Reload(cmd.Context()) }, func(p *paper, v admin.Plan) {
				printChanges(p, v)
				p.printf("serving configuration %s\n", v.Hash)
			})
		},
	}
	r.addOutput(cmd)
	return cmd
}

func planCommand() *cobra.Command {
	var r remote
	var detailed bool
	cmd := &cobra.Command{
		Use:   "plan FILE",
		Short: "Say what a configuration would change in a running gateway",
		Long: `Sends a configuration to the gateway, which compares it with the one that it
serves, and prints what a reload would add, change and remove. Nothing changes.
FILE is "-" for standard input.

A configuration that is not valid ends with 2. With --detailed-exitcode: 0
without changes, 2 with changes, 1 for everything else.`,
		Example: "  proconsul plan proconsul.yaml\n  proconsul plan proconsul.yaml --detailed-exitcode || echo 'differs'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := readPlan(cmd, args[0])
			if err != nil {
				return invalid{err}
			}
			var plan admin.Plan
			err = show(cmd, &r, func(c *client.Client) (p admin.Plan, err error) {
				plan, err = c.Plan(cmd.Context(), text)
				return plan, err
			}, func(p *paper, v admin.Plan) {
				if !v.Valid {
					printFaults(p, args[0], v.Faults)
					return
				}
				printChanges(p, v)
			})
			switch {
			case err != nil && detailed:
				return fail{err}
			case err != nil:
				return err
			case !plan.Valid && detailed:
				return fail{errors.New(args[0] + " is not valid")}
			case !plan.Valid:
				return usage("%s is not valid", args[0])
			case detailed && len(plan.Changes) > 0:
				return exit(exitChanges)
			}
			return nil
		},
	}
	r.addOutput(cmd)
	cmd.Flags().BoolVar(&detailed, "detailed-exitcode", false, "exit with 2 where there are changes")
	return cmd
}

// fail is an error that ends with 1, whatever it wraps.
type fail struct{ error }

func readPlan(cmd *cobra.Command, path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(cmd.InOrStdin())
	}
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		return nil, fmt.Errorf("%s is a directory: plan takes one file", path)
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

func printFaults(p *paper, file string, faults []admin.Fault) {
	for _, f := range faults {
		p.printf("%s:%d:%d  %s %s %s\n", file, f.Line, f.Col, p.paint(f.Severity), f.Code, printable(f.Message))
		if f.Hint != "" {
			p.printf("    %s\n", printable(f.Hint))
		}
	}
}

// printChanges writes a plan as diffs are written: + added, - removed, ~
// changed.
func printChanges(p *paper, v admin.Plan) {
	counts := map[string]int{}
	for _, c := range v.Changes {
		counts[c.Action]++
		sign := map[string]string{"added": "+", "removed": "-", "changed": "~"}[c.Action]
		p.printf("%s %s %s\n", sign, c.Kind, printable(c.Name))
		for _, f := range c.Fields {
			switch {
			case f.Was == f.Is: // masked
				p.printf("    %s: changed (%s)\n", printable(f.Path), printable(f.Is))
			case f.Was == "":
				p.printf("    %s: + %s\n", printable(f.Path), printable(f.Is))
			case f.Is == "":
				p.printf("    %s: - %s\n", printable(f.Path), printable(f.Was))
			default:
				p.printf("    %s: %s -> %s\n", printable(f.Path), printable(f.Was), printable(f.Is))
			}
		}
	}
	for _, key := range v.NeedsRestart {
		p.printf("! %s needs a restart: a reload leaves it as it is\n", printable(key))
	}
	if len(v.Changes) == 0 {
		p.printf("no changes\n")
		return
	}
	p.printf("%d to add, %d to change, %d to remove\n", counts["added"], counts["changed"], counts["removed"])
}
