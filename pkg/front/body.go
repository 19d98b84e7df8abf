package front

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/pkg/wire"
)

// drainLimit is how much of a body that the handler has not read is read for
// the sake of the connection.
const drainLimit = 256 << 10

var errTooMuchLeft = errors.New("too much of the body is left")

// body is a request's body. Any goroutine may read it while the handler runs.
type body struct {
	x *exchange

	mu      sync.Mutex // held while the connection is read
	chunked bool
	left    int64 // bytes to come of the body, if not chunked
	chunks  wire.Chunked
	eof     atomic.Bool // set with mu held
	closed  bool
	err     error
}

// unchunk makes one of a known length of a chunked body that is all there, as a
// recipient may (RFC 9112, section 7.1): it costs whoever it goes to a fraction.
// It reports whether it has; one with trailers stays as it is, and so does one
// without data, which would pass for none.
func (b *body) unchunk() bool {
	c := b.x.c
	encoded := c.buf[c.r:c.w]
	size, end, ok := b.unframe(encoded, nil)
	if !ok {
		return false
	}
	_, _, _ = b.unframe(encoded, encoded) // no piece moves beyond where it was
	// What follows may be the next request, so the data goes next to it.
	c.r += end - size
	copy(encoded[end-size:end], encoded[:size])
	b.left = int64(size)
	return true
}

// unframe goes through a chunked body that is all in p, and returns how long
// its data are and where it ends. The data go to to, unless that is nil.
func (b *body) unframe(p, to []byte) (size, end int, ok bool) {
	var trailer http.Header
	d := wire.Chunked{MaxTrailers: b.x.c.s.o.MaxHeader, Trailer: &trailer}
	for {
		n, err := d.Frame(p[end:])
		end += n
		switch {
		case err != nil: // for whoever reads it to find out
			return 0, 0, false
		case d.Done():
			return size, end, trailer == nil && size > 0
		case d.Left == 0 || d.Left > int64(len(p)-end):
			return 0, 0, false
		}
		left := int(d.Left)
		if to != nil {
			copy(to[size:], p[end:end+left])
		}
		size, end, d.Left = size+left, end+left, 0
	}
}

// more reports whether anything is to come. The body must not have been given
// to anybody.
func (b *body) more() bool { return b.chunked || b.left > 0 }

// Read implements io.Reader. It returns io.EOF together with the last bytes
// where it can.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.read(p)
}

// Close implements io.Closer. What is left is dealt with after the answer.
func (b *body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}

// read is Read. mu is held.
func (b *body) read(p []byte) (int, error) {
	switch {
	case b.closed:
		return 0, http.ErrBodyReadAfterClose
	case b.err != nil:
		return 0, b.err
	case b.eof.Load():
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	}
	if err := b.x.sendContinue(); err != nil {
		return 0, b.fail(err)
	}
	n, err := b.take(p)
	if err == io.EOF {
		b.eof.Store(true)
		b.x.settled()
		return n, io.EOF
	}
	if err != nil {
		return n, b.fail(err)
	}
	return n, nil
}

// fail keeps the error. A client that cannot be read has left, as far as the
// handler is concerned; one that sends nonsense, or nothing, has not.
func (b *body) fail(err error) error {
	b.err = err
	var bad wire.Malformed
	if !errors.As(err, &bad) && !isTimeout(err) {
		b.x.kept.ctx.cancel()
	}
	return err
}

// take reads, and returns io.EOF with or after the last byte.
func (b *body) take(p []byte) (int, error) {
	c := b.x.c
	if b.chunked {
		return b.takeChunks(p)
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := c.takeData(p)
	b.left -= int64(n)
	switch {
	case b.left == 0:
		return n, io.EOF
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// takeChunks returns what there is rather than wait for more.
func (b *body) takeChunks(p []byte) (n int, err error) {
	c, d := b.x.c, &b.chunks
	for {
		m, err := d.Frame(c.buf[c.r:c.w])
		c.r += m
		switch {
		case err != nil:
			return n, err
		case d.Done():
			return n, io.EOF
		case d.Left == 0: // the next line is not all there
			if n > 0 {
				return n, nil
			}
			if err := c.fill(); err != nil {
				return n, unexpected(err)
			}
			continue
		case n == len(p), n > 0 && c.r == c.w:
			return n, nil
		}
		q := p[n:]
		if int64(len(q)) > d.Left {
			q = q[:d.Left]
		}
		m, err = c.takeData(q)
		n += m
		d.Left -= int64(m)
		if err != nil {
			return n, unexpected(err)
		}
	}
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// takeData reads at most len(p) bytes, from the buffer or the connection.
func (c *conn) takeData(p []byte) (n int, err error) {
	if c.r == c.w {
		if len(p) >= readBufferSize {
			return c.nc.Read(p) // straight to where it belongs
		}
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n = copy(p, c.buf[c.r:c.w])
	c.r += n
	return n, nil
}

// drain reads the rest, if it is little and comes in time, and reports whether
// the body is at its end. Unless it may wait it takes only what is there
// already. Somebody else who reads at this moment is not waited for.
func (b *body) drain(wait bool) bool {
	if !b.mu.TryLock() {
		return false
	}
	defer b.mu.Unlock()
	c := b.x.c
	switch {
	case b.eof.Load():
		return true
	case b.err != nil:
		return false
	case !b.chunked && b.left > drainLimit:
		return false
	}
	if !b.chunked && int64(c.w-c.r) >= b.left {
		c.r += int(b.left)
		b.left = 0
		b.eof.Store(true)
		return true
	}
	if !wait {
		return false
	}
	b.x.deadlines.Lock()
	c.setDeadline(time.Now().Add(c.s.o.ReadHeader))
	b.x.deadlines.Unlock()
	buf := c.s.copies.Get().(*[copyBufferSize]byte)
	defer c.s.copies.Put(buf)
	for total := 0; ; {
		n, err := b.take(buf[:])
		total += n
		switch {
		case err == io.EOF:
			b.eof.Store(true)
			return true
		case err == nil && total > drainLimit:
			err = errTooMuchLeft
		}
		if err != nil {
			b.err = err
			return false
		}
	}
}

// end takes the body away from the handler, also in the middle of a read,
// and reports whether it is at its end.
func (b *body) end() bool {
	if !b.mu.TryLock() {
		// Whoever reads is made to return; the connection is lost by it.
		b.x.deadlines.Lock()
		b.x.finishing = true
		_ = b.x.c.below.SetReadDeadline(time.Unix(1, 0)) // if that fails reading does
		b.x.deadlines.Unlock()
		b.mu.Lock()
		b.err = http.ErrBodyReadAfterClose
	}
	defer b.mu.Unlock()
	b.closed = true
	return b.eof.Load()
}
