package limiter

import (
	"math"
	"strconv"
	"strings"
	"sync/atomic"
)

// lease is a chunk of tokens that the store has debited ahead of need. It is
// charged in the store where it expires, so that whenever its tokens are spent
// the sliding window's bound holds (docs/adr/0002-lease-charged-at-expiry.md).
type lease struct {
	tokens  atomic.Int64
	asked   atomic.Bool // the next one is on its way
	granted int64
	expires int64 // mono
	start   int64 // mono
	booked  int64 // of what was spent, in the tallies; guarded by the entry's lock
	counted int64 // of what was spent, in the demand; guarded by the entry's lock
	grant   *grant
	budgets budgets // what is left beside the lease
}

// closed is what a lease's tokens are set to at its end: so far below nothing
// that no caller who is late can take one.
const closed = math.MinInt64 / 2

func (ls *lease) decide(e *entry, now, left, cost int64, d *Decision) {
	*d = Decision{}
	d.Allowed = true
	d.origin.entry, d.origin.cost, d.origin.lease = e, cost, ls
	ls.budgets.fill(d, now, left)
}

// serves reports whether callers under p may spend the lease: of what was taken
// under a more generous policy the store has to say whether p admits it.
func (ls *lease) serves(p *Policy) bool {
	return ls.grant.policy == p || ls.grant.policy.within(p)
}

// take takes cost tokens where they are there and may still be spent.
func (ls *lease) take(now, cost int64) (left int64, ok bool) {
	if now >= ls.expires {
		return 0, false
	}
	if left = ls.tokens.Add(-cost); left >= 0 {
		return left, true
	}
	ls.tokens.Add(cost)
	return 0, false
}

// over reports whether nothing can be spent of the lease any more.
func (ls *lease) over(now int64) bool { return now >= ls.expires || ls.tokens.Load() <= 0 }

// takeLeased decides by what the replica holds and p may spend. The entry is
// locked.
func (e *entry) takeLeased(p *Policy, now instant, cost int64) (ls *lease, left int64, ok bool) {
	for range 2 {
		cur := e.cur.Load()
		if cur == nil && e.next == nil {
			break
		}
		if cur != nil {
			if !cur.serves(p) {
				break
			}
			if left, ok := cur.take(now.mono, cost); ok {
				return cur, left, true
			}
			if !cur.over(now.mono) && e.next == nil {
				break // too few for this one, not for others
			}
			e.end(cur, now)
		}
		e.promote(now.mono)
	}
	return nil, 0, false
}

// promote makes the next lease, if there is one, the one that callers take
// from. The entry is locked.
func (e *entry) promote(now int64) {
	next := e.next
	e.next = nil
	if next != nil {
		e.cur.Store(nil) // its end has told what its callers heard
		e.tell(&next.budgets, now, max(0, next.granted-1))
	}
	e.cur.Store(next)
}

// end closes a lease: what was spent is booked, what was not is refunded with
// the next call. The entry is locked.
func (e *entry) end(ls *lease, now instant) {
	left := max(0, ls.tokens.Swap(closed))
	if left < ls.granted {
		e.told(&ls.budgets, left) // those who take of a lease hold no lock
	}
	e.book(ls, now, ls.granted-left)
	e.demand.asked += ls.booked - ls.counted
	ls.counted = ls.booked
	e.refund(ls.grant, left, 0)
}

// refund notes what is to be given back of a grant, behind which rest tokens
// of the same grant were debited.
func (e *entry) refund(g *grant, amount, rest int64) {
	if amount <= 0 || g.birth != e.birth {
		return
	}
	for w, f := range g.fields {
		r := refund{birth: g.birth, field: f, amount: amount}
		if id, full, ok := strings.Cut(f, "="); ok {
			tat, err := strconv.ParseInt(full, 10, 64)
			if err != nil || w >= len(g.policy.specs) {
				continue
			}
			unit := g.policy.specs[w].unit
			behind := int64(float64(rest) * unit)
			r.tat = tat - behind
			r.amount = int64(float64(rest+amount)*unit) - behind
			r.field = id + "=" + strconv.FormatInt(r.tat, 10)
		}
		if f != "" {
			e.refunds = append(e.refunds, r)
		}
	}
}

// book charges the tallies with what was spent of a lease by now.
func (e *entry) book(ls *lease, now instant, spent int64) {
	if back := now.mono - ls.expires; back > 0 {
		now.mono, now.wall = now.mono-back, now.wall-back
	}
	if spent > ls.booked { // less, where something was given back
		e.charge(e.policy, now, spent-ls.booked, false)
		ls.booked = spent
	}
}

// count adds what was spent of a lease to the demand.
func (e *entry) count(ls *lease) {
	spent := ls.granted - max(0, ls.tokens.Load())
	e.demand.asked += spent - ls.counted
	ls.counted = spent
}

// endLeases closes what the replica holds, which is too little for whoever asks:
// clients are told of its own account from now on.
func (e *entry) endLeases(now instant) {
	for _, ls := range [...]*lease{e.cur.Load(), e.next} {
		if ls != nil {
			e.end(ls, now)
		}
	}
	e.cur.Store(nil)
	e.next = nil
}
