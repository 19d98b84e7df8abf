package limiter

import (
	"context"
	"math"
	"sync"
	"time"
)

// expiries are the entries that hold leases, by when those end, so that what
// is left of an idle one goes back promptly.
type expiries struct {
	wake chan struct{}

	mu   sync.Mutex
	heap []expiry // a binary min-heap
}

type expiry struct {
	at    int64 // mono
	entry *entry
}

// add notes that a lease of e ends at that instant.
func (x *expiries) add(at int64, e *entry) {
	x.mu.Lock()
	h := append(x.heap, expiry{at, e})
	i := len(h) - 1
	for i > 0 && h[(i-1)/2].at > h[i].at {
		h[(i-1)/2], h[i] = h[i], h[(i-1)/2]
		i = (i - 1) / 2
	}
	x.heap = h
	x.mu.Unlock()
	if i == 0 {
		select {
		case x.wake <- struct{}{}:
		default:
		}
	}
}

// due returns an entry whose lease has ended by now, or nil and when the next
// one ends.
func (x *expiries) due(now int64) (*entry, int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	h := x.heap
	if len(h) == 0 {
		return nil, math.MaxInt64
	}
	if h[0].at > now {
		return nil, h[0].at
	}
	e := h[0].entry
	n := len(h) - 1
	h[0] = h[n]
	h[n] = expiry{}
	h = h[:n]
	for i := 0; ; {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < n; c++ {
			if h[c].at < h[least].at {
				least = c
			}
		}
		if least == i {
			break
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
	x.heap = h
	return e, 0
}

// expire ends leases when their time is up, until ctx ends.
func (l *Limiter) expire(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.expiries.wake:
		case <-timer.C:
		}
		for {
			now := l.now()
			e, next := l.expiries.due(now.mono)
			if e == nil {
				timer.Reset(micros(min(next-now.mono, int64(time.Hour/time.Microsecond))))
				break
			}
			l.lapse(e, now)
		}
	}
}

// lapse ends what is over of an entry's leases and gives the rest back.
func (l *Limiter) lapse(e *entry, now instant) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if cur := e.cur.Load(); cur != nil && now.mono >= cur.expires {
		e.end(cur, now)
		e.promote(now.mono)
		if cur = e.cur.Load(); cur != nil && now.mono >= cur.expires {
			e.end(cur, now)
			e.cur.Store(nil)
		}
	}
	if len(e.refunds) > 0 && !e.inflight && l.store.reach(e) {
		l.issue(e, now, false)
	}
}
