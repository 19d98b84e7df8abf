package balancer

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
)

// The names of the policies.
const (
	RoundRobin    = "round_robin"    // in turn, whatever the weights
	Weighted      = "weighted"       // smoothly in proportion to the weights
	LeastRequests = "least_requests" // fewest requests in flight per weight
)

// Policies returns the names that Options.Policy may have.
func Policies() []string { return []string{RoundRobin, Weighted, LeastRequests} }

func knownPolicy(name string) bool { return slices.Contains(Policies(), name) }

// Policy chooses among the members that it was built for. It is safe for
// concurrent use, takes no lock and allocates nothing.
type Policy interface {
	// Next returns the index of the member that serves next.
	Next() int
}

// newPolicy builds the named policy for members with these effective weights,
// none of them 0. The cursor is the pool's: a policy that replaces another
// goes on where that one was, so that no snapshot sends everybody back to the
// first member.
func newPolicy(name string, members []*Member, weights []int, cursor *atomic.Uint64) Policy {
	s := newSampler(weights)
	switch {
	case name != LeastRequests:
		return &sequence{cursor: cursor, sampler: s}
	case len(members) <= scanLimit:
		return &leastOfAll{sequence{cursor, s}, members, weights}
	default:
		return &leastOfTwo{sequence{cursor, s}, members, weights}
	}
}

// sequence is round robin: over a sampler's positions one after the other.
type sequence struct {
	cursor  *atomic.Uint64
	sampler sampler
}

// Next implements Policy.
func (s *sequence) Next() int { return s.sampler.at(s.cursor.Add(1)) }

// scanLimit is up to how many members looking at all of them is cheaper than
// what two random choices lose in evenness.
const scanLimit = 16

// leastOfAll looks at every member, beginning with the one whose turn it is by
// weight. That one serves if it is idle or nobody is better off, so that a pool
// with little to do spreads as Weighted does.
type leastOfAll struct {
	turn    sequence
	members []*Member
	weights []int
}

// Next implements Policy.
func (l *leastOfAll) Next() int {
	best := l.turn.Next()
	load := l.members[best].inFlight.Load()
	for i, n := best+1, len(l.members); load > 0 && n > 1; i, n = i+1, n-1 {
		if i == len(l.members) {
			i = 0
		}
		if other := l.members[i].inFlight.Load(); lighter(other, l.weights[i], load, l.weights[best]) {
			best, load = i, other
		}
	}
	return best
}

// leastOfTwo is the power of two choices: the better of the member whose turn
// it is and a random one, both by weight.
type leastOfTwo struct {
	turn    sequence
	members []*Member
	weights []int
}

// Next implements Policy.
func (l *leastOfTwo) Next() int {
	a := l.turn.Next()
	load := l.members[a].inFlight.Load()
	if load == 0 {
		return a
	}
	b := l.turn.sampler.at(rand.Uint64())
	if lighter(l.members[b].inFlight.Load(), l.weights[b], load, l.weights[a]) {
		return b
	}
	return a
}

// lighter reports whether one more request on top of a would weigh less on
// weight wa than one more on top of b on weight wb.
func lighter(a int64, wa int, b int64, wb int) bool { return (a+1)*int64(wb) < (b+1)*int64(wa) }
