package breaker

import (
	"context"
	"time"

	"github.com/afex/hystrix-go/hystrix"
)

// engine asks a circuit whether an attempt may be made, makes it and tells the
// circuit how it went. It reports false where the circuit refused; the attempt
// was not begun then and may be given to an engine again.
type engine interface {
	do(c *circuit, a *attempt) bool
}

// events as hystrix names them. It keeps the slices but never writes to them.
var (
	eventSuccess = []string{"success"}
	eventFailure = []string{"failure"}
	eventTimeout = []string{"timeout"}
)

// command is the literal hystrix command.
type command struct{}

func (command) do(c *circuit, a *attempt) bool {
	// A command that is refused is an error for hystrix. While the breaker is
	// closed it is refused for no good reason, so none is begun. (While it is
	// open only a command may ask: asking is what lets one probe.)
	if _, s := a.b.current(); s == Closed && c.breaker.IsOpen() {
		return false
	}
	// hystrix's own limit is not in use: it counts a refusal as an error of
	// the service, gives tickets back late and cannot be resized. What would
	// need the second half of the tickets does without one.
	if running := c.running.Add(1); running > c.tickets/2 {
		c.running.Add(-1)
		return direct{}.do(c, a)
	}
	// Not the request's context: hystrix would return at its end while run
	// goes on. Canceling the request ends the round trip, and that the run.
	// GoC rather than DoC, which only makes another channel and another closure
	// to wait for what run tells itself.
	a.awaited = true
	failed := hystrix.GoC(context.Background(), c.name, a.command, nil)
	select {
	case <-a.ended:
		a.awaited = false
		c.running.Add(-1)
		return true
	case err := <-failed:
		c.running.Add(-1)
		switch err {
		case hystrix.ErrCircuitOpen:
			a.awaited = false
			return false
		case hystrix.ErrMaxConcurrency:
			// All tickets are out although less than half are in use: the
			// goroutines that return them have not run for a while.
			a.awaited = false
			return direct{}.do(c, a)
		}
		return true
	}
}

// direct asks and tells the same circuit from the caller's goroutine. While the
// service is calm there is nothing to ask, since only errors open a circuit, and
// successes are not told: each would cost hystrix several microseconds, two
// goroutines among them. The first error ends that. hystrix then knows of fewer
// requests than there were and may open too soon, which the window undoes.
type direct struct{}

func (direct) do(c *circuit, a *attempt) bool {
	now := time.Now()
	if a.b.calm(now) {
		direct{}.pass(c, a, now)
		return true
	}
	if !c.breaker.AllowRequest() {
		// No event: the circuit is open, so the number would be forgotten at
		// its closing, or, still queued then, be the first error after it.
		return false
	}
	direct{}.pass(c, a, now)
	return true
}

// pass makes the attempt without asking.
func (direct) pass(c *circuit, a *attempt, start time.Time) {
	a.b.report(c, a.run(context.Background()), start)
}

// report tells the circuit of the event that an attempt was.
func (b *Breaker) report(c *circuit, event error, start time.Time) {
	switch event {
	case nil:
		if !b.calm(start) {
			b.tell(c, eventSuccess, start, time.Since(start))
		}
	case hystrix.ErrTimeout:
		b.tell(c, eventTimeout, start, time.Since(start))
	case context.Canceled:
	default:
		b.tell(c, eventFailure, start, time.Since(start))
	}
}

// calm reports whether the circuit is closed and stays so: there has been no
// error for as long as hystrix remembers one.
func (b *Breaker) calm(now time.Time) bool {
	_, s := b.current()
	return s == Closed && !b.suspect.Load() && !b.due.Load() && b.window.calm(now)
}

// tell reports one event to hystrix and counts it where hystrix loses it.
func (b *Breaker) tell(c *circuit, event []string, start time.Time, d time.Duration) {
	if c.breaker.ReportEvent(event, start, d) != nil {
		b.count(dropped)
	}
}
