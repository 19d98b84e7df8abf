package limiter

import (
	"encoding/binary"
	"testing"
)

// Where memory is full, what is forgotten is neither what was just used nor
// what the store or somebody waiting still needs.
func TestWhatIsNeededIsNotForgotten(t *testing.T) {
	p, err := NewPolicy(Settings{Name: "p", Limits: []Limit{{Count: 10, Window: 1e9}}})
	if err != nil {
		t.Fatal(err)
	}
	id := func(n int) (k keyOf) {
		binary.BigEndian.PutUint64(k.identity[8:], uint64(n))
		return k
	}
	for name, tt := range map[string]struct {
		prepare func(*entry)
		kept    bool
	}{
		"nothing":          {func(*entry) {}, false},
		"an old lease":     {func(e *entry) { e.cur.Store(&lease{granted: 1e9, start: 1}) }, false},
		"a fresh lease":    {func(e *entry) { e.cur.Store(&lease{granted: 1, start: 1e9}) }, true},
		"a debt":           {func(e *entry) { e.owes = true }, true},
		"a call":           {func(e *entry) { e.inflight = true }, true},
		"a waiter":         {func(e *entry) { e.waiters = []*waiter{{}} }, true},
		"a line":           {func(e *entry) { e.line.Store(&line{turns: []*turn{{}}}) }, true},
		"a turn":           {func(e *entry) { e.line.Store(&line{booked: []*booking{{}}}) }, true},
		"a line of nobody": {func(e *entry) { e.line.Store(&line{}) }, false},
	} {
		ks := &keys{perShard: 6}
		s := &ks.shard[0]
		tt.prepare(ks.add(s, id(0), p, 1))
		for n := 1; n < 100; n++ {
			ks.add(s, id(n), p, int64(1000+n))
		}
		if _, kept := s.entries[id(0)]; kept != tt.kept {
			t.Errorf("%s: kept %v after 99 others", name, kept)
		}
	}
	// Where everything is needed memory is bounded all the same.
	ks := &keys{perShard: 6}
	for n := range 100 {
		ks.add(&ks.shard[0], id(n), p, int64(n)).owes = true
	}
	if n := ks.len(); n != 6 {
		t.Errorf("%d entries where 6 may be", n)
	}
	if _, kept := ks.shard[0].entries[id(98)]; !kept {
		t.Error("of those that are all needed the oldest is not the one that goes")
	}
}
