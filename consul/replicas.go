package consul

import (
	"sync"
	"time"

	"github.com/proconsul/proconsul/discovery"
)

// shrinkAfter is how long a smaller number of replicas has to last before it
// counts. A limit that is divided by too many admits too little for a moment;
// one that is divided by too few admits too much.
const shrinkAfter = 2 * time.Second

// Replicas counts the living replicas of this gateway by a watch on its own
// service, for the share of a limit that each may grant while the store is
// away. The last known number stays through an outage of Consul. It is safe
// for concurrent use.
type Replicas struct {
	mu    sync.Mutex
	count int       // what counts now
	next  int       // a smaller one that has to last
	since time.Time // of next

	cancel func()
}

// NewReplicas counts the usable instances of q in catalog. The query has to be
// among those that a Watcher is given.
func NewReplicas(catalog *discovery.Catalog, q discovery.Query) *Replicas {
	r := &Replicas{count: 1, next: 1}
	r.cancel = catalog.Subscribe(q.Key(), r.set)
	return r
}

func (r *Replicas) set(s discovery.Snapshot) {
	n := 0
	for i := range s.Instances {
		if s.Instances[i].Usable() {
			n++
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settle()
	switch {
	case n == 0:
		// We live, so a catalog without us knows less than we do.
	case n >= r.count:
		r.count, r.next = n, n
	case n != r.next:
		r.next, r.since = n, time.Now()
	}
}

func (r *Replicas) settle() {
	if r.next < r.count && time.Since(r.since) >= shrinkAfter {
		r.count = r.next
	}
}

// Count returns the number of living replicas, at least 1.
func (r *Replicas) Count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settle()
	return r.count
}

// Close ends the subscription; Count keeps its last value.
func (r *Replicas) Close() { r.cancel() }
