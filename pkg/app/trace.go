package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/gateway"
	"github.com/proconsul/proconsul/pkg/middleware"
)

// Bounds of a request that an operator has traced.
const (
	traceWithin = 25 * time.Second // the admin listener's own answer has 30
	traceReads  = 64 << 20         // of the answer
)

// trace sends one request through a public listener, as a client would, and
// says what became of it on its way.
func (a *App) trace(ctx context.Context, q admin.TraceRequest) (admin.Traced, error) {
	cfg := a.current.Load().config
	listen, err := listenerOf(a.served, q.Listener)
	if err != nil {
		return admin.Traced{}, err
	}
	question, err := questionOf(q.ExplainRequest)
	if err != nil {
		return admin.Traced{}, err
	}
	r, err := question.Request()
	if err != nil {
		return admin.Traced{}, admin.Invalid("%v", err)
	}
	if r.Method == http.MethodConnect {
		return admin.Traced{}, admin.Invalid("a CONNECT is not sent: this gateway makes no tunnels")
	}
	ctx, cancel := context.WithTimeout(ctx, traceWithin)
	defer cancel()
	scheme := "http"
	if listen.TLS != nil {
		scheme = "https"
	}
	target := &url.URL{Scheme: scheme, Host: r.Host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery, ForceQuery: r.URL.ForceQuery}
	out, err := http.NewRequestWithContext(ctx, r.Method, target.String(), strings.NewReader(q.Body))
	if err != nil {
		return admin.Traced{}, admin.Invalid("%v", err)
	}
	out.Header, out.Host = r.Header, r.Host
	ticket, err := a.handler.Ticket(out.Method, out.Host, out.URL.RequestURI(), question.Peer)
	if err != nil {
		return admin.Traced{}, err
	}
	defer ticket.Close()
	out.Header.Set(gateway.TraceHeader, ticket.Token)
	if err := a.sendTo(listen.Name, out); err != nil {
		select {
		case <-ticket.Done(): // it came in, and what became of it is worth more than how it ended here
		case <-time.After(time.Second):
			return admin.Traced{}, fmt.Errorf("the request did not come through: %w", err)
		}
	}
	select {
	case <-ticket.Done():
	case <-ctx.Done():
		return admin.Traced{}, errors.New("the request did not end in time")
	}
	return a.traced(cfg, listen.Name, ticket.Followed()), nil
}

// sendTo sends a request to a listener of our own and reads the answer, which
// is for nobody.
func (a *App) sendTo(listener string, r *http.Request) error {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", a.Addr(listener))
		},
		// The other end is this process: its certificate may be for any name.
		TLSClientConfig:    &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true},
		DisableCompression: true,
		DisableKeepAlives:  true,
	}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(r) // redirects are answers
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, traceReads))
	return err
}

func (a *App) traced(cfg *config.Config, listener string, f gateway.Followed) admin.Traced {
	out := admin.Traced{
		Request: admin.Explained{Method: f.Method, Scheme: f.Scheme, Host: f.Host, Path: f.Path, ClientIP: f.Client.String(), Trusted: f.Trusted, Listener: listener},
		Answer: admin.Answer{From: "gateway", Status: f.Status, Reason: string(f.Reason), Bytes: f.BytesOut, Broken: f.Broken,
			FirstByte: admin.Millis(f.FirstByte), Took: admin.Millis(f.Took)},
		RequestID: f.RequestID, Upstream: f.Upstream,
	}
	if f.Trace != nil {
		out.TraceID = f.Trace.ID.String()
	}
	if rt := f.Route; rt != nil {
		row := a.routeStatus(cfg, rt.Config)
		out.Route = &admin.Matched{Name: row.Name, Match: matchText(rt.Config.Match), Source: row.Source, Location: row.Location}
	}
	if f.FirstByte > 0 && (f.Reason == "" || f.Broken) {
		out.Answer.From = "instance"
	}
	for i, s := range f.Steps {
		row := admin.TracedStep{Name: s.Name, Verdict: "pass", Text: stepText(s.Name, f), Before: admin.Millis(s.Before), After: admin.Millis(s.After)}
		switch last := i == len(f.Steps)-1; {
		case s.Passed || last && out.Answer.From == "instance":
		case f.Reason != "":
			row.Verdict, row.Reason = "refuse", string(f.Reason)
		default:
			row.Verdict = "answer"
		}
		out.Steps = append(out.Steps, row)
	}
	waited := time.Duration(0)
	for _, t := range f.Attempts {
		out.Tries = append(out.Tries, tryOf(t))
		waited += t.Duration
	}
	until := f.FirstByte
	if until == 0 {
		until = f.Took
	}
	out.Answer.Gateway = admin.Millis(max(0, until-waited))
	return out
}

// stepText says what a step found out.
func stepText(name string, f gateway.Followed) string {
	switch {
	case name == "request_id":
		return f.RequestID
	case name == "tracing" && f.Trace != nil:
		return "trace " + f.Trace.ID.String()
	case name == "auth" && f.Consumer != "":
		return "the caller is " + f.Consumer
	case name == "rate_limit":
		return f.RateLimit
	case name == "cache":
		return f.Cache
	}
	return ""
}

func tryOf(t middleware.Attempt) admin.Try {
	row := admin.Try{Instance: t.Instance, Address: t.Address, Status: t.Status, Reason: t.Reason, Connection: "none", Took: admin.Millis(t.Duration)}
	if t.Detail == nil {
		return row
	}
	c := t.Detail.Course()
	since := func(from, to time.Duration) admin.Millis {
		if from == 0 || to == 0 {
			return 0
		}
		return admin.Millis(max(0, to-from))
	}
	if c.Connected > 0 {
		row.Connection = map[bool]string{true: "reused", false: "new"}[c.Reused]
	}
	if !c.Reused {
		row.Dial, row.TLS = since(c.DialBegan, c.Dialed), since(c.Dialed, c.Secured)
	}
	wrote := c.Wrote
	if wrote == 0 || c.FirstByte > 0 && wrote > c.FirstByte {
		wrote = c.Connected // the answer came before it was told that the request had been sent
	}
	row.Write, row.FirstByte = since(c.Connected, wrote), since(wrote, c.FirstByte)
	row.Body, row.Took = since(c.FirstByte, c.Ended), admin.Millis(slices.Max([]time.Duration{c.Ended, t.Duration}))
	return row
}
