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
}

type slot struct {
	// number is that of the slot's stretch of time, counted from 1; 0 is empty,
	// turning is being emptied.
	number atomic.Int64
	total  atomic.Uint64
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
		for i := range s.counts {
			s.counts[i].Store(0)
		}
		s.number.Store(number)
	}
	s.total.Add(1)
	if latency > 0 {
		s.counts[bucketOf(latency)].Add(1)
	}
}

// over sums up the last slots, of which the running one is the first, for a
// member that has existed for age.
func (h *histogram) over(now, age time.Duration, slots int) Latency {
	l := Latency{Window: min(age, time.Duration(slots-1)*slotWidth+now%slotWidth)}
	var counts [buckets]uint64
	var measured uint64
	newest := int64(now/slotWidth) + 1
	for i := range h.slots {
		s := &h.slots[i]
		if at := s.number.Load(); at <= newest-int64(slots) || at > newest {
			continue
		}
		l.Requests += s.total.Load()
		for b := range s.counts {
			n := uint64(s.counts[b].Load())
			counts[b] += n
			measured += n
		}
	}
	// A second at least, or the first request of all would be a high rate.
	l.Rate = float64(l.Requests) / max(l.Window, time.Second).Seconds()
	l.P50 = percentile(&counts, measured, 50)
	l.P95 = percentile(&counts, measured, 95)
	l.P99 = percentile(&counts, measured, 99)
	return l
}

func percentile(counts *[buckets]uint64, measured, percent uint64) time.Duration {
	if measured == 0 {
		return 0
	}
	rank := (measured*percent + 99) / 100 // the rank-th smallest, from 1
	var below uint64
	for b, n := range counts {
		if below+n >= rank {
			low, width := bucketAt(b)
			within := (float64(rank-below) - 0.5) / float64(n)
			return low + time.Duration(within*float64(width))
		}
		below += n
	}
	return 0
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
