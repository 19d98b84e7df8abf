package transport

import (
	"context"
	"io"
	"net/http"
	"sync"

	"github.com/proconsul/proconsul/pkg/wire"
)

type bodyKind uint8

const (
	bodyNone bodyKind = iota
	bodyLength
	bodyChunked
	bodyClose // until the connection ends
)

// body is an answer's body. One goroutine may read while another closes, which
// ends the read.
type body struct {
	c    *conn // until the end
	ctx  context.Context
	kind bodyKind
	keep bool // the connection may serve again after the end
	// chunks frames a chunked body. Of one with a length it only counts what is
	// left.
	chunks wire.Chunked

	mu      sync.Mutex
	reading bool
	closed  bool
	err     error // of all later reads
}

// Read implements io.Reader. It returns io.EOF together with the last bytes
// where it can.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	switch {
	case b.closed:
		b.mu.Unlock()
		return 0, http.ErrBodyReadAfterClose
	case b.err != nil:
		b.mu.Unlock()
		return 0, b.err
	}
	b.reading = true
	b.c.answered = 0
	b.mu.Unlock()

	n, err := b.read(p)
	if err != nil && err != io.EOF {
		err = b.cause(err)
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	b.reading = false
	switch {
	case b.closed: // the connection has been cut
		b.end(http.ErrBodyReadAfterClose)
	case err != nil:
		b.end(err)
	}
	return n, err
}

// end gives the connection up. mu is held, or nobody else knows the body.
func (b *body) end(err error) {
	b.err = err
	c := b.c
	b.c = nil
	c.finish(err == io.EOF && b.keep)
}

// Close implements io.Closer. An answer that is all there, though not read,
// does not cost the connection; Close never waits for more.
func (b *body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	switch {
	case b.c == nil:
	case b.reading:
		b.c.cut() // the reader does the rest
	default:
		b.end(b.drain())
	}
	return nil
}

// All returns the whole of a body that is all there and of which nothing was
// read, else nil. It is good until Close, which does not cost the connection.
func (b *body) All() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c == nil || b.kind != bodyLength {
		return nil
	}
	all := b.c.buf[b.c.r:b.c.w]
	if int64(len(all)) < b.chunks.Left {
		return nil
	}
	return all[:b.chunks.Left]
}

// drain skips what is buffered and returns io.EOF if that is the rest.
func (b *body) drain() error {
	c := b.c
	if !b.keep {
		return http.ErrBodyReadAfterClose
	}
	if b.kind == bodyLength && int64(c.w-c.r) >= b.chunks.Left {
		c.r += int(b.chunks.Left)
		return io.EOF
	}
	if b.kind != bodyChunked {
		return http.ErrBodyReadAfterClose
	}
	for {
		done, err := b.step(false)
		switch {
		case err != nil:
			return err
		case done:
			return io.EOF
		case b.chunks.Left == 0 || c.r == c.w:
			return http.ErrBodyReadAfterClose
		}
		n := min(int64(c.w-c.r), b.chunks.Left)
		c.r += int(n)
		b.chunks.Left -= n
	}
}

// cause says what an error of reading means.
func (b *body) cause(err error) error {
	switch {
	case b.ctx.Err() != nil:
		return context.Cause(b.ctx)
	case b.c.late(err):
		return context.DeadlineExceeded // a moment before the context's own timer
	}
	if u := b.c.upload; u != nil {
		if failed := u.failure(); failed != nil {
			return failed
		}
	}
	return err
}

func (b *body) read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	switch b.kind {
	case bodyLength:
		n, err := b.take(p)
		if b.chunks.Left == 0 {
			return n, io.EOF
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return n, err
	case bodyChunked:
		return b.readChunked(p)
	}
	c := b.c
	if c.r == c.w {
		return c.nc.Read(p)
	}
	n := copy(p, c.buf[c.r:c.w])
	c.r += n
	return n, nil
}

// take reads at most what is left, from the buffer or the connection.
func (b *body) take(p []byte) (int, error) {
	c := b.c
	if int64(len(p)) > b.chunks.Left {
		p = p[:b.chunks.Left]
	}
	var n int
	var err error
	if c.r == c.w && (len(p) >= len(c.buf) || b.kind == bodyLength && int64(len(p)) == b.chunks.Left) {
		n, err = c.nc.Read(p) // straight to where it belongs
	} else {
		if c.r == c.w {
			err = c.fill()
		}
		n = copy(p, c.buf[c.r:c.w])
		c.r += n
	}
	b.chunks.Left -= int64(n)
	return n, err
}

// readChunked returns what there is rather than wait for more.
func (b *body) readChunked(p []byte) (n int, err error) {
	for {
		done, err := b.step(n == 0)
		switch {
		case err == io.EOF:
			return n, io.ErrUnexpectedEOF
		case err != nil:
			return n, err
		case done:
			return n, io.EOF
		case b.chunks.Left == 0 || n == len(p) || n > 0 && b.c.r == b.c.w:
			return n, nil
		}
		m, err := b.take(p[n:])
		n += m
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return n, err
		}
	}
}

// step moves on to data, or to the end, of which it reports whether it is
// reached. Unless it may wait, it stops where it would have to.
func (b *body) step(wait bool) (done bool, err error) {
	for c := b.c; ; {
		n, err := b.chunks.Frame(c.buf[c.r:c.w])
		c.r += n
		switch {
		case err != nil:
			return false, malformed("%v", err)
		case b.chunks.Done(), b.chunks.Left > 0, !wait:
			return b.chunks.Done(), nil
		case !c.grow(b.chunks.Longest()):
			return false, malformed("line too long in the chunked body")
		}
		if err := c.fill(); err != nil {
			return false, err
		}
	}
}
