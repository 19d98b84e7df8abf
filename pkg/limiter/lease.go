package limiter

import (
	"math"
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

func (ls *lease) decision(now, left int64) Decision {
	d := Decision{Allowed: true, Source: Store}
	ls.budgets.fill(&d, now, left)
	return d
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

// takeLeased decides by what the replica holds. The entry is locked.
func (e *entry) takeLeased(now instant, cost int64) (ls *lease, left int64, ok bool) {
	for range 2 {
		cur := e.cur.Load()
		if cur == nil && e.next == nil {
			break
		}
		if cur != nil {
			if left, ok := cur.take(now.mono, cost); ok {
				return cur, left, true
			}
			if !cur.over(now.mono) && e.next == nil {
				break // too few for this one, not for others
			}
			e.end(cur, now)
		}
		e.cur.Store(e.next)
		e.next = nil
	}
	return nil, 0, false
}

// end closes a lease: what was spent is booked, what was not is refunded with
// the next call. The entry is locked.
func (e *entry) end(ls *lease, now instant) {
	left := max(0, ls.tokens.Swap(closed))
	if left > ls.granted {
		return // it has ended before
	}
	e.book(ls, now, ls.granted-left)
	e.demand.asked += ls.booked - ls.counted
	ls.counted = ls.booked
	e.refund(ls.grant, left)
}

// refund notes what is to be given back.
func (e *entry) refund(g *grant, amount int64) {
	if amount <= 0 || g.birth != e.birth {
		return
	}
	for _, f := range g.fields {
		if f != "" { // a token bucket's: cannot be refunded
			e.refunds = append(e.refunds, refund{g.birth, f, amount})
		}
	}
}

// book charges the tallies with what was spent of a lease by now.
func (e *entry) book(ls *lease, now instant, spent int64) {
	if back := now.mono - ls.expires; back > 0 {
		now.mono, now.wall = now.mono-back, now.wall-back
	}
	e.charge(e.policy, now, spent-ls.booked, false)
	ls.booked = spent
}

// count adds what was spent of a lease to the demand.
func (e *entry) count(ls *lease) {
	spent := ls.granted - max(0, ls.tokens.Load())
	e.demand.asked += spent - ls.counted
	ls.counted = spent
}

// bookLeases brings the tallies up to date with the leases in hand.
func (e *entry) bookLeases(now instant) {
	for _, ls := range [...]*lease{e.cur.Load(), e.next} {
		if ls != nil {
			e.book(ls, now, ls.granted-max(0, ls.tokens.Load()))
		}
	}
}
