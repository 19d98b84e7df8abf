package limiter

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed reset.lua
var resetLua string

// ErrAway says that a limiter's store does not answer.
var ErrAway = errors.New("the limiter's store is away")

// Peek returns what Take would decide for a cost of 1, and takes nothing: no
// token, no room in memory, no part in another caller's call. It asks the store
// once, so it is for people and not for requests. Where the store is away it
// answers as Take would, from this replica's own account.
//
// What another replica holds as a lease counts as used, and so does for a moment
// one that is on its way to this replica.
func (l *Limiter) Peek(ctx context.Context, p *Policy, key string) Decision {
	id := identity(key)
	e := l.known(p, id)
	now := l.now()
	if l.store == nil {
		return l.peekOwn(e, p, now, Own, whole, 1)
	}
	r, err := l.ask(ctx, p, id)
	if err != nil {
		return l.peekAway(e, p, p.redisKey(id), now)
	}
	now = l.now()
	d := Decision{Allowed: r.retry == 0, Source: Store}
	if !d.Allowed {
		d.RetryAfter = micros(r.retry)
	}
	var held int64
	if e != nil {
		if denied := e.denied.Load(); denied != nil && denied.policy == p && now.mono < denied.until {
			denied.decide(now.mono, &d)
			return d
		}
		if held = e.held(p, now); held > 0 {
			d.Allowed, d.RetryAfter = true, 0
		}
	}
	for i := range r.budgets.n {
		r.budgets.at[i] += now.mono
	}
	r.budgets.fill(&d, now.mono, held)
	return d
}

// Reset forgets what an identity has used, here and in the store, and gives it
// its whole limit back. Other replicas drop the leases they hold of it with
// their next call, and a denial that they remember within a second. It returns
// ErrAway where there is a store that cannot be asked; then nothing has
// changed.
func (l *Limiter) Reset(ctx context.Context, p *Policy, key string) error {
	id := identity(key)
	if l.store != nil {
		client := l.store.reachable(p.redisKey(id))
		if client == nil {
			return fmt.Errorf("reset %s: %w", p.Name(), ErrAway)
		}
		ctx, cancel := context.WithTimeout(ctx, max(l.store.timeout, time.Second))
		defer cancel()
		life := (p.span + max(p.tau, p.grace)) / 1000
		if err := l.store.reset.Run(ctx, client, []string{p.redisKey(id)}, life).Err(); err != nil {
			return fmt.Errorf("reset %s: %w: %w", p.Name(), ErrAway, err)
		}
	}
	if e := l.known(p, id); e != nil {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.forget()
	}
	return nil
}

// deliberate reports whether a key's incarnation began with a reset.
func deliberate(birth string) bool { return strings.HasPrefix(birth, "r") }

// forget drops everything that was used or is held. The entry is locked.
func (e *entry) forget() {
	for _, ls := range [...]*lease{e.cur.Swap(nil), e.next} {
		if ls != nil {
			ls.tokens.Store(closed)
		}
	}
	e.next, e.refunds, e.owes, e.birth = nil, nil, false, ""
	e.denied.Store(nil)
	clear(e.tallies)
}

// known returns what is remembered of an identity, or nil.
func (l *Limiter) known(p *Policy, id [16]byte) *entry {
	s := &l.keys.shard[id[0]]
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.entries[keyOf{p.id, id}]
}

// reachable returns the client, or nil where the store cannot be asked for key.
func (s *store) reachable(key string) redis.UniversalClient {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.circuitOf(slotOf(key)).up.Load() {
		return nil
	}
	return s.client
}

// ask runs the script so that it grants nothing: what it needs is one token
// and what it wants is none. It writes nothing then.
func (l *Limiter) ask(ctx context.Context, p *Policy, id [16]byte) (reply, error) {
	client := l.store.reachable(p.redisKey(id))
	if client == nil {
		return reply{}, ErrAway
	}
	ctx, cancel := context.WithTimeout(ctx, l.store.timeout)
	defer cancel()
	// What could pass at once, so that a wait shows as one.
	still := *p
	still.specs = slices.Clone(p.specs)
	for i := range still.specs {
		still.specs[i].ahead = 0
	}
	o := &op{entry: &entry{key: p.redisKey(id)}, policy: &still, need: 1, share: 2 * l.count()}
	raw, err := l.store.acquire.Run(ctx, client, []string{o.entry.key}, o.args(l, l.now().wall)...).Result()
	r, err := o.parse(raw, err)
	if err == nil && r.granted < 0 {
		err = ErrAway // its clock is a calendar window away; a Take will learn it
	}
	return r, err
}

// held returns how many tokens callers under p may spend without a call.
func (e *entry) held(p *Policy, now instant) (n int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ls := range [...]*lease{e.cur.Load(), e.next} {
		if ls != nil && now.mono < ls.expires && ls.serves(p) {
			n += max(0, ls.tokens.Load())
		}
	}
	return n
}

// peekAway is fallback without its effects.
func (l *Limiter) peekAway(e *entry, p *Policy, key string, now instant) Decision {
	switch p.settings.OnStoreError {
	case FailOpen:
		return Decision{Allowed: true, Source: Open}
	case FailClosed:
		return Decision{Source: Closed, RetryAfter: time.Second}
	}
	share, n := l.share(key)
	return l.peekOwn(e, p, now, Local, share, n)
}

// peekOwn is takeOwn on a copy of the tallies; e may be nil.
func (l *Limiter) peekOwn(e *entry, p *Policy, now instant, source Source, share func(int64) int64, div int64) Decision {
	tallies := make([]tally, len(p.specs))
	if e != nil {
		e.mu.Lock()
		for i := range tallies {
			tallies[i] = e.tallies[i]
			tallies[i].told = told{} // this is the truth
			tallies[i].slots = slices.Clone(e.tallies[i].slots)
		}
		e.mu.Unlock()
	}
	trial := &entry{tallies: tallies}
	// A cost of nothing shows what is left; one token's wait, whether it is
	// there.
	var d Decision
	trial.takeOwn(p, now, 0, source, share, div, &d)
	for i := range p.specs {
		wait := tallies[i].wait(&p.specs[i], now, share(p.specs[i].limit), 1, div)
		if wait == math.MaxInt64 {
			wait = time.Second.Microseconds() // as takeOwn has it
		}
		if wait > 0 {
			d.Allowed = false
			d.RetryAfter = max(d.RetryAfter, micros(wait))
		}
	}
	return d
}
