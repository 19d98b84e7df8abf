package transport

import (
	"context"
	"crypto/tls"
	"net"
	"net/http/httptrace"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// host is an address and its connections.
type host struct {
	t      *Transport
	addr   string
	secure bool
	http2  atomic.Bool // the instance has picked HTTP/2
	odd    atomic.Bool // it has said something unasked, or what is not HTTP

	mu     sync.Mutex
	gone   bool    // taken out of the transport's map
	idle   []*conn // the one used last comes last, and goes first
	users  int     // requests that have a connection or are getting one
	busy   int     // those that have one
	reused int64   // requests that began on one that had served before
	reaper *time.Timer
	armed  bool

	// Connections whose requests can be canceled, where that is looked after
	// by sweeping.
	active   *conn
	sweeper  *time.Timer
	sweeping bool // it will run
}

// connection returns a connection for the request: one that is idle, unless a
// fresh one is asked for, or a new one.
func (e *exchange) connection(addr string, secure, fresh bool) (*conn, error) {
	t, ctx := e.t, e.ctx
	if e.now = e.began; e.now == 0 {
		e.now = time.Since(t.born)
	}
	h := t.enter(addr, secure)
	if secure && h.http2.Load() {
		h.mu.Unlock()
		h.leave()
		return nil, errHTTP2
	}
	if !fresh {
		if c := h.take(e.body == nil && e.idempotent(), e.now); c != nil {
			c.reused = true
			c.watch(ctx)
			h.reused++
			h.busy++
			h.mu.Unlock()
			return c, nil
		}
	}
	h.mu.Unlock()
	t.counters.dials.Add(1)
	c, err := h.dial(ctx, e.by, e.trace)
	if err != nil {
		h.leave()
		if err != errHTTP2 {
			t.counters.dialErrors.Add(1)
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			} // a *ConnectError where the header's time is over: nothing was sent
		}
		return nil, err
	}
	h.mu.Lock()
	c.watch(ctx)
	h.busy++
	h.mu.Unlock()
	e.now = time.Since(t.born)
	return c, nil
}

// enter returns the address's host, locked and with one user more.
func (t *Transport) enter(addr string, secure bool) *host {
	i := 0
	if secure {
		i = 1
	}
	for {
		t.mu.RLock()
		h := t.hosts[i][addr]
		t.mu.RUnlock()
		if h == nil {
			t.mu.Lock()
			if h = t.hosts[i][addr]; h == nil {
				h = &host{t: t, addr: addr, secure: secure}
				t.hosts[i][addr] = h
			}
			t.mu.Unlock()
		}
		h.mu.Lock()
		if !h.gone {
			h.users++
			return h
		}
		h.mu.Unlock()
	}
}

// trust is how long a connection may have been unused for a request that can be
// sent again to go out without a look whether it is still there: that would be
// a fifth of the system calls of a request, and in so short a time there is
// next to never anything to see. It is about what an event loop under load
// takes to come to what it would see. An answer without a body is no proof that
// none follows, so after one there is always a look.
const trust = time.Millisecond

// take returns the connection that was used last, or nil. again says that the
// request can be sent again; now is since t.born. mu is held.
func (h *host) take(again bool, now time.Duration) *conn {
	n := len(h.idle)
	if n == 0 {
		return nil
	}
	c := h.idle[n-1]
	c.trusted = again && !c.bare && !h.odd.Load() && now-c.idleSince < trust
	h.idle[n-1] = nil
	h.idle = h.idle[:n-1]
	return c
}

// put ends the watch of a connection's request and keeps the connection for
// later, or closes it where it is not good. It is the last thing that a request
// does with it: from here on it is another's.
func (h *host) put(c *conn, good bool) {
	if c.idleSince = c.answered; c.idleSince == 0 {
		c.idleSince = time.Since(h.t.born)
	}
	h.mu.Lock()
	good = c.unwatch() && good
	h.users--
	h.busy--
	keep := good && !h.gone && len(h.idle) < h.t.o.MaxIdlePerHost && c.epoch == h.t.epoch.Load()
	if keep {
		h.idle = append(h.idle, c)
	}
	h.arm()
	h.mu.Unlock()
	switch {
	case !good:
		c.cut()
	case !keep:
		_ = c.nc.Close() // nothing is lost with it
	}
}

// leave ends a use without a connection to keep.
func (h *host) leave() {
	h.mu.Lock()
	h.users--
	h.arm()
	h.mu.Unlock()
}

// arm sees to it that idle connections are closed in time, and that an address
// that is not used any more is forgotten. mu is held.
func (h *host) arm() {
	if h.armed || h.gone {
		return
	}
	h.armed = true
	if h.reaper == nil {
		h.reaper = time.AfterFunc(h.t.o.IdleTimeout, h.reap)
		return
	}
	h.reaper.Reset(h.t.o.IdleTimeout)
}

func (h *host) reap() { h.expire(time.Since(h.t.born) - h.t.o.IdleTimeout) }

// expire closes what has been idle since that time of the transport's, or
// before.
func (h *host) expire(since time.Duration) {
	h.mu.Lock()
	n := 0
	for n < len(h.idle) && h.idle[n].idleSince <= since {
		n++
	}
	old := slices.Clone(h.idle[:n])
	h.idle = slices.Delete(h.idle, 0, n)
	switch {
	case len(h.idle) > 0:
		h.armed = true
		h.reaper.Reset(max(h.idle[0].idleSince-since, time.Millisecond))
	case h.users > 0:
		h.armed = false // the next to leave arms it
	default:
		h.gone, h.armed = true, false
		if h.reaper != nil {
			h.reaper.Stop()
		}
	}
	gone := h.gone
	h.mu.Unlock()
	if gone {
		h.forget()
	}
	for _, c := range old {
		_ = c.nc.Close() // nothing is lost with it
	}
}

func (h *host) forget() {
	i := 0
	if h.secure {
		i = 1
	}
	h.t.mu.Lock()
	if h.t.hosts[i][h.addr] == h {
		delete(h.t.hosts[i], h.addr)
		h.t.past += h.reused // nobody begins here any more
	}
	h.t.mu.Unlock()
}

// dial makes a connection.
func (h *host) dial(ctx context.Context, by time.Time, trace *httptrace.ClientTrace) (*conn, error) {
	until := time.Now().Add(h.t.o.ConnectTimeout)
	if !by.IsZero() && by.Before(until) {
		until = by
	}
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	epoch := h.t.epoch.Load()
	if trace != nil && trace.ConnectStart != nil {
		trace.ConnectStart("tcp", h.addr)
	}
	nc, err := h.t.o.Dial(ctx, "tcp", h.addr)
	if trace != nil && trace.ConnectDone != nil {
		trace.ConnectDone("tcp", h.addr, err)
	}
	if err != nil {
		return nil, &ConnectError{Addr: h.addr, Err: err}
	}
	c := newConn(h, nc, epoch)
	if !h.secure {
		return c, nil
	}
	conf := h.t.o.TLS
	if conf.ServerName == "" {
		conf = conf.Clone()
		conf.ServerName = h.addr
		if name, _, err := net.SplitHostPort(h.addr); err == nil {
			conf.ServerName = name
		}
	}
	if trace != nil && trace.TLSHandshakeStart != nil {
		trace.TLSHandshakeStart()
	}
	tc := tls.Client(&dryConn{Conn: nc, c: c}, conf)
	err = tc.HandshakeContext(ctx)
	state := tc.ConnectionState()
	if trace != nil && trace.TLSHandshakeDone != nil {
		trace.TLSHandshakeDone(state, err)
	}
	if err != nil {
		_ = nc.Close() // the handshake's error is the one that matters
		e := &ConnectError{Addr: h.addr, Err: err}
		e.TLS = !e.Timeout() && ctx.Err() == nil
		if ctx.Err() != nil && !e.Timeout() {
			e.Err = ctx.Err()
		}
		return nil, e
	}
	switch state.NegotiatedProtocol {
	case "", "http/1.1":
	default:
		h.http2.Store(true)
		_ = tc.Close()
		return nil, errHTTP2
	}
	c.nc, c.tls = tc, &state
	return c, nil
}

// watch adds a connection to those that are swept, if any are, for a request
// with that context. h.mu is held.
func (c *conn) watch(ctx context.Context) {
	h := c.h
	if h.t.o.Sweep <= 0 {
		return
	}
	c.ctx, c.watched = ctx, true
	c.next, c.prev = h.active, nil
	if h.active != nil {
		h.active.prev = c
	}
	h.active = c
	switch {
	case h.sweeping:
		return
	case h.sweeper == nil:
		h.sweeper = time.AfterFunc(h.t.o.Sweep, h.sweep)
	default:
		h.sweeper.Reset(h.t.o.Sweep)
	}
	h.sweeping = true
}

// unwatch takes it out again and reports whether it was left alone. h.mu is held.
func (c *conn) unwatch() bool {
	if c.watched {
		if c.prev != nil {
			c.prev.next = c.next
		} else {
			c.h.active = c.next
		}
		if c.next != nil {
			c.next.prev = c.prev
		}
		c.next, c.prev, c.ctx, c.watched = nil, nil, nil, false
	}
	return !c.swept
}

// sweep cuts the connections whose requests have been canceled, or wait for
// their header for too long.
func (h *host) sweep() {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := int64(time.Since(h.t.born))
	for c := h.active; c != nil; c = c.next {
		if !c.swept && (c.ctx.Err() != nil || c.strike(now)) {
			c.swept = true
			c.cut()
		}
	}
	if h.sweeping = h.active != nil; h.sweeping {
		h.sweeper.Reset(h.t.o.Sweep)
	}
}
