package consul

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/proconsul/proconsul/discovery"
)

// WatchOptions tunes a Watcher. The zero value is right for most.
type WatchOptions struct {
	// Wait is how long one blocking query blocks, before jitter; 0: the
	// client's.
	Wait time.Duration
	// MaxConnections bounds the queries that block at once over HTTP/1.1,
	// where each holds a connection and Consul allows 200 per address; 0: 128.
	// Beyond it the watches take turns, with shorter waits. Over https there
	// is no such bound.
	MaxConnections int
	// ShareTarget is how late a change may be seen where watches take turns;
	// 0: 2s.
	ShareTarget time.Duration
	// ProbeInterval is the gap between looks at /v1/status/leader; 0: 10s.
	ProbeInterval time.Duration
	// ResetHold is how long instances are kept that vanished because Consul
	// lost its memory (its index went back), or all at once over an outage;
	// 0: 60s. Negative: not at all.
	ResetHold time.Duration
	// Snapshot, if set, is told of each change.
	Snapshot *SnapshotFile

	// OnQuery, if set, is called after each query with its catalog key, its
	// error and its duration, which for a blocking query is mostly waiting.
	OnQuery func(key string, err error, took time.Duration)
	// OnApply, if set, is called after each change with the time from the
	// arrival of Consul's answer until every pool had it.
	OnApply func(key string, took time.Duration)
}

// Watcher keeps a catalog in step with Consul: one blocking query per
// discovery.Query, in a goroutine each. It is safe for concurrent use.
type Watcher struct {
	client  *Client
	catalog *discovery.Catalog
	log     *slog.Logger
	o       WatchOptions
	agent   *agent
	slots   *slots // blocking queries; nil: no bound
	prime   *slots // queries that do not block

	changed chan struct{} // wakes Run after Sync

	mu      sync.Mutex
	watches map[string]*watch
	fresh   []*watch // not yet started by Run
}

// NewWatcher returns a watcher that asks client and tells catalog. It asks
// nothing before Run.
func NewWatcher(client *Client, catalog *discovery.Catalog, log *slog.Logger, o WatchOptions) *Watcher {
	if o.Wait == 0 {
		o.Wait = client.wait
	}
	if o.MaxConnections <= 0 {
		o.MaxConnections = 128
	}
	if o.ShareTarget <= 0 {
		o.ShareTarget = 2 * time.Second
	}
	if o.ProbeInterval <= 0 {
		o.ProbeInterval = 10 * time.Second
	}
	if o.ResetHold == 0 {
		o.ResetHold = time.Minute
	}
	w := &Watcher{client: client, catalog: catalog, log: log.With("component", "consul"), o: o,
		prime: newSlots(16), changed: make(chan struct{}, 1), watches: map[string]*watch{}}
	if client.https {
		w.prime = newSlots(64)
	} else {
		w.slots = newSlots(o.MaxConnections)
	}
	w.agent = newAgent(client, w.log, o.ProbeInterval, w.agentChanged)
	return w
}

// Sync makes the watched queries exactly those given. Watches that stay are
// not touched, new ones start with Run, and those that are no longer asked for
// are stopped and forgotten in the catalog before Sync returns. It must not be
// called from a catalog's subscriber.
func (w *Watcher) Sync(queries []discovery.Query) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.share()
	want := make(map[string]bool, len(queries))
	for _, q := range queries {
		key := q.Key()
		want[key] = true
		if w.watches[key] == nil {
			v := newWatch(w, q)
			w.watches[key] = v
			w.fresh = append(w.fresh, v)
		}
	}
	for key, v := range w.watches {
		if !want[key] {
			v.stop()
			delete(w.watches, key)
			w.catalog.Forget(key)
		}
	}
	w.fresh = slices.DeleteFunc(w.fresh, func(v *watch) bool { return !want[v.key] })
	// Where watches begin to take turns, those that wait long would keep the
	// newcomers out for most of a minute.
	if after := w.share(); after < before/2 {
		for _, v := range w.watches {
			v.restart(errTurn)
		}
	}
	wake(w.changed)
}

// share is the wait of one blocking query, before jitter, for the number of
// watches there are. The caller holds w.mu.
func (w *Watcher) share() time.Duration {
	n, conns := len(w.watches), w.o.MaxConnections
	if w.slots == nil || n <= conns {
		return w.o.Wait
	}
	rounds := (n+conns-1)/conns - 1 // how often all others have their turn in between
	return min(max(w.o.ShareTarget/time.Duration(rounds), 250*time.Millisecond), w.o.Wait)
}

func (w *Watcher) queryWait() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.share()
}

// spread is over how long the watches come back after an outage.
func (w *Watcher) spread() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return min(time.Duration(len(w.watches))*2*time.Millisecond, 2*time.Second)
}

// Run watches until ctx ends, and returns nil when all that it started has
// ended. Call it once.
func (w *Watcher) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { w.agent.run(ctx) })
	for {
		w.mu.Lock()
		fresh := w.fresh
		w.fresh = nil
		w.mu.Unlock()
		for _, v := range fresh {
			group.Go(func() { v.run(ctx) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.changed:
		}
	}
}

func (w *Watcher) all() []*watch {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]*watch, 0, len(w.watches))
	for _, v := range w.watches {
		all = append(all, v)
	}
	return all
}

// agentChanged takes a transition of the agent to every watch: what it held
// is no longer confirmed, is again, or has to be asked for anew.
func (w *Watcher) agentChanged(was, is agentState) {
	for _, v := range w.all() {
		switch {
		case !is.confirms():
			// Without a leader a streaming agent goes on answering with what
			// it last knew, and gives no sign of it.
			v.stale(is.err)
		case was.up:
			// The leader is back: the agent takes up its streams by itself,
			// and what it missed arrives as changes.
			v.confirm()
		}
		if is.up && was.known && !was.up {
			// A query that blocked through the outage may sit on a dead
			// connection, or hold an index that means nothing any more.
			v.restart(errAgain)
		}
	}
}

// State is what a watcher knows of its agent and its watches.
type State struct {
	Addr        string
	Up          bool      // the agent answered the last probe
	Leader      string    // empty: the agent knows none, or is not up
	Since       time.Time // of Up, or of the outage
	LastContact time.Time // of the last answer to anything; zero: never
	Err         string    // why it is down or has no leader
	Watches     []WatchState
}

// WatchState is what a watcher knows of one watch. What the catalog knows of
// its snapshot is discovery.State.
type WatchState struct {
	Key         string
	Service     string
	Index       uint64    // Consul's, of the last answer that was used
	Backend     string    // "streaming", "blocking-query" or empty
	LastAnswer  time.Time // of the last answer of any content
	Failures    int       // in a row
	TotalErrors uint64
	Err         string // of the last failure; empty once it answers again
	Held        int    // instances kept although a reset Consul does not list them
}

// State returns the present state, with the watches sorted by key.
func (w *Watcher) State() State {
	a := w.agent.snapshot()
	s := State{Addr: w.client.Addr(), Up: a.up, Leader: a.leader, Since: a.since, LastContact: a.contact}
	if a.err != nil {
		s.Err = a.err.Error()
	}
	for _, v := range w.all() {
		s.Watches = append(s.Watches, v.state())
	}
	slices.SortFunc(s.Watches, func(a, b WatchState) int { return strings.Compare(a.Key, b.Key) })
	return s
}

// Why a running query is given up.
var (
	errTurn  = errors.New("watches take turns now")      // ask again with the same index
	errAgain = errors.New("consul has to be asked anew") // ask again without an index
)
