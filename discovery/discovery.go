// Package discovery says what is alive: instances, their status, whole
// snapshots of a service, and the catalog that keeps the last good one.
//
// It knows nothing of Consul, HTTP or balancing, and it never turns an error
// into an empty list: only an answer replaces a snapshot, an error only marks
// the last good one stale.
package discovery

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Status is the aggregated state that Consul gives an instance. The order is
// the order of severity.
type Status uint8

// The states of an instance. The zero value is StatusUnknown, so that a
// forgotten field never means healthy.
const (
	StatusUnknown     Status = iota // no state was given; never picked
	StatusPassing                   // all checks pass, or there are none
	StatusWarning                   // at least one check warns; its smaller weight applies
	StatusCritical                  // at least one check is critical
	StatusMaintenance               // an operator put the service or its node in maintenance
)

// String returns the word that Consul and every page and label of ours use.
func (s Status) String() string {
	switch s {
	case StatusPassing:
		return "passing"
	case StatusWarning:
		return "warning"
	case StatusCritical:
		return "critical"
	case StatusMaintenance:
		return "maintenance"
	}
	return "unknown"
}

// Check is one health check of an instance, as Consul last reported it.
// Output may be minutes old: Consul pushes output-only changes late.
type Check struct {
	ID     string
	Name   string
	Type   string // http, tcp, ttl, grpc, alias, ... or empty
	Status Status
	Output string // at most 4 KiB, hostile text: escape it
	Notes  string
	Node   bool // true for a check of the node rather than of the service
}

// Instance is one registered process of a service. Values are immutable once
// they are part of a Snapshot: share them, do not change them.
type Instance struct {
	ID         string // node/service-id: a service id alone is unique only per node
	Service    string
	ServiceID  string
	Node       string
	Datacenter string
	Address    string // host:port to dial, IPv6 in brackets
	Status     Status
	Weight     int // the weight that its status gives it; 0 takes no traffic
	Tags       []string
	Meta       map[string]string
	Version    string // Meta["version"], for display and subsets
	Zone       string // locality or Meta["proconsul_zone"], for display
	Checks     []Check
}

// Equal reports whether two instances are the same in every field.
func (in Instance) Equal(o Instance) bool {
	return in.ID == o.ID && in.Service == o.Service && in.ServiceID == o.ServiceID &&
		in.Node == o.Node && in.Datacenter == o.Datacenter && in.Address == o.Address &&
		in.Status == o.Status && in.Weight == o.Weight && in.Version == o.Version && in.Zone == o.Zone &&
		slices.Equal(in.Tags, o.Tags) && maps.Equal(in.Meta, o.Meta) && slices.Equal(in.Checks, o.Checks)
}

// Usable reports whether the instance may be given traffic by its status and
// weight alone.
func (in Instance) Usable() bool {
	return (in.Status == StatusPassing || in.Status == StatusWarning) && in.Weight > 0
}

// Rejected is an entry of the catalog that could not become an instance. It
// costs only itself and is shown with its reason.
type Rejected struct {
	ID     string
	Reason string
}

// Snapshot is the full immutable list of a service's instances, healthy or
// not, sorted by ID.
type Snapshot struct {
	Service   string // the name that was asked for, see Query.Key
	Index     uint64 // the source's change index, for display and logs
	Instances []Instance
	Rejected  []Rejected
	At        time.Time // when the answer arrived
}

// SameInstances reports whether two snapshots hold equal instances and
// rejections, whatever their index and time.
func (s Snapshot) SameInstances(o Snapshot) bool {
	return slices.EqualFunc(s.Instances, o.Instances, Instance.Equal) && slices.Equal(s.Rejected, o.Rejected)
}

// Query names what to watch. Two upstreams with the same Query share one
// watch.
type Query struct {
	Service    string
	Datacenter string // empty: the agent's own
	Namespace  string // Enterprise only; empty: not sent
	Partition  string // Enterprise only; empty: not sent
	Filter     string // Consul filter expression, evaluated by Consul
	Address    string // which address to dial: "" (service, else node), "lan", "wan" or a tagged-address name
}

// Key returns the string under which the catalog keeps the query's snapshots:
// the service's name alone where nothing else is set, so that names stay
// readable in logs and on the status page. Different queries have different
// keys: a value that could be taken for the end of its field is quoted.
func (q Query) Key() string {
	key := quoted(q.Service, `@/?#"`)
	add := func(sep, v, special string) {
		if v != "" {
			key += sep + quoted(v, special)
		}
	}
	add("@", q.Datacenter, `@/?#"`)
	add("/ns:", q.Namespace, `@/?#"`)
	add("/ap:", q.Partition, `@/?#"`)
	add("?", q.Filter, "#") // holds quotes most often; only an address comes after it
	add("#", q.Address, `@/?#"`)
	return key
}

func quoted(v, special string) string {
	if strings.ContainsAny(v, special) {
		return strconv.Quote(v)
	}
	return v
}
