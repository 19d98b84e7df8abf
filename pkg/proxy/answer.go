package proxy

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/pkg/adaptive"
	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
	"github.com/proconsul/proconsul/pkg/wire"
)

// How long the beginning of an answer is held back. An answer that is complete
// by then costs one write, and an instance that dies before then costs the
// client nothing; what takes longer is let out at once and streams.
const (
	holdKnown   = 50 * time.Millisecond // a declared length that fits the buffer
	holdUnknown = 2 * time.Millisecond  // everything else
)

// How much is held back. Answers of a larger declared length get a larger
// buffer while there are any: a client that takes its answer slowly holds one,
// and then others stream as if they were larger still.
const (
	holdSmall = 32 << 10
	holdLarge = 256 << 10
	maxLarge  = 32 // per upstream
)

// larges are an upstream's large buffers.
type larges struct {
	used atomic.Int32
	pool sync.Pool // of *[holdLarge]byte
}

// take returns a buffer, or nil where as many are in use as may be.
func (l *larges) take() *[holdLarge]byte {
	if l.used.Add(1) > maxLarge {
		l.used.Add(-1)
		return nil
	}
	if b, ok := l.pool.Get().(*[holdLarge]byte); ok {
		return b
	}
	return new([holdLarge]byte)
}

func (l *larges) put(b *[holdLarge]byte) {
	l.used.Add(-1)
	l.pool.Put(b)
}

// relay moves one answer's body to the client through a buffer that is used
// again. While the beginning is held back a timer may let it out, in a
// goroutine of its own: mu and state decide which of the two writes.
type relay struct {
	small [holdSmall]byte
	large *[holdLarge]byte // nil: none is needed, or to be had
	buf   []byte           // of small or large
	timer *time.Timer      // runs fire; made once per relay

	mu    sync.Mutex
	state relayState
	f     *flight
	resp  *http.Response
	n     int   // bytes held back in buf
	err   error // of the write to the client
	ran   bool  // fire has come and gone

	trailer []string // names that were announced
	panic   any      // of fire, raised again where the server can see it
}

type relayState uint8

const (
	relayIdle    relayState = iota // nobody's: fire does nothing
	relayHolding                   // the header is not written
	relayOpen                      // it is
)

func newRelay() any {
	c := &relay{}
	c.buf = c.small[:]
	c.timer = time.AfterFunc(time.Hour, c.fire)
	c.timer.Stop()
	return c
}

// deliver passes an answer on to the client and settles the attempt. It
// returns an error only while the client has seen nothing of the answer; where
// it has seen a part that cannot be completed it panics with
// http.ErrAbortHandler.
func (f *flight) deliver(resp *http.Response) error {
	if f.upgrade != "" && resp.StatusCode == http.StatusSwitchingProtocols {
		f.leave(adaptive.Irrelevant)
		return f.switchProtocols(resp)
	}
	if slices.Contains(f.s.statuses, resp.StatusCode) {
		retry, noBudget := f.mayRetry(f.replayable)
		if retry {
			_ = resp.Body.Close() // the answer is not used
			f.report(resp.StatusCode, "", "", true, false)
			f.settle(balancer.ServerError)
			return &brokenError{err: errors.New(resp.Status), retried: true}
		}
		f.report(resp.StatusCode, "", "", false, noBudget)
	} else {
		f.report(resp.StatusCode, "", "", false, false)
	}
	if resp.StatusCode < 500 {
		f.leave(adaptive.Answered)
	} else {
		f.leave(adaptive.Irrelevant) // failures come fast
	}
	if f.x != nil && f.x.FirstByte == 0 {
		f.x.FirstByte = max(f.began.Add(f.latency).Sub(f.x.Start), 1)
	}
	err := f.relay(resp)
	result := balancer.Success
	if resp.StatusCode >= 500 || breaker.CallFailed(f.r, resp) {
		result = balancer.ServerError
	}
	if err == nil {
		f.settle(result)
		return nil
	}
	return f.undelivered(resp, err, result)
}

// undelivered settles an attempt whose answer could not be passed on to its
// end.
func (f *flight) undelivered(resp *http.Response, err error, result balancer.Result) error {
	var client *clientError
	var broken *brokenError
	switch {
	case errors.As(err, &client) || f.r.Context().Err() != nil:
		if result == balancer.Success {
			result = balancer.Canceled
		}
		f.settle(result)
		if f.overdue() {
			f.abort(problem.New(problem.UpstreamTimeout, "", err))
		}
		f.abort(problem.New(problem.ClientCanceled, "", err))
	case errors.As(err, &broken):
		retry, noBudget := f.mayRetry(f.s.reset && f.replayable)
		f.broke(resp.StatusCode, retry, noBudget)
		f.settle(balancer.Reset)
		broken.retried = retry
		if retry {
			return broken
		}
		f.answer(f.classify(err))
		return nil
	default:
		f.broke(resp.StatusCode, false, false)
		f.settle(balancer.Reset)
		f.abort(problem.New(problem.UpstreamReset, "", err))
	}
	return nil
}

// abort ends a request whose answer has begun and cannot be finished.
func (f *flight) abort(p *problem.Error) {
	if f.x != nil {
		f.x.RecordProblem(p)
	}
	panic(http.ErrAbortHandler)
}

// relay writes the answer to the client. Its error is a *brokenError where
// nothing was written, a *clientError where the client cannot be written to,
// or the instance's.
func (f *flight) relay(resp *http.Response) error {
	defer resp.Body.Close()
	if f.r.Method == http.MethodHead || resp.ContentLength == 0 && len(resp.Trailer) == 0 ||
		resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified {
		f.writeHeader(resp, -1, nil)
		return nil
	}
	events := eventStream(f.lines)
	if b, ok := resp.Body.(interface{ All() []byte }); ok && !events {
		if all := b.All(); int64(len(all)) == resp.ContentLength {
			f.writeHeader(resp, resp.ContentLength, nil)
			if _, err := f.w.Write(all); err != nil {
				return &clientError{err}
			}
			return nil
		}
	}
	c := f.up.relays.Get().(*relay)
	c.f, c.resp, c.n, c.err, c.panic, c.ran, c.state = f, resp, 0, nil, nil, false, relayHolding
	c.trailer = trailerNames(resp.Trailer, f.lines)
	if n := resp.ContentLength; n > holdSmall && n <= holdLarge {
		if c.large = f.up.larges.take(); c.large != nil {
			c.buf = c.large[:]
		}
	}
	defer c.close()
	if !events {
		return c.run()
	}
	f.held = true // who ends the stream may be late, and close the body of another
	var ended atomic.Bool
	st := f.up.streams.add(f.pick.Member(), f.s.Drain, func() {
		ended.Store(true)
		_ = resp.Body.Close() // ends the read that is under way
	})
	defer st.remove()
	err := c.run()
	if err != nil && ended.Load() {
		return nil // the events have ended as far as the client is concerned, and it will come back for more
	}
	return err
}

func eventStream(lines []wire.Line) bool {
	kind, _ := wire.Find(lines, "Content-Type")
	return strings.HasPrefix(kind, "text/event-stream")
}

func (c *relay) run() error {
	wait := holdUnknown
	if n := c.resp.ContentLength; n > 0 && n <= int64(len(c.buf)) {
		wait = holdKnown
	}
	c.timer.Reset(wait) // from here on fire may use everything but Body and Trailer of resp
	if more, err := c.hold(); err != nil || !more {
		return err
	}
	return c.stream()
}

// close ends the relay's use. It goes back to its pool unless its timer may
// still be about to run.
func (c *relay) close() {
	stopped := c.timer.Stop()
	c.mu.Lock()
	up := c.f.up
	c.state, c.f, c.resp = relayIdle, nil, nil
	stopped = stopped || c.ran
	c.mu.Unlock()
	if c.large != nil {
		up.larges.put(c.large) // fire does not touch it any more
		c.large, c.buf = nil, c.small[:]
	}
	if stopped {
		up.relays.Put(c)
	}
}

// hold reads the beginning of the answer and lets it out when it is complete,
// fills the buffer or has been held for long enough. It reports whether there
// is more to come.
func (c *relay) hold() (more bool, err error) {
	for read, holding := 0, true; holding; {
		n, rerr := c.resp.Body.Read(c.buf[read:])
		read += n
		if holding, more, err = c.take(read, n, rerr); err != nil {
			return false, err
		}
	}
	return more, nil
}

// take decides about what has been read: the last n of read bytes, and how
// the read ended.
func (c *relay) take(read, n int, rerr error) (holding, more bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.panic != nil {
		panic(c.panic)
	}
	if c.state == relayOpen { // the timer was faster
		if c.err == nil && n > 0 {
			c.err = c.write(c.buf[read-n:read], rerr == nil)
		}
		switch {
		case c.err != nil:
			return false, false, c.err
		case rerr == io.EOF:
			c.trailers()
			return false, false, nil
		}
		return false, true, rerr
	}
	c.n = read
	switch {
	case rerr == io.EOF:
		return false, false, c.complete()
	case rerr != nil:
		c.state = relayIdle
		return false, false, &brokenError{err: rerr}
	case read == len(c.buf):
		return false, true, c.release()
	}
	return true, true, nil
}

// fire lets out what has been held back for long enough.
func (c *relay) fire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() {
		c.ran = true
		if v := recover(); v != nil { // a middleware's; here it would end the process
			c.panic = v
		}
	}()
	if c.state == relayHolding {
		c.err = c.release()
	}
}

// release writes the header and what is held back. mu is held.
func (c *relay) release() error {
	c.state = relayOpen
	c.f.writeHeader(c.resp, c.resp.ContentLength, c.trailer)
	return c.write(c.buf[:c.n], c.n == 0 || c.resp.ContentLength != int64(c.n))
}

// complete writes an answer that is all in the buffer. Its length is known
// now, which spares the client the chunks. mu is held.
func (c *relay) complete() error {
	if len(c.resp.Trailer) > 0 {
		c.trailer = trailerNames(c.resp.Trailer, c.f.lines)
		if err := c.release(); err != nil {
			return err
		}
		c.trailers()
		return nil
	}
	c.state = relayOpen
	c.f.writeHeader(c.resp, int64(c.n), nil)
	if c.n == 0 {
		return nil
	}
	return c.write(c.buf[:c.n], false)
}

// stream moves the rest of the body. What does not fill the buffer is flushed,
// since the instance has paused and the client should have what there is.
func (c *relay) stream() error {
	for {
		n, err := c.resp.Body.Read(c.buf)
		if n > 0 {
			if werr := c.write(c.buf[:n], err == nil && (n < len(c.buf) || c.resp.ContentLength < 0)); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			c.trailers()
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *relay) write(p []byte, flush bool) error {
	w := c.f.w
	if len(p) > 0 {
		if _, err := w.Write(p); err != nil {
			return &clientError{err}
		}
	}
	if flush {
		if err := http.NewResponseController(w).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return &clientError{err}
		}
	}
	return nil
}

// trailers passes on the trailers that came with the body's end, announced or
// not.
func (c *relay) trailers() {
	if len(c.resp.Trailer) == 0 {
		return
	}
	h := c.f.w.Header()
	for name, values := range c.resp.Trailer {
		if trailerAllowed(name) {
			h[http.TrailerPrefix+name] = values
		}
	}
	// Without a flush a short answer would get a Content-Length, and with it
	// no place for trailers.
	_ = c.write(nil, true)
}

// passOn returns the answer's lines as the client gets them, beside what the
// gateway has set itself: its request id and its limits stay.
func (f *flight) passOn(resp *http.Response) []wire.Line {
	h := f.w.Header()
	lines := slices.DeleteFunc(middleware.StripLines(f.lines), func(l wire.Line) bool {
		_, set := h[l.Name]
		return set && !listed(l.Name)
	})
	return append(lines, f.up.marks.viaFor(resp.ProtoMajor, resp.ProtoMinor))
}

// writeHeader passes the answer's header on. length is the body's, or negative
// where it is not known or there is no body to come; trailer are the names of
// the trailers that are announced.
func (f *flight) writeHeader(resp *http.Response, length int64, trailer []string) {
	lines := f.passOn(resp)
	h := f.w.Header()
	if _, ok := wire.Find(lines, "Content-Type"); !ok && h["Content-Type"] == nil {
		h["Content-Type"] = nil // net/http would guess one
	}
	_, counted := wire.Find(lines, "Content-Length")
	switch {
	case len(trailer) > 0:
		lines = uncounted(lines) // only chunks have room for trailers
		delete(h, "Content-Length")
		h["Trailer"] = trailer
	case length >= 0 && !counted && h["Content-Length"] == nil:
		lines = append(lines, wire.Line{Name: "Content-Length", Value: strconv.FormatInt(length, 10)})
	}
	f.part()
	middleware.WriteFields(f.w, resp.StatusCode, lines)
	if f.lines = nil; !f.held {
		f.call.answer.Lines = lines // which may have grown
	}
}

func uncounted(lines []wire.Line) []wire.Line {
	return slices.DeleteFunc(lines, func(l wire.Line) bool { return l.Name == "Content-Length" })
}

// trailerNames returns the names to announce. One that the header has as well
// is not: net/http would send the header's value again as a trailer.
func trailerNames(trailer http.Header, header []wire.Line) []string {
	if len(trailer) == 0 {
		return nil
	}
	names := make([]string, 0, len(trailer))
	for name := range trailer {
		if _, twice := wire.Find(header, name); !twice && trailerAllowed(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// listed reports whether a field's lines add up rather than replace each
// other.
func listed(name string) bool {
	switch name {
	case "Vary", "Set-Cookie", "Link", "Via", "Server-Timing", "Warning", "Cache-Status", "Proxy-Status":
		return true
	}
	return false
}
