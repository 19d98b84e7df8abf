package app

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// stack runs what has to be undone, last first, so that a half-built app is
// cleaned up by the same code as a whole one.
type stack struct {
	mu    sync.Mutex
	undos []undo
}

type undo struct {
	name string
	run  func() error
}

// push registers the undoing of what was just acquired.
func (s *stack) push(name string, run func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.undos = append(s.undos, undo{name, run})
}

// unwind undoes everything, last first, and returns what went wrong.
func (s *stack) unwind() error {
	s.mu.Lock()
	undos := s.undos
	s.undos = nil
	s.mu.Unlock()
	var faults []error
	for i := len(undos) - 1; i >= 0; i-- {
		if err := undos[i].run(); err != nil {
			faults = append(faults, fmt.Errorf("stop %s: %w", undos[i].name, err))
		}
	}
	return errors.Join(faults...)
}

// group runs background parts and joins them. A part that returns an error
// before its context ends has failed, and ends the group with it.
type group struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
}

func newGroup(parent context.Context) *group {
	ctx, cancel := context.WithCancelCause(parent)
	return &group{ctx: ctx, cancel: cancel}
}

// run starts a part.
func (g *group) run(name string, part func(context.Context) error) {
	g.wg.Go(func() {
		err := part(g.ctx)
		if err != nil && g.ctx.Err() == nil {
			g.cancel(fmt.Errorf("%s: %w", name, err))
		}
	})
}

// stop ends every part, waits for them and returns the failure that ended the
// group, if one did.
func (g *group) stop() error {
	g.cancel(context.Canceled)
	g.wg.Wait()
	if err := context.Cause(g.ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
