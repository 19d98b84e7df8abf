// Package transport is the upstream HTTP client: an http.RoundTripper for
// HTTP/1.1 over pooled keep-alive connections. It costs a fraction of what
// http.Transport does, because the goroutine that calls RoundTrip writes the
// request and reads the answer itself: no goroutines per connection, no
// channels, one write and one read for a small exchange.
//
// It parses answers strictly. Whatever may be read in two ways (bare line
// feeds, folded lines, two Content-Length fields, Content-Length beside
// Transfer-Encoding, ...) is a *ProtocolError and ends the connection. A
// connection is used again only if the answer ended exactly where its framing
// says, the request was written to its end and neither side asked to close;
// and each time before that it is probed, so that what an instance has sent
// unasked is never taken for the answer to the next request. One is not where
// it served a moment ago, the request can be sent again if it turns out to be
// closed, and the instance was never seen to send what nobody asked for.
//
// HTTP/2, upgrades, CONNECT and whatever else it does not do goes to a
// fallback, chosen per request. It never follows redirects, compresses,
// keeps cookies or asks the environment for a proxy.
//
// Buffers are pooled per Transport and belong to a request from RoundTrip to
// the end of its answer's body; none of them can be reached from outside.
// Response.Header, its values and Response.Trailer are the caller's to keep
// and to change. Values of one answer share one string. RoundTripInto puts an
// answer into memory that the caller uses again.
package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/pkg/cohort"
	"github.com/proconsul/proconsul/pkg/wire"
)

const (
	defaultMaxIdle     = 256
	defaultIdleTimeout = 55 * time.Second
	defaultConnect     = 10 * time.Second
	defaultContinue    = time.Second
	defaultMaxHeader   = 64 << 10
	tcpKeepAlive       = 15 * time.Second
)

// Options are what a Transport is made with. The zero value is usable.
type Options struct {
	// Dial makes connections. It should return a *net.TCPConn, or something
	// else with a SyscallConn: others cannot be probed before they are used
	// again. Nil: a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// TLS is the configuration for https. Where its NextProtos have "h2" and
	// an instance picks that, the request goes to Fallback, and so do all
	// later ones to the same address. An empty ServerName: the host of the
	// address. Nil: https goes to Fallback.
	TLS *tls.Config

	MaxIdlePerHost    int           // unused connections kept per address; 0: 256, negative: none
	IdleTimeout       time.Duration // how long an unused connection is kept; 0: 55 s
	ConnectTimeout    time.Duration // dialling and the TLS handshake together; 0: 10 s
	ContinueTimeout   time.Duration // for an instance that ignores Expect: 100-continue; 0: 1 s
	MaxResponseHeader int           // bytes of an answer's header, and of its trailers; 0: 64 KiB

	// Sweep trades promptness for cost: contexts are looked at this often
	// instead of being watched, which saves half a microsecond and five
	// allocations per request. Contexts' deadlines are still met exactly, and
	// those of RoundTripInto too unless they are far away. 0: contexts are
	// watched, and cancellation takes effect at once.
	Sweep time.Duration

	// Writes is where requests that are written as a whole meet those of other
	// connections. Nil: each is written at once.
	Writes *cohort.Writes

	// Fallback serves requests that this transport does not. Nil: they fail
	// with ErrUnsupported.
	Fallback http.RoundTripper
}

// Transport is an http.RoundTripper. It is safe for concurrent use. Make one
// with New; it needs no closing beyond CloseIdleConnections.
type Transport struct {
	o    Options
	born time.Time // with a monotonic reading

	mu    sync.RWMutex
	hosts [2]map[string]*host // by address; [1]: TLS
	past  int64               // what hosts that are forgotten have reused

	epoch    atomic.Uint32 // of CloseIdleConnections
	counters counters

	readBuffers  sync.Pool // of *[readBufferSize]byte
	writeBuffers sync.Pool // of *[writeBufferSize]byte
}

// counters are of what is rare. What each request counts, hosts do, which have
// to be locked for it anyway.
type counters struct{ dials, dialErrors, stale, retried, fallback atomic.Int64 }

// Stats are a Transport's counters since it was made, but for Idle and Active,
// which are of now.
type Stats struct {
	Dials      int64 // connections that were asked for
	DialErrors int64 // of them failed, in the TLS handshake too
	Reused     int64 // requests that began on a connection that had served before
	Stale      int64 // connections that had been closed, or spoken on, while unused
	Retried    int64 // requests sent again after their connection was closed under them
	Fallback   int64 // requests that the fallback served
	Idle       int64 // connections kept for later
	Active     int64 // connections with a request on them
}

// New returns a transport. It dials and starts nothing.
func New(o Options) *Transport {
	if o.Dial == nil {
		o.Dial = (&net.Dialer{KeepAlive: tcpKeepAlive}).DialContext
	}
	if o.MaxIdlePerHost == 0 {
		o.MaxIdlePerHost = defaultMaxIdle
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = defaultIdleTimeout
	}
	if o.ConnectTimeout <= 0 {
		o.ConnectTimeout = defaultConnect
	}
	if o.ContinueTimeout <= 0 {
		o.ContinueTimeout = defaultContinue
	}
	if o.MaxResponseHeader <= 0 {
		o.MaxResponseHeader = defaultMaxHeader
	}
	t := &Transport{o: o, born: time.Now()}
	t.hosts[0], t.hosts[1] = map[string]*host{}, map[string]*host{}
	t.readBuffers.New = func() any { return new([readBufferSize]byte) }
	t.writeBuffers.New = func() any { return new([writeBufferSize]byte) }
	return t
}

// Stats returns the counters.
func (t *Transport) Stats() Stats {
	c := &t.counters
	s := Stats{Dials: c.dials.Load(), DialErrors: c.dialErrors.Load(), Stale: c.stale.Load(), Retried: c.retried.Load(), Fallback: c.fallback.Load()}
	t.mu.RLock()
	defer t.mu.RUnlock()
	s.Reused = t.past
	for _, hosts := range t.hosts {
		for _, h := range hosts {
			h.mu.Lock()
			s.Reused += h.reused
			s.Active += int64(h.busy)
			s.Idle += int64(len(h.idle))
			h.mu.Unlock()
		}
	}
	return s
}

// RoundTrip implements http.RoundTripper. It returns when the answer's header
// has come; the rest of a request body is sent meanwhile and after that, as
// long as the answer's body is not at its end.
//
// A request without a body and with a safe method, or with an Idempotency-Key,
// is sent a second time, on a new connection, if a connection that had served
// before ended without one byte of an answer: the instance had most likely
// closed it for being idle. Everything else is for the caller to decide by the
// error: *ConnectError (nothing was sent), *LostError (the connection ended),
// *ProtocolError (the answer is not valid), *RequestError (the request is
// not), the context's cause, or the error of reading the request's body.
//
// The request's body is closed in all cases, perhaps after RoundTrip has
// returned and while a Read of it is under way.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if !t.serves(req) {
		return t.fallback(req)
	}
	ctx := req.Context()
	e := exchange{t: t, req: req, ctx: ctx, trace: httptrace.ContextClientTrace(ctx)}
	return t.roundTrip(&e)
}

// Memory is where RoundTripInto puts an answer. The zero value is ready to be
// used; it must not be copied.
type Memory struct {
	// Interim is told of 1xx answers before the final one, in the goroutine
	// that makes the round trip. The header must not be kept. It may be nil.
	Interim func(code int, header textproto.MIMEHeader) error

	// Body is sent with the request, which has none of its own. It is not
	// written to, and not used once RoundTripInto has returned.
	Body []byte

	// Fields are sent after those of the request's header.
	Fields []wire.Line

	// Began is when the round trip begins, if its caller has just looked; Took is
	// how long it took from then until the answer's header had come.
	Began time.Time
	Took  time.Duration

	// Lines is the answer's header, without Transfer-Encoding. The answer's
	// Header is nil: making a map of it, for somebody who goes through it once,
	// is a thirtieth of what a request costs.
	Lines []wire.Line

	answer response
}

// maxLines is for how many lines memory keeps room.
const maxLines = 64

// Clear forgets the answer and keeps the rest. It is called before the
// memory is used again, when nobody uses the answer any more: neither its body,
// whose end or Close has been seen, nor its lines. Strings may be kept.
func (m *Memory) Clear() {
	clear(m.Lines)
	if m.Lines = m.Lines[:0]; cap(m.Lines) > maxLines {
		m.Lines = nil
	}
	m.answer = response{}
}

// Plain reports whether a request is one for RoundTripInto: over http, without
// a body, and with nothing in it that would need the fallback.
func (t *Transport) Plain(req *http.Request) bool {
	return (req.Body == nil || req.Body == http.NoBody) && req.URL != nil && req.URL.Scheme == "http" && t.serves(req)
}

// RoundTripInto makes the round trip of a Plain request and puts the answer
// into m, which has been cleared. Nothing of the request is used once the
// answer's body has ended, or after an error. Traces of the request's context
// are not called.
//
// Where the header has not come at the time by, unless that is zero, it fails
// with context.DeadlineExceeded, within a *ConnectError if there was no
// connection by then. A time that is many sweeps away may be missed by one of
// them; it costs nothing.
func (t *Transport) RoundTripInto(req *http.Request, m *Memory, by time.Time) (*http.Response, error) {
	e := exchange{t: t, req: req, ctx: req.Context(), m: m, by: by}
	if m.Took = 0; !m.Began.IsZero() {
		e.began = m.Began.Sub(t.born)
	}
	return t.roundTrip(&e)
}

func (t *Transport) roundTrip(e *exchange) (*http.Response, error) {
	req, ctx := e.req, e.ctx
	if err := e.prepare(); err != nil {
		e.closeBody()
		return nil, err
	}
	addr, secure := address(req), req.URL.Scheme == "https"
	if e.trace != nil && e.trace.GetConn != nil {
		e.trace.GetConn(addr)
	}
	fresh := false
	for {
		if ctx.Err() != nil {
			e.closeBody()
			return nil, context.Cause(ctx)
		}
		c, err := e.connection(addr, secure, fresh)
		if err == errHTTP2 {
			return t.fallback(req)
		}
		if err != nil {
			e.closeBody()
			return nil, err
		}
		if !c.reused && fresh {
			t.counters.retried.Add(1)
		}
		resp, err := e.run(c)
		switch {
		case err == nil:
			return resp, nil
		case err == errStale: // nothing was written
			t.counters.stale.Add(1)
		case !fresh && c.reused && e.repeatable(err):
			fresh = true
		default:
			return nil, err
		}
	}
}

// repeatable reports whether a request that failed with err on a connection
// that had served before may be sent again.
func (e *exchange) repeatable(err error) bool {
	var lost *LostError
	if e.body != nil || !errors.As(err, &lost) || lost.Answered || e.ctx.Err() != nil {
		return false
	}
	return e.idempotent()
}

// idempotent reports whether the request may be handled twice.
func (e *exchange) idempotent() bool {
	switch e.req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	_, key := e.req.Header["Idempotency-Key"]
	_, old := e.req.Header["X-Idempotency-Key"]
	return key || old
}

// serves reports whether the request is one for this transport.
func (t *Transport) serves(req *http.Request) bool {
	u := req.URL
	if u == nil || u.Host == "" || req.Method == http.MethodConnect || req.Cancel != nil { //nolint:staticcheck // old callers set it
		return false
	}
	switch u.Scheme {
	case "http":
	case "https":
		if t.o.TLS == nil {
			return false
		}
	default:
		return false
	}
	for i := range len(u.Host) {
		if c := u.Host[i]; c >= 0x80 || c == '%' || c == '@' {
			return false // names to encode, zones
		}
	}
	if _, ok := req.Header["Upgrade"]; ok {
		return false
	}
	for _, v := range req.Header["Connection"] {
		if wire.HasToken(v, "upgrade") {
			return false
		}
	}
	return len(req.TransferEncoding) == 0 || len(req.TransferEncoding) == 1 && req.TransferEncoding[0] == "chunked"
}

func (t *Transport) fallback(req *http.Request) (*http.Response, error) {
	if t.o.Fallback == nil {
		closeBody(req)
		return nil, ErrUnsupported
	}
	t.counters.fallback.Add(1)
	return t.o.Fallback.RoundTrip(req)
}

// CloseIdleConnections closes the connections that no request uses. Those in
// use are closed when their requests end. It does the same for the fallback.
func (t *Transport) CloseIdleConnections() {
	t.epoch.Add(1)
	t.mu.RLock()
	var all []*host
	for _, hosts := range t.hosts {
		for _, h := range hosts {
			all = append(all, h)
		}
	}
	t.mu.RUnlock()
	for _, h := range all {
		h.expire(math.MaxInt64)
	}
	if c, ok := t.o.Fallback.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// address returns HOST:PORT of the request's URL.
func address(req *http.Request) string {
	h := req.URL.Host
	if i := strings.LastIndexByte(h, ':'); i > strings.LastIndexByte(h, ']') {
		if i < len(h)-1 {
			return h
		}
		h = h[:i]
	}
	if req.URL.Scheme == "https" {
		return h + ":443"
	}
	return h + ":80"
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close() // there is nobody to tell
	}
}
