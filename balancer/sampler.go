package balancer

import (
	"math/bits"
	"slices"
)

// sampler spreads positions over members in proportion to their weights: among
// as many consecutive positions as the weights sum up to (after division by
// their greatest common divisor), every member has exactly its weight.
type sampler interface {
	at(position uint64) int
}

// cycleWork bounds the steps that precomputing a cycle may take, about a
// millisecond; beyond it a stride does.
const cycleWork = 1 << 18

func newSampler(weights []int) sampler {
	divisor := 0
	for _, w := range weights {
		divisor = gcd(divisor, w)
	}
	total := 0
	for _, w := range weights {
		total += w / divisor
	}
	switch {
	case total == len(weights):
		return equal(len(weights))
	case total*len(weights) <= cycleWork:
		return newCycle(weights, divisor, total)
	default:
		return newStride(weights, divisor, total)
	}
}

// equal is the sampler for equal weights.
type equal int

func (e equal) at(position uint64) int { return int(position % uint64(e)) }

// cycle holds one round of smooth weighted round robin, as nginx has it: each
// step raises everybody by its weight, serves the highest and lowers that one
// by the sum. Weights 5, 1, 1 give a a b a c a a.
type cycle []uint16

func newCycle(weights []int, divisor, total int) cycle {
	c := make(cycle, total)
	current := make([]int, len(weights))
	for i := range c {
		best := 0
		for j, w := range weights {
			current[j] += w / divisor
			if current[j] > current[best] {
				best = j
			}
		}
		current[best] -= total
		c[i] = uint16(best)
	}
	return c
}

func (c cycle) at(position uint64) int { return int(c[position%uint64(len(c))]) }

// stride serves weights of any size without a table of their sum. It walks the
// line of all weights in steps of the golden section of its length: a step
// that shares no divisor with the length meets every point once per round, so
// shares are exact, and the golden section keeps the visits of each member
// evenly apart.
type stride struct {
	ends  []uint64 // where each member's part of the line ends
	total uint64
	step  uint64
}

func newStride(weights []int, divisor, total int) *stride {
	s := &stride{ends: make([]uint64, len(weights)), total: uint64(total)}
	var end uint64
	for i, w := range weights {
		end += uint64(w / divisor)
		s.ends[i] = end
	}
	s.step = max(1, uint64(float64(total)*0.6180339887498949))
	for gcd(int(s.step), total) != 1 {
		s.step++
	}
	return s
}

func (s *stride) at(position uint64) int {
	hi, lo := bits.Mul64(position%s.total, s.step)
	point := bits.Rem64(hi, lo, s.total)
	i, _ := slices.BinarySearch(s.ends, point+1)
	return i
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
