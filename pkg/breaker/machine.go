package breaker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// machine is what is known of the circuit's state. It follows the transitions
// that hystrix reports and adds what hystrix does not: whether an opening was
// justified, that a probe failed, and what an operator forces.
//
// hystrix reports with its circuit's lock held. So nothing here calls hystrix
// or anybody else with mu held, and changes are queued until a goroutine that
// holds neither lock comes by (announce).
type machine struct {
	// word is epoch<<2 | State; the epoch grows with every transition.
	word atomic.Uint64
	// opened is the epoch of the last opening: what began before says nothing
	// of the time after.
	opened atomic.Uint64
	// suspect is set while hystrix holds the circuit open for no good reason,
	// due while it holds it closed for none.
	suspect, due atomic.Bool
	closers      atomic.Int32 // who are about to close the circuit, and may
	forced       atomic.Pointer[force]
	waiting      atomic.Int32 // len(changes)

	correcting sync.Mutex // held while hystrix is put right, or configured

	mu      sync.Mutex
	tested  time.Time // of the opening or the last probe
	shown   State     // what the last change said
	shownAt time.Time
	changes []change
}

// force is an operator's order.
type force struct {
	state State     // Closed or Open
	until time.Time // zero: until it is lifted
	timer *time.Timer
}

type change struct {
	to             State
	forced         bool
	requests, errs int // in the window
	openFor        time.Duration
}

func wordOf(epoch uint64, s State) uint64       { return epoch<<2 | uint64(s) }
func split(word uint64) (epoch uint64, s State) { return word >> 2, State(word & 3) }

// current returns the state of the circuit, whatever is forced.
func (m *machine) current() (epoch uint64, s State) { return split(m.word.Load()) }

// State returns what the breaker does with the next request. It changes
// nothing: an open breaker whose time is up stays open until a request probes.
func (b *Breaker) State() State {
	if f := b.forced.Load(); f != nil {
		return f.state
	}
	_, s := b.current()
	return s
}

// RetryAfter returns how long requests will be refused for; 0 while they pass
// or one may probe.
func (b *Breaker) RetryAfter() time.Duration {
	openFor := b.config.Load().OpenFor
	if f := b.forced.Load(); f != nil {
		switch {
		case f.state == Closed:
			return 0
		case f.until.IsZero():
			return openFor
		}
		return max(0, time.Until(f.until))
	}
	if _, s := b.current(); s == Closed {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(0, time.Until(b.tested.Add(openFor)))
}

func (b *Breaker) since() (at time.Time, forced bool, until time.Time) {
	if f := b.forced.Load(); f != nil {
		forced, until = true, f.until
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.shownAt, forced, until
}

// set moves the circuit to another state. mu is held.
func (b *Breaker) set(s State) {
	epoch, _ := b.current()
	if s == Open {
		// Only an opening ends a period; a failed probe goes on with it.
		if _, was := b.current(); was == Closed {
			b.opened.Store(epoch + 1)
		}
	}
	b.word.Store(wordOf(epoch+1, s))
	b.show()
}

// show queues a change where what is to be seen has changed. mu is held.
func (b *Breaker) show() {
	c := change{to: b.State(), forced: b.forced.Load() != nil}
	if c.to == b.shown {
		return
	}
	c.requests, c.errs = b.window.sum(time.Now())
	c.openFor = b.config.Load().OpenFor
	b.shown, b.shownAt = c.to, time.Now()
	b.changes = append(b.changes, c)
	b.waiting.Add(1)
}

// opening is hystrix's report that it opened the circuit. The circuit's lock
// is held.
func (b *Breaker) opening() {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if _, s := b.current(); s != Closed {
		b.tested = now // it had closed the circuit, and has been put right
		return
	}
	if !b.config.Load().trips(b.window.sum(now)) {
		b.suspect.Store(true) // and whoever is refused undoes it
		return
	}
	b.tested = now
	b.set(Open)
}

// probing is hystrix's report that it lets one request through an open
// circuit. The circuit's lock is held.
func (b *Breaker) probing() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, s := b.current(); s != Closed {
		b.tested = time.Now()
		b.set(HalfOpen)
	}
}

// closing is hystrix's report that it closed the circuit and forgot all
// numbers. The circuit's lock is held.
func (b *Breaker) closing() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, s := b.current(); s != Closed && b.closers.Load() == 0 {
		// A command that had succeeded before the circuit opened has told of
		// it only now: between its look at the state and hystrix's count lies
		// all that the scheduler likes to do first.
		b.due.Store(true)
		return
	}
	b.closed()
}

// closed follows a closing. mu is held.
func (b *Breaker) closed() {
	b.suspect.Store(false)
	if _, s := b.current(); s != Closed {
		b.set(Closed)
		b.window.reset()
		b.due.Store(false)
	}
}

// probeFailed puts the circuit back to open after the probe of that epoch,
// which hystrix does without a word.
func (b *Breaker) probeFailed(epoch uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.word.Load() == wordOf(epoch, HalfOpen) {
		b.set(Open)
	}
}

// stale reports whether the circuit has opened since that epoch.
func (m *machine) stale(epoch uint64) bool { return m.opened.Load() > epoch }

// undo reports whether a refusal is worth asking again, and undoes the opening
// that caused it where that was false.
func (b *Breaker) undo(c *circuit) bool {
	if _, s := b.current(); s != Closed {
		return false
	}
	// The lock makes those wait who were refused by the same opening: none of
	// them may use up its tries before it is undone.
	b.correcting.Lock()
	defer b.correcting.Unlock()
	if b.suspect.Load() {
		b.tell(c, eventSuccess, time.Now(), 0)
		b.count(vetoed)
		b.log.Debug("false opening undone", "upstream", b.name)
	}
	return true
}

// failed counts a failure in the window.
func (b *Breaker) failed() {
	now := time.Now()
	b.window.add(now, true)
	if b.config.Load().trips(b.window.sum(now)) {
		b.due.Store(true)
	}
}

// trip opens a circuit that should be open and is not, and reports whether
// requests are to be refused until that is done. hystrix would open it by
// itself, at the next request; but its numbers run behind, canceled commands
// dilute them, and a late success closes what it has opened.
func (b *Breaker) trip(c *circuit) (refuse bool) {
	if !b.due.Load() {
		return false
	}
	b.correcting.Lock()
	defer b.correcting.Unlock()
	s := b.config.Load()
	_, state := b.current()
	if state == Closed && !s.trips(b.window.sum(time.Now())) || c.tripped(s.Settings, b.hystrix) {
		b.due.Store(false)
		return false
	}
	return state != Closed // hystrix has not counted a single request yet
}

// shut closes the circuit.
func (b *Breaker) shut(c *circuit) {
	b.closers.Add(1)
	b.tell(c, eventSuccess, time.Now(), 0)
	b.closers.Add(-1)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed() // where a late success had closed it, nobody was told
}

// clear closes the circuit where it is open.
func (b *Breaker) clear() {
	c := b.config.Load().circuit
	if _, s := b.current(); c != nil && (s != Closed || b.suspect.Load()) {
		b.shut(c)
	}
}

// Force makes the breaker let all requests through (Closed) or none (Open),
// whatever happens to them, until that time or, where it is zero, until Lift
// or Reset. A later Force replaces an earlier one. Forcing it closed also
// closes the circuit, so that it begins afresh when the force ends.
func (b *Breaker) Force(s State, until time.Time) error {
	if s != Closed && s != Open {
		return fmt.Errorf("force breaker %s: to %s: want closed or open", b.name, s)
	}
	f := &force{state: s, until: until}
	var left time.Duration
	if !until.IsZero() {
		if left = time.Until(until); left <= 0 {
			return fmt.Errorf("force breaker %s: until %s, which is over", b.name, until.Format(time.RFC3339))
		}
	}
	if b.released.Load() {
		return fmt.Errorf("force breaker %s: it is not in use any more", b.name)
	}
	b.mu.Lock()
	if left > 0 {
		// The timer waits for mu, and so for the swap below.
		f.timer = time.AfterFunc(left, func() { b.lift(f) })
	}
	if old := b.forced.Swap(f); old != nil && old.timer != nil {
		old.timer.Stop()
	}
	b.show()
	b.mu.Unlock()
	if s == Closed {
		b.clear()
	}
	b.announce()
	return nil
}

// Lift ends what Force began. The circuit is as it was, or as it has become.
func (b *Breaker) Lift() { b.lift(b.forced.Load()) }

func (b *Breaker) lift(f *force) {
	if f == nil {
		return
	}
	b.mu.Lock()
	if b.forced.CompareAndSwap(f, nil) {
		if f.timer != nil {
			f.timer.Stop()
		}
		b.show()
	}
	b.mu.Unlock()
	b.announce()
}

// Reset lifts a force, closes the circuit and forgets the last ten seconds.
// Counters stay.
func (b *Breaker) Reset() {
	b.Lift()
	b.window.reset()
	b.clear()
	b.announce()
}

// announce logs queued changes and tells them to the registry's owner, in
// order. No lock may be held that a listener could need.
func (b *Breaker) announce() {
	// Whoever holds the lock takes what others queue meanwhile; looking again
	// after it is free catches what came in between.
	for b.waiting.Load() > 0 && b.announcing.TryLock() {
		b.drain()
	}
}

func (b *Breaker) drain() {
	defer b.announcing.Unlock()
	b.mu.Lock()
	changes := b.changes
	b.changes = nil
	b.waiting.Store(0)
	b.mu.Unlock()
	for _, c := range changes {
		if b.released.Load() {
			return
		}
		level, message := slog.LevelInfo, "breaker closed"
		attrs := []slog.Attr{slog.String("upstream", b.name), slog.Bool("forced", c.forced)}
		switch c.to {
		case Open:
			level, message = slog.LevelWarn, "breaker open"
			attrs = append(attrs, slog.Int("requests", c.requests), slog.Int("errors", c.errs), slog.Duration("open_for", c.openFor))
		case HalfOpen:
			message = "breaker half-open"
		}
		b.log.LogAttrs(context.Background(), level, message, attrs...)
		if b.onChange != nil {
			b.onChange(b.name, c.to)
		}
	}
}
