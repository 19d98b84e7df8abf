// Package front is the HTTP/1.x connection loop in front of any http.Handler,
// beside net/http's server, of which it costs a fraction: one goroutine per
// connection that reads, calls the handler and writes, one read and one write
// for a small exchange, buffers that only a connection with a request on it
// holds.
//
// It parses strictly. A request whose end may be seen in two ways (bare line
// feeds, folded lines, two Content-Length fields, Content-Length beside
// Transfer-Encoding, ...) is refused and its connection closed; see Refusal.
// HTTP/2, by ALPN or by its preface, is handed to a net/http server with
// nothing lost. Nothing else ever is.
//
// # What a handler may keep
//
// A handler gets an ordinary *http.Request, which it may keep like one of
// net/http's, with its header, its values and all its strings. It may not use
// the ResponseWriter, the map that its Header returns, or the request's Body
// once it has returned: they fail then, and in builds with the race detector
// the writer panics.
//
// A handler that is called often can save its server the making of a request
// and of a header map every time by calling ReleaseRequest on the
// ResponseWriter:
//
//	w.(interface{ ReleaseRequest() }).ReleaseRequest()
//
// With that it says that nobody will use the Request, its URL, the map
// Request.Header or the ResponseWriter once the handler has returned; the
// request's context, strings and lists of values stay good. In builds with the
// race detector what is so released is not used again but spoiled: whoever kept
// the request finds an empty one, and who kept the map the field
// Released-By-The-Handler and nothing else.
package front

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/pkg/cohort"
	"github.com/proconsul/proconsul/pkg/rawio"
)

const (
	defaultMaxHeader  = 64 << 10
	defaultReadHeader = 10 * time.Second
	defaultIdle       = 75 * time.Second
	defaultSweep      = 50 * time.Millisecond

	// lateAccept is how long a server that shuts down still takes connections
	// that clients have made already, maxLateRounds how often it goes on if
	// there were any.
	lateAccept    = 5 * time.Millisecond
	maxLateRounds = 20

	// lateWait is how long a connection is waited for when the server shuts
	// down if it is new, or its last answer did not say that it would end: a
	// request may be on the way.
	lateWait = time.Second
)

// Options are what a Server is made with.
type Options struct {
	Handler http.Handler

	// TLS makes of every connection one of TLS; "h2" is offered where HTTP2
	// is there. Nil: connections are taken as they come.
	TLS *tls.Config

	MaxHeader  int           // bytes of request line and header, and of trailers; 0: 64 KiB
	ReadHeader time.Duration // for a request's header, and for a TLS handshake; 0: 10 s
	Idle       time.Duration // for a connection without a request, and up to an eighth more; 0: 75 s

	// Sweep is how often requests under way are looked at for clients that
	// have left; the context of such a request is canceled. What is quicker
	// than that costs nothing. 0: 50 ms.
	Sweep time.Duration

	// HTTP2 is given the connections that speak it. Serve serves it, Shutdown
	// and Close end it; its own HTTP/1 is not used. Nil: HTTP/2 is refused.
	HTTP2 *http.Server

	// Refuse answers a request that cannot be served, and keeps account of it.
	// Of the request it is told what is known: perhaps no more than where it
	// came from. The connection ends with the answer. Nil: a plain text.
	Refuse func(http.ResponseWriter, *http.Request, *Refusal)

	// NoTLS is told of each connection that did not come to speak TLS. It may be
	// nil.
	NoTLS func()

	// Writes is where the ends of answers meet those of other connections. Nil:
	// each is written at once.
	Writes *cohort.Writes

	// Log is told of panics of handlers, at Error, and of what clients and
	// the network do to connections, at Debug. Nil: nothing is logged.
	Log *slog.Logger
}

// Refusal is why a request cannot be served.
type Refusal struct {
	Status int
	Detail string // for the client; holds nothing of what it sent but field names
}

// Error implements error.
func (r *Refusal) Error() string { return r.Detail }

// Server serves HTTP/1.1 and 1.0. It is safe for concurrent use. Make one with
// New.
type Server struct {
	o        Options
	draining atomic.Bool
	ending   chan struct{}  // closed with it
	serving  sync.WaitGroup // Serve calls, and what they started
	handoff  *handoff       // nil: HTTP/2 is refused
	date     atomic.Pointer[date]
	counters counters

	scratch sync.Pool // of *scratch
	writes  sync.Pool // of *[writeBufferSize]byte
	copies  sync.Pool // of *[copyBufferSize]byte

	mu        sync.Mutex
	listeners map[net.Listener]bool
	conns     map[*conn]struct{}
	closed    bool
	gone      chan struct{} // a connection has ended while draining
	watched   []*conn       // what sweep looks at
	sweeper   *time.Timer
	sweeping  bool
	born      time.Time
	lately    atomic.Int64 // since born; see roughly
}

type counters struct {
	accepted, requests, refused, http2 atomic.Int64
}

// Stats are a Server's counters since it was made, but for Open, which is of
// now.
type Stats struct {
	Accepted int64 // connections
	Open     int64 // of them, without those that were handed over or hijacked
	Requests int64 // that were given to the handler
	Refused  int64 // that were not, each with its connection
	HTTP2    int64 // connections that were handed over
}

// New returns a server. It starts nothing.
func New(o Options) *Server {
	if o.MaxHeader <= 0 {
		o.MaxHeader = defaultMaxHeader
	}
	if o.ReadHeader <= 0 {
		o.ReadHeader = defaultReadHeader
	}
	if o.Idle <= 0 {
		o.Idle = defaultIdle
	}
	if o.Sweep <= 0 {
		o.Sweep = defaultSweep
	}
	if o.Refuse == nil {
		o.Refuse = plainRefusal
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.TLS != nil {
		o.TLS = o.TLS.Clone()
		o.TLS.NextProtos = []string{"http/1.1"}
		if o.HTTP2 != nil {
			o.TLS.NextProtos = []string{"h2", "http/1.1"}
			o.HTTP2.TLSConfig = o.TLS // by which net/http knows that it is to speak it
		}
	}
	s := &Server{o: o, born: time.Now(), listeners: map[net.Listener]bool{}, conns: map[*conn]struct{}{}, ending: make(chan struct{}), gone: make(chan struct{}, 1)}
	s.scratch.New = func() any { return newScratch() }
	s.writes.New = func() any { return new([writeBufferSize]byte) }
	s.copies.New = func() any { return new([copyBufferSize]byte) }
	if o.HTTP2 != nil {
		s.handoff = newHandoff()
	}
	return s
}

func plainRefusal(w http.ResponseWriter, _ *http.Request, r *Refusal) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(r.Status)
	_, _ = w.Write([]byte(r.Detail + "\n")) // the client may have gone
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	open := len(s.conns)
	s.mu.Unlock()
	c := &s.counters
	return Stats{Accepted: c.accepted.Load(), Open: int64(open), Requests: c.requests.Load(), Refused: c.refused.Load(), HTTP2: c.http2.Load()}
}

// Serve accepts connections until the server is shut down or closed, and then
// returns http.ErrServerClosed. It closes l. Connections of a tls.Listener
// are taken as such: the handshake is made within ReadHeader, and those that
// agree on "h2" are handed over.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.closed || s.draining.Load() {
		s.mu.Unlock()
		return http.ErrServerClosed
	}
	s.listeners[l] = true
	s.serving.Add(1)
	if s.handoff != nil && !s.handoff.started {
		s.handoff.started = true
		s.serving.Add(1)
		go func() {
			defer s.serving.Done()
			_ = s.o.HTTP2.Serve(s.handoff) // ends with the hand-over
		}()
	}
	s.mu.Unlock()
	defer s.serving.Done()
	defer s.unlisten(l)
	var delay time.Duration
	late, rounds := 0, 0
	for {
		nc, err := l.Accept()
		if err != nil {
			if s.draining.Load() {
				if late > 0 && rounds < maxLateRounds && isTimeout(err) && extend(l) {
					late, rounds = 0, rounds+1
					continue
				}
				return http.ErrServerClosed
			}
			if temporary(err) {
				// No file descriptors, most likely: some will be free again.
				delay = min(max(2*delay, 5*time.Millisecond), time.Second)
				s.o.Log.Warn("cannot accept", "err", err, "again_in", delay.String())
				s.pause(delay)
				continue
			}
			return err
		}
		delay = 0
		late++
		s.counters.accepted.Add(1)
		if s.o.TLS != nil {
			nc = tls.Server(rawio.Conn(nc, s.o.Writes.Yield), s.o.TLS)
		}
		c := newConn(s, nc)
		if !s.register(c) {
			_ = nc.Close() // nothing has come on it
			return http.ErrServerClosed
		}
		go c.serve()
	}
}

// extend has a listener take what waits in the kernel's queue, since that was
// made in good faith, and reports whether it can.
func extend(l net.Listener) bool {
	d, ok := l.(interface{ SetDeadline(time.Time) error })
	return ok && d.SetDeadline(time.Now().Add(lateAccept)) == nil
}

func (s *Server) unlisten(l net.Listener) {
	s.mu.Lock()
	delete(s.listeners, l)
	s.mu.Unlock()
}

// temporary reports whether accepting may work again later.
func temporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// pause waits, or until the server is told to end.
func (s *Server) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.ending:
	}
}

// drain tells everything that is on its way to end. mu is held.
func (s *Server) drain() {
	if !s.draining.Swap(true) {
		close(s.ending)
	}
}

func (s *Server) register(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *Server) forget(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	if s.draining.Load() {
		select {
		case s.gone <- struct{}{}:
		default:
		}
	}
}

// Shutdown stops accepting and waits for the requests under way, whose answers
// say that their connections end with them. Connections without a request are
// closed, but only once it is certain that none has arrived on them. It
// returns the context's error if that ends first; hijacked connections are not
// waited for.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.drain()
	for l := range s.listeners {
		if !extend(l) {
			_ = l.Close() // Serve sees it
		}
	}
	all := s.snapshot()
	s.mu.Unlock()
	for _, c := range all {
		c.wake()
	}
	if s.handoff != nil {
		s.handoff.close()
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.serving.Wait()
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	var second error
	if s.o.HTTP2 != nil {
		second = s.o.HTTP2.Shutdown(ctx)
	}
	for {
		s.mu.Lock()
		open := len(s.conns)
		s.mu.Unlock()
		if open == 0 {
			return second
		}
		select {
		case <-s.gone:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close ends everything at once: listeners, connections and the contexts of
// requests under way.
func (s *Server) Close() error {
	s.mu.Lock()
	s.drain()
	s.closed = true
	for l := range s.listeners {
		_ = l.Close() // Serve sees it
	}
	all := s.snapshot()
	s.mu.Unlock()
	for _, c := range all {
		c.cut()
		c.abandon()
	}
	if s.handoff != nil {
		s.handoff.close()
	}
	if s.o.HTTP2 != nil {
		return s.o.HTTP2.Close()
	}
	return nil
}

// snapshot returns the connections. mu is held.
func (s *Server) snapshot() []*conn {
	all := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	return all
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// date is the time of a second as the Date field has it.
type date struct {
	unix int64
	text string
}

func (s *Server) now(t time.Time) string {
	unix := t.Unix()
	d := s.date.Load()
	if d == nil || d.unix != unix {
		d = &date{unix, t.UTC().Format(http.TimeFormat)}
		s.date.Store(d)
	}
	return d.text
}
