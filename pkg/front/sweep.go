package front

import (
	"time"

	"github.com/proconsul/proconsul/pkg/rawio"
)

// The sweeper looks at connections on which nothing has changed between two of
// its rounds. If a request is under way, has its client left? If none is, is
// the connection still there? A close that arrived together with the last
// request is no event of its own, so nobody has noticed it.

// slowest is how many rounds pass at most between two looks at one request:
// those that last are looked at less and less often.
const slowest = 16

// watch has the sweeper look at the connection. It costs next to nothing while
// it does already.
func (s *Server) watch(c *conn) {
	if c.watched.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.watched.Load() || c.over.Load() {
		return
	}
	c.watched.Store(true)
	c.seen, c.rounds = 0, 0
	s.watched = append(s.watched, c)
	if s.sweeping {
		return
	}
	s.sweeping = true
	s.lately.Store(int64(time.Since(s.born)))
	if s.sweeper == nil {
		s.sweeper = time.AfterFunc(s.o.Sweep, s.sweep)
		return
	}
	s.sweeper.Reset(s.o.Sweep)
}

func (s *Server) sweep() {
	s.lately.Store(int64(time.Since(s.born)))
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.watched[:0]
	for _, c := range s.watched {
		if c.look() {
			kept = append(kept, c)
		}
	}
	clear(s.watched[len(kept):])
	s.watched = kept
	if len(kept) == 0 {
		s.sweeping = false
		return
	}
	s.sweeper.Reset(s.o.Sweep)
}

// roughly returns the time as the sweeper saw it last. While it has a connection
// to watch it comes each round, if it comes in time itself.
func (s *Server) roughly() time.Time { return s.born.Add(time.Duration(s.lately.Load())) }

// look is the sweeper's look at one connection. It reports whether it should
// come again.
func (c *conn) look() bool {
	if c.over.Load() {
		c.watched.Store(false)
		return false
	}
	phase := c.phase.Load()
	if phase != c.seen {
		c.seen, c.rounds = phase, 0
		return true
	}
	c.rounds++
	if phase%2 == 1 {
		// At 1, 2, 4, 8, 16, 32, 48, ...
		if n := c.rounds; n&(n-1) == 0 && n <= slowest || n%slowest == 0 {
			if k := c.current.Load(); k != nil && c.gone(k.quiet.Load()) {
				k.ctx.cancel()
			}
		}
		return true
	}
	if c.gone(true) {
		c.cut()
	}
	c.watched.Store(false)
	if c.phase.Load() == phase {
		return false
	}
	c.watched.Store(true) // a request has begun that may have thought it was watched
	return true
}

// gone reports whether the client has left. all says that nothing more is
// expected of it, so that the end of what it sends is its end: else only a
// reset is.
func (c *conn) gone(all bool) (gone bool) {
	if c.raw == nil {
		return false
	}
	err := c.raw.Control(func(fd uintptr) {
		reset, ended, ok := stateFD(fd)
		switch {
		case reset:
			gone = true
		case ok && !ended || !all:
		case ok && c.tls != nil:
			// What is unread is the notice of the end, most likely.
			gone = true
		default:
			err := peekFD(fd)
			gone = err != nil && err != rawio.ErrDry
		}
	})
	return gone || err != nil
}
