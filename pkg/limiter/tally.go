package limiter

import (
	"math"
	"slices"
	"time"
)

// instant is one moment on two clocks, both in µs. mono never steps and is
// what windows, leases and waits are measured on. wall is Unix time, Redis's
// where it is known; only windows that are aligned to a calendar or an epoch
// read it.
type instant struct{ mono, wall int64 }

// tally is what this replica itself admitted against one limit, kept by the
// same rules as in acquire.lua. It is the whole state of a limiter without a
// store; beside a store it is what a replica has already taken when the store
// goes away, and what it has to make good when the store comes back.
type tally struct {
	slots []slot // of S, F and C: by ascending id

	// Of T: a bucket that each token fills by what its refill takes, and that
	// time drains. It is kept in µs as in the store, where callers under
	// policies of different rates fill it too.
	level float64
	owed  int64 // of level, not known to the store
	at    int64 // when level was true

	told told // of the limit, to clients
}

// slot is a bucket or a window of a tally.
type slot struct {
	id    int64
	spent int64
	owed  int64 // of spent, not known to the store
}

// slotID returns the slot that a charge at now belongs to.
func (s *spec) slotID(now instant) int64 {
	switch s.kind {
	case 'S':
		return now.mono / s.step
	case 'F':
		return now.wall / s.step
	}
	from, _ := s.borders(now.wall, 0)
	return from
}

// leaves returns how long after now the slot stops counting.
func (s *spec) leaves(id int64, now instant) int64 {
	switch s.kind {
	case 'S':
		return (id+buckets+1)*s.step - now.mono
	case 'F':
		return (id+1)*s.step - now.wall
	}
	_, to := s.borders(id, 0)
	return to - now.wall
}

// expire forgets what does not count any more. div is how many replicas share
// the refill rate.
func (t *tally) expire(s *spec, now instant, div int64) {
	if s.kind == 'T' {
		t.level = max(0, t.level-float64(now.mono-t.at)/float64(div))
		t.owed = min(t.owed, int64(math.Ceil(t.level)))
		t.at = now.mono
		return
	}
	n := 0
	for n < len(t.slots) && s.leaves(t.slots[n].id, now) <= 0 {
		n++
	}
	if n > 0 {
		t.slots = t.slots[:copy(t.slots, t.slots[n:])]
	}
}

// used returns how many tokens count. expire comes first.
func (t *tally) used(s *spec) float64 {
	if s.kind == 'T' {
		return t.level / s.unit
	}
	var sum int64
	for i := range t.slots {
		sum += t.slots[i].spent
	}
	return float64(sum)
}

// remaining returns how many of limit tokens are left, never below nothing.
func (t *tally) remaining(s *spec, limit int64) int64 {
	return max(0, int64(math.Floor(float64(limit)-t.used(s)+1e-9)))
}

// wait returns how many µs after now cost tokens of limit are free; the
// longest there is where that never comes.
func (t *tally) wait(s *spec, now instant, limit, cost, div int64) int64 {
	short := t.used(s) + float64(cost) - float64(limit)
	if short <= 1e-9 {
		return 0
	}
	if cost > limit {
		return math.MaxInt64
	}
	if s.kind == 'T' {
		return int64(math.Ceil(short*s.unit*float64(div))) + 1
	}
	for i := range t.slots {
		if short -= float64(t.slots[i].spent); short <= 0 {
			return s.leaves(t.slots[i].id, now)
		}
	}
	return math.MaxInt64
}

// reset returns how many µs after now remaining grows next; 0 where nothing
// is used.
func (t *tally) reset(s *spec, now instant, limit, div int64) int64 {
	switch {
	case s.kind == 'T' && t.level > 0:
		return max(0, t.wait(s, now, limit, min(limit, t.remaining(s, limit)+1), div))
	case s.kind == 'S' && len(t.slots) > 0:
		return s.leaves(t.slots[0].id, now)
	case s.kind == 'F' || s.kind == 'C':
		return s.leaves(s.slotID(now), now)
	}
	return 0
}

// add charges cost at now. owed says that the store does not know of it.
func (t *tally) add(s *spec, now instant, cost int64, owed bool) {
	if cost == 0 {
		return
	}
	if s.kind == 'T' {
		t.level += float64(cost) * s.unit
		if owed {
			t.owed += int64(math.Ceil(float64(cost) * s.unit))
		}
		return
	}
	var debt int64
	if owed {
		debt = cost
	}
	id := s.slotID(now)
	i := len(t.slots)
	for i > 0 && t.slots[i-1].id > id {
		i-- // a charge that is booked late, as when a lease ends
	}
	if i > 0 && t.slots[i-1].id == id {
		t.slots[i-1].spent += cost
		t.slots[i-1].owed += debt
		return
	}
	t.slots = slices.Insert(t.slots, i, slot{id, cost, debt})
}

// back takes off what was charged at a moment and not spent. Where a token
// bucket was charged by others since, that is what has not leaked out since.
func (t *tally) back(s *spec, now, at instant, cost, div int64, owed, last bool) {
	if s.kind == 'T' {
		t.expire(s, now, div)
		back := float64(cost) * s.unit
		if !last {
			back = max(0, back-float64(now.mono-at.mono)/float64(div))
		}
		t.level = max(0, t.level-back)
		if owed {
			t.owed = max(0, t.owed-int64(back))
		}
		return
	}
	id := s.slotID(at)
	for i := range t.slots {
		if t.slots[i].id == id {
			t.slots[i].spent = max(0, t.slots[i].spent-cost)
			if owed {
				t.slots[i].owed = max(0, t.slots[i].owed-cost)
			}
		}
	}
}

// debt is an amount that the store has to be told of.
type debt struct {
	window int
	slot   int64
	age    int64 // µs
	amount int64 // tokens; of a token bucket µs
}

// debts appends what is owed of the tally of limit w.
func (t *tally) debts(to []debt, w int, s *spec, now instant) []debt {
	if s.kind == 'T' {
		if t.owed > 0 {
			to = append(to, debt{w, 0, 0, t.owed})
		}
		return to
	}
	for i := range t.slots {
		if t.slots[i].owed == 0 {
			continue
		}
		// The slot's youngest moment: a debt is never charged earlier than it
		// was spent.
		var age int64
		if s.kind == 'S' {
			age = max(0, now.mono-(t.slots[i].id+1)*s.step)
		}
		to = append(to, debt{w, t.slots[i].id, age, t.slots[i].owed})
	}
	return to
}

// settled takes what the store was told of off what is owed.
func (t *tally) settled(s *spec, d debt) {
	if s.kind == 'T' {
		t.owed = max(0, t.owed-d.amount)
		return
	}
	for i := range t.slots {
		if t.slots[i].id == d.slot {
			t.slots[i].owed = max(0, t.slots[i].owed-d.amount)
		}
	}
}

// oweAll marks all that still counts as unknown to the store.
func (t *tally) oweAll(s *spec) {
	if s.kind == 'T' {
		t.owed = int64(math.Ceil(min(t.level, float64(s.limit)*s.unit)))
	}
	for i := range t.slots {
		t.slots[i].owed = t.slots[i].spent
	}
}

// live reports whether any charge still counts.
func (t *tally) live() bool { return t.level > 0 || len(t.slots) > 0 }

// micros makes a duration of µs.
func micros(n int64) time.Duration {
	if n >= math.MaxInt64/1000 {
		return math.MaxInt64
	}
	return time.Duration(n) * time.Microsecond
}
