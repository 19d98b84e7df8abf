package balancer

import (
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/discovery"
)

// Member is an instance in a pool with its live counters. It stays the same
// while the instance is registered, whatever snapshots say of it. Its methods
// are safe for concurrent use.
type Member struct {
	pool *Pool
	id   string

	// Requests touch only these.
	inFlight  atomic.Int64
	picks     atomic.Uint64
	results   [resultCount]atomic.Uint64
	instance  atomic.Pointer[discovery.Instance]
	epoch     atomic.Uint32 // grows when earlier outcomes stop to count
	errorRow  atomic.Int32  // connection errors in a row
	failRow   atomic.Int32  // failures of any kind in a row
	lastError atomic.Int64  // when the last connection error was, since pool.born; 0: never
	refusedAt atomic.Int64  // when an ejection was last refused, since pool.born
	ejected   atomic.Bool
	aside     atomic.Bool // see StateAside
	doubted   atomic.Bool // it serves although Consul calls it critical
	ratio     ratio
	latency   atomic.Pointer[histogram] // made by the first outcome
	state     atomic.Uint32
	draining  atomic.Pointer[chan struct{}]

	// The rest is guarded by pool.mu; times are since pool.born, 0 is never.
	joined      time.Duration
	since       time.Duration // of the current status
	usable      bool          // by status and weight, or held
	usableSince time.Duration
	seasoned    bool // was there at the pool's first snapshot
	lastWeight  int  // while it was last usable
	disproved   bool // failed while it served against Consul's word

	ejections    int // in a row, less what good conduct took off
	restoredAt   time.Duration
	ejectedUntil time.Duration
	ejectReason  string
	probing      bool

	heldUntil time.Duration

	stall stall

	ramping  bool
	rampFrom time.Duration
	rampStep int // of rampSteps

	gone    bool // draining is closed
	drained bool // by an operator
	serving bool // is in the picker
	weight  int  // in the picker
}

// State is the reason why a member serves or does not.
type State uint8

// The states of a member. In a panic members of other states than
// StateServing and StateHeld may serve, see MemberStatus.Serving.
const (
	StateServing     State = iota // takes requests
	StateHeld                     // critical by an update that the mass-drop guard holds; takes requests
	StateEjected                  // out by our own traffic, or by an operator
	StateCritical                 // out by Consul
	StateMaintenance              // out by the service's operator
	StateDrained                  // out by a weight of 0, or by an operator of ours
	StateLeaving                  // deregistered, with requests still in flight
	// StateAside is that of a member which our own traffic finds dead when no
	// more may be ejected: it serves only where all others are found so too.
	StateAside
)

// String returns the state's word on pages and in labels.
func (s State) String() string {
	switch s {
	case StateServing:
		return "serving"
	case StateHeld:
		return "held"
	case StateEjected:
		return "ejected"
	case StateCritical:
		return "critical"
	case StateMaintenance:
		return "maintenance"
	case StateDrained:
		return "drained"
	case StateAside:
		return "aside"
	default:
		return "leaving"
	}
}

// ID returns the instance's id.
func (m *Member) ID() string { return m.id }

// Address returns where the instance is dialled, as the last snapshot has it.
func (m *Member) Address() string { return m.instance.Load().Address }

// Instance returns the instance as the last snapshot has it.
func (m *Member) Instance() discovery.Instance { return *m.instance.Load() }

// State returns why the member serves or does not.
func (m *Member) State() State { return State(m.state.Load()) }

// InFlight returns the number of picks that are not done.
func (m *Member) InFlight() int64 { return m.inFlight.Load() }

// Picks returns how often the member was picked.
func (m *Member) Picks() uint64 { return m.picks.Load() }

// Results returns how many picks ended with r.
func (m *Member) Results(r Result) uint64 {
	if r >= resultCount {
		return 0
	}
	return m.results[r].Load()
}

// Failures returns how many picks ended in a failure of the instance.
func (m *Member) Failures() uint64 {
	return m.Results(ServerError) + m.Results(Refused) + m.Results(Reset) + m.Results(Timeout)
}

// Draining returns a channel that is closed once the instance is deregistered
// or taken out on purpose (maintenance, an operator's drain): long-lived
// streams should then go away. A member that comes back has a new channel.
func (m *Member) Draining() <-chan struct{} { return *m.draining.Load() }

// setDraining is called under pool.mu.
func (m *Member) setDraining(on bool) {
	ch := m.draining.Load()
	if ch == nil || m.gone && !on {
		fresh := make(chan struct{})
		ch, m.gone = &fresh, false
		m.draining.Store(ch)
	}
	if on && !m.gone {
		close(*ch)
		m.gone = true
	}
}

// Result is how a request to a member ended.
type Result uint8

// The results of a request. The zero value is Success.
const (
	Success     Result = iota // any answer below 500
	ServerError               // an answer of 500 to 599
	Refused                   // no connection: nothing was sent
	Reset                     // the connection broke before or during the answer
	Timeout                   // no answer in time
	Canceled                  // the client left, or we gave up; says nothing of the instance
	resultCount
)

// String returns the result's word in logs and labels.
func (r Result) String() string {
	switch r {
	case Success:
		return "success"
	case ServerError:
		return "server_error"
	case Refused:
		return "refused"
	case Reset:
		return "reset"
	case Timeout:
		return "timeout"
	default:
		return "canceled"
	}
}

// connection reports whether the result is a failure below HTTP.
func (r Result) connection() bool { return r == Refused || r == Reset || r == Timeout }

// Outcome is what the caller tells of a request that is over. Latency is the
// time to the response's header, or to the failure; 0 where nobody measured.
type Outcome struct {
	Result  Result
	Latency time.Duration
}

// Pick is one member chosen for one request. It is a value so that picking
// allocates nothing; keep it in one variable, since Done is counted by it. The
// zero Pick has no member, and Done does nothing.
type Pick struct {
	member   *Member
	instance *discovery.Instance
	epoch    uint32
	done     uint32
}

// Member returns who was picked.
func (p *Pick) Member() *Member { return p.member }

// Instance returns the instance as it was when it was picked, although a
// snapshot may have given it another address since.
func (p *Pick) Instance() discovery.Instance { return *p.instance }

// Address returns where to dial, as host:port.
func (p *Pick) Address() string { return p.instance.Address }

// Done ends the pick: it is called once, after the body is closed. A second
// call on the same variable is ignored. It is safe for concurrent use.
func (p *Pick) Done(o Outcome) {
	m := p.member
	if m == nil || !atomic.CompareAndSwapUint32(&p.done, 0, 1) {
		return
	}
	result := min(o.Result, Canceled)
	m.results[result].Add(1)
	m.inFlight.Add(-1)

	now := m.pool.now()
	latency := o.Latency
	if result == Canceled || result == Refused || result == Reset {
		latency = 0 // says how fast somebody gave up, not how fast the instance is
	}
	h := m.latency.Load()
	if h == nil {
		m.latency.CompareAndSwap(nil, new(histogram))
		h = m.latency.Load()
	}
	h.record(now, latency)

	// What was sent before an ejection, a return or a change of address says
	// nothing about the instance of now.
	if result != Canceled && p.epoch == m.epoch.Load() {
		m.pool.score(m, p.epoch, result, now)
	}
}
