package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/proconsul/proconsul/api"
	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/identity"
)

// eventsKept is how many events the status page can look back on.
const eventsKept = 1000

// operators is the operators' listener.
type operators struct {
	listener net.Listener
	http     *http.Server
	handler  *admin.Admin
}

func (a *App) openAdmin(cfg *config.Config) error {
	c := cfg.Admin
	if c.Addr == "" {
		return nil
	}
	if c.Insecure {
		a.log.Warn("the admin listener is open to everyone who reaches it", "addr", c.Addr, "key", "admin.insecure")
	}
	l, err := listenAdmin(c)
	if err != nil {
		return err
	}
	a.stack.push("admin listener", closeOnce(l))
	var secure *tls.Config
	if c.TLS != nil {
		shown := c.TLS.Listen()
		store, err := a.openCertificates(config.Listen{Name: "admin", TLS: &shown})
		if err != nil {
			return err
		}
		secure = store.TLS()
	}
	spec, err := api.JSON()
	if err != nil {
		return err
	}
	o := admin.Options{
		Status:   a.status,
		Ready:    a.readyChecks,
		Metrics:  a.metrics.Handler(),
		Events:   a.events,
		Log:      a.log.With("component", "admin"),
		Tokens:   tokensOf(c),
		Clients:  holderOf(c),
		Insecure: c.Insecure,
		OpenAPI:  api.YAML(), OpenAPIJSON: spec,

		Explain:   a.explain,
		RateLimit: a.rateLimit,
		TopLimits: a.topLimited,
		Config:    a.printConfig,
		Overrides: a.overrides.all,
		Consumers: a.consumerRows,

		Reload:         a.reloadBy,
		Validate:       a.validate,
		Plan:           a.plan,
		Drain:          a.drainSelf,
		Undrain:        a.undrainSelf,
		Instance:       a.onInstance,
		Breaker:        a.onBreakerAct,
		ResetRateLimit: a.resetRateLimit,
		Trace:          a.trace,
	}
	if a.options.Level != nil {
		o.LogLevel, o.SetLogLevel = a.logLevel, a.setLogLevel
	}
	handler := admin.New(o)
	a.admin = &operators{listener: l, http: handler.Server(), handler: handler}
	a.admin.http.TLSConfig = secure
	return nil
}

func listenAdmin(c config.Admin) (net.Listener, error) {
	if path, ok := c.Socket(); ok {
		return listenSocket("admin", path)
	}
	return listen("admin", c.Addr, false)
}

// holderOf knows whose client certificate is whose, as routes know consumers'.
func holderOf(c config.Admin) admin.Holder {
	known := identity.NewHolders[config.AdminClient]()
	for _, one := range c.Clients {
		known.Add(one.Cert(), one)
	}
	return func(leaf *x509.Certificate) (string, admin.Role) {
		one, _ := known.Find(leaf, "admin")
		return one.Name, admin.Role(one.Role)
	}
}

func tokensOf(c config.Admin) (tokens []admin.Token) {
	for _, t := range c.Tokens {
		tokens = append(tokens, admin.Token{Name: t.Name, Role: admin.Role(t.Role), Value: t.Token.Reveal()})
	}
	return tokens
}

func (o *operators) serve(context.Context) error {
	serve := func() error { return o.http.Serve(o.listener) }
	if o.http.TLSConfig != nil {
		serve = func() error { return o.http.ServeTLS(o.listener, "", "") } // it has them
	}
	if err := serve(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// close ends the live streams and every connection: viewers poll again.
func (o *operators) close() {
	o.handler.Close()
	_ = o.http.Close() // nothing is owed to a viewer
}

func (a *App) readyChecks() admin.Readiness {
	ok, why := a.readiness()
	return admin.Readiness{Ready: ok, Checks: []admin.ReadyCheck{
		{Name: "config", OK: true, Detail: a.current.Load().config.Hash},
		{Name: "catalog", OK: ok || a.away(), Detail: why},
		{Name: "accepting", OK: !a.away()},
	}}
}

// tell puts an event on the events page and hands it to who listens.
func (a *App) tell(e Event) {
	if e.At.IsZero() {
		e.At = time.Now()
	}
	a.events.Append(e)
	if a.options.OnEvent != nil {
		a.options.OnEvent(e)
	}
}

// onPoolEvent tells the log and the events page what happened in a pool.
func (a *App) onPoolEvent(e balancer.Event) {
	log := a.log.With("component", "balancer", "upstream", e.Pool)
	ev := admin.Event{At: e.At, Kind: "instance", Severity: admin.Info, Service: e.Pool, Instance: e.Instance.ID}
	attrs := []any{"event", string(e.Kind), "instance", e.Instance.ID, "address", e.Instance.Address}
	if e.Reason != "" {
		attrs = append(attrs, "reason", e.Reason)
	}
	switch e.Kind {
	case balancer.EventJoined:
		ev.Message = fmt.Sprintf("%s joined as %s", e.Instance.Address, e.Instance.Status)
	case balancer.EventLeft:
		ev.Message = fmt.Sprintf("%s left", e.Instance.Address)
	case balancer.EventStatusChanged:
		ev.Message = fmt.Sprintf("%s is %s, was %s", e.Instance.Address, e.To, e.From)
		if e.To != discovery.StatusPassing {
			ev.Severity = admin.Warn
		}
		attrs = append(attrs, "from", e.From.String(), "to", e.To.String())
	case balancer.EventEjected, balancer.EventAside, balancer.EventProbeFailed, balancer.EventDisproved, balancer.EventGuardOn, balancer.EventPanicOn:
		ev.Severity = admin.Warn
		fallthrough
	default:
		ev.Message = string(e.Kind)
	}
	if e.Reason != "" {
		ev.Message += ": " + e.Reason
	}
	if ev.Severity == admin.Warn {
		log.Warn("pool changed", attrs...)
	} else {
		log.Info("pool changed", attrs...)
	}
	a.tell(ev)
}

// onBreaker tells the log, the metrics and the events page of a breaker.
func (a *App) onBreaker(name string, s breaker.State) {
	ev := admin.Event{Kind: "breaker", Severity: admin.Info, Service: name, Message: "breaker " + s.String()}
	if s == breaker.Open {
		ev.Severity = admin.Error
		a.log.Warn("breaker changed", "component", "breaker", "upstream", name, "state", s.String())
	} else {
		a.log.Info("breaker changed", "component", "breaker", "upstream", name, "state", s.String())
	}
	a.metrics.Upstream(name).BreakerTransition(s.String())
	a.tell(ev)
}

// Endpoints returns what the admin listener answers; none where there is none.
func (a *App) Endpoints() []admin.Endpoint {
	if a.admin == nil {
		return nil
	}
	return a.admin.handler.Endpoints()
}
