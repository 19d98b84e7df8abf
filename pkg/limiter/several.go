package limiter

import "context"

// Demand is what a request costs an identity under a policy.
type Demand struct {
	Policy *Policy
	Key    string
	Cost   int
}

// MaxDemands is how many policies one request can be under.
const MaxDemands = 4

// TakeAll takes from every demand, as Take does from one, or from none: what
// was taken is given back when a later one is denied. It writes each one's
// decision to out and returns which was denied, or -1. Those behind a denial
// have no decision.
//
// At most one of the policies should delay. It is asked first, so that nothing
// that was taken grows old while its caller waits.
func (l *Limiter) TakeAll(ctx context.Context, demands []Demand, out []Decision) (denied int) {
	if len(demands) == 1 {
		d := &demands[0]
		if l.takeOne(ctx, d.Policy, d.Key, d.Cost, &out[0]); !out[0].Allowed {
			return 0
		}
		return -1
	}
	return l.takeSeveral(ctx, demands, out)
}

func (l *Limiter) takeSeveral(ctx context.Context, demands []Demand, out []Decision) (denied int) {
	var entries [MaxDemands]*entry
	var costs [MaxDemands]int64
	now := l.mono()
	// Who is known to be denied takes nothing from the others.
	for i, d := range demands {
		costs[i] = max(int64(d.Cost), 1)
		if costs[i] > d.Policy.least {
			out[i] = Decision{Source: l.usual()}
			return i
		}
		entries[i] = l.entry(d.Policy, identity(d.Key))
		if no := entries[i].refused(d.Policy, costs[i], now); no != nil && d.Policy.delay == 0 {
			entries[i].denies.Add(costs[i])
			no.decide(now, &out[i])
			l.deny(entries[i], d.Policy, d.Key)
			return i
		}
	}
	for _, delaying := range [...]bool{true, false} {
		for i, d := range demands {
			if d.Policy.delay > 0 != delaying {
				continue
			}
			if l.take(ctx, entries[i], d.Policy, costs[i], &out[i]); !out[i].Allowed {
				l.deny(entries[i], d.Policy, d.Key)
				for j := range demands {
					if j != i {
						l.giveBack(&out[j])
					}
				}
				return i
			}
		}
	}
	return -1
}

// Charge takes cost tokens for what has happened already, as a request whose
// cost is known only after its answer, also where they are not there: then
// later requests wait until it is made good. It never waits.
func (l *Limiter) Charge(p *Policy, key string, cost int) {
	if cost <= 0 {
		return
	}
	c := min(int64(cost), 1_000_000_000)
	e := l.entry(p, identity(key))
	now := l.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.use(p)
	e.touched = now.mono
	if l.store == nil {
		e.charge(p, now, c, false)
		return
	}
	// A lease's tokens are paid for.
	for _, ls := range [...]*lease{e.cur.Load(), e.next} {
		if ls == nil || c == 0 || !ls.serves(p) {
			continue
		}
		if n := min(c, ls.tokens.Load()); n > 0 {
			if _, ok := ls.take(now.mono, n); ok {
				c -= n
			}
		}
	}
	if c == 0 {
		return
	}
	e.charge(p, now, c, true)
	l.owing.Store(true)
	if !e.inflight && l.store.reach(e) {
		l.issue(e, now, false)
	}
}

// refundWithin is how many µs a refund waits for a call to go with.
const refundWithin = 20_000

// giveBack returns what an allowed decision took, where it can be returned
// without admitting too much.
func (l *Limiter) giveBack(d *Decision) {
	o := &d.origin
	if !d.Allowed || o.entry == nil {
		return
	}
	d.Allowed = false
	if o.lease != nil {
		o.lease.tokens.Add(o.cost) // of no effect where it has ended
		return
	}
	e := o.entry
	now := l.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case o.grant != nil:
		e.refund(o.grant, o.cost, o.rest)
		e.denied.Store(nil)
		// It goes with the next call, or before long.
		l.expiries.add(now.mono+refundWithin, e)
	case d.Source == Own || d.Source == Local:
		for i := range e.tallies {
			s, last := &e.policy.specs[i], e.adds == o.adds
			if s.ahead > 0 && !last {
				continue // others have their turns behind this one
			}
			e.tallies[i].back(s, now, o.at, o.cost, max(1, e.div), o.owed, last)
		}
		if e.adds == o.adds {
			e.adds-- // now the charge before is the last
		}
	}
}

// from returns where tokens of the store were debited, or nil.
func (o *origin) from() *grant {
	if o.lease != nil {
		return o.lease.grant
	}
	return o.grant
}
