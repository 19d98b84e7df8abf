// Package breaker keeps a failing service from being asked: one hystrix
// command per upstream, around each attempt's wait for response headers. It is
// the only door to hystrix-go.
//
// hystrix holds the circuits: it refuses while one is open, lets one request
// probe after a while and closes at its success. Around that, what hystrix-go
// does in a way that harms a gateway is done here: the timer of a try, the limit
// of requests in flight, exact counters, forcing by an operator, and the numbers
// that decide on opening. hystrix counts late, loses some events, takes a
// canceled request for one that went well and keeps errors longer than the
// requests they belong to; so an exact window of ten seconds corrects it both
// ways.
//
// Nothing that runs inside a command touches a ResponseWriter, a body is never
// read or copied inside one, no circuit is made per instance and
// hystrix.Flush is never called.
package breaker

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Errors that RoundTrip and Acquire return. They match with errors.Is;
// hystrix's own errors never leave this package.
var (
	// ErrOpen says that the breaker let no request through. No instance was
	// asked and the request's body was not touched. RetryAfter says when to
	// come back.
	ErrOpen = errors.New("breaker is open")
	// ErrLimited says that as many requests are in flight as may be. The
	// circuit is not told.
	ErrLimited = errors.New("too many requests in flight")
	// ErrTimeout says that no response header arrived in time. Its errors also
	// match context.DeadlineExceeded.
	ErrTimeout = errors.New("no response header in time")
)

// State is what a breaker does with the next request.
type State uint8

// The states of a breaker.
const (
	Closed   State = iota // requests pass
	HalfOpen              // one request is under way to find out whether the service has recovered
	Open                  // requests are refused
)

// String returns the state's name as configuration, metrics and logs have it.
func (s State) String() string {
	switch s {
	case Closed:
		return "closed"
	case HalfOpen:
		return "half_open"
	case Open:
		return "open"
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Counters are a breaker's exact totals since it was made, by outcome of an
// attempt. They do not depend on hystrix's events, which may be lost.
type Counters struct {
	Success        uint64 // an answer whose status does not count as a failure
	Failure        uint64 // an answer whose status does, or an error of the connection
	Timeout        uint64 // no header in time
	Canceled       uint64 // ended for a reason that says nothing of the service: the client left, its upload broke, a panic
	Rejected       uint64 // refused by Acquire
	ShortCircuited uint64 // refused by the open breaker, or by an operator's force
	Dropped        uint64 // events that hystrix lost because its queue was full; already counted above
	Vetoed         uint64 // openings that the exact window showed to be false and that were undone
}

// Status is a breaker at one moment, for the status page.
type Status struct {
	Name        string
	Command     string // hystrix's name for the circuit; empty while disabled
	State       State
	Since       time.Time     // of State
	RetryAfter  time.Duration // until a request may pass; 0 while closed
	Forced      bool          // an operator's Force holds
	ForcedUntil time.Time     // zero: until it is lifted
	InFlight    int           // permits held
	Requests    int           // attempts that count, in the last ten seconds
	Errors      int           // of those
	Opened      uint64        // how often it has opened by its numbers
	Cause       Cause         // of the last opening by its numbers
	Settings    Settings
	Counters    Counters
}

// Cause is what opened a breaker: attempts within ten seconds, and how many of
// them failed.
type Cause struct{ Requests, Errors int }

// Breaker guards one upstream. It is made by a Registry and safe for
// concurrent use.
type Breaker struct {
	name     string
	log      *slog.Logger
	onChange func(name string, s State)
	commands *commands
	cap      int
	hystrix  hystrixLimits

	config atomic.Pointer[compiled]
	permit permit
	counts [outcomes]atomic.Uint64
	window window

	attempts sync.Pool // of *attempt

	// refs are the registry's hold and one for each attempt inside hystrix.
	// The circuit is given back when the last is gone.
	refs atomic.Int64

	machine
	announcing sync.Mutex  // held while onChange is told
	released   atomic.Bool // nobody is told any more
}

// outcome is how an attempt ended.
type outcome uint8

const (
	success outcome = iota
	failure
	timeout
	canceled
	rejected
	shortCircuited
	dropped
	vetoed
	outcomes
)

func (b *Breaker) count(o outcome) { b.counts[o].Add(1) }

// Name returns the upstream's name.
func (b *Breaker) Name() string { return b.name }

// Counters returns the totals so far.
func (b *Breaker) Counters() Counters {
	return Counters{
		Success:        b.counts[success].Load(),
		Failure:        b.counts[failure].Load(),
		Timeout:        b.counts[timeout].Load(),
		Canceled:       b.counts[canceled].Load(),
		Rejected:       b.counts[rejected].Load(),
		ShortCircuited: b.counts[shortCircuited].Load(),
		Dropped:        b.counts[dropped].Load(),
		Vetoed:         b.counts[vetoed].Load(),
	}
}

// Status returns everything there is to show.
func (b *Breaker) Status() Status {
	c := b.config.Load()
	s := Status{
		Name: b.name, Settings: c.Settings, Counters: b.Counters(),
		State: b.State(), RetryAfter: b.RetryAfter(), InFlight: b.InFlight(),
	}
	if c.circuit != nil && !c.Disabled {
		s.Command = c.circuit.name
	}
	s.Requests, s.Errors = b.window.sum(time.Now())
	s.Since, s.Forced, s.ForcedUntil = b.since()
	s.Opened, s.Cause = b.cause()
	return s
}

// enter holds the circuit for an attempt. It fails once the breaker has been
// released and its circuit may serve somebody else.
func (b *Breaker) enter() bool {
	for {
		n := b.refs.Load()
		if n == 0 {
			return false
		}
		if b.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// leave undoes enter; the last to leave gives the circuit back.
func (b *Breaker) leave() {
	if b.refs.Add(-1) > 0 {
		return
	}
	if c := b.config.Load().circuit; c != nil {
		b.commands.give(c)
	}
}
