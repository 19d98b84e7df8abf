package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/proconsul/proconsul/discovery"
)

// watch is the loop of one query. The fields above mu belong to its goroutine.
type watch struct {
	w     *Watcher
	query discovery.Query
	key   string

	index    uint64               // 0: the next query does not block and is the authority
	highest  uint64               // of the last answer that was used; survives the reset of index
	loaded   bool                 // a live answer has been used
	trouble  bool                 // there was a failure since the last answer
	failures int                  // in a row
	told     bool                 // the failure is in the log
	last     discovery.Snapshot   // of the last answer that was used, without what is held
	held     []discovery.Instance // see ResetHold
	until    time.Time            // when held ends
	pace     bucket

	mu      sync.Mutex
	stopped bool
	cancel  context.CancelFunc      // of the goroutine; nil before it runs
	giveUp  context.CancelCauseFunc // of the query that is under way; nil between queries
	pending error                   // a restart that found no query under way
	status  WatchState
}

func newWatch(w *Watcher, q discovery.Query) *watch {
	key := q.Key()
	return &watch{w: w, query: q, key: key, pace: bucket{credit: queryCredit}, status: WatchState{Key: key, Service: q.Service}}
}

// stop ends the watch: when it returns, the catalog hears no more of it.
func (v *watch) stop() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stopped = true
	if v.cancel != nil {
		v.cancel()
	}
}

// restart gives up the query that is under way, or the next one where that
// still waits for its turn with an index.
func (v *watch) restart(cause error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.giveUp != nil {
		v.giveUp(cause)
		return
	}
	v.pending = cause
}

func (v *watch) state() WatchState {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.status
}

func (v *watch) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v.mu.Lock()
	v.cancel = cancel
	stopped := v.stopped
	v.mu.Unlock()
	for !stopped && ctx.Err() == nil {
		if !wait(ctx, v.pace.due()) {
			return
		}
		err := v.step(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errTurn):
		case errors.Is(err, errAgain):
			v.index, v.trouble = 0, true
			wait(ctx, rand.N(v.w.spread()+1))
		case err != nil:
			v.failed(ctx, err)
		}
	}
}

const (
	// Consul adds up to a sixteenth to a wait and holds a query for 7 s more
	// while it has no leader; what takes 5 s longer than that is lost.
	holdTimeout = 12 * time.Second
	// A query that does not block is answered within 7 to 14 s even where a
	// server has just died.
	primeTimeout   = 15 * time.Second
	confirmTimeout = 5 * time.Second
	askAgain       = 5 * time.Second // the cap of a watch's own backoff
	downWait       = 30 * time.Second
)

// step asks once and uses the answer.
func (v *watch) step(ctx context.Context) error {
	asked := v.index
	ans, err := v.ask(ctx, asked, primeTimeout, false)
	if err != nil {
		return err
	}
	if asked > 0 {
		switch {
		case ans.index < asked:
			// Consul's state went back, or its streaming backend has not
			// loaded: the body of such an answer is often a phantom [], so
			// nothing of it is used. The next query goes to a server.
			v.w.log.Debug("consul index went back", "service", v.key, "from", asked, "to", ans.index)
			v.index = 0
			v.pace.charge(fullPrice)
			return nil
		case ans.index == asked:
			v.pace.charge(fullPrice)
			v.confirmed()
			return nil
		}
	}
	snap, err := v.decode(ans)
	if err != nil {
		return err
	}
	if len(snap.Instances) == 0 && len(snap.Rejected) == 0 {
		if asked > 0 && len(v.last.Instances) > 0 {
			// From some to none is believed only of a server: an agent whose
			// view is not loaded says the same.
			if ans, err = v.ask(ctx, 0, confirmTimeout, false); err != nil {
				return err
			}
			if snap, err = v.decode(ans); err != nil {
				return err
			}
		}
		if len(snap.Instances) == 0 {
			if err := v.allowed(ctx, ans); err != nil {
				return err
			}
		}
	}
	if asked == 0 {
		v.hold(ans.index, snap)
	}
	v.index, v.highest = ans.index, ans.index
	if v.use(snap, ans.at) && ans.index > 0 {
		v.pace.charge(priceOf(len(ans.body)))
	} else {
		v.pace.charge(fullPrice) // also where there is no index to block on: this is polling
	}
	return nil
}

// ask sends one query: without an index to a server, else blocking.
func (v *watch) ask(ctx context.Context, index uint64, timeout time.Duration, stale bool) (answer, error) {
	slots, block := v.w.prime, time.Duration(0)
	if index > 0 {
		slots = v.w.slots
	}
	if !slots.take(ctx) {
		return answer{}, ctx.Err()
	}
	defer slots.give()
	if index > 0 {
		// Consul's own jitter is missing with its streaming backend.
		block = jitter(v.w.queryWait(), 0.06)
		if len(v.held) > 0 {
			block = min(block, max(time.Until(v.until), 0)+100*time.Millisecond)
		}
		timeout = block + block/16 + holdTimeout
	}
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	deadline, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	v.mu.Lock()
	pending := v.pending
	v.giveUp, v.pending = giveUp, nil
	if pending != nil && index > 0 {
		v.giveUp = nil
		v.mu.Unlock()
		return answer{}, pending
	}
	v.mu.Unlock()

	start := time.Now()
	ans, err := v.w.client.health(deadline, v.query, index, block, stale)

	v.mu.Lock()
	v.giveUp = nil
	if err == nil {
		v.status.LastAnswer, v.status.Backend = ans.at, ans.meta.QueryBackend
	}
	v.mu.Unlock()
	if err == nil {
		v.w.agent.answered()
	} else if ctx.Err() != nil {
		return answer{}, context.Cause(ctx)
	}
	if v.w.o.OnQuery != nil {
		v.w.o.OnQuery(v.key, err, time.Since(start))
	}
	return ans, err
}

func (v *watch) decode(ans answer) (discovery.Snapshot, error) {
	var entries []entry
	if err := json.Unmarshal(ans.body, &entries); err != nil {
		return discovery.Snapshot{}, fmt.Errorf("consul's answer for %s: %w", v.key, err)
	}
	s := discovery.Snapshot{Service: v.key, Index: ans.index, At: ans.at}
	s.Instances, s.Rejected = toInstances(entries, v.query)
	return s, nil
}

// allowed tells an empty service from one that we may not see. Consul answers
// both alike: 200 and an empty list.
func (v *watch) allowed(ctx context.Context, ans answer) error {
	deny := func(why string) error {
		path := "/v1/health/service/" + v.query.Service
		return &Error{Kind: ErrDenied, Code: 200, What: "consul hides " + v.query.Service + ": " + why,
			Hint: v.w.client.token.source() + " needs " + need(path), err: ErrDenied}
	}
	if ans.meta.ResultsFilteredByACLs {
		return deny("it removed instances from the answer by ACL")
	}
	if !ans.noAuth {
		return nil
	}
	// Without a token of ours the mark above is missing. The agent may have
	// one for such requests: then other services can be seen.
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	names, err := v.w.client.services(ctx, v.query)
	if err != nil {
		return err
	}
	if _, listed := names[v.query.Service]; listed && v.query.Filter == "" {
		return deny("the catalog lists it, its nodes are not readable")
	}
	if len(names) == 0 {
		return deny("its ACLs deny by default and nothing can be seen without a token")
	}
	return nil
}

// hold keeps instances that vanished because Consul forgot them rather than
// because anyone took them out: its index went back (a wiped or restored
// catalog), or an outage ends with an empty service. Those who live register
// again within the hold; the others are ejected by their failures.
func (v *watch) hold(index uint64, snap discovery.Snapshot) {
	reset := index < v.highest
	wiped := v.trouble && len(snap.Instances) == 0
	if !v.loaded || v.w.o.ResetHold < 0 || !reset && !wiped {
		return
	}
	gone := missing(v.last.Instances, snap.Instances)
	if len(gone) == 0 {
		return
	}
	v.held, v.until = gone, time.Now().Add(v.w.o.ResetHold)
	v.w.log.Warn("consul forgot instances, they are kept for a while", "service", v.key, "instances", len(gone),
		"index_was", v.highest, "index", index, "hold", v.w.o.ResetHold.String())
}

// missing returns those of old that are in now neither by id nor by address.
func missing(old, now []discovery.Instance) []discovery.Instance {
	ids, addrs := make(map[string]bool, len(now)), make(map[string]bool, len(now))
	for i := range now {
		ids[now[i].ID], addrs[now[i].Address] = true, true
	}
	var gone []discovery.Instance
	for _, in := range old {
		if !ids[in.ID] && !addrs[in.Address] {
			gone = append(gone, in)
		}
	}
	return gone
}

// confirmed takes an answer that says that nothing changed.
func (v *watch) confirmed() {
	v.recovered()
	if len(v.held) > 0 {
		v.use(v.last, time.Now())
		return
	}
	v.fresh()
}

// confirm is confirmed for a goroutine that is not the watch's own.
func (v *watch) confirm() {
	v.mu.Lock()
	ok := v.status.Failures == 0 && v.status.Held == 0
	v.mu.Unlock()
	if ok {
		v.fresh()
	}
}

// fresh marks the snapshot as confirmed, unless the agent has lost its
// servers: then its answers are only what it last knew.
func (v *watch) fresh() {
	if a := v.w.agent.snapshot(); a.known && !a.confirms() {
		if a.err != nil {
			v.stale(a.err)
		}
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.stopped {
		v.w.catalog.Fresh(v.key)
	}
}

func (v *watch) stale(err error) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return !v.stopped && v.w.catalog.Stale(v.key, err)
}

// use makes snap the catalog's, together with what is held, and reports
// whether the instances changed.
func (v *watch) use(snap discovery.Snapshot, at time.Time) bool {
	v.recovered()
	before := v.w.catalog.State(v.key)
	v.last, v.loaded, v.trouble = snap, true, false
	if len(v.held) > 0 {
		if time.Now().Before(v.until) {
			v.held = missing(v.held, snap.Instances)
		} else {
			v.held = nil
		}
		snap = withHeld(snap, v.held)
	}

	v.mu.Lock()
	if v.stopped {
		v.mu.Unlock()
		return false
	}
	changed := v.w.catalog.Apply(v.key, snap)
	took := time.Since(at)
	v.status.Index, v.status.Held = snap.Index, len(v.held)
	v.mu.Unlock()

	if len(v.held) > 0 {
		v.stale(fmt.Errorf("consul forgot %d instances that are kept until %s", len(v.held), v.until.Format(time.TimeOnly)))
	} else {
		v.fresh()
	}
	if !changed {
		return false
	}
	if v.w.o.OnApply != nil {
		v.w.o.OnApply(v.key, took)
	}
	if v.w.o.Snapshot != nil {
		v.w.o.Snapshot.Touch()
	}
	v.report(before.Snapshot, snap, took)
	return true
}

// recovered ends a run of failures.
func (v *watch) recovered() {
	if v.told {
		v.w.log.Info("service is watched again", "service", v.key)
	}
	v.failures, v.told = 0, false
	v.mu.Lock()
	v.status.Failures, v.status.Err = 0, ""
	v.mu.Unlock()
}

// failed keeps what is known, marks it stale, says so once, and waits.
func (v *watch) failed(ctx context.Context, err error) {
	v.index, v.trouble = 0, true // whatever index we held may mean nothing now
	v.failures++
	v.pace.charge(fullPrice)
	v.mu.Lock()
	v.status.Failures, v.status.Err = v.failures, err.Error()
	v.status.TotalErrors++
	v.mu.Unlock()
	v.stale(err)

	silent := errors.Is(err, ErrUnreachable)
	if silent {
		v.w.agent.suspect()
	}
	// That the agent is gone is one line of the agent's, not one of each
	// service's.
	if !v.told && (!silent || v.failures == 3 && v.w.agent.snapshot().up) {
		v.told = true
		v.w.log.Warn("service cannot be watched, its last instances stay", "service", v.key, "err", err)
	}
	if !v.loaded && !silent {
		v.staleRead(ctx, err)
	}
	v.rest(ctx, err)
}

// staleRead asks any server, where none has ever answered with authority: an
// old list serves better than none.
func (v *watch) staleRead(ctx context.Context, because error) {
	if errors.Is(because, ErrDenied) || errors.Is(because, ErrRefused) {
		return
	}
	ans, err := v.ask(ctx, 0, confirmTimeout, true)
	if err != nil {
		return
	}
	snap, err := v.decode(ans)
	if err != nil || len(snap.Instances) == 0 {
		return
	}
	before := v.w.catalog.State(v.key)
	v.mu.Lock()
	changed := !v.stopped && v.w.catalog.Apply(v.key, snap)
	v.mu.Unlock()
	v.stale(because)
	if changed {
		v.report(before.Snapshot, snap, time.Since(ans.at))
	}
}

// rest waits after a failure: by this watch's own backoff, or for the end of an
// outage that all share and a moment more, so that not all come at once.
func (v *watch) rest(ctx context.Context, err error) {
	d := backoff(v.failures, askAgain)
	if errors.Is(err, ErrDenied) || errors.Is(err, ErrRefused) {
		d = jitter(askAgain, 0.5) // it takes a human
	}
	a := v.w.agent.snapshot()
	if a.known && !a.up {
		d = jitter(downWait, 0.5) // the probe knocks for all
	}
	if !a.known || a.confirms() {
		if !wait(ctx, d) {
			return
		}
		// The probe may have found out meanwhile.
		if a = v.w.agent.snapshot(); a.up {
			return
		}
		d = jitter(downWait, 0.5)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-v.w.agent.outage():
		wait(ctx, rand.N(v.w.spread()+1))
	}
}

func withHeld(snap discovery.Snapshot, held []discovery.Instance) discovery.Snapshot {
	if len(held) == 0 {
		return snap
	}
	snap.Instances = mergeByID(snap.Instances, held)
	return snap
}

func mergeByID(a, b []discovery.Instance) []discovery.Instance {
	all := make([]discovery.Instance, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0].ID <= b[0].ID {
			all, a = append(all, a[0]), a[1:]
		} else {
			all, b = append(all, b[0]), b[1:]
		}
	}
	return append(append(all, a...), b...)
}

// report logs what a change brought.
func (v *watch) report(before, after discovery.Snapshot, took time.Duration) {
	added, removed, altered := diff(before.Instances, after.Instances)
	usable := 0
	for i := range after.Instances {
		if after.Instances[i].Usable() {
			usable++
		}
	}
	v.w.log.Info("snapshot changed", "service", v.key, "added", added, "removed", removed, "altered", altered,
		"usable", usable, "instances", len(after.Instances), "index", after.Index, "duration", took.String())
	known := make(map[discovery.Rejected]bool, len(before.Rejected))
	for _, r := range before.Rejected {
		known[r] = true
	}
	for _, r := range after.Rejected {
		if !known[r] {
			v.w.log.Warn("registration is not used", "service", v.key, "instance", r.ID, "reason", r.Reason)
		}
	}
}

// diff counts, over two lists sorted by id.
func diff(a, b []discovery.Instance) (added, removed, altered int) {
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(a) == 0 || len(b) > 0 && b[0].ID < a[0].ID:
			added++
			b = b[1:]
		case len(b) == 0 || a[0].ID < b[0].ID:
			removed++
			a = a[1:]
		default:
			if !a[0].Equal(b[0]) {
				altered++
			}
			a, b = a[1:], b[1:]
		}
	}
	return added, removed, altered
}
