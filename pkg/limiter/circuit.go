package limiter

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// circuit says whether one node of the store can be asked. It opens after
// calls that failed in a row.
type circuit struct {
	node  string // address in a cluster; empty: the only one, or the heartbeat's
	up    atomic.Bool
	fails atomic.Int32
	key   string // that a call failed for last; guarded by the store's lock
}

// slotCount is how many slots a Redis Cluster has.
const slotCount = 16384

// slotOf returns the cluster's slot of what a redisKey has in braces: CRC16 as
// the Redis Cluster Specification has it (polynomial 0x1021, from 0).
func slotOf(key string) uint16 {
	const prefix = "rl:{"
	var crc uint16
	for i := len(prefix); i < len(key)-1; i++ {
		crc ^= uint16(key[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return crc % slotCount
}

// circuitOf returns the circuit of a key's node, as far as it is known.
func (s *store) circuitOf(slot uint16) *circuit {
	if s.slots != nil {
		if c := s.slots[slot].Load(); c != nil {
			return c
		}
	}
	return s.home
}

// reach reports whether the store can be asked for an entry.
func (s *store) reach(e *entry) bool { return s.circuitOf(e.slot).up.Load() }

// locate finds the node of an entry's key: slots move.
func (s *store) locate(ctx context.Context, e *entry) *circuit {
	cluster, ok := s.client.(*redis.ClusterClient)
	if !ok {
		return s.home
	}
	node := "?" // nobody's slot
	if master, err := cluster.MasterForKey(ctx, e.key); err == nil {
		node = master.Options().Addr
	}
	known := s.slots[e.slot].Load()
	if known != nil && known.node == node {
		return known
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.nodes[node]
	if c == nil {
		c = &circuit{node: node}
		c.up.Store(true)
		s.nodes[node] = c
	}
	s.slots[e.slot].Store(c)
	return c
}

// report tells a circuit how a call for key went. It may open it, and never
// closes it.
func (s *store) report(c *circuit, key string, err error, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		c.fails.Store(0)
		s.state.LastContact, s.state.Latency = time.Now(), took
		return
	}
	s.state.LastError = err.Error()
	c.key = key
	if c.fails.Add(1) < tolerated || !c.up.Load() && !s.state.Since.IsZero() {
		return
	}
	s.turn(c, false)
	select {
	case s.down <- struct{}{}:
	default:
	}
}

// turn changes a circuit. The store is locked.
func (s *store) turn(c *circuit, up bool) {
	c.up.Store(up)
	c.fails.Store(0)
	s.state.Since = time.Now()
	s.state.Up = s.home.up.Load()
	for _, n := range s.nodes {
		s.state.Up = s.state.Up && n.up.Load()
	}
	log := s.l.log
	if c.node != "" {
		log = log.With("node", c.node)
	}
	if up {
		log.Info("limits are shared through redis", "replicas", len(*s.l.members.Load()))
	} else {
		log.Warn("redis is away, limits are not shared", "err", s.state.LastError)
	}
	st := s.state
	st.Replicas = len(*s.l.members.Load())
	s.l.onChange(st)
}

// probe tries the nodes of a cluster that are away, by a write to the slot
// that failed, and returns how long to wait until the next time. What failed
// may have a new master by now: the slot is probed, not the address.
func (s *store) probe(ctx context.Context) time.Duration {
	s.mu.Lock()
	var away []*circuit
	var keys []string
	for _, c := range s.nodes {
		if !c.up.Load() {
			away, keys = append(away, c), append(keys, c.key)
		}
	}
	s.mu.Unlock()
	wait, back := beatEvery, false
	for i, c := range away {
		pctx, cancel := context.WithTimeout(ctx, max(s.timeout, 50*time.Millisecond))
		p := s.client.Pipeline()
		p.Set(pctx, keys[i]+":probe", "", time.Second)
		started := time.Now()
		_, err := p.Exec(pctx)
		cancel()
		if ctx.Err() != nil {
			return probeEvery
		}
		took := time.Since(started)
		s.l.onCall("probe", took, err)
		s.report(c, keys[i], err, took)
		if err != nil {
			wait = probeEvery
			continue
		}
		s.mu.Lock()
		s.turn(c, true)
		s.mu.Unlock()
		back = true
	}
	if back {
		// Whether it has lost its data nobody can tell but by its keys.
		s.recover(ctx, true)
	}
	return wait
}
