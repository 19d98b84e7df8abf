package limiter

import (
	"context"
	"sync"
	"time"
)

// shards is how many locks the remembered identities are spread over. It is
// the number of values of an identity's first byte.
const shards = 256

// keyOf is what an entry is found by.
type keyOf struct {
	policy   [8]byte
	identity [16]byte
}

// keys are the identities that are remembered. An identity is a hash, so what
// a client sends costs the same memory however long it is.
type keys struct {
	perShard int
	shard    [shards]shard
}

type shard struct {
	mu      sync.RWMutex
	entries map[keyOf]*entry
}

// add returns the entry of k, new where nobody was faster.
func (ks *keys) add(s *shard, k keyOf, p *Policy, now int64) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[k]; e != nil {
		return e
	}
	if s.entries == nil {
		s.entries = make(map[keyOf]*entry)
	}
	if len(s.entries) >= ks.perShard {
		s.evict()
	}
	key := p.redisKey(k.identity)
	e := &entry{key: key, slot: slotOf(key), policy: p, touched: now, div: 1, tallies: make([]tally, len(p.specs))}
	s.entries[k] = e
	return e
}

// evict forgets the least recently seen of a few random entries. What is
// forgotten of a shared budget stays charged in the store: a lease that is
// lost with its entry is only unused. Entries that are still needed are passed
// over, unless there is hardly anything else: memory stays bounded in an outage
// too, in which all of them owe.
func (s *shard) evict() {
	var victim keyOf
	oldest, spare, free, looked := int64(0), false, 0, 0
	for k, e := range s.entries {
		at, needed := e.seen()
		if looked == 0 || !needed && !spare || needed != spare && at < oldest {
			victim, oldest, spare = k, at, !needed
		}
		if !needed {
			free++
		}
		if looked++; free == 8 || looked == 64 {
			break
		}
	}
	delete(s.entries, victim)
}

func (ks *keys) len() int {
	n := 0
	for i := range ks.shard {
		s := &ks.shard[i]
		s.mu.RLock()
		n += len(s.entries)
		s.mu.RUnlock()
	}
	return n
}

// all calls fn with every entry of shard i. fn may lock the entry.
func (ks *keys) all(i int, fn func(*entry)) {
	s := &ks.shard[i]
	s.mu.RLock()
	list := make([]*entry, 0, len(s.entries))
	for _, e := range s.entries {
		list = append(list, e)
	}
	s.mu.RUnlock()
	for _, e := range list {
		fn(e)
	}
}

// forget drops the entries of shard i that hold nothing any more.
func (ks *keys) forget(i int, now instant) {
	s := &ks.shard[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, e := range s.entries {
		if e.idle(now) {
			delete(s.entries, k)
		}
	}
}

// sweep forgets idle entries, a shard at a time and all of them every 13
// seconds, until ctx ends.
func (l *Limiter) sweep(ctx context.Context) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i = (i + 1) % shards {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.keys.forget(i, l.now())
		}
	}
}
