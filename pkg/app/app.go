// Package app wires the gateway: it knows every other package, and none knows
// it. New acquires, Run serves until its context ends and then goes down in
// order, Reload takes over a changed configuration.
package app

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/consul"
	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/acme"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/cohort"
	"github.com/proconsul/proconsul/pkg/gateway"
	"github.com/proconsul/proconsul/pkg/identity"
	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/metrics"
	"github.com/proconsul/proconsul/pkg/middleware/accesslog"
	"github.com/proconsul/proconsul/pkg/problem"
	"github.com/proconsul/proconsul/pkg/systemd"
	"github.com/proconsul/proconsul/pkg/tracing"
)

// Options are what an App is made with beside its configuration.
type Options struct {
	Version string
	Log     *slog.Logger

	// AccessLog is where access lines go when the configuration names no file;
	// nil: standard output.
	AccessLog io.Writer

	// OnEvent is told of everything that the events page shows; it must not
	// block. It may be nil.
	OnEvent func(Event)

	// Load reads the configuration anew for a reload; nil: reloads are refused.
	Load func() (*config.Config, error)

	// Parse reads a text as Load reads the file, for configurations that
	// operators send to be judged; nil: as text that refers to nothing outside.
	Parse func(name string, text []byte) (*config.Config, error)

	// Level is what Log's level follows, for operators to change; nil: they
	// cannot.
	Level *slog.LevelVar

	// Watch calls its argument whenever the configuration may have changed,
	// with what says so (file, signal), until the context ends; nil: nobody
	// watches.
	Watch func(ctx context.Context, changed func(source string)) error

	// Notifier tells the service manager how the app is; nil:
	// none.
	Notifier *systemd.Notifier
}

// Event is something that happened to the gateway or to what it watches.
type Event = admin.Event

// App is one gateway replica.
type App struct {
	options Options
	log     *slog.Logger
	id      string // of this replica
	started time.Time

	stack         stack
	parts         *group // what serves requests stands on: watches, pools, logs
	metrics       *metrics.Metrics
	catalog       *discovery.Catalog
	client        *consul.Client    // nil: Consul is disabled
	watcher       *consul.Watcher   // nil: likewise
	replicas      *consul.Replicas  // nil: likewise
	consumers     *consumers        // of Consul's KV store; nil: none are read
	consumerWatch *consul.KVWatch   // nil: likewise
	registrar     *consul.Registrar // nil: the gateway does not register itself
	limiter       *limiter.Limiter
	keys          *identity.Keys // of token issuers
	upstreams     *upstreams
	accessLog     *accesslog.Log  // nil: none
	tracer        *tracing.Tracer // nil: likewise
	handler       *gateway.Handler
	public        []*server
	writes        *cohort.Writes     // to clients and instances, on the fast engines
	secured       []secured          // what those of them with TLS show
	ours          []ours             // files for connections to Consul and Redis
	acme          *acme.Certificates // nil: none are obtained
	admin         *operators         // nil: none
	events        *admin.Events

	draining  atomic.Bool     // going down
	drained   atomic.Bool     // out of service at an operator's word
	overrides overrides       // what else they hold
	limited   limited         // whom the limiter limits most
	served    []config.Listen // the public listeners, which a reload leaves as they are
	began     *config.Config  // what only a restart takes over is as it has it
	level     slog.Level      // of the log, as the configuration has it
	ready     chan struct{}   // closed when the app is first ready
	once      sync.Once

	reloading sync.Mutex // one reload at a time
	current   atomic.Pointer[loaded]
	page      atomic.Pointer[written]
}

// loaded is the configuration that is served.
type loaded struct {
	config *config.Config
	at     time.Time
	err    string // why the last reload was refused; empty: it was not
	faults []admin.Fault
	errAt  time.Time
}

// New opens the listeners and prepares everything that cfg asks for. It starts
// nothing; on an error all that was opened is closed again.
func New(cfg *config.Config, o Options) (_ *App, err error) {
	// Not a named result: a return of nil would take it from the unwinding.
	a := &App{options: o, log: o.Log, id: replicaID(), started: time.Now(), writes: cohort.New(), ready: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.stack.unwind())
		}
	}()
	a.parts = newGroup(context.Background())
	a.stack.push("parts", a.parts.stop)

	if o.Level != nil {
		a.level = o.Level.Level()
	}
	a.served, a.began = cfg.Listen, cfg
	a.events = admin.NewEvents(eventsKept)
	a.metrics = metrics.New(metrics.Options{Version: o.Version, Reasons: reasons(), Log: a.log, NativeHistograms: cfg.Metrics.NativeHistograms, MaxSeries: cfg.Metrics.MaxSeries})
	a.catalog = discovery.NewCatalog()
	a.keys = identity.NewKeys(a.log.With("component", "identity"), nil)
	if err := a.openConsul(cfg); err != nil {
		return nil, err
	}
	a.openConsumers(cfg)
	if err := a.openLimiter(cfg); err != nil {
		return nil, err
	}
	if err := a.openAccessLog(cfg); err != nil {
		return nil, err
	}
	if err := a.openTracing(cfg); err != nil {
		return nil, err
	}
	a.upstreams = &upstreams{
		log: a.log.With("component", "upstreams"), catalog: a.catalog, metrics: a.metrics, via: "proconsul-" + a.id[strings.LastIndexByte(a.id, '-')+1:],
		breakers: breaker.NewRegistry(a.log, a.onBreaker),
		onEvent:  a.onPoolEvent, group: a.parts, writes: a.writes, live: map[string]*upstream{},
	}
	plan, table, err := a.build(cfg)
	if err != nil {
		return nil, err
	}
	if err := a.openListeners(cfg, table); err != nil {
		return nil, err
	}
	if err := a.openAdmin(cfg); err != nil {
		return nil, err
	}
	if err := a.openRegistrar(cfg); err != nil {
		return nil, err
	}
	a.current.Store(&loaded{config: cfg, at: time.Now()})
	a.take("start", cfg, plan, table)
	a.metrics.SetState(a.metricsState)
	return a, nil
}

func reasons() []string {
	var list []string
	for _, r := range problem.Reasons() {
		list = append(list, string(r))
	}
	return list
}

// replicaID tells replicas apart in logs and in the limiter's share; its last
// part does so in Via fields, which clients see.
func replicaID() string {
	b := make([]byte, 4)
	_, _ = rand.Read(b) // never fails, see crypto/rand
	host, err := os.Hostname()
	if err != nil {
		host = "gateway"
	}
	return host + "-" + hex.EncodeToString(b)
}

// build thinks a configuration through: everything that can fail, and nothing
// that is live.
func (a *App) build(cfg *config.Config) (_ *plan, _ *gateway.Table, err error) {
	served := a.asServed(cfg)
	if err := served.Confused(); err != nil {
		return nil, nil, fmt.Errorf("with the listeners and kv of the start: %w", err)
	}
	if err := admin.CheckExposure(served.Admin.Addr, tokensOf(served.Admin), served.Admin.KnowsCertificates(), served.Admin.Insecure); err != nil {
		return nil, nil, err
	}
	p, err := a.upstreams.plan(cfg)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			a.upstreams.abandon(p)
		}
	}()
	who, err := identity.New(cfg, a.keys, p.client)
	if err != nil {
		return nil, nil, err
	}
	if all, partial := a.consumers.join(served); a.consumers != nil {
		if err := who.SetConsumers(all, partial); err != nil {
			return nil, nil, err
		}
	}
	table, err := gateway.Build(cfg, gateway.Deps{
		Log:       a.log.With("component", "gateway"),
		AccessLog: a.accessLog,
		Metrics:   a.metrics,
		Tracer:    a.tracer,
		Limiter:   a.limiter,
		Identity:  who,
		Upstream:  p.get,
	})
	return p, table, err
}

// asServed returns a configuration with what only a restart takes over as it was
// at the start: whom callers may be taken for is judged by that.
func (a *App) asServed(cfg *config.Config) *config.Config {
	served := *cfg
	served.Listen, served.KV = a.served, a.began.KV
	served.Admin.Addr, served.Admin.TLS, served.Admin.Insecure = a.began.Admin.Addr, a.began.Admin.TLS, a.began.Admin.Insecure
	return &served
}

// take makes what build returned the live state. It cannot fail.
func (a *App) take(source string, cfg *config.Config, p *plan, table *gateway.Table) {
	queries, drop := a.upstreams.commit(p)
	if a.watcher != nil {
		a.watcher.Sync(append(queries, a.ownQuery(cfg)...))
		a.awaitCatalog(queries)
	}
	a.keys.Use(table.Identity())
	a.handler.Swap(table)
	drop()
	if a.admin != nil {
		a.admin.handler.SetTokens(tokensOf(cfg.Admin))
		a.admin.handler.SetClients(holderOf(cfg.Admin))
	}
	if a.accessLog != nil {
		a.accessLog.Configure(cfg.AccessLog)
	}
	if a.tracer != nil {
		a.tracer.Configure(tracingRules(cfg.Tracing))
	}
	a.metrics.Declare(names(cfg))
	a.metrics.ConfigLoaded(source, cfg.Hash, time.Now())
}

// awaitCatalog gives services that a reload brought a moment to be looked up,
// so that their routes do not begin with 503s. Before the app is ready there is
// nothing to wait for: it is given no traffic.
func (a *App) awaitCatalog(queries []discovery.Query) {
	select {
	case <-a.ready:
	default:
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for _, q := range queries {
		for ctx.Err() == nil && !a.catalog.State(q.Key()).Loaded {
			wait(ctx, 2*time.Millisecond)
		}
	}
}

func names(cfg *config.Config) metrics.Names {
	var n metrics.Names
	for _, rt := range cfg.Routes {
		n.Routes = append(n.Routes, metrics.RouteName{Route: rt.Name, Upstream: rt.Upstream.Service})
	}
	for _, rt := range cfg.Routes {
		if auth := cfg.Chain(rt).Auth; auth != nil {
			n.Auth = append(append(n.Auth, auth.AnyOf...), auth.AllOf...)
		}
	}
	for _, l := range cfg.AllLimits() {
		n.Policies = append(n.Policies, l.Name)
	}
	for _, up := range cfg.Upstreams {
		n.Upstreams = append(n.Upstreams, up.Name)
	}
	return n
}

func (a *App) openListeners(cfg *config.Config, table *gateway.Table) error {
	a.handler = gateway.NewHandler(table)
	var sockets []net.Listener
	for _, c := range cfg.Listen {
		l, err := listen(c.Name, c.Addr, c.ReusePort)
		if err != nil {
			return err
		}
		a.stack.push("listener "+c.Name, closeOnce(l))
		sockets = append(sockets, l)
	}
	if err := a.openACME(cfg, sockets); err != nil {
		return err
	}
	for i, c := range cfg.Listen {
		store, err := a.openCertificates(c)
		if err != nil {
			return err
		}
		handler := a.handler.Listener(c)
		if a.acme != nil && store == nil {
			handler = a.acme.Challenges(handler) // of names that have no certificate yet
		}
		noTLS := func() {}
		if store != nil {
			noTLS = a.metrics.HandshakeFailures(c.Name)
		}
		a.public = append(a.public, newPublicServer(c, sockets[i], store, handler, a.handler.Refusals(c), noTLS, a.away, a.writes, a.log))
	}
	return nil
}

// closeOnce closes a listener that its server may have closed already.
func closeOnce(l net.Listener) func() error {
	return func() error {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

// Addr returns the address that the named public listener is bound to; the
// first listener's for an empty name, nothing for an unknown one.
func (a *App) Addr(name string) string {
	for _, s := range a.public {
		if name == "" || s.name == name {
			return s.listener.Addr().String()
		}
	}
	return ""
}

// AdminAddr returns the address of the admin listener, unix:PATH for a socket,
// or nothing.
func (a *App) AdminAddr() string {
	if a.admin == nil {
		return ""
	}
	return a.admin.listener.Addr().String()
}

// ID names this replica.
func (a *App) ID() string { return a.id }

// Ready is closed when the app is ready for traffic for the first time.
func (a *App) Ready() <-chan struct{} { return a.ready }

// Run serves until ctx ends, and then goes down in the order that loses no
// request: unready, deregister, delay, stop accepting, drain. It returns nil
// after an orderly end, else what failed. Call it once.
func (a *App) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.stack.unwind()) }()

	serving := newGroup(ctx)
	if a.watcher != nil {
		a.parts.run("consul watcher", a.watcher.Run)
		a.parts.run("consul state", a.followConsul)
	}
	if a.consumers != nil {
		a.parts.run("consumers", a.runConsumers)
	}
	a.parts.run("limiter", a.limiter.Run)
	a.parts.run("certificates", a.followCertificates)
	if a.acme != nil {
		a.parts.run("acme", a.acme.Run)
	}
	a.parts.run("issuers' keys", a.keys.Run)
	if a.accessLog != nil {
		a.parts.run("access log", a.accessLog.Run)
	}
	if a.tracer != nil {
		a.parts.run("tracing", a.tracer.Run)
	}
	for _, s := range a.public {
		a.parts.run("listener "+s.name, s.serve)
	}
	if a.admin != nil {
		a.parts.run("admin", a.admin.serve)
	}
	serving.run("overrides", a.keepOverrides)
	serving.run("readiness", a.awaitReady)
	if a.registrar != nil {
		serving.run("registrar", a.register)
	}
	if a.options.Notifier != nil {
		serving.run("service manager", a.tellManager)
	}
	if a.options.Watch != nil {
		serving.run("config watch", func(ctx context.Context) error {
			return a.options.Watch(ctx, func(source string) { _ = a.Reload(source) }) // it has logged what it refused
		})
	}
	a.log.Info("started", "replica", a.id, "version", a.options.Version, "listen", a.Addr(""), "admin", a.AdminAddr(), "config", a.current.Load().config.Source)

	select {
	case <-ctx.Done():
	case <-serving.ctx.Done(): // with ctx, or else goDown says why
	case <-a.parts.ctx.Done():
		err = context.Cause(a.parts.ctx)
	}
	return errors.Join(err, a.goDown(serving))
}

// goDown ends what Run started, in order.
func (a *App) goDown(serving *group) error {
	cfg := a.current.Load().config
	a.draining.Store(true)
	a.managerTold(a.options.Notifier.Stopping())
	a.log.Info("draining", "delay", cfg.Shutdown.Delay.String(), "grace", cfg.Shutdown.Grace.String())
	err := serving.stop() // deregisters
	if a.parts.ctx.Err() == nil {
		// Balancers and other gateways need a moment to hear of it.
		wait(context.Background(), cfg.Shutdown.Delay)
	}
	ctx, cancel := context.WithTimeout(context.Background(), cfg.Shutdown.Grace)
	defer cancel()
	for _, up := range a.upstreams.list() {
		up.proxy.GoAway("")
	}
	var wg sync.WaitGroup
	faults := make([]error, len(a.public))
	for i, s := range a.public {
		wg.Go(func() { faults[i] = s.shutdown(ctx) })
	}
	wg.Wait()
	for _, fault := range faults {
		if fault != nil { // the requests are lost, the end is orderly all the same
			a.log.Warn("grace period is over", "err", fault)
		}
	}
	if a.admin != nil {
		a.admin.close()
	}
	a.log.Info("stopped", "replica", a.id)
	return err
}

// awaitReady closes Ready once every pool has been loaded.
func (a *App) awaitReady(ctx context.Context) error {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		if ok, _ := a.readiness(); ok {
			a.once.Do(func() { close(a.ready) })
			a.log.Info("ready", "after", time.Since(a.started).Round(time.Millisecond).String())
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// away reports whether clients should go to another replica.
func (a *App) away() bool { return a.draining.Load() || a.drained.Load() }

// readiness reports whether the replica should be given traffic, and if not,
// why. Redis down or Consul lost after the first answer leave it ready: it
// serves on what it has.
func (a *App) readiness() (ok bool, why string) {
	if a.away() {
		return false, "draining"
	}
	for _, up := range a.upstreams.list() {
		if up.query == (discovery.Query{}) {
			continue
		}
		if s := a.catalog.State(up.query.Key()); !s.Loaded {
			why = fmt.Sprintf("no catalog: service %s has not been loaded", up.query.Key())
			if s.Err != "" {
				why += ": " + s.Err
			}
			return false, why
		}
	}
	if a.consumers != nil {
		if a.handler.Table().Identity().Partial() {
			why = "no consumers: the keys below " + a.consumers.prefix + " have not been loaded"
			if s := a.consumerWatch.State(); s.Err != "" {
				why += ": " + s.Err
			}
			return false, why
		}
	}
	return true, ""
}

// Reload reads the configuration anew and takes it over, or refuses it and
// changes nothing. The source is for logs and metrics: file, signal or api.
func (a *App) Reload(source string) error {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	old := a.current.Load()
	a.managerTold(a.options.Notifier.Reloading())
	defer func() { a.managerTold(a.options.Notifier.Ready(a.summary())) }()
	if a.options.Load == nil {
		return errors.New("this gateway was not started from a file: there is nothing to reload")
	}
	cfg, err := a.options.Load()
	if err == nil && cfg.Same(old.config) {
		level := slog.LevelInfo
		if source == "file" { // nobody asked: something else in the directory changed
			level = slog.LevelDebug
		}
		a.log.Log(context.Background(), level, "reload: nothing has changed", "source", source, "config", cfg.Hash)
		a.current.Store(&loaded{config: old.config, at: old.at})
		return nil
	}
	var p *plan
	var table *gateway.Table
	if err == nil {
		p, table, err = a.build(cfg)
	}
	if err != nil {
		a.metrics.ConfigRefused(source)
		a.current.Store(&loaded{config: old.config, at: old.at, err: err.Error(), faults: faultsOf(err), errAt: time.Now()})
		a.log.Error("reload refused", "source", source, "serving", old.config.Hash, "since", old.at, "err", err)
		a.tell(admin.Event{Kind: "config", Severity: admin.Error, Message: "reload refused: " + err.Error()})
		return err
	}
	// Nothing below this line can fail.
	a.take(source, cfg, p, table)
	a.current.Store(&loaded{config: cfg, at: time.Now()})
	a.rejudge()
	a.announce(cfg)
	a.log.Info("reloaded", "source", source, "config", cfg.Hash, "routes", len(cfg.Routes))
	if keys := old.config.NeedsRestart(cfg); len(keys) > 0 {
		a.log.Warn("changed settings that need a restart were not taken over", "keys", keys)
	}
	a.tell(admin.Event{Kind: "config", Severity: admin.Info, Message: fmt.Sprintf("configuration %s taken over, %d routes", cfg.Hash, len(cfg.Routes))})
	return nil
}

// Handler serves requests as the first listener does, for tests and
// benchmarks without a socket.
func (a *App) Handler() http.Handler { return a.public[0].handler }
