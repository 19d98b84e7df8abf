package metrics

import (
	"sync/atomic"
	"time"
)

// Stats is what happened in the last minute, for the status page. Totals are
// since the start of the process.
type Stats struct {
	Requests      uint64  // total
	Errors        uint64  // total of 5xx and of tries without an answer
	Limited       uint64  // total of 429
	Rate          float64 // requests a second, over the last ten seconds
	ErrorShare    float64 // of the last minute's, 0 to 1
	P50, P95, P99 time.Duration
}

const (
	slotSeconds = 5
	slotCount   = 13 // a minute and the slot that is being filled
	rateSlots   = 2  // full slots that a rate is taken over
)

// timings are durations by class of status, and what they were at times of the
// last minute, of which that minute is the difference. Recording takes no lock;
// what is counted while a slot begins may be taken for the slot before, which a
// display can bear.
type timings struct {
	classes [len(classLabels)]atomic.Pointer[histogram]
	past    atomic.Pointer[[slotCount]counted]
	slot    atomic.Int64 // that the last one was counted in: which five seconds since 1970
}

// counted is what was counted before a slot began.
type counted struct {
	slot   atomic.Int64  // 0: none
	failed atomic.Uint32 // modulo its size, as the rest: only differences matter
	places [places]atomic.Uint32
}

// failing are the classes that count as errors.
var failing = [len(classLabels)]bool{0: true, 5: true, len(classLabels) - 1: true}

// turn begins the slot of now, where it has not begun yet. It is called before
// each count.
func (t *timings) turn(now time.Time) {
	slot := now.Unix() / slotSeconds
	if old := t.slot.Load(); old != slot && old != slot+1 { // one that ended a moment ago
		t.begin(old, slot)
	}
}

func (t *timings) begin(old, slot int64) {
	if !t.slot.CompareAndSwap(old, slot) {
		return
	}
	past := t.past.Load()
	if past == nil {
		past = new([slotCount]counted)
		t.past.Store(past)
	}
	c := &past[slot%slotCount]
	c.slot.Store(0)
	sum, failed := t.sum()
	c.failed.Store(uint32(failed))
	for p, n := range sum {
		c.places[p].Store(uint32(n))
	}
	c.slot.Store(slot)
}

// class returns the durations of a class, and makes them where there are none.
func (t *timings) class(class int) *histogram {
	if h := t.classes[class].Load(); h != nil {
		return h
	}
	t.classes[class].CompareAndSwap(nil, new(histogram))
	return t.classes[class].Load()
}

// empty reports whether there is no class yet.
func (t *timings) empty() bool {
	for class := range t.classes {
		if t.classes[class].Load() != nil {
			return false
		}
	}
	return true
}

// sum returns what was counted so far, of all classes and of those that fail.
func (t *timings) sum() (sum [places]uint64, failed uint64) {
	for class := range t.classes {
		h := t.classes[class].Load()
		if h == nil {
			continue
		}
		for p := range h.counts {
			n := h.counts[p].Load()
			sum[p] += n
			if failing[class] {
				failed += n
			}
		}
	}
	return sum, failed
}

// since returns what was counted before the first slot that began at that one
// or later; nil: nothing was counted since.
func (t *timings) since(slot int64) (first *counted) {
	past := t.past.Load()
	if past == nil {
		return nil
	}
	for i := range past {
		c := &past[i]
		if at := c.slot.Load(); at >= slot && (first == nil || at < first.slot.Load()) {
			first = c
		}
	}
	return first
}

func (t *timings) stats(now time.Time) Stats {
	sum, failed := t.sum()
	var all uint64
	for _, n := range sum {
		all += n
	}
	st := Stats{Requests: all, Errors: failed}
	slot := now.Unix() / slotSeconds
	if c := t.since(slot - rateSlots); c != nil {
		var recent uint32
		for p := range c.places {
			recent += uint32(sum[p]) - c.places[p].Load()
		}
		into := now.Sub(time.Unix(slot*slotSeconds, 0)).Seconds()
		st.Rate = float64(recent) / (rateSlots*slotSeconds + into)
	}
	c := t.since(slot - slotCount + 1)
	if c == nil {
		return st
	}
	var minute [places]uint32
	var total uint32
	for p := range minute {
		minute[p] = uint32(sum[p]) - c.places[p].Load()
		total += minute[p]
	}
	if total == 0 {
		return st
	}
	st.ErrorShare = min(1, float64(uint32(failed)-c.failed.Load())/float64(total))
	quantiles := [...]float64{.50, .95, .99}
	found := [...]*time.Duration{&st.P50, &st.P95, &st.P99}
	var seen uint32
	next := 0
	for p, n := range minute {
		seen += n
		for next < len(found) && seen > uint32(quantiles[next]*float64(total-1)) {
			*found[next] = requestScale.middle[p]
			next++
		}
	}
	return st
}
