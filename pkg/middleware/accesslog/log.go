package accesslog

import (
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/config"
)

// Sizes and times of the buffer.
const (
	maxBuffer  = 4 << 20  // lines beyond it are dropped
	flushAt    = 64 << 10 // written out at once from here on
	flushEvery = time.Second
)

// Log is an access log. Its methods are safe for concurrent use.
type Log struct {
	out     io.Writer
	log     *slog.Logger
	form    atomic.Pointer[form]
	dropped atomic.Uint64
	wake    chan struct{}
	lines   sync.Pool // of *[]byte

	mu   sync.Mutex
	buf  []byte // lines that are not written yet
	free []byte // the other half of the pair
	held int    // how many lines buf has
}

// NewLog returns a log that writes to out while Run runs, with the rules of c
// for what is worth a line. Trouble with out goes to log.
func NewLog(out io.Writer, c config.AccessLog, log *slog.Logger) *Log {
	l := &Log{out: out, log: log, wake: make(chan struct{}, 1)}
	l.lines.New = func() any { b := make([]byte, 0, 1024); return &b }
	l.Configure(c)
	return l
}

// Configure replaces the rules for what is worth a line, and how lines look.
func (l *Log) Configure(c config.AccessLog) { l.form.Store(newForm(c)) }

// Dropped returns how many lines were lost, because they came faster than they
// could be written or because writing failed.
func (l *Log) Dropped() uint64 { return l.dropped.Load() }

// Run writes lines out until ctx is done, then what is left, and returns nil.
func (l *Log) Run(ctx context.Context) error {
	ticker := time.NewTicker(flushEvery)
	defer ticker.Stop()
	broken := false
	for {
		done := false
		select {
		case <-ctx.Done():
			done = true
		case <-ticker.C:
		case <-l.wake:
		}
		wrote, err := l.flush()
		switch {
		case err != nil && !broken:
			broken = true
			l.log.Error("access log cannot be written", "err", err)
		case wrote && broken:
			broken = false
			l.log.Info("access log is written again", "dropped", l.Dropped())
		}
		if done {
			return nil
		}
	}
}

// flush writes what has gathered and reports whether there was anything and it
// could be written. Only Run calls it.
func (l *Log) flush() (wrote bool, err error) {
	l.mu.Lock()
	full, lines := l.buf, l.held
	l.buf, l.free, l.held = l.free[:0], nil, 0
	l.mu.Unlock()
	if len(full) > 0 {
		_, err = l.out.Write(full)
		if wrote = err == nil; !wrote {
			l.dropped.Add(uint64(lines))
		}
	}
	l.mu.Lock()
	if cap(full) <= maxBuffer {
		l.free = full[:0]
	}
	l.mu.Unlock()
	return wrote, err
}

// write gives a request its line, if it is worth one.
func (l *Log) write(e *entry) {
	end := e.x.Now()
	f := e.form
	if f.Disabled || !f.wanted(e, end.Sub(e.x.Start)) {
		return
	}
	p := l.lines.Get().(*[]byte)
	var line []byte
	if f.line == nil {
		line = appendLine((*p)[:0], e, end)
	} else {
		own := *e // what a function value is given is on the heap, and e is of every request
		line = f.line((*p)[:0], &own, end)
	}
	l.mu.Lock()
	fits := len(l.buf)+len(line) <= maxBuffer
	if fits {
		l.buf = append(l.buf, line...)
		l.held++
	}
	full := len(l.buf) >= flushAt
	l.mu.Unlock()
	if !fits {
		l.dropped.Add(1)
	}
	if full {
		select {
		case l.wake <- struct{}{}:
		default: // it is awake already
		}
	}
	if cap(line) <= 16<<10 {
		*p = line
		l.lines.Put(p)
	}
}

// wanted reports whether a request is worth a line: what failed, was slow or
// was limited always is, what the filter asks for by chance.
func (f *form) wanted(e *entry, took time.Duration) bool {
	if e.status() >= 500 || e.aborted || e.status() == http.StatusTooManyRequests || e.x.RateLimit == "limited" || e.x.RateLimit == "queue_full" ||
		f.Slow > 0 && took >= f.Slow && !e.x.Hijacked {
		return true
	}
	return f.passes(e, took) && (f.Sample >= 100 || rand.Float64() < f.Sample.Fraction())
}

// passes reports whether a request meets a condition of the filter.
func (f *form) passes(e *entry, took time.Duration) bool {
	switch status := e.status(); {
	case f.Filter == nil,
		f.Filter.Retried && len(e.x.Attempts) > 1,
		f.Filter.MinDuration > 0 && took >= f.Filter.MinDuration,
		slices.ContainsFunc(f.statuses, func(s [2]int) bool { return s[0] <= status && status <= s[1] }):
		return true
	}
	return false
}
