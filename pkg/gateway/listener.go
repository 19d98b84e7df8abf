package gateway

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/forwarded"
	"github.com/proconsul/proconsul/pkg/problem"
)

// Listener returns the handler for one public listener: it believes the
// forwarding headers of that listener's trusted proxies and no others, and
// holds its limits.
func (h *Handler) Listener(c config.Listen) http.Handler {
	l := &listener{
		handler:    h,
		name:       c.Name,
		trusted:    forwarded.New(c.TrustedProxies),
		keepSlash:  c.EncodedSlash == "keep",
		closed:     c.Default == "deny",
		maxHeaders: c.Limits.MaxHeaders,
		maxBody:    int64(c.Limits.MaxBodyBytes),
		bodyRead:   c.Timeouts.BodyRead,
		bodyWrite:  c.Timeouts.BodyWrite,
		redirect:   c.RedirectToTLS,
		tellCert:   c.TLS != nil && c.TLS.ForwardClientCert,
	}
	if c.Limits.MaxInFlight > 0 {
		l.admission = newAdmission(c.Limits.MaxInFlight, c.Limits.MaxQueue, c.Limits.QueueTimeout)
	}
	return l
}

// Refuse answers what could not be taken for a request, with the status and
// the reason that the client is told. Of the request it needs no more than
// where it came from.
type Refuse func(w http.ResponseWriter, r *http.Request, status int, detail string)

// Refusals returns what answers such requests of one public listener: they are
// logged, counted and given an id like any other.
func (h *Handler) Refusals(c config.Listen) Refuse {
	trusted := forwarded.New(c.TrustedProxies)
	return func(w http.ResponseWriter, r *http.Request, status int, detail string) {
		ex := middleware.NewExchange(w, time.Now())
		trusted.Apply(ex, r)
		h.table.Load().reject(ex, r, &problem.Error{Reason: problem.BadRequest, Status: status, Detail: detail})
	}
}

type listener struct {
	handler    *Handler
	name       string
	trusted    *forwarded.Trusted
	keepSlash  bool
	closed     bool // routes without auth are not served
	maxHeaders int
	maxBody    int64
	bodyRead   time.Duration
	bodyWrite  time.Duration
	admission  *admission // nil: no limit
	exchanges  sync.Pool  // of *middleware.Exchange
	redirect   int        // port of the TLS listener to send clients to; 0: serve them
	tellCert   bool       // instances learn of the client's certificate
}

func (l *listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ex, ok := l.exchanges.Get().(*middleware.Exchange)
	if !ok {
		ex = new(middleware.Exchange)
	}
	ex.Begin(w, time.Now())
	ex.Patience = l.bodyWrite
	ex.Listener = l.name
	alone := r.Body == nil || r.Body == http.NoBody
	if _, shown := r.Header[TraceHeader]; shown {
		l.shown(ex, r)
	} else {
		l.serve(ex, r, nil)
	}
	if !alone && !ex.Settled() {
		return // a transport may still be in a read of the body, through wrappers that know the exchange
	}
	ex.End() // of requests that panic nobody asks
	if middleware.Reuse {
		l.exchanges.Put(ex)
	}
}

// shown serves a request that shows a ticket, which may be none of ours.
func (l *listener) shown(ex *middleware.Exchange, r *http.Request) {
	if t := l.handler.tickets.redeem(r); t != nil {
		l.follow(t, ex, r)
		return
	}
	l.serve(ex, r, nil)
}

// serve serves a request, and tells f of its course unless that is nil.
func (l *listener) serve(ex *middleware.Exchange, r *http.Request, f *Followed) {
	r = ownBody(r)
	l.trusted.Apply(ex, r)
	t := l.handler.table.Load()
	if p := l.check(ex, r); p != nil {
		t.reject(ex, r, p)
		return
	}
	if l.redirect != 0 && ex.Scheme == "http" && !strings.HasPrefix(ex.Path, challengePath) {
		t.toTLS(ex, r, l.redirect)
		return
	}
	if l.tellCert {
		tellCertificate(r)
	}
	rt, allow := t.match(r, ex.Host)
	switch {
	case rt == nil && allow != nil:
		t.reject(ex, r, &problem.Error{Reason: problem.MethodNotAllowed, Header: http.Header{"Allow": {strings.Join(allow, ", ")}}})
		return
	case rt == nil:
		t.reject(ex, r, problem.New(problem.NoRoute, "", nil))
		return
	}
	ex.Route, ex.Upstream = rt.name, rt.service
	if p := l.admit(rt); p != nil {
		t.reject(ex, r, p)
		return
	}
	if l.admission != nil {
		if err := l.admission.enter(r.Context()); err != nil {
			t.reject(ex, r, problem.New(problem.ConcurrencyLimited, "", err))
			return
		}
		defer l.admission.leave()
	}
	if f != nil {
		ex.Rest = rt
		t.followed(rt, f).ServeHTTP(ex, r)
		return
	}
	t.serve(rt, ex, r)
}

// admit refuses routes that nobody has decided about where the listener says
// default: deny.
func (l *listener) admit(rt *Route) *problem.Error {
	if l.closed && rt.settings.Auth == nil {
		return problem.New(problem.Forbidden, "this listener serves no route without auth", nil)
	}
	return nil
}

// ownBody returns a request whose Body may be replaced. The server keeps the
// first one to see, after the answer, whether its body was read to the end: it
// has to find its own Body there, or it takes what is left of a long body for
// the client's next request.
func ownBody(r *http.Request) *http.Request {
	if r.Body == nil || r.Body == http.NoBody {
		return r
	}
	if r.ContentLength < 0 && r.Trailer == nil {
		r.Trailer = http.Header{} // one map for both: trailers come late
	}
	return r.WithContext(r.Context())
}

// check brings the request into the form that matching and the chain rely on,
// or says why it is refused.
func (l *listener) check(ex *middleware.Exchange, r *http.Request) *problem.Error {
	if !isToken(r.Method) {
		return problem.New(problem.BadRequest, "the method is malformed", nil)
	}
	path, err := canonicalPath(r.URL.EscapedPath(), l.keepSlash)
	if err != nil {
		return problem.New(problem.BadRequest, err.Error(), nil)
	}
	setPath(r.URL, path)
	ex.Path = path
	if l.maxHeaders > 0 && ex.Lines > l.maxHeaders {
		return &problem.Error{Reason: problem.BadRequest, Status: http.StatusRequestHeaderFieldsTooLarge,
			Detail: fmt.Sprintf("more than %d header fields", l.maxHeaders)}
	}
	if l.maxBody > 0 {
		if r.ContentLength > l.maxBody {
			return problem.New(problem.BodyTooLarge, fmt.Sprintf("the limit is %d bytes", l.maxBody), nil)
		}
		if r.ContentLength < 0 {
			r.Body = http.MaxBytesReader(ex, r.Body, l.maxBody)
		}
	}
	if l.bodyRead > 0 && r.Body != nil && r.Body != http.NoBody {
		r.Body = &pacedBody{ReadCloser: r.Body, control: http.NewResponseController(ex), limit: l.bodyRead}
	}
	return nil
}

// isToken reports whether s is a token (RFC 9110 section 5.6.2). HTTP/2 frames
// carry methods that are none.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// pacedBody gives every read of a request body a deadline of its own, so that
// a client that stalls cannot hold a connection for ever while a slow one that
// makes progress is left alone.
type pacedBody struct {
	io.ReadCloser
	control *http.ResponseController
	limit   time.Duration
}

func (b *pacedBody) Read(p []byte) (int, error) {
	// A writer without deadlines (a test's) has no connection to protect.
	_ = b.control.SetReadDeadline(time.Now().Add(b.limit))
	n, err := b.ReadCloser.Read(p)
	if err != nil { // the body is over: the server's own deadlines apply again
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// admission bounds the requests in flight on a listener. A bounded number
// waits for a bounded time; the rest is refused at once.
type admission struct {
	slots   chan struct{}
	waiting atomic.Int64
	queue   int64
	timeout time.Duration
}

func newAdmission(limit, queue int, timeout time.Duration) *admission {
	return &admission{slots: make(chan struct{}, limit), queue: int64(queue), timeout: timeout}
}

// enter takes a place or says why there is none.
func (a *admission) enter(ctx context.Context) error {
	select {
	case a.slots <- struct{}{}:
		return nil
	default:
	}
	if a.waiting.Add(1) > a.queue {
		a.waiting.Add(-1)
		return fmt.Errorf("%d requests in flight and %d waiting", cap(a.slots), a.queue)
	}
	defer a.waiting.Add(-1)
	timer := time.NewTimer(a.timeout)
	defer timer.Stop()
	select {
	case a.slots <- struct{}{}:
		return nil
	case <-timer.C:
		return fmt.Errorf("no place among %d in %v", cap(a.slots), a.timeout)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *admission) leave() { <-a.slots }

// reject sends a request that no route serves through the chain that answers
// p, so that it is logged, counted and given an id like any other.
func (t *Table) reject(ex *middleware.Exchange, r *http.Request, p *problem.Error) {
	ex.Refusal = p
	t.serve(t.nowhere, ex, r)
}

// refuse is the end of that chain.
func refuse(w http.ResponseWriter, r *http.Request) {
	x := middleware.Of(w)
	if x.Refusal == nil {
		w.Header().Set("Location", x.Location)
		w.WriteHeader(http.StatusPermanentRedirect)
		return
	}
	problem.Write(w, r, x.Refusal)
}
