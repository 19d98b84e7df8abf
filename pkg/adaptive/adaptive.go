// Package adaptive finds out how many requests at once a service does well
// with, and says which to turn away beyond that. It is an algorithm only: it
// starts nothing, waits for nothing and takes the time from its caller.
//
// A service that is given more than it can serve answers no more of it, only
// later. So the limit follows the latency: it grows while the median stays
// within a headroom above what it is without a queue, and shrinks in proportion
// beyond. What it is without a queue is measured: whenever few requests are in
// flight, and at first, from time to time, and when the limit has fallen for a
// while, by letting in half of the limit for a moment, and half of that while
// it makes the service faster. The measure is never taken from a
// queue, or an overload that lasts would become the measure of itself.
//
// Requests have a class. The lower ones leave a little room for the higher
// while there are any, and where one of a higher class had to be turned away
// the share of those below it shrinks until none has to be.
package adaptive

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Class says who is turned away first.
type Class uint8

// The classes, the first to be turned away first.
const (
	Low Class = iota
	Normal
	High
	Classes // how many there are
)

func (c Class) String() string { return [...]string{"low", "normal", "high"}[c] }

// ParseClass returns the class of that name; normal for none.
func ParseClass(s string) (Class, error) {
	switch s {
	case "low":
		return Low, nil
	case "", "normal":
		return Normal, nil
	case "high":
		return High, nil
	}
	return 0, fmt.Errorf("no class %q (have: low, normal, high)", s)
}

// Settings bound a limiter.
type Settings struct {
	Min, Max int           // of the limit
	Headroom float64       // how far the median latency may be above that without a queue: 0.5 is half as much again
	Probe    time.Duration // how often the latency without a queue is measured on purpose
}

// ErrLimited is returned for a request that is turned away.
var ErrLimited = errors.New("the adaptive limit is reached")

const (
	windowMin  = 100 * time.Millisecond // of one look at the latency
	windowMax  = time.Second            // after which fewer samples have to do
	enough     = 30                     // samples in a window
	few        = 8                      // samples without which a window says nothing
	start      = 20                     // the first limit, within the bounds: low, so that its latency is not that of a queue
	fallen     = 10                     // windows at the steepest fall after which the measure is doubted
	smoothing  = 0.5                    // share of a window's verdict in the limit
	steepest   = 0.5                    // a window's verdict at the least
	faster     = 0.75                   // of the median at twice the level, from where half of it had a queue
	patience   = 5 * time.Second        // that a measure waits for requests to end, or to come
	recent     = 2 * time.Second        // how long a class counts as present
	reserve    = 0.05                   // of the limit, that a class leaves for each present one above it
	shareFloor = 0.02                   // what is left to a class at the least, so that it notices better times
)

// Limiter is the limit of one upstream. It is safe for concurrent use.
type Limiter struct {
	limit    atomic.Int64 // that holds now: the found one, or half of it while measuring
	inFlight atomic.Int64
	class    [Classes]struct {
		inFlight atomic.Int64
		share    atomic.Uint64 // of the limit that the class may take, as float64 bits
		seen     atomic.Int64  // when a request came last, unix nanoseconds
		refused  atomic.Int64  // in this window
		shed     atomic.Int64  // in all
	}

	peak     atomic.Int64 // in flight, in this window
	overload atomic.Int64 // requests that timed out, in this window
	samples  atomic.Int64
	latency  histogram
	ends     atomic.Int64 // when the window may be looked at, unix nanoseconds

	mu        sync.Mutex // held by the one that looks at a window
	settings  Settings
	found     float64 // the limit as it was found
	base      float64 // seconds: median latency without a queue; 0: not known
	began     time.Time
	probeAt   time.Time
	probing   bool
	level     float64   // the limit while measuring
	above     float64   // median at twice the level
	last      float64   // median of the last window that had one
	probeFrom time.Time // when the level began to hold
	drained   bool      // no more are in flight than it lets in
	falls     int       // windows in a row at the steepest
	gains     int       // windows in which it was faster than the measure
	slow      bool      // the limit has never been too much: it doubles
}

// New returns a limiter.
func New(s Settings, now time.Time) *Limiter {
	l := &Limiter{slow: true}
	for c := range l.class {
		l.class[c].share.Store(math.Float64bits(1))
	}
	l.found = start
	l.configure(s)
	l.began, l.probeAt = now, now.Add(s.Probe)
	l.ends.Store(now.Add(windowMin).UnixNano())
	return l
}

// Configure replaces the settings. What has been found out stays.
func (l *Limiter) Configure(s Settings) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.configure(s)
}

func (l *Limiter) configure(s Settings) {
	l.settings = s
	l.store()
}

// store makes what was found the limit that holds.
func (l *Limiter) store() {
	l.found = min(max(l.found, float64(l.settings.Min)), float64(l.settings.Max))
	limit := l.found
	if l.probing {
		limit = max(float64(l.settings.Min), l.level)
	}
	l.limit.Store(int64(math.Round(limit)))
}

// Acquire takes a place for a request, to be given back by Release, or
// returns ErrLimited.
func (l *Limiter) Acquire(c Class, now time.Time) error {
	l.class[c].seen.Store(now.UnixNano())
	limit := l.limit.Load()
	total := l.inFlight.Add(1)
	own := l.class[c].inFlight.Add(1)
	if total > l.room(c, limit, now) || own > 1 && float64(own) > l.share(c)*float64(limit) {
		l.inFlight.Add(-1)
		l.class[c].inFlight.Add(-1)
		l.class[c].refused.Add(1)
		l.class[c].shed.Add(1)
		l.look(now)
		return ErrLimited
	}
	if total > l.peak.Load() {
		l.peak.Store(total) // a race costs one of two close values
	}
	return nil
}

// room returns how many may be in flight for a request of the class to be let
// in.
func (l *Limiter) room(c Class, limit int64, now time.Time) int64 {
	above := 0.0
	for h := c + 1; h < Classes; h++ {
		if now.UnixNano()-l.class[h].seen.Load() < int64(recent) {
			above++
		}
	}
	if above == 0 {
		return limit
	}
	return max(1, limit-int64(math.Ceil(above*reserve*float64(limit))))
}

func (l *Limiter) share(c Class) float64 { return math.Float64frombits(l.class[c].share.Load()) }

// Outcome says how a request ended.
type Outcome uint8

const (
	Answered   Outcome = iota // with a header, in the latency that is told
	TimedOut                  // the service did not answer in time
	Irrelevant                // it failed, or the client left: its latency says nothing of a queue
)

// Release gives back the place of a request that began at began.
func (l *Limiter) Release(c Class, began, now time.Time, how Outcome) {
	l.inFlight.Add(-1)
	l.class[c].inFlight.Add(-1)
	switch how {
	case Answered:
		l.latency.add(now.Sub(began))
		l.samples.Add(1)
	case TimedOut:
		l.overload.Add(1)
	}
	l.look(now)
}

// look ends the window where it is over.
func (l *Limiter) look(now time.Time) {
	if now.UnixNano() < l.ends.Load() || !l.mu.TryLock() {
		return
	}
	defer l.mu.Unlock()
	age := now.Sub(l.began)
	need, most := int64(enough), windowMax
	if l.probing && l.drained { // what is measured holds for long
		need, most = 2*enough, 2*windowMax
	}
	if age < windowMin || l.samples.Load()+l.overload.Load() < need && age < most {
		l.ends.Store(now.Add(windowMin / 10).UnixNano())
		return
	}
	l.judge(now)
	l.began = now
	l.ends.Store(now.Add(windowMin).UnixNano())
	l.peak.Store(l.inFlight.Load())
	l.samples.Store(0)
	l.overload.Store(0)
	l.latency.clear()
	l.divide()
}

// judge moves the limit by what the window has shown.
func (l *Limiter) judge(now time.Time) {
	n, overload := l.samples.Load(), l.overload.Load()
	if l.probing {
		l.measure(now, n)
		return
	}
	if n < few && overload == 0 {
		return
	}
	median := l.latency.median()
	peak := float64(l.peak.Load())
	unused := peak < l.found/2
	first := l.base == 0
	switch {
	case n < few: // timeouts only
	case first:
		l.base = median
	case unused: // no queue, so this is what it is now
		l.base += (median - l.base) * 0.1
	case median < l.base*0.8: // it has become faster; one window may be chance
		if l.gains++; l.gains >= fallen/2 {
			l.base = median
			l.probe(now, l.found/2)
			return
		}
	default:
		l.gains = 0
	}
	if n >= few {
		l.last = median
	}
	if first && n >= few && !unused {
		l.probe(now, l.found/2) // it may be that of a queue
		return
	}
	gradient := steepest
	if n >= few && median > 0 {
		gradient = min(1, max(steepest, l.base*(1+l.settings.Headroom)/median))
	}
	if overload*10 >= n {
		gradient = steepest
	}
	if gradient == 1 && unused {
		l.falls = 0
		return // a limit that nobody reaches says nothing
	}
	l.slow = l.slow && gradient == 1
	if l.slow {
		l.found *= 2
		l.store()
		return
	}
	next := l.found * gradient
	if gradient == 1 {
		next += math.Sqrt(l.found)
	} else {
		next++
	}
	l.found += (next - l.found) * smoothing
	if gradient <= steepest*1.2 {
		l.falls++
	} else {
		l.falls = 0
	}
	if now.After(l.probeAt) || l.falls >= fallen {
		l.probe(now, l.found/2)
		return
	}
	l.store()
}

// probe begins to measure at that level.
func (l *Limiter) probe(now time.Time, level float64) {
	l.probing, l.drained, l.falls, l.gains = true, false, 0, 0
	l.level, l.above, l.probeFrom = level, l.last, now
	l.store()
}

// measure is judge while a level below the limit is let in: the first window
// in which no more were in flight shows what the service does there.
func (l *Limiter) measure(now time.Time, n int64) {
	waited := now.Sub(l.probeFrom) > patience
	if !l.drained {
		// Those of before have to be gone; a service that hangs keeps them.
		l.drained = l.inFlight.Load() <= l.limit.Load() || waited
		return
	}
	if n < few && !waited {
		return
	}
	if n >= few {
		median := l.latency.median()
		l.last = median
		if median < faster*l.above && l.level > float64(l.settings.Min) {
			l.slow = false
			l.probe(now, l.level/2) // there was a queue above, so there may be one here
			return
		}
		l.base = median
	}
	l.probing = false
	l.probeAt = now.Add(l.settings.Probe)
	l.store()
}

// divide moves the shares of the classes by who was turned away.
func (l *Limiter) divide() {
	above := int64(0)
	for c := High; ; c-- {
		share := l.share(c)
		if above > 0 {
			share = max(shareFloor, share*0.7)
		} else {
			share = min(1, share+0.02)
		}
		l.class[c].share.Store(math.Float64bits(share))
		above += l.class[c].refused.Swap(0)
		if c == Low {
			return
		}
	}
}

// Status is what a limiter does now.
type Status struct {
	Limit    int
	InFlight int
	Base     time.Duration // median latency without a queue; 0: not known
	Probing  bool          // half of the limit is let in, to measure that
	Shed     [Classes]int64
}

// Status returns what the limiter does now.
func (l *Limiter) Status() Status {
	l.mu.Lock()
	s := Status{Base: time.Duration(l.base * float64(time.Second)), Probing: l.probing}
	l.mu.Unlock()
	s.Limit, s.InFlight = int(l.limit.Load()), int(l.inFlight.Load())
	for c := range l.class {
		s.Shed[c] = l.class[c].shed.Load()
	}
	return s
}

// histogram counts latencies in steps of a twelfth of an octave, from 10 us
// on.
type histogram struct {
	buckets [320]atomic.Int64
}

const (
	histogramFrom = 10e-6
	perOctave     = 12
)

func (h *histogram) add(d time.Duration) {
	i := 0
	if s := d.Seconds(); s > histogramFrom {
		i = min(len(h.buckets)-1, int(math.Log2(s/histogramFrom)*perOctave))
	}
	h.buckets[i].Add(1)
}

// median returns the middle, in seconds.
func (h *histogram) median() float64 {
	total := int64(0)
	for i := range h.buckets {
		total += h.buckets[i].Load()
	}
	seen := int64(0)
	for i := range h.buckets {
		n := h.buckets[i].Load()
		if seen += n; n > 0 && 2*seen >= total {
			// Within the bucket by rank, so that it does not jump.
			inside := 1 - (float64(seen)-float64(total)/2)/float64(n)
			return histogramFrom * math.Exp2((float64(i)+inside)/perOctave)
		}
	}
	return 0
}

func (h *histogram) clear() {
	for i := range h.buckets {
		h.buckets[i].Store(0)
	}
}
