package identity

import (
	"errors"
	"log/slog"
	"testing"
	"time"
)

// Who gives up says nothing of the server: neither that it is well, so that the
// failures of others would be forgotten, nor that it is ill.
func TestCircuitAndWhoGivesUp(t *testing.T) {
	bad := errors.New("away")
	now := time.Now()
	c := &circuit{log: slog.New(slog.DiscardHandler)}
	for range tripsAfter {
		if !c.enter(now) {
			t.Fatal("open before its time")
		}
		c.leave(now, bad, false)
		if c.enter(now) {
			c.leave(now, bad, true)
		}
	}
	if c.enter(now) {
		t.Fatal("failures are forgotten where others give up")
	}
	later := now.Add(2 * longestRest)
	for range 3 { // one after the other may try
		if !c.enter(later) {
			t.Fatal("nobody may ask after the rest")
		}
		if c.enter(later) {
			t.Fatal("two ask at once")
		}
		c.leave(later, bad, true)
	}
	if !c.enter(later) {
		t.Fatal("nobody may ask after one who gave up")
	}
	c.leave(later, bad, false)
	if c.enter(later) {
		t.Fatal("a failure after those who gave up does not count")
	}
	last := later.Add(2 * longestRest)
	if !c.enter(last) {
		t.Fatal("nobody may ask after the second rest")
	}
	c.leave(last, nil, false)
	if !c.enter(last) || !c.enter(last) {
		t.Error("an answer does not close it")
	}
}
