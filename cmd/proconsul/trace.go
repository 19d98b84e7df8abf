package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/admin/client"
)

func traceCommand() *cobra.Command {
	var r remote
	var q admin.TraceRequest
	cmd := &cobra.Command{
		Use:   "trace METHOD URL",
		Short: "Send one request through a running gateway, and show its way with timings",
		Long: `Sends one request to the gateway's public listener, as a client would, and shows
what each step of its route did and how long it took, each try of an instance
with its phases, and the answer. The request is real: it is counted, limited and
served. It is always kept where the gateway is traced. Needs the role operator.`,
		Example: "  proconsul trace GET http://shop.example.com/api/orders/42 -H 'X-API-Key: demo'\n  proconsul trace POST /api/orders -d '{\"item\": 1}' -H 'Content-Type: application/json' -o json",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.Method, q.URL = args[0], args[1]
			return show(cmd, &r, func(c *client.Client) (admin.Traced, error) { return c.Trace(cmd.Context(), q) }, printTraced)
		},
	}
	r.addOutput(cmd)
	cmd.Flags().StringArrayVarP(&q.Headers, "header", "H", nil, "header field, as 'Name: value' (repeatable)")
	cmd.Flags().StringVarP(&q.Body, "data", "d", "", "the request's body")
	cmd.Flags().StringVar(&q.ClientIP, "ip", "", "address that it is taken to come from (default the gateway's own)")
	cmd.Flags().StringVar(&q.Listener, "listener", "", "public listener that it comes to (default the first)")
	return cmd
}

// printTraced writes the course of a request a line per step.
func printTraced(p *paper, t admin.Traced) {
	who := "client " + t.Request.ClientIP
	if t.Request.Trusted {
		who += " (told by a trusted proxy)"
	}
	p.printf("%s %s %s%s   %s\n", printable(t.Request.Method), t.Request.Scheme, printable(t.Request.Host), printable(t.Request.Path), who)
	n := 0
	line := func(name, text string) {
		n++
		p.print(strings.TrimRight(fmt.Sprintf("%2d %-11s %s", n, name, printable(text)), " ") + "\n")
	}
	if rt := t.Route; rt != nil {
		from := rt.Source
		if rt.Location != "" {
			from += " " + rt.Location
		}
		line("match", fmt.Sprintf("%s   %s   from %s", rt.Name, rt.Match, from))
	} else if t.Request.Path == "" {
		line("path", "refused before any route was looked for")
	} else {
		line("match", "no route")
	}
	for _, s := range t.Steps {
		parts := []string{phase(s.Before + s.After)}
		if s.Text != "" {
			parts = append(parts, s.Text)
		}
		switch s.Verdict {
		case "refuse":
			parts = append(parts, "REFUSED: "+s.Reason)
		case "answer":
			parts = append(parts, "answered")
		}
		line(s.Name, strings.Join(parts, "   "))
	}
	for i, try := range t.Tries {
		what := fmt.Sprintf("%s %s   ", try.Instance, try.Address)
		if try.Status != 0 {
			what += fmt.Sprintf("%d in %s", try.Status, phase(try.Took))
		} else {
			what += fmt.Sprintf("FAILED after %s", phase(try.Took))
		}
		if try.Reason != "" {
			what += ": " + try.Reason
		}
		line(fmt.Sprintf("try %d", i+1), what)
		if text := phases(try); text != "" {
			p.printf("   %-11s %s\n", "", text)
		}
	}
	a := t.Answer
	text := fmt.Sprintf("%d", a.Status)
	if a.Reason != "" {
		text += " " + a.Reason
	}
	word := "proxied"
	switch {
	case a.From == "gateway" && a.Reason != "":
		word = "refused"
	case a.From == "gateway" && a.Status >= 300 && a.Status < 400:
		word = "redirected"
	case a.From == "gateway":
		word = "answered"
	}
	text += fmt.Sprintf(", %d bytes in %s, of which the gateway took %s until the header", a.Bytes, phase(a.Took), phase(a.Gateway))
	if a.Broken {
		text += "   BROKEN OFF"
	}
	p.printf("answered: %s %s\n", p.paint(word), text)
	p.printf("request %s", printable(t.RequestID))
	if t.TraceID != "" {
		p.printf("   trace %s", t.TraceID)
	}
	p.print("\n")
}

// phase words a duration to three digits.
func phase(m admin.Millis) string {
	d := time.Duration(m)
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= 10*time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(time.Microsecond).String()
}

// phases words those of a try that happened.
func phases(t admin.Try) string {
	var parts []string
	if t.Connection == "reused" {
		parts = append(parts, "connection reused")
	}
	for _, f := range []struct {
		name string
		m    admin.Millis
	}{{"dial", t.Dial}, {"TLS", t.TLS}, {"write", t.Write}, {"first byte", t.FirstByte}, {"body", t.Body}} {
		if f.m > 0 {
			parts = append(parts, f.name+" "+phase(f.m))
		}
	}
	return strings.Join(parts, ", ")
}
