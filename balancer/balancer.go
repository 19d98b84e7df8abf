// Package balancer says which live instance of a service serves the next
// request: a Pool of members, the policies that pick one, and what takes a
// member out or lets it in slowly (passive ejection, slow start, the mass-drop
// guard, panic).
//
// A pick is lock-free and allocates nothing: everything that changes with time
// or with the catalog is worked out beforehand into an immutable picker behind
// one atomic pointer. Live counters belong to the instance, not to the
// snapshot, and survive every Set and Configure.
//
// The package dials nothing but the probe of an ejected instance, reads no
// configuration and knows neither HTTP nor Consul.
package balancer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/proconsul/proconsul/discovery"
)

var (
	// ErrNoInstance is returned by Pick when the pool knows no instance at all.
	ErrNoInstance = errors.New("no instance is registered")

	// ErrNoHealthy is returned by Pick when the pool knows instances, but none
	// of them may be picked.
	ErrNoHealthy = errors.New("no healthy instance")
)

// Options says how a pool picks and when it distrusts an instance or the
// catalog. The zero Options are valid: weighted, without slow start, passive
// ejection, panic or mass-drop guard.
type Options struct {
	// Policy is one of Policies; empty means Weighted.
	Policy string

	// SlowStart is how long an instance that joins a warm pool takes to reach
	// its full weight; 0: no ramp.
	SlowStart time.Duration

	Outlier  Outlier
	MassDrop MassDrop

	// Probe proves that an ejected instance answers again; nil means ProbeTCP.
	// Its context ends after two seconds.
	Probe func(ctx context.Context, in discovery.Instance) error

	// OnEvent is told of every change, in order and outside the pool's locks,
	// in the goroutine that made the change (that of a request, too): it has to
	// be quick. It may call the pool.
	OnEvent func(Event)
}

// Outlier takes a member out of the pool when our own traffic shows that it is
// broken, whatever Consul says. Percentages are 0 to 100.
type Outlier struct {
	// Disabled ejects nobody and lets in who is ejected.
	Disabled bool

	// ConsecutiveErrors is how many refused connections, resets and timeouts in
	// a row eject; 0: not counted.
	ConsecutiveErrors int

	// ConsecutiveFailures is how many failures of any kind in a row eject, 5xx
	// answers included; 0: not counted.
	ConsecutiveFailures int

	// FailureRate is the percentage of failures within Window, of MinRequests
	// at least, that ejects; 0: not counted. A Window of 0 means 10 s.
	FailureRate int
	MinRequests int
	Window      time.Duration

	// EjectFor is how long the first ejection lasts; the n-th in a row lasts n
	// times that, up to MaxEjectFor, less up to a tenth of jitter so that
	// replicas do not return it at the same moment. Zeros mean 10 s and 5 min.
	EjectFor    time.Duration
	MaxEjectFor time.Duration

	// MaxEjected is the largest percentage of the members that Consul calls
	// usable that may be ejected at once; where it is not 0, one of two or more
	// always may. The only member of a pool is never ejected.
	MaxEjected int

	// Panic is the percentage below which distrust is worth less than service;
	// 0: never. See Stats.Panic.
	Panic int

	// PanicCritical lets critical instances serve in a panic once nobody else
	// is left. Without it a pool whose instances are all critical answers
	// ErrNoHealthy.
	PanicCritical bool

	// NoProbe lets an ejected member return when its time is up, unproved.
	NoProbe bool
}

// MassDrop holds an update that turns most of a pool critical at once, which
// is more often a fault of the checks than of the instances. Deregistration
// and maintenance are somebody's will and never held.
type MassDrop struct {
	// Disabled believes every update at once.
	Disabled bool

	// Share is the percentage of a pool of three or more usable members that
	// has to turn critical, beyond what our own traffic confirms. An update
	// that takes more is held.
	Share int

	// Hold is how long the members keep serving; 0 is as Disabled. A refused,
	// reset or timed out request ends it for its member at once.
	Hold time.Duration
}

// DefaultOptions returns what suits most services: weighted, ejection after
// three connection errors or five failures in a row or half of twenty requests
// in ten seconds, at most half of the pool, and the mass-drop guard for 30 s.
func DefaultOptions() Options {
	return Options{
		Policy: Weighted,
		Outlier: Outlier{
			ConsecutiveErrors:   3,
			ConsecutiveFailures: 5,
			FailureRate:         50,
			MinRequests:         20,
			Window:              10 * time.Second,
			EjectFor:            10 * time.Second,
			MaxEjectFor:         5 * time.Minute,
			MaxEjected:          50,
			Panic:               50,
		},
		MassDrop: MassDrop{Share: 50, Hold: 30 * time.Second},
	}
}

// checked returns o with its zeros filled, or everything that is wrong with
// it.
func (o Options) checked() (Options, error) {
	var errs []error
	if o.Policy == "" {
		o.Policy = Weighted
	}
	if !knownPolicy(o.Policy) {
		errs = append(errs, fmt.Errorf("unknown policy %q (allowed: %s)", o.Policy, strings.Join(Policies(), ", ")))
	}
	for _, f := range []struct {
		name  string
		value time.Duration
	}{
		{"slow start", o.SlowStart}, {"outlier window", o.Outlier.Window}, {"eject for", o.Outlier.EjectFor},
		{"max eject for", o.Outlier.MaxEjectFor}, {"mass drop hold", o.MassDrop.Hold},
	} {
		if f.value < 0 {
			errs = append(errs, fmt.Errorf("%s is negative: %v", f.name, f.value))
		}
	}
	for _, f := range []struct {
		name         string
		value, limit int
	}{
		{"consecutive errors", o.Outlier.ConsecutiveErrors, 1 << 30},
		{"consecutive failures", o.Outlier.ConsecutiveFailures, 1 << 30},
		{"min requests", o.Outlier.MinRequests, 1 << 19}, // what the window counts to
		{"failure rate", o.Outlier.FailureRate, 100},
		{"max ejected", o.Outlier.MaxEjected, 100},
		{"panic", o.Outlier.Panic, 100},
		{"mass drop share", o.MassDrop.Share, 100},
	} {
		if f.value < 0 || f.value > f.limit {
			errs = append(errs, fmt.Errorf("%s is %d, outside 0 to %d", f.name, f.value, f.limit))
		}
	}
	if o.Outlier.Window == 0 {
		o.Outlier.Window = 10 * time.Second
	}
	if o.Outlier.EjectFor == 0 {
		o.Outlier.EjectFor = 10 * time.Second
	}
	if o.Outlier.MaxEjectFor == 0 {
		o.Outlier.MaxEjectFor = 5 * time.Minute
	}
	o.Outlier.MaxEjectFor = max(o.Outlier.MaxEjectFor, o.Outlier.EjectFor)
	if o.Probe == nil {
		o.Probe = ProbeTCP
	}
	return o, errors.Join(errs...)
}

// ProbeTCP proves an instance by a TCP connection that it closes at once.
func ProbeTCP(ctx context.Context, in discovery.Instance) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", in.Address)
	if err != nil {
		return fmt.Errorf("probe %s: %w", in.ID, err)
	}
	return conn.Close()
}
