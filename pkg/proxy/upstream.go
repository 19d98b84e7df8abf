package proxy

import (
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/pkg/adaptive"
	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/cohort"
	"github.com/proconsul/proconsul/pkg/problem"
)

// Settings are what an upstream's requests obey. All of them may change while
// requests run; a request keeps those that it began with.
type Settings struct {
	Scheme string // http, https or h2c
	TLS    TLS    // for https
	Engine string // std or fast; empty: std

	Connect  time.Duration // one connection, including its TLS handshake; 0: 10 s
	Response time.Duration // one try, until its header; 0: no bound
	Total    time.Duration // all tries, until the header; 0: no bound
	Idle     time.Duration // how long an unused connection is kept; 0: 55 s
	Drain    time.Duration // how long streams may last when their instance is deregistered or in maintenance; 0: 30 s

	Retry Retry

	Adaptive *adaptive.Settings // how many requests may wait for an answer at once follows the latency; nil: no such limit
}

// Retry says when a request is sent to another instance.
type Retry struct {
	Attempts int      // tries after the first; 0: none
	On       []string // refused, reset, timeout, or a status code
	Methods  []string // that may be sent twice; others only with an Idempotency-Key, or where nothing was sent
	Budget   float64  // share of the requests of the last ten seconds, 0 to 1
	MinRate  int      // retries a second that are always allowed
}

// Options are what an upstream is made with once.
type Options struct {
	Log *slog.Logger // nil: none

	// Via is the gateway's name in Via fields, by which it knows requests that
	// come back to it. Replicas that may stand behind one another need
	// different names. Empty: "proconsul".
	Via string

	// OnAttempt is told of each try when its header or error has come. It is
	// called by the goroutine that serves the request and must not block.
	OnAttempt func(Attempt)

	// Writes is where requests to instances meet those of other upstreams, on
	// the fast engine. Nil: each is written at once.
	Writes *cohort.Writes
}

// Attempt is one try of one instance, for the metrics.
type Attempt struct {
	Upstream string
	Route    string
	Instance string
	Number   int           // 0 is the first
	Status   int           // 0 where no answer came
	Failure  string        // refused, dial_timeout, ttfb_timeout, reset, tls, canceled, protocol; empty: none
	Ended    time.Time     // when the header or the error came
	Duration time.Duration // until then
	Retried  bool          // another try follows
	Budget   bool          // another try would follow, had the retry budget not been used up
	Broken   bool          // a try that was told of before has broken off after its header
}

// Upstream is a named way to the instances of a service: its pool, its
// breaker, its connections and its settings. It outlives every table of routes
// and is safe for concurrent use.
type Upstream struct {
	name    string
	pool    *balancer.Pool
	breaker *breaker.Breaker
	options Options
	marks   marks

	settings atomic.Pointer[settings]
	budget   budget
	streams  streams
	relays   sync.Pool // of *relay
	larges   larges
	adaptive atomic.Pointer[adaptive.Limiter] // nil: none
	flights  sync.Pool                        // of *flight
}

// settings are Settings in the form that requests read them in.
type settings struct {
	Settings
	*transports
	scheme                string
	refused, reset, timeo bool
	statuses              []int
}

// NewUpstream returns an upstream, or what is wrong with its settings. It
// dials nothing.
func NewUpstream(name string, pool *balancer.Pool, b *breaker.Breaker, s Settings, o Options) (*Upstream, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Via == "" {
		o.Via = "proconsul"
	}
	u := &Upstream{name: name, pool: pool, breaker: b, options: o, marks: newMarks(o.Via)}
	u.budget.base = time.Now()
	u.relays.New = newRelay
	return u, u.Configure(s)
}

// Name returns the upstream's name.
func (u *Upstream) Name() string { return u.name }

// Pool returns the instances that the upstream picks from.
func (u *Upstream) Pool() *balancer.Pool { return u.pool }

// Adaptive returns what the adaptive limit does now; ok is false where there
// is none.
func (u *Upstream) Adaptive() (s adaptive.Status, ok bool) {
	l := u.adaptive.Load()
	if l == nil {
		return s, false
	}
	return l.Status(), true
}

// Breaker returns the upstream's breaker.
func (u *Upstream) Breaker() *breaker.Breaker { return u.breaker }

// Configure replaces the settings, or changes nothing and says why it cannot.
// Connections survive unless a setting that makes them what they are changes:
// scheme, engine, TLS, connect or idle timeout. Certificate files are read again.
func (u *Upstream) Configure(s Settings) error {
	next, err := u.compile(s)
	if err != nil {
		return fmt.Errorf("upstream %s: %w", u.name, err)
	}
	switch l := u.adaptive.Load(); {
	case s.Adaptive == nil:
		u.adaptive.Store(nil)
	case l != nil:
		l.Configure(*s.Adaptive) // what it has found out stays
	default:
		u.adaptive.Store(adaptive.New(*s.Adaptive, time.Now()))
	}
	old := u.settings.Swap(next)
	if old != nil && old.transports != next.transports {
		old.closeIdle()
	}
	return nil
}

// Refresh reads the certificate files again. Where one has changed requests go
// on new connections, and those under way finish on theirs; where one cannot be
// used nothing changes. It must not run beside Configure.
func (u *Upstream) Refresh() (changed bool, err error) {
	old := u.settings.Load()
	err = u.Configure(old.Settings)
	return u.settings.Load().transports != old.transports, err
}

func (u *Upstream) compile(s Settings) (*settings, error) {
	if s.Scheme == "" {
		s.Scheme = "http"
	}
	next := &settings{Settings: s}
	for _, on := range s.Retry.On {
		switch on {
		case "refused":
			next.refused = true
		case "reset":
			next.reset = true
		case "timeout":
			next.timeo = true
		default:
			code, err := strconv.Atoi(on)
			if err != nil || code < 400 || code > 599 {
				return nil, fmt.Errorf("retry on %q: want refused, reset, timeout or a status from 400 to 599", on)
			}
			next.statuses = append(next.statuses, code)
		}
	}
	next.Retry.Methods = slices.Clone(s.Retry.Methods)
	key, err := keyOf(s)
	if err != nil {
		return nil, err
	}
	if old := u.settings.Load(); old != nil && old.key == key {
		next.transports = old.transports
	} else if next.transports, err = newTransports(key, u.options.Writes); err != nil {
		return nil, err
	}
	next.scheme = next.transports.scheme()
	return next, nil
}

// allows reports whether a failed attempt of that class may be made again
// where the request can be.
func (s *settings) allows(c retryClass, replayable bool) bool {
	switch c {
	case retryConnect:
		return s.refused
	case retryReset:
		return s.reset && replayable
	case retryTimeout:
		return s.timeo && replayable
	}
	return false
}

// GoAway ends what would otherwise go on for ever: switched connections and
// event streams, of one instance or, where instance is empty, of all. A
// WebSocket gets a close frame with status 1001 in both directions, an event
// stream its end; anything else is cut. It returns how many it ended, and does
// not wait for them.
func (u *Upstream) GoAway(instance string) int { return u.streams.goAway(instance) }

// Close ends what GoAway would and closes idle connections, for an upstream
// that no route uses any more. Requests in flight finish.
func (u *Upstream) Close() {
	u.GoAway("")
	u.settings.Load().closeIdle()
}

// fail logs what an operator may need to know of an answer that the gateway
// made itself; the access log has the rest.
func (u *Upstream) fail(instance string, p *problem.Error) {
	if p.Reason == problem.Internal || p.Reason == problem.UpstreamProtocol {
		u.options.Log.Warn("instance answered badly", "upstream", u.name, "instance", instance, "reason", string(p.Reason), "err", p.Err)
	}
}
