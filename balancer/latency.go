package balancer

import (
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	slotWidth = 5 * time.Second
	slotCount = 12  // a minute
	recent    = 3   // slots: the running one and ten seconds before it
	buckets   = 104 // four to each power of two of microseconds, up to 134 s
	words     = (buckets + 63) / 64
)

// Latency sums up the requests of a member over a window. The percentiles are
// right to about an eighth.
type Latency struct {
	Window        time.Duration // what was really looked at: less for a young member
	Requests      uint64        // that ended, however they ended
	Rate          float64       // requests per second
	P50, P95, P99 time.Duration // of the requests that told a latency; 0 without any
}

// histogram counts latencies in a ring of slots. Recording takes no lock and
// allocates nothing; in the instant in which a slot is turned over a request
// may go uncounted.
type histogram struct {
	slots [slotCount]slot
	past  past // guarded by Pool.mu
}

type slot struct {
	// number is that of the slot's stretch of time, counted from 1; 0 is empty,
	// turning is being emptied.
	number atomic.Int64
	total  atomic.Uint64
	used   [words]atomic.Uint64 // a bit for each bucket that is not empty: few are
	counts [buckets]atomic.Uint32
}

const turning = -1

// record counts a request that ended at now; a latency of 0 counts in the rate
// alone.
func (h *histogram) record(now, latency time.Duration) {
	number := int64(now/slotWidth) + 1
	s := &h.slots[number%slotCount]
	if at := s.number.Load(); at != number {
		if at == turning || at > number || !s.number.CompareAndSwap(at, turning) {
			return
		}
		s.total.Store(0)
		for i := range s.used {
			s.used[i].Store(0)
		}
		for i := range s.counts {
			s.counts[i].Store(0)
		}
		s.number.Store(number)
	}
	s.total.Add(1)
	if latency > 0 {
		if b := bucketOf(latency); s.counts[b].Add(1) == 1 {
			s.used[b/64].Or(1 << (b % 64))
		}
	}
}

// past is the sum of the slots before the running one, kept from one look to
// the next: a page looks every second and a slot lasts five.
type past struct {
	number int64 // of the slot that was running; 0: never looked
	recent uint64
	minute tallied
}

// tallied are requests by latency. Only buckets of used are not empty: a look
// at thousands of members costs what they answered, not what they could have.
type tallied struct {
	total  uint64
	used   [words]uint64
	counts [buckets]uint32
}

func (t *tallied) add(s *slot) {
	t.total += s.total.Load()
	for w := range s.used {
		used := s.used[w].Load()
		t.used[w] |= used
		for ; used != 0; used &= used - 1 {
			b := w*64 + bits.TrailingZeros64(used)
			t.counts[b] += s.counts[b].Load()
		}
	}
}

// sums returns the rate in the running slot and the ten seconds before it, and
// what happened in it and the minute before it, for a member that has existed
// for age. One goroutine may call it at a time.
func (h *histogram) sums(now, age time.Duration) (rate float64, minute Latency) {
	newest := int64(now/slotWidth) + 1
	if h.past.number != newest {
		h.past = past{number: newest}
		for i := range h.slots {
			s := &h.slots[i]
			at := s.number.Load()
			if at < newest && at > newest-slotCount {
				h.past.minute.add(s)
			}
			if at < newest && at > newest-recent {
				h.past.recent += s.total.Load()
			}
		}
	}
	var running tallied
	if s := &h.slots[newest%slotCount]; s.number.Load() == newest {
		running.add(s)
	}
	window := func(slots int) time.Duration { return min(age, time.Duration(slots-1)*slotWidth+now%slotWidth) }
	return perSecond(h.past.recent+running.total, window(recent)), latency(&h.past.minute, &running, window(slotCount))
}

// perSecond is a rate over a window of a second at least, or the first request
// of all would be a high one.
func perSecond(n uint64, window time.Duration) float64 {
	return float64(n) / max(window, time.Second).Seconds()
}

// latency sums up past and running requests together.
func latency(past, running *tallied, window time.Duration) Latency {
	l := Latency{Window: window, Requests: past.total + running.total}
	l.Rate = perSecond(l.Requests, window)
	var used [buckets]uint8 // the buckets that are not empty, in their order
	n, measured := 0, uint64(0)
	for w := range past.used {
		for both := past.used[w] | running.used[w]; both != 0; both &= both - 1 {
			b := w*64 + bits.TrailingZeros64(both)
			used[n] = uint8(b)
			n++
			measured += uint64(past.counts[b] + running.counts[b])
		}
	}
	if measured == 0 {
		return l
	}
	// The rank-th smallest, from 1, for each of the three in one go.
	ranks := [...]uint64{(measured*50 + 99) / 100, (measured*95 + 99) / 100, (measured*99 + 99) / 100}
	found := [...]*time.Duration{&l.P50, &l.P95, &l.P99}
	below, next := uint64(0), 0
	for _, b := range used[:n] {
		here := uint64(past.counts[b] + running.counts[b])
		for next < len(ranks) && below+here >= ranks[next] {
			low, width := bucketAt(int(b))
			within := (float64(ranks[next]-below) - 0.5) / float64(here)
			*found[next] = low + time.Duration(within*float64(width))
			next++
		}
		below += here
	}
	return l
}

func bucketOf(d time.Duration) int {
	us := uint64(d / time.Microsecond)
	if us < 4 {
		return int(us)
	}
	power := bits.Len64(us) - 1
	return min((power-1)*4+int(us>>(power-2)&3), buckets-1)
}

// bucketAt returns where a bucket begins and how wide it is.
func bucketAt(b int) (low, width time.Duration) {
	if b < 4 {
		return time.Duration(b) * time.Microsecond, time.Microsecond
	}
	power := b/4 + 1
	width = time.Microsecond << (power - 2)
	return time.Duration(4+b%4) * width, width
}
