package middleware

import (
	"crypto/tls"
	"encoding/hex"
	"math/rand/v2"
	"net/http/httptrace"
	"sync"
	"time"
)

// TraceID names a trace, SpanID a span of it (W3C Trace Context).
type (
	TraceID [16]byte
	SpanID  [8]byte
)

// NewTraceID returns an id that nobody has.
func NewTraceID() (id TraceID) {
	fill(id[:8])
	fill(id[8:])
	return id
}

// NewSpanID returns an id that nobody has.
func NewSpanID() (id SpanID) {
	fill(id[:])
	return id
}

// fill makes eight random bytes, never all zero, which would be no id.
func fill(b []byte) {
	n := rand.Uint64() // ChaCha8: not to be guessed from earlier ones
	for n == 0 {
		n = rand.Uint64()
	}
	for i := range b {
		b[i] = byte(n >> (8 * i))
	}
}

func (id TraceID) String() string { return hex.EncodeToString(id[:]) }
func (id SpanID) String() string  { return hex.EncodeToString(id[:]) }

// Trace is a request's place in a distributed trace.
type Trace struct {
	ID      TraceID
	Span    SpanID // of the request in this gateway
	Parent  SpanID // zero: the trace begins here
	State   string // tracestate; empty: none
	Sampled bool   // its spans are kept

	// The trace of a client whose word is not enough to continue it; zero:
	// none.
	Claimed     TraceID
	ClaimedSpan SpanID
}

// Traceparent returns the field that tells an instance of the trace, as a
// child of span.
func (t *Trace) Traceparent(span SpanID) string {
	var b [55]byte
	copy(b[:], "00-")
	hex.Encode(b[3:], t.ID[:])
	b[35] = '-'
	hex.Encode(b[36:], span[:])
	copy(b[52:], "-00")
	if t.Sampled {
		b[54] = '1'
	}
	return string(b[:])
}

// ParseTraceparent reads a traceparent field as section 3.2 of W3C Trace
// Context has it, and nothing else: one line, lower case, no ids of zeros.
func ParseTraceparent(field []string) (id TraceID, span SpanID, sampled, ok bool) {
	if len(field) != 1 || len(field[0]) < 55 {
		return id, span, false, false
	}
	s := field[0]
	var version, flags [1]byte
	switch {
	case s[2] != '-', s[35] != '-', s[52] != '-',
		!lowerHex(version[:], s[:2]), !lowerHex(id[:], s[3:35]), !lowerHex(span[:], s[36:52]), !lowerHex(flags[:], s[53:55]),
		version[0] == 0xff, version[0] == 0 && len(s) != 55, len(s) > 55 && s[55] != '-',
		id == TraceID{}, span == SpanID{}:
		return TraceID{}, SpanID{}, false, false
	}
	return id, span, flags[0]&1 == 1, true
}

func lowerHex(dst []byte, s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		default:
			return false
		}
		dst[i/2] = dst[i/2]<<4 | c
	}
	return true
}

// Detail is the course of one try, for who follows the request: a trace that
// is sampled, or an operator. The transport tells it through Hooks, in
// goroutines of its own and some of it after the try has ended.
type Detail struct {
	Span  SpanID
	Began time.Time

	mu     sync.Mutex
	course Course
	ended  bool
}

// Course is when the phases of a try ended, from its beginning; 0: they did
// not happen, or nobody told.
type Course struct {
	Reused    bool          // on a connection that was there
	DialBegan time.Duration // a connection was made for this try
	Dialed    time.Duration
	Secured   time.Duration // TLS
	Connected time.Duration
	Wrote     time.Duration // the request
	FirstByte time.Duration // of the answer
	Ended     time.Duration // the answer's end, or the failure
}

// NewDetail begins the account of a try.
func NewDetail(began time.Time) *Detail { return &Detail{Span: NewSpanID(), Began: began} }

// Hooks returns what a transport calls.
func (d *Detail) Hooks() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		ConnectStart: func(string, string) { d.note(func(c *Course, at time.Duration) { c.DialBegan = at }) },
		ConnectDone: func(_, _ string, err error) {
			if err == nil {
				d.note(func(c *Course, at time.Duration) { c.Dialed = at })
			}
		},
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) {
			if err == nil {
				d.note(func(c *Course, at time.Duration) { c.Secured = at })
			}
		},
		GotConn: func(info httptrace.GotConnInfo) {
			d.note(func(c *Course, at time.Duration) { c.Connected, c.Reused = at, info.Reused })
		},
		WroteRequest: func(info httptrace.WroteRequestInfo) {
			if info.Err == nil {
				d.note(func(c *Course, at time.Duration) { c.Wrote = at })
			}
		},
		GotFirstResponseByte: func() { d.note(func(c *Course, at time.Duration) { c.FirstByte = at }) },
	}
}

func (d *Detail) note(set func(c *Course, at time.Duration)) {
	at := max(time.Since(d.Began), 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.ended {
		set(&d.course, at)
	}
}

// Answered says that the header has come.
func (d *Detail) Answered() {
	d.note(func(c *Course, at time.Duration) {
		if c.FirstByte == 0 {
			c.FirstByte = at
		}
	})
}

// End says that the try is over. What transports tell later does not count.
func (d *Detail) End() {
	d.note(func(c *Course, at time.Duration) { c.Ended = at })
	d.mu.Lock()
	d.ended = true
	d.mu.Unlock()
}

// Course returns what is known so far.
func (d *Detail) Course() Course {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.course
}
