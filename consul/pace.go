package consul

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// wait returns true after d, or false at once when ctx ends.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// wake sends to a channel of capacity one, unless a wake-up is waiting there.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// jitter spreads d by up to the given share to either side, so that replicas
// and watches do not march in step.
func jitter(d time.Duration, share float64) time.Duration {
	return time.Duration(float64(d) * (1 + share*(2*rand.Float64()-1)))
}

// bucket paces one loop. Calls cost time: what a call cost is charged after
// it, and the next one waits while more than the credit has been spent. It is
// never a sleep between calls, which would make every answer old; a quiet
// watch always has its full credit.
type bucket struct {
	credit time.Duration
	spent  time.Duration
	at     time.Time
}

// The costs of a query. An answer that changed nothing, or failed, costs the
// full price: two a second with a burst of three. One that brought changes
// costs by its size, so that a pool of a few instances follows a hundred
// changes a second and one of a thousand follows two.
const (
	fullPrice   = 500 * time.Millisecond
	lowPrice    = 10 * time.Millisecond
	priceOfMiB  = 360 * time.Millisecond
	queryCredit = 2 * fullPrice // the third may still go
)

func priceOf(bytes int) time.Duration {
	return min(max(time.Duration(float64(priceOfMiB)*float64(bytes)/(1<<20)), lowPrice), fullPrice)
}

func (b *bucket) charge(cost time.Duration) {
	b.settle()
	b.spent += cost
}

func (b *bucket) settle() {
	now := time.Now()
	if b.spent -= now.Sub(b.at); b.spent < 0 || b.at.IsZero() {
		b.spent = 0
	}
	b.at = now
}

// due returns how long the next call has to wait.
func (b *bucket) due() time.Duration {
	b.settle()
	return max(0, b.spent-b.credit)
}

// backoff is the wait after the n-th failure in a row: 250 ms doubled up to
// most, spread by half to either side.
func backoff(n int, most time.Duration) time.Duration {
	d := 250 * time.Millisecond
	for i := 1; i < n && d < most; i++ {
		d *= 2
	}
	return jitter(min(d, most), 0.5)
}

// slots lets at most n callers in, in the order of their coming. Connections
// wait here rather than in the transport's queue, where the wait would count
// against the deadline of the query.
type slots struct {
	mu    sync.Mutex
	free  int
	queue []chan struct{}
}

func newSlots(n int) *slots { return &slots{free: n} }

// take returns false when ctx ended first. A nil receiver has no bound.
func (s *slots) take(ctx context.Context) bool {
	if s == nil {
		return ctx.Err() == nil
	}
	s.mu.Lock()
	if s.free > 0 {
		s.free--
		s.mu.Unlock()
		return true
	}
	turn := make(chan struct{})
	s.queue = append(s.queue, turn)
	s.mu.Unlock()
	select {
	case <-turn:
		return true
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, c := range s.queue {
		if c == turn {
			s.queue = append(s.queue[:i], s.queue[i+1:]...)
			return false
		}
	}
	// The turn came together with the end of ctx: pass it on.
	s.pass()
	return false
}

func (s *slots) give() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pass()
}

func (s *slots) pass() {
	if len(s.queue) == 0 {
		s.free++
		return
	}
	close(s.queue[0])
	s.queue = s.queue[1:]
}
