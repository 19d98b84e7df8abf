package limiter

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// Algorithm is how a limit counts.
type Algorithm uint8

const (
	// SlidingWindow admits never more than the count in any interval of the
	// window's length. A token that was used comes back after the window and
	// at most a 32nd of it.
	SlidingWindow Algorithm = iota
	// FixedWindow admits never more than the count in each aligned window: a
	// calendar's where the limit has one, else windows aligned to the Unix
	// epoch. Around a border up to twice the count may pass.
	FixedWindow
	// TokenBucket refills count tokens per window up to the burst: over any
	// time T it admits at most burst + count*T/window.
	TokenBucket
)

// String returns the algorithm's name in configurations.
func (a Algorithm) String() string {
	switch a {
	case SlidingWindow:
		return "sliding_window"
	case FixedWindow:
		return "fixed_window"
	case TokenBucket:
		return "token_bucket"
	}
	return "unknown"
}

// ParseAlgorithm returns the algorithm of that name; the empty name is the
// sliding window's.
func ParseAlgorithm(name string) (Algorithm, error) {
	switch name {
	case "", "sliding_window":
		return SlidingWindow, nil
	case "fixed_window":
		return FixedWindow, nil
	case "token_bucket":
		return TokenBucket, nil
	}
	return 0, fmt.Errorf("no algorithm named %q (have: sliding_window, fixed_window, token_bucket)", name)
}

// Mode is what a policy does while the store is away.
type Mode uint8

const (
	// FallLocal limits each replica to its share of the limit, less what it
	// has already admitted.
	FallLocal Mode = iota
	// FailOpen admits everything.
	FailOpen
	// FailClosed admits nothing.
	FailClosed
)

// ParseMode returns the mode that a configuration calls local, open or
// closed; the empty name is local's.
func ParseMode(name string) (Mode, error) {
	switch name {
	case "", "local":
		return FallLocal, nil
	case "open":
		return FailOpen, nil
	case "closed":
		return FailClosed, nil
	}
	return 0, fmt.Errorf("no store error mode named %q (have: local, open, closed)", name)
}

// Precision is whether replicas may take tokens ahead of need.
type Precision uint8

const (
	// Exact asks the store for every decision. Concurrent requests of one key
	// still share a call.
	Exact Precision = iota
	// Leased lets replicas take tokens in chunks and spend them without a
	// call. The limit's bound stays; less than 1/32 + 1/40 of a window's worth
	// may stay unused.
	Leased
)

// ParsePrecision returns the precision that a configuration calls exact or
// leased.
func ParsePrecision(name string) (Precision, error) {
	switch name {
	case "exact":
		return Exact, nil
	case "leased":
		return Leased, nil
	}
	return 0, fmt.Errorf("no precision named %q (have: exact, leased)", name)
}

// Calendar is a unit of calendar time for fixed windows.
type Calendar uint8

const (
	// NoCalendar aligns fixed windows to the Unix epoch.
	NoCalendar Calendar = iota
	// Daily windows begin at midnight.
	Daily
	// Monthly windows begin at midnight on the first of the month.
	Monthly
)

// Limit is a count per window.
type Limit struct {
	Count     int           // tokens per window, 1 to a billion
	Window    time.Duration // ignored where Calendar is set
	Algorithm Algorithm
	Burst     int            // of a token bucket; 0: Count
	Calendar  Calendar       // of a fixed window
	Zone      *time.Location // of the calendar; nil: UTC
}

// MaxLimits is how many limits one policy may have.
const MaxLimits = 8

// Settings describe a policy.
type Settings struct {
	// Name is part of the policy's identity: replicas that use the same name,
	// algorithms and windows share counts.
	Name         string
	Limits       []Limit // 1 to MaxLimits, charged together or not at all
	OnStoreError Mode
	Precision    Precision

	// MaxDelay makes callers above the limit wait for their turn, for no longer
	// than that, instead of being denied at once; 0: they are denied. Of each
	// identity no more than MaxQueue wait: at one replica, or at all of them
	// together where a token bucket is among the limits, which hands out turns
	// ahead of time.
	MaxDelay time.Duration
	MaxQueue int // 1 to 100000 where MaxDelay is set

	// ShowKeys lets Top name identities as callers gave them; otherwise it has
	// their hashes.
	ShowKeys bool
}

// Policy is a checked and compiled Settings. It is immutable and safe for
// concurrent use. Policies that differ in counts alone have the same identity,
// so a changed count applies at once to what was used before, and a changed
// window starts afresh.
type Policy struct {
	settings Settings
	specs    []spec
	id       [8]byte
	least    int64 // the smallest limit: no cost above it can ever pass
	span     int64 // µs until a token that is charged now is forgotten
	tau      int64 // µs that a lease lives
	grace    int64 // µs that a token may be on its way to who waits for it, at most
	delay    int64 // µs that a caller may be made to wait
	reserves bool  // a token bucket is among the limits: turns are handed out ahead of time
}

// spec is one limit as the scripts and the local account know it.
type spec struct {
	kind     byte    // S, F, C or T, as in acquire.lua
	limit    int64   // tokens; of a token bucket its burst
	unit     float64 // S: µs per bucket, F: µs per window, T: µs per token; integral but for T
	step     int64   // unit of S and F as an integer
	calendar Calendar
	zone     *time.Location
	ahead    int64 // T: µs that callers may wait for their tokens
}

// buckets is how many buckets a sliding window is cut into. acquire.lua has
// the same number.
const buckets = 32

// version is part of every policy's identity, so that a release that lays out
// keys differently does not read the old ones.
const version = 1

// NewPolicy checks and compiles s. It returns every fault that it finds.
func NewPolicy(s Settings) (*Policy, error) {
	p := &Policy{settings: s, least: math.MaxInt64}
	var faults []error
	if len(s.Limits) < 1 || len(s.Limits) > MaxLimits {
		faults = append(faults, fmt.Errorf("a policy has 1 to %d limits, not %d", MaxLimits, len(s.Limits)))
	}
	if s.MaxDelay < 0 || s.MaxDelay > time.Minute || s.MaxDelay > 0 && (s.MaxQueue < 1 || s.MaxQueue > 100_000) {
		faults = append(faults, fmt.Errorf("callers wait up to a minute, 1 to 100000 of them, not %d for %v", s.MaxQueue, s.MaxDelay))
	}
	p.delay = s.MaxDelay.Microseconds()
	h := sha256.New()
	write := func(v ...int64) {
		for _, n := range v {
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
		}
	}
	write(version, buckets, int64(len(s.Name)))
	h.Write([]byte(s.Name))
	shortest := int64(math.MaxInt64)
	for i, l := range s.Limits {
		sp, window, err := l.compile()
		if err != nil {
			faults = append(faults, fmt.Errorf("limit %d: %w", i+1, err))
			continue
		}
		write(int64(sp.kind), int64(sp.calendar), window, int64(len(sp.zoneName())))
		h.Write([]byte(sp.zoneName()))
		if sp.kind == 'T' && p.delay > 0 {
			// Each who waits is at least a token ahead.
			p.reserves = true
			sp.ahead = min(p.delay, int64(float64(s.MaxQueue)*sp.unit))
		}
		p.specs = append(p.specs, sp)
		p.least = min(p.least, sp.limit)
		p.span = max(p.span, sp.span())
		shortest = min(shortest, window)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("policy %q: %w", s.Name, err)
	}
	copy(p.id[:], h.Sum(nil))
	// A lease of a fortieth of the window costs a hot key some forty to eighty
	// calls per window and replica, whatever its rate.
	p.tau = min(max(shortest/40, 20_000), 5_000_000)
	p.grace = max(shortest/buckets, 10_000)
	return p, nil
}

// compile returns the limit's spec and its window in µs.
func (l Limit) compile() (spec, int64, error) {
	window := l.Window.Microseconds()
	if l.Count < 1 || l.Count > 1e9 || l.Burst < 0 || l.Burst > 1e9 {
		return spec{}, 0, fmt.Errorf("counts are 1 to 1000000000, not %d with burst %d", l.Count, l.Burst)
	}
	if l.Calendar != NoCalendar && l.Algorithm != FixedWindow {
		return spec{}, 0, fmt.Errorf("only a fixed_window follows a calendar, not a %s", l.Algorithm)
	}
	if l.Burst != 0 && l.Algorithm != TokenBucket {
		return spec{}, 0, fmt.Errorf("only a token_bucket has a burst, not a %s", l.Algorithm)
	}
	if l.Calendar == NoCalendar && (l.Window < 10*time.Millisecond || l.Window > 366*24*time.Hour) {
		return spec{}, 0, fmt.Errorf("windows are 10ms to 366 days, not %v", l.Window)
	}
	sp := spec{limit: int64(l.Count)}
	switch l.Algorithm {
	case SlidingWindow:
		sp.kind, sp.step = 'S', (window+buckets-1)/buckets
		sp.unit = float64(sp.step)
	case FixedWindow:
		sp.kind, sp.step, sp.unit = 'F', window, float64(window)
		if l.Calendar != NoCalendar {
			sp.kind, sp.calendar, sp.zone = 'C', l.Calendar, l.Zone
			sp.step, sp.unit = 0, 0
			if sp.zone == nil {
				sp.zone = time.UTC
			}
			window = int64(24 * time.Hour / time.Microsecond)
			if l.Calendar == Monthly {
				window *= 31
			}
		}
	case TokenBucket:
		sp.kind, sp.unit = 'T', float64(window)/float64(l.Count)
		if sp.unit < 1 {
			return spec{}, 0, fmt.Errorf("a token_bucket refills at most a million tokens a second, not %d per %v", l.Count, l.Window)
		}
		if l.Burst > 0 {
			sp.limit = int64(l.Burst)
		}
	default:
		return spec{}, 0, fmt.Errorf("no such algorithm: %d", l.Algorithm)
	}
	return sp, window, nil
}

func (s *spec) zoneName() string {
	if s.zone == nil {
		return ""
	}
	return s.zone.String()
}

// room returns how many µs of refill a bucket can be short of, those that
// callers wait for included, where div replicas share the refill.
func (s *spec) room(limit, div int64) float64 {
	return float64(limit)*s.unit + float64(s.ahead)/float64(div)
}

// span returns for how many µs a charge is remembered.
func (s *spec) span() int64 {
	switch s.kind {
	case 'S':
		return (buckets + 2) * s.step
	case 'F':
		return s.step
	case 'C':
		return int64(32 * 24 * time.Hour / time.Microsecond)
	}
	return int64(float64(s.limit)*s.unit) + s.ahead
}

// borders returns the start and the end, in µs of Unix time, of the calendar
// window that holds wall, moved by n windows.
func (s *spec) borders(wall int64, n int) (from, to int64) {
	t := time.UnixMicro(wall).In(s.zone)
	y, m, d := t.Date()
	if s.calendar == Monthly {
		m, d = m+time.Month(n), 1
		return time.Date(y, m, d, 0, 0, 0, 0, s.zone).UnixMicro(), time.Date(y, m+1, d, 0, 0, 0, 0, s.zone).UnixMicro()
	}
	d += n
	return time.Date(y, m, d, 0, 0, 0, 0, s.zone).UnixMicro(), time.Date(y, m, d+1, 0, 0, 0, 0, s.zone).UnixMicro()
}

// fastest returns how many µs the bucket that refills fastest takes per token.
func (p *Policy) fastest() float64 {
	least := math.Inf(1)
	for i := range p.specs {
		if p.specs[i].kind == 'T' {
			least = min(least, p.specs[i].unit)
		}
	}
	return least
}

// within reports whether p admits nothing that q, a policy of the same identity,
// would not.
func (p *Policy) within(q *Policy) bool {
	for i := range p.specs {
		if s, t := &p.specs[i], &q.specs[i]; s.limit > t.limit || s.kind == 'T' && s.unit < t.unit {
			return false
		}
	}
	return true
}

// Name returns the policy's name.
func (p *Policy) Name() string { return p.settings.Name }

// Limits returns the policy's limits. The caller must not change them.
func (p *Policy) Limits() []Limit { return p.settings.Limits }

// redisKey returns the key of an identity: the braces keep what one script
// touches in one slot, and the hash keeps what clients send out of the store.
func (p *Policy) redisKey(identity [16]byte) string {
	b := append(make([]byte, 0, 48), "rl:{"...)
	b = base64.RawURLEncoding.AppendEncode(b, p.id[:])
	b = append(b, ':')
	b = base64.RawURLEncoding.AppendEncode(b, identity[:])
	return string(append(b, '}'))
}
