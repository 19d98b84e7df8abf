package identity

import (
	"sync"
	"time"
)

// cache remembers a bounded number of results until they expire. It is split
// so that requests on different processors seldom wait for each other. Keys
// are hashes: their first byte spreads them.
type cache[K ~[32]byte, V any] struct{ shards [16]shard[K, V] }

type shard[K ~[32]byte, V any] struct {
	mu  sync.RWMutex
	max int
	m   map[K]kept[V]
}

type kept[V any] struct {
	value   V
	expires time.Time
}

func newCache[K ~[32]byte, V any](size int) *cache[K, V] {
	c := &cache[K, V]{}
	for i := range c.shards {
		c.shards[i] = shard[K, V]{max: max(1, size/len(c.shards)), m: map[K]kept[V]{}}
	}
	return c
}

func (c *cache[K, V]) shard(k K) *shard[K, V] { return &c.shards[int(k[0])%len(c.shards)] }

func (c *cache[K, V]) get(k K, now time.Time) (V, bool) {
	s := c.shard(k)
	s.mu.RLock()
	e, ok := s.m[k]
	s.mu.RUnlock()
	if !ok || !now.Before(e.expires) {
		var zero V
		return zero, false
	}
	return e.value, true
}

// evictLooks is how many entries are looked at for one that has expired,
// before any has to go.
const evictLooks = 8

func (c *cache[K, V]) put(k K, v V, expires, now time.Time) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, have := s.m[k]; !have && len(s.m) >= s.max {
		looked := 0
		var victim K
		for other, e := range s.m { // in random order
			victim = other
			if looked++; looked >= evictLooks || !now.Before(e.expires) {
				break
			}
		}
		delete(s.m, victim)
	}
	s.m[k] = kept[V]{v, expires}
}
