package transport

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/pkg/wire"
)

const (
	// holdHead is how long the header waits for the beginning of the body, so
	// that a small request costs one write. A body that is on hand is read
	// within microseconds; this is for those that are not.
	holdHead = time.Millisecond

	// uploadGrace is how long an upload may go on when the answer to it is
	// complete. What is not sent by then is not sent at all.
	uploadGrace = 50 * time.Millisecond

	chunkHead = len("ffff\r\n") // the largest chunk is smaller than 64 KiB
	chunkTail = len("\r\n0\r\n\r\n")
)

var (
	errBodyShort = errors.New("it is shorter than the declared length")
	errBodyLong  = errors.New("it is longer than the declared length")
	errAbandoned = errors.New("the upload was given up")
)

// upload sends a request's header and body. It is a goroutine of its own,
// because the answer may come before the body has been sent, or read, and
// either side may wait for the other. It ends when the body has been sent, when
// reading it fails, or when writing fails, which is within uploadGrace of the
// answer's end or at once when the request is canceled; a Read of the body that
// does not return at its Close holds it up.
type upload struct {
	c    *conn
	e    exchange
	buf  *[writeBufferSize]byte
	head []byte // what is not written of the header

	held atomic.Bool // nobody has asked for the body yet
	wait *time.Timer // asks in the end

	mu   sync.Mutex // held while the header is written
	sent bool       // it is, or the body's reader is doing it

	last     atomic.Bool // all is read, and written or being written
	over     atomic.Bool // the body is not to be read any more
	reading  atomic.Bool
	closed   atomic.Bool
	err      atomic.Pointer[error] // why the body could not be sent, if reading it is to blame
	complete bool                  // all was sent; set before the end
	told     chan struct{}         // closed when the trace knows that the request is written; nil: nobody wants to know
}

// newUpload returns one whose header is in buf.
func newUpload(c *conn, e *exchange, buf *[writeBufferSize]byte, head []byte) *upload {
	u := &upload{c: c, e: *e, buf: buf, head: head}
	if e.trace != nil && e.trace.WroteRequest != nil {
		u.told = make(chan struct{})
	}
	return u
}

// begin writes the header if the body has to be asked for, and starts the
// upload otherwise.
func (u *upload) begin() {
	if !u.e.expect {
		go u.run()
		return
	}
	u.e.probe = false
	u.head = u.e.appendFraming(u.head)
	u.sent = true
	_, err := u.c.nc.Write(u.head)
	u.head = nil
	if u.e.trace != nil && u.e.trace.WroteHeaders != nil && err == nil {
		u.e.trace.WroteHeaders()
	}
	u.held.Store(true)
	if u.e.trace != nil && u.e.trace.Wait100Continue != nil {
		u.e.trace.Wait100Continue()
	}
	u.wait = time.AfterFunc(u.c.t.o.ContinueTimeout, u.proceed)
}

// start lets a body go that was held.
func (u *upload) start() {
	if u.held.CompareAndSwap(true, false) {
		u.wait.Stop()
		go u.run()
	}
}

func (u *upload) proceed() {
	if u.held.CompareAndSwap(true, false) {
		u.run()
	}
}

// decline ends an upload that nobody has asked for: the final answer is there.
// The connection cannot be used again, since the instance may go on to expect
// a body.
func (u *upload) decline() {
	if u.held.CompareAndSwap(true, false) {
		u.wait.Stop()
		u.c.t.writeBuffers.Put(u.buf)
		u.close()
		u.c.ends.Add(1)
	}
}

// abandon ends an upload whose connection has been cut.
func (u *upload) abandon() {
	u.over.Store(true)
	if u.held.CompareAndSwap(true, false) {
		u.wait.Stop()
		u.close()
		u.c.end()
		return
	}
	if u.reading.Load() {
		// Only a body that minds will let go; others take their time, and
		// closing them too.
		go u.close()
	}
}

func (u *upload) close() {
	if !u.closed.Swap(true) {
		_ = u.e.body.Close() // there is nobody to tell
	}
}

// failure returns how reading the body failed, or nil.
func (u *upload) failure() error {
	if p := u.err.Load(); p != nil {
		return *p
	}
	return nil
}

// run sends the body.
func (u *upload) run() {
	read, write := u.transfer()
	if u.told != nil {
		err := read
		if err == nil {
			err = write
		}
		u.e.trace.WroteRequest(httptrace.WroteRequestInfo{Err: err})
		close(u.told)
	}
	u.c.t.writeBuffers.Put(u.buf)
	u.complete = read == nil && write == nil
	if read != nil {
		// The instance must not take what it has for all there is. Where
		// writing failed instead, its answer may still be on the way.
		if !u.over.Load() {
			read = &UploadError{Err: read}
			u.err.Store(&read)
		}
		u.c.cut()
	}
	u.close()
	u.c.end()
}

// transfer moves the body and returns how reading or writing failed.
func (u *upload) transfer() (read, write error) {
	if !u.sent {
		done, read, write := u.first()
		if done || read != nil || write != nil {
			return read, write
		}
	}
	for {
		done, read, write := u.next(nil)
		if done || read != nil || write != nil {
			return read, write
		}
	}
}

// first reads the beginning of the body and writes it with the header, if it
// comes soon.
func (u *upload) first() (done bool, read, write error) {
	if len(u.head) > writeBufferSize/2 {
		write = u.flushHead()
		return false, nil, write
	}
	// The framing is only known when it is known whether there is a body, so
	// room is left for it.
	const framing = 1 << 10
	at := len(u.head) + framing + chunkHead
	timer := time.AfterFunc(holdHead, func() { _ = u.flushHead() })
	n, err := u.read(u.buf[at : writeBufferSize-chunkTail])
	timer.Stop()
	u.mu.Lock()
	if u.sent {
		u.mu.Unlock()
		// The header went alone; what was read is sent where it lies.
		return u.next(&piece{at: at, n: n, err: err})
	}
	u.sent = true
	u.mu.Unlock()
	u.wroteHeaders()
	if u.e.probe && n == 0 && err == io.EOF {
		u.last.Store(true)
		_, write = u.c.nc.Write(append(u.head, "\r\n"...))
		return true, nil, write
	}
	head := u.e.appendFraming(u.head[: len(u.head) : at-chunkHead])
	if len(head)+chunkHead > at { // announces a lot of trailers
		if _, write = u.c.nc.Write(head); write != nil {
			return false, nil, write
		}
		return u.next(&piece{at: at, n: n, err: err})
	}
	return u.next(&piece{head: head, at: at, n: n, err: err})
}

// flushHead writes the header alone, unless it has been.
func (u *upload) flushHead() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.sent {
		return nil
	}
	u.sent = true
	// The buffer behind the header is being read into.
	head := u.e.appendFraming(u.head[:len(u.head):len(u.head)])
	_, err := u.c.nc.Write(head)
	u.wroteHeaders()
	return err
}

func (u *upload) wroteHeaders() {
	if u.e.trace != nil && u.e.trace.WroteHeaders != nil {
		u.e.trace.WroteHeaders()
	}
}

// piece is a part of the body that has been read into buf.
type piece struct {
	head  []byte // at the beginning of buf, to be written before it
	at, n int
	err   error
}

// next writes a piece of the body, reading it first if there is none. Its
// errors are of reading the body and of writing.
func (u *upload) next(p *piece) (done bool, read, write error) {
	if p == nil {
		p = &piece{at: chunkHead}
		room := u.buf[chunkHead : writeBufferSize-chunkTail]
		if u.e.length >= 0 {
			if u.e.length == 0 {
				return u.excess()
			}
			room = room[:min(int64(len(room)), u.e.length)]
		}
		p.n, p.err = u.read(room)
	}
	if p.err != nil && p.err != io.EOF {
		return false, p.err, nil
	}
	start, end := p.at, p.at+p.n
	if u.e.length >= 0 {
		if int64(p.n) > u.e.length {
			return false, errBodyLong, nil
		}
		u.e.length -= int64(p.n)
		if p.err == io.EOF && u.e.length > 0 {
			return false, errBodyShort, nil
		}
	} else {
		if p.n > 0 {
			size := strconv.AppendInt(make([]byte, 0, chunkHead), int64(p.n), 16)
			start -= len(size) + 2
			copy(u.buf[start:], size)
			copy(u.buf[start+len(size):], "\r\n")
			end += copy(u.buf[end:], "\r\n")
		}
		if p.err == io.EOF {
			end += copy(u.buf[end:], "0\r\n")
		}
	}
	if len(p.head) > 0 {
		start -= len(p.head)
		copy(u.buf[start:], p.head)
	}
	out := u.buf[start:end]
	if p.err == io.EOF && u.e.length < 0 {
		out = append(appendTrailers(out, u.e.req.Trailer), "\r\n"...)
	}
	if u.e.length == 0 || p.err == io.EOF {
		u.last.Store(true)
	}
	if len(out) > 0 {
		if _, write = u.c.nc.Write(out); write != nil {
			return false, nil, write
		}
	}
	return p.err == io.EOF, nil, nil
}

// excess looks for the end of a body that has been sent.
func (u *upload) excess() (done bool, read, write error) {
	for {
		n, err := u.read(u.buf[:1])
		switch {
		case n > 0:
			return false, errBodyLong, nil
		case err == io.EOF:
			return true, nil, nil
		case err != nil:
			return false, err, nil
		}
	}
}

// read reads the body, unless it has been given up: reading is set before over
// is looked at, and abandon has it the other way round.
func (u *upload) read(p []byte) (int, error) {
	u.reading.Store(true)
	defer u.reading.Store(false)
	if u.over.Load() {
		return 0, errAbandoned
	}
	return u.e.body.Read(p)
}

// appendTrailers appends the trailers that have values and can be sent.
func appendTrailers(b []byte, trailer http.Header) []byte {
	for name, values := range trailer {
		if !wire.ValidToken(name) || wire.Framing(http.CanonicalHeaderKey(name)) {
			continue
		}
		for _, v := range values {
			if !wire.ValidValue(v) {
				continue
			}
			b = append(b, name...)
			b = append(b, ": "...)
			b = append(b, wire.Trim(v)...)
			b = append(b, "\r\n"...)
		}
	}
	return b
}
