package limiter

import (
	"cmp"
	_ "embed"
	"fmt"
	"math"
	"slices"
)

//go:embed acquire.lua
var acquireLua string

//go:embed heartbeat.lua
var heartbeatLua string

// maxRefunds bounds what one call carries back. What is beyond it goes with
// the next.
const maxRefunds = 16

// op is one run of acquire.lua for one entry.
type op struct {
	entry   *entry
	circuit *circuit // of the node that it goes to
	policy  *Policy
	waiters []*waiter
	need    int64 // the least that a waiter wants
	sync    int64 // what they want together
	want    int64 // that, and what is taken ahead
	share   int64
	debts   []debt
	refunds []refund
	sent    int64 // mono just before it was written
	retried bool
}

// reply is what acquire.lua answers.
type reply struct {
	granted, ttl, retry, now int64
	grant
	budgets budgets // with waits for instants
}

// issue sends a call for those who wait under one policy, with all that is owed
// and all that goes back; ahead says to take tokens ahead of need even where
// nobody waits. The entry is locked and has no call in flight.
func (l *Limiter) issue(e *entry, now instant, ahead bool) {
	o := &op{entry: e}
	o.policy, o.waiters = e.takeWaiters()
	for _, w := range o.waiters {
		if o.need == 0 || w.cost < o.need {
			o.need = w.cost
		}
		o.sync += w.cost
	}
	o.want, o.share = o.sync, 2*l.count()
	if o.policy.settings.Precision == Leased && (o.sync > 0 || ahead) {
		for _, ls := range [...]*lease{e.cur.Load(), e.next} {
			if ls != nil {
				e.count(ls)
			}
		}
		e.demand.asked += e.denies.Swap(0)
		o.want += e.demand.ahead(now.mono, o.policy.tau, o.sync)
	}
	if e.owes {
		for i := range e.tallies {
			e.tallies[i].expire(&o.policy.specs[i], now, e.div)
			o.debts = e.tallies[i].debts(o.debts, i, &o.policy.specs[i], now)
		}
	}
	o.refunds = e.takeRefunds()
	e.inflight = true
	if !l.store.enqueue(o) {
		l.failed(o)
	}
}

// takeWaiters returns the policy of who has waited longest, and all who wait
// under it: another's counts would admit too many of them or too few. The rest
// waits for the next call. Where nobody waits the policy is the last caller's.
func (e *entry) takeWaiters() (*Policy, []*waiter) {
	waiting := slices.DeleteFunc(e.waiters, func(w *waiter) bool { return w.gone })
	e.waiters = nil
	if len(waiting) == 0 {
		return e.policy, nil
	}
	p := waiting[0].policy
	n := slices.IndexFunc(waiting, func(w *waiter) bool { return w.policy != p })
	if n < 0 {
		return p, waiting
	}
	same := slices.Clone(waiting[:n])
	for _, w := range waiting[n:] {
		if w.policy == p {
			same = append(same, w)
		} else {
			e.waiters = append(e.waiters, w)
		}
	}
	return p, same
}

// takeRefunds returns what may be given back in one call. A refund is sent
// once: one that was sent twice would hand out tokens twice.
func (e *entry) takeRefunds() []refund {
	refunds := slices.DeleteFunc(e.refunds, func(r refund) bool { return r.birth != e.birth })
	// Those of a token bucket are good one by one, the last debit first.
	slices.SortStableFunc(refunds, func(a, b refund) int { return -cmp.Compare(a.tat, b.tat) })
	n := min(len(refunds), maxRefunds)
	e.refunds = refunds[n:]
	return refunds[:n:n]
}

// args returns the script's arguments.
func (o *op) args(l *Limiter, wall int64) []any {
	p := o.policy
	// A token that somebody waits for is charged where it can be spent at the
	// latest; an answer that takes longer is not used (see finish).
	grace := min(p.grace, l.store.timeout.Microseconds())
	tau := max(p.tau, grace)
	life := (p.span+max(tau, grace+p.delay))/1000 + 2
	a := make([]any, 0, 10+8*len(p.specs)+3*len(o.debts)+2*len(o.refunds)+2)
	a = append(a, "", o.need, o.sync, o.want, o.share, grace, tau, life, len(p.specs))
	for i := range p.specs {
		s := &p.specs[i]
		a = append(a, string(rune(s.kind)), s.limit, s.unit)
		switch s.kind {
		case 'T':
			a = append(a, s.ahead)
		case 'C':
			// The window before and the one after, too: wall is only an
			// estimate of Redis's clock.
			from, _ := s.borders(wall, -1)
			mid, to := s.borders(wall, 0)
			_, last := s.borders(wall, 1)
			a = append(a, from, mid, to, last)
		}
	}
	a = append(a, len(o.debts))
	for _, d := range o.debts {
		a = append(a, d.window+1, d.age, d.amount)
	}
	a = append(a, len(o.refunds))
	if len(o.refunds) > 0 {
		a = append(a, o.refunds[0].birth)
		for _, r := range o.refunds {
			a = append(a, r.field, r.amount)
		}
	}
	return a
}

// parse reads the script's answer.
func (o *op) parse(raw any, err error) (r reply, _ error) {
	if err != nil {
		return r, err
	}
	list, _ := raw.([]any)
	if len(list) == 5 && list[0] == int64(-1) {
		r.granted, r.now = -1, list[3].(int64)
		return r, nil
	}
	n := len(o.policy.specs)
	if len(list) != 5+3*n {
		return r, fmt.Errorf("acquire answered %v", raw)
	}
	number := func(i int) int64 { v, _ := list[i].(int64); return v }
	text := func(i int) string { v, _ := list[i].(string); return v }
	r.granted, r.ttl, r.retry, r.now, r.birth = number(0), number(1), number(2), number(3), text(4)
	r.policy = o.policy
	r.budgets.n = n
	for i := range n {
		r.budgets.left[i], r.budgets.at[i], r.fields[i] = number(5+3*i), number(6+3*i), text(7+3*i)
	}
	return r, nil
}

// finish hands a call's outcome to those who wait for it.
func (l *Limiter) finish(o *op, r reply, err error) {
	e := o.entry
	now := l.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil && r.granted < 0 {
		// Redis's clock is more than a calendar window away from where it was
		// believed. It is known now, so one more try will do.
		if o.retried {
			l.failed(o)
			return
		}
		o.retried = true
		if !l.store.enqueue(o) {
			l.failed(o)
		}
		return
	}
	if err != nil {
		l.failed(o)
		return
	}
	e.inflight = false
	l.settle(o, r, now)

	tokens, expires := r.granted, o.sent+r.ttl
	granted := &grant{r.policy, r.birth, r.fields}
	if now.mono >= expires {
		// Too late to spend what was granted: it goes back.
		e.refund(granted, tokens, 0)
		tokens = 0
	}
	// The script ran at some moment between sent and now. What may be spent is
	// reckoned from the first, what has to be waited for from the last.
	for i := range r.budgets.n {
		r.budgets.at[i] += now.mono + 1
	}
	if o.need > 0 {
		if cur := e.cur.Load(); cur != nil {
			// Too few for whoever asked. They go back, because their takers
			// would be told more than this call's.
			e.end(cur, now)
			e.cur.Store(nil)
		}
		e.tell(&r.budgets, now.mono, max(0, tokens-o.need))
	}
	// Before anybody is answered: a caller who asks at once again must not be
	// told of a refusal that this call has overtaken.
	switch {
	case r.granted > 0:
		e.denied.Store(nil)
	case r.retry > 0 && o.need > 0:
		e.deny(o, r, now)
	}
	var again []*waiter
	for _, w := range o.waiters {
		switch {
		case w.gone:
		case r.granted == 0 && r.retry > 0 && w.cost == o.need:
			d := Decision{Source: Store, RetryAfter: micros(r.retry + 1)}
			r.budgets.fill(&d, now.mono, 0)
			w.answer <- answer{known: true, decision: d, expires: math.MaxInt64}
		case w.cost <= tokens:
			tokens -= w.cost
			e.charge(o.policy, now, w.cost, false)
			d := Decision{Allowed: true, Source: Store, origin: origin{entry: e, cost: w.cost, grant: granted, rest: tokens}}
			if r.retry > 0 { // turns are handed out ahead of time
				d.due = now.mono + 1 + r.retry - int64(float64(tokens)*o.policy.fastest())
			}
			r.budgets.fill(&d, now.mono, tokens)
			e.told(&r.budgets, tokens)
			w.answer <- answer{true, d, expires}
		default:
			again = append(again, w) // not what this call asked for
		}
	}
	switch {
	case tokens > 0 && r.retry > 0:
		e.refund(granted, tokens, 0) // nobody is left to wait for their turn
	case tokens > 0:
		e.demand.size = tokens
		l.expiries.add(expires, e)
		e.hold(&lease{granted: tokens, expires: expires, start: now.mono, grant: granted, budgets: r.budgets}, now)
	}
	e.waiters = append(again, e.waiters...)
	l.serve(e, now)
}

// serve lets those who wait take of what the replica holds by now, and asks
// for the rest. The entry is locked and has no call in flight.
func (l *Limiter) serve(e *entry, now instant) {
	n := 0
	for _, w := range e.waiters {
		if w.gone {
			continue
		}
		if ls, left, ok := e.takeLeased(w.policy, now, w.cost); ok {
			a := answer{known: true, expires: ls.expires}
			ls.decide(e, now.mono, left, w.cost, &a.decision)
			w.answer <- a
			continue
		}
		e.waiters[n] = w
		n++
	}
	clear(e.waiters[n:])
	e.waiters = e.waiters[:n]
	if n > 0 || e.owes || len(e.refunds) > 0 {
		l.issue(e, now, false)
	}
}

// hold keeps tokens that nobody waited for.
func (e *entry) hold(ls *lease, now instant) {
	ls.tokens.Store(ls.granted)
	if cur := e.cur.Load(); cur == nil || cur.over(now.mono) {
		if cur != nil {
			e.end(cur, now)
		}
		e.promote(now.mono)
		if e.cur.Load() == nil {
			e.next = ls
			e.promote(now.mono)
			return
		}
	}
	if e.next != nil {
		e.end(e.next, now)
	}
	e.next = ls
}

// deny remembers a refusal, for no longer than a second: refunds and changed
// limits may let somebody pass earlier than was said.
func (e *entry) deny(o *op, r reply, now instant) {
	e.denied.Store(&denial{policy: o.policy, cost: o.need, until: o.sent + min(r.retry, 1_000_000), retry: now.mono + 1 + r.retry, budgets: r.budgets})
}

// settle takes note of what the store now knows, and of whether it has
// forgotten what it knew. The entry is locked.
func (l *Limiter) settle(o *op, r reply, now instant) {
	e := o.entry
	e.div = 1
	lost := e.birth != "" && r.birth != e.birth
	if lost && deliberate(r.birth) {
		e.forget()
		lost = false
	}
	if lost {
		// The key has lost its state, or outlived all that it held. What this
		// replica still counts of its own has to be told again, and what it
		// holds was debited from a state that is gone.
		if cur := e.cur.Load(); cur != nil {
			e.end(cur, now)
			e.cur.Store(nil)
		}
		if e.next != nil {
			e.end(e.next, now)
			e.next = nil
		}
		for i := range e.tallies {
			e.tallies[i].expire(&o.policy.specs[i], now, 1)
			e.tallies[i].oweAll(&o.policy.specs[i])
		}
	}
	if e.birth = r.birth; r.birth == "0" {
		e.birth = ""
	}
	for _, d := range o.debts {
		e.tallies[d.window].settled(&o.policy.specs[d.window], d)
	}
	if e.owes || lost {
		e.owes = false
		for i := range e.tallies {
			e.owes = e.owes || len(e.tallies[i].debts(nil, i, &o.policy.specs[i], now)) > 0
		}
	}
}

// failed tells those who waited that the store did not answer. What was owed
// stays owed: told twice it admits too little, forgotten too much. Refunds are
// gone. The entry is locked.
func (l *Limiter) failed(o *op) {
	e := o.entry
	e.inflight = false
	for _, w := range append(o.waiters, e.waiters...) {
		if !w.gone {
			w.answer <- answer{}
		}
	}
	e.waiters = nil
}

// refill asks for the next lease before the one in hand is used up.
func (l *Limiter) refill(e *entry, p *Policy) {
	now := l.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.use(p)
	if !e.inflight && l.store.reach(e) {
		l.issue(e, now, true)
	}
}
