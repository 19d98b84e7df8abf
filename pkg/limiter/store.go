package limiter

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	mrand "math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	workers    = 2   // pipelines in flight; more would only make them smaller
	maxBatch   = 512 // calls per pipeline
	tolerated  = 2   // pipelines that fail in a row before the store counts as away
	probeEvery = 50 * time.Millisecond
	beatEvery  = time.Second
	silentFor  = 10 * time.Second // after which a replica is not counted any more

	patientDials = 4096
)

// store runs calls in pipelines that form by themselves: each worker takes
// all that has piled up while it was busy. Around each Redis node that holds
// keys is a circuit: it opens when pipelines fail and is closed again by a
// heartbeat or a probe, never by a caller.
type store struct {
	l       *Limiter
	connect func() redis.UniversalClient
	client  redis.UniversalClient // made by run: making it dials
	timeout time.Duration
	acquire *redis.Script
	beat    *redis.Script
	reset   *redis.Script

	home  *circuit                            // the heartbeat's, and that of all keys but a cluster's
	slots *[slotCount]atomic.Pointer[circuit] // of a cluster, as far as known
	wake  chan struct{}                       // somebody has queued
	down  chan struct{}                       // a circuit has opened

	mu     sync.Mutex
	queue  []*op
	closed bool // or not running yet
	state  State
	nodes  map[string]*circuit // of a cluster, by address

	epoch string // as of the last heartbeat; only the heartbeat's goroutine
}

// silence keeps go-redis from logging by itself: an outage of three seconds
// makes it write hundreds of lines that say what the circuit says once.
type silence struct{}

// Printf implements go-redis's logger.
func (silence) Printf(context.Context, string, ...any) {}

func newStore(o Redis, l *Limiter) (*store, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	redis.SetLogger(silence{})
	s := &store{
		l:       l,
		timeout: cmp.Or(o.Timeout, 25*time.Millisecond),
		acquire: redis.NewScript(acquireLua),
		beat:    redis.NewScript(heartbeatLua),
		reset:   redis.NewScript(resetLua),
		home:    &circuit{},
		wake:    make(chan struct{}, 1),
		down:    make(chan struct{}, 1),
		closed:  true,
		state:   State{Configured: true},
		nodes:   map[string]*circuit{},
	}
	if o.Mode == Cluster {
		s.slots = new([slotCount]atomic.Pointer[circuit])
	}
	s.connect = func() redis.UniversalClient { return o.client(s.timeout) }
	return s, nil
}

// enqueue takes a call for the next pipeline, and reports false where nobody
// would run it.
func (s *store) enqueue(o *op) bool {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return false
	}
	s.queue = append(s.queue, o)
	s.mu.Unlock()
	s.signal()
	return true
}

func (s *store) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take returns the next pipeline's calls.
func (s *store) take() []*op {
	s.mu.Lock()
	n := min(len(s.queue), maxBatch)
	batch := s.queue[:n:n]
	s.queue = s.queue[n:]
	more := len(s.queue) > 0
	if !more {
		s.queue = nil
	}
	s.mu.Unlock()
	if more {
		s.signal()
	}
	return batch
}

func (s *store) pending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue)
}

// run starts the workers and the heartbeat; all end with ctx.
func (s *store) run(ctx context.Context, wg *sync.WaitGroup) {
	s.client = s.connect()
	s.mu.Lock()
	s.closed = false
	s.mu.Unlock()
	for range workers {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-s.wake:
					s.exec(s.take())
				}
			}
		})
	}
	wg.Go(func() { s.pulse(ctx) })
}

// close ends the store after its goroutines have ended.
func (s *store) close() error {
	s.giveBack()
	s.mu.Lock()
	s.home.up.Store(false)
	for _, c := range s.nodes {
		c.up.Store(false)
	}
	s.closed = true
	rest := s.queue
	s.queue = nil
	s.mu.Unlock()
	for _, o := range rest {
		s.l.finish(o, reply{}, errClosed)
	}
	if err := s.client.Close(); err != nil {
		return fmt.Errorf("close redis client: %w", err)
	}
	return nil
}

// giveBack ends all leases and returns what is left of them, or a monthly quota
// would miss it for the rest of the month. What the store does not take within
// a second is lost: too little is admitted then, never too much.
func (s *store) giveBack() {
	deadline := time.Now().Add(time.Second)
	for i := range shards {
		s.l.keys.all(i, func(e *entry) {
			now := s.l.now()
			e.mu.Lock()
			defer e.mu.Unlock()
			for _, ls := range [...]*lease{e.cur.Swap(nil), e.next} {
				if ls != nil {
					e.end(ls, now)
				}
			}
			if e.next = nil; len(e.refunds) > 0 && !e.inflight {
				s.l.issue(e, now, false)
			}
		})
		for s.pending() > 0 && time.Now().Before(deadline) {
			s.exec(s.take())
		}
	}
}

var (
	errClosed = errors.New("the limiter is not running")
	errDown   = errors.New("the store is away")
)

// exec runs calls in one pipeline, and those whose script Redis has forgotten
// in a second one.
func (s *store) exec(batch []*op) {
	// Not the Run context: a call that is on its way at the end is still worth
	// its answer, and it is short.
	ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
	defer cancel()
	batch = slices.DeleteFunc(batch, func(o *op) bool {
		o.circuit = s.locate(ctx, o.entry)
		if o.circuit.up.Load() {
			return false
		}
		s.l.finish(o, reply{}, errDown)
		return true
	})
	if len(batch) == 0 {
		return
	}
	replies := make([]reply, len(batch))
	errs := make([]error, len(batch))
	started := time.Now()
	unknown := s.pipeline(ctx, batch, replies, errs, nil)
	if len(unknown) > 0 {
		s.pipeline(ctx, batch, replies, errs, unknown)
	}
	took := time.Since(started)
	var failure error
	for i := range batch {
		if errs[i] == nil {
			s.learn(replies[i].now, took)
		} else if failure == nil && away(errs[i]) {
			failure = errs[i]
		}
	}
	s.l.calls.Add(int64(len(batch)))
	s.l.onCall("acquire", took, failure)
	s.account(batch, errs, took)
	for i, o := range batch {
		s.l.finish(o, replies[i], errs[i])
	}
}

// account tells each circuit how its part of a pipeline went.
func (s *store) account(batch []*op, errs []error, took time.Duration) {
	told := make(map[*circuit]bool, 1)
	for i, o := range batch {
		if err := errs[i]; err != nil && away(err) && !told[o.circuit] {
			told[o.circuit] = true
			s.report(o.circuit, o.entry.key, err, took)
		}
	}
	for i, o := range batch {
		if errs[i] == nil && !told[o.circuit] {
			told[o.circuit] = true
			s.report(o.circuit, o.entry.key, nil, took)
		}
	}
}

// pipeline runs the calls of batch: all by the script's hash, or those that
// only lists by its text. It returns those whose script Redis did not know;
// they did not run.
func (s *store) pipeline(ctx context.Context, batch []*op, replies []reply, errs []error, only []int) (unknown []int) {
	p := s.client.Pipeline()
	now := s.l.now()
	cmds := make([]*redis.Cmd, len(batch))
	add := func(i int) {
		o := batch[i]
		o.sent = now.mono
		if only == nil {
			cmds[i] = s.acquire.EvalSha(ctx, p, []string{o.entry.key}, o.args(s.l, now.wall)...)
		} else {
			cmds[i] = s.acquire.Eval(ctx, p, []string{o.entry.key}, o.args(s.l, now.wall)...)
		}
	}
	if only == nil {
		for i := range batch {
			add(i)
		}
	} else {
		for _, i := range only {
			add(i)
		}
	}
	// Each command has its own error, but where there was no connection to
	// send them on: then only Exec says why.
	_, failure := p.Exec(ctx)
	for i, cmd := range cmds {
		if cmd == nil {
			continue
		}
		raw, err := cmd.Result()
		if only == nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
			unknown = append(unknown, i)
			continue
		}
		if raw == nil && err == nil {
			err = failure
		}
		replies[i], errs[i] = batch[i].parse(raw, err)
	}
	return unknown
}

// away reports whether err says that the store as a whole is of no use, rather
// than one key.
func away(err error) bool {
	var re redis.Error
	if !errors.As(err, &re) {
		return true // the network, a timeout, a closed pool
	}
	for _, prefix := range []string{"READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "OOM", "MISCONF",
		"NOREPLICAS", "BUSY", "NOAUTH", "WRONGPASS", "NOPERM", "MOVED", "ASK", "UNKILLABLE"} {
		if strings.HasPrefix(re.Error(), prefix) {
			return true
		}
	}
	return false
}

// learn takes note of how Redis's clock differs from ours.
func (s *store) learn(redisNow int64, took time.Duration) {
	s.l.offset.Store(redisNow - (time.Now().UnixMicro() + s.l.skew - took.Microseconds()/2))
}

func (s *store) describe(st *State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	own := *st
	*st = s.state
	st.Replicas, st.Keys, st.Calls, st.Waiting = own.Replicas, own.Keys, own.Calls, own.Waiting
}

// pulse sends heartbeats: one a second while the store is there, so that an
// idle gateway notices an outage too, and twenty a second while it is not.
func (s *store) pulse(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.down:
		case <-timer.C:
		}
		wait := min(s.heartbeat(ctx), s.probe(ctx))
		timer.Reset(wait - wait/8 + mrand.N(wait/4)) // replicas do not knock in step
	}
}

// heartbeat writes this replica's sign of life and reads the others'. It
// returns how long to wait for the next one.
func (s *store) heartbeat(ctx context.Context) time.Duration {
	hctx, cancel := context.WithTimeout(ctx, max(s.timeout, 50*time.Millisecond))
	defer cancel()
	started := time.Now()
	raw, err := s.sendHeartbeat(hctx)
	took := time.Since(started)
	if ctx.Err() != nil {
		return probeEvery
	}
	if err == nil && len(raw) < 3 {
		err = fmt.Errorf("heartbeat answered %v", raw)
	}
	s.l.onCall("heartbeat", took, err)
	if err != nil {
		s.report(s.home, "", fmt.Errorf("heartbeat: %w", err), took)
		return probeEvery
	}
	if now, err := strconv.ParseInt(raw[1], 10, 64); err == nil {
		s.learn(now, took)
	}
	members := raw[2:]
	if !slices.Contains(members, s.l.replica) {
		members = append(members, s.l.replica)
	}
	s.l.members.Store(&members)
	s.report(s.home, "", nil, took)

	lost := s.epoch != "" && s.epoch != raw[0]
	s.epoch = raw[0]
	if !s.home.up.Load() {
		s.mu.Lock()
		s.turn(s.home, true)
		s.mu.Unlock()
	}
	if s.l.owing.Swap(false) || lost {
		s.recover(ctx, lost)
	}
	return beatEvery
}

// sendHeartbeat runs heartbeat.lua as the calls are run, in a pipeline, so that
// it finds or makes a connection that those will use.
func (s *store) sendHeartbeat(ctx context.Context) ([]string, error) {
	run := func(script func(context.Context, redis.Scripter, []string, ...any) *redis.Cmd) ([]string, error) {
		p := s.client.Pipeline()
		cmd := script(ctx, p, []string{"rl:{replicas}:seen", "rl:{replicas}:epoch"},
			s.l.replica, silentFor.Milliseconds(), rand.Text())
		_, failure := p.Exec(ctx)
		if cmd.Val() == nil && failure != nil {
			return nil, failure
		}
		return cmd.StringSlice()
	}
	raw, err := run(s.beat.EvalSha)
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		raw, err = run(s.beat.Eval)
	}
	return raw, err
}

// recover tells the store what was admitted without it, and, where it has
// lost its data, what it knew.
func (s *store) recover(ctx context.Context, lost bool) {
	pause := time.NewTimer(math.MaxInt64)
	defer pause.Stop()
	for i := range shards {
		s.l.keys.all(i, func(e *entry) { s.l.tell(e, lost) })
		for s.pending() > 4*maxBatch { // callers' own calls come first
			pause.Reset(time.Millisecond)
			select {
			case <-ctx.Done():
				return
			case <-pause.C:
			}
		}
		if !s.home.up.Load() {
			return
		}
	}
}

// tell sends a call for an entry that the store has to hear of.
func (l *Limiter) tell(e *entry, lost bool) {
	now := l.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.inflight {
		return // its answer will show what is to be done
	}
	need := e.owes
	if lost && e.birth != "" {
		for i := range e.tallies {
			need = need || e.tallies[i].live()
		}
		need = need || e.cur.Load() != nil
	}
	if need {
		l.issue(e, now, false)
	}
}
