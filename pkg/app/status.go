package app

import (
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/adaptive"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/gateway"
	"github.com/proconsul/proconsul/pkg/metrics"
)

// status gathers what the status endpoint shows.
func (a *App) status() admin.Status {
	cur := a.current.Load()
	s := admin.Status{
		Replica: a.replicaStatus(),
		Config: admin.Config{Hash: cur.config.Hash, Source: cur.config.Source, LoadedAt: cur.at, State: "ok",
			Error: cur.err, Faults: cur.faults, RefusedAt: cur.errAt},
		Consul:    a.consulStatus(),
		Redis:     a.redisStatus(),
		TLS:       a.tlsStatus(),
		Traffic:   admin.Traffic{Stats: statsOf(a.metrics.Stats()), Answers: answersOf(a.metrics.Answers())},
		Upstreams: []admin.Upstream{},
		Routes:    []admin.Route{},
		Rejected:  []admin.Rejected{},

		Certificates: a.certificates(),
	}
	if cur.err != "" {
		s.Config.State = "refused"
	}
	var members []balancer.MemberStatus // of one upstream after the other
	for _, up := range a.upstreams.list() {
		members = up.pool.AppendMembers(members[:0])
		row, rejected := a.upstreamStatus(up, members)
		s.Traffic.InFlight += row.InFlight
		s.Upstreams = append(s.Upstreams, row)
		s.Rejected = append(s.Rejected, rejected...)
	}
	s.Rejected = append(s.Rejected, a.consumers.rejected()...)
	written := a.written(cur.config, a.handler.Table())
	s.Routes = append(make([]admin.Route, 0, len(written.routes)), written.routes...)
	for i := range s.Routes {
		a.count(&s.Routes[i])
	}
	for _, l := range written.limits {
		d := a.metrics.RateLimitDecisions(l.Route)
		s.Limits = append(s.Limits, admin.Limits{Route: l.Route, Limit: l.Limit,
			Allowed: d.Allowed, Limited: d.Limited, Local: d.Local, FailOpen: d.FailOpen, FailClosed: d.FailClosed, Delayed: d.Delayed, QueueFull: d.QueueFull})
	}
	s.Fleet, s.Limited = a.fleet(cur.config), a.limited.list(a.limiter)
	return s
}

func (a *App) replicaStatus() admin.Replica {
	r := admin.Replica{ID: a.id, Version: a.options.Version, Go: runtime.Version(), State: "ready", Started: a.started}
	if ok, why := a.readiness(); !ok {
		r.State, r.Reasons = "starting", []string{why}
		if a.away() {
			r.State = "draining"
		}
	}
	for _, l := range a.public {
		r.Listeners = append(r.Listeners, l.listener.Addr().String())
	}
	return r
}

func (a *App) consulStatus() admin.Dependency {
	if a.watcher == nil {
		return admin.Dependency{State: "disabled"}
	}
	w := a.watcher.State()
	d := admin.Dependency{State: "up", Address: w.Addr, LastContact: w.LastContact, Error: w.Err}
	switch {
	case w.LastContact.IsZero() && w.Err == "":
		d.State = "starting"
	case !w.Up:
		d.State = "down"
	}
	for _, st := range a.catalog.States() {
		if st.Stale() {
			d.Stale = append(d.Stale, st.Key)
		}
	}
	if w.Leader != "" {
		d.Detail = fmt.Sprintf("leader %s, %d watches", w.Leader, len(w.Watches))
	}
	return d
}

func (a *App) redisStatus() admin.Dependency {
	st := a.limiter.State()
	if !st.Configured {
		return admin.Dependency{State: "disabled", Detail: "limits are this replica's own"}
	}
	d := admin.Dependency{State: "up", Address: a.current.Load().config.Redis.Address(), LastContact: st.LastContact,
		Latency: admin.Millis(st.Latency), Detail: "limits are shared"}
	if st.Replicas > 1 {
		d.Detail = fmt.Sprintf("%d replicas share limits", st.Replicas)
	}
	switch {
	case st.Up:
	case st.LastContact.IsZero() && st.LastError == "":
		d.State = "starting"
	default:
		d.State, d.Error = "down", st.LastError
	}
	return d
}

func (a *App) upstreamStatus(up *upstream, members []balancer.MemberStatus) (admin.Upstream, []admin.Rejected) {
	pool := up.pool.Stats()
	b := up.proxy.Breaker().Status()
	failed, failedBy := up.fates.failures(members)
	row := admin.Upstream{
		Name: up.config.Name, Service: up.config.Service, Balance: pool.Policy, Index: pool.Index, UpdatedAt: pool.Updated,
		InFlight: pool.InFlight, MaxInFlight: up.config.MaxInFlight,
		Panic: pool.Panic, HeldUntil: pool.GuardedUntil, Failed: failed,
		Retries: up.fates.retries.Load(), Rescued: up.fates.rescued.Load(),
		Breaker:   breakerStatus(b),
		Stats:     statsOf(a.metrics.Upstream(up.config.Name).Stats()),
		Instances: make([]admin.Instance, 0, len(members)),
	}
	if st, ok := up.proxy.Adaptive(); ok {
		row.Concurrency = &admin.Concurrency{Limit: st.Limit, InFlight: st.InFlight, Base: admin.Millis(st.Base), Probing: st.Probing,
			Shed: admin.Shed{Low: st.Shed[adaptive.Low], Normal: st.Shed[adaptive.Normal], High: st.Shed[adaptive.High]}}
	}
	var rejected []admin.Rejected
	if up.query != (discovery.Query{}) {
		st := a.catalog.State(up.query.Key())
		row.Stale, row.Error = st.Stale(), st.Err
		for _, r := range st.Snapshot.Rejected {
			rejected = append(rejected, admin.Rejected{Kind: "instance", Name: r.ID, Service: up.config.Service, Reason: r.Reason})
		}
	}
	for i := range members {
		in := instanceStatus(&members[i])
		in.Failed = failedBy[in.ID]
		row.Instances = append(row.Instances, in)
	}
	return row, rejected
}

func breakerStatus(b breaker.Status) admin.Breaker {
	row := admin.Breaker{State: b.State.String(), Since: b.Since, Opened: b.Opened, Rejected: b.Counters.ShortCircuited, Forced: b.Forced, ForcedUntil: b.ForcedUntil}
	switch {
	case b.Settings.Disabled:
		row.State = "disabled"
	case b.Forced:
		row.Why = "held " + strings.ReplaceAll(row.State, "_", " ") + " by an operator"
	case b.State != breaker.Closed:
		row.Why = fmt.Sprintf("%d of %d tries failed within 10 s", b.Cause.Errors, b.Cause.Requests)
	}
	if b.State != breaker.Closed && !b.Settings.Disabled {
		// To the tenth: what is left of a wait is never asked at the same instant.
		row.RetryAt = time.Now().Add(b.RetryAfter).Round(100 * time.Millisecond)
	}
	return row
}

func instanceStatus(m *balancer.MemberStatus) admin.Instance {
	in := &m.Instance
	row := admin.Instance{
		ID: in.ID, Node: in.Node, Datacenter: in.Datacenter, Address: in.Address,
		Status: in.Status.String(), State: instanceState(m), Usable: m.Serving, Since: m.Since,
		Weight: m.Weight, EffectiveWeight: m.Effective, InFlight: m.InFlight, Requests: m.Picks, Failures: m.Failures,
		Rate: m.Rate, Ramp: m.Ramp,
		Latency:      admin.Latency{P50: admin.Millis(m.Minute.P50), P95: admin.Millis(m.Minute.P95), P99: admin.Millis(m.Minute.P99)},
		EjectedUntil: m.EjectedUntil, EjectedFor: m.EjectReason,
		Version: in.Version, Zone: in.Zone, Tags: in.Tags, Meta: in.Meta,
	}
	for _, c := range in.Checks {
		row.Checks = append(row.Checks, admin.Check{Name: c.Name, Type: c.Type, Status: c.Status.String(), Output: c.Output, Node: c.Node})
	}
	return row
}

// instanceState is the word that decides whether an instance is picked:
// Consul's, unless we know better.
func instanceState(m *balancer.MemberStatus) string {
	switch {
	case !m.EjectedUntil.IsZero():
		return "ejected"
	case m.State == balancer.StateDrained || m.State == balancer.StateLeaving:
		return "draining"
	}
	return m.Instance.Status.String()
}

// written is what the status has of a configuration and its table, and what
// only a reload changes: viewers ask for it every second.
type written struct {
	config *config.Config
	table  *gateway.Table
	routes []admin.Route
	limits []admin.Limits
}

func (a *App) written(cfg *config.Config, table *gateway.Table) *written {
	if w := a.page.Load(); w != nil && w.config == cfg && w.table == table {
		return w
	}
	w := &written{config: cfg, table: table}
	for _, rt := range table.Routes {
		w.routes = append(w.routes, routeRow(cfg, rt.Config))
	}
	for _, l := range cfg.AllLimits() {
		w.limits = append(w.limits, admin.Limits{Route: l.Name, Limit: gateway.LimitText(l.RateLimit)})
	}
	a.page.Store(w)
	return w
}

// count fills in what a route's requests were.
func (a *App) count(row *admin.Route) {
	counted := a.metrics.Route(row.Name, row.Upstream)
	row.Stats, row.Answers = statsOf(counted.Stats()), answersOf(counted.Answers())
}

func (a *App) routeStatus(cfg *config.Config, rc config.Route) admin.Route {
	row := routeRow(cfg, rc)
	a.count(&row)
	return row
}

func routeRow(cfg *config.Config, rc config.Route) admin.Route {
	row := admin.Route{
		Name: rc.Name, Host: rc.Match.Host, Path: rc.Match.Path, Methods: rc.Match.Methods, Priority: rc.Priority,
		Headers: fields(rc.Match.Headers), Query: fields(rc.Match.Query),
		Upstream: rc.Upstream.Service, Strip: rc.Upstream.Strip, Prepend: rc.Upstream.Prepend, Policies: rc.Use,
		Source: "file", Location: fmt.Sprintf("%s:%d", rc.File, rc.Line),
	}
	if rc.Redirect != nil {
		row.Redirect = rc.Redirect.To
	}
	var limits []string
	for _, l := range cfg.Limits(rc) {
		text := gateway.LimitText(l.RateLimit)
		if l.Name != rc.Name {
			text = l.Name + " " + text
		}
		limits = append(limits, text)
	}
	row.RateLimit = strings.Join(limits, "; ")
	return row
}

func fields(list []config.MatchField) (texts []string) {
	for _, f := range list {
		switch {
		case f.Regex != "":
			texts = append(texts, f.Name+"=~"+f.Regex)
		case f.Value != "":
			texts = append(texts, f.Name+"="+f.Value)
		default:
			texts = append(texts, f.Name)
		}
	}
	return texts
}

func statsOf(s metrics.Stats) admin.Stats {
	return admin.Stats{Requests: s.Requests, Errors: s.Errors, Limited: s.Limited, Rate: s.Rate, ErrorShare: s.ErrorShare,
		Latency: admin.Latency{P50: admin.Millis(s.P50), P95: admin.Millis(s.P95), P99: admin.Millis(s.P99)}}
}

func answersOf(list []metrics.Answers) (rows []admin.Answers) {
	for _, a := range list {
		rows = append(rows, admin.Answers{Reason: a.Reason, Count: a.Count})
	}
	return rows
}

// metricsState is what a scrape reads.
func (a *App) metricsState() metrics.State {
	s := metrics.State{
		Draining: a.away(),
		Routes:   []metrics.RouteCount{{Source: "file", Count: len(a.handler.Table().Routes)}},

		Certificates: a.certificatesState(),
	}
	s.Consumers = []metrics.ConsumerCount{{Source: "file", Count: len(a.current.Load().config.Consumers)}}
	if a.consumers != nil {
		s.Consumers = append(s.Consumers, metrics.ConsumerCount{Source: "kv", Count: len(a.consumers.used())})
		s.RejectedConsumers = len(a.consumers.rejected())
	}
	var members []balancer.MemberStatus // of one upstream after the other
	for _, up := range a.upstreams.list() {
		row := metrics.UpstreamState{Name: up.config.Name, Breaker: up.proxy.Breaker().Status().State.String()}
		members = up.pool.AppendMembers(members[:0])
		for i := range members {
			m := &members[i]
			row.Instances = append(row.Instances, metrics.InstanceState{
				ID: m.Instance.ID, State: instanceState(m), InFlight: m.InFlight, Weight: m.Effective,
			})
		}
		if st, ok := up.proxy.Adaptive(); ok {
			row.Concurrency = &metrics.ConcurrencyState{Limit: st.Limit, InFlight: st.InFlight, Shed: map[string]int64{}}
			for c := range adaptive.Classes {
				row.Concurrency.Shed[c.String()] = st.Shed[c]
			}
		}
		s.Upstreams = append(s.Upstreams, row)
	}
	if a.watcher != nil {
		w := a.watcher.State()
		c := &metrics.ConsulState{Up: w.Up, LastContact: w.LastContact}
		for _, st := range a.catalog.States() {
			if st.Stale() {
				c.Stale++
			}
		}
		s.Consul = c
	}
	st := a.limiter.State()
	if st.Configured {
		s.Redis = &metrics.RedisState{Up: st.Up}
	}
	if a.tracer != nil {
		n := a.tracer.Stats()
		s.Spans = &metrics.SpanCounts{Exported: n.Exported, Dropped: n.Dropped, Failed: n.Failed}
	}
	if a.accessLog != nil {
		s.Lines = &metrics.LineCounts{Dropped: a.accessLog.Dropped()}
	}
	s.Limiter = &metrics.LimiterState{Calls: st.Calls, Keys: st.Keys, Waiting: st.Waiting}
	return s
}
