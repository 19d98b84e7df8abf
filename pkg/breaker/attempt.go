package breaker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/afex/hystrix-go/hystrix"
)

// admissions bounds how often an attempt asks a circuit that is open for no good
// reason. After that it passes unasked.
const admissions = 3

var (
	errFault    = errors.New("the attempt counts as a failure") // for hystrix; callers get the answer or the error
	errNoAnswer = errors.New("transport returned neither an answer nor an error")
)

// Timed is a transport that keeps the time of a try itself, where the request
// has no body: that spares a context and a timer for each. At the time by it
// fails with an error that is a timeout. Nothing of it runs on after it has
// returned.
type Timed interface {
	RoundTripBy(req *http.Request, by time.Time) (*http.Response, error)
}

// RoundTrip makes one attempt with next, guarded by the breaker, and ends when
// the response header is there; the body is the caller's to read and close, and
// no timer of the breaker runs any more. Answers are returned whatever their
// status, also those that count as failures.
//
// began is when the attempt began, which the caller has looked at a clock for.
// try is how long the instance may take for the header; 0 is no bound. Time in
// which the transport waits for the client's part of the request body does not
// count, and the full time begins again after each part: it is the instance
// that is timed.
//
// Errors match ErrOpen (nothing was sent, the request's body was not touched),
// ErrTimeout, or are those of next. A panic in next is raised again in the
// caller's goroutine. The request's context must end with the request, as a
// server's does: it is what frees the attempt's own. Where next is Timed, it is
// used as that.
func (b *Breaker) RoundTrip(req *http.Request, next http.RoundTripper, began time.Time, try time.Duration) (*http.Response, error) {
	if resp, made, err := b.plain(req, next, began, try); made {
		return resp, err
	}
	return b.guarded(req, next, try)
}

// guarded makes an attempt that is not plain.
func (b *Breaker) guarded(req *http.Request, next http.RoundTripper, try time.Duration) (*http.Response, error) {
	defer b.announce()
	if err := req.Context().Err(); err != nil {
		b.count(canceled) // and the probe is left to a request that lives
		return nil, ended(req.Context(), err)
	}
	config := b.config.Load()
	f := b.forced.Load()
	guarded := f == nil && !config.Disabled && b.enter()
	if guarded {
		defer b.leave()
	}
	if f != nil && f.state == Open || guarded && b.resting(config) {
		b.count(shortCircuited)
		return nil, ErrOpen
	}
	a := b.attempt()
	a.config, a.next, a.req, a.unguarded = config, next, req, !guarded
	a.timer.try, a.timer.request = try, req.Context()
	if try > 0 && (req.Body == nil || req.Body == http.NoBody) {
		a.timed, _ = next.(Timed)
	}
	if !a.perform() {
		b.count(shortCircuited)
		a.recycle()
		return nil, ErrOpen
	}
	if a.abandon() {
		b.failed()
		b.count(timeout)
		return nil, &timeoutError{}
	}
	a.await()
	b.count(a.outcome)
	if a.panicked != nil {
		b.lament(a.panicked, a.stack)
		panic(a.panicked)
	}
	resp, err := a.resp, a.err
	a.recycle()
	return resp, err
}

// attempt returns one that is as good as new.
func (b *Breaker) attempt() *attempt {
	if a, ok := b.attempts.Get().(*attempt); ok {
		return a
	}
	a := &attempt{b: b, ended: make(chan struct{}, 1)}
	a.command = a.run // made once: a method value is an allocation
	return a
}

// recycle lets another request use the attempt. It must have ended: of those
// that were abandoned run may still be under way.
func (a *attempt) recycle() {
	if a.timer.loose || a.req.Body != nil && a.req.Body != http.NoBody {
		return // a transport may read the body, and so tell the timer, after the attempt's end
	}
	a.config, a.next, a.req, a.timed = nil, nil, nil, nil
	a.timer.reset()
	a.unguarded, a.awaited = false, false
	a.uploadFailed.Store(false)
	a.phase.Store(idle)
	a.cancel, a.outcome, a.resp, a.err = nil, 0, nil, nil
	a.b.attempts.Put(a)
}

// attempt is one round trip and what became of it. The command engine runs it
// in a goroutine of hystrix's; phase hands it back to the caller's.
type attempt struct {
	b      *Breaker
	config *compiled
	next   http.RoundTripper
	timed  Timed // next, where it keeps the time; nil: timer does
	req    *http.Request
	timer  tryTimer

	unguarded    bool // no circuit is asked or told
	uploadFailed atomic.Bool

	command func(context.Context) error // run
	ended   chan struct{}               // what run says at its end, where that is awaited
	awaited bool

	phase  atomic.Uint32
	cancel context.CancelCauseFunc // set before phase is running

	// Set before phase is done, and read after.
	outcome  outcome
	resp     *http.Response
	err      error
	panicked any
	stack    []byte
}

// Phases of an attempt.
const (
	idle      = iota
	running   // run has begun
	done      // run has ended, the result is the caller's
	abandoned // the caller has gone, the result is run's to throw away
)

// perform makes the attempt, or reports that it may not be made.
func (a *attempt) perform() bool {
	b, c := a.b, a.config.circuit
	if a.unguarded {
		a.run(context.Background()) // its event is for circuits
		return true
	}
	defer b.follow(c) // now, since the next request may come long after
	if b.claim(a.config) {
		direct{}.pass(c, a, time.Now())
		return true
	}
	for range admissions {
		if a.config.engine.do(c, a) {
			return true
		}
		if !b.undo(c) {
			return false
		}
	}
	direct{}.pass(c, a, time.Now())
	return true
}

// abandon ends the attempt for the caller if run has not ended: hystrix's own
// timeout has struck, because the transport does not heed its context.
func (a *attempt) abandon() bool {
	if a.phase.CompareAndSwap(idle, abandoned) {
		return true
	}
	if a.phase.CompareAndSwap(running, abandoned) {
		if a.cancel != nil {
			a.cancel(ErrTimeout)
		}
		return true
	}
	return false
}

// await takes note of run's end where nobody has yet. It comes right after the
// result.
func (a *attempt) await() {
	if a.awaited {
		<-a.ended
		a.awaited = false
	}
}

// run is what a hystrix command runs. It returns the event that hystrix is to
// count: nil for success, hystrix.ErrTimeout, a bare context.Canceled for none,
// anything else for failure. It must not panic, since nobody would recover in
// that goroutine.
func (a *attempt) run(context.Context) (event error) {
	if a.timed == nil {
		ctx, cancel := context.WithCancelCause(a.req.Context())
		a.cancel = cancel
		if !a.phase.CompareAndSwap(idle, running) {
			cancel(nil)
			return context.Canceled
		}
		return a.roundTrip(ctx)
	}
	if !a.phase.CompareAndSwap(idle, running) {
		return context.Canceled
	}
	return a.roundTrip(nil)
}

// roundTrip makes the attempt, with a context of its own where next does not
// keep the time.
func (a *attempt) roundTrip(ctx context.Context) (event error) {
	epoch, state := a.b.current()
	defer func() {
		if p := recover(); p != nil {
			a.timer.stop()
			if a.cancel != nil {
				a.cancel(nil)
			}
			a.panicked, a.stack, a.outcome = p, debug.Stack(), canceled
			event = a.finish(epoch, state)
		}
	}()
	if state == HalfOpen {
		a.b.announce() // now, since the probe may take its time
	}
	if ctx == nil {
		by := time.Now().Add(a.timer.try)
		resp, err := a.timed.RoundTripBy(a.req, by)
		a.judge(resp, err, a.overdue(err, by), false)
		return a.finish(epoch, state)
	}
	req := a.req.WithContext(ctx)
	a.track(req)
	a.timer.start(a.cancel)
	resp, err := a.next.RoundTrip(req)
	fired, stalled := a.timer.stop()
	a.judge(resp, err, fired, stalled)
	if a.err != nil {
		a.cancel(a.err)
	}
	return a.finish(epoch, state)
}

// overdue reports whether an error of a transport that keeps the time is that
// the time is over.
func (a *attempt) overdue(err error, by time.Time) bool {
	return err != nil && timedOut(err) && !time.Now().Before(by) && a.req.Context().Err() == nil
}

// judge turns the round trip's result into an outcome, and into what the
// caller gets.
func (a *attempt) judge(resp *http.Response, err error, fired, stalled bool) {
	parent := a.req.Context()
	gone := parent.Err()
	if fired || err != nil {
		// A header that has just come is late too: its body is canceled.
		discard(resp)
	}
	switch {
	case fired:
		a.outcome, a.err = timeout, &timeoutError{try: a.timer.try, err: err}
	case err == nil && resp == nil:
		a.outcome, a.err = failure, errNoAnswer
	case err == nil:
		a.resp = resp
		if a.config.fault(a.req, resp) {
			a.outcome = failure
		}
	case gone != nil:
		// Canceled is the client leaving. A deadline is a timer like ours,
		// but not the instance's fault while the client is waited for.
		a.outcome, a.err = canceled, err
		if late(parent, gone) {
			a.err = &timeoutError{err: err}
			if !stalled {
				a.outcome = timeout
			}
		}
	case a.uploadFailed.Load(), errors.Is(err, context.Canceled), unsendable(err):
		a.outcome, a.err = canceled, err
	case timedOut(err):
		a.outcome, a.err = timeout, err
	default:
		a.outcome, a.err = failure, err
	}
}

// finish hands the result to the caller and returns the event for hystrix.
// epoch and state are the circuit's when the run began.
func (a *attempt) finish(epoch uint64, state State) error {
	b, circuit, outcome := a.b, a.config.circuit, a.outcome // the caller's after the swap
	unguarded, awaited := a.unguarded, a.awaited
	if !a.phase.CompareAndSwap(running, done) {
		discard(a.resp)
		if a.panicked != nil {
			b.log.Error("panic in an abandoned attempt", "upstream", b.name, "panic", fmt.Sprint(a.panicked), "stack", string(a.stack))
		}
		return hystrix.ErrTimeout // counted when it struck
	}
	if unguarded {
		return context.Canceled
	}
	// What the circuit is told is told before the caller goes on.
	event := b.evidence(circuit, outcome, epoch, state)
	if awaited {
		a.ended <- struct{}{}
	}
	return event
}

// evidence says what an outcome means for the circuit, tells the window and
// returns the event for hystrix. An attempt is evidence only for the period
// that it began in. hystrix closes an open circuit at any success, also of a
// request that began before it opened; and where the service has recovered, the
// timeouts of such requests would open it once more.
func (b *Breaker) evidence(c *circuit, o outcome, epoch uint64, began State) error {
	if began == Open || b.stale(epoch) {
		return context.Canceled
	}
	probe := began == HalfOpen
	if o == success {
		if probe {
			// Told here, where a command would only tell it after the caller
			// has its answer, whose next request would still be refused.
			b.shut(c)
		}
		b.window.add(time.Now(), false)
		if probe {
			return context.Canceled
		}
		return nil
	}
	if o != canceled {
		b.failed()
	}
	if probe {
		b.probeFailed(epoch)
	}
	switch o {
	case timeout:
		return hystrix.ErrTimeout
	case failure:
		return errFault
	}
	return context.Canceled
}
