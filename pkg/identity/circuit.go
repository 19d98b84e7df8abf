package identity

import (
	"log/slog"
	"sync"
	"time"
)

const (
	tripsAfter  = 5 // failures in a row
	firstRest   = time.Second
	longestRest = 30 * time.Second
)

// circuit keeps requests from waiting for a server that fails: after a few
// failures in a row nobody asks it for a while, and then one request does. It
// is safe for concurrent use.
type circuit struct {
	log         *slog.Logger
	what, where string // for the log

	mu       sync.Mutex
	failures int       // in a row
	rests    int       // in a row
	until    time.Time // that nobody asks
	probing  bool
}

// enter reports whether the server may be asked now. Who enters leaves.
func (c *circuit) enter(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failures < tripsAfter {
		return true
	}
	if c.probing || now.Before(c.until) {
		return false
	}
	c.probing = true
	return true
}

// leave takes the outcome of one question: nil where the server has answered,
// whatever it said of the question. A neutral one tells nothing of the server,
// as one that the client gave up: failures stay counted, or whoever gives up
// often enough would keep a server that is down from being found out.
func (c *circuit) leave(now time.Time, err error, neutral bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wasOpen := c.failures >= tripsAfter
	c.probing = false
	switch {
	case neutral:
	case err == nil:
		if wasOpen {
			c.log.Info(c.what+" answers again", "url", c.where)
		}
		c.failures, c.rests = 0, 0
	default:
		c.failures++
		if c.failures < tripsAfter || wasOpen && now.Before(c.until) { // one that began before the rest
			return
		}
		c.until = now.Add(jitter(min(longestRest, firstRest<<min(c.rests, 10))))
		c.rests++
		if !wasOpen {
			c.log.Warn(c.what+" fails, and is asked seldom until it answers", "url", c.where, "err", err)
		}
	}
}
