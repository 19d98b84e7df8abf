package proxy

import (
	"sync"
	"sync/atomic"
	"time"
)

// budgetWindow is how many seconds of requests a retry budget looks back on.
const budgetWindow = 10

// budget bounds retries to a share of the recent requests, so that retries
// never become the outage: a number per second is always allowed, beyond it
// only the share. It is safe for concurrent use; counting a request is one
// atomic addition.
type budget struct {
	base     time.Time
	requests [budgetWindow]slot

	mu      sync.Mutex
	retries [budgetWindow]slot // written under mu
}

// slot is the count of one second: the second in the upper half, the count in
// the lower one, so that both change at once.
type slot struct{ v atomic.Uint64 }

func (s *slot) add(second uint64) {
	for {
		old := s.v.Load()
		if old>>32 == second {
			s.v.Add(1)
			return
		}
		if s.v.CompareAndSwap(old, second<<32|1) {
			return
		}
	}
}

func (s *slot) in(second uint64) uint64 {
	if v := s.v.Load(); v>>32 == second {
		return v & (1<<32 - 1)
	}
	return 0
}

// second numbers seconds from 1 on, so that an empty slot is never current.
func (b *budget) second(now time.Time) uint64 { return uint64(now.Sub(b.base)/time.Second) + 1 }

// request counts a request (not its retries).
func (b *budget) request(now time.Time) {
	s := b.second(now)
	b.requests[s%budgetWindow].add(s)
}

// retry takes one retry out of the budget, or reports that there is none:
// fewer than minRate a second are always allowed, otherwise retries must stay
// within share of the requests of the last ten seconds.
func (b *budget) retry(now time.Time, share float64, minRate int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.second(now)
	here := &b.retries[s%budgetWindow]
	if here.in(s) >= uint64(max(minRate, 0)) {
		var requests, retries uint64
		for i := range uint64(budgetWindow) {
			if i >= s {
				break
			}
			requests += b.requests[(s-i)%budgetWindow].in(s - i)
			retries += b.retries[(s-i)%budgetWindow].in(s - i)
		}
		if float64(retries+1) > share*float64(requests) {
			return false
		}
	}
	here.add(s)
	return true
}
