package balancer

import (
	"sync/atomic"
	"time"
)

const ratioSlots = 10

// ratio counts requests and failures over a sliding window. Each slot is one
// word (number, requests, failures), so that counting is exact without a lock.
type ratio struct {
	slots [ratioSlots]atomic.Uint64
}

const (
	ratioBits = 20
	ratioMask = 1<<ratioBits - 1
)

// add counts a request that ended at now.
func (r *ratio) add(now, window time.Duration, failed bool) {
	number := ratioNumber(now, window)
	s := &r.slots[number%ratioSlots]
	for {
		old := s.Load()
		word := old
		if old>>(2*ratioBits) != number {
			word = number << (2 * ratioBits)
		}
		if word>>ratioBits&ratioMask == ratioMask {
			return // a million in a tenth of the window say enough
		}
		word += 1 << ratioBits
		if failed {
			word++
		}
		if s.CompareAndSwap(old, word) {
			return
		}
	}
}

// sum returns the requests and failures of the window that ends at now.
func (r *ratio) sum(now, window time.Duration) (requests, failures int) {
	newest := ratioNumber(now, window)
	for i := range r.slots {
		word := r.slots[i].Load()
		if age := (newest - word>>(2*ratioBits)) & (1<<24 - 1); age < ratioSlots {
			requests += int(word >> ratioBits & ratioMask)
			failures += int(word & ratioMask)
		}
	}
	return requests, failures
}

func (r *ratio) reset() {
	for i := range r.slots {
		r.slots[i].Store(0)
	}
}

func ratioNumber(now, window time.Duration) uint64 {
	return (uint64(now/max(window/ratioSlots, 1)) + 1) & (1<<24 - 1)
}
