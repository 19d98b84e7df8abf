package front

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/proconsul/proconsul/pkg/cohort"
	"github.com/proconsul/proconsul/pkg/rawio"
)

const (
	readBufferSize  = 4 << 10
	writeBufferSize = 4 << 10
	copyBufferSize  = 32 << 10
	glanceSize      = 256

	// lingerTime and lingerBytes are what a client is given to read an answer
	// to which it has not listened yet: closing a connection on which
	// something is unread takes back what was written last.
	lingerTime  = 500 * time.Millisecond // without a byte from it
	lingerTotal = 5 * time.Second
	lingerBytes = 16 << 20

	// finalWait is how long a connection without a request is read for one
	// when the server shuts down, where it cannot be looked at without waiting.
	finalWait = 2 * time.Millisecond
)

// conn is a connection with a client. The goroutine of serve uses it, but for
// what is said to be others' too.
type conn struct {
	s      *Server
	outer  net.Conn        // as it was accepted: what is closed, and hijacked
	nc     net.Conn        // what is read and written
	below  net.Conn        // what carries it: nc, or what is beneath TLS
	raw    syscall.RawConn // below's; nil: it has none
	tls    *tls.ConnectionState
	remote string
	born   time.Time

	// What has been read and not used: buf[r:w]. Only a connection that has
	// something holds a scratch.
	sc      *scratch
	buf     []byte // sc.read[:], or a larger one for a large header
	r, w    int
	scanned int    // of buf[r:w], without an end of the header
	line    int    // where the last line of it begins
	drained bool   // there was nothing more to read a moment ago
	dry     bool   // and not even an end
	glance  []byte // to wait with for TLS, which cannot wait without reading

	// onReady is one method value, since a closure for each call would be an
	// allocation.
	onReady func(fd uintptr) bool
	verdict verdict
	err     error // of reading
	pending *exchange
	refusal *Refusal
	served  bool // a request has come
	post    bool // the last one was a POST, after which an empty line may follow
	inHead  bool // a part of a header has come, and its deadline is set
	graced  bool // the server shuts down, and a request is waited for a moment longer
	final   bool // there is one last look for a request, since the server shuts down
	linger  bool // close with care
	doubled bool // it was hijacked, by way of another descriptor

	// The last answer, where it may not be written yet, and what it is in, which is
	// its write's to guard; nil: given back.
	last cohort.Write
	sent *[writeBufferSize]byte

	parked    time.Time   // when the last request had ended
	deadline  time.Time   // for reading
	deadlined atomic.Bool // a handler has set another
	writeDead atomic.Bool // or one for writing

	// phase counts beginnings and ends of requests: it is odd while one is
	// under way. The sweeper reads it.
	phase    atomic.Uint64
	watched  atomic.Bool          // it is in the sweeper's list
	over     atomic.Bool          // it has ended, or is another's
	greeting atomic.Bool          // TLS is being agreed on
	seen     uint64               // the sweeper's: the phase it saw last
	rounds   uint                 // and how often
	current  atomic.Pointer[kept] // of the request under way
}

// scratch is what a connection needs while it has a request.
type scratch struct {
	read   [readBufferSize]byte
	write  *[writeBufferSize]byte // nil: it has gone with an answer
	header http.Header            // for answers
	spare  http.Header            // for requests that release theirs; nil: the last one did not

	exchange *exchange // likewise, and as new
	tail     [256]byte
	vector   [3][]byte
	chunks   net.Buffers
}

func newScratch() *scratch { return &scratch{header: make(http.Header, 8)} }

// verdict is why reading has stopped.
type verdict uint8

const (
	ended   verdict = iota // nothing more will be served
	needs                  // more has to be read
	outside                // a request is to be served where its body can be read
	refused                // likewise, one that is to be refused
	http2                  // the client speaks HTTP/2
)

func newConn(s *Server, outer net.Conn) *conn {
	c := &conn{s: s, outer: outer, nc: outer, born: time.Now()}
	c.onReady = c.ready
	return c
}

// serve is the connection's goroutine.
func (c *conn) serve() {
	defer c.end()
	defer func() {
		if p := recover(); p != nil {
			c.s.o.Log.Error("panic in a connection", "peer", c.remote, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	if a := c.outer.RemoteAddr(); a != nil {
		c.remote = a.String()
	}
	c.nc = rawio.Unwrapped(c.outer)
	c.below = c.nc
	if t, ok := c.nc.(*tls.Conn); ok {
		c.below = rawio.Unwrapped(t.NetConn())
		c.greeting.Store(true)
		if !c.handshake(t) {
			return
		}
	}
	if c.raw = rawio.Of(c.below); c.raw != nil {
		c.last.Init(c.raw, c.wrote)
	}
	c.greeting.Store(false)
	c.setDeadline(c.born.Add(c.s.o.ReadHeader))
	if c.s.draining.Load() {
		c.setDeadline(earlier(c.deadline, time.Now().Add(lateWait)))
	}
	for c.read() {
		switch c.verdict {
		case outside:
			x := c.pending
			c.pending = nil
			if !c.handle(x, false) {
				return
			}
		case refused:
			c.refuse(c.refusal)
			return
		case http2:
			c.handOver(c.buf[c.r:c.w])
			return
		default:
			if !c.late() {
				return
			}
		}
	}
}

// end closes the connection, unless it is another's by now.
func (c *conn) end() {
	c.settle() // where that fails the connection has
	if !c.over.Load() || c.doubled {
		if c.linger {
			c.sayGoodbye()
		}
		_ = c.outer.Close() // nothing is lost with it
	}
	c.over.Store(true)
	c.giveBack()
	c.s.forget(c)
}

// sayGoodbye ends what we say and waits a moment for the client to have heard
// it.
func (c *conn) sayGoodbye() {
	if rawio.CloseWrite(c.nc) != nil {
		return
	}
	end := time.Now().Add(lingerTotal)
	buf := c.s.copies.Get().(*[copyBufferSize]byte)
	defer c.s.copies.Put(buf)
	for n := 0; n < lingerBytes; {
		_ = c.nc.SetReadDeadline(earlier(end, time.Now().Add(lingerTime))) // if that fails reading does
		m, err := c.nc.Read(buf[:])
		if err != nil {
			return
		}
		n += m
	}
}

// handshake makes TLS of the connection and reports whether it is to be served
// here.
func (c *conn) handshake(t *tls.Conn) bool {
	_ = c.below.SetDeadline(c.born.Add(c.s.o.ReadHeader)) // if that fails the handshake does
	if err := t.Handshake(); err != nil {
		var plain tls.RecordHeaderError
		if errors.As(err, &plain) && plain.Conn != nil && looksLikeHTTP(plain.RecordHeader) {
			_, _ = io.WriteString(plain.Conn, "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nThis port speaks HTTPS.\n") // a courtesy
		}
		if c.s.o.NoTLS != nil {
			c.s.o.NoTLS()
		}
		c.s.o.Log.Debug("TLS handshake failed", "peer", c.remote, "err", err)
		return false
	}
	_ = c.below.SetWriteDeadline(time.Time{}) // likewise
	state := t.ConnectionState()
	c.tls = &state
	switch state.NegotiatedProtocol {
	case "h2":
		_ = c.below.SetReadDeadline(time.Time{}) // likewise
		c.handOver(nil)
		return false
	case "", "http/1.1":
		return true
	}
	// An issuer's challenge ends with the handshake: behind it no client was
	// asked for a certificate.
	return false
}

func looksLikeHTTP(b [5]byte) bool {
	switch string(b[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "PATCH", "DELET", "OPTIO":
		return true
	}
	return false
}

// handOver gives the connection to the server that speaks HTTP/2, with what
// has been read of it.
func (c *conn) handOver(rest []byte) {
	if c.s.handoff == nil {
		return
	}
	nc := c.outer
	if len(rest) > 0 {
		nc = &replayed{Conn: c.outer, rest: bytes.Clone(rest)}
	}
	_ = c.nc.SetReadDeadline(time.Time{}) // if that fails reading does
	c.r, c.w = 0, 0
	c.over.Store(true)
	if c.s.handoff.give(nc) {
		c.s.counters.http2.Add(1)
		return
	}
	c.over.Store(false)
}

// read serves what it can and returns with a verdict. It reports whether
// there is one.
func (c *conn) read() bool {
	c.err = nil
	if c.tls == nil && c.raw != nil {
		// Requests that are all there are served within the callback, which
		// waits for the next ones afterwards: so the poller forgets no event
		// between two requests, and nobody has to ask whether there is more.
		c.verdict, c.drained = ended, false
		if err := c.raw.Read(c.onReady); err != nil {
			c.verdict, c.err = ended, err
		}
		return true
	}
	for {
		if v := c.advance(false); v != needs {
			c.verdict = v
			return true
		}
		c.park()
		if err := c.fill(); err != nil {
			c.verdict, c.err = ended, err
			return true
		}
	}
}

// ready is what the poller calls when the connection may be readable, and once
// at first.
func (c *conn) ready(fd uintptr) bool {
	for {
		if v := c.advance(true); v != needs {
			c.verdict = v
			return true
		}
		if c.drained && c.r < c.w && !c.dry {
			// In the middle of a header it is worth asking whether its sender
			// has left; after a request the sweeper asks.
			c.drained = false
		}
		if c.drained {
			c.drained = false
			if c.park() {
				return false
			}
			// The server shuts down: one look whether anything has come since.
		}
		c.room()
		want := len(c.buf) - c.w
		n, err := rawio.Read(fd, c.buf[c.w:])
		switch {
		case err == rawio.ErrDry && c.final && c.r == c.w:
			c.verdict, c.err = ended, err
			return true
		case err == rawio.ErrDry:
			c.drained, c.dry = true, true
			continue
		case err != nil:
			c.verdict, c.err = ended, err
			return true
		}
		c.w += n
		// A short read has taken all there was. What comes later is an event.
		c.drained, c.dry = n < want, false
	}
}

// room sees to it that something can be read.
func (c *conn) room() {
	if c.sc == nil {
		c.sc = c.s.scratch.Get().(*scratch)
		c.buf = c.sc.read[:]
	}
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
	if c.w < len(c.buf) {
		return
	}
	if c.r > 0 {
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
		return
	}
	bigger := make([]byte, min(2*len(c.buf), c.s.o.MaxHeader+readBufferSize))
	copy(bigger, c.buf)
	c.buf = bigger
}

// fill reads more, and waits for it.
func (c *conn) fill() error {
	if c.sc == nil && c.tls != nil {
		// TLS cannot wait without a buffer; a small one does until something
		// comes.
		if c.glance == nil {
			c.glance = make([]byte, glanceSize)
		}
		n, err := c.nc.Read(c.glance)
		if n == 0 {
			if err == nil {
				err = io.ErrNoProgress
			}
			return err
		}
		c.room()
		c.w = copy(c.buf, c.glance[:n])
		return nil
	}
	c.room()
	n, err := c.nc.Read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// writeLater has an answer written that is whole and in the scratch's buffer,
// now or in a moment: together with those of other connections, if there are
// any.
func (c *conn) writeLater(p []byte) {
	c.sent, c.sc.write = c.sc.write, nil
	c.s.o.Writes.Do(&c.last, p)
}

// wrote is called when that has ended, by whoever did it. For what could not be
// done without waiting the connection's own goroutine is woken.
func (c *conn) wrote(whole bool) {
	if !whole {
		_ = c.below.SetReadDeadline(time.Unix(1, 0)) // fails only where the connection has
		return
	}
	c.s.writes.Put(c.sent)
	c.sent = nil
}

// settle sees to it that the last answer is written, and reports whether it is,
// and whether the connection was woken for that.
func (c *conn) settle() (woken, ok bool) {
	rest, err := c.last.Settle()
	if len(rest) == 0 && err == nil {
		return false, true
	}
	c.setDeadline(c.deadline)
	if err == nil {
		_, err = c.nc.Write(rest)
	}
	c.s.writes.Put(c.sent)
	c.sent = nil
	return true, err == nil
}

// giveBack returns the buffers.
func (c *conn) giveBack() {
	if c.sc != nil {
		sc := c.sc
		c.sc, c.buf, c.r, c.w = nil, nil, 0, 0
		if len(sc.header) > 0 { // what panicked after a Hijack, or in a refusal, has left its fields
			sc.header = make(http.Header, 8)
		}
		c.s.scratch.Put(sc)
	}
}

// park prepares to wait for the client. It reports whether it may be waited
// for at all.
func (c *conn) park() bool {
	if c.r < c.w {
		if !c.inHead {
			c.inHead = true
			c.setDeadline(time.Now().Add(c.s.o.ReadHeader))
		}
		return true
	}
	c.giveBack()
	if !c.served {
		return true // the deadline of its first request is set
	}
	if !c.graced {
		c.parked = c.s.roughly()
		if c.deadlined.Load() || c.deadline.Before(c.parked.Add(c.s.o.Idle+2*c.s.o.Sweep)) {
			// Later than has to be, so that the next requests need not set it.
			c.setDeadline(time.Now().Add(c.s.o.Idle + c.s.o.Idle/8))
		}
		if !c.s.draining.Load() {
			return true
		}
	}
	now := time.Now()
	wait := now.Before(c.deadline)
	if !c.graced {
		wait = c.grace(now)
	}
	if !wait {
		c.lastLook(now)
	}
	return wait
}

func (c *conn) setDeadline(t time.Time) {
	c.deadline = t
	c.deadlined.Store(false)
	_ = c.below.SetReadDeadline(t) // fails only where the connection has, and that will show
}

// late decides what becomes of a connection that cannot be read for now, and
// reports whether it is to be read again.
func (c *conn) late() bool {
	if !isTimeout(c.err) {
		return false
	}
	if woken, ok := c.settle(); woken || !ok {
		return ok
	}
	now := time.Now()
	early := now.Before(c.deadline) // nobody is late: Shutdown has called
	switch {
	case early && (c.r < c.w || c.graced):
		c.setDeadline(c.deadline)
		return true
	case c.r < c.w:
		c.refuse(&Refusal{http.StatusRequestTimeout, "the request's header did not come in time"})
		return false
	case c.final || !c.s.draining.Load():
		return false
	case c.graced || !c.grace(now):
		c.lastLook(now)
	}
	return true
}

// grace waits a moment for a request when the server shuts down, since one is
// probably on its way, and reports whether it does.
func (c *conn) grace(now time.Time) bool {
	c.graced = true
	end := c.born.Add(lateWait)
	if c.served {
		end = c.parked.Add(lateWait + c.s.o.Sweep) // since that is roughly when
	}
	if !now.Before(end) {
		return false
	}
	c.setDeadline(end)
	return true
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// lastLook has what has come since be served, but nothing be waited for.
func (c *conn) lastLook(now time.Time) {
	c.final = true
	if c.tls == nil && c.raw != nil {
		c.setDeadline(now.Add(c.s.o.ReadHeader)) // it will not wait
		return
	}
	c.setDeadline(now.Add(finalWait)) // it cannot look without waiting
}

// wake has an idle connection look whether it should end. Anyone may call it.
func (c *conn) wake() {
	if c.phase.Load()%2 == 0 && !c.greeting.Load() {
		if below := c.carrier(); below != nil {
			_ = below.SetReadDeadline(time.Unix(1, 0)) // fails where the connection has ended
		}
	}
}

// carrier returns the connection that carries this one, for those who do not
// serve it.
func (c *conn) carrier() net.Conn {
	nc := rawio.Unwrapped(c.outer)
	if t, ok := nc.(*tls.Conn); ok {
		nc = rawio.Unwrapped(t.NetConn())
	}
	return nc
}

// cut makes everything on the connection fail. Anyone may call it. It does not
// close: that would wait for whoever reads.
func (c *conn) cut() {
	if c.over.Load() {
		return
	}
	nc := c.carrier()
	if raw := rawio.Of(nc); raw != nil {
		_ = raw.Control(shutFD) // fails where the connection has ended
		return
	}
	_ = nc.Close() // likewise
}

// abandon cancels the context of the request under way. Anyone may call it.
func (c *conn) abandon() {
	if k := c.current.Load(); k != nil {
		k.ctx.cancel()
	}
}

// advance serves the requests that are in the buffer and returns why it has
// stopped. inside says that the connection cannot be read for now.
func (c *conn) advance(inside bool) verdict {
	for {
		if c.pending == nil {
			if v := c.next(); v != outside {
				return v
			}
		}
		x := c.pending
		if inside && !x.contained() {
			return outside
		}
		c.pending = nil
		if !c.handle(x, inside) {
			return ended
		}
	}
}

// next takes a request's header from the buffer and makes it pending, for
// which it returns outside.
func (c *conn) next() verdict {
	if b := c.buf[c.r:c.w]; !c.served && len(b) > 0 && c.s.handoff != nil && c.tls == nil && string(b[:min(len(b), len(preface))]) == preface[:min(len(b), len(preface))] {
		if len(b) < len(preface) {
			return needs
		}
		return http2
	}
	head, v := c.head()
	if v != outside {
		return v
	}
	c.inHead, c.served = false, true
	x := c.newExchange()
	if c.refusal = x.parse(head); c.refusal != nil {
		return refused
	}
	c.post = x.req.Method == http.MethodPost
	c.pending = x
	return outside
}

// head takes a header, up to and with the empty line, for which it returns
// outside. It fails as soon as it can be seen that it is none.
func (c *conn) head() (string, verdict) {
	if c.scanned == 0 && c.post && c.w-c.r >= 2 && c.buf[c.r] == '\r' && c.buf[c.r+1] == '\n' {
		c.r += 2 // some clients send one line end too many (RFC 9112, section 2.2)
		c.post = false
	}
	if c.scanned == 0 && c.post && c.w-c.r == 1 && c.buf[c.r] == '\r' {
		return "", needs // the other half of it
	}
	b := c.buf[c.r:c.w]
	for {
		i := bytes.IndexByte(b[c.scanned:], '\n')
		if i < 0 {
			c.scanned = len(b)
			break
		}
		end := c.scanned + i
		if end == c.line || b[end-1] != '\r' {
			return c.bad(http.StatusBadRequest, "line feed without carriage return in the header")
		}
		if end-1 == c.line && end == 1 {
			return c.bad(http.StatusBadRequest, "empty line instead of a request")
		}
		if c.line == 0 && !plausible(b[:end]) {
			return c.bad(http.StatusBadRequest, "it does not begin like a request")
		}
		c.scanned = end + 1
		if c.scanned > c.s.o.MaxHeader {
			break
		}
		if end-1 == c.line {
			head := string(b[:c.scanned])
			c.r += c.scanned
			c.scanned, c.line = 0, 0
			return head, outside
		}
		c.line = c.scanned
	}
	if len(b) > c.s.o.MaxHeader {
		if c.line == 0 {
			return c.bad(http.StatusRequestURITooLong, "the request line is too long")
		}
		return c.bad(http.StatusRequestHeaderFieldsTooLarge, "the header is too large")
	}
	// What begins like this will not become a request.
	if c.line == 0 && len(b) > 0 && !plausible(b) {
		return c.bad(http.StatusBadRequest, "it does not begin like a request")
	}
	return "", needs
}

func (c *conn) bad(status int, detail string) (string, verdict) {
	c.scanned, c.line = 0, 0
	c.refusal = &Refusal{status, detail}
	return "", refused
}
