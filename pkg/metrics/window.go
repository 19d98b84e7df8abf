package metrics

import (
	"math/bits"
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
	perOctave   = 4
	bucketCount = 27 * perOctave // microseconds to about two minutes
	bucketWords = (bucketCount + 63) / 64
)

// window is a sliding minute of durations in logarithmic buckets, a quarter
// octave each, so that a quantile is at most an eighth off from 8 µs up. It is lock free;
// counts that fall into the instant in which a slot is cleared may be lost,
// which a display can bear and a counter could not: totals are apart.
type window struct {
	requests, errors, limited atomic.Uint64
	slots                     [slotCount]slot
}

type slot struct {
	epoch   atomic.Int64 // which five seconds since 1970
	count   atomic.Uint32
	errors  atomic.Uint32
	used    [bucketWords]atomic.Uint64 // a bit for each bucket that is not empty: few are
	buckets [bucketCount]atomic.Uint32
}

func (w *window) add(now time.Time, d time.Duration, status int) {
	failed := status == 0 || status >= 500
	epoch := now.Unix() / slotSeconds
	s := &w.slots[epoch%slotCount]
	if old := s.epoch.Load(); old != epoch && s.epoch.CompareAndSwap(old, epoch) {
		s.count.Store(0)
		s.errors.Store(0)
		for i := range s.used {
			s.used[i].Store(0)
		}
		for i := range s.buckets {
			s.buckets[i].Store(0)
		}
	}
	w.requests.Add(1)
	s.count.Add(1)
	if failed {
		w.errors.Add(1)
		s.errors.Add(1)
	} else if status == 429 {
		w.limited.Add(1)
	}
	if b := bucketOf(d); s.buckets[b].Add(1) == 1 {
		s.used[b/64].Or(1 << (b % 64))
	}
}

// bucketOf returns the bucket of d: the octave of its microseconds and the two
// bits after the leading one.
func bucketOf(d time.Duration) int {
	us := uint64(max(d.Microseconds(), 1))
	octave := bits.Len64(us) - 1
	var part uint64
	if octave >= 2 {
		part = us >> (octave - 2) & 3
	} else {
		part = us << (2 - octave) & 3
	}
	return min(octave*perOctave+int(part), bucketCount-1)
}

// middle returns the duration in the middle of a bucket.
func middle(bucket int) time.Duration {
	base := float64(uint64(1) << (bucket / perOctave))
	return time.Duration(base * (1 + (float64(bucket%perOctave)+.5)/perOctave) * float64(time.Microsecond))
}

func (w *window) stats(now time.Time) Stats {
	st := Stats{Requests: w.requests.Load(), Errors: w.errors.Load(), Limited: w.limited.Load()}
	epoch := now.Unix() / slotSeconds
	var sum [bucketCount]uint64
	var used [bucketWords]uint64
	var total, recent, failed uint64
	for i := range w.slots {
		s := &w.slots[i]
		age := epoch - s.epoch.Load()
		if age < 0 || age >= slotCount {
			continue
		}
		if age <= rateSlots {
			recent += uint64(s.count.Load())
		}
		failed += uint64(s.errors.Load())
		for w := range s.used {
			set := s.used[w].Load()
			used[w] |= set
			for ; set != 0; set &= set - 1 {
				b := w*64 + bits.TrailingZeros64(set)
				n := uint64(s.buckets[b].Load())
				sum[b] += n
				total += n
			}
		}
	}
	into := now.Sub(time.Unix(epoch*slotSeconds, 0)).Seconds()
	st.Rate = float64(recent) / (rateSlots*slotSeconds + into)
	if total == 0 {
		return st
	}
	st.ErrorShare = min(1, float64(failed)/float64(total))
	quantiles := [...]float64{.50, .95, .99}
	found := [...]*time.Duration{&st.P50, &st.P95, &st.P99}
	seen, next := uint64(0), 0
	for w, set := range used {
		for ; set != 0; set &= set - 1 {
			b := w*64 + bits.TrailingZeros64(set)
			seen += sum[b]
			for next < len(found) && seen > uint64(quantiles[next]*float64(total-1)) {
				*found[next] = middle(b)
				next++
			}
		}
	}
	return st
}
