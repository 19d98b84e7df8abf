package admin

import (
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Status is everything that the gateway knows of itself: the answer to GET
// /api/v1/status. Times are absolute, so that a row changes only when
// something happened to it.
type Status struct {
	Replica      Replica       `json:"replica"`
	Config       Config        `json:"config"`
	Consul       Dependency    `json:"consul"`
	Redis        Dependency    `json:"redis"`
	TLS          Dependency    `json:"tls"` // the listeners' certificates together: up, warning (one expires soon), down (one has, or is not used) or disabled
	Traffic      Traffic       `json:"traffic"`
	Upstreams    []Upstream    `json:"upstreams"`
	Routes       []Route       `json:"routes"`
	Rejected     []Rejected    `json:"rejected"`               // what was not taken over, and why
	Fleet        []Peer        `json:"fleet"`                  // registered replicas of this gateway; empty: it does not register itself
	Limits       []Limits      `json:"limits"`                 // what the limiter decided, by route
	Limited      []Limited     `json:"limited"`                // identities that this replica limited most often
	Overrides    []Override    `json:"overrides"`              // filled in by this package
	Certificates []Certificate `json:"certificates,omitempty"` // that listeners show

	Events []Event `json:"events"` // the newest, oldest first; filled in by this package
}

// Replica is this process.
type Replica struct {
	ID            string    `json:"id"`
	Version       string    `json:"version"`
	Go            string    `json:"go"`
	State         string    `json:"state"`             // starting, ready or draining
	Reasons       []string  `json:"reasons,omitempty"` // why it is not ready
	Started       time.Time `json:"started"`
	Now           time.Time `json:"now"` // filled in by this package
	UptimeSeconds float64   `json:"uptime_seconds"`
	Listeners     []string  `json:"listeners,omitempty"` // public addresses
}

// Config is the configuration that is served by, and the last attempt to
// replace it.
type Config struct {
	Hash      string    `json:"hash"`
	Source    string    `json:"source"` // file or directory
	LoadedAt  time.Time `json:"loaded_at"`
	Warnings  []string  `json:"warnings,omitempty"`
	State     string    `json:"state"` // ok, or refused: a newer one was not taken over
	Error     string    `json:"error,omitempty"`
	Faults    []Fault   `json:"faults,omitempty"` // all that is wrong with the refused one
	RefusedAt time.Time `json:"refused_at,omitzero"`
}

// Certificate is a certificate that a listener shows.
type Certificate struct {
	Listener  string    `json:"listener"`
	Subject   string    `json:"subject"`
	Names     []string  `json:"names,omitempty"` // that it is for
	Issuer    string    `json:"issuer"`
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	File      string    `json:"file,omitempty"`
	State     string    `json:"state"`           // ok, expiring (within two weeks), invalid (expired or not yet valid) or refused (the file cannot be used)
	Error     string    `json:"error,omitempty"` // why what is in the file now is not used
}

// Dependency is something that the gateway asks.
type Dependency struct {
	State       string    `json:"state"` // up, warning, down, starting or disabled
	Address     string    `json:"address,omitempty"`
	LastContact time.Time `json:"last_contact,omitzero"` // of the last answer
	AgeSeconds  float64   `json:"age_seconds"`           // of the last answer; filled in by this package
	Latency     Millis    `json:"latency_ms,omitempty"`  // of the last call
	Error       string    `json:"error,omitempty"`       // of the last call
	Detail      string    `json:"detail,omitempty"`      // one line for people
	Stale       []string  `json:"stale,omitempty"`       // what is served from the last good answer
}

// Traffic is what all routes do together.
type Traffic struct {
	Stats
	InFlight int64     `json:"in_flight"`
	Answers  []Answers `json:"answers,omitempty"` // that no instance made, since the start
}

// Stats are totals since the start of the process and the pace of the last
// minute.
type Stats struct {
	Requests   uint64  `json:"requests"`
	Errors     uint64  `json:"errors"`            // 5xx, and tries without an answer
	Limited    uint64  `json:"limited,omitempty"` // 429
	Rate       float64 `json:"rate"`              // requests a second
	ErrorShare float64 `json:"error_share"`       // of the last minute's requests, 0 to 1
	Latency    Latency `json:"latency"`
}

// Failure is why tries failed, and what became of their requests.
type Failure struct {
	Reason string `json:"reason"` // refused, dial_timeout, ttfb_timeout, reset, tls, protocol or 5xx
	Tries  uint64 `json:"tries"`
	Again  uint64 `json:"again"` // of those, tried again; the rest failed for the client
}

// Answers are the gateway's own answers of one reason.
type Answers struct {
	Reason string `json:"reason"` // as in X-Proconsul-Reason
	Count  uint64 `json:"count"`
}

// Peer is a registered replica of this gateway.
type Peer struct {
	ID       string `json:"id"`      // of the instance in Consul
	Replica  string `json:"replica"` // empty: it says nothing of itself
	Address  string `json:"address"`
	Status   string `json:"status"` // Consul's
	Version  string `json:"version,omitempty"`
	Config   string `json:"config,omitempty"`   // hash of what it serves by
	Self     bool   `json:"self,omitempty"`     // it is this one
	Diverged bool   `json:"diverged,omitempty"` // most others serve by another configuration; filled in by this package
}

// Limits are a route's limits, or those of an upstream or of all routes, and
// what was decided by them, since the start.
type Limits struct {
	Route      string `json:"route"` // or @upstream/NAME, or @global
	Limit      string `json:"limit"` // for people
	Allowed    uint64 `json:"allowed"`
	Limited    uint64 `json:"limited"`
	Local      uint64 `json:"local"`       // allowed by this replica's share, without Redis
	FailOpen   uint64 `json:"fail_open"`   // allowed without Redis
	FailClosed uint64 `json:"fail_closed"` // refused without Redis
	Delayed    uint64 `json:"delayed"`     // allowed after a wait
	QueueFull  uint64 `json:"queue_full"`  // refused because as many wait as may
}

// Limited is an identity that was limited.
type Limited struct {
	Route  string    `json:"route"`
	Key    string    `json:"key"` // a hash, or who it is where the limit says show_keys
	Denied int64     `json:"denied"`
	Error  int64     `json:"error"` // by how much denied may be too large
	Last   time.Time `json:"last"`  // when it was last denied
}

// RateLimits is how the limiter works and whom it limits most.
type RateLimits struct {
	Decisions        uint64    `json:"decisions"`
	StoreCalls       int64     `json:"store_calls"`
	CallsPerDecision float64   `json:"calls_per_decision"` // what leases save: 1 is a call for each
	Keys             int       `json:"keys"`               // identities that are remembered
	Waiting          int64     `json:"waiting"`            // requests that wait for their turn
	Top              []Limited `json:"top"`                // the most limited first
}

// Latency are quantiles of the last minute; 0 where nothing happened.
type Latency struct {
	P50 Millis `json:"p50_ms"`
	P95 Millis `json:"p95_ms"`
	P99 Millis `json:"p99_ms"`
}

// Upstream is a named way to a service, with every registered instance of it,
// usable or not.
type Upstream struct {
	Name        string       `json:"name"`
	Service     string       `json:"service"`           // in Consul; empty: instances of the configuration
	Balance     string       `json:"balance,omitempty"` // how the pool picks
	Health      string       `json:"health"`            // ok, degraded, down or empty; filled in by this package
	Usable      int          `json:"usable"`            // instances that may be picked; filled in by this package
	Total       int          `json:"total"`             // instances; filled in by this package
	Stale       bool         `json:"stale"`             // served from Consul's last good answer
	Index       uint64       `json:"index,omitempty"`   // Consul's change index
	UpdatedAt   time.Time    `json:"updated_at,omitzero"`
	Error       string       `json:"error,omitempty"` // of its watch
	InFlight    int64        `json:"in_flight"`
	MaxInFlight int          `json:"max_in_flight,omitempty"` // 0: no limit
	Concurrency *Concurrency `json:"concurrency,omitempty"`   // absent: not adaptive
	Breaker     Breaker      `json:"breaker"`
	Panic       bool         `json:"panic,omitempty"`     // too few are left: distrusted instances serve
	HeldUntil   time.Time    `json:"held_until,omitzero"` // an update that took most instances is not believed until then
	Retries     uint64       `json:"retries"`             // second and later tries
	Rescued     uint64       `json:"rescued"`             // of those, that brought an answer below 500
	Failed      []Failure    `json:"failed,omitempty"`    // tries of all its instances
	Routes      []string     `json:"routes"`              // that go there; filled in by this package
	Stats                    // of tries, as its instances answered them
	Instances   []Instance   `json:"instances"`
}

// Concurrency is an upstream's adaptive limit.
type Concurrency struct {
	Limit    int    `json:"limit"`     // requests that may wait for an answer at once
	InFlight int    `json:"in_flight"` // that do
	Base     Millis `json:"base_ms"`   // median latency without a queue, as last measured; 0: not known
	Probing  bool   `json:"probing"`   // fewer are let in for a moment, to measure that
	Shed     Shed   `json:"shed"`      // requests that were turned away
}

// Shed are requests that were turned away, by the class of their route.
type Shed struct {
	Low    int64 `json:"low"`
	Normal int64 `json:"normal"`
	High   int64 `json:"high"`
}

// Breaker is the circuit breaker around an upstream.
type Breaker struct {
	State    string    `json:"state"` // closed, open, half_open or disabled
	Since    time.Time `json:"since,omitzero"`
	RetryAt  time.Time `json:"retry_at,omitzero"` // when an open one lets a probe pass
	Opened   uint64    `json:"opened,omitempty"`  // how often it opened
	Rejected uint64    `json:"rejected,omitempty"`
	Why      string    `json:"why,omitempty"` // it is not closed

	Forced      bool      `json:"forced,omitempty"` // by an operator
	ForcedUntil time.Time `json:"forced_until,omitzero"`
}

// Instance is one registered process of a service.
type Instance struct {
	ID              string            `json:"id"` // node/service-id
	Node            string            `json:"node,omitempty"`
	Datacenter      string            `json:"datacenter,omitempty"`
	Address         string            `json:"address"`
	Status          string            `json:"status"`         // Consul's: passing, warning, critical or maintenance
	State           string            `json:"state"`          // Consul's status, or ejected or draining: what decides whether it is picked
	Usable          bool              `json:"usable"`         // it may be picked now
	Since           time.Time         `json:"since,omitzero"` // of the status
	Weight          int               `json:"weight"`
	EffectiveWeight float64           `json:"effective_weight"` // after slow start; 0 where it is not picked
	Share           float64           `json:"share"`            // of the pool's effective weight, 0 to 1; filled in by this package
	InFlight        int64             `json:"in_flight"`
	Requests        uint64            `json:"requests"`
	Failures        uint64            `json:"failures"`
	Failed          []Failure         `json:"failed,omitempty"` // by reason, and what became of it
	Rate            float64           `json:"rate"`             // requests a second, over ten seconds
	Ramp            float64           `json:"ramp"`             // how far slow start is, 0 to 1; 1 without one
	Latency         Latency           `json:"latency"`
	EjectedUntil    time.Time         `json:"ejected_until,omitzero"`
	EjectedFor      string            `json:"ejected_for,omitempty"` // why
	Version         string            `json:"version,omitempty"`
	Zone            string            `json:"zone,omitempty"`
	Tags            []string          `json:"tags,omitempty"`
	Meta            map[string]string `json:"meta,omitempty"`
	Checks          []Check           `json:"checks,omitempty"`
}

// Check is a health check, as Consul last reported it. Its output may be
// minutes old: Consul is late with changes of the output alone.
type Check struct {
	Name   string `json:"name"`
	Type   string `json:"type,omitempty"`
	Status string `json:"status"`
	Output string `json:"output,omitempty"` // hostile text
	Node   bool   `json:"node,omitempty"`   // of the node rather than of the service
}

// Route is match, chain, upstream, and where it comes from.
type Route struct {
	Name      string    `json:"name"`
	Order     int       `json:"order"` // place in the table; filled in by this package
	Host      string    `json:"host,omitempty"`
	Path      string    `json:"path"`
	Methods   []string  `json:"methods,omitempty"`
	Headers   []string  `json:"headers,omitempty"` // that must match, as "name=value"
	Query     []string  `json:"query,omitempty"`   // that must match
	Priority  int       `json:"priority,omitempty"`
	Upstream  string    `json:"upstream,omitempty"`
	Redirect  string    `json:"redirect,omitempty"`
	Strip     string    `json:"strip,omitempty"`
	Prepend   string    `json:"prepend,omitempty"`
	Policies  []string  `json:"policies,omitempty"`
	RateLimit string    `json:"rate_limit,omitempty"` // for people: "100/1m by client_ip"
	Source    string    `json:"source"`               // file, kv or tag
	Location  string    `json:"location,omitempty"`   // file:line
	Stats               // of its requests
	Answers   []Answers `json:"answers,omitempty"` // that no instance made, since the start
}

// Rejected is something that was not taken over. It costs only itself.
type Rejected struct {
	Kind    string `json:"kind"` // instance, route or consumer
	Name    string `json:"name"`
	Service string `json:"service,omitempty"`
	Reason  string `json:"reason"`
}

// Consumer is a caller that the gateway knows by name, without its secrets.
type Consumer struct {
	Name         string   `json:"name"`
	Groups       []string `json:"groups,omitempty"`
	Roles        []string `json:"roles,omitempty"`
	Source       string   `json:"source"`                 // file or kv
	Key          string   `json:"key,omitempty"`          // of Consul's KV store
	APIKeys      []string `json:"api_keys,omitempty"`     // ids
	Usernames    []string `json:"usernames,omitempty"`    // of logins
	Claims       []string `json:"claims,omitempty"`       // that make a token this consumer's
	Certificates []string `json:"certificates,omitempty"` // that are this consumer
}

// Readiness is whether the gateway should be sent traffic.
type Readiness struct {
	Ready  bool
	Checks []ReadyCheck
}

// ReadyCheck is one condition of readiness.
type ReadyCheck struct {
	Name   string // a word: config, catalog, draining
	OK     bool
	Detail string
}

// Millis is a duration that is written in JSON as milliseconds.
type Millis time.Duration

// MarshalJSON implements json.Marshaler: milliseconds to the microsecond.
func (m Millis) MarshalJSON() ([]byte, error) { return m.appendTo(nil), nil }

func (m Millis) appendTo(b []byte) []byte {
	if m >= 0 && m < 1e15 {
		return appendDecimal(b, uint64(m+500)/1000, 3)
	}
	return strconv.AppendFloat(b, math.Round(float64(m)/1e3)/1e3, 'f', -1, 64)
}

// UnmarshalJSON implements json.Unmarshaler.
func (m *Millis) UnmarshalJSON(b []byte) error {
	var ms float64
	err := json.Unmarshal(b, &ms)
	*m = Millis(ms * 1e6)
	return err
}

// Bounds of one status, so that a hostile registration cannot make the page
// unusable.
const (
	maxOutput     = 4 << 10
	pageEvents    = 100
	maxEventsPage = 1000
)

// status reads the status and fills in what follows from it.
func (a *Admin) status() Status {
	s := a.o.Status()
	now := time.Now().UTC()
	s.Replica.Now = now
	if !s.Replica.Started.IsZero() {
		s.Replica.UptimeSeconds = max(0, round(now.Sub(s.Replica.Started).Seconds(), 1))
	}
	s.Traffic.tidy()
	s.Consul.fill(now)
	s.Redis.fill(now)
	routes := map[string][]string{}
	for i := range s.Routes {
		r := &s.Routes[i]
		r.Order = i
		r.tidy()
		if r.Upstream != "" {
			routes[r.Upstream] = append(routes[r.Upstream], r.Name)
		}
	}
	for i := range s.Upstreams {
		s.Upstreams[i].fill(routes)
	}
	slices.SortStableFunc(s.Upstreams, func(x, y Upstream) int { return strings.Compare(x.Name, y.Name) })
	s.Events = a.o.Events.Since(0, pageEvents)
	if s.Upstreams == nil {
		s.Upstreams = []Upstream{}
	}
	if s.Routes == nil {
		s.Routes = []Route{}
	}
	s.Rejected, s.Limits, s.Limited = orEmpty(s.Rejected), orEmpty(s.Limits), orEmpty(s.Limited)
	s.Fleet = fleet(s.Fleet)
	s.Overrides = []Override{}
	if a.o.Overrides != nil {
		s.Overrides = orEmpty(a.o.Overrides())
	}
	return s
}

// fleet says which replicas serve by another configuration than most. Where no
// configuration has more than half of them, this replica's own is the measure.
func fleet(list []Peer) []Peer {
	list = append([]Peer{}, list...)
	count, norm := map[string]int{}, ""
	for _, p := range list {
		count[p.Config]++
		if p.Self {
			norm = p.Config
		}
	}
	for config, n := range count {
		if 2*n > len(list) {
			norm = config
		}
	}
	for i := range list {
		list[i].Diverged = list[i].Config != norm && norm != ""
	}
	return list
}

func (d *Dependency) fill(now time.Time) {
	if !d.LastContact.IsZero() {
		d.AgeSeconds = round(max(0, now.Sub(d.LastContact).Seconds()), 1)
	}
}

func (u *Upstream) fill(routes map[string][]string) {
	u.Routes = routes[u.Name]
	if u.Routes == nil {
		u.Routes = []string{}
	}
	if u.Instances == nil {
		u.Instances = []Instance{}
	}
	u.tidy()
	u.Total, u.Usable = len(u.Instances), 0
	sum := 0.0
	for i := range u.Instances {
		in := &u.Instances[i]
		in.EffectiveWeight, in.Rate, in.Ramp = round(in.EffectiveWeight, 3), round(in.Rate, 2), round(in.Ramp, 2)
		if in.Usable {
			u.Usable++
			sum += in.EffectiveWeight
		}
	}
	for i := range u.Instances {
		in := &u.Instances[i]
		if in.Usable && sum > 0 {
			in.Share = round(in.EffectiveWeight/sum, 4)
		}
		if slices.ContainsFunc(in.Checks, func(c Check) bool { return len(c.Output) > maxOutput }) {
			in.Checks = slices.Clone(in.Checks)
			for k := range in.Checks {
				in.Checks[k].Output = clip(in.Checks[k].Output, maxOutput)
			}
		}
	}
	switch {
	case u.Total == 0:
		u.Health = "empty"
	case u.Usable == 0:
		u.Health = "down"
	case u.Usable < u.Total || u.Stale || u.Breaker.State == "open" || u.Breaker.State == "half_open":
		u.Health = "degraded"
	default:
		u.Health = "ok"
	}
}

func (s *Stats) tidy() { s.Rate, s.ErrorShare = round(s.Rate, 2), round(s.ErrorShare, 4) }
