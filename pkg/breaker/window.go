package breaker

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	windowBuckets = 10
	windowBucket  = time.Second

	// remembered is how long hystrix may hold an error against a circuit: its
	// ten buckets, whole seconds of the wall clock, and what its queue lags.
	remembered = 12 * time.Second
)

// window counts attempts and errors of the last ten seconds, in buckets of
// one: the second opinion on hystrix's openings.
//
// hystrix's own window is wrong in three ways that open circuits of healthy
// services. Its error counter is pruned only by errors, so that errors outlive
// the requests they belong to (afex/hystrix-go issue 115); it loses events
// under load; and it reads the wall clock, so that a clock set back keeps
// errors for as long as it was set back.
type window struct {
	base time.Time // when the first bucket began, with a monotonic reading

	// erred is when the last error was counted, in ns since base; 0: never.
	erred atomic.Int64

	mu      sync.Mutex
	buckets [windowBuckets]bucket
}

type bucket struct {
	index          int64 // of the bucket since base
	requests, errs int
}

func (w *window) index(now time.Time) int64 { return int64(now.Sub(w.base) / windowBucket) }

// add counts one attempt. It must be called before hystrix is told of the
// same, so that hystrix never knows of an error that the window does not.
func (w *window) add(now time.Time, failed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.index(now)
	b := &w.buckets[i%windowBuckets]
	if b.index < i {
		*b = bucket{index: i}
	}
	b.requests++
	if failed {
		b.errs++
		w.erred.Store(max(1, int64(now.Sub(w.base))))
	}
}

// calm reports whether there has been no error for so long that hystrix knows
// of none either.
func (w *window) calm(now time.Time) bool {
	at := w.erred.Load()
	return at == 0 || now.Sub(w.base)-time.Duration(at) > remembered
}

// sum returns what was counted in the bucket of now and the nine before it.
func (w *window) sum(now time.Time) (requests, errs int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.index(now)
	for _, b := range w.buckets {
		if b.index > i-windowBuckets {
			requests += b.requests
			errs += b.errs
		}
	}
	return requests, errs
}

func (w *window) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buckets = [windowBuckets]bucket{}
}
