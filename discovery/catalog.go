package discovery

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// State is what the catalog knows of one watched query.
type State struct {
	Key        string
	Loaded     bool // at least one answer (or a warm-start snapshot) has arrived
	Warm       bool // the snapshot came from disk and no live answer has confirmed it
	Snapshot   Snapshot
	FreshAt    time.Time // when the source last confirmed the snapshot
	StaleSince time.Time // zero while fresh
	Err        string    // why it is stale
}

// Stale reports whether the source has failed since it last confirmed the
// snapshot.
func (s State) Stale() bool { return !s.StaleSince.IsZero() }

// Catalog keeps the last good snapshot of every watched query and tells the
// pools of each change, by plain calls in the caller's goroutine. It is safe
// for concurrent use; the calls for one key are serialised.
type Catalog struct {
	now func() time.Time

	mu      sync.Mutex
	entries map[string]*entry
}

type entry struct {
	// apply serialises Apply and Subscribe for this key, so that a subscriber
	// sees snapshots in order and never misses the one between its first call
	// and its registration.
	apply sync.Mutex

	mu    sync.Mutex
	state State
	subs  []*subscription
}

type subscription struct{ fn func(Snapshot) }

// NewCatalog returns an empty catalog.
func NewCatalog() *Catalog {
	return &Catalog{now: time.Now, entries: map[string]*entry{}}
}

func (c *Catalog) entry(key string) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[key]
	if e == nil {
		e = &entry{state: State{Key: key}}
		c.entries[key] = e
	}
	return e
}

// Apply makes s the current snapshot of key, marks it fresh and hands it to
// the key's subscribers before it returns. A snapshot whose instances equal
// the current ones only refreshes the time and index. It reports whether the
// instances changed.
func (c *Catalog) Apply(key string, s Snapshot) bool {
	e := c.entry(key)
	e.apply.Lock()
	defer e.apply.Unlock()

	e.mu.Lock()
	changed := !e.state.Loaded || !e.state.Snapshot.SameInstances(s)
	e.state.Snapshot = s
	e.state.Loaded, e.state.Warm = true, false
	e.state.FreshAt, e.state.StaleSince, e.state.Err = c.now(), time.Time{}, ""
	subs := slices.Clone(e.subs)
	e.mu.Unlock()

	if changed {
		for _, sub := range subs {
			sub.fn(s)
		}
	}
	return changed
}

// ApplyWarm is Apply for a snapshot that was saved earlier: it is used only
// where no answer has arrived yet, and is marked stale until one does. It
// reports whether it was used.
func (c *Catalog) ApplyWarm(key string, s Snapshot, since time.Time) bool {
	e := c.entry(key)
	e.apply.Lock()
	defer e.apply.Unlock()

	e.mu.Lock()
	if e.state.Loaded {
		e.mu.Unlock()
		return false
	}
	e.state.Snapshot = s
	e.state.Loaded, e.state.Warm = true, true
	e.state.FreshAt, e.state.StaleSince, e.state.Err = since, since, "loaded from the snapshot file"
	subs := slices.Clone(e.subs)
	e.mu.Unlock()

	for _, sub := range subs {
		sub.fn(s)
	}
	return true
}

// Fresh records that the source confirmed the current snapshot of key.
func (c *Catalog) Fresh(key string) {
	e := c.entry(key)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.state.Loaded && !e.state.Warm {
		e.state.FreshAt, e.state.StaleSince, e.state.Err = c.now(), time.Time{}, ""
	}
}

// Stale records that the source failed; the last good snapshot stays. It
// reports whether the key was fresh until now, so that the caller logs once.
func (c *Catalog) Stale(key string, err error) bool {
	e := c.entry(key)
	e.mu.Lock()
	defer e.mu.Unlock()
	first := e.state.StaleSince.IsZero()
	if first {
		e.state.StaleSince = c.now()
	}
	e.state.Err = err.Error()
	return first
}

// Subscribe calls fn with the current snapshot of key, if there is one, and
// then with every later one whose instances differ, in order, in the
// goroutine that applies it. fn must not call back into the catalog for the
// same key. The returned function ends the subscription; a call of fn that runs
// just then still ends.
func (c *Catalog) Subscribe(key string, fn func(Snapshot)) (cancel func()) {
	e := c.entry(key)
	e.apply.Lock()
	defer e.apply.Unlock()

	sub := &subscription{fn}
	e.mu.Lock()
	e.subs = append(e.subs, sub)
	loaded, snap := e.state.Loaded, e.state.Snapshot
	e.mu.Unlock()
	if loaded {
		fn(snap)
	}
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.subs = slices.DeleteFunc(e.subs, func(s *subscription) bool { return s == sub })
	}
}

// Forget drops what is known of key, for a query that nobody watches any
// more.
func (c *Catalog) Forget(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, key)
}

// State returns what is known of key; the zero State but for its Key where
// nothing is.
func (c *Catalog) State(key string) State {
	c.mu.Lock()
	e := c.entries[key]
	c.mu.Unlock()
	if e == nil {
		return State{Key: key}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.state
}

// States returns what is known of every key, sorted by key.
func (c *Catalog) States() []State {
	c.mu.Lock()
	entries := make([]*entry, 0, len(c.entries))
	for _, e := range c.entries {
		entries = append(entries, e)
	}
	c.mu.Unlock()
	states := make([]State, 0, len(entries))
	for _, e := range entries {
		e.mu.Lock()
		states = append(states, e.state)
		e.mu.Unlock()
	}
	slices.SortFunc(states, func(a, b State) int { return strings.Compare(a.Key, b.Key) })
	return states
}
