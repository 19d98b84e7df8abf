package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/pkg/middleware"
)

// replayLimit is how much of a request body is kept while it streams, so that
// the request can be sent again.
const replayLimit = 64 << 10

// uploadGrace is how long the rest of an upload may take to come in when the
// instance that it was for has gone.
const uploadGrace = 500 * time.Millisecond

var (
	errNotReplayable = errors.New("more of the request body was sent than is kept for a retry")
	errBodyClosed    = errors.New("the request body was closed")
	errInterrupted   = errors.New("the connection ended while the client paused its upload")
)

// replay is a client's request body that may be read more than once: each
// attempt reads through a view of its own. While all that was read fits into
// replayLimit it is kept; beyond that only the first view can go on. Nothing
// is read before a view is, so a client that waits for "100 Continue" is asked
// for its body only when an instance wants it.
//
// Views may be read by a transport's goroutine that lives on after its attempt
// has failed: reads take turns, and what a dead view had read the next finds in
// the buffer.
type replay struct {
	req    *http.Request // the client's
	first  view
	expect bool // the client waits for 100 before it sends

	// What the client has announced of trailers is taken before the body is
	// read: from then on its map may change at any moment, since a dead view's
	// read of the body may reach its end.
	trailers  bool     // there may be some
	announced []string // of them, those that are passed on

	withhold func(trailer http.Header) // RouteOptions.Withhold

	read   atomic.Int64          // bytes read from the client
	lost   atomic.Bool           // buf no longer holds all of them
	failed atomic.Pointer[error] // how reading from the client failed
	over   atomic.Bool           // nothing may be read any more
	whole  atomic.Bool           // all of it has been read from the client
	wanted atomic.Bool           // an instance has answered 100

	mu  sync.Mutex // held while the client's body is read
	buf []byte
	eof bool

	current   atomic.Pointer[view]
	reading   atomic.Bool // a read of the client's body is under way
	interrupt func()      // makes it return

	interrupted atomic.Bool // it has; the client is not to blame for what follows

	endMu sync.Mutex // held while interrupt runs: never after stop
	ended bool
	timer *time.Timer // runs interrupt
}

func newReplay(r *http.Request, interrupt func()) *replay {
	b := &replay{req: r, expect: r.Header.Get("Expect") != "", interrupt: interrupt}
	b.announce()
	return b
}

// newTaken returns a replay of a body that has been read.
func newTaken(r *http.Request, body []byte) *replay {
	b := &replay{req: r, buf: slices.Clone(body), eof: true, interrupt: func() {}}
	b.read.Store(int64(len(body)))
	b.whole.Store(true)
	b.announce()
	return b
}

// announce takes the names of the client's trailers.
func (b *replay) announce() {
	b.trailers = b.req.ContentLength < 0 || b.req.Trailer != nil
	for name := range b.req.Trailer {
		if trailerAllowed(name) {
			b.announced = append(b.announced, name)
		}
	}
}

// trailer returns a map for an attempt's trailers; nil: there are none. The
// announced names are in it from the beginning; a chunked body may bring
// others, which HTTP/1.1 instances get as well.
func (b *replay) trailer() http.Header {
	if !b.trailers {
		return nil
	}
	h := make(http.Header, len(b.announced))
	for _, name := range b.announced {
		h[name] = nil
	}
	if b.withhold != nil {
		b.withhold(h)
	}
	return h
}

// view returns a reader of the body from its beginning. trailer receives the
// client's trailers when the body ends; it may be nil.
func (b *replay) view(trailer http.Header) io.ReadCloser {
	v := &b.first
	if v.b != nil {
		v = new(view)
	}
	v.b, v.trailer, v.began = b, trailer, time.Now()
	b.current.Store(v)
	return v
}

// rewindable reports whether a new view would deliver the whole body.
func (b *replay) rewindable() bool {
	return !b.lost.Load() && !b.interrupted.Load() && b.failed.Load() == nil
}

// failure returns how reading from the client failed, or nil.
func (b *replay) failure() error {
	if p := b.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// stop ends all reading, since a server's body must not be read after its
// handler has returned.
func (b *replay) stop() {
	b.over.Store(true)
	b.endMu.Lock()
	defer b.endMu.Unlock()
	b.ended = true
	if b.timer != nil {
		b.timer.Stop()
	}
}

// sentOn is httptrace's GotConn hook: it ties the upload to the connection.
func (b *replay) sentOn(info httptrace.GotConnInfo) {
	c := info.Conn
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if c, ok := c.(*instanceConn); ok {
		c.upload.Store(b.current.Load())
	}
}

// giveUp frees a dead view's read of the client's body, if it lasts. net/http
// waits for that read before it tells how the attempt ended, and a client that
// is silent because it expects an answer would wait for ever. After it the body
// cannot be read any more, so what is on its way is given a moment to come in.
func (b *replay) giveUp() {
	if !b.reading.Load() {
		return
	}
	b.endMu.Lock()
	defer b.endMu.Unlock()
	if b.ended || b.timer != nil {
		return
	}
	b.timer = time.AfterFunc(uploadGrace, func() {
		b.endMu.Lock()
		defer b.endMu.Unlock()
		if !b.ended && b.reading.Load() {
			b.interrupted.Store(true)
			b.interrupt()
		}
	})
}

// view is one attempt's reader of a replay.
type view struct {
	b       *replay
	off     int64
	began   time.Time
	closed  atomic.Bool
	trailer http.Header
}

// Close ends the view and leaves the client's body alone, but for a read that
// is under way and does not end.
func (v *view) Close() error {
	if !v.closed.Swap(true) {
		v.b.giveUp()
	}
	return nil
}

// Read implements io.Reader.
func (v *view) Read(p []byte) (int, error) {
	b := v.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if v.closed.Load() || b.over.Load() {
		return 0, errBodyClosed
	}
	if b.expect && !b.wanted.Load() && time.Since(v.began) < continueWait {
		// The instance has given its final answer without asking for the body,
		// and net/http would send it all the same to keep the connection. To
		// the client that would be a 100 that nobody gave.
		return 0, errBodyClosed
	}
	if total := b.read.Load(); v.off < total {
		if b.lost.Load() {
			return 0, errNotReplayable
		}
		n := copy(p, b.buf[v.off:])
		v.off += int64(n)
		return n, nil
	}
	if b.eof {
		v.end()
		return 0, io.EOF
	}
	if err := b.failure(); err != nil {
		return 0, err
	}
	b.reading.Store(true)
	n, err := b.req.Body.Read(p)
	b.reading.Store(false)
	b.keep(p[:n])
	v.off += int64(n)
	switch {
	case err == io.EOF:
		b.eof = true
		b.whole.Store(true)
		v.end()
	case err != nil && b.interrupted.Load():
		b.lost.Store(true)
	case err != nil:
		b.failed.Store(&err)
	}
	return n, err
}

func (b *replay) keep(p []byte) {
	if len(p) == 0 {
		return
	}
	b.read.Add(int64(len(p)))
	switch {
	case b.lost.Load():
	case b.req.ContentLength > replayLimit || len(b.buf)+len(p) > replayLimit:
		b.lost.Store(true)
		b.buf = nil
	default:
		if b.buf == nil && b.req.ContentLength > 0 {
			b.buf = make([]byte, 0, b.req.ContentLength)
		}
		b.buf = append(b.buf, p...)
	}
}

// end hands the client's trailers over. They must be there before the
// transport sees the body's end, which is when it writes them.
func (v *view) end() {
	if v.trailer == nil {
		return
	}
	for name, values := range v.b.req.Trailer {
		if values == nil || !trailerAllowed(name) {
			delete(v.trailer, name)
			continue
		}
		v.trailer[name] = values
	}
	if v.b.withhold != nil {
		v.b.withhold(v.trailer)
	}
}

// trailerAllowed reports whether a field may be a trailer: none that frame the
// message, concern the connection or are the gateway's to set, since software
// behind may merge trailers into the header.
func trailerAllowed(name string) bool {
	switch name {
	case "Content-Length", "Content-Encoding", "Content-Type", "Content-Range", "Host", "Authorization", "Cookie", "Set-Cookie",
		"Via", "Forwarded", "X-Real-Ip", "X-Request-Id", "X-Proconsul-Reason":
		return false
	}
	return !middleware.HopByHop(name) && !hasForwardedPrefix(name) && !middleware.Identity(name)
}
