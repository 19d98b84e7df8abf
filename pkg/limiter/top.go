package limiter

import (
	"cmp"
	"slices"
)

// Limited is an identity that was denied.
type Limited struct {
	Policy string // its name
	Key    string // in the store: a hash of the identity, not the identity
	Denied int64  // requests, since this replica remembers the identity
}

// Top returns the n identities that this replica denied most often, the most
// often denied first, among those it remembers: identities are forgotten once
// nothing of theirs counts any more. It looks at each of them, so it is for
// people and not for requests.
func (l *Limiter) Top(n int) []Limited {
	var top []Limited
	for i := range shards {
		l.keys.all(i, func(e *entry) {
			if denied := e.limited.Load(); denied > 0 {
				e.mu.Lock()
				name := e.policy.Name()
				e.mu.Unlock()
				top = append(top, Limited{name, e.key, denied})
			}
		})
	}
	slices.SortFunc(top, func(a, b Limited) int {
		return cmp.Or(cmp.Compare(b.Denied, a.Denied), cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Key, b.Key))
	})
	return slices.Clip(top[:min(max(n, 0), len(top))])
}
