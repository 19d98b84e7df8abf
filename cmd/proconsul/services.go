package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/admin/client"
)

func servicesCommand() *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use:     "services",
		Short:   "List the upstreams of a running gateway, with their health and pace",
		Example: "  proconsul services --watch\n  proconsul services -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, &r, func(c *client.Client) ([]admin.Upstream, error) { return c.Services(cmd.Context()) }, printServices)
		},
	}
	r.addOutput(cmd)
	r.addWatch(cmd)
	return cmd
}

func printServices(p *paper, list []admin.Upstream) {
	head := []string{"SERVICE", "HEALTH", "#REQ/S", "#P50", "#P99", "#ERRORS", "BREAKER", "#IN-FLIGHT", "#ROUTES"}
	if p.wide {
		head = append(head, "BALANCE", "CONSUL", "#REQUESTS", "#INDEX")
	}
	var rows [][]string
	for _, u := range list {
		health := fmt.Sprintf("%s %d/%d", u.Health, u.Usable, u.Total)
		if u.Stale {
			health += " stale"
		}
		row := []string{u.Name, health, pace(u.Rate), took(u.Latency.P50), took(u.Latency.P99), percent(u.ErrorShare), breakerText(u.Breaker),
			bounded(u.InFlight, u.MaxInFlight), fmt.Sprint(len(u.Routes))}
		if p.wide {
			row = append(row, u.Balance, u.Service, fmt.Sprint(u.Requests), fmt.Sprint(u.Index))
		}
		rows = append(rows, row)
	}
	p.table(head, rows)
}

func instancesCommand() *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use:     "instances [SERVICE]",
		Short:   "List the instances of a service, and why some take no requests",
		Example: "  proconsul instances orders --watch\n  proconsul instances -o wide",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			service := strings.Join(args, "")
			return show(cmd, &r, func(c *client.Client) ([]client.Instance, error) { return c.Instances(cmd.Context(), service) }, printInstances)
		},
	}
	r.addOutput(cmd)
	r.addWatch(cmd)
	return cmd
}

func printInstances(p *paper, list []client.Instance) {
	head := []string{"SERVICE", "INSTANCE", "ADDRESS", "STATE", "#WEIGHT", "#SHARE", "#IN-FLIGHT", "#REQUESTS", "#FAILURES", "#P99", "WHY"}
	if p.wide {
		head = append(head, "CONSUL", "VERSION", "ZONE", "TAGS")
	}
	var rows [][]string
	for _, in := range list {
		row := []string{in.Upstream, in.ID, in.Address, in.State, fmt.Sprint(in.Weight), percent(in.Share), fmt.Sprint(in.InFlight),
			fmt.Sprint(in.Requests), fmt.Sprint(in.Failures), took(in.Latency.P99), whyText(in.Instance)}
		if p.wide {
			row = append(row, in.Status, in.Version, in.Zone, strings.Join(in.Tags, ","))
		}
		rows = append(rows, row)
	}
	p.table(head, rows)
}

// whyText says why an instance takes no requests.
func whyText(in admin.Instance) string {
	if in.State == "ejected" {
		text := in.EjectedFor
		if left := time.Until(in.EjectedUntil); left > 0 {
			text += ", probe in " + shortDuration(left)
		}
		return strings.TrimPrefix(text, ", ")
	}
	for _, c := range in.Checks {
		if c.Status != "passing" {
			return clip(strings.Join(strings.Fields(c.Name+": "+c.Output), " "), 80)
		}
	}
	return ""
}

func routesCommand() *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use:     "routes",
		Short:   "List the routes of a running gateway, in the order in which they are tried",
		Example: "  proconsul routes\n  proconsul routes -o wide\n  proconsul routes show orders",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, &r, func(c *client.Client) ([]admin.Route, error) { return c.Routes(cmd.Context()) }, printRoutes)
		},
	}
	r.addOutput(cmd)
	r.addWatch(cmd)
	cmd.AddCommand(routeShowCommand())
	return cmd
}

func printRoutes(p *paper, list []admin.Route) {
	head := []string{"ROUTE", "MATCH", "TO", "LIMIT", "#REQ/S", "#P99", "#ERRORS", "FROM"}
	if p.wide {
		head = append(head, "POLICIES", "#PRIORITY", "#REQUESTS", "#LIMITED")
	}
	var rows [][]string
	for _, rt := range list {
		row := []string{rt.Name, matchText(rt), destination(rt), rt.RateLimit, pace(rt.Rate), took(rt.Latency.P99), percent(rt.ErrorShare), cmp.Or(rt.Location, rt.Source)}
		if p.wide {
			row = append(row, strings.Join(rt.Policies, ","), fmt.Sprint(rt.Priority), fmt.Sprint(rt.Requests), fmt.Sprint(rt.Limited))
		}
		rows = append(rows, row)
	}
	p.table(head, rows)
}

func routeShowCommand() *cobra.Command {
	var r remote
	type whole struct {
		Route    admin.Route     `json:"route"`
		Upstream *admin.Upstream `json:"upstream,omitempty"`
	}
	cmd := &cobra.Command{
		Use:     "show NAME",
		Short:   "Show one route, where it comes from and who serves it",
		Example: "  proconsul routes show orders",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			fetch := func(c *client.Client) (w whole, err error) {
				if w.Route, err = c.Route(cmd.Context(), args[0]); err != nil || w.Route.Upstream == "" {
					return w, err
				}
				u, err := c.Service(cmd.Context(), w.Route.Upstream)
				w.Upstream = &u
				return w, err
			}
			return show(cmd, &r, fetch, func(p *paper, w whole) {
				rt := w.Route
				p.fact("route", rt.Name)
				p.fact("from", rt.Source+" "+rt.Location)
				p.fact("match", matchText(rt))
				p.fact("priority", fmt.Sprint(rt.Priority))
				p.fact("policies", strings.Join(rt.Policies, ", "))
				p.fact("rate limit", rt.RateLimit)
				p.fact("to", destination(rt))
				p.fact("requests", fmt.Sprintf("%d, %s/s, p50 %s, p99 %s, %s errors, %d limited", rt.Requests, pace(rt.Rate), took(rt.Latency.P50), took(rt.Latency.P99), percent(rt.ErrorShare), rt.Limited))
				if w.Upstream == nil {
					return
				}
				u := *w.Upstream
				p.fact("pool", fmt.Sprintf("%s, %d of %d usable, %s, breaker %s", u.Health, u.Usable, u.Total, u.Balance, breakerText(u.Breaker)))
				var list []client.Instance
				for _, in := range u.Instances {
					list = append(list, client.Instance{Upstream: u.Name, Instance: in})
				}
				p.print("\n")
				printInstances(p, list)
			})
		},
	}
	r.addOutput(cmd)
	return cmd
}

// fact writes a line of a name and what there is to say, if anything.
func (p *paper) fact(name, text string) {
	if text = strings.TrimSpace(printable(text)); text != "" {
		p.printf("%-11s %s\n", name, text)
	}
}

func eventsCommand() *cobra.Command {
	var r remote
	var since uint64
	var follow bool
	cmd := &cobra.Command{
		Use:     "events",
		Short:   "Print what happened to the gateway and to what it watches",
		Example: "  proconsul events --follow\n  proconsul events -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.watch, r.interval = false, time.Second
			fetch := func(c *client.Client) ([]admin.Event, error) {
				list, err := c.Events(cmd.Context(), since)
				if len(list) > 0 {
					since = list[len(list)-1].Seq
				}
				return list, err
			}
			if err := show(cmd, &r, fetch, printEvents); err != nil || !follow {
				return err
			}
			for {
				timer := time.NewTimer(r.interval)
				select {
				case <-cmd.Context().Done():
					timer.Stop()
					return nil
				case <-timer.C:
				}
				if err := show(cmd, &r, fetch, printEvents); err != nil && cmd.Context().Err() == nil {
					fmt.Fprintln(cmd.ErrOrStderr(), "proconsul:", err) // it may come back
				}
			}
		},
	}
	r.addOutput(cmd)
	cmd.Flags().Uint64Var(&since, "since", 0, "only what came after the event of this number")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	return cmd
}

func printEvents(p *paper, list []admin.Event) {
	for _, e := range list {
		who := cmp.Or(e.Instance, e.Service, e.Kind)
		if e.Actor != "" {
			who = e.Actor
		}
		p.printf("%6d  %s  %-5s  %s: %s\n", e.Seq, e.At.Local().Format(time.DateTime), p.paint(string(e.Severity)), printable(who), printable(e.Message))
	}
}

func overridesCommand() *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use:     "overrides",
		Short:   "List what operators hold against what the gateway would do, and until when",
		Example: "  proconsul overrides",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, &r, func(c *client.Client) ([]admin.Override, error) { return c.Overrides(cmd.Context()) }, func(p *paper, list []admin.Override) {
				var rows [][]string
				for _, o := range list {
					rows = append(rows, []string{o.Kind, o.Target, o.Upstream, o.State, shortDuration(time.Until(o.Until)), o.Actor, o.Reason})
				}
				p.table([]string{"KIND", "TARGET", "UPSTREAM", "STATE", "#LEFT", "BY", "REASON"}, rows)
			})
		},
	}
	r.addOutput(cmd)
	return cmd
}

// matchText words what a route matches.
func matchText(rt admin.Route) string {
	parts := []string{rt.Host + rt.Path}
	if len(rt.Methods) > 0 {
		parts = slices.Insert(parts, 0, strings.Join(rt.Methods, "|"))
	}
	return strings.Join(slices.Concat(parts, rt.Headers, rt.Query), " ")
}

// destination words where a route's requests go.
func destination(rt admin.Route) string {
	switch {
	case rt.Redirect != "":
		return "redirect " + rt.Redirect
	case rt.Strip != "" && rt.Prepend != "":
		return fmt.Sprintf("%s (strip %s, prepend %s)", rt.Upstream, rt.Strip, rt.Prepend)
	case rt.Strip != "":
		return fmt.Sprintf("%s (strip %s)", rt.Upstream, rt.Strip)
	case rt.Prepend != "":
		return fmt.Sprintf("%s (prepend %s)", rt.Upstream, rt.Prepend)
	}
	return rt.Upstream
}

// breakerText words a breaker's state, who holds it there and until when.
func breakerText(b admin.Breaker) string {
	text := b.State
	switch {
	case b.Forced && !b.ForcedUntil.IsZero():
		text += " by an operator, " + shortDuration(time.Until(b.ForcedUntil)) + " left"
	case b.State == "open" && time.Until(b.RetryAt) > 0:
		text += ", probe in " + shortDuration(time.Until(b.RetryAt))
	}
	return text
}

func pace(perSecond float64) string {
	if perSecond > 0 && perSecond < 10 {
		return fmt.Sprintf("%.1f", perSecond)
	}
	return fmt.Sprintf("%.0f", perSecond)
}

func took(m admin.Millis) string {
	d := time.Duration(m)
	switch {
	case d <= 0:
		return "-"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1fms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%.0fms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.1fs", d.Seconds())
}

func percent(share float64) string {
	if p := share * 100; p > 0 && p < 10 {
		return fmt.Sprintf("%.1f%%", p)
	}
	return fmt.Sprintf("%.0f%%", share*100)
}

func bounded(n int64, limit int) string {
	if limit > 0 {
		return fmt.Sprintf("%d/%d", n, limit)
	}
	return fmt.Sprint(n)
}

// shortDuration writes a duration in its largest units: 1h5m, 30m, 27s.
func shortDuration(d time.Duration) string {
	d = d.Round(time.Second)
	switch {
	case d <= 0:
		return "0s"
	case d >= time.Hour:
		d = d.Round(time.Minute)
	}
	text := d.String()
	if d%time.Minute == 0 {
		text = strings.TrimSuffix(text, "0s")
	}
	if d%time.Hour == 0 {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// clip shortens a text to n characters.
func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
