package limiter

import "time"

// Source says who decided.
type Source uint8

const (
	// Store is the shared count in Redis, or a lease out of it.
	Store Source = iota
	// Own is the count of a limiter that has no store.
	Own
	// Local is this replica's share of the limit while the store is away.
	Local
	// Open is a policy that admits everything while the store is away.
	Open
	// Closed is a policy that admits nothing while the store is away.
	Closed
)

// String returns the source as one word.
func (s Source) String() string {
	switch s {
	case Store:
		return "store"
	case Own:
		return "own"
	case Local:
		return "local"
	case Open:
		return "open"
	case Closed:
		return "closed"
	}
	return "unknown"
}

// Decision is the answer to one Take. It is a value and needs no release.
type Decision struct {
	Allowed bool
	Source  Source
	// RetryAfter is how long a denied caller has to wait: one that asks again
	// exactly then, for the same cost, is admitted if nobody else was before.
	// 0 in a denial means never: the cost is above the limit.
	RetryAfter time.Duration
	// Delayed is how long the caller was made to wait before it was allowed.
	Delayed time.Duration
	// Full says that the caller might have waited, but for the number of those
	// who do.
	Full bool

	n      int
	limits [MaxLimits]Budget
	due    int64 // mono from which on an allowed caller may go
	origin origin
}

// origin is where the tokens of a decision came from, for giving them back.
type origin struct {
	entry *entry // nil: from nowhere
	cost  int64
	lease *lease  // of a lease
	grant *grant  // of a call to the store
	rest  int64   // that the same call debited after these
	at    instant // of the own account: when
	adds  int64   // of the own account: how many charges it had seen
	owed  bool
}

// Budget is what is left of one limit.
type Budget struct {
	// Remaining is how many tokens are left. With leases it is what was left
	// when this replica last asked, plus what it holds.
	Remaining int64
	// Reset is how long until Remaining grows by itself; 0: nothing is used.
	Reset time.Duration
}

// Len returns how many budgets the decision has: one per limit of the policy,
// or none where nobody knows, as in modes open and closed.
func (d *Decision) Len() int { return d.n }

// Budget returns what is left of the policy's limit i, from 0.
func (d *Decision) Budget(i int) Budget { return d.limits[i] }
