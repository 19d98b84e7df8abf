package front

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/pkg/rawio"
)

// maxReused is how many fields a header may have whose map is used again: a
// larger one would keep its room for ever.
const maxReused = 64

var (
	errFinished = errors.New("front: the ResponseWriter was used after its handler had returned")
	errTaken    = http.ErrHijacked
)

// exchange is one request and its answer. It is used again only where its
// handler has released it; else whoever keeps a part of it does no harm. It is
// the ResponseWriter.
type exchange struct {
	c       *conn
	kept    *kept
	req     http.Request
	url     url.URL
	body    body
	framing framing

	answer answer

	close      bool // the connection ends with the answer
	expecting  bool // the client waits for 100
	duplex     bool // the body is left alone when the answer begins
	released   bool // nobody keeps the request or its header's map
	inside     bool // the connection is being read by whoever called us
	hijacked   bool
	finishing  bool // no deadline may be set any more; guarded by deadlines
	finished   atomic.Bool
	continuing sync.Mutex // held while 100 is sent, or ruled out
	deadlines  sync.Mutex // held while a handler's deadline is set
}

// kept is what of an exchange is never used again: transports may look at a
// request's context when it is long over, and header maps made of its own have
// the lists of its values.
type kept struct {
	ctx    requestContext
	quiet  atomic.Bool // nothing more is expected from the client
	values [12]string  // of the header
}

func (c *conn) newExchange() *exchange {
	x := c.sc.exchange
	if c.sc.exchange = nil; x == nil {
		x = new(exchange)
	}
	x.c, x.kept = c, new(kept)
	x.kept.ctx.c = c
	x.req = *(&http.Request{}).WithContext(&x.kept.ctx)
	x.req.RemoteAddr, x.req.TLS = c.remote, c.tls
	x.answer.length = -1
	return x
}

// recycle makes an exchange whose handler has released it fit for another
// request.
func (sc *scratch) recycle(x *exchange) {
	if checked {
		x.req, x.url = http.Request{}, url.URL{}
		return
	}
	*x = exchange{}
	sc.exchange = x
}

// takeHeader returns a map for the request's header.
func (x *exchange) takeHeader(n int) http.Header {
	if h := x.c.sc.spare; h != nil {
		x.c.sc.spare = nil
		return h
	}
	return make(http.Header, n+spareFields)
}

// spareFields is what a gateway adds to a header, such as an id and what rules
// set: that should not have the map grow.
const spareFields = 4

// contained reports whether the request can be served without reading, and
// without being taken over.
func (x *exchange) contained() bool {
	switch {
	case x.framing.upgrade || x.req.Method == http.MethodConnect || x.body.chunked:
		return false
	}
	return int64(x.c.w-x.c.r) >= x.body.left
}

// settled is called when the request's body is at its end.
func (x *exchange) settled() {
	if x.c.r == x.c.w {
		x.kept.quiet.Store(true)
	}
}

// handle serves a request and reports whether the connection may serve
// another.
func (c *conn) handle(x *exchange, inside bool) bool {
	if _, ok := c.settle(); !ok {
		return false
	}
	x.inside = inside
	if x.body.more() {
		if !x.contained() {
			c.setDeadline(time.Time{}) // the header's is over
		}
		x.kept.quiet.Store(!x.body.chunked && int64(c.w-c.r) == x.body.left)
	} else {
		x.settled()
	}
	c.current.Store(x.kept)
	c.phase.Add(1)
	c.s.watch(c)
	c.s.counters.requests.Add(1)
	keep := x.run()
	c.current.Store(nil)
	c.phase.Add(1)
	if keep && x.released {
		c.sc.recycle(x)
	}
	return keep
}

// run calls the handler and ends the answer.
func (x *exchange) run() (keep bool) {
	if x.req.RequestURI == "*" {
		x.answerOptions()
	} else if !x.call() {
		x.abort()
		return false
	}
	x.kept.ctx.cancel()
	keep = x.finish()
	x.spend()
	return keep
}

// answerOptions answers OPTIONS *, which asks about the server and no resource.
func (x *exchange) answerOptions() {
	x.Header()["Content-Length"] = []string{"0"}
	x.WriteHeader(http.StatusOK)
}

// call calls the handler. It reports whether that returned.
func (x *exchange) call() (ok bool) {
	defer func() {
		if ok {
			return
		}
		if p := recover(); p != nil && p != http.ErrAbortHandler {
			x.c.s.o.Log.Error("panic in a handler", "peer", x.c.remote, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	x.c.s.o.Handler.ServeHTTP(x, &x.req)
	return true
}

// abort ends an exchange whose answer is not to be finished.
func (x *exchange) abort() {
	x.kept.ctx.cancel()
	x.finished.Store(true)
	x.ruleOutContinue()
	c := x.c
	if x.hijacked {
		return
	}
	x.body.end()
	if x.answer.mode == untilClose && x.answer.flushed {
		// The end of the connection would pass for the end of the answer.
		if t, ok := c.below.(interface{ SetLinger(int) error }); ok {
			_ = t.SetLinger(0) // better than nothing
		}
	}
	x.spend()
}

// finish ends an answer whose handler has returned, and reports whether the
// connection may serve another request.
func (x *exchange) finish() bool {
	if x.hijacked {
		x.finished.Store(true)
		return false
	}
	whole := x.complete()
	x.finished.Store(true)
	x.ruleOutContinue()
	c := x.c
	if c.writeDead.Swap(false) {
		_ = c.nc.SetWriteDeadline(time.Time{}) // fails only where the connection has, and that will show
	}
	read := x.body.eof.Load()
	if x.req.Body != http.NoBody {
		if whole {
			x.body.drain(!x.close)
		}
		read = x.body.end()
	}
	if whole && !x.close && read {
		return true
	}
	// What the client still sends would take the answer back.
	c.linger = !read || c.r < c.w
	return false
}

// spend makes the answer's map fit to be used again, and the request's if it
// was released.
func (x *exchange) spend() {
	sc := x.c.sc
	if sc == nil {
		return
	}
	if checked || len(sc.header) > maxReused {
		sc.header = make(http.Header, 8)
	} else {
		clear(sc.header)
	}
	h := x.framing.header
	if !x.released || h == nil {
		return
	}
	if checked {
		clear(h)
		h["Released-By-The-Handler"] = []string{"and kept all the same"}
		return
	}
	if len(h) <= maxReused {
		clear(h)
		sc.spare = h
	}
}

// ReleaseRequest says that nobody will use the Request, its header's map or its
// URL once the handler has returned.
func (x *exchange) ReleaseRequest() { x.released = true }

// EnableFullDuplex implements what http.ResponseController looks for.
func (x *exchange) EnableFullDuplex() error {
	x.duplex = true
	return nil
}

// SetReadDeadline implements what http.ResponseController looks for. It may be
// called by any goroutine while the handler runs.
func (x *exchange) SetReadDeadline(t time.Time) error {
	x.deadlines.Lock()
	defer x.deadlines.Unlock()
	if x.finishing || x.finished.Load() {
		return errFinished
	}
	x.c.deadlined.Store(true)
	return x.c.below.SetReadDeadline(t)
}

// SetWriteDeadline implements what http.ResponseController looks for.
func (x *exchange) SetWriteDeadline(t time.Time) error {
	if x.finished.Load() {
		return errFinished
	}
	x.c.writeDead.Store(true)
	return x.c.nc.SetWriteDeadline(t)
}

// sendContinue asks the client for the body, if it waits for that.
func (x *exchange) sendContinue() error {
	if !x.framing.expect {
		return nil
	}
	x.continuing.Lock()
	defer x.continuing.Unlock()
	if !x.expecting {
		return nil
	}
	x.expecting = false
	_, err := io.WriteString(x.c.nc, "HTTP/1.1 100 Continue\r\n\r\n")
	return err
}

// ruleOutContinue sees to it that no 100 comes after the final answer.
func (x *exchange) ruleOutContinue() {
	if !x.framing.expect {
		return
	}
	x.continuing.Lock()
	defer x.continuing.Unlock()
	if x.expecting {
		x.expecting = false
		x.close = true // it may send the body or not
	}
}

// Hijack implements http.Hijacker.
func (x *exchange) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c := x.c
	switch {
	case x.finished.Load():
		return nil, nil, errFinished
	case x.hijacked:
		return nil, nil, errTaken
	}
	x.ruleOutContinue()
	if x.answer.begun {
		if err := x.FlushError(); err != nil {
			return nil, nil, err
		}
	}
	nc := c.outer
	if x.inside {
		// Whoever called us holds the right to read, and will until we return:
		// so the hijacker gets a descriptor of its own.
		var err error
		if cerr := c.raw.Control(func(fd uintptr) { nc, err = dupFD(fd) }); cerr != nil {
			err = cerr
		}
		if err != nil {
			return nil, nil, err
		}
		nc = duplicate{nc}
	}
	if err := nc.SetDeadline(time.Time{}); err != nil {
		if x.inside {
			_ = nc.Close() // the connection itself stays ours
		}
		return nil, nil, err
	}
	c.doubled = x.inside
	x.hijacked = true
	c.over.Store(true) // nobody may end it or wait for it any more
	c.s.forget(c)
	rest := bytes.Clone(c.buf[c.r:c.w])
	c.r = c.w
	in := bufio.NewReaderSize(&replayed{Conn: nc, rest: rest}, max(readBufferSize, len(rest)))
	_, _ = in.Peek(len(rest)) // so that Buffered tells of it
	return nc, bufio.NewReadWriter(in, bufio.NewWriterSize(nc, writeBufferSize)), nil
}

// duplicate is a hijacked connection with a descriptor of its own.
type duplicate struct{ net.Conn }

// CloseWrite ends one direction.
func (d duplicate) CloseWrite() error { return rawio.CloseWrite(d.Conn) }

// refuse answers a request that is not served.
func (c *conn) refuse(r *Refusal) {
	c.s.counters.refused.Add(1)
	c.settle() // where that fails this will
	x := c.pending
	c.pending = nil
	if x == nil {
		if c.sc == nil {
			c.room()
		}
		x = c.newExchange()
	}
	x.close, x.released = true, false
	x.expecting, x.framing.expect = false, false
	req := &x.req
	req.URL, req.Body, req.ContentLength, req.TransferEncoding, req.Close = &x.url, http.NoBody, 0, nil, true
	x.body.eof.Store(true)
	if req.Header == nil {
		req.Header = http.Header{}
	}
	if req.ProtoMajor == 0 {
		req.Proto, req.ProtoMajor, req.ProtoMinor = "HTTP/1.1", 1, 1
	}
	c.current.Store(x.kept)
	c.phase.Add(1)
	_ = c.nc.SetWriteDeadline(time.Now().Add(lingerTime)) // nobody is waited for who does not read
	x.refuse(r)
	c.current.Store(nil)
	c.phase.Add(1)
	c.linger = true
}

func (x *exchange) refuse(r *Refusal) {
	defer func() {
		if p := recover(); p != nil && p != http.ErrAbortHandler {
			x.c.s.o.Log.Error("panic in a handler", "peer", x.c.remote, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	x.c.s.o.Refuse(x, &x.req, r)
	x.kept.ctx.cancel()
	x.finish()
	x.spend()
}
