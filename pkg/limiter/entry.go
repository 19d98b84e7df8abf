package limiter

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// entry is what a replica remembers of one identity under one policy.
type entry struct {
	key    string // in Redis
	slot   uint16 // of the key, in a Redis Cluster
	cur    atomic.Pointer[lease]
	denied atomic.Pointer[denial]
	denies atomic.Int64 // tokens that were denied from memory

	limited atomic.Int64 // requests that were denied and Top does not know of yet
	line    atomic.Pointer[line]

	mu       sync.Mutex
	policy   *Policy // as of the last caller
	touched  int64   // mono of the last slow decision
	tallies  []tally // what this replica admitted, per limit
	adds     int64   // charges of the tallies
	div      int64   // how many replicas the tallies' refill was last shared by
	birth    string  // of the key's incarnation in Redis; empty: not known
	owes     bool    // tallies hold what the store does not know
	inflight bool    // one call at a time
	waiters  []*waiter
	next     *lease // taken ahead while cur is still good
	refunds  []refund
	demand   demand
}

// waiter is a caller that waits for the store.
type waiter struct {
	policy *Policy
	cost   int64
	answer chan answer
	gone   bool // guarded by the entry's lock
}

// answer is what a waiter is told; where it is not known the store failed.
type answer struct {
	known    bool
	decision Decision
	expires  int64 // mono before which it has to be acted upon
}

// grant is where tokens were debited from, for giving them back.
type grant struct {
	policy *Policy // that they were taken under; another of the entry may count otherwise
	birth  string
	fields [MaxLimits]string
}

// denial is a refusal that holds until the store could decide otherwise.
type denial struct {
	policy  *Policy // of whom; another count may admit
	cost    int64   // and more
	until   int64   // mono until which the store need not be asked
	retry   int64   // mono at which it may pass
	budgets budgets
	counted atomic.Bool // in Top
}

// refused returns the denial that still answers for a cost, or nil.
func (e *entry) refused(p *Policy, cost, now int64) *denial {
	if d := e.denied.Load(); d != nil && d.policy == p && cost >= d.cost && now < d.until {
		return d
	}
	return nil
}

// budgets are the remaining tokens of each limit and the mono instants at
// which they grow.
type budgets struct {
	n    int
	left [MaxLimits]int64
	at   [MaxLimits]int64
}

func (b *budgets) fill(d *Decision, now, held int64) {
	d.n = b.n
	for i := range b.n {
		d.limits[i] = Budget{max(0, b.left[i]+held), time.Duration(max(0, b.at[i]-now)) * time.Microsecond}
	}
}

func (no *denial) decide(now int64, d *Decision) {
	*d = Decision{}
	d.RetryAfter = micros(max(1, no.retry-now))
	no.budgets.fill(d, now, 0)
}

// refund is an unspent rest of a lease.
type refund struct {
	birth  string
	field  string
	amount int64 // tokens; of a token bucket µs
	tat    int64 // of a token bucket: what the debit left
}

// use notes whose decision comes next. What was told under other counts binds
// nobody: a consumer who was given a larger quota sees it at once. The entry is
// locked.
func (e *entry) use(p *Policy) {
	if e.policy != p && !p.within(e.policy) {
		for i := range e.tallies {
			e.tallies[i].told = told{}
		}
	}
	e.policy = p
}

// seen returns when the entry was last used, roughly: a lease's callers do
// not take the lock. needed says that forgetting it would lose what the store
// does not know yet, or who waits.
func (e *entry) seen() (at int64, needed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	at, needed = e.touched, e.owes || e.inflight || len(e.waiters) > 0
	if ls := e.cur.Load(); ls != nil {
		at = max(at, ls.start)
	}
	if ln := e.line.Load(); ln != nil && ln.len() > 0 {
		needed = true
	}
	return at, needed
}

// idle reports whether forgetting the entry changes nothing.
func (e *entry) idle(now instant) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ln := e.line.Load(); ln != nil && ln.len() > 0 {
		return false
	}
	if e.inflight || len(e.waiters) > 0 || e.cur.Load() != nil || e.next != nil || len(e.refunds) > 0 {
		return false
	}
	if d := e.denied.Load(); d != nil && now.mono < d.until {
		return false
	}
	for i := range e.tallies {
		e.tallies[i].expire(&e.policy.specs[i], now, e.div)
		if e.tallies[i].live() {
			return false
		}
	}
	return true
}

// takeOwn decides by the entry's own tallies: of each limit the part that
// share says, with the refill of a token bucket divided by div.
func (e *entry) takeOwn(p *Policy, now instant, cost int64, source Source, share func(int64) int64, div int64, d *Decision) {
	*d = Decision{}
	d.Allowed, d.Source, d.n = true, source, len(p.specs)
	var wait int64
	e.div = div
	for i := range p.specs {
		s, t := &p.specs[i], &e.tallies[i]
		t.expire(s, now, div)
		limit := share(s.limit)
		if s.kind == 'T' && source == Local {
			t.level = min(t.level, s.room(limit, div))
		}
		w := t.wait(s, now, limit, cost, div)
		if s.ahead > 0 && w < math.MaxInt64 {
			d.due = max(d.due, now.mono+w)
			w = max(0, w-s.ahead)
		}
		wait = max(wait, w)
	}
	if wait > 0 {
		d.Allowed = false
		d.RetryAfter = micros(wait)
		if wait == math.MaxInt64 {
			// More than this replica's share: only the store can tell, once it
			// is back.
			d.RetryAfter = time.Second
		}
	} else {
		e.charge(p, now, cost, source == Local)
		d.origin = origin{entry: e, cost: cost, at: now, adds: e.adds, owed: source == Local}
	}
	for i := range p.specs {
		s, t := &p.specs[i], &e.tallies[i]
		limit := share(s.limit)
		left, at := t.told.tell(t.remaining(s, limit), now.mono, now.mono+t.reset(s, now, limit, div))
		d.limits[i] = Budget{left, micros(at - now.mono)}
	}
}

// told is what clients were last told of a limit: what is left of it never
// grows before the moment that was named for it, whatever other replicas give
// back meanwhile.
type told struct {
	left  int64
	until int64 // mono
}

// tell returns what may be told at now of a limit of which left is left and
// grows at that instant. Before the moment that was named it is never more than
// was told, and never an earlier moment: answers that took different times put
// the same moment at different instants.
func (t *told) tell(left, now, at int64) (int64, int64) {
	if now < t.until {
		if left > t.left {
			return t.left, t.until
		}
		at = max(at, t.until)
	}
	t.left, t.until = left, at
	return left, at
}

// tell lowers b to what may be told, with held tokens on top. The entry is
// locked.
func (e *entry) tell(b *budgets, now, held int64) {
	for i := range b.n {
		left, at := e.tallies[i].told.tell(b.left[i]+held, now, b.at[i])
		b.left[i], b.at[i] = left-held, at
	}
}

// told notes that somebody was told of b with held tokens on top.
func (e *entry) told(b *budgets, held int64) {
	for i := range b.n {
		t := &e.tallies[i].told
		t.left = min(t.left, b.left[i]+held)
	}
}

// charge books tokens that were admitted.
func (e *entry) charge(p *Policy, now instant, cost int64, owed bool) {
	e.adds++
	for i := range p.specs {
		e.tallies[i].expire(&p.specs[i], now, e.div)
		e.tallies[i].add(&p.specs[i], now, cost, owed)
	}
	e.owes = e.owes || owed
}
