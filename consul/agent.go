package consul

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// agent is what all watches share about the one agent that they ask: whether
// it answers, and whether it has a leader. While it does not answer, only this
// probe knocks; the watches wait for it and come back spread, so that a
// thousand of them are no herd.
type agent struct {
	client *Client
	log    *slog.Logger
	every  time.Duration
	// changed is told of each transition, in the goroutine of the probe.
	changed func(was, is agentState)

	poke chan struct{}

	mu    sync.Mutex
	state agentState
	back  chan struct{} // closed when an outage ends: the agent answers and has a leader
}

// agentState is one moment of the agent.
type agentState struct {
	up      bool
	known   bool // a probe has ended
	leader  string
	silent  bool      // it does not say who leads, as behind a proxy: no news are good news
	since   time.Time // of up, or of the outage
	contact time.Time // of the last answer to anything
	err     error     // why it is down or has no leader
}

// confirms reports whether the agent's answers are those of a live cluster.
func (s agentState) confirms() bool { return s.up && (s.leader != "" || s.silent) }

func newAgent(c *Client, log *slog.Logger, every time.Duration, changed func(was, is agentState)) *agent {
	back := make(chan struct{})
	close(back)
	return &agent{client: c, log: log, every: every, changed: changed, poke: make(chan struct{}, 1), back: back}
}

func (a *agent) snapshot() agentState {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state
}

// answered records that the agent gave some answer.
func (a *agent) answered() {
	a.mu.Lock()
	a.state.contact = time.Now()
	a.mu.Unlock()
}

// suspect asks for a probe now, because a watch got no answer.
func (a *agent) suspect() {
	wake(a.poke)
}

// outage returns a channel that is closed when the agent answers again and has
// a leader; it is closed already while that is so.
func (a *agent) outage() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.back
}

const (
	probeTimeout = 5 * time.Second
	probeGap     = 250 * time.Millisecond // between pokes
	probeBackoff = 2 * time.Second        // one small request; a long gap would be blindness after recovery
)

// run probes until ctx ends.
func (a *agent) run(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		if a.probe(ctx) {
			failures = 0
		} else {
			failures++
		}
		next := jitter(a.every, 0.1)
		if failures > 0 {
			next = backoff(failures, probeBackoff)
		}
		a.pause(ctx, next, failures == 0)
	}
}

// pause waits for d. A poke ends it early while the agent is believed up.
func (a *agent) pause(ctx context.Context, d time.Duration, pokes bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	poke := a.poke
	if !pokes {
		poke = nil
	}
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-poke:
		wait(ctx, probeGap)
	}
}

// probe asks once and reports whether all is well.
func (a *agent) probe(ctx context.Context) bool {
	ask, cancel := context.WithTimeout(ctx, probeTimeout)
	leader, err := a.client.leader(ask)
	cancel()
	if ctx.Err() != nil {
		return true
	}
	// Any HTTP answer is an agent that lives.
	var e *Error
	up := err == nil || errors.As(err, &e) && e.Code != 0
	silent := up && (errors.Is(err, ErrDenied) || errors.Is(err, ErrRefused) || errors.Is(err, ErrUnknown))

	a.mu.Lock()
	was, now := a.state, time.Now()
	s := agentState{up: up, known: true, leader: leader, silent: silent, since: was.since, contact: was.contact, err: err}
	if up {
		s.contact = now
	}
	if !was.known || was.up != up {
		s.since = now
	}
	a.state = s
	switch {
	case !s.confirms() && (was.confirms() || !was.known):
		a.back = make(chan struct{})
	case s.confirms() && was.known && !was.confirms():
		close(a.back)
	}
	a.mu.Unlock()

	first := !was.known
	switch {
	case !up && (first || was.up):
		a.log.Warn("consul unreachable", "addr", a.client.Addr(), "err", err)
	case up && !first && !was.up:
		a.log.Info("consul is back", "addr", a.client.Addr(), "outage", now.Sub(was.since).Round(time.Millisecond).String())
	case first:
		a.log.Info("consul reached", "addr", a.client.Addr(), "leader", leader)
	}
	switch {
	case silent && (first || !was.silent):
		a.log.Warn("consul does not say who leads", "addr", a.client.Addr(), "err", err)
	case up && !s.confirms() && (first || !was.up || was.confirms()):
		a.log.Warn("consul has no leader", "addr", a.client.Addr(), "err", err)
	case up && leader != "" && !first && was.up && !was.confirms():
		a.log.Info("consul has a leader again", "addr", a.client.Addr(), "leader", leader)
	}
	if first && !s.confirms() || !first && was.confirms() != s.confirms() || !first && was.up != up {
		a.changed(was, s)
	}
	return s.confirms()
}
