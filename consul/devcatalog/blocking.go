package devcatalog

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// topicKind is what sort of thing a blocking query waits for.
type topicKind uint8

const (
	topicNodes        topicKind = iota // all nodes
	topicServices                      // the names of services and their tags
	topicChecks                        // all checks
	topicService                       // one service: instances, their checks, their nodes
	topicNode                          // one node and its services
	topicNodeChecks                    // the checks of one node
	topicKey                           // one key
	topicPrefix                        // all keys with a prefix; only waited for, never bumped
	topicAgentService                  // one registration on the agent
)

// topic is one thing that changes and that queries wait for.
type topic struct {
	kind topicKind
	name string
}

// indexes say when each topic changed last, by one counter for all of them, and
// who waits for it. All of it is guarded by Server.mu.
type indexes struct {
	counter uint64
	// floor is the index of every topic that is not in at: those that never
	// changed, and those that were forgotten. It only grows, so no topic's
	// index ever falls below what a watcher holds.
	floor   uint64
	at      map[topic]uint64
	max     int
	waiters map[topic]map[chan struct{}]struct{}
}

func newIndexes(start uint64, maxTopics int) indexes {
	return indexes{
		counter: start, floor: start, max: maxTopics,
		at:      make(map[topic]uint64),
		waiters: make(map[topic]map[chan struct{}]struct{}),
	}
}

// restart makes everything look as if it had last changed at start.
func (x *indexes) restart(start uint64) {
	x.counter, x.floor = start, start
	clear(x.at)
}

// next begins a change: all topics bumped until the following one share it.
func (x *indexes) next() uint64 {
	x.counter++
	return x.counter
}

// bump notes that a topic changed now and wakes who waits for it.
func (x *indexes) bump(t topic) {
	if len(x.at) >= x.max {
		// Names that came and went are remembered only so long. Raising
		// the floor makes every watcher look once more, which is allowed;
		// an index that goes back would not be.
		clear(x.at)
		x.floor = x.counter
	}
	x.at[t] = x.counter
	wake(x.waiters[t])
	if t.kind == topicKey {
		for other, w := range x.waiters {
			if other.kind == topicPrefix && strings.HasPrefix(t.name, other.name) {
				wake(w)
			}
		}
	}
}

// of is the index of a topic, at least 1.
func (x *indexes) of(t topic) uint64 {
	index := max(x.floor, x.at[t], 1)
	if t.kind == topicPrefix {
		for other, at := range x.at {
			if other.kind == topicKey && strings.HasPrefix(other.name, t.name) {
				index = max(index, at)
			}
		}
	}
	return index
}

func (x *indexes) wakeAll() {
	for _, w := range x.waiters {
		wake(w)
	}
}

func wake(waiters map[chan struct{}]struct{}) {
	for ch := range waiters {
		select {
		case ch <- struct{}{}:
		default: // it has a wake-up that it did not look at yet
		}
	}
}

func (x *indexes) subscribe(t topic) chan struct{} {
	ch := make(chan struct{}, 1)
	if x.waiters[t] == nil {
		x.waiters[t] = make(map[chan struct{}]struct{})
	}
	x.waiters[t][ch] = struct{}{}
	return ch
}

func (x *indexes) unsubscribe(t topic, ch chan struct{}) {
	delete(x.waiters[t], ch)
	if len(x.waiters[t]) == 0 {
		delete(x.waiters, t)
	}
}

const (
	defaultWait = 5 * time.Minute
	maxWait     = 10 * time.Minute
)

// query is what the parameters common to all reads ask for.
type query struct {
	index       uint64
	wait        time.Duration
	consistency string // leader, stale or consistent
	cached      bool
	params      url.Values
}

// parseQuery reads the common parameters and refuses what Consul refuses.
func (s *Server) parseQuery(r *http.Request) (query, error) {
	q := query{wait: defaultWait, consistency: "leader", params: r.URL.Query()}
	if err := s.checkScope(q.params); err != nil {
		return q, err
	}
	wait, err := parseWait(q.params)
	if err != nil {
		return q, err
	}
	q.wait = wait
	if v := q.params.Get("index"); v != "" {
		if q.index, err = strconv.ParseUint(v, 10, 64); err != nil {
			return q, badRequest("Invalid index")
		}
	}
	stale, consistent := q.params.Has("stale"), q.params.Has("consistent")
	q.cached = q.params.Has("cached")
	switch {
	case stale && consistent:
		return q, badRequest("Cannot specify ?stale with ?consistent, conflicting semantics.")
	case q.cached && consistent:
		return q, badRequest("Cannot specify ?cached with ?consistent, conflicting semantics.")
	case stale:
		q.consistency = "stale"
	case consistent:
		q.consistency = "consistent"
	}
	return q, nil
}

// checkScope refuses other datacenters and what only Consul Enterprise has.
func (s *Server) checkScope(params url.Values) error {
	if params.Has("ns") {
		return badRequest(`Invalid query parameter: "ns" - Namespaces are a Consul Enterprise feature`)
	}
	if params.Has("partition") {
		return badRequest(`Invalid query parameter: "partition" - Partitions are a Consul Enterprise feature`)
	}
	if dc := params.Get("dc"); dc != "" && dc != s.opts.Datacenter {
		return &apiError{http.StatusInternalServerError, "No path to datacenter"}
	}
	return nil
}

// parseWait reads ?wait. Nothing, zero and less mean the default.
func parseWait(params url.Values) (time.Duration, error) {
	v := params.Get("wait")
	if v == "" {
		return defaultWait, nil
	}
	wait, err := time.ParseDuration(v)
	if err != nil {
		return 0, badRequest("Invalid wait time")
	}
	if wait <= 0 {
		return defaultWait, nil
	}
	return min(wait, maxWait), nil
}

// jittered adds up to a sixteenth, by which Consul spreads its watchers.
func jittered(wait time.Duration) time.Duration {
	if spread := int64(wait / 16); spread > 0 {
		wait += time.Duration(rand.Int64N(spread))
	}
	return wait
}

// await returns once done, asked with s.mu held whenever the topic changes, says
// so, or once the wait is over, or when all blocking queries are interrupted.
// The client's leaving is the context's error.
func (s *Server) await(ctx context.Context, t topic, wait time.Duration, done func() bool) error {
	s.mu.Lock()
	if done() {
		s.mu.Unlock()
		return nil
	}
	if s.blocked >= s.opts.Limits.BlockingQueries {
		s.mu.Unlock()
		return &apiError{http.StatusTooManyRequests, "devcatalog: too many blocking queries, the limit is " + strconv.Itoa(s.opts.Limits.BlockingQueries)}
	}
	s.blocked++
	epoch := s.epoch
	ch := s.indexes.subscribe(t)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.indexes.unsubscribe(t, ch)
		s.blocked--
	}()

	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ended:
			return &apiError{http.StatusInternalServerError, "devcatalog: shutting down"}
		case <-timer.C:
			return nil
		case <-ch:
		}
		s.mu.Lock()
		over := done() || s.epoch != epoch
		s.mu.Unlock()
		if over {
			return nil
		}
	}
}

// Blocked returns how many blocking queries are under way.
func (s *Server) Blocked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.blocked
}

// read answers a query about a topic: it blocks as asked, then calls look once
// with s.mu held, and sets the headers for what look saw. The body is the
// caller's to write. kv is true for the key/value store, whose answers have
// fewer headers.
func (s *Server) read(w http.ResponseWriter, r *http.Request, q query, t topic, look func()) error {
	streamed := s.streams(q, t, r)
	if !streamed {
		if err := s.needsLeader(); err != nil {
			return err
		}
	}
	if q.index > 0 {
		wait := q.wait
		if !streamed {
			wait = jittered(wait)
		}
		if err := s.await(r.Context(), t, wait, func() bool { return s.indexes.of(t) > q.index }); err != nil {
			return err
		}
		// The faults may have changed while the query was blocked.
		if s.Faults().Cut {
			cut()
		}
		if err := s.needsLeader(); err != nil && !streamed {
			return err
		}
	}
	s.mu.Lock()
	index := s.indexes.of(t)
	look()
	s.mu.Unlock()
	s.writeMeta(w, q, t, index, streamed)
	return nil
}

// streams reports whether Consul would answer the query from the agent's
// streamed view of the service.
func (s *Server) streams(q query, t topic, r *http.Request) bool {
	return s.opts.Streaming && t.kind == topicService && (q.index > 0 || q.cached) &&
		!q.params.Has("near") && strings.HasPrefix(r.URL.Path, "/v1/health/service/")
}

func (s *Server) writeMeta(w http.ResponseWriter, q query, t topic, index uint64, streamed bool) {
	h := w.Header()
	h.Set("X-Consul-Index", strconv.FormatUint(index, 10))
	h.Set("X-Consul-Lastcontact", "0")
	h.Set("X-Consul-Knownleader", strconv.FormatBool(!streamed))
	h.Set("X-Consul-Query-Backend", "blocking-query")
	if streamed {
		h.Set("X-Consul-Query-Backend", "streaming")
	}
	if t.kind != topicKey && t.kind != topicPrefix {
		h.Set("X-Consul-Effective-Consistency", q.consistency)
	}
	if q.cached {
		h.Set("X-Cache", "HIT")
		h.Set("Age", "0")
	}
}
