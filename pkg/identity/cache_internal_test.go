package identity

import (
	"crypto/sha256"
	"strconv"
	"testing"
	"time"
)

// A flood of tokens takes no more room than the bound, and what has expired is
// not served.
func TestCacheIsBoundedAndExpires(t *testing.T) {
	c := newCache[digest, int](64)
	now := time.Unix(1_000, 0)
	key := func(i int) digest { return sha256.Sum256([]byte(strconv.Itoa(i))) }
	for i := range 10_000 {
		c.put(key(i), i, now.Add(time.Second), now)
		if v, ok := c.get(key(i), now); !ok || v != i {
			t.Fatalf("entry %d is not there right after it was put", i)
		}
	}
	n := 0
	for i := range c.shards {
		n += len(c.shards[i].m)
	}
	if n > 64 {
		t.Errorf("%d entries, and 64 are the most", n)
	}
	if _, ok := c.get(key(9_999), now.Add(time.Second)); ok {
		t.Error("an entry is served at its expiry")
	}
}
