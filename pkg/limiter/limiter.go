// Package limiter takes tokens out of budgets that all replicas share. The
// counts live in Redis and are changed by one script (acquire.lua) on Redis's
// own clock, so that no replica's clock matters; a limiter without a store
// counts by the same rules in memory. It is the only door to go-redis.
//
// A limiter never admits more than its limit. While the store is away it
// decides alone, by its share of the limit and within microseconds, and makes
// good what it admitted when the store is back. It never makes a caller wait
// longer than the store's timeout and never hands out a store's error.
//
// In Redis an identity is one hash that expires, rl:{policy:identity}, of 120
// bytes for a first request and below 1 kB for a full sliding window. Evicting
// such keys admits too much: run Redis with noeviction or volatile-ttl.
package limiter

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Options are what a Limiter is made of.
type Options struct {
	// Redis is the store that replicas share counts through. Nil: each limiter
	// counts for itself and grants the full limit, which is right for a single
	// replica only.
	Redis *Redis
	// Replica identifies this replica among those that share the store; empty:
	// a random id.
	Replica string
	// Replicas returns how many replicas are alive by another account, as the
	// catalog's. Nil: only the store's heartbeats count. The larger number is
	// used, because too large a number divides limits too far, which admits
	// too little, never too much.
	Replicas func() int
	// MaxKeys bounds how many identities are remembered, some 450 bytes each;
	// beyond it the least recently seen of a few random ones is forgotten.
	// 0: 200,000.
	MaxKeys int
	// Log receives a line when the store goes away or comes back; nil: none.
	Log *slog.Logger
	// OnChange is called when the store goes away or comes back, in order, by
	// one goroutine at a time; nil: nobody. It must not call the limiter.
	OnChange func(State)
	// OnCall is called after every call to the store with what it was for
	// (acquire, heartbeat) and how long it took; nil: nobody.
	OnCall func(op string, took time.Duration, err error)
}

// Limiter takes tokens. It is safe for concurrent use.
type Limiter struct {
	store    *store // nil: none
	replica  string
	replicas func() int
	log      *slog.Logger
	onChange func(State)
	onCall   func(string, time.Duration, error)

	start    time.Time
	keys     keys
	expiries expiries
	most     most
	members  atomic.Pointer[[]string] // who shares the store, by heartbeat
	offset   atomic.Int64             // Redis's clock less our wall clock, µs
	owing    atomic.Bool              // some entry owes the store
	skew     int64                    // µs that our wall clock is wrong by, in tests
	calls    atomic.Int64             // script calls, for the lease efficiency
	waiting  atomic.Int64             // callers that are made to wait
}

// New returns a limiter. It dials nothing: until Run has reached the store,
// and after Run has ended, the limiter decides as if the store were away.
func New(o Options) (*Limiter, error) {
	l := &Limiter{
		replica:  cmp.Or(o.Replica, rand.Text()),
		replicas: o.Replicas,
		log:      o.Log,
		onChange: o.OnChange,
		onCall:   o.OnCall,
		start:    time.Now(),
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if l.onChange == nil {
		l.onChange = func(State) {}
	}
	if l.onCall == nil {
		l.onCall = func(string, time.Duration, error) {}
	}
	if o.MaxKeys < 0 {
		return nil, fmt.Errorf("limiter: at most %d keys", o.MaxKeys)
	}
	l.expiries.wake = make(chan struct{}, 1)
	l.keys.perShard = max(1, cmp.Or(o.MaxKeys, 200_000)/shards)
	l.members.Store(&[]string{l.replica})
	if o.Redis != nil {
		s, err := newStore(*o.Redis, l)
		if err != nil {
			return nil, fmt.Errorf("limiter: %w", err)
		}
		l.store = s
	}
	return l, nil
}

// now returns the moment on both clocks.
func (l *Limiter) now() instant {
	t := time.Now()
	return instant{mono: int64(t.Sub(l.start) / time.Microsecond), wall: t.UnixMicro() + l.skew + l.offset.Load()}
}

// mono returns µs since the limiter was made, on the clock that never steps.
func (l *Limiter) mono() int64 { return int64(time.Since(l.start) / time.Microsecond) }

// Take takes cost tokens out of every limit of p for the identity key, or out
// of none. The key is hashed before it goes anywhere; callers give different
// kinds of identities different keys ("ip:192.0.2.1", "api_key:..."). A cost
// below 1 is 1.
//
// Take returns within the store's timeout whatever the store does, and
// without a call where a lease or a remembered denial decides. Where ctx ends
// first the decision is made as if the store were away. A policy that delays
// may take MaxDelay longer; a caller whose ctx ends meanwhile is denied and
// leaves its place and its tokens to others.
func (l *Limiter) Take(ctx context.Context, p *Policy, key string, cost int) (d Decision) {
	l.takeOne(ctx, p, key, cost, &d)
	return d
}

// takeOne is Take. Decisions are large, so they are filled where they end up:
// the frames of all who pass one on would be memory that each request touches.
func (l *Limiter) takeOne(ctx context.Context, p *Policy, key string, cost int, d *Decision) {
	c := max(int64(cost), 1)
	if c > p.least {
		*d = Decision{}
		d.Source = l.usual()
		return
	}
	e := l.entry(p, identity(key))
	if l.take(ctx, e, p, c, d); !d.Allowed {
		l.deny(e, p, key)
	}
}

// take decides, and where the policy delays, after a wait.
func (l *Limiter) take(ctx context.Context, e *entry, p *Policy, cost int64, d *Decision) {
	if p.delay == 0 {
		l.decide(ctx, e, p, cost, d)
		return
	}
	l.throttle(ctx, e, p, cost, d)
}

// deny counts a denial for Top. Those from memory take no lock.
func (l *Limiter) deny(e *entry, p *Policy, key string) {
	e.limited.Add(1)
	if d := e.denied.Load(); d == nil || d.counted.CompareAndSwap(false, true) {
		l.most.add(e, p, key)
	}
}

// decide decides at once.
func (l *Limiter) decide(ctx context.Context, e *entry, p *Policy, c int64, d *Decision) {
	if l.store == nil { // neither leases nor what it has refused
		l.takeSlow(ctx, e, p, c, d)
		return
	}
	now := l.mono()
	if no := e.refused(p, c, now); no != nil {
		e.denies.Add(c)
		no.decide(now, d)
		return
	}
	if ls := e.cur.Load(); ls != nil && now < ls.expires && ls.serves(p) {
		if left := ls.tokens.Add(-c); left >= 0 {
			if left <= ls.granted/2 && !ls.asked.Load() && ls.asked.CompareAndSwap(false, true) {
				l.refill(e, p)
			}
			ls.decide(e, now, left, c, d)
			return
		}
		ls.tokens.Add(c)
	}
	l.takeSlow(ctx, e, p, c, d)
}

// usual is the source of decisions when nothing is wrong.
func (l *Limiter) usual() Source {
	if l.store == nil {
		return Own
	}
	return Store
}

// identity hashes a key.
func identity(key string) [16]byte {
	var room [256]byte
	sum := sha256.Sum256(append(room[:0], key...))
	return [16]byte(sum[:16])
}

// entry returns what is remembered of an identity, and makes it where there
// is nothing.
func (l *Limiter) entry(p *Policy, id [16]byte) *entry {
	k := keyOf{p.id, id}
	s := &l.keys.shard[id[0]]
	s.mu.RLock()
	e := s.entries[k]
	s.mu.RUnlock()
	if e != nil {
		return e
	}
	return l.keys.add(s, k, p, l.mono())
}

// takeSlow decides under the entry's lock, by the store where it can be asked.
func (l *Limiter) takeSlow(ctx context.Context, e *entry, p *Policy, cost int64, d *Decision) {
	now := l.now()
	e.mu.Lock()
	e.use(p)
	e.touched = now.mono
	if l.store == nil {
		e.takeOwn(p, now, cost, Own, whole, 1, d)
		e.mu.Unlock()
		return
	}
	if ls, left, ok := e.takeLeased(p, now, cost); ok {
		e.mu.Unlock()
		ls.decide(e, now.mono, left, cost, d)
		return
	}
	if !l.store.reach(e) {
		l.fallback(e, p, now, cost, d)
		e.mu.Unlock()
		return
	}
	w := &waiter{policy: p, cost: cost, answer: make(chan answer, 1)}
	l.join(e, w, now)
	e.mu.Unlock()
	l.await(ctx, e, w, d)
}

// whole is the share of a limit that one who has no store decides about.
func whole(limit int64) int64 { return limit }

// await waits for the store's answer to w, and decides without it where that
// comes too late.
func (l *Limiter) await(ctx context.Context, e *entry, w *waiter, d *Decision) {
	p, cost := w.policy, w.cost
	patience := time.NewTimer(l.store.timeout)
	defer patience.Stop()
	for patient := true; ; {
		var a answer
		select {
		case a = <-w.answer:
		case <-patience.C:
			patient = false
		case <-ctx.Done():
			patient = false
		}
		if a.known && l.mono() < a.expires {
			*d = a.decision
			return
		}
		now := l.now()
		e.mu.Lock()
		if !a.known {
			select {
			case a = <-w.answer: // it came while we were about to leave
			default:
				w.gone = true
			}
		}
		if a.known && now.mono < a.expires {
			e.mu.Unlock()
			*d = a.decision
			return
		}
		if !a.known {
			l.fallback(e, p, now, cost, d)
			e.mu.Unlock()
			return
		}
		// This goroutine had to wait so long for its turn that the token it was
		// given may not be spent any more. It goes back, and we ask again. The
		// tallies keep it, which errs on the safe side.
		if g := a.decision.origin.from(); g != nil {
			e.refund(g, cost, a.decision.origin.rest)
		}
		if ls, left, ok := e.takeLeased(p, now, cost); ok {
			e.mu.Unlock()
			ls.decide(e, now.mono, left, cost, d)
			return
		}
		if !patient {
			l.fallback(e, p, now, cost, d)
			e.mu.Unlock()
			return
		}
		l.join(e, w, now)
		e.mu.Unlock()
	}
}

// join lets w wait for the store. The entry is locked.
func (l *Limiter) join(e *entry, w *waiter, now instant) {
	e.waiters = append(e.waiters, w)
	if !e.inflight {
		l.issue(e, now, false)
	}
}

// fallback decides without the store. The entry is locked.
func (l *Limiter) fallback(e *entry, p *Policy, now instant, cost int64, d *Decision) {
	switch p.settings.OnStoreError {
	case FailOpen:
		*d = Decision{Allowed: true, Source: Open}
		return
	case FailClosed:
		*d = Decision{Source: Closed, RetryAfter: time.Second}
		return
	}
	l.owing.Store(true)
	e.endLeases(now)
	share, n := l.share(e.key)
	e.takeOwn(p, now, cost, Local, share, n, d)
}

// share returns this replica's part of a limit of that key, and how many
// replicas share it.
func (l *Limiter) share(key string) (of func(limit int64) int64, n int64) {
	n, rank := l.rank(key)
	return func(limit int64) int64 {
		s := limit / n
		if rank < limit%n {
			s++
		}
		return s
	}, n
}

// rank returns how many replicas share the store and this one's place among
// them for that key: places below a limit's remainder get one token more, so
// that the shares add up to the limit exactly. Where not all replicas are
// known by name the remainder is nobody's.
func (l *Limiter) rank(key string) (n, rank int64) {
	members := *l.members.Load()
	if n = l.count(); n > int64(len(members)) {
		return n, n
	}
	mine := weight(l.replica, key)
	for _, id := range members {
		if id == l.replica {
			continue
		}
		if w := weight(id, key); w > mine || w == mine && id > l.replica {
			rank++
		}
	}
	return n, rank
}

// count returns how many replicas share the store.
func (l *Limiter) count() int64 {
	n := len(*l.members.Load())
	if l.replicas != nil {
		n = max(n, l.replicas())
	}
	return int64(n)
}

// weight is FNV-1a over both names: the same on every replica.
func weight(id, key string) uint64 {
	h := uint64(14695981039346656037)
	for _, s := range [...]string{id, "\x00", key} {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
	}
	// FNV's high bits hardly depend on the last bytes; mix them.
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	return h ^ h>>33
}

// State is what the status page shows of the store.
type State struct {
	Configured  bool          // there is a store
	Up          bool          // it decides; false: replicas are on their own
	Since       time.Time     // when Up last changed; zero: never reached yet
	LastContact time.Time     // zero: never
	LastError   string        // of the last call that failed; empty: none yet
	Latency     time.Duration // of the last call that worked
	Replicas    int           // that limits are divided by while the store is away
	Keys        int           // identities remembered here
	Calls       int64         // acquire scripts run, for decisions per call
	Waiting     int64         // callers that are made to wait
}

// State returns the state of the store.
func (l *Limiter) State() State {
	s := State{Replicas: int(l.count()), Keys: l.keys.len(), Calls: l.calls.Load(), Waiting: l.waiting.Load()}
	if l.store != nil {
		l.store.describe(&s)
	}
	return s
}

// Run keeps the limiter in touch with its store until ctx ends: it runs the
// calls, sends heartbeats, notices outages and ends them, and forgets what is
// over. It returns nil when ctx has ended and everything it started has too.
// A limiter is run once.
func (l *Limiter) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { l.sweep(ctx) })
	if l.store != nil {
		wg.Go(func() { l.expire(ctx) })
		l.store.run(ctx, &wg)
	}
	wg.Wait()
	if l.store != nil {
		return l.store.close()
	}
	return nil
}
