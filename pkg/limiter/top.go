package limiter

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Limited is an identity that was denied.
type Limited struct {
	Policy string    // its name
	Key    string    // in the store: a hash of the identity, not the identity; or that, where the policy says so
	Denied int64     // requests
	Error  int64     // by how much Denied may be too large
	Last   time.Time // when it was last denied, to within a second
}

// The account of who is limited most is bounded, and forgets who was not
// limited for a while.
const (
	mostKept   = 512
	mostShown  = 128 // bytes of an identity
	mostMemory = time.Hour
)

// most keeps who is denied most often, in bounded memory however many are
// (Metwally, Agrawal, El Abbadi: Efficient computation of frequent and top-k
// elements in data streams): who is new takes the place of the one with the
// fewest denials, and inherits its count as the error. Everybody with more than
// one in mostKept of all denials is in it.
type most struct {
	mu      sync.Mutex
	rows    []Limited
	entries []*entry       // of rows
	byKey   map[string]int // rows by the key in the store
}

// add counts the denials of an entry that were not counted yet.
func (m *most) add(e *entry, p *Policy, identity string) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	i, ok := m.byKey[e.key]
	if !ok {
		row := Limited{Policy: p.Name(), Key: e.key}
		if p.settings.ShowKeys {
			row.Key = strings.ToValidUTF8(identity[:min(len(identity), mostShown)], "\uFFFD")
		}
		if i = len(m.rows); i < mostKept {
			m.rows, m.entries = append(m.rows, row), append(m.entries, e)
		} else {
			i = m.least(now)
			if now.Sub(m.rows[i].Last) < mostMemory {
				row.Denied, row.Error = m.rows[i].Denied, m.rows[i].Denied
			}
			delete(m.byKey, m.entries[i].key)
			m.rows[i] = row
		}
		if m.byKey == nil {
			m.byKey = map[string]int{}
		}
		m.byKey[e.key] = i
	}
	m.entries[i] = e
	m.rows[i].Denied += e.limited.Swap(0)
	m.rows[i].Last = now
}

// least returns the row that is worth the least.
func (m *most) least(now time.Time) (least int) {
	for i := range m.rows {
		if now.Sub(m.rows[i].Last) >= mostMemory {
			return i
		}
		if m.rows[i].Denied < m.rows[least].Denied {
			least = i
		}
	}
	return least
}

// Top returns the n identities that this replica denied most often within
// about an hour, the most often denied first.
func (l *Limiter) Top(n int) []Limited {
	now := time.Now()
	l.most.mu.Lock()
	for i, e := range l.most.entries {
		l.most.rows[i].Denied += e.limited.Swap(0)
	}
	top := slices.Clone(l.most.rows)
	l.most.mu.Unlock()
	top = slices.DeleteFunc(top, func(r Limited) bool { return now.Sub(r.Last) >= mostMemory })
	slices.SortFunc(top, func(a, b Limited) int {
		return cmp.Or(cmp.Compare(b.Denied, a.Denied), cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Key, b.Key))
	})
	return slices.Clip(top[:min(max(n, 0), len(top))])
}
