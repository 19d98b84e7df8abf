package transport

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"time"

	"github.com/proconsul/proconsul/pkg/wire"
)

// maxInterim bounds the 1xx answers before the final one.
const maxInterim = 100

// exchange is one request and the header of its answer.
type exchange struct {
	t     *Transport
	req   *http.Request
	ctx   context.Context
	trace *httptrace.ClientTrace
	m     *Memory       // nil: the answer has its own
	by    time.Time     // zero: the header may take its time
	began time.Duration // since t.born; 0: its caller has not looked
	now   time.Duration // likewise, when the connection was asked for

	body   io.ReadCloser // nil: none
	length int64         // of the body; -1: not known
	probe  bool          // the body may turn out to be empty, and is then not sent as one
	expect bool          // the body is sent when the instance asks for it

	// announced are the names of the request's trailers. They are taken before
	// the body is read: from then on the map is whoever's reads it, since the
	// body's end puts the values there, at any moment of a header that is
	// written without waiting for the body.
	announced string
}

// response is an answer and what belongs to it, in one allocation.
type response struct {
	http.Response
	body     body
	encoding [1]string
}

// owned is one with the values of its header's map.
type owned struct {
	response
	values [12]string
}

// prepare checks the request.
func (e *exchange) prepare() error {
	req := e.req
	if req.Body != nil && req.Body != http.NoBody {
		e.body, e.length = req.Body, req.ContentLength
		if e.length <= 0 {
			e.length = -1
			switch req.Method {
			case "", "GET", "HEAD", "DELETE", "OPTIONS", "PROPFIND", "SEARCH":
				e.probe = true // servers may refuse a body there, so an empty one is none
			}
		}
		e.expect, e.announced = expects(req.Header), announce(req.Trailer)
	} else if req.ContentLength > 0 {
		return &RequestError{Reason: "Request.ContentLength with a nil Body"}
	}
	return checkRequest(req)
}

func (e *exchange) closeBody() { closeBody(e.req) }

// run sends the request on c and returns the answer once its header has come.
// After an error c is closed and the body too.
func (e *exchange) run(c *conn) (*http.Response, error) {
	if e.trace != nil && e.trace.GotConn != nil {
		info := httptrace.GotConnInfo{Conn: c.nc, Reused: c.reused, WasIdle: c.reused}
		if c.reused {
			info.IdleTime = time.Since(c.t.born) - c.idleSince
		}
		e.trace.GotConn(info)
	}
	c.begin(e.ctx, e.by, e.now)
	resp, err := e.talk(c)
	if err == nil {
		return resp, nil
	}
	if err == errStale {
		c.finish(false)
		return nil, err
	}
	if u := c.upload; u != nil {
		if failed := u.failure(); failed != nil {
			err = failed
		}
	}
	if bad := (*ProtocolError)(nil); errors.As(err, &bad) {
		c.h.odd.Store(true)
	}
	if e.ctx.Err() != nil {
		err = context.Cause(e.ctx)
	} else if c.late(err) {
		err = context.DeadlineExceeded // perhaps a moment before the context's own timer
	}
	begun := c.upload != nil
	var wrong *RequestError
	c.finish(errors.As(err, &wrong)) // of which nothing was sent
	if !begun {
		e.closeBody()
	}
	return nil, err
}

// talk sends the request and reads the answer's header. It fails with errStale
// before it has touched anything.
func (e *exchange) talk(c *conn) (*http.Response, error) {
	buf := c.t.writeBuffers.Get().(*[writeBufferSize]byte)
	head, err := e.appendHead(buf[:0])
	if err != nil {
		c.t.writeBuffers.Put(buf)
		return nil, err
	}
	if e.body == nil {
		if e.m != nil {
			head = append(head, e.m.Body...) // moves where it does not fit
		}
		var wrote func(error)
		if e.trace != nil {
			wrote = e.wrote
		}
		c.writes = buf
		err = c.send(head, wrote)
		c.giveBack()
		if err != nil {
			if err == errStale {
				return nil, err
			}
			return nil, &LostError{Reused: c.reused, Err: err}
		}
		e.closeBody()
		return e.answer(c)
	}
	if c.reused && !c.alive() {
		c.t.writeBuffers.Put(buf)
		return nil, errStale
	}
	u := newUpload(c, e, buf, head)
	c.upload = u
	u.begin()
	return e.answer(c)
}

// wrote tells the request's trace, which there is, that the request is written.
func (e *exchange) wrote(err error) {
	if err == nil && e.trace.WroteHeaders != nil {
		e.trace.WroteHeaders()
	}
	if e.trace.WroteRequest != nil {
		e.trace.WroteRequest(httptrace.WroteRequestInfo{Err: err})
	}
}

// answer reads headers until the final one.
func (e *exchange) answer(c *conn) (*http.Response, error) {
	left := c.t.o.MaxResponseHeader
	for n := 0; ; n++ {
		if c.r == c.w {
			if err := c.fill(); err != nil {
				if err == io.EOF && n > 0 {
					err = io.ErrUnexpectedEOF
				}
				return nil, &LostError{Reused: c.reused, Answered: n > 0, Err: err}
			}
		}
		if n == 0 && e.trace != nil && e.trace.GotFirstResponseByte != nil {
			e.trace.GotFirstResponseByte()
		}
		size, err := c.readHead(left)
		if err != nil {
			var bad *ProtocolError
			if !errors.As(err, &bad) {
				err = &LostError{Reused: c.reused, Answered: true, Err: err}
			}
			return nil, err
		}
		h := &c.head
		if h.status >= 200 {
			if !c.arrived() {
				return nil, context.DeadlineExceeded
			}
			if e.began > 0 {
				c.answered = time.Since(c.t.born)
				e.m.Took = c.answered - e.began
			}
			if c.upload != nil {
				c.upload.decline()
			}
			return e.final(c)
		}
		if h.status == http.StatusSwitchingProtocols {
			return nil, malformed("it switches protocols unasked")
		}
		if h.contentSeen && h.length > 0 || h.chunked || h.minor == 0 {
			return nil, malformed("interim answer with a body")
		}
		if n == maxInterim {
			return nil, malformed("more than %d interim answers", maxInterim)
		}
		if h.status == http.StatusContinue && c.upload != nil {
			if c.upload.held.Load() && e.trace != nil && e.trace.Got100Continue != nil {
				e.trace.Got100Continue()
			}
			c.upload.start()
		}
		if hook := e.interim(); hook == nil {
			if left -= size; left <= 0 {
				return nil, headerTooLarge(c.t.o.MaxResponseHeader)
			}
		} else {
			if err := hook(h.status, textproto.MIMEHeader(h.header(nil))); err != nil {
				return nil, err
			}
			left = c.t.o.MaxResponseHeader
		}
		if c.last == "" {
			c.head = head{} // it was too large to be kept
		}
	}
}

// interim is who is told of 1xx answers, or nil.
func (e *exchange) interim() func(int, textproto.MIMEHeader) error {
	switch {
	case e.trace != nil && e.trace.Got1xxResponse != nil:
		return e.trace.Got1xxResponse
	case e.m != nil:
		return e.m.Interim
	}
	return nil
}

// final makes the answer that the caller gets.
func (e *exchange) final(c *conn) (*http.Response, error) {
	h := &c.head
	if c.last == "" { // it is too large to be kept
		large := c.head
		c.head, h = head{}, &large
	}
	var resp *response
	if e.m != nil {
		resp = &e.m.answer
		e.m.Lines = append(e.m.Lines, h.lines...)
	} else {
		o := &owned{}
		resp = &o.response
		resp.Header = h.header(o.values[:0])
	}
	resp.Status, resp.StatusCode = h.text, h.status
	resp.Proto, resp.ProtoMajor, resp.ProtoMinor = "HTTP/1.1", 1, h.minor
	if h.minor == 0 {
		resp.Proto = "HTTP/1.0"
	}
	resp.Request, resp.TLS = e.req, c.tls
	keep := h.minor == 1 && !h.close && !e.req.Close && !e.closes()
	resp.Close = h.close || h.minor == 0 && !h.keepAlive
	if h.close && h.minor == 1 {
		delete(resp.Header, "Connection") // as http.Transport does
	}
	if h.chunked {
		resp.encoding[0] = "chunked"
		resp.TransferEncoding = resp.encoding[:]
		if h.trailers {
			var err error
			if resp.Trailer, err = wire.Announced(h.values("Trailer")); err != nil {
				return nil, malformed("%v", err)
			}
			delete(resp.Header, "Trailer") // likewise
		}
	}
	resp.ContentLength = h.length
	b := &resp.body
	switch {
	case e.req.Method == http.MethodHead:
		b.kind = bodyNone
	case h.status == http.StatusNoContent || h.status == http.StatusNotModified:
		b.kind = bodyNone
		resp.ContentLength = 0
		// A 204 that says it has a body may be followed by one: by then nobody
		// must be listening.
		keep = keep && !h.chunked && (h.length <= 0 || h.status == http.StatusNotModified)
	case h.chunked:
		b.kind = bodyChunked
		b.chunks.MaxTrailers, b.chunks.Trailer = c.t.o.MaxResponseHeader, &resp.Trailer
	case h.length == 0:
		b.kind = bodyNone
	case h.length > 0:
		b.kind, b.chunks.Left = bodyLength, h.length
	default:
		b.kind, keep, resp.Close = bodyClose, false, true
	}
	c.bare = b.kind == bodyNone
	if c.bare {
		resp.Body = http.NoBody
		c.finish(keep)
		return &resp.Response, nil
	}
	b.c, b.keep, b.ctx = c, keep, e.ctx
	resp.Body = b
	return &resp.Response, nil
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
