// Package middleware holds what all middlewares share: their type and the
// Exchange, the account of one request that the access log, the metrics and
// the status page read at its end. It never decides anything itself.
//
// A middleware may rely on this, and on no more:
//
//   - Of(w) is the request's Exchange however many writers stand around it. The
//     fields that the front fills (ClientIP, Trusted, Listener, Scheme, Host, Path,
//     Route, Upstream) are there before the first middleware runs; RequestID, Consumer
//     and what tells of the answer from the step on that sets them.
//   - A request belongs to its middlewares while the handler runs: its header may
//     be changed in place, and next may be given another request with the same
//     context. The map of a request's header, the slices in it, the writer, the
//     Exchange and the answer's header are used again for other requests: none of
//     them may be kept, or handed to a goroutine that lives on, after the handler
//     has returned. Strings may. What is kept is copied (http.Header.Clone).
//   - A value in a header may be shared by many requests. It is replaced or
//     appended to, never changed in place; a slice that is put there once for many
//     requests has a capacity of its length, so that appending copies.
//   - Writers that wrap w have Unwrap, and FlushError where they look at what is
//     written, so that http.ResponseController and Of see through them. The
//     answer's header is final when WriteHeader reaches the Exchange. A writer
//     that holds an answer back lets it out before its handler returns.
//   - An answer's fields are in Header where a writer that is no FieldWriter has
//     seen them. Who has none and wants to read them afterwards hands ByHeader(w)
//     on.
//   - next may panic with http.ErrAbortHandler, which has to pass.
package middleware

import (
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/proconsul/proconsul/pkg/problem"
	"github.com/proconsul/proconsul/pkg/wire"
)

// Middleware wraps a handler. The gateway composes them in one fixed order.
type Middleware func(http.Handler) http.Handler

// Attempt is one try of one instance, for the access log.
type Attempt struct {
	Instance string
	Address  string // of the instance
	Status   int    // 0 where no response arrived
	Reason   string // why it failed; empty where it did not
	Duration time.Duration
	Detail   *Detail // nil: nobody follows the request
}

// Exchange is the account of one request and the one ResponseWriter wrapper
// that keeps it. It is used by the goroutine that serves the request and must
// not be kept after the handler returns.
type Exchange struct {
	w http.ResponseWriter

	// Patience is how long a client may take for a part of an answer once the
	// answer is larger than a connection's buffers hold; 0: for ever.
	Patience time.Duration

	Start     time.Time
	RequestID string
	ClientIP  netip.Addr // after trusted proxies, unmapped, without zone
	Trusted   bool       // the direct peer is in trusted_proxies
	Listener  string     // by its name
	Scheme    string     // http or https, after trusted proxies
	Host      string     // canonical: lower case, no port, no trailing dot
	Path      string     // normalised, still escaped: what matching saw

	// Lines is how many lines the request's header had, without those that
	// concern the client's connection alone.
	Lines int

	// Sanitized says that the fields by which a client could claim to be
	// somebody else, or have others stripped, were dealt with at the front.
	Sanitized bool

	Route    string // empty: none matched
	Upstream string
	Instance string // the last one tried
	Consumer string // who was authenticated; empty: nobody

	// Claims are those of the consumer's token that routes ask for and limits
	// count by, as texts. It is shared and must not be changed.
	Claims map[string][]string

	Status    int   // 0 until the header is written
	Bytes     int64 // body bytes sent to the client
	BytesIn   int64 // body bytes read from the client
	Reason    problem.Reason
	Err       error          // for the log only
	Refusal   *problem.Error // what to answer where no route serves the request
	Location  string         // where to send it instead, with 308
	RateLimit string         // decision: allowed, limited, delayed, queue_full, fail_open, fail_closed, local; empty: none
	Delayed   time.Duration  // that the limiter made it wait
	Cache     string

	Attempts   []Attempt
	Upstreamed time.Duration // time spent waiting for instances, all attempts
	FirstByte  time.Duration // from Start to the response header; 0: none came
	Hijacked   bool

	// Rest serves the request behind the steps that all routes share; for
	// pkg/gateway, which sets it.
	Rest http.Handler

	Trace    *Trace // nil: no tracing
	Followed bool   // tries are to have their Detail

	tries [2]Attempt // what Attempts begins in; more tries than these are rare
	id    [1]string
	used  Releaser
}

// Releaser is what a request has used and another may use after it.
type Releaser interface{ Release() }

// NewExchange starts the account of a request.
func NewExchange(w http.ResponseWriter, start time.Time) *Exchange {
	e := &Exchange{}
	e.Begin(w, start)
	return e
}

// Begin starts the account of another request.
func (e *Exchange) Begin(w http.ResponseWriter, start time.Time) {
	*e = Exchange{} // no literal with fields, which would be made beside it and copied
	e.w, e.Start = w, start
	e.Attempts = e.tries[:0]
}

// Use has r released when the request has ended: the answer's header may hold
// parts of it until then. It says that nobody will use the request's header
// after that either. It reports whether it will be; there is place for one.
func (e *Exchange) Use(r Releaser) bool {
	if e.used != nil {
		return false
	}
	e.used = r
	return true
}

// Settled reports whether something is to be released at the end: nothing of
// the request is used any more then, its body neither.
func (e *Exchange) Settled() bool { return e.used != nil }

// End ends the account. It is called once all that writes the answer has
// returned. Who uses the exchange after it panics, until it is begun again.
func (e *Exchange) End() {
	// A header that was not written yet is the server's to read after this.
	if e.used != nil && e.Status != 0 {
		e.used.Release()
		if w, ok := e.w.(interface{ ReleaseRequest() }); ok { // pkg/front's
			w.ReleaseRequest()
		}
	}
	e.w, e.used, e.Rest = nil, nil, nil
}

// Now returns the time, also of no account. It looks at one clock where time.Now
// looks at two.
func (e *Exchange) Now() time.Time {
	if e == nil {
		return time.Now()
	}
	return e.Start.Add(time.Since(e.Start))
}

// SetRequestID sets RequestID, and returns it as the value of a field.
func (e *Exchange) SetRequestID(id string) []string {
	e.RequestID, e.id[0] = id, id
	return e.id[:]
}

// Of returns the exchange that w wraps or is. It returns nil where there is
// none, as in a test that calls a middleware on its own.
func Of(w http.ResponseWriter) *Exchange {
	for {
		switch v := w.(type) {
		case *Exchange:
			return v
		case interface{ Unwrap() http.ResponseWriter }:
			w = v.Unwrap()
		default:
			return nil
		}
	}
}

// Account returns the exchange of w, and w; outside the gateway, as in a test of
// one handler, a new one that stands for both.
func Account(w http.ResponseWriter) (*Exchange, http.ResponseWriter) {
	if e := Of(w); e != nil {
		return e, w
	}
	e := NewExchange(w, time.Now())
	return e, e
}

// Header implements http.ResponseWriter.
func (e *Exchange) Header() http.Header { return e.w.Header() }

// WriteHeader implements http.ResponseWriter. 1xx statuses pass through and
// are not the exchange's status.
func (e *Exchange) WriteHeader(code int) { e.WriteFields(code, nil) }

// WriteFields implements FieldWriter.
func (e *Exchange) WriteFields(code int, lines []wire.Line) {
	if e.Status == 0 && (code >= 200 || code == http.StatusSwitchingProtocols) {
		e.Status = code
	}
	WriteFields(e.w, code, lines)
}

// Write implements http.ResponseWriter.
func (e *Exchange) Write(b []byte) (int, error) {
	if e.Status == 0 {
		e.Status = http.StatusOK
	}
	size := e.Bytes + int64(len(b))
	if e.Patience > 0 && size > patientBytes {
		e.deadline(time.Now().Add(e.Patience * time.Duration(1+len(b)/patientBytes)))
		defer e.deadline(time.Time{}) // or an HTTP/2 stream that pauses would end
	}
	n, err := e.w.Write(b)
	e.Bytes += int64(n)
	return n, err
}

// patientBytes is what the buffers of any connection take, so that a smaller
// answer waits for nobody; and the part of a larger one that Patience is for.
const patientBytes = 32 << 10

// deadline bounds writing. A writer without deadlines (a test's) has no
// connection to protect.
func (e *Exchange) deadline(t time.Time) {
	if w, ok := e.w.(interface{ SetWriteDeadline(time.Time) error }); ok {
		_ = w.SetWriteDeadline(t)
	}
}

// ReadFrom implements io.ReaderFrom, so that the server may move the body
// with as few copies as it can.
func (e *Exchange) ReadFrom(r io.Reader) (int64, error) {
	if e.Status == 0 {
		e.Status = http.StatusOK
	}
	n, err := io.Copy(e.w, r) // uses the server's own ReaderFrom where it has one
	e.Bytes += n
	return n, err
}

// FlushError implements what http.ResponseController looks for, so that a
// flush before any byte of the body counts as the header it sends.
func (e *Exchange) FlushError() error {
	if e.Status == 0 {
		e.Status = http.StatusOK
	}
	if e.Patience > 0 && e.Bytes > patientBytes {
		e.deadline(time.Now().Add(e.Patience))
		defer e.deadline(time.Time{})
	}
	return http.NewResponseController(e.w).Flush()
}

// Unwrap lets http.ResponseController reach Hijack and deadlines.
func (e *Exchange) Unwrap() http.ResponseWriter { return e.w }

// Told returns the status that the client was told, or would have been.
// returned says whether the handler did, rather than give up on the answer.
func (e *Exchange) Told(returned bool) int {
	switch {
	case e.Status != 0:
		return e.Status
	case e.Hijacked:
		return http.StatusSwitchingProtocols
	case e.Reason == problem.ClientCanceled:
		return problem.StatusClientClosedRequest
	case returned:
		return http.StatusOK // net/http's own answer for a handler that said nothing
	}
	return http.StatusInternalServerError
}

// RecordStatus implements problem.Recorder: the account of a gRPC call that the
// gateway refused has the status that tells why, since 200 would tell nothing.
func (e *Exchange) RecordStatus(code int) {
	if e.Status == 0 {
		e.Status = code
	}
}

// RecordProblem implements problem.Recorder.
func (e *Exchange) RecordProblem(p *problem.Error) {
	e.Reason = p.Reason
	if p.Err != nil {
		e.Err = p.Err
	}
	if p.Reason == problem.ClientCanceled && e.Status == 0 {
		e.Status = problem.StatusClientClosedRequest
	}
}
