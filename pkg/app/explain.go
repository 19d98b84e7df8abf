package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/gateway"
	"github.com/proconsul/proconsul/pkg/identity"
	"github.com/proconsul/proconsul/pkg/metrics"
	"github.com/proconsul/proconsul/pkg/middleware/ratelimit"
	"github.com/proconsul/proconsul/pkg/proxy"
)

// explain answers what would become of a request.
func (a *App) explain(ctx context.Context, q admin.ExplainRequest) (admin.Explanation, error) {
	cfg := a.current.Load().config
	listen, err := listenerOf(a.served, q.Listener)
	if err != nil {
		return admin.Explanation{}, err
	}
	question, err := questionOf(q)
	if err != nil {
		return admin.Explanation{}, err
	}
	e, err := a.handler.Explain(ctx, listen, question)
	if err != nil {
		return admin.Explanation{}, admin.Invalid("%v", err)
	}
	out := admin.Explanation{
		Request: admin.Explained{Method: e.Method, Scheme: e.Scheme, Host: e.Host, Path: e.Path, Query: e.Query,
			ClientIP: e.Client.String(), Trusted: e.Trusted, Listener: listen.Name},
		Outcome: outcomeOf(e),
		More:    e.More,
	}
	if rt := e.Route; rt != nil {
		row := a.routeStatus(cfg, rt.Config)
		out.Route = &admin.Matched{Name: row.Name, Match: matchText(rt.Config.Match), Source: row.Source, Location: row.Location}
	}
	for _, o := range e.Others {
		out.PassedOver = append(out.PassedOver, admin.PassedOver{Route: o.Route, Why: o.Why, Text: o.Text})
	}
	for _, s := range e.Steps {
		step := admin.Step{Name: s.Name, Verdict: "pass", Text: s.Text, Limits: limitsLeft(s.Limits)}
		if s.Refusal != nil {
			step.Verdict, step.Reason = "refuse", string(s.Refusal.Reason)
		}
		if s.Answers != 0 {
			step.Verdict = "answer"
		}
		out.Steps = append(out.Steps, step)
	}
	if e.Upstream != "" {
		out.Upstream = &admin.Considered{Name: e.Upstream} // admin fills it in from the status
	}
	if e.Send != nil {
		out.Send = sendOf(e, question.Header)
	}
	return out, nil
}

// listenerOf returns the listener of that name, the first for none.
func listenerOf(listen []config.Listen, name string) (config.Listen, error) {
	var names []string
	for _, l := range listen {
		if name == "" || l.Name == name {
			return l, nil
		}
		names = append(names, l.Name)
	}
	return config.Listen{}, admin.Unknown("no listener is named %q (have: %s)", name, strings.Join(names, ", "))
}

func questionOf(q admin.ExplainRequest) (gateway.Question, error) {
	out := gateway.Question{Method: q.Method, URL: q.URL, Header: http.Header{}}
	for _, line := range q.Headers {
		name, value, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		if !ok || name == "" || strings.ContainsAny(name, " \t\r\n") || strings.ContainsAny(value, "\r\n") {
			// Its text may be a credential.
			return out, admin.Invalid("headers: want each as \"Name: value\"")
		}
		out.Header.Add(textproto.CanonicalMIMEHeaderKey(name), strings.TrimSpace(value))
	}
	if q.ClientIP != "" {
		ip, err := netip.ParseAddr(q.ClientIP)
		if err != nil {
			return out, admin.Invalid("client_ip: %q is no address", q.ClientIP)
		}
		out.Peer = ip
	}
	return out, nil
}

func outcomeOf(e *gateway.Explanation) admin.Outcome {
	switch {
	case e.Refusal != nil:
		detail := e.Refusal.Detail
		if detail == "" {
			detail = e.Refusal.Title()
		}
		return admin.Outcome{Answer: "refused", Status: e.Refusal.Code(), Reason: string(e.Refusal.Reason), Detail: detail, RetryAfter: admin.Millis(e.Refusal.RetryAfter)}
	case e.Answered != 0:
		return admin.Outcome{Answer: "answered", Status: e.Answered}
	case e.Location != "":
		return admin.Outcome{Answer: "redirected", Status: e.Route.Config.Redirect.Code, Location: e.Location}
	}
	return admin.Outcome{Answer: "proxied"}
}

// matchText words what a route matches.
func matchText(m config.Match) string {
	var parts []string
	if len(m.Methods) > 0 {
		parts = append(parts, strings.Join(m.Methods, "|"))
	}
	path := m.Path
	if path == "" {
		path = "/**"
	}
	parts = append(parts, m.Host+path)
	parts = append(parts, fields(m.Headers)...)
	parts = append(parts, fields(m.Query)...)
	return strings.Join(parts, " ")
}

func limitsLeft(left []ratelimit.Left) (out []admin.LimitLeft) {
	for _, l := range left {
		out = append(out, admin.LimitLeft{Limit: l.Limit, Count: l.Count, Remaining: l.Remaining, Reset: admin.Millis(l.Reset)})
	}
	return out
}

// sendOf words what an instance would get. Of its header fields it names those
// that the client did not send as they are.
func sendOf(e *gateway.Explanation, sent http.Header) *admin.Send {
	p, rc := e.Send, e.Route.Config.Upstream
	const instance = "{instance}"
	host := p.Host
	if host == "" {
		host = instance
	}
	s := &admin.Send{
		Method: e.Method, URL: p.Scheme + "://" + instance + p.Target, Host: host, Headers: []admin.HeaderValue{},
		Timeouts: admin.Timeouts{Connect: admin.Millis(p.Connect), Response: admin.Millis(p.Response), Total: admin.Millis(p.Total)},
		Retry:    admin.Retries{Attempts: p.Retry.Attempts, On: p.Retry.On, Replayable: p.Replayable},
	}
	if s.Retry.On == nil {
		s.Retry.On = []string{}
	}
	var rewrites []string
	if rc.Strip != "" {
		rewrites = append(rewrites, "strip "+rc.Strip)
	}
	if rc.Prepend != "" {
		rewrites = append(rewrites, "prepend "+rc.Prepend)
	}
	s.Rewrite = strings.Join(rewrites, ", ")
	for name, values := range p.Header {
		if len(values) > 0 && !slices.Equal(values, sent[name]) {
			s.Headers = append(s.Headers, admin.HeaderValue{Name: name, Value: strings.Join(values, ", ")})
		}
	}
	slices.SortFunc(s.Headers, func(a, b admin.HeaderValue) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// limitOf returns the limit of that name: a route's own, an upstream's or that
// of all routes.
func (a *App) limitOf(name string) (config.NamedLimit, error) {
	cfg := a.current.Load().config
	limits := cfg.AllLimits()
	if i := slices.IndexFunc(limits, func(l config.NamedLimit) bool { return l.Name == name }); i >= 0 {
		return limits[i], nil
	}
	if slices.ContainsFunc(cfg.Routes, func(rc config.Route) bool { return rc.Name == name }) {
		return config.NamedLimit{}, admin.Unknown("route %q has no rate limit of its own", name)
	}
	return config.NamedLimit{}, admin.Unknown("no route or limit is named %q", name)
}

func (a *App) rateLimit(ctx context.Context, route, key string) (admin.RateLimit, error) {
	l, err := a.limitOf(route)
	if err != nil {
		return admin.RateLimit{}, err
	}
	r, x, err := ratelimit.RequestOf(l.By, key)
	if err != nil {
		return admin.RateLimit{}, admin.Invalid("%v", err)
	}
	out, err := ratelimit.Peek(ctx, l.Name, []config.NamedLimit{l}, a.limiter, r, x)
	if err != nil {
		return admin.RateLimit{}, err
	}
	return admin.RateLimit{Route: l.Name, By: l.By, Decision: out.Decision, Limits: limitsLeft(out.Limits)}, nil
}

func (a *App) resetRateLimit(ctx context.Context, route, key string) error {
	l, err := a.limitOf(route)
	if err != nil {
		return err
	}
	r, x, err := ratelimit.RequestOf(l.By, key)
	if err != nil {
		return admin.Invalid("%v", err)
	}
	return ratelimit.Reset(ctx, l.Name, l, a.limiter, r, x)
}

// printConfig returns the configuration that is served, with secrets masked.
func (a *App) printConfig(defaults, sources bool) ([]byte, error) {
	var b bytes.Buffer
	err := a.current.Load().config.Print(&b, config.PrintOptions{Defaults: defaults, Sources: sources})
	return b.Bytes(), err
}

// judge reads a configuration that somebody has sent.
func (a *App) judge(text []byte) (*config.Config, admin.Verdict) {
	parse := a.options.Parse
	if parse == nil {
		parse = func(name string, text []byte) (*config.Config, error) {
			return config.Parse(name, text, config.LoadOptions{Pure: true})
		}
	}
	cfg, err := parse("request", text)
	var found *config.Faults
	if err == nil {
		// What only building shows, such as a certificate that is not there.
		found = cfg.Warnings
		err = a.try(cfg)
	}
	var v admin.Verdict
	switch {
	case err == nil:
		v.Valid, v.Hash = true, cfg.Hash
	case !errors.As(err, &found):
		message := err.Error()
		if bytes.Contains(text, []byte("${")) {
			// It may hold what the text refers to, which is not for its author.
			a.log.Warn("a configuration sent to be judged cannot be built", "err", err)
			message = "it cannot be built; why is in the gateway's log only, because the text refers to the gateway's environment"
		}
		v.Faults = append(v.Faults, admin.Fault{Code: string(config.CodeRead), Severity: "error", Message: message})
	}
	v.Faults = append(v.Faults, rowsOf(found)...)
	return cfg, v
}

// faultsOf returns what is wrong with a configuration one by one, where the
// error is of that kind.
func faultsOf(err error) []admin.Fault {
	var found *config.Faults
	if !errors.As(err, &found) {
		return nil
	}
	return rowsOf(found)
}

func rowsOf(found *config.Faults) (rows []admin.Fault) {
	if found == nil {
		return nil
	}
	for _, f := range found.All {
		row := admin.Fault{File: f.File, Line: f.Line, Col: f.Col, Path: f.Path, Code: string(f.Code), Severity: "error", Message: f.Message, Hint: f.Hint}
		if f.Warning {
			row.Severity = "warning"
		}
		rows = append(rows, row)
	}
	return rows
}

// trial makes an upstream that touches nothing live, to see whether it can be
// made.
func (us *upstreams) trial(c config.Upstream) (*proxy.Upstream, error) {
	_, poolErr := balancer.New(c.Name, us.poolOptions(c, nil))
	up, proxyErr := proxy.NewUpstream(c.Name, nil, nil, proxySettings(c), proxy.Options{})
	if err := errors.Join(poolErr, proxyErr, breakerSettings(c).Check()); err != nil {
		return nil, fmt.Errorf("upstream %s: %w", c.Name, err)
	}
	return up, nil
}

// try builds a configuration and drops it. Nothing that is live is touched:
// neither pools and breakers nor the series of the metrics.
func (a *App) try(cfg *config.Config) error {
	trials := map[string]*proxy.Upstream{}
	var faults []error
	for _, c := range cfg.Upstreams {
		up, err := a.upstreams.trial(c)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		trials[c.Name] = up
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	find := func(name string) (*proxy.Upstream, error) {
		if up := trials[name]; up != nil {
			return up, nil
		}
		return nil, fmt.Errorf("no upstream named %q", name)
	}
	who, err := identity.New(cfg, a.keys, func(name string) (http.RoundTripper, error) {
		up, err := find(name)
		if err != nil {
			return nil, err
		}
		return up.Client(), nil
	})
	if err != nil {
		return err
	}
	_, err = gateway.Build(cfg, gateway.Deps{
		Log: slog.New(slog.DiscardHandler), Metrics: metrics.New(metrics.Options{}), Limiter: a.limiter, Identity: who, Upstream: find,
	})
	return err
}

func (a *App) validate(_ context.Context, text []byte) admin.Verdict {
	_, v := a.judge(text)
	return v
}

// plan says what taking over a configuration would change.
func (a *App) plan(_ context.Context, text []byte) admin.Plan {
	cfg, v := a.judge(text)
	old := a.current.Load().config
	p := admin.Plan{Verdict: v, Running: old.Hash}
	if v.Valid {
		p.Changes, p.NeedsRestart = changesOf(old, cfg)
	}
	return p
}

func changesOf(old, next *config.Config) (changes []admin.Change, restart []string) {
	for _, c := range old.Diff(next) {
		row := admin.Change{Action: c.Action, Kind: c.Kind, Name: c.Name}
		for _, f := range c.Fields {
			row.Fields = append(row.Fields, admin.FieldChange{Path: f.Path, Was: f.Was, Is: f.Is})
		}
		changes = append(changes, row)
	}
	return changes, old.NeedsRestart(next)
}

// reloadBy takes the configuration over at an operator's word, and says what
// that changed.
func (a *App) reloadBy(context.Context, string) (admin.Plan, error) {
	old := a.current.Load().config
	if err := a.Reload("api"); err != nil {
		return admin.Plan{}, err
	}
	now := a.current.Load().config
	p := admin.Plan{Verdict: admin.Verdict{Valid: true, Hash: now.Hash}, Running: old.Hash}
	p.Changes, p.NeedsRestart = changesOf(old, now)
	return p, nil
}
