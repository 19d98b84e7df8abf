package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/adaptive"
	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/cohort"
	"github.com/proconsul/proconsul/pkg/metrics"
	"github.com/proconsul/proconsul/pkg/proxy"
)

// upstream is a way to a service with all that survives a reload: pool,
// breaker and connections.
type upstream struct {
	config config.Upstream
	query  discovery.Query // zero where the instances are in the configuration
	pool   *balancer.Pool
	proxy  *proxy.Upstream
	cancel func() // ends the subscription to the catalog; nil before it began
	stop   func() // ends the pool's Run and waits for it
	fates  *fates // of its tries
}

// upstreams keeps them by name, apart from the table of routes.
type upstreams struct {
	log      *slog.Logger
	catalog  *discovery.Catalog
	breakers *breaker.Registry
	metrics  *metrics.Metrics
	via      string
	onEvent  func(balancer.Event)
	group    *group // runs the pools
	writes   *cohort.Writes

	mu   sync.Mutex
	live map[string]*upstream
}

// plan is a change of the upstreams that has been thought through: nothing
// live has been touched, and apply cannot fail.
type plan struct {
	all   map[string]*upstream // as it will be
	apply []func()
}

// plan works out what cfg asks for, or returns everything that is wrong.
func (us *upstreams) plan(cfg *config.Config) (*plan, error) {
	us.mu.Lock()
	defer us.mu.Unlock()
	p := &plan{all: map[string]*upstream{}}
	var faults []error
	for _, c := range cfg.Upstreams {
		if live := us.live[c.Name]; live != nil && live.query == queryOf(c) {
			changed, apply, err := us.change(live, c)
			faults = append(faults, err)
			p.all[c.Name] = changed
			p.apply = append(p.apply, apply)
			continue
		}
		b, configure, err := us.breaker(c)
		faults = append(faults, err)
		if err != nil {
			continue
		}
		fresh, err := us.create(c, b)
		faults = append(faults, err)
		p.all[c.Name] = fresh
		p.apply = append(p.apply, configure)
	}
	if err := errors.Join(faults...); err != nil {
		us.abandon(p)
		return nil, err
	}
	return p, nil
}

// breaker returns the breaker for a new upstream. One that the name has had so
// far, for other instances, keeps its state, and its settings until configure.
func (us *upstreams) breaker(c config.Upstream) (b *breaker.Breaker, configure func(), err error) {
	settings := breakerSettings(c)
	if us.live[c.Name] == nil {
		b, err = us.breakers.Breaker(c.Name, settings)
		return b, func() {}, err
	}
	if err := settings.Check(); err != nil {
		return nil, nil, fmt.Errorf("upstream %s: %w", c.Name, err)
	}
	return us.breakers.Lookup(c.Name), func() {
		if _, err := us.breakers.Breaker(c.Name, settings); err != nil {
			us.log.Error("breaker kept old settings", "upstream", c.Name, "err", err)
		}
	}, nil
}

// abandon gives back what a plan has taken that will not be carried out. Like
// plan and commit it is called by one reload at a time.
func (us *upstreams) abandon(p *plan) {
	for name := range p.all {
		if us.live[name] == nil {
			us.breakers.Release(name)
		}
	}
}

// change checks that a live upstream can take over c. It returns the upstream
// as it will be, on the same parts, and what makes the parts take over. The
// live one is not touched: the status page reads it.
func (us *upstreams) change(live *upstream, c config.Upstream) (changed *upstream, apply func(), err error) {
	if _, err := us.trial(c); err != nil {
		return nil, nil, err
	}
	next := *live
	next.config = c
	return &next, func() {
		_, breakerErr := us.breakers.Breaker(c.Name, breakerSettings(c))
		err := errors.Join(breakerErr, live.pool.Configure(us.poolOptions(c, live.probe)), live.proxy.Configure(proxySettings(c)))
		if err != nil { // the trial has shown that it works; only a file can have changed since
			us.log.Error("upstream kept old settings", "upstream", c.Name, "err", err)
		}
		if len(c.Instances) > 0 {
			live.pool.Set(staticSnapshot(c))
		}
	}, nil
}

// create makes an upstream that nothing feeds and nothing runs yet.
func (us *upstreams) create(c config.Upstream, b *breaker.Breaker) (*upstream, error) {
	fresh := &upstream{config: c, query: queryOf(c)}
	pool, err := balancer.New(c.Name, us.poolOptions(c, fresh.probe))
	if err != nil {
		return nil, err
	}
	fates := newFates()
	up, err := proxy.NewUpstream(c.Name, pool, b, proxySettings(c), proxy.Options{
		Log: us.log, Via: us.via, Writes: us.writes, OnAttempt: func(a proxy.Attempt) {
			fates.add(a)
			us.onAttempt(a)
		},
	})
	if err != nil {
		return nil, err
	}
	fresh.pool, fresh.proxy, fresh.fates = pool, up, fates
	return fresh, nil
}

// probe asks an ejected instance whether it answers requests again.
func (up *upstream) probe(ctx context.Context, in discovery.Instance) error {
	return up.proxy.Probe(ctx, in.Address)
}

// commit makes p the live state: new upstreams are fed and run, and changed
// ones take over their settings. It returns what has to be watched, and what
// lets go of the upstreams that are gone, once no route leads there any more.
func (us *upstreams) commit(p *plan) (queries []discovery.Query, drop func()) {
	us.mu.Lock()
	defer us.mu.Unlock()
	for _, apply := range p.apply {
		apply()
	}
	before := us.live
	us.live = p.all
	drop = func() {
		for name, old := range before {
			now := p.all[name]
			if now == nil || now.pool != old.pool {
				old.release()
			}
			if now == nil {
				us.breakers.Release(name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(us.live)) {
		up := us.live[name]
		if up.cancel == nil {
			us.start(up)
		}
		if up.query != (discovery.Query{}) && !slices.Contains(queries, up.query) {
			queries = append(queries, up.query)
		}
	}
	return queries, drop
}

func (us *upstreams) start(up *upstream) {
	ctx, cancel := context.WithCancel(us.group.ctx)
	done := make(chan struct{})
	us.group.run("pool "+up.config.Name, func(context.Context) error {
		defer close(done)
		return up.pool.Run(ctx)
	})
	up.stop = func() { cancel(); <-done }
	if len(up.config.Instances) > 0 {
		up.cancel = func() {}
		up.pool.Set(staticSnapshot(up.config))
		return
	}
	up.cancel = us.catalog.Subscribe(up.query.Key(), up.pool.Set)
}

// release lets go of an upstream that no route uses any more. Its requests in
// flight finish; what would stream for ever is told to go away.
func (up *upstream) release() {
	up.cancel()
	up.stop()
	up.proxy.Close()
}

// get returns the upstream of that name out of a plan.
func (p *plan) get(name string) (*proxy.Upstream, error) {
	up := p.all[name]
	if up == nil {
		return nil, fmt.Errorf("no upstream named %q", name)
	}
	return up.proxy, nil
}

// client returns the way to the upstream of that name, for what the gateway
// itself asks.
func (p *plan) client(name string) (http.RoundTripper, error) {
	up, err := p.get(name)
	if err != nil {
		return nil, err
	}
	return up.Client(), nil
}

// list returns the live upstreams by name.
func (us *upstreams) list() []*upstream {
	us.mu.Lock()
	defer us.mu.Unlock()
	list := make([]*upstream, 0, len(us.live))
	for _, name := range slices.Sorted(maps.Keys(us.live)) {
		list = append(list, us.live[name])
	}
	return list
}

// find returns the live upstream of that name, or nil.
func (us *upstreams) find(name string) *upstream {
	us.mu.Lock()
	defer us.mu.Unlock()
	return us.live[name]
}

func (us *upstreams) onAttempt(a proxy.Attempt) {
	us.metrics.Attempt(metrics.Attempt{
		Upstream: a.Upstream, Route: a.Route, Number: a.Number, Status: a.Status,
		Failure: a.Failure, Ended: a.Ended, Duration: a.Duration, Retried: a.Retried, Budget: a.Budget, Broken: a.Broken,
	})
}

func (us *upstreams) poolOptions(c config.Upstream, probe func(context.Context, discovery.Instance) error) balancer.Options {
	o := c.Outlier
	return balancer.Options{
		Policy:    c.Balance,
		SlowStart: c.SlowStart,
		Outlier: balancer.Outlier{
			Disabled:            o.Disabled,
			ConsecutiveErrors:   o.Refused,
			ConsecutiveFailures: o.Consecutive,
			FailureRate:         int(o.FailureRate),
			MinRequests:         o.MinRequests,
			Window:              o.Window,
			EjectFor:            o.EjectFor,
			MaxEjectFor:         o.MaxEjectFor,
			MaxEjected:          int(o.MaxEjected),
			Panic:               int(o.Panic),
		},
		MassDrop: balancer.MassDrop{Disabled: c.MassDrop.Disabled, Share: int(c.MassDrop.Share), Hold: c.MassDrop.Hold},
		Probe:    probe,
		OnEvent:  us.onEvent,
	}
}

func proxySettings(c config.Upstream) proxy.Settings {
	return proxy.Settings{
		Scheme: c.Scheme,
		Engine: c.Engine,
		TLS: proxy.TLS{CAFile: c.TLS.CAFile, CertFile: c.TLS.CertFile, KeyFile: c.TLS.KeyFile,
			ServerName: c.TLS.ServerName, SkipVerify: c.TLS.SkipVerify},
		Connect:  c.Timeout.Connect,
		Response: c.Timeout.Response,
		Total:    c.Timeout.Total,
		Idle:     c.Timeout.Idle,
		Drain:    c.Drain,
		Adaptive: adaptiveSettings(c.Concurrency),
		Retry: proxy.Retry{Attempts: c.Retry.Attempts, On: c.Retry.On, Methods: c.Retry.Methods,
			Budget: c.Retry.Budget.Fraction(), MinRate: c.Retry.MinRate},
	}
}

func adaptiveSettings(c config.Concurrency) *adaptive.Settings {
	if !c.Adaptive {
		return nil
	}
	return &adaptive.Settings{Min: c.Min, Max: c.Max, Headroom: c.Headroom.Fraction(), Probe: c.Probe}
}

func breakerSettings(c config.Upstream) breaker.Settings {
	return breaker.Settings{
		Disabled:     c.Breaker.Disabled,
		ErrorPercent: int(c.Breaker.ErrorRate),
		MinRequests:  c.Breaker.MinRequests,
		OpenFor:      c.Breaker.OpenFor,
		MaxInFlight:  c.MaxInFlight,
		Engine:       c.Breaker.Engine,
		FailOn:       c.Breaker.FailOn,
	}
}

// queryOf returns what has to be watched for an upstream; the zero Query where
// its instances are in the configuration.
func queryOf(c config.Upstream) discovery.Query {
	if len(c.Instances) > 0 {
		return discovery.Query{}
	}
	return discovery.Query{Service: c.Service, Datacenter: c.Datacenter, Filter: c.Filter, Address: c.Address}
}

// staticSnapshot is the instances that the configuration names.
func staticSnapshot(c config.Upstream) discovery.Snapshot {
	s := discovery.Snapshot{Service: c.Name, At: time.Now()}
	for _, in := range c.Instances {
		s.Instances = append(s.Instances, discovery.Instance{
			ID: "config/" + in.Address, Service: c.Name, ServiceID: in.Address, Node: "config",
			Address: in.Address, Status: discovery.StatusPassing, Weight: in.Weight,
		})
	}
	slices.SortFunc(s.Instances, func(a, b discovery.Instance) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return s
}
