package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/proconsul/proconsul/pkg/cohort"
	"github.com/proconsul/proconsul/pkg/rawio"
)

const (
	readBufferSize  = 8 << 10
	writeBufferSize = 32 << 10
	maxYields       = 64 // to the end of an upload; a few microseconds
)

// conn is a connection to an instance. Only the goroutine that reads the
// answer uses it, but for nc.Write, which is the upload's while there is one,
// cut, and what is atomic.
type conn struct {
	t     *Transport
	h     *host
	nc    net.Conn
	below net.Conn // beneath TLS, or nc: closing it never blocks
	raw   syscall.RawConn
	tls   *tls.ConnectionState
	epoch uint32

	reused    bool
	trusted   bool          // not looked at before the request is written
	bare      bool          // the last answer had no body
	idleSince time.Duration // since t.born
	answered  time.Duration // likewise, when the answer came; 0: something was read after that, or nobody looked

	// The answer.
	pooled *[readBufferSize]byte
	buf    []byte // pooled[:], or a larger one for a large header
	r, w   int    // what is read and not used yet
	last   string // the header of the answer before, if it is remembered
	head   head   // of the answer, or of last

	// What onReady does, and the outcome. It is one method value, since a
	// closure for each call would be an allocation.
	onReady func(fd uintptr) bool
	mode    mode
	out     []byte
	n       int
	err     error

	// The write of a request that is written as a whole. The rest is write's to
	// guard.
	write  cohort.Write
	writes *[writeBufferSize]byte // what it is in; nil: given back

	// The request's context.
	ctx      context.Context
	stop     func() bool
	cancel   func()
	deadline bool      // of the context, on the socket
	until    time.Time // what is set on the socket; zero: nothing

	// The header's time: on the socket, or else for the sweeper, in
	// nanoseconds since t.born.
	bound bool
	by    atomic.Int64 // 0: none; struck: it is over

	watched    bool // the rest is guarded by h.mu
	swept      bool
	prev, next *conn

	// The request's upload, if it has one, and how many of it and the answer
	// have ended: the last one gives the connection back.
	upload *upload
	ends   atomic.Int32
	clean  bool
	linger *time.Timer
}

// mode is what onReady does next.
type mode uint8

const (
	modeProbe mode = iota // look whether there is something to read
	modeCheck             // likewise, and go on to modeWrite if not
	modeWrite
	modeRead
)

func newConn(h *host, nc net.Conn, epoch uint32) *conn {
	c := &conn{t: h.t, h: h, nc: nc, below: nc, epoch: epoch, mode: modeRead}
	c.onReady, c.cancel = c.ready, c.cut
	if c.raw = rawio.Of(nc); c.raw != nil {
		c.write.Init(c.raw, c.wrote)
	}
	return c
}

// cut makes everything on the connection fail. It does not block and may be
// called by anyone, also after the connection was closed.
func (c *conn) cut() { _ = c.below.Close() }

// struck is the time of a header that has not come by it.
const struck = -1

// sweepable is how many sweeps away a header's time has to be to be left to
// them.
const sweepable = 20

// begin prepares the connection for a request at that time since t.born. Where
// there is sweeping it is watched already.
func (c *conn) begin(ctx context.Context, by time.Time, now time.Duration) {
	c.pooled = c.t.readBuffers.Get().(*[readBufferSize]byte)
	c.buf, c.r, c.w = c.pooled[:], 0, 0
	c.upload, c.clean = nil, false
	c.ends.Store(0)
	c.bound, c.answered = false, 0
	if c.t.o.Sweep <= 0 {
		if !by.IsZero() {
			c.bind(by)
		}
		if ctx.Done() == nil {
			return
		}
		c.ctx = ctx
		c.stop = context.AfterFunc(ctx, c.cancel)
		return
	}
	// Without a look at the context's Done, which would make its channel.
	d, ok := ctx.Deadline()
	if ok {
		c.deadline = true
		_ = c.setDeadline(d) // fails only where the connection has, and that will show
	}
	switch {
	case by.IsZero() || ok && d.Before(by):
	case by.Sub(c.t.born)-now < sweepable*c.t.o.Sweep:
		c.bind(by)
	default:
		c.by.Store(int64(by.Sub(c.t.born)))
	}
}

func (c *conn) bind(by time.Time) {
	c.bound = true
	_ = c.setDeadline(by) // likewise
}

func (c *conn) setDeadline(t time.Time) error {
	c.until = t
	return c.below.SetDeadline(t)
}

// strike reports whether the header's time is over, and makes it known.
func (c *conn) strike(now int64) bool {
	by := c.by.Load()
	return by > 0 && by <= now && c.by.CompareAndSwap(by, struck)
}

// late reports whether an error comes from the time that was set for the
// header, or for the whole request.
func (c *conn) late(err error) bool {
	return c.by.Load() == struck || (c.bound || c.deadline) && isTimeout(err)
}

// arrived ends the header's time, and reports whether it was not over yet.
func (c *conn) arrived() bool {
	if c.by.Load() != 0 {
		return c.by.Swap(0) != struck
	}
	if !c.bound {
		return true
	}
	c.bound = false
	var d time.Time
	if c.deadline {
		d, _ = c.ctx.Deadline()
	}
	return c.setDeadline(d) == nil
}

// release ends what was set for the request, and reports whether the connection
// is still good as far as that is known without h.mu.
func (c *conn) release() bool {
	ok := true
	if c.stop != nil {
		ok = c.stop()
		c.stop, c.ctx = nil, nil
	}
	c.by.Store(0)
	if (c.deadline || c.bound) && ok {
		c.deadline, c.bound = false, false
		ok = c.setDeadline(time.Time{}) == nil
	}
	return ok
}

// finish is the end of the answer. clean says that it was complete and that
// the connection may serve again, as far as the answer is concerned.
func (c *conn) finish(clean bool) {
	if c.r < c.w {
		clean = false
		c.h.odd.Store(true)
	}
	c.t.readBuffers.Put(c.pooled)
	c.pooled, c.buf, c.r, c.w = nil, nil, 0, 0
	if c.upload == nil {
		c.clean = clean
		c.settle()
		return
	}
	u := c.upload
	if clean && u.told != nil && u.last.Load() {
		// Who follows the request hears that it is written before it has ended,
		// also from a goroutine that was about to say so.
		select {
		case <-u.told:
		case <-time.After(uploadGrace):
		}
	}
	// The answer may be quicker than the upload's goroutine, which has done its
	// work and only has to say so: the next request would miss the connection.
	for n := 0; clean && n < maxYields && u.last.Load() && c.ends.Load() == 0; n++ {
		runtime.Gosched()
	}
	switch {
	case !clean:
		c.cut()
		u.abandon()
	case c.ends.Load() == 0:
		// What is still to be sent is given a moment, so as to spare the
		// connection, and then cut off: nobody wants it any more.
		c.linger = time.AfterFunc(uploadGrace, func() {
			c.cut()
			u.abandon()
		})
	}
	c.clean = clean
	c.end()
}

// end is called by the answer and by the upload when they have ended.
func (c *conn) end() {
	if c.ends.Add(1) < 2 {
		return
	}
	if c.linger != nil {
		if !c.linger.Stop() {
			c.clean = false
		}
		c.linger = nil
	}
	c.clean = c.clean && c.upload.complete
	c.upload = nil
	c.settle()
}

// settle gives the connection back or closes it.
func (c *conn) settle() { c.h.put(c, c.release() && c.clean) }

// alive reports whether a connection that was idle may be used: the instance
// has neither closed it nor said anything on it.
func (c *conn) alive() bool {
	if c.raw == nil {
		return true
	}
	if c.tls != nil {
		var b [1]byte
		c.mode = modeProbe
		_, err := c.nc.Read(b[:])
		c.mode = modeRead
		return err == rawio.ErrDry
	}
	c.mode = modeProbe
	if err := c.raw.Read(c.onReady); err != nil {
		return false
	}
	return c.err == rawio.ErrDry
}

// send writes a request that is all in p and waits for the answer's first
// bytes. It fails with errStale before anything is written. A failure to write
// is told only if there is no answer either: an instance may refuse a request
// before it has read all of it. wrote is called in between, unless it is nil.
func (c *conn) send(p []byte, wrote func(error)) error {
	if c.raw == nil || c.tls != nil || wrote != nil {
		if c.reused && !c.alive() {
			return errStale
		}
		_, werr := c.nc.Write(p)
		if wrote != nil {
			wrote(werr)
		}
		if err := c.fill(); err != nil {
			if werr != nil && err != errHeaderSize {
				return werr
			}
			return err
		}
		return nil
	}
	// Writing in the callback, before it waits, spares the read that would
	// only find that there is nothing yet.
	c.mode, c.out, c.n, c.err = modeWrite, p, 0, nil
	if c.reused && !c.trusted {
		c.mode = modeCheck
	}
	err := c.raw.Read(c.onReady)
	c.out = nil
	if c.err == errStale {
		return errStale
	}
	if c.reused && c.write.Withdraw() {
		return errStale // it has ended or spoken before anything was written
	}
	rest, werr := c.write.Settle()
	if len(rest) > 0 || werr != nil {
		// It was woken in order to do this. Where nothing more can be written
		// an answer may have come all the same.
		_ = c.setDeadline(c.until) // fails only where the connection has, and that will show
		if werr == nil {
			_, werr = c.nc.Write(rest)
		}
		if c.n == 0 && isTimeout(err) {
			err = c.fill()
		}
	}
	switch {
	case err == nil:
		err = c.err
	case werr != nil:
		err = werr
	}
	c.w += c.n
	return err
}

// wrote is called when a write has ended, by whoever did it. What could not be
// done without waiting, the goroutine that waits for the answer is woken for.
func (c *conn) wrote(whole bool) {
	if !whole {
		_ = c.below.SetReadDeadline(time.Unix(1, 0)) // fails only where the connection has
		return
	}
	c.giveBack()
}

// giveBack returns the buffer of a request that is written, or will not be.
func (c *conn) giveBack() {
	if c.writes != nil {
		c.t.writeBuffers.Put(c.writes)
		c.writes = nil
	}
}

// ready is what the poller calls when the connection may be readable, and once
// at first.
func (c *conn) ready(fd uintptr) bool {
	switch c.mode {
	case modeProbe, modeCheck:
		var b [1]byte
		n, err := rawio.Read(fd, b[:])
		if n > 0 {
			c.h.odd.Store(true)
		}
		if err != rawio.ErrDry {
			c.err = errStale
			return true
		}
		if c.mode == modeProbe {
			c.err = rawio.ErrDry
			return true
		}
		c.mode = modeWrite
		fallthrough
	case modeWrite:
		// The poller was reset before the callback was first called, so the
		// answer's arrival cannot be missed.
		c.mode = modeRead
		c.t.o.Writes.Do(&c.write, c.out)
		return false
	}
	n, err := rawio.Read(fd, c.buf[c.w:])
	if err == rawio.ErrDry {
		return false
	}
	c.n, c.err = n, err
	return true
}

var errHeaderSize = errors.New("no room for more of the header")

// fill reads more. The buffer must have room.
func (c *conn) fill() error {
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
	if c.w == len(c.buf) {
		if c.r == 0 {
			return errHeaderSize
		}
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	}
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

// grow makes room for a large header of up to limit bytes. It reports whether
// it could.
func (c *conn) grow(limit int) bool {
	if c.r > 0 || c.w < len(c.buf) {
		return true // fill finds room
	}
	if len(c.buf) > limit {
		return false
	}
	bigger := make([]byte, min(2*len(c.buf), limit+1+readBufferSize))
	copy(bigger, c.buf[:c.w])
	c.buf = bigger
	return true
}

// dryConn is what TLS reads from and writes to. It can read without waiting.
type dryConn struct {
	net.Conn
	c *conn
}

// Read implements net.Conn.
func (d *dryConn) Read(p []byte) (int, error) {
	if d.c.mode != modeProbe || d.c.tls == nil {
		return d.Conn.Read(p)
	}
	n, err := 0, error(nil)
	if rerr := d.c.raw.Read(func(fd uintptr) bool {
		n, err = rawio.Read(fd, p)
		return true
	}); rerr != nil {
		return 0, rerr
	}
	return n, err
}

// maxRemembered is how long a header may be to be kept, together with what was
// made of it, for the next one: an instance's answers are often alike.
const maxRemembered = 2 << 10

// readHead takes an answer's header from the connection, up to and with the
// empty line, parses it into c.head and returns its length. It fails as soon as
// it can be seen that it is none.
func (c *conn) readHead(limit int) (int, error) {
	scan, line := 0, 0
	for {
		b := c.buf[c.r:c.w]
		if err := checkStart(b); err != nil {
			return 0, err
		}
		for {
			i := bytes.IndexByte(b[scan:], '\n')
			if i < 0 {
				scan = len(b)
				break
			}
			end := scan + i
			if end == line || b[end-1] != '\r' {
				return 0, malformed("line feed without carriage return in the header")
			}
			scan = end + 1
			if end-1 == line {
				if scan > limit {
					return 0, headerTooLarge(limit)
				}
				c.r += scan
				return scan, c.parse(b[:scan])
			}
			line = scan
		}
		if len(b) > limit || !c.grow(limit) {
			return 0, headerTooLarge(limit)
		}
		if err := c.fill(); err != nil {
			if err == io.EOF && len(b) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
	}
}

// parse makes c.head of a whole header. One that is the same as the one before
// is parsed already.
func (c *conn) parse(b []byte) error {
	if string(b) == c.last {
		return nil
	}
	text := string(b)
	c.last = "" // until it is known to be good
	if err := parseHead(text, &c.head); err != nil {
		return err
	}
	if len(text) <= maxRemembered {
		c.last = text
	}
	return nil
}

func headerTooLarge(limit int) error {
	return malformed("response headers exceeded %d bytes", limit)
}

const protocol = "HTTP/1."

// checkStart reports whether what has come so far can be the beginning of an
// answer.
func checkStart(b []byte) error {
	n := min(len(b), len(protocol))
	if string(b[:n]) != protocol[:n] {
		return malformed("it does not begin with %s", protocol)
	}
	return nil
}
