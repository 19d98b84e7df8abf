package admin

import (
	"sync"
	"time"
)

// Severity says how much an event matters.
type Severity string

// The severities of events.
const (
	Info  Severity = "info"  // as it should be
	Warn  Severity = "warn"  // degraded and serving
	Error Severity = "error" // someone should act
)

// Event is something that happened to the gateway or to what it watches.
type Event struct {
	Seq      uint64    `json:"seq"`  // from 1, without gaps; set by Append
	At       time.Time `json:"at"`   // set by Append where it is zero
	Kind     string    `json:"kind"` // instance, breaker, config, consul, consumer, redis, tls, lifecycle, act
	Severity Severity  `json:"severity"`
	Service  string    `json:"service,omitempty"`
	Instance string    `json:"instance,omitempty"`
	Actor    string    `json:"actor,omitempty"` // who asked for it
	Message  string    `json:"message"`         // one sentence; may hold hostile text
}

// maxMessage bounds an event's message.
const maxMessage = 1 << 10

// Events keeps the last events in a ring. It is safe for concurrent use.
type Events struct {
	mu   sync.Mutex
	ring []Event
	last uint64 // sequence number of the newest
}

// NewEvents returns a ring of the last size events.
func NewEvents(size int) *Events { return &Events{ring: make([]Event, max(size, 1))} }

// Append adds an event, in place of the oldest where the ring is full.
func (e *Events) Append(ev Event) {
	if ev.At.IsZero() {
		ev.At = time.Now()
	}
	if ev.Severity == "" {
		ev.Severity = Info
	}
	ev.Message = clip(ev.Message, maxMessage)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last++
	ev.Seq = e.last
	e.ring[e.last%uint64(len(e.ring))] = ev
}

// Since returns the events after the sequence number seq, oldest first, at
// most the newest limit of them; a limit of 0 is none.
func (e *Events) Since(seq uint64, limit int) []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := uint64(0)
	if seq < e.last {
		n = min(e.last-seq, e.last, uint64(len(e.ring)))
	}
	if limit > 0 {
		n = min(n, uint64(limit))
	}
	out := make([]Event, 0, n)
	for s := e.last - n + 1; s <= e.last; s++ {
		out = append(out, e.ring[s%uint64(len(e.ring))])
	}
	return out
}

// Last returns the sequence number of the newest event; 0 where there is none.
func (e *Events) Last() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

// clip shortens s to at most n bytes of whole characters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n] + "…"
}
