package front

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// requestContext is a request's context. It is canceled when the client leaves
// or the handler returns. It is a type of its own because context.WithCancel
// costs three allocations, and because the contexts that breakers and
// transports derive cost less from one with an AfterFunc.
type requestContext struct {
	c *conn

	ended atomic.Bool // it is canceled

	mu    sync.Mutex
	done  chan struct{} // nil: nobody has asked for it
	after []*afterFunc
}

type afterFunc struct{ run func() }

var _ context.Context = (*requestContext)(nil)

// Deadline implements context.Context: there is none.
func (x *requestContext) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done implements context.Context.
func (x *requestContext) Done() <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.done == nil {
		x.done = make(chan struct{})
		if x.ended.Load() {
			close(x.done)
		}
	}
	return x.done
}

// Err implements context.Context.
func (x *requestContext) Err() error {
	if x.ended.Load() {
		return context.Canceled
	}
	return nil
}

// Value implements context.Context. It knows what net/http's server does.
func (x *requestContext) Value(key any) any {
	switch key {
	case http.LocalAddrContextKey:
		return x.c.nc.LocalAddr()
	case http.ServerContextKey:
		if s := x.c.s.o.HTTP2; s != nil {
			return s
		}
	}
	return nil
}

// AfterFunc is what context.WithCancel and its like look for, in order to be
// told without a goroutine that waits.
func (x *requestContext) AfterFunc(run func()) (stop func() bool) {
	f := &afterFunc{run}
	x.mu.Lock()
	if x.ended.Load() {
		x.mu.Unlock()
		go run() // the caller may hold what it takes
		return func() bool { return false }
	}
	x.after = append(x.after, f)
	x.mu.Unlock()
	return func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		for i, g := range x.after {
			if g == f {
				last := len(x.after) - 1
				x.after[i], x.after[last] = x.after[last], nil
				x.after = x.after[:last]
				return true
			}
		}
		return false
	}
}

// cancel ends the context. Only the first call counts.
func (x *requestContext) cancel() {
	x.mu.Lock()
	if x.ended.Swap(true) {
		x.mu.Unlock()
		return
	}
	if x.done != nil {
		close(x.done)
	}
	after := x.after
	x.after = nil
	x.mu.Unlock()
	for _, f := range after {
		f.run()
	}
}
