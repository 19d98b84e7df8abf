package breaker

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/afex/hystrix-go/hystrix"
)

// Registry keeps one breaker per upstream, apart from any table of routes, so
// that breakers survive a reload. Several registries may live in one process:
// their breakers share nothing. It is safe for concurrent use.
type Registry struct {
	log      *slog.Logger
	onChange func(name string, s State)
	cap      int
	hystrix  hystrixLimits

	mu       sync.Mutex
	breakers map[string]*Breaker
}

// NewRegistry returns an empty registry. log may be nil. onChange is told of
// every change of a breaker's state, in order for each breaker; it is called by
// a goroutine that serves a request or an operator, so it must not block, and
// it may call any method of the breaker. It may be nil.
func NewRegistry(log *slog.Logger, onChange func(name string, s State)) *Registry {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Registry{
		log: log.With("component", "breaker"), onChange: onChange,
		cap: maxCommands, hystrix: hystrixLimits{backstop: defaultBackstop, tickets: minTickets},
		breakers: map[string]*Breaker{},
	}
}

// Breaker returns the breaker of that upstream with those settings. It is made
// where there is none and reconfigured where there is; its state, its counters
// and its permits survive that, and requests in flight keep the settings that
// they began with. It fails, and changes nothing, where a setting is not
// valid, or with ErrTooMany.
//
// An enabled breaker costs two parked goroutines of hystrix's and about 30 KB
// that cannot be given back, so names must come from configuration or the
// catalog, never from a request. Released ones are used again.
func (r *Registry) Breaker(name string, s Settings) (*Breaker, error) {
	if name == "" {
		return nil, errors.New("breaker: no name")
	}
	b, err := r.configured(name, s)
	if err != nil {
		return nil, fmt.Errorf("breaker %s: %w", name, err)
	}
	b.announce() // without r.mu, which a listener may need
	return b, nil
}

func (r *Registry) configured(name string, s Settings) (*Breaker, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.breakers[name]
	if b == nil {
		b = &Breaker{name: name, log: r.log, onChange: r.onChange, commands: &process, cap: r.cap, hystrix: r.hystrix}
		b.window.base = time.Now()
		b.made, b.shownAt = b.window.base, b.window.base
		b.refs.Store(1)
	}
	if err := b.configure(s); err != nil {
		return nil, err
	}
	r.breakers[name] = b
	return b, nil
}

// Lookup returns the breaker of that upstream, or nil.
func (r *Registry) Lookup(name string) *Breaker {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.breakers[name]
}

// All returns the breakers in use, by name.
func (r *Registry) All() []*Breaker {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.breakers), func(x, y *Breaker) int { return cmp.Compare(x.name, y.name) })
}

// Release ends the use of a breaker whose upstream is gone. Its circuit goes
// to the next breaker that needs one, once the attempts that wait for a header
// have ended. Requests that still hold the breaker pass unguarded, and its
// owner is told of no more changes. A breaker of that name that is asked for
// later is a new one: closed, with counters at zero.
func (r *Registry) Release(name string) {
	r.mu.Lock()
	b := r.breakers[name]
	delete(r.breakers, name)
	r.mu.Unlock()
	if b == nil {
		return
	}
	b.released.Store(true)
	b.Lift()
	b.leave()
}

// configure is called by one goroutine at a time.
func (b *Breaker) configure(s Settings) error {
	next, err := s.compile()
	if err != nil {
		return err
	}
	b.correcting.Lock()
	defer b.correcting.Unlock()
	old := b.config.Load()
	if old != nil {
		next.circuit = old.circuit
	}
	switch {
	case next.Disabled:
	case next.circuit == nil:
		if next.circuit, err = b.commands.take(b, &next.Settings); err != nil {
			return err
		}
	default:
		hystrix.ConfigureCommand(next.circuit.name, next.hystrix(b.hystrix))
	}
	if old != nil && old.Disabled && !next.Disabled {
		b.window.reset()
	}
	b.permit.limit.Store(int64(next.MaxInFlight))
	b.config.Store(next)
	if next.Disabled {
		b.clear()
	}
	return nil
}
