package limiter

import (
	"context"
	"slices"
	"sync"
	"time"
)

// line is who waits for an identity's tokens at this replica, in the order in
// which they came. The first of them asks, when it was told that it helps; the
// others wait for their turn to be the first.
type line struct {
	mu    sync.Mutex
	turns []*turn
	last  Decision // what the first was told
	opens int64    // mono at which it may pass

	booked []*booking // of a policy that hands out turns ahead of time

	// leaving is held by who gives a turn back, over both: what the last turn had
	// can be given back only before anything that was had before it.
	leaving sync.Mutex
}

// turn is a place in a line.
type turn struct{ first chan struct{} }

// len returns how many wait.
func (ln *line) len() int {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	return len(ln.turns) + len(ln.booked)
}

// join takes the place behind all others, unless there are too many, or it is
// known already that nobody passes before the deadline.
func (ln *line) join(most int, deadline int64) (t *turn, full, late bool) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	switch {
	case len(ln.turns) >= most:
		return nil, true, false
	case len(ln.turns) > 0 && ln.opens > deadline:
		return nil, false, true
	}
	t = &turn{make(chan struct{})}
	if ln.turns = append(ln.turns, t); len(ln.turns) == 1 {
		close(t.first)
	}
	return t, false, false
}

// leave frees a place.
func (ln *line) leave(t *turn) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	i := slices.Index(ln.turns, t)
	ln.turns = slices.Delete(ln.turns, i, i+1)
	if i == 0 && len(ln.turns) > 0 {
		close(ln.turns[0].first)
	}
}

// told notes what the first was told.
func (ln *line) told(d *Decision, now int64) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	ln.last, ln.opens = *d, now+d.RetryAfter.Microseconds()
}

// refusal is the answer to a caller that has not been the first.
func (ln *line) refusal(now int64) Decision {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	d := ln.last
	if d.RetryAfter = micros(max(1, ln.opens-now)); ln.opens == 0 {
		d.RetryAfter = time.Second // the first is still asking
	}
	d.Allowed = false
	return d
}

// throttle decides under a policy that delays.
func (l *Limiter) throttle(ctx context.Context, e *entry, p *Policy, cost int64, d *Decision) {
	if p.reserves {
		l.reserve(ctx, e, p, cost, d)
		return
	}
	began := l.mono()
	deadline := began + p.delay
	ln := e.line.Load()
	if ln == nil || ln.len() == 0 {
		if l.decide(ctx, e, p, cost, d); d.Allowed || !d.soon(began, deadline) {
			return
		}
		e.line.CompareAndSwap(nil, &line{})
		ln = e.line.Load()
	}
	t, full, late := ln.join(p.settings.MaxQueue, deadline)
	if full || late {
		*d = ln.refusal(began)
		d.Full = full
		return
	}
	defer ln.leave(t)
	l.waiting.Add(1)
	defer l.waiting.Add(-1)
	patience := time.NewTimer(p.settings.MaxDelay)
	defer patience.Stop()
	select {
	case <-t.first:
	case <-patience.C:
		*d = ln.refusal(l.mono())
		return
	case <-ctx.Done():
		*d = ln.refusal(l.mono())
		return
	}
	for {
		l.decide(ctx, e, p, cost, d)
		now := l.mono()
		if d.Allowed {
			if ctx.Err() != nil { // nobody is there to use it
				l.giveBack(d)
				*d = ln.refusal(now)
				return
			}
			d.Delayed = micros(now - began)
			return
		}
		ln.told(d, now)
		if !d.soon(now, deadline) {
			return
		}
		patience.Reset(d.RetryAfter)
		select {
		case <-patience.C:
		case <-ctx.Done():
			*d = ln.refusal(l.mono())
			return
		}
	}
}

// soon reports whether a denied caller may pass by the deadline.
func (d *Decision) soon(now, deadline int64) bool {
	return d.RetryAfter > 0 && d.Source != Closed && now+d.RetryAfter.Microseconds() <= deadline
}

// booking is a turn that was handed out ahead of time.
type booking struct {
	due    int64 // mono
	origin origin
	moved  chan struct{} // due has changed
}

// book adds a turn, in the order in which they are due.
func (ln *line) book(b *booking) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	i := len(ln.booked)
	for i > 0 && ln.booked[i-1].due > b.due {
		i--
	}
	ln.booked = slices.Insert(ln.booked, i, b)
}

// due returns how many µs a turn is still away, and drops it where it has come;
// and where its tokens are from by now, which changes as it moves up.
func (ln *line) due(b *booking, now int64) (int64, origin) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if b.due > now {
		return b.due - now, b.origin
	}
	if i := slices.Index(ln.booked, b); i >= 0 {
		ln.booked = slices.Delete(ln.booked, i, i+1)
	}
	return 0, b.origin
}

// cancel drops a turn. Those behind it, as far as they cost the same, move up,
// and what the last of them had is to be given back.
func (ln *line) cancel(b *booking) origin {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	i := slices.Index(ln.booked, b)
	ln.booked = slices.Delete(ln.booked, i, i+1)
	due, from := b.due, b.origin
	for _, behind := range ln.booked[i:] {
		if behind.origin.cost != from.cost {
			continue
		}
		due, behind.due = behind.due, due
		from, behind.origin = behind.origin, from
		select {
		case behind.moved <- struct{}{}:
		default: // it has not looked yet
		}
	}
	return from
}

// reserve takes a turn that may be ahead of time, and waits for it. How many
// can wait follows from how far ahead a token bucket hands out turns.
func (l *Limiter) reserve(ctx context.Context, e *entry, p *Policy, cost int64, d *Decision) {
	l.decide(ctx, e, p, cost, d)
	began := l.mono()
	if !d.Allowed {
		for i := range p.specs {
			s := &p.specs[i]
			// Where another limit denies, as a day's, a place would not help.
			d.Full = d.Full || s.ahead > 0 && s.ahead < p.delay && d.soon(began, began+p.delay)
		}
		return
	}
	if d.due <= began {
		return
	}
	e.line.CompareAndSwap(nil, &line{})
	ln := e.line.Load()
	b := &booking{d.due, d.origin, make(chan struct{}, 1)}
	ln.book(b)
	l.waiting.Add(1)
	defer l.waiting.Add(-1)
	turn := time.NewTimer(micros(d.due - began))
	defer turn.Stop()
	for {
		select {
		case <-turn.C:
		case <-b.moved:
		case <-ctx.Done():
			ln.leaving.Lock()
			d.origin = ln.cancel(b)
			l.giveBack(d)
			ln.leaving.Unlock()
			d.RetryAfter = micros(max(1, d.due-l.mono()))
			return
		}
		now := l.mono()
		var left int64
		if left, d.origin = ln.due(b, now); left == 0 {
			d.Delayed = micros(now - began)
			return
		}
		turn.Reset(micros(left))
	}
}
