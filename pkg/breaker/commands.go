package breaker

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/afex/hystrix-go/hystrix"
)

// ErrTooMany says that no circuit is left. hystrix cannot remove one, so their
// number is bounded.
var ErrTooMany = errors.New("too many breakers")

// maxCommands bounds the circuits of a process. Each costs two goroutines and
// about 30 KB, for ever.
const maxCommands = 4096

// commands are the circuits that this process has made. hystrix keeps circuits,
// settings and its one logger in package variables, so there can be no more
// than one of these: process, the only mutable variable of this package.
type commands struct {
	hook sync.Once
	all  sync.Map // name to *circuit; read with a circuit's lock held

	mu    sync.Mutex
	total int
	free  map[string]*circuit
}

var process commands

// circuit is one hystrix circuit and the command of that name.
type circuit struct {
	name    string
	breaker *hystrix.CircuitBreaker
	tickets int64
	running atomic.Int64            // commands that hold a ticket, or are about to
	owner   atomic.Pointer[Breaker] // nil while free
}

// tripped makes the circuit open, if it has counted any request, and leaves it
// with those settings. It reports whether the circuit is open.
func (c *circuit) tripped(s Settings, l hystrixLimits) bool {
	strict := s
	strict.MinRequests, strict.ErrorPercent = 1, -1 // no circuit is healthy enough for that
	hystrix.ConfigureCommand(c.name, strict.hystrix(l))
	defer hystrix.ConfigureCommand(c.name, s.hystrix(l))
	return c.breaker.IsOpen()
}

// take returns a circuit for b: the one of b's name where nobody else has it,
// else a numbered one. Where limit circuits exist a free one of any name does.
func (p *commands) take(b *Breaker, s *Settings) (*circuit, error) {
	// Before the first circuit exists: hystrix reads the logger unguarded.
	p.hook.Do(func() { hystrix.SetLogger(p) })
	p.mu.Lock()
	defer p.mu.Unlock()
	c, err := p.find(b, s)
	if err != nil {
		return nil, err
	}
	c.owner.Store(b)
	return c, nil
}

func (p *commands) find(b *Breaker, s *Settings) (*circuit, error) {
	name := b.name
	for n := 2; ; n++ {
		if c := p.free[name]; c != nil {
			return p.reuse(c, s, b), nil
		}
		if _, taken := p.all.Load(name); !taken {
			break
		}
		name = b.name + "#" + strconv.Itoa(n)
	}
	if p.total < b.cap {
		return p.create(name, s, b)
	}
	for _, c := range p.free {
		return p.reuse(c, s, b), nil
	}
	return nil, fmt.Errorf("%w: %d", ErrTooMany, p.total)
}

func (p *commands) create(name string, s *Settings, b *Breaker) (*circuit, error) {
	config := s.hystrix(b.hystrix)
	// Configured first: a circuit that is used before has the settings of
	// whoever comes last, and its tickets are counted out when it is made.
	hystrix.ConfigureCommand(name, config)
	cb, _, err := hystrix.GetCircuit(name)
	if err != nil {
		return nil, err
	}
	c := &circuit{name: name, breaker: cb, tickets: int64(config.MaxConcurrentRequests)}
	p.all.Store(name, c)
	p.total++
	return c, nil
}

// reuse makes a free circuit as good as new. hystrix forgets its numbers only
// when it closes a circuit, so it is made to open and close.
func (p *commands) reuse(c *circuit, s *Settings, b *Breaker) *circuit {
	delete(p.free, c.name)
	if c.tripped(*s, b.hystrix) {
		b.tell(c, eventSuccess, time.Now(), 0)
	}
	return c
}

// give takes a circuit back when its breaker is released and its last attempt
// has ended.
func (p *commands) give(c *circuit) {
	c.owner.Store(nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free == nil {
		p.free = map[string]*circuit{}
	}
	p.free[c.name] = c
}

// Printf receives everything that hystrix logs. That is the only place where
// it tells of transitions (with the circuit's lock held) and of the events
// that a command lost.
func (p *commands) Printf(format string, items ...any) {
	var name string
	if rest, ok := strings.CutPrefix(format, "hystrix: metrics channel ("); ok {
		name, _ = strings.CutSuffix(rest, ") is at capacity")
	} else if len(items) == 1 {
		name, _ = items[0].(string)
	}
	found, ok := p.all.Load(name)
	if !ok {
		return
	}
	b := found.(*circuit).owner.Load()
	if b == nil {
		return
	}
	switch {
	case strings.HasPrefix(format, "hystrix-go: opening"):
		b.opening()
	case strings.HasPrefix(format, "hystrix-go: allowing single test"):
		b.probing()
	case strings.HasPrefix(format, "hystrix-go: closing"):
		b.closing()
	case strings.HasPrefix(format, "hystrix: metrics channel"):
		b.count(dropped)
	}
}
