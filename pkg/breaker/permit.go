package breaker

import "sync/atomic"

// permit counts requests in flight, exactly, under a limit that may change at
// any time.
type permit struct {
	limit atomic.Int64 // 0: none
	held  atomic.Int64
}

// Acquire takes a permit for one request, to be held until its response body
// has ended, or returns ErrLimited. It never waits. Retries of the request
// need no permits of their own.
func (b *Breaker) Acquire() error {
	p := &b.permit
	for {
		held := p.held.Load()
		if limit := p.limit.Load(); limit > 0 && held >= limit {
			b.count(rejected)
			return ErrLimited
		}
		// Compare and swap rather than add and take back: a refused request
		// must not for a moment stand in the way of one that there is room for.
		if p.held.CompareAndSwap(held, held+1) {
			return nil
		}
	}
}

// Release gives back the permit of one successful Acquire. It panics where
// none is held, since the limit would no longer hold.
func (b *Breaker) Release() {
	if b.permit.held.Add(-1) < 0 {
		panic("breaker: Release without Acquire")
	}
}

// InFlight returns how many permits are held.
func (b *Breaker) InFlight() int { return int(b.permit.held.Load()) }
