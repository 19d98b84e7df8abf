package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/admin/client"
)

func explainCommand() *cobra.Command {
	var r remote
	var q admin.ExplainRequest
	cmd := &cobra.Command{
		Use:   "explain METHOD URL",
		Short: "Say what a running gateway would do with a request, without sending it",
		Long: `Says which route would serve a request and why others that come near would not,
what each step of its chain would do, which instances may be picked, and what
they would get. The gateway works it out by the code that serves requests. No
request is sent, and nothing is counted or taken from a limit.`,
		Example: "  proconsul explain GET https://shop.example.com/api/orders/42 -H 'X-API-Key: demo' --ip 203.0.113.9",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.Method, q.URL = args[0], args[1]
			return show(cmd, &r, func(c *client.Client) (admin.Explanation, error) { return c.Explain(cmd.Context(), q) }, printExplanation)
		},
	}
	r.addOutput(cmd)
	cmd.Flags().StringArrayVarP(&q.Headers, "header", "H", nil, "header field, as 'Name: value' (repeatable)")
	cmd.Flags().StringVar(&q.ClientIP, "ip", "", "address that connects (default 127.0.0.1)")
	cmd.Flags().StringVar(&q.Listener, "listener", "", "public listener that it comes to (default the first)")
	return cmd
}

// printExplanation writes an explanation a line per step.
func printExplanation(p *paper, e admin.Explanation) {
	who := "client " + e.Request.ClientIP
	if e.Request.Trusted {
		who += " (told by a trusted proxy)"
	}
	p.printf("%s %s %s%s   %s\n", printable(e.Request.Method), e.Request.Scheme, printable(e.Request.Host), printable(e.Request.Path+querySuffix(e.Request.Query)), who)
	n := 0
	line := func(name, text string) {
		n++
		p.print(strings.TrimRight(fmt.Sprintf("%2d %-11s %s", n, name, printable(text)), " ") + "\n")
	}
	more := func(text string) { p.printf("   %-11s %s\n", "", printable(text)) }

	if rt := e.Route; rt != nil {
		from := rt.Source
		if rt.Location != "" {
			from += " " + rt.Location
		}
		line("match", fmt.Sprintf("%s   %s   from %s", rt.Name, rt.Match, from))
	} else if e.Request.Path == "" {
		line("path", "refused before any route is looked for")
	} else {
		line("match", "no route")
	}
	if text := passedOver(e); text != "" {
		more("passed over: " + text)
	}
	for _, s := range e.Steps {
		if s.Text == "" && s.Verdict == "pass" && !p.wide {
			continue // it lets everything pass
		}
		text := s.Text
		if s.Verdict == "refuse" {
			text = strings.TrimSpace(text+"   REFUSED: ") + " " + s.Reason
		}
		line(s.Name, text)
		for _, l := range s.Limits {
			left := fmt.Sprintf("%s: %d of %d left", l.Limit, l.Remaining, l.Count)
			if l.Reset > 0 {
				left += ", more in " + shortDuration(max(time.Duration(l.Reset), time.Second))
			}
			more(left + "   (looked at, nothing taken)")
		}
	}
	if u := e.Upstream; u != nil {
		usable := 0
		for _, c := range u.Candidates {
			if c.Usable {
				usable++
			}
		}
		text := fmt.Sprintf("%s   %d of %d usable, %s, breaker %s, in flight %s", u.Name, usable, len(u.Candidates), u.Balance, breakerText(u.Breaker), bounded(u.InFlight, u.MaxInFlight))
		if u.Stale {
			text += ", Consul does not answer: as last known"
		}
		line("pool", text)
		for _, c := range u.Candidates {
			if c.Usable {
				text := fmt.Sprintf("%s %s   share %s, weight %d, in flight %d, p99 %s", c.ID, c.Address, percent(c.Share), c.Weight, c.InFlight, took(c.P99))
				if c.Why != "" {
					text += ", " + c.Why
				}
				more(text)
			} else {
				more(fmt.Sprintf("%s %s   OUT %s", c.ID, c.Address, c.Why))
			}
		}
	}
	if s := e.Send; s != nil {
		text := fmt.Sprintf("%s %s   Host %s", s.Method, s.URL, s.Host)
		if s.Rewrite != "" {
			text += "   (" + s.Rewrite + ")"
		}
		line("send", text)
		more(bounds(s))
		var names []string
		for _, h := range s.Headers {
			if p.wide {
				more(h.Name + ": " + h.Value)
			}
			names = append(names, h.Name)
		}
		if !p.wide && len(names) > 0 {
			more("with " + strings.Join(names, ", "))
		}
	}
	p.printf("would answer: %s   (no request was sent)\n", answerText(p, e.Outcome))
}

func querySuffix(query string) string {
	if query == "" {
		return ""
	}
	return "?" + query
}

// passedOver words why routes that came near do not serve the request.
func passedOver(e admin.Explanation) string {
	var near []string
	for _, o := range e.PassedOver {
		near = append(near, fmt.Sprintf("%s (%s)", o.Route, o.Text))
	}
	more := e.More
	if n := len(near); n > 8 {
		near, more = near[:8], more+n-8
	}
	if more > 0 {
		near = append(near, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(near, ", ")
}

// bounds words what a request may cost in time and tries.
func bounds(s *admin.Send) string {
	var parts []string
	for _, t := range []struct {
		name string
		m    admin.Millis
	}{{"connect", s.Timeouts.Connect}, {"response", s.Timeouts.Response}, {"total", s.Timeouts.Total}} {
		if t.m > 0 {
			parts = append(parts, t.name+" "+time.Duration(t.m).String())
		}
	}
	text := "timeouts: " + strings.Join(parts, ", ")
	if len(parts) == 0 {
		text = "no timeouts"
	}
	switch {
	case s.Retry.Attempts == 0:
		return text + "; no retries"
	case !s.Retry.Replayable:
		return fmt.Sprintf("%s; up to %d retries, only where nothing was sent", text, s.Retry.Attempts)
	}
	return fmt.Sprintf("%s; up to %d retries on %s", text, s.Retry.Attempts, strings.Join(s.Retry.On, ", "))
}

func answerText(p *paper, o admin.Outcome) string {
	switch o.Answer {
	case "redirected":
		return fmt.Sprintf("%s %d to %s", p.paint(o.Answer), o.Status, printable(o.Location))
	case "answered":
		return fmt.Sprintf("%s %d by the gateway itself", p.paint(o.Answer), o.Status)
	case "refused":
		text := fmt.Sprintf("%s %d %s", p.paint(o.Answer), o.Status, o.Reason)
		if o.Detail != "" {
			text += ": " + printable(o.Detail)
		}
		if o.RetryAfter > 0 {
			text += ", again in " + shortDuration(max(time.Duration(o.RetryAfter), time.Second))
		}
		return text
	}
	return p.paint(o.Answer)
}
