package proxy

import (
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/pkg/adaptive"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
	"github.com/proconsul/proconsul/pkg/wire"
)

// flight is one request on its way. Only the goroutine that serves the request
// uses it, but for the two places that say otherwise. It serves other requests
// after that, unless it is held: net/http's transport may use parts of it for a
// while after the request has ended, and so may who sends a request's body.
type flight struct {
	held bool
	call *call // outlives the flight's use

	h     *handler
	up    *Upstream
	s     *settings
	w     http.ResponseWriter
	r     *http.Request
	x     *middleware.Exchange // nil: no account is kept
	start time.Time
	total time.Duration     // 0: no bound
	in    bool              // it counts among the breaker's
	limit *adaptive.Limiter // in which the request has a place; nil: none, or not any more

	// What every attempt sends.
	header  http.Header
	own     []wire.Line  // beside it: what the gateway says itself; nil: it is in the header
	owned   [4]wire.Line // backing array
	target  url.URL      // its Host is that of the attempt under way
	upgrade string       // protocol to switch to; empty: none
	body    *replay      // nil: no body

	replayable bool // may be handled twice
	duplexed   bool // an answer may come before the end of the body

	// The attempt under way.
	pick     balancer.Pick
	picked   bool
	instance string
	address  string
	detail   *middleware.Detail // nil: nobody follows the request
	number   int
	began    time.Time
	latency  time.Duration

	tried [4]*balancer.Member // backing array of the list
	list  []*balancer.Member
	out   http.Request // of an attempt that sends no body on the fast engine

	deadline deadline // of a gRPC call

	trace   *httptrace.ClientTrace // nil: no hooks
	interim interim

	lines []wire.Line // the header of the attempt's answer
}

// flight returns one that is as good as new.
func (u *Upstream) flight() *flight {
	if f, ok := u.flights.Get().(*flight); ok {
		return f
	}
	f := &flight{call: &call{}}
	f.call.answer.Interim = f.interim.forward
	return f
}

// Release implements middleware.Releaser: the answer has been written, header
// and all, and its header and the request's are not used any more.
func (f *flight) Release() {
	up, call := f.up, f.call
	call.answer.Clear()
	call.answer.Body, call.answer.Fields = call.answer.Body[:0], nil
	call.t = nil
	*f = flight{call: call}
	if middleware.Reuse {
		up.flights.Put(f)
	}
}

// prepare makes what every attempt sends.
func (f *flight) prepare() {
	f.rewrite()
	f.bound()
	f.held = f.s.fast == nil || f.upgrade != "" || f.x != nil && f.x.Followed
	if f.bodied() && !f.small() {
		rc := http.NewResponseController(f.w)
		f.body = newReplay(f.r, func() { _ = rc.SetReadDeadline(time.Unix(1, 0)) }) // a test's writer has no deadlines
		f.body.withhold = f.h.withhold
	}
	f.list = f.tried[:0]
	if f.r.ProtoAtLeast(1, 1) {
		f.interim.w = f.w
	}
	f.held = f.held || f.body != nil
}

// smallBody is how long a request body may be to be taken in whole before an
// instance is asked: that costs neither a goroutine nor a second write, it
// spares instances clients that are slow or leave, and any try can send it
// again.
const smallBody = 16 << 10

// small reports whether the request's body is to be taken in first. One whose
// client waits to be asked for it is not, nor one of unknown length: its sender
// may wait for an answer to the part that it has sent.
func (f *flight) small() bool {
	return !f.held && f.r.ContentLength > 0 && f.r.ContentLength <= smallBody && len(f.r.Trailer) == 0 && f.r.Header["Expect"] == nil
}

// takeIn reads a small body, or returns why it cannot be read.
func (f *flight) takeIn() error {
	body := &f.call.answer.Body
	*body = (*body)[:0]
	if f.held || f.body != nil || f.r.Body == nil || f.r.Body == http.NoBody || f.r.ContentLength <= 0 {
		return nil
	}
	*body = slices.Grow(*body, int(min(f.r.ContentLength, 4<<10)))
	for {
		n, err := f.r.Body.Read((*body)[len(*body):cap(*body)])
		*body = (*body)[:len(*body)+n]
		if f.x != nil {
			f.x.BytesIn = int64(len(*body))
		}
		switch {
		case err == io.EOF && int64(len(*body)) < f.r.ContentLength:
			return io.ErrUnexpectedEOF // or the instance would get half of it for the whole
		case err == io.EOF:
			f.start = time.Now() // the instances' time begins now
			return nil
		case err != nil:
			return err
		}
		*body = slices.Grow(*body, 1)
	}
}

// hold makes what attempts need that go to net/http's transport, or send a body.
func (f *flight) hold() {
	f.held = true
	f.merge()
	if f.interim.w == nil && f.body == nil {
		return
	}
	f.trace = &httptrace.ClientTrace{}
	if f.interim.w != nil {
		f.trace.Got1xxResponse = f.interim.forward
	}
	if f.body != nil {
		f.trace.GotConn = f.body.sentOn
	}
	if f.body != nil && f.body.expect {
		f.trace.Got100Continue = func() { f.body.wanted.Store(true) }
	}
}

// bound works out how long the request may take and how often it may be sent.
func (f *flight) bound() {
	f.total = f.s.Total
	if f.h.timeout > 0 {
		f.total = f.h.timeout
	}
	if problem.CallType(f.r) != "" {
		f.r = f.deadline.begin(f.r, f.start)
	}
	f.replayable = slices.Contains(f.s.Retry.Methods, f.r.Method) || f.r.Header.Get("Idempotency-Key") != ""
}

// ready takes in a small body, and reports whether an instance may be asked:
// the client has its answer otherwise.
func (f *flight) ready() bool {
	err := f.takeIn()
	if err == nil {
		return true
	}
	if f.r.Context().Err() != nil {
		err = context.Canceled
	}
	f.answer(classify(err, err, f.r.Context().Err() != nil, f.up.breaker))
	return false
}

// enter takes the request's places in the upstream's limits, once it waits for
// nothing but an instance: a client that is slow to send its body must not hold
// them. It reports whether there were any; the client has its answer otherwise.
func (f *flight) enter() bool {
	if err := f.up.breaker.Acquire(); err != nil {
		f.turnAway(classify(err, nil, false, f.up.breaker).problem)
		return false
	}
	f.in = true
	if limit := f.up.adaptive.Load(); limit != nil {
		if err := limit.Acquire(f.h.shed, time.Now()); err != nil {
			f.turnAway(shed(f.h.shed, err))
			return false
		}
		f.limit = limit
	}
	f.up.budget.request(f.start)
	return true
}

// turnAway answers a request that is not let in.
func (f *flight) turnAway(p *problem.Error) {
	if f.body != nil {
		f.body.stop()
	}
	problem.Write(f.w, f.r, p)
}

// run makes attempts until one has answered the client, or answers itself.
func (f *flight) run() {
	var last failure
	for {
		pick, err := f.up.pool.Pick(f.list...)
		if err != nil {
			if last.problem == nil {
				last = classify(err, nil, false, f.up.breaker)
			}
			break // an earlier attempt's error says more than "nobody else"
		}
		member := pick.Member()
		if f.number > 0 && slices.Contains(f.list, member) && !f.pause() {
			pick.Done(balancer.Outcome{Result: balancer.Canceled})
			last = f.classify(f.r.Context().Err())
			break
		}
		f.pick, f.picked = pick, true
		if len(f.list) < cap(f.list) {
			f.list = append(f.list, member)
		}
		resp, err := f.attempt(member)
		if err == nil {
			if err = f.deliver(resp); err == nil {
				return
			}
		}
		var broken *brokenError
		if errors.As(err, &broken) && broken.retried {
			f.number++
			continue
		}
		last = f.classify(err)
		if !f.again(last, err) {
			break
		}
		f.number++
	}
	f.answer(last)
}

// attempt sends the request to one instance and returns its answer, of which
// only the header has been read.
func (f *flight) attempt(member *balancer.Member) (*http.Response, error) {
	if f.began = f.start; f.number > 0 {
		f.began = time.Now()
	}
	f.instance, f.address = member.ID(), member.Address()
	try := f.s.Response
	if f.total > 0 {
		left := f.total - f.began.Sub(f.start)
		if left <= 0 {
			return nil, errTotal
		}
		if try <= 0 || left < try {
			try = left
		}
	}
	if f.number > 0 {
		f.header = f.deadline.told(f.header, f.began)
	}
	out, next := f.next(f.address)
	f.duplex()
	f.interim.begin()
	if f.deadline.cancel != nil {
		next = punctual{next, f.deadline.at}
	}
	resp, err := f.up.breaker.RoundTrip(out, next, f.began, try)
	f.interim.end()
	if f.latency = 0; err == nil && !f.held {
		f.latency = f.call.answer.Took
	}
	if f.latency <= 0 {
		f.latency = time.Since(f.began)
	}
	if err == nil {
		err = f.checkAnswer(resp)
	}
	if err != nil {
		if resp != nil {
			_ = resp.Body.Close() // its error would be about an answer that is not used
		}
		return nil, err
	}
	if f.lines = f.call.answer.Lines; f.held {
		f.lines = wire.AppendLines(make([]wire.Line, 0, len(resp.Header)+4), resp.Header)
	}
	return resp, nil
}

// next returns the next attempt's request and who sends it.
func (f *flight) next(address string) (*http.Request, http.RoundTripper) {
	if !f.held {
		if out := f.plain(address); f.s.fast.Plain(out) {
			f.call.t, f.call.answer.Fields, f.call.answer.Began = f.s.fast, f.own, f.began
			return out, f.call
		}
		if len(f.call.answer.Body) > 0 {
			f.body = newTaken(f.r, f.call.answer.Body)
		}
	}
	f.hold()
	if f.upgrade != "" {
		return f.request(address), f.s.upgrade
	}
	return f.request(address), f.s.main
}

// plain returns a request without a body, in the flight's own memory.
func (f *flight) plain(address string) *http.Request {
	f.target.Host = address
	// A copy brings the context along, which nothing else can put in its place.
	f.out = *f.r
	out := &f.out
	out.URL, out.Header, out.Host = &f.target, f.header, f.host(address)
	out.Proto, out.ProtoMajor, out.ProtoMinor = "HTTP/1.1", 1, 1
	out.Body, out.GetBody, out.ContentLength, out.TransferEncoding, out.Trailer = nil, nil, 0, nil, nil
	out.Form, out.PostForm, out.MultipartForm = nil, nil, nil
	out.Close, out.RemoteAddr, out.RequestURI, out.TLS, out.Pattern = false, "", "", nil, ""
	return out
}

// host returns what the instance is told that it is called.
func (f *flight) host(address string) string {
	if w := f.h.rewrite; w != nil {
		switch {
		case w.own:
			return address
		case w.host != "":
			return w.host
		}
	}
	return f.r.Host
}

// request returns the next attempt's request.
func (f *flight) request(address string) *http.Request {
	u := f.target
	u.Host = address
	ctx := f.r.Context()
	if f.trace != nil {
		ctx = httptrace.WithClientTrace(ctx, f.trace)
	}
	header := f.header
	if f.x != nil && f.x.Followed {
		header, ctx = f.follow(ctx)
	}
	out := (&http.Request{
		Method: f.r.Method, URL: &u, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Host: f.host(address),
	}).WithContext(ctx)
	if f.body != nil {
		trailer := f.body.trailer()
		out.Trailer = trailer
		out.ContentLength = f.r.ContentLength
		out.Body = f.body.view(trailer)
		// net/http sends a request again on its own where an idle connection
		// turns out to be closed and nothing was written on it.
		out.GetBody = func() (io.ReadCloser, error) {
			if !f.body.rewindable() {
				return nil, errNotReplayable
			}
			return f.body.view(trailer), nil
		}
	}
	return out
}

// follow begins the detailed account of a try, and tells the instance of the
// try's own span.
func (f *flight) follow(ctx context.Context) (http.Header, context.Context) {
	f.detail = middleware.NewDetail(f.began)
	header := f.header
	if t := f.x.Trace; t != nil {
		if f.number > 0 {
			header = maps.Clone(header) // the transport of an earlier try may still read it
		}
		header["Traceparent"] = []string{t.Traceparent(f.detail.Span)}
	}
	return header, httptrace.WithClientTrace(ctx, f.detail.Hooks())
}

// checkAnswer refuses answers that cannot be passed on.
func (f *flight) checkAnswer(resp *http.Response) error {
	switch {
	case resp.StatusCode < 100 || resp.StatusCode > 999,
		resp.StatusCode == http.StatusSwitchingProtocols && f.upgrade == "",
		resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols:
		return errProtocol
	}
	return nil
}

// classify says what an attempt's error means.
func (f *flight) classify(err error) failure {
	var upload error
	if f.body != nil {
		if f.body.interrupted.Load() {
			// The server takes the interruption for the client's leaving, and
			// so do the errors that follow from it.
			return classify(errInterrupted, nil, false, f.up.breaker)
		}
		upload = f.body.failure()
	}
	if f.overdue() {
		// The client's wish, and no evidence against anybody.
		return neutral(problem.New(problem.UpstreamTimeout, "the call's deadline has passed", err))
	}
	var c *clientError
	return classify(err, upload, f.r.Context().Err() != nil || errors.As(err, &c), f.up.breaker)
}

// again reports whether a failed attempt is to be followed by another, and
// settles it.
func (f *flight) again(fail failure, err error) bool {
	if fail.word == "" { // the breaker spoke: no instance was asked, and there is no attempt to account for
		f.settle(fail.result)
		return false
	}
	retried, refused := f.mayRetry(f.s.allows(fail.retry, f.replayable))
	f.report(0, fail.word, string(fail.problem.Reason), retried, refused)
	f.settle(fail.result)
	return retried
}

// mayRetry reports whether one more attempt may be made, given that what
// happened allows it, and whether only the budget forbids it.
func (f *flight) mayRetry(allowed bool) (retry, noBudget bool) {
	if !allowed || f.number >= f.s.Retry.Attempts || f.r.Context().Err() != nil {
		return false, false
	}
	if f.body != nil && !f.body.rewindable() {
		return false, false
	}
	now := time.Now()
	if f.total > 0 && now.Sub(f.start) >= f.total {
		return false, false
	}
	if !f.up.budget.retry(now, f.s.Retry.Budget, f.s.Retry.MinRate) {
		return false, true
	}
	return true, false
}

// pause waits a moment before an instance is asked for the second time, which
// happens only where there is no other. It reports whether the client is still
// there.
func (f *flight) pause() bool {
	timer := time.NewTimer(10*time.Millisecond + rand.N(30*time.Millisecond))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-f.r.Context().Done():
		return false
	}
}

// route is the route's name. The exchange has it where a request has just been.
func (f *flight) route() string {
	if f.x != nil && f.x.Route != "" {
		return f.x.Route
	}
	return f.h.name
}

// report gives the account of an attempt whose header or error has come.
func (f *flight) report(status int, word, reason string, retried, noBudget bool) {
	if f.latency == 0 {
		f.latency = time.Since(f.began)
	}
	if f.detail != nil && status != 0 {
		f.detail.Answered()
	}
	if f.x != nil {
		f.x.Instance = f.instance
		f.x.Upstreamed += f.latency
		f.x.Attempts = append(f.x.Attempts, middleware.Attempt{Instance: f.instance, Address: f.address, Status: status, Reason: reason, Duration: f.latency, Detail: f.detail})
	}
	if f.up.options.OnAttempt != nil {
		f.up.options.OnAttempt(Attempt{
			Upstream: f.up.name, Route: f.route(), Instance: f.instance, Number: f.number, Status: status,
			Failure: word, Ended: f.began.Add(f.latency), Duration: f.latency, Retried: retried, Budget: noBudget,
		})
	}
}

// broke adds to the account of an attempt that its answer ended too early.
func (f *flight) broke(status int, retried, noBudget bool) {
	if f.x != nil && len(f.x.Attempts) > 0 {
		f.x.Attempts[len(f.x.Attempts)-1].Reason = string(problem.UpstreamReset)
	}
	if f.up.options.OnAttempt != nil {
		f.up.options.OnAttempt(Attempt{
			Upstream: f.up.name, Route: f.route(), Instance: f.instance, Number: f.number, Status: status, Failure: failReset,
			Duration: time.Since(f.began), Retried: retried, Budget: noBudget, Broken: true,
		})
	}
}

// settle tells the pool how the attempt ended. Only the first call of an
// attempt counts.
func (f *flight) settle(result balancer.Result) {
	if f.detail != nil {
		f.detail.End()
		f.detail = nil
	}
	if f.picked {
		f.picked = false
		f.pick.Done(balancer.Outcome{Result: result, Latency: f.latency})
		f.latency = 0
	}
}

// duplex lets an instance answer before it has the whole body: the server
// would else read the rest of the body itself before it lets an answer out.
// HTTP/2 has no need of it and a test's writer no notion. Answers that are made
// before any instance was asked have the server do just that.
func (f *flight) duplex() {
	if f.body != nil && !f.duplexed {
		f.duplexed = true
		_ = http.NewResponseController(f.w).EnableFullDuplex()
	}
}

// part tells the client that its connection ends with an answer which comes
// before the end of its body. In full duplex the server leaves a body alone,
// and what is left of one must never pass for the next request.
func (f *flight) part() {
	if f.duplexed && !f.body.whole.Load() && f.r.ProtoMajor == 1 {
		f.w.Header()["Connection"] = []string{"close"}
	}
}

// uploadCounts is how long a request's body may be for the latency of its
// answer to be the service's: beyond, it may be the client's upload.
const uploadCounts = 64 << 10

// leave gives back the request's place in the adaptive limit: it counts those
// that wait for an answer, so a slow client or a stream holds none.
func (f *flight) leave(how adaptive.Outcome) {
	if f.limit == nil {
		return
	}
	if how == adaptive.Answered && (f.number > 0 || f.body != nil && (f.r.ContentLength < 0 || f.r.ContentLength > uploadCounts)) {
		how = adaptive.Irrelevant
	}
	f.limit.Release(f.h.shed, f.start, time.Now(), how)
	f.limit = nil
}

// answer ends a request that no instance answered.
func (f *flight) answer(fail failure) {
	if fail.result == balancer.Timeout { // not at a deadline of the client's choice
		f.leave(adaptive.TimedOut)
	}
	f.up.fail(f.instance, fail.problem)
	if f.body != nil {
		f.body.stop()
		f.part()
	}
	problem.Write(f.w, f.r, fail.problem)
	if fail.problem.Reason == problem.ClientCanceled {
		panic(http.ErrAbortHandler) // returning would send an empty 200, should anybody still be there
	}
}

// end settles whatever is open, also where the request ends in a panic.
func (f *flight) end() {
	if f.in {
		f.in = false
		defer f.up.breaker.Release()
	}
	f.deadline.end()
	f.leave(adaptive.Irrelevant)
	f.settle(balancer.Canceled)
	if f.body != nil {
		f.body.stop()
		if f.x != nil {
			f.x.BytesIn = f.body.read.Load()
		}
	}
}

// interim passes 1xx answers on. They come in a transport's goroutine while
// the one that serves the request waits for the final answer: the lock and
// the flag see to it that only one of the two uses the client's connection.
type interim struct {
	mu   sync.Mutex
	open bool
	w    http.ResponseWriter // nil: the client does not know of them
}

func (i *interim) begin() {
	i.mu.Lock()
	i.open = true
	i.mu.Unlock()
}

func (i *interim) end() {
	i.mu.Lock()
	i.open = false
	i.mu.Unlock()
}

// forward is httptrace's hook. 100 is not passed on: the server sends it when
// the body is read, which the transport does on the instance's 100.
func (i *interim) forward(code int, header textproto.MIMEHeader) error {
	if code == http.StatusContinue || code == http.StatusSwitchingProtocols {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.open || i.w == nil {
		return nil
	}
	// The interim answer has fields of its own; those that the gateway has set
	// so far are for the final one.
	h := i.w.Header()
	final := maps.Clone(h)
	clear(h)
	maps.Copy(h, http.Header(header))
	middleware.StripResponse(h)
	delete(h, "Content-Length")
	i.w.WriteHeader(code)
	clear(h)
	maps.Copy(h, final)
	return nil
}

// clientError is a failure to write to the client.
type clientError struct{ err error }

func (e *clientError) Error() string { return "write to the client: " + e.err.Error() }
func (e *clientError) Unwrap() error { return e.err }

// brokenError is an answer that ended before it was complete and before any of
// it had gone to the client.
type brokenError struct {
	err     error
	retried bool
}

func (e *brokenError) Error() string { return "read the answer: " + e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }
