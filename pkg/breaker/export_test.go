package breaker

import (
	"log/slog"
	"time"
)

// NewBoundedRegistry returns a registry that makes no circuit where the
// process has that many.
func NewBoundedRegistry(limit int) *Registry {
	r := NewRegistry(nil, nil)
	r.cap = limit
	return r
}

// NewTightRegistry returns a registry whose commands have hystrix's own limits
// within reach of a test.
func NewTightRegistry(log *slog.Logger, backstop time.Duration, tickets int) *Registry {
	r := NewRegistry(log, nil)
	r.hystrix = hystrixLimits{backstop: backstop, tickets: tickets}
	return r
}

// Circuits returns how many circuits this process has made.
func Circuits() int {
	process.mu.Lock()
	defer process.mu.Unlock()
	return process.total
}

// Window is the second opinion, for its property test.
type Window struct{ w window }

// NewWindow returns a window that begins now.
func NewWindow() *Window { return &Window{w: window{base: time.Now()}} }

// Add counts one attempt.
func (w *Window) Add(failed bool) { w.w.add(time.Now(), failed) }

// Sum returns what counts now.
func (w *Window) Sum() (requests, errs int) { return w.w.sum(time.Now()) }
