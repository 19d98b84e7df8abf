package transport

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"sync"
)

const (
	// maxChunkLine bounds a chunk's size and extensions, and maxExtension all
	// extensions of an answer: they carry nothing, and cost.
	maxChunkLine = 4 << 10
	maxExtension = 16 << 10
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
	resp *http.Response
	ctx  context.Context
	kind bodyKind
	keep bool  // the connection may serve again after the end
	left int64 // bytes to come of the body, or of the chunk

	phase      phase
	extensions int // bytes of chunk extensions so far
	trailers   int // bytes of trailers so far

	mu      sync.Mutex
	reading bool
	closed  bool
	err     error // of all later reads
}

// phase is what comes next in a chunked body.
type phase uint8

const (
	phaseSize phase = iota
	phaseData
	phaseDataEnd
	phaseTrailer
	phaseEnd
)

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

// Buffered returns how much of the body is there to be read without waiting.
// Where that is all, the next Read that has room for it returns io.EOF too.
func (b *body) Buffered() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c == nil || b.kind != bodyLength {
		return 0
	}
	return int(min(int64(b.c.w-b.c.r), b.left))
}

// drain skips what is buffered and returns io.EOF if that is the rest.
func (b *body) drain() error {
	c := b.c
	if !b.keep {
		return http.ErrBodyReadAfterClose
	}
	if b.kind == bodyLength && int64(c.w-c.r) >= b.left {
		c.r += int(b.left)
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
		case b.phase != phaseData || c.r == c.w:
			return http.ErrBodyReadAfterClose
		}
		n := min(int64(c.w-c.r), b.left)
		c.r += int(n)
		b.left -= n
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
		if b.left == 0 {
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
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	var n int
	var err error
	if c.r == c.w && (len(p) >= len(c.buf) || b.kind == bodyLength && int64(len(p)) == b.left) {
		n, err = c.nc.Read(p) // straight to where it belongs
	} else {
		if c.r == c.w {
			err = c.fill()
		}
		n = copy(p, c.buf[c.r:c.w])
		c.r += n
	}
	b.left -= int64(n)
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
		case b.phase != phaseData || n == len(p) || n > 0 && b.c.r == b.c.w:
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
	for {
		switch b.phase {
		case phaseData:
			if b.left > 0 {
				return false, nil
			}
			b.phase = phaseDataEnd
		case phaseDataEnd:
			if ok, err := b.need(2, wait); !ok {
				return false, err
			}
			c := b.c
			if c.buf[c.r] != '\r' || c.buf[c.r+1] != '\n' {
				return false, malformed("chunk does not end where it says")
			}
			c.r += 2
			b.phase = phaseSize
		case phaseSize:
			line, ok, err := b.line(maxChunkLine, wait)
			if !ok {
				return false, err
			}
			size, extension, err := chunkSize(line)
			if err != nil {
				return false, err
			}
			if b.extensions += extension; b.extensions > maxExtension {
				return false, malformed("too many chunk extensions")
			}
			b.left, b.phase = size, phaseData
			if size == 0 {
				b.phase = phaseTrailer
			}
		case phaseTrailer:
			line, ok, err := b.line(b.c.t.o.MaxResponseHeader, wait)
			if !ok {
				return false, err
			}
			if b.trailers += len(line) + 2; b.trailers > b.c.t.o.MaxResponseHeader {
				return false, malformed("trailers exceeded %d bytes", b.c.t.o.MaxResponseHeader)
			}
			if len(line) == 0 {
				b.phase = phaseEnd
				continue
			}
			if err := b.trailer(string(line)); err != nil {
				return false, err
			}
		case phaseEnd:
			return true, nil
		}
	}
}

// trailer adds a line to the answer's trailers. Fields that would have framed
// the message are dropped.
func (b *body) trailer(line string) error {
	name, value, err := field(line, false)
	if err != nil {
		return err
	}
	if framing(name) {
		return nil
	}
	if b.resp.Trailer == nil {
		b.resp.Trailer = make(http.Header)
	}
	b.resp.Trailer[name] = append(b.resp.Trailer[name], value)
	return nil
}

// need sees to it that n bytes are buffered.
func (b *body) need(n int, wait bool) (bool, error) {
	for c := b.c; c.w-c.r < n; {
		if !wait {
			return false, nil
		}
		if err := c.fill(); err != nil {
			return false, err
		}
	}
	return true, nil
}

// line takes a line of at most max bytes, which ends in CRLF. It is valid until
// more is read.
func (b *body) line(max int, wait bool) ([]byte, bool, error) {
	c := b.c
	for {
		have := c.buf[c.r:c.w]
		if i := bytes.IndexByte(have, '\n'); i >= 0 {
			if i == 0 || have[i-1] != '\r' {
				return nil, false, malformed("line feed without carriage return in the chunked body")
			}
			if i-1 > max {
				return nil, false, malformed("line too long in the chunked body")
			}
			c.r += i + 1
			return have[:i-1], true, nil
		}
		if len(have) > max+1 {
			return nil, false, malformed("line too long in the chunked body")
		}
		if !wait {
			return nil, false, nil
		}
		if !c.grow(max) {
			return nil, false, malformed("line too long in the chunked body")
		}
		if err := c.fill(); err != nil {
			return nil, false, err
		}
	}
}

// chunkSize parses a chunk's first line: hexadecimal digits and, perhaps,
// extensions after a semicolon, whose length it returns.
func chunkSize(line []byte) (size int64, extension int, err error) {
	i := 0
	for ; i < len(line); i++ {
		var d byte
		switch c := line[i]; {
		case c >= '0' && c <= '9':
			d = c - '0'
		case c >= 'a' && c <= 'f':
			d = c - 'a' + 10
		case c >= 'A' && c <= 'F':
			d = c - 'A' + 10
		default:
			d = 16
		}
		if d == 16 {
			break
		}
		if i == 15 { // 60 bits are enough, and cannot overflow
			return 0, 0, malformed("chunk size too large")
		}
		size = size<<4 | int64(d)
	}
	if i == 0 {
		return 0, 0, malformed("bad chunk size")
	}
	rest := line[i:]
	if len(rest) == 0 {
		return size, 0, nil
	}
	if rest[0] != ';' {
		return 0, 0, malformed("bad chunk size")
	}
	if !validValue(string(rest)) {
		return 0, 0, malformed("control character in a chunk extension")
	}
	return size, len(rest), nil
}
