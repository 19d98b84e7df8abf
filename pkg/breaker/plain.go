package breaker

import (
	"fmt"
	"net/http"
	"runtime/debug"
	"time"
)

// plain makes the attempt that most are: the transport keeps the time, and no
// circuit has to be asked, because there is none or it is calm. It comes to what
// an attempt in the caller's goroutine comes to, in a third of the stack, which
// every request that waits for its instance holds. It reports false where the
// attempt is another's to make.
func (b *Breaker) plain(req *http.Request, next http.RoundTripper, began time.Time, try time.Duration) (resp *http.Response, made bool, err error) {
	if try <= 0 || req.Body != nil && req.Body != http.NoBody || b.forced.Load() != nil {
		return nil, false, nil
	}
	timed, ok := next.(Timed)
	if !ok {
		return nil, false, nil
	}
	config := b.config.Load()
	if !config.Disabled {
		if config.Engine != EngineDirect || !b.calm(began) || !b.enter() {
			return nil, false, nil
		}
		defer b.leave()
	}
	defer func() {
		if p := recover(); p != nil {
			b.count(canceled)
			b.lament(p, debug.Stack())
			panic(p)
		}
	}()
	epoch, state := b.current()
	by := began.Add(try)
	resp, err = timed.RoundTripBy(req, by)
	if err != nil || resp == nil || config.fault(req, resp) {
		resp, err = b.mishap(config, req, resp, err, began, by, epoch, state)
		return resp, true, err
	}
	b.count(success)
	if !config.Disabled {
		b.report(config.circuit, b.evidence(config.circuit, success, epoch, state), began)
	}
	return resp, true, nil
}

// mishap accounts for a plain attempt that was no success, and returns what the
// caller gets of it. It is apart, so that others need not have room for it.
func (b *Breaker) mishap(config *compiled, req *http.Request, resp *http.Response, err error, began, by time.Time, epoch uint64, state State) (*http.Response, error) {
	defer b.announce()
	a := b.attempt()
	a.config, a.req, a.timer.try = config, req, by.Sub(began)
	a.judge(resp, err, a.overdue(err, by), false)
	if !config.Disabled {
		b.report(config.circuit, b.evidence(config.circuit, a.outcome, epoch, state), began)
		b.follow(config.circuit)
	}
	b.count(a.outcome)
	resp, err = a.resp, a.err
	a.recycle()
	return resp, err
}

// lament logs a panic of the transport that was not meant.
func (b *Breaker) lament(p any, stack []byte) {
	if p != http.ErrAbortHandler {
		b.log.Error("panic in the transport", "upstream", b.name, "panic", fmt.Sprint(p), "stack", string(stack))
	}
}
