package consul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/proconsul/proconsul/discovery"
)

// Registration says what a service is to Consul.
type Registration struct {
	Name string // of the service
	// ID names this instance; empty: NAME-HOST-PORT, so that a process that
	// crashed and starts again takes its own place.
	ID string
	// Address is where others reach it; empty: the address of the agent's
	// node where the agent is on this machine, else the address from which
	// this machine reaches the agent.
	Address string
	Port    int
	Tags    []string
	Meta    map[string]string
	Weights Weights
	Check   Check
}

// Weights are an instance's shares of the traffic while all its checks pass,
// and while one of them warns. The zero value is {1, 1}; a Warning of 0 beside
// a Passing takes no traffic while it warns.
type Weights struct{ Passing, Warning int }

// Check is how Consul finds out whether the instance is well. With HTTP the
// agent asks it, with TTL the instance tells the agent; with neither it is
// well as long as it is registered.
type Check struct {
	// HTTP is a path such as "/healthz", or a whole URL, that answers 2xx when
	// all is well and 429 to warn.
	HTTP     string
	Interval time.Duration // between two asks; 0: 2s. Consul's floor is 1s
	Timeout  time.Duration // of one; 0: 1s
	// TTL is how long the agent believes the last report; it comes every
	// third of it.
	TTL time.Duration
	// Report says how the instance is, for TTL; nil: passing.
	Report func() (status discovery.Status, note string)
	// DeregisterAfter removes an instance that stays critical, as one that
	// crashed; 0: 10m. Consul's floor is 1m. Negative: never.
	DeregisterAfter time.Duration
}

// RegistrarOptions tunes a Registrar. The zero value is right for most.
type RegistrarOptions struct {
	Log *slog.Logger // nil: slog.Default
	// Refresh is the gap between blind re-registrations; 0: 30s. It is at
	// least two intervals of the check.
	Refresh time.Duration
	// DrainDelay is how long Serve goes on serving after it has deregistered,
	// until every gateway has heard of it; 0: 3s. Negative: not at all.
	DrainDelay time.Duration
	// Grace is how long Serve lets requests in flight finish; 0: 30s.
	Grace time.Duration
	// OnRegistered, if set, is called after each registration that the agent
	// lacked, with the instance's id and the address that others dial.
	OnRegistered func(id, address string)
}

// Registrar keeps one instance registered with the local agent. Run registers
// it, repairs the registration when the agent loses it, and deregisters it; it
// never ends because Consul is away. It is safe for concurrent use.
type Registrar struct {
	client *Client
	reg    Registration
	o      RegistrarOptions
	log    *slog.Logger
	probe  *http.Client

	lost   chan struct{} // wakes keep: the agent does not have us
	placed chan struct{} // wakes guard: the agent has us

	mu         sync.Mutex
	meta       map[string]string // beside the registration's own
	changed    bool              // meta is not what guard last saw
	registered bool
	ever       bool // registered at some time
	failed     bool // the log says so
	err        error
}

// NewRegistrar checks the registration. It connects to nothing.
func NewRegistrar(c *Client, reg Registration, o RegistrarOptions) (*Registrar, error) {
	if reg.Name == "" {
		return nil, errors.New("registration: name is empty")
	}
	if reg.Port < 0 || reg.Port > 65535 {
		return nil, fmt.Errorf("registration of %s: port %d is not between 0 and 65535", reg.Name, reg.Port)
	}
	k := &reg.Check
	if k.HTTP != "" && k.TTL != 0 {
		return nil, fmt.Errorf("registration of %s: a check is by HTTP or by TTL, not both", reg.Name)
	}
	if k.Interval < 0 || k.Timeout < 0 || k.TTL < 0 || k.TTL > 0 && k.TTL < time.Second {
		return nil, fmt.Errorf("registration of %s: check interval, timeout and ttl must not be negative, and a ttl is at least 1s", reg.Name)
	}
	if k.HTTP != "" && !strings.HasPrefix(k.HTTP, "/") && !strings.HasPrefix(k.HTTP, "http://") && !strings.HasPrefix(k.HTTP, "https://") {
		return nil, fmt.Errorf("registration of %s: check %q is neither a path nor a URL", reg.Name, k.HTTP)
	}
	if reg.Weights == (Weights{}) {
		reg.Weights = Weights{1, 1}
	}
	if reg.Weights.Passing < 1 || reg.Weights.Passing > maxWeight || reg.Weights.Warning < 0 || reg.Weights.Warning > maxWeight {
		return nil, fmt.Errorf("registration of %s: weights %d and %d: passing is 1 to %d, warning 0 to %d", reg.Name,
			reg.Weights.Passing, reg.Weights.Warning, maxWeight, maxWeight)
	}
	if reg.ID == "" {
		reg.ID = fmt.Sprintf("%s-%s-%d", reg.Name, hostname(), reg.Port)
	}
	k.Interval, k.Timeout = or(k.Interval, 2*time.Second), or(k.Timeout, time.Second)
	k.DeregisterAfter = or(k.DeregisterAfter, 10*time.Minute)
	// The agent starts an HTTP check anew with each registration, at a random
	// point of its interval: refreshes that come faster would starve it.
	o.Refresh = max(or(o.Refresh, 30*time.Second), 2*k.Interval)
	o.DrainDelay, o.Grace = or(o.DrainDelay, 3*time.Second), or(o.Grace, 30*time.Second)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	reg.Tags, reg.Meta = slices.Clone(reg.Tags), maps.Clone(reg.Meta)
	return &Registrar{client: c, reg: reg, o: o, log: o.Log.With("component", "registrar", "service", reg.Name, "instance", reg.ID),
		// The probe stands for the agent: no proxy, no kept connection.
		probe: &http.Client{Timeout: reg.Check.Timeout, Transport: &http.Transport{DisableKeepAlives: true}},
		lost:  make(chan struct{}, 1), placed: make(chan struct{}, 1)}, nil
}

func or(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// ID returns the instance's id with its agent.
func (r *Registrar) ID() string { return r.reg.ID }

// Announce sets meta beside the registration's own, in place of what an earlier
// call set, and tells the agent at once.
func (r *Registrar) Announce(meta map[string]string) {
	r.mu.Lock()
	same := maps.Equal(r.meta, meta)
	r.meta, r.changed = maps.Clone(meta), r.changed || !same && r.ever
	r.mu.Unlock()
	if !same {
		wake(r.lost)
	}
}

// Registered reports whether the agent confirmed the registration, and why not
// where it did not.
func (r *Registrar) Registered() (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.registered, r.err
}

const (
	deregisterPatience = 5 * time.Second
	registerTimeout    = 10 * time.Second
	// Without a quorum a PUT takes 9 to 21 s, though the TTL is reset at once.
	heartbeatTimeout = 30 * time.Second
	hashWait         = time.Minute
)

// Run keeps the instance registered until ctx ends, then deregisters it and
// returns. Start it when the service accepts connections. It returns nil, or
// why the instance could not be deregistered within five seconds.
//
// The order of going down without failed requests: end ctx, wait for Run,
// serve for another DrainDelay, then http.Server.Shutdown. Serve does so.
func (r *Registrar) Run(ctx context.Context) error {
	var group sync.WaitGroup
	if r.reg.Check.TTL > 0 {
		group.Go(func() { r.heartbeat(ctx) })
	}
	group.Go(func() { r.guard(ctx) })
	r.keep(ctx)
	group.Wait() // no heartbeat or repair may follow the deregistration
	return r.deregister(context.WithoutCancel(ctx))
}

// keep registers at once, after a loss, and blindly now and then: Consul takes
// an equal registration as no change, and keeps checks and maintenance.
func (r *Registrar) keep(ctx context.Context) {
	pace := bucket{credit: 2 * fullPrice}
	failures := 0
	for first := true; ctx.Err() == nil; {
		next := jitter(r.o.Refresh, 0.1)
		// Checks of an earlier life of this id would stay and rot. Never again
		// after that: it would end an operator's maintenance too.
		if err := r.register(ctx, first); err != nil {
			failures++
			next = backoff(failures, 5*time.Second)
		} else {
			first, failures = false, 0
		}
		t := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-r.lost:
			// The first repairs are immediate; somebody who deregisters us in
			// a loop gets two a second.
			wait(ctx, pace.due())
			pace.charge(fullPrice)
		}
		t.Stop()
	}
}

func (r *Registrar) register(ctx context.Context, replace bool) error {
	reg, err := r.definition(ctx)
	if err == nil {
		ask, cancel := context.WithTimeout(ctx, registerTimeout)
		defer cancel()
		opts := api.ServiceRegisterOpts{ReplaceExistingChecks: replace}.WithContext(ask)
		err = r.client.explain("/v1/agent/service/register", r.client.api.Agent().ServiceRegisterOpts(reg, opts))
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.mu.Lock()
	was, failed := r.registered, r.failed
	r.err, r.failed = err, err != nil
	if err == nil {
		r.registered, r.ever = true, true
		wake(r.placed)
	}
	r.mu.Unlock()
	switch {
	case err != nil && !failed:
		r.log.Warn("instance cannot be registered", "err", err)
	case err == nil && !was:
		addr := reg.Address
		if addr == "" {
			addr = "127.0.0.1"
		}
		addr = net.JoinHostPort(addr, strconv.Itoa(reg.Port))
		r.log.Info("instance registered", "address", addr)
		if r.o.OnRegistered != nil {
			r.o.OnRegistered(r.reg.ID, addr)
		}
	case err == nil && failed:
		r.log.Info("instance can be registered again")
	}
	return err
}

// definition is what the agent is told. It is made anew each time, because the
// address may depend on how the agent is reached now.
func (r *Registrar) definition(ctx context.Context) (*api.AgentServiceRegistration, error) {
	g := &r.reg
	address, checkHost := g.Address, g.Address
	if address == "" {
		own, err := r.client.localAddress(ctx)
		if err != nil {
			return nil, err
		}
		if own.IsLoopback() {
			checkHost = own.String() // the agent is here: its node's address is ours
		} else {
			address, checkHost = own.String(), own.String()
		}
	}
	k := &g.Check
	var check *api.AgentServiceCheck
	switch {
	case k.HTTP != "":
		target := k.HTTP
		if strings.HasPrefix(target, "/") {
			target = "http://" + net.JoinHostPort(checkHost, strconv.Itoa(g.Port)) + target
		}
		check = &api.AgentServiceCheck{HTTP: target, Interval: k.Interval.String(), Timeout: k.Timeout.String(), Status: "critical"}
		// Consul would call it critical until its first look, up to an
		// interval later; we looked already.
		if r.wellAt(ctx, target) {
			check.Status = "passing"
		}
	case k.TTL > 0:
		status, _ := r.report()
		check = &api.AgentServiceCheck{TTL: k.TTL.String(), Status: status.String()}
	}
	if check != nil {
		check.CheckID = r.checkID()
		if k.DeregisterAfter > 0 {
			check.DeregisterCriticalServiceAfter = k.DeregisterAfter.String()
		}
	}
	meta := map[string]string{}
	maps.Copy(meta, g.Meta)
	r.mu.Lock()
	maps.Copy(meta, r.meta)
	r.mu.Unlock()
	return &api.AgentServiceRegistration{ID: g.ID, Name: g.Name, Address: address, Port: g.Port, Tags: g.Tags, Meta: meta,
		Weights: &api.AgentWeights{Passing: g.Weights.Passing, Warning: g.Weights.Warning}, Check: check}, nil
}

func (r *Registrar) checkID() string { return "service:" + r.reg.ID }

func (r *Registrar) wellAt(ctx context.Context, target string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return false
	}
	resp, err := r.probe.Do(req)
	if err != nil {
		return false
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10))
	_ = resp.Body.Close()
	return resp.StatusCode/100 == 2
}

// localAddress is the address from which this machine reaches the agent. No
// packet is sent.
func (c *Client) localAddress(ctx context.Context) (net.IP, error) {
	host := c.addr
	if strings.HasPrefix(host, "unix://") {
		return net.IPv4(127, 0, 0, 1), nil
	}
	if u, err := url.Parse("//" + host); err == nil && u.Host != "" {
		host = u.Host
	}
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(strings.Trim(host, "[]"), "8500")
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", host)
	if err != nil {
		return nil, c.explain("/v1/agent/service/register", err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).IP, nil
}

func (r *Registrar) report() (discovery.Status, string) {
	if r.reg.Check.Report == nil {
		return discovery.StatusPassing, ""
	}
	status, note := r.reg.Check.Report()
	switch status {
	case discovery.StatusPassing, discovery.StatusWarning:
		return status, note
	}
	return discovery.StatusCritical, note
}

// heartbeat tells the agent how we are, every third of the TTL.
func (r *Registrar) heartbeat(ctx context.Context) {
	every := r.reg.Check.TTL / 3
	for wait(ctx, every) {
		if ok, _ := r.Registered(); !ok {
			continue // registering says it too
		}
		status, note := r.report()
		ask, cancel := context.WithTimeout(ctx, heartbeatTimeout)
		err := r.client.api.Agent().UpdateTTLOpts(r.checkID(), note, status.String(), (&api.QueryOptions{}).WithContext(ask))
		cancel()
		if errors.Is(r.client.explain("/v1/agent/check/update/"+r.checkID(), err), ErrUnknown) {
			r.repair("its check is unknown to the agent")
		}
	}
}

// guard watches our own definition with the agent: it hears of a
// deregistration by somebody else, or of an agent that forgot, within
// milliseconds.
func (r *Registrar) guard(ctx context.Context) {
	hash, failures := "", 0
	pace := bucket{credit: 2 * fullPrice}
	path := "/v1/agent/service/" + r.reg.ID
	for wait(ctx, pace.due()) {
		if ok, _ := r.Registered(); !ok {
			hash = ""
			select {
			case <-ctx.Done():
			case <-r.placed:
			}
			continue
		}
		block := jitter(hashWait, 0.06)
		ask, cancel := context.WithTimeout(ctx, block+holdTimeout)
		o := &api.QueryOptions{}
		if hash != "" {
			o.WaitHash, o.WaitTime = hash, block
		}
		svc, _, err := r.client.api.Agent().Service(r.reg.ID, o.WithContext(ask))
		cancel()
		err = r.client.explain(path, err)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrUnknown):
			hash = ""
			r.repair("somebody else deregistered it, or the agent forgot it")
			pace.charge(fullPrice)
		case err != nil:
			// Behind the error may be an agent that forgets all: look again as
			// soon as it answers.
			hash = ""
			failures++
			if !wait(ctx, backoff(failures, probeBackoff)) {
				return
			}
		default:
			failures = 0
			if hash != "" && svc.ContentHash != hash && !r.ownChange() {
				r.log.Warn("definition was changed by somebody else, is the id used twice?")
			}
			if svc.ContentHash == hash || svc.ContentHash == "" {
				pace.charge(fullPrice)
			}
			hash = svc.ContentHash
		}
	}
}

// ownChange reports, once, that Announce has changed the definition.
func (r *Registrar) ownChange() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := r.changed
	r.changed = false
	return changed
}

// repair registers again, now.
func (r *Registrar) repair(why string) {
	r.mu.Lock()
	was := r.registered
	r.registered = false
	r.mu.Unlock()
	if was {
		r.log.Warn("registration is lost, registering again", "reason", why)
	}
	wake(r.lost)
}

func (r *Registrar) deregister(ctx context.Context) error {
	patience := deregisterPatience
	r.mu.Lock()
	if !r.ever {
		patience = time.Second // most likely there is nothing to take back
	}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for failures := 1; ; failures++ {
		err := r.client.api.Agent().ServiceDeregisterOpts(r.reg.ID, (&api.QueryOptions{}).WithContext(ctx))
		err = r.client.explain("/v1/agent/service/deregister/"+r.reg.ID, err)
		if err == nil || errors.Is(err, ErrUnknown) {
			r.mu.Lock()
			r.registered = false
			r.mu.Unlock()
			r.log.Info("instance deregistered")
			return nil
		}
		if !wait(ctx, backoff(failures, time.Second)) {
			return fmt.Errorf("deregister %s: %w", r.reg.ID, err)
		}
	}
}
