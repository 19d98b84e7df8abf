package consul

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// Pair is one key of Consul's KV store.
type Pair struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
	Index uint64 `json:"index"` // Consul's, of its last change
}

// KVOptions say what a KVWatch watches and who is told.
type KVOptions struct {
	Prefix string

	// OnChange is told of all keys below the prefix, in their order, after each
	// change and at the start. It is called in the goroutine of Run.
	OnChange func(pairs []Pair, index uint64)

	// OnQuery, if set, is called after each query.
	OnQuery func(err error, took time.Duration)

	// Last is the index and the number of keys that are known from before, as
	// from a KVFile.
	Last     uint64
	LastKeys int
}

// KVWatch follows the keys below a prefix by blocking queries. It shares a
// watcher's view of the agent, so that it rests with the others while the agent
// is away. It is safe for concurrent use.
type KVWatch struct {
	w   *Watcher
	o   KVOptions
	log *slog.Logger

	index    uint64 // of the next query; 0: it does not block
	highest  uint64 // of the last answer that was used
	keys     int    // in it
	failures int
	told     string // the failure that is in the log
	pace     bucket

	mu    sync.Mutex
	state KVState
}

// KVState is what a KVWatch knows.
type KVState struct {
	Prefix     string
	Loaded     bool // an answer of Consul has been used
	Index      uint64
	LastAnswer time.Time
	Failures   int    // in a row
	Err        string // of the last failure; empty once it answers again
}

// NewKVWatch returns a watch of the agent that w watches. It asks nothing
// before Run, which needs w's Run beside it.
func NewKVWatch(w *Watcher, o KVOptions) *KVWatch {
	return &KVWatch{w: w, o: o, log: w.log.With("prefix", o.Prefix), highest: o.Last, keys: o.LastKeys,
		pace: bucket{credit: queryCredit}, state: KVState{Prefix: o.Prefix}}
}

// State returns the present state.
func (k *KVWatch) State() KVState {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// errForgotten says that Consul has lost its memory rather than that somebody
// took every key out: its index went back, and there is nothing.
var errForgotten = errors.New("consul forgot every key (its index went back): the last ones stay until there are others")

// Run watches until ctx ends, and returns nil.
func (k *KVWatch) Run(ctx context.Context) error {
	for wait(ctx, k.pace.due()) {
		err := k.step(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			k.failed(ctx, err)
		}
	}
	return nil
}

// step asks once and uses the answer.
func (k *KVWatch) step(ctx context.Context) error {
	pairs, meta, at, err := k.ask(ctx)
	if err != nil {
		return err
	}
	asked := k.index
	switch {
	case asked > 0 && meta.LastIndex < asked:
		// Restored, or collected: nothing of it is used, and the next query does
		// not block.
		k.index = 0
		k.pace.charge(fullPrice)
		return nil
	case asked > 0 && meta.LastIndex == asked:
		k.pace.charge(fullPrice)
		k.answered(at)
		return nil
	case meta.ResultsFilteredByACLs: // of some as of all: who is hidden is not gone
		return &Error{Kind: ErrDenied, Code: 200, What: "consul hides keys below " + k.o.Prefix + " by ACL",
			Hint: k.w.client.token.source() + " needs " + need("/v1/kv/"+k.o.Prefix), err: ErrDenied}
	case len(pairs) == 0 && k.keys > 0 && meta.LastIndex < k.highest:
		return errForgotten
	}
	changed := !k.State().Loaded || meta.LastIndex != k.highest
	k.index, k.highest, k.keys = meta.LastIndex, meta.LastIndex, len(pairs)
	if changed {
		list := make([]Pair, 0, len(pairs))
		size := 0
		for _, p := range pairs {
			list = append(list, Pair{p.Key, p.Value, p.ModifyIndex})
			size += len(p.Value)
		}
		k.o.OnChange(list, meta.LastIndex)
		k.pace.charge(priceOf(size))
	} else {
		k.pace.charge(fullPrice)
	}
	k.answered(at)
	return nil
}

// ask sends one query: without an index at once, else blocking.
func (k *KVWatch) ask(ctx context.Context) (api.KVPairs, *api.QueryMeta, time.Time, error) {
	o := &api.QueryOptions{Datacenter: k.w.client.datacenter}
	timeout := primeTimeout
	if k.index > 0 {
		block := jitter(k.w.o.Wait, 0.06)
		o.WaitIndex, o.WaitTime = k.index, block
		timeout = block + block/16 + holdTimeout
	}
	deadline, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	pairs, meta, err := k.w.client.api.KV().List(k.o.Prefix, o.WithContext(deadline))
	if ctx.Err() != nil {
		return nil, nil, start, ctx.Err()
	}
	err = k.w.client.explain("/v1/kv/"+k.o.Prefix, err)
	if err == nil {
		k.w.agent.answered()
	}
	if k.o.OnQuery != nil {
		k.o.OnQuery(err, time.Since(start))
	}
	return pairs, meta, time.Now(), err
}

// answered ends a run of failures.
func (k *KVWatch) answered(at time.Time) {
	if k.told != "" {
		k.log.Info("keys are watched again")
	}
	k.failures, k.told = 0, ""
	k.mu.Lock()
	defer k.mu.Unlock()
	k.state = KVState{Prefix: k.o.Prefix, Loaded: true, Index: k.highest, LastAnswer: at}
}

// failed keeps what is known, says why once, and waits.
func (k *KVWatch) failed(ctx context.Context, err error) {
	k.index = 0
	k.failures++
	k.pace.charge(fullPrice)
	k.mu.Lock()
	k.state.Failures, k.state.Err = k.failures, err.Error()
	k.mu.Unlock()
	if errors.Is(err, ErrUnreachable) {
		k.w.agent.suspect() // says it for all
	} else if k.told != err.Error() {
		k.told = err.Error()
		k.log.Warn("keys cannot be watched, the last ones stay", "err", err)
	}
	d := backoff(k.failures, askAgain)
	a := k.w.agent.snapshot()
	if !a.known || a.confirms() {
		wait(ctx, d)
		return
	}
	// The probe knocks for all.
	t := time.NewTimer(jitter(downWait, 0.5))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-k.w.agent.outage():
		wait(ctx, rand.N(k.w.spread()+1))
	}
}
