package app

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/breaker"
)

// overrides are what operators hold against what the gateway would do by
// itself. Each ends by itself, so that the configuration stays the truth.
type overrides struct {
	mu   sync.Mutex
	list []admin.Override
}

// put notes an override in place of the one of its kind on the same target.
func (o *overrides) put(v admin.Override) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.without(v.Kind, v.Upstream, v.Target), v)
}

// drop forgets an override and reports whether there was one.
func (o *overrides) drop(kind, upstream, target string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	before := len(o.list)
	o.list = o.without(kind, upstream, target)
	return len(o.list) < before
}

// without returns the list without the override of that kind there.
func (o *overrides) without(kind, upstream, target string) []admin.Override {
	return slices.DeleteFunc(slices.Clone(o.list), func(v admin.Override) bool {
		return v.Kind == kind && v.Upstream == upstream && v.Target == target
	})
}

// all returns the overrides that hold, the next to end first.
func (o *overrides) all() []admin.Override {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := slices.Clone(o.list)
	slices.SortStableFunc(list, func(a, b admin.Override) int { return a.Until.Compare(b.Until) })
	return list
}

// find returns the override of that kind there.
func (o *overrides) find(kind, upstream, target string) (admin.Override, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := slices.IndexFunc(o.list, func(v admin.Override) bool { return v.Kind == kind && v.Upstream == upstream && v.Target == target })
	if i < 0 {
		return admin.Override{}, false
	}
	return o.list[i], true
}

// keepOverrides ends what is over, and holds on to what is not: an instance
// that was registered anew, or a pool that a reload made anew, knows nothing
// of a drain.
func (a *App) keepOverrides(ctx context.Context) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			for _, v := range a.overrides.all() {
				if now.Before(v.Until) {
					a.hold(v)
				} else if a.overrides.drop(v.Kind, v.Upstream, v.Target) {
					a.expire(v)
				}
			}
		}
	}
}

func (a *App) hold(v admin.Override) {
	if v.Kind != "drain" {
		return // the others survive where they are
	}
	if up := a.upstreams.find(v.Upstream); up != nil {
		up.pool.Drain(v.Target, true)
	}
}

func (a *App) expire(v admin.Override) {
	switch v.Kind {
	case "drain":
		if up := a.upstreams.find(v.Upstream); up != nil {
			up.pool.Drain(v.Target, false)
		}
	case "replica":
		a.drained.Store(false)
	case "log_level":
		a.options.Level.Set(a.level)
	}
	a.log.Info("override is over", "kind", v.Kind, "upstream", v.Upstream, "target", v.Target, "actor", v.Actor)
	a.tell(admin.Event{Kind: "act", Severity: admin.Info, Service: v.Upstream, Actor: v.Actor,
		Message: fmt.Sprintf("%s of %s is over", strings.ReplaceAll(v.Kind, "_", " "), v.Target)})
}

// onInstance does what an operator wants of an instance, in every upstream that
// has it or in the one that the order names.
func (a *App) onInstance(_ context.Context, act admin.InstanceAct, id string, o admin.Order) (admin.Done, error) {
	if o.Upstream != "" && a.upstreams.find(o.Upstream) == nil {
		return admin.Done{}, admin.Unknown("no upstream is named %q", o.Upstream)
	}
	var has []*upstream
	for _, up := range a.upstreams.list() {
		if o.Upstream != "" && up.config.Name != o.Upstream {
			continue
		}
		if slices.ContainsFunc(up.pool.Members(), func(m balancer.MemberStatus) bool { return m.Instance.ID == id && m.State != balancer.StateLeaving }) {
			has = append(has, up)
		}
	}
	// A drain outlives a deregistration: it can be taken back all the same.
	gone := false
	if act == admin.Undrain {
		for _, v := range a.overrides.all() {
			if v.Kind == "drain" && v.Target == id && (o.Upstream == "" || o.Upstream == v.Upstream) {
				gone = true
			}
		}
	}
	if len(has) == 0 && !gone {
		return admin.Done{}, admin.Unknown("no instance has the id %q", id)
	}
	done := admin.Done{}
	until := time.Now().Add(o.For).Truncate(time.Millisecond)
	note := func(kind, state string, up *upstream) {
		done.Until = until
		a.overrides.put(admin.Override{Kind: kind, Target: id, Upstream: up.config.Name, State: state, Until: until, Actor: o.Actor, Reason: o.Reason})
	}
	for _, up := range has {
		name := up.config.Name
		done.Upstreams = append(done.Upstreams, name)
		switch act {
		case admin.Drain:
			done.Result = "drained"
			note("drain", "drained", up)
			done.Changed = up.pool.Drain(id, true) || done.Changed
		case admin.Undrain:
			a.overrides.drop("drain", name, id)
			done.Changed = up.pool.Drain(id, false) || done.Changed
		case admin.Eject:
			done.Result = "ejected"
			reason := "by " + o.Actor
			if o.Reason != "" {
				reason += ": " + o.Reason
			}
			// The word of an operator counts from now, whatever was before.
			up.pool.Restore(id, reason)
			done.Changed = up.pool.Eject(id, o.For, reason) || done.Changed
			note("eject", "ejected", up)
		case admin.Restore:
			done.Result = "restored"
			a.overrides.drop("eject", name, id)
			done.Changed = up.pool.Restore(id, "by "+o.Actor) || done.Changed
		}
	}
	if act == admin.Undrain {
		done.Result = "undrained"
		for _, v := range a.overrides.all() {
			if v.Kind == "drain" && v.Target == id && (o.Upstream == "" || o.Upstream == v.Upstream) {
				done.Changed = a.overrides.drop(v.Kind, v.Upstream, id) || done.Changed
			}
		}
	}
	return done, nil
}

// onBreakerAct does what an operator wants of an upstream's breaker.
func (a *App) onBreakerAct(_ context.Context, act admin.BreakerAct, name string, o admin.Order) (admin.Done, error) {
	up := a.upstreams.find(name)
	if up == nil {
		return admin.Done{}, admin.Unknown("no upstream is named %q", name)
	}
	b := up.proxy.Breaker()
	before := b.Status()
	done := admin.Done{Upstreams: []string{name}}
	state, word := breaker.Closed, "closed"
	switch act {
	case admin.BreakerReset:
		b.Reset()
		a.overrides.drop("breaker", name, name)
		done.Result, done.Changed = "reset", before.Forced || before.State != breaker.Closed || before.Requests > 0
		return done, nil
	case admin.BreakerOpen:
		state, word = breaker.Open, "open"
	}
	done.Until = time.Now().Add(o.For).Truncate(time.Millisecond)
	if err := b.Force(state, done.Until); err != nil {
		return admin.Done{}, err
	}
	a.overrides.put(admin.Override{Kind: "breaker", Target: name, Upstream: name, State: word, Until: done.Until, Actor: o.Actor, Reason: o.Reason})
	done.Result, done.Changed = word, !before.Forced || before.State != state
	return done, nil
}

// drainSelf takes this replica out of service: it turns unready, deregisters
// and sends clients that hold a connection to another one. What arrives all
// the same is served.
func (a *App) drainSelf(_ context.Context, o admin.Order) (admin.Done, error) {
	until := time.Now().Add(o.For).Truncate(time.Millisecond)
	changed := !a.drained.Swap(true)
	a.overrides.put(admin.Override{Kind: "replica", Target: a.id, State: "draining", Until: until, Actor: o.Actor, Reason: o.Reason})
	return admin.Done{Result: "draining", Changed: changed, Until: until}, nil
}

func (a *App) undrainSelf(context.Context, admin.Order) (admin.Done, error) {
	if a.draining.Load() {
		return admin.Done{}, fmt.Errorf("replica %s is going down", a.id)
	}
	a.overrides.drop("replica", "", a.id)
	return admin.Done{Result: "serving", Changed: a.drained.Swap(false)}, nil
}

func (a *App) logLevel() admin.LogLevel {
	l := admin.LogLevel{Level: strings.ToLower(a.options.Level.Level().String())}
	if v, ok := a.overrides.find("log_level", "", "gateway"); ok {
		l.Until = v.Until
	}
	return l
}

func (a *App) setLogLevel(_ context.Context, name string, o admin.Order) (admin.LogLevel, error) {
	var level slog.Level
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, name) || level.UnmarshalText([]byte(name)) != nil {
		return admin.LogLevel{}, admin.Invalid("level %q: want debug, info, warn or error", name)
	}
	a.options.Level.Set(level)
	if level == a.level { // what the configuration says needs no end
		a.overrides.drop("log_level", "", "gateway")
	} else {
		a.overrides.put(admin.Override{Kind: "log_level", Target: "gateway", State: name, Until: time.Now().Add(o.For).Truncate(time.Millisecond), Actor: o.Actor})
	}
	return a.logLevel(), nil
}
