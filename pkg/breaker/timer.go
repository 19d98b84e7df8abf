package breaker

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// tryTimer bounds how long an instance may take for its response header. It
// stands still while the transport waits for the client's upload.
type tryTimer struct {
	try     time.Duration   // 0: no bound
	request context.Context // the client's

	mu      sync.Mutex
	timer   *time.Timer
	cancel  context.CancelCauseFunc
	waiting bool // for the client
	stalled bool // the request ended while the client was waited for
	fired   bool
	stopped bool
	loose   bool // fire may still be about to run
}

func (t *tryTimer) start(cancel context.CancelCauseFunc) {
	if t.try <= 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cancel = cancel
	t.timer = time.AfterFunc(t.try, t.fire)
}

// reset makes a stopped timer as good as new.
func (t *tryTimer) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.try, t.request, t.timer, t.cancel = 0, nil, nil, nil
	t.waiting, t.stalled, t.fired, t.stopped, t.loose = false, false, false, false, false
}

func (t *tryTimer) fire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting || t.stopped {
		return // it was stopped too late to be stopped
	}
	t.fired = true
	t.cancel(ErrTimeout)
}

// stop ends the timer and reports whether it had struck, and whether the
// request ended while the client was waited for.
func (t *tryTimer) stop() (fired, stalled bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	t.loose = t.timer != nil && !t.timer.Stop()
	return t.fired, t.stalled || t.waiting
}

func (t *tryTimer) pause() {
	t.mu.Lock()
	defer t.mu.Unlock()
	// What has ended before is not ended by this.
	t.waiting = t.request.Err() == nil
	if t.waiting && t.timer != nil {
		t.timer.Stop()
	}
}

func (t *tryTimer) resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.waiting {
		return
	}
	t.waiting = false
	// net/http does not return from a canceled round trip while a read of the
	// request body is pending, so nobody but the reader sees this.
	t.stalled = t.stalled || t.request.Err() != nil
	if t.timer != nil && !t.stopped && !t.fired {
		t.timer.Reset(t.try)
	}
}

// upload is a request body on its way from the client. It tells the timer when
// the client is waited for and knows whether the client's side broke, which is
// no fault of the instance's.
type upload struct {
	io.ReadCloser
	timer  *tryTimer
	failed *atomic.Bool
	closed atomic.Bool
}

// track makes uploads of the request's body, and of what a transport may read
// in its place when it has to begin again on another connection.
func (a *attempt) track(req *http.Request) {
	if req.Body == nil || req.Body == http.NoBody {
		return
	}
	wrap := func(body io.ReadCloser) io.ReadCloser {
		return &upload{ReadCloser: body, timer: &a.timer, failed: &a.uploadFailed}
	}
	req.Body = wrap(req.Body)
	if again := req.GetBody; again != nil {
		req.GetBody = func() (io.ReadCloser, error) {
			body, err := again()
			if err != nil {
				return nil, err
			}
			return wrap(body), nil
		}
	}
}

// Read implements io.Reader.
func (u *upload) Read(p []byte) (int, error) {
	u.timer.pause()
	n, err := u.ReadCloser.Read(p)
	u.timer.resume()
	// Where the transport has closed the body itself, because the instance
	// broke off, an error of its pending read is not the client's.
	if err != nil && err != io.EOF && !u.closed.Load() {
		u.failed.Store(true)
	}
	return n, err
}

// Close implements io.Closer. Transports call it at the end of any attempt.
func (u *upload) Close() error {
	u.closed.Store(true)
	return u.ReadCloser.Close()
}
