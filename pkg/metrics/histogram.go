package metrics

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	perOctave = 4
	quarters  = 27 * perOctave // of an octave, from a microsecond to about two minutes
	maxBounds = 14             // that a scrape shows
	places    = quarters + maxBounds
)

// scale says where a duration is counted: by quarters of an octave, so that a
// quantile is at most an eighth off from 8 µs up, and in a quarter with a bound
// that scrapes show, below it or above. So one count serves both, the one
// exactly and the other closely.
type scale struct {
	bounds []float64               // in seconds, as scrapes show them
	ends   []int                   // of each bound, the last place below it
	shift  [quarters]uint8         // of each quarter, how many bounds are below it
	split  [quarters]time.Duration // of each quarter, the bound in it
	middle [places]time.Duration
}

// The scales of all that takes as long as an instance does, and of what takes
// a gateway's time.
var (
	requestScale = newScale(requestBuckets)
	fastScale    = newScale(fastBuckets)
)

func newScale(bounds []float64) *scale {
	s := &scale{bounds: bounds}
	for q := range s.split {
		s.split[q] = math.MaxInt64
	}
	for i, b := range bounds {
		at := time.Duration(math.Round(b * float64(time.Second)))
		q := quarterOf(at)
		if i >= maxBounds || s.split[q] != math.MaxInt64 {
			panic(fmt.Sprintf("metrics: no room for the bound %v", b))
		}
		s.split[q] = at
		s.ends = append(s.ends, q+i)
	}
	below := 0
	for q := range quarters {
		s.shift[q] = uint8(below)
		from, to, p := quarter(q), quarter(q+1), q+below
		if at := s.split[q]; at != math.MaxInt64 {
			s.middle[p], s.middle[p+1] = (from+at)/2, (at+to)/2
			below++
		} else {
			s.middle[p] = (from + to) / 2
		}
	}
	return s
}

// place returns where d is counted.
func (s *scale) place(d time.Duration) int {
	q := quarterOf(d)
	p := q + int(s.shift[q])
	if d > s.split[q] {
		p++
	}
	return p
}

// quarterOf returns the octave of d's microseconds and the two bits after the
// leading one.
func quarterOf(d time.Duration) int {
	us := uint64(max(d.Microseconds(), 1))
	octave := bits.Len64(us) - 1
	var part uint64
	if octave >= 2 {
		part = us >> (octave - 2) & 3
	} else {
		part = us << (2 - octave) & 3
	}
	return min(octave*perOctave+int(part), quarters-1)
}

// quarter returns where a quarter begins.
func quarter(q int) time.Duration {
	base := float64(uint64(1) << (q / perOctave))
	return time.Duration(base * (1 + float64(q%perOctave)/perOctave) * float64(time.Microsecond))
}

// histogram counts durations by the places of a scale. An observation touches
// two places of memory.
type histogram struct {
	sum      atomic.Int64                           // ns
	other    *other                                 // that scrapes see in its place; nil: they see this one
	examples atomic.Pointer[[maxBounds + 1]example] // by the bounds of a scrape; nil: none yet
	counts   [places]atomic.Uint64
}

// other is one of the two.
type other struct {
	shared *histogram          // with other names: the family is full
	native prometheus.Observer // client_golang's, which has native buckets too
}

// example is the last observation of a bucket whose trace is kept.
type example struct {
	atomic.Pointer[prometheus.Exemplar]
}

func (h *histogram) count(place int, d time.Duration) {
	h.sum.Add(int64(d))
	h.counts[place].Add(1)
}

// observe counts d at its place, with the trace that it is an example of, also
// where scrapes see that.
func (h *histogram) observe(s *scale, place int, d time.Duration, trace string) {
	h.count(place, d)
	switch {
	case h.other != nil && h.other.shared != nil:
		h.other.shared.observe(s, place, d, trace)
	case h.other != nil:
		observe(h.other.native, d.Seconds(), trace)
	case trace != "":
		h.exemplify(s, d, trace)
	}
}

// spills reports whether h is beyond its family's bound.
func (h *histogram) spills() bool { return h.other != nil && h.other.shared != nil }

// observe records a value, with the trace that it is an example of.
func observe(h prometheus.Observer, v float64, trace string) {
	if e, ok := h.(prometheus.ExemplarObserver); ok && trace != "" {
		e.ObserveWithExemplar(v, prometheus.Labels{"trace_id": trace})
		return
	}
	h.Observe(v)
}

func (h *histogram) exemplify(s *scale, d time.Duration, trace string) {
	list := h.examples.Load()
	if list == nil {
		h.examples.CompareAndSwap(nil, new([maxBounds + 1]example))
		list = h.examples.Load()
	}
	bucket, _ := slices.BinarySearch(s.bounds, d.Seconds())
	list[bucket].Store(&prometheus.Exemplar{Value: d.Seconds(), Labels: prometheus.Labels{"trace_id": trace}, Timestamp: time.Now()})
}

// metric returns what a scrape shows.
func (h *histogram) metric(s *scale, desc *prometheus.Desc, labels ...string) prometheus.Metric {
	buckets := make(map[float64]uint64, len(s.bounds))
	var n uint64
	p := 0
	for i, bound := range s.bounds {
		for ; p <= s.ends[i]; p++ {
			n += h.counts[p].Load()
		}
		buckets[bound] = n
	}
	for ; p < places; p++ {
		n += h.counts[p].Load()
	}
	m := prometheus.MustNewConstHistogram(desc, n, time.Duration(h.sum.Load()).Seconds(), buckets, labels...)
	list := h.examples.Load()
	if list == nil {
		return m
	}
	var examples []prometheus.Exemplar
	for i := range list {
		if e := list[i].Load(); e != nil {
			examples = append(examples, *e)
		}
	}
	if with, err := prometheus.NewMetricWithExemplars(m, examples...); err == nil {
		return with
	}
	return m // without its examples rather than not at all
}
