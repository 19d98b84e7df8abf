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
	// due while it holds it closed although the breaker is open.
	suspect, due atomic.Bool
	closers      atomic.Int32 // who are about to close the circuit, and may
	forced       atomic.Pointer[force]
	waiting      atomic.Int32 // len(changes)
	tested       atomic.Int64 // when the circuit opened or last let a probe through, since made
	made         time.Time    // with a monotonic reading

	correcting sync.Mutex // held while hystrix is put right, or configured

	mu      sync.Mutex
	shown   State // what the last change said
	shownAt time.Time
	opens   uint64 // by its numbers
	opener  Cause  // of the last of them
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
	return b.rest(openFor)
}

// rest returns how long the open circuit is left alone. Until then hystrix
// would refuse as well, but at the cost of a command, and remember each refusal
// as an error, of which some would be counted only when it has closed.
func (m *machine) rest(openFor time.Duration) time.Duration {
	if _, s := m.current(); s == Closed {
		return 0
	}
	return max(0, time.Duration(m.tested.Load())+openFor-time.Since(m.made))
}

// test begins the time in which the circuit is left alone.
func (m *machine) test() { m.tested.Store(int64(time.Since(m.made))) }

func (b *Breaker) since() (at time.Time, forced bool, until time.Time) {
	if f := b.forced.Load(); f != nil {
		forced, until = true, f.until
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.shownAt, forced, until
}

func (b *Breaker) cause() (opened uint64, last Cause) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.opens, b.opener
}

// set moves the circuit to another state. mu is held.
func (b *Breaker) set(s State) {
	epoch, _ := b.current()
	if s == Open {
		// Only an opening ends a period; a failed probe goes on with it.
		if _, was := b.current(); was == Closed {
			b.opened.Store(epoch + 1)
			b.opens++
			b.opener.Requests, b.opener.Errors = b.window.sum(time.Now())
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
	if _, s := b.current(); s != Closed {
		b.due.Store(false) // it follows, and counts from now
		b.test()
		if s == HalfOpen {
			b.set(Open)
		}
		return
	}
	if !b.config.Load().trips(b.window.sum(time.Now())) {
		b.suspect.Store(true) // and whoever is refused undoes it
		return
	}
	b.test()
	b.set(Open)
}

// probing is hystrix's report that it lets one request through an open
// circuit. The circuit's lock is held.
func (b *Breaker) probing() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, s := b.current(); s != Closed {
		b.test()
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

// failed counts a failure in the window, and opens the breaker where that says
// so. hystrix would open the circuit at the next request, or some time later:
// its numbers run behind, and canceled commands dilute them.
func (b *Breaker) failed() {
	now := time.Now()
	b.window.add(now, true)
	if !b.config.Load().trips(b.window.sum(now)) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, s := b.current(); s == Closed {
		b.test()
		b.set(Open)
		b.due.Store(true)
	}
}

// follow makes hystrix open a circuit that it holds closed while the breaker is
// open: because the window was first, or a late success has closed it.
func (b *Breaker) follow(c *circuit) {
	if !b.due.Load() {
		return
	}
	b.correcting.Lock()
	defer b.correcting.Unlock()
	s := b.config.Load()
	if _, state := b.current(); b.due.Load() && state == Open && b.rest(s.OpenFor) > 0 {
		// This fails, and stays due, until hystrix has counted one request.
		c.tripped(s.Settings, b.hystrix)
	}
}

// claim reports whether the request is to probe without asking: the breaker has
// been open for its time, and hystrix has never followed.
func (b *Breaker) claim(s *compiled) bool {
	if !b.due.Load() {
		return false
	}
	b.correcting.Lock()
	defer b.correcting.Unlock()
	if _, state := b.current(); !b.due.Load() || state == Closed || b.rest(s.OpenFor) > 0 {
		return false
	}
	b.probing()
	return true
}

// resting reports whether the open circuit is left alone, and sees to it that
// hystrix holds it open.
func (b *Breaker) resting(s *compiled) bool {
	b.follow(s.circuit)
	return b.rest(s.OpenFor) > 0
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
