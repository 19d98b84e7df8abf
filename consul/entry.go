package consul

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/proconsul/proconsul/discovery"
)

// entry is what we read of one element of /v1/health/service: a slim shape of
// our own decodes twice as fast as that of consul/api, which matters for
// services of a thousand instances.
type entry struct {
	Node    entryNode
	Service entryService
	Checks  []entryCheck
}

type entryNode struct {
	Node            string
	Address         string
	Datacenter      string
	TaggedAddresses map[string]string
	Meta            map[string]string
	Locality        *entryLocality
}

type entryService struct {
	Kind            string
	ID              string
	Service         string
	Tags            []string
	Address         string
	TaggedAddresses map[string]entryAddress
	Meta            map[string]string
	Port            int
	Ports           []entryPort
	SocketPath      string
	Weights         *entryWeights
	Locality        *entryLocality
	ModifyIndex     uint64
}

type entryAddress struct {
	Address string
	Port    int
}

type entryPort struct {
	Name    string
	Port    int
	Default bool
}

type entryWeights struct{ Passing, Warning int }

type entryLocality struct{ Zone string }

type entryCheck struct {
	CheckID   string
	Name      string
	Type      string
	Status    string
	Output    string
	Notes     string
	ServiceID string
}

// The meta keys that an instance may steer its own traffic with.
const (
	metaWeight  = "proconsul_weight" // 1..1000, instead of Consul's weights
	metaDrain   = "proconsul_drain"  // "true": no new requests
	metaZone    = "proconsul_zone"
	metaPort    = "proconsul_port" // the name of one of the service's ports
	metaVersion = "version"
)

const (
	maxWeight     = 65535 // Consul's own bound
	maxMetaWeight = 1000
	maxOutput     = 4 << 10
)

// The ids of the checks that an operator's maintenance mode adds.
const (
	nodeMaintenance    = "_node_maintenance"
	serviceMaintenance = "_service_maintenance:"
)

// toInstances turns Consul's entries into instances, sorted by id. What cannot
// become one is rejected alone, with its reason. It is a pure function.
func toInstances(entries []entry, q discovery.Query) ([]discovery.Instance, []discovery.Rejected) {
	var rejected []discovery.Rejected
	reject := func(id, format string, args ...any) {
		rejected = append(rejected, discovery.Rejected{ID: id, Reason: fmt.Sprintf(format, args...)})
	}
	type candidate struct {
		discovery.Instance
		modified uint64
	}
	found := make([]candidate, 0, len(entries))
	for i := range entries {
		e := &entries[i]
		id := e.Node.Node + "/" + e.Service.ID
		if e.Service.Kind != "" {
			reject(id, "kind %s is part of the mesh, not an instance of the service", e.Service.Kind)
			continue
		}
		addr, err := e.address(q.Address)
		if err != nil {
			reject(id, "%v", err)
			continue
		}
		status := e.status()
		weight, err := e.weight(status)
		if err != nil {
			reject(id+" "+metaWeight, "%v", err)
		}
		found = append(found, candidate{discovery.Instance{
			ID:         id,
			Service:    e.Service.Service,
			ServiceID:  e.Service.ID,
			Node:       e.Node.Node,
			Datacenter: e.Node.Datacenter,
			Address:    addr,
			Status:     status,
			Weight:     weight,
			Tags:       e.Service.Tags,
			Meta:       e.Service.Meta,
			Version:    e.Service.Meta[metaVersion],
			Zone:       e.zone(),
			Checks:     e.checks(),
		}, e.Service.ModifyIndex})
	}

	// One process that is registered twice, as after a restart under another
	// id, must not get twice its share: the healthier entry stands for it,
	// then the newer one.
	slices.SortFunc(found, func(a, b candidate) int {
		return cmp.Or(
			strings.Compare(a.Address, b.Address),
			cmp.Compare(severity(a.Status), severity(b.Status)),
			cmp.Compare(b.modified, a.modified),
			strings.Compare(a.ID, b.ID))
	})
	instances := make([]discovery.Instance, 0, len(found))
	for i := range found {
		if n := len(instances); n > 0 && instances[n-1].Address == found[i].Address {
			reject(found[i].ID, "%s is already instance %s", found[i].Address, instances[n-1].ID)
			continue
		}
		instances = append(instances, found[i].Instance)
	}
	slices.SortFunc(instances, func(a, b discovery.Instance) int { return strings.Compare(a.ID, b.ID) })
	slices.SortFunc(rejected, func(a, b discovery.Rejected) int { return strings.Compare(a.ID, b.ID) })
	return instances, rejected
}

// severity orders states from usable to unusable; an unknown one is as bad as
// critical.
func severity(s discovery.Status) int {
	switch s {
	case discovery.StatusPassing:
		return 0
	case discovery.StatusWarning:
		return 1
	case discovery.StatusMaintenance:
		return 3
	}
	return 2
}

// status aggregates the checks as Consul does: maintenance over critical over
// warning over passing, passing where there is none. A state that we do not
// know is critical: it is nobody's promise of health.
func (e *entry) status() discovery.Status {
	status := discovery.StatusPassing
	for i := range e.Checks {
		c := &e.Checks[i]
		if c.CheckID == nodeMaintenance || strings.HasPrefix(c.CheckID, serviceMaintenance) {
			return discovery.StatusMaintenance
		}
		if s := checkStatus(c.Status); severity(s) > severity(status) {
			status = s
		}
	}
	if status == discovery.StatusUnknown {
		return discovery.StatusCritical
	}
	return status
}

func checkStatus(word string) discovery.Status {
	switch word {
	case "passing":
		return discovery.StatusPassing
	case "warning":
		return discovery.StatusWarning
	case "critical":
		return discovery.StatusCritical
	case "maintenance":
		return discovery.StatusMaintenance
	}
	return discovery.StatusUnknown
}

func (e *entry) checks() []discovery.Check {
	if len(e.Checks) == 0 {
		return nil
	}
	checks := make([]discovery.Check, len(e.Checks))
	for i, c := range e.Checks {
		if len(c.Output) > maxOutput {
			c.Output = strings.ToValidUTF8(c.Output[:maxOutput], "")
		}
		checks[i] = discovery.Check{ID: c.CheckID, Name: c.Name, Type: c.Type, Status: checkStatus(c.Status),
			Output: c.Output, Notes: c.Notes, Node: c.ServiceID == ""}
		if c.CheckID == nodeMaintenance || strings.HasPrefix(c.CheckID, serviceMaintenance) {
			checks[i].Status = discovery.StatusMaintenance
		}
	}
	return checks
}

// weight is Weights.Warning for a warning instance and Weights.Passing for any
// other, so that a critical one has its share where a pool panics. The meta
// key replaces both, except a Warning of 0, which drains. An error says that
// the meta key was of no use; the weight is good nevertheless.
func (e *entry) weight(s discovery.Status) (int, error) {
	passing, warning := 1, 1
	if w := e.Service.Weights; w != nil {
		passing, warning = min(max(w.Passing, 1), maxWeight), min(max(w.Warning, 0), maxWeight)
	}
	if e.Service.Meta[metaDrain] == "true" {
		return 0, nil
	}
	weight := passing
	if s == discovery.StatusWarning {
		weight = warning
	}
	text, ok := e.Service.Meta[metaWeight]
	if !ok || weight == 0 {
		return weight, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxMetaWeight {
		return weight, fmt.Errorf("meta %s=%q is not a number from 1 to %d; Consul's weight %d is used", metaWeight, clip(text), maxMetaWeight, weight)
	}
	return n, nil
}

func (e *entry) zone() string {
	switch {
	case e.Service.Locality != nil && e.Service.Locality.Zone != "":
		return e.Service.Locality.Zone
	case e.Service.Meta[metaZone] != "":
		return e.Service.Meta[metaZone]
	case e.Node.Locality != nil && e.Node.Locality.Zone != "":
		return e.Node.Locality.Zone
	case e.Node.Meta[metaZone] != "":
		return e.Node.Meta[metaZone]
	}
	return e.Node.Meta["zone"]
}

// address is the host:port to dial. want is a query's Address: "" for the
// service's own address, else the node's; "lan" or "wan" for that address of
// the service, of the node, or the default; anything else names a tagged
// address that the service must have.
func (e *entry) address(want string) (string, error) {
	if e.Service.SocketPath != "" && e.Service.Port == 0 {
		return "", fmt.Errorf("it listens on the socket %s, which cannot be reached from here", clip(e.Service.SocketPath))
	}
	port, err := e.port()
	if err != nil {
		return "", err
	}
	host := e.Service.Address
	tagged, ok := e.tagged(want)
	switch {
	case ok:
		host = tagged.Address
		if tagged.Port != 0 {
			port = tagged.Port
		}
	case want == "lan" || want == "wan":
		if host == "" {
			host = e.Node.TaggedAddresses[want]
		}
	case want != "":
		return "", fmt.Errorf("it has no tagged address %q", want)
	}
	if host == "" {
		host = e.Node.Address
	}
	if err := checkHost(host); err != nil {
		return "", err
	}
	if port < 1 || port > 65535 {
		return "", fmt.Errorf("port %d is not between 1 and 65535", port)
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(port)), nil
}

func (e *entry) tagged(want string) (entryAddress, bool) {
	if want == "" {
		return entryAddress{}, false
	}
	names := []string{want}
	if want == "lan" || want == "wan" {
		names = append(names, want+"_ipv4", want+"_ipv6")
	}
	for _, name := range names {
		if a := e.Service.TaggedAddresses[name]; a.Address != "" {
			return a, true
		}
	}
	return entryAddress{}, false
}

func (e *entry) port() (int, error) {
	if name := e.Service.Meta[metaPort]; name != "" {
		for _, p := range e.Service.Ports {
			if p.Name == name {
				return p.Port, nil
			}
		}
		return 0, fmt.Errorf("meta %s=%q names none of its ports", metaPort, clip(name))
	}
	if e.Service.Port == 0 {
		for _, p := range e.Service.Ports {
			if p.Default {
				return p.Port, nil
			}
		}
	}
	return e.Service.Port, nil
}

// checkHost accepts an IP address or a name that may be looked up. What it
// refuses would be dialled as something that nobody meant.
func checkHost(host string) error {
	bare := host
	if strings.HasPrefix(bare, "[") && strings.HasSuffix(bare, "]") {
		bare = bare[1 : len(bare)-1]
	}
	if bare == "" {
		return fmt.Errorf("neither the service nor its node has an address")
	}
	if ip, err := netip.ParseAddr(bare); err == nil {
		if ip.IsUnspecified() || ip.IsMulticast() {
			return fmt.Errorf("address %s is not one to connect to", ip)
		}
		return nil
	}
	if len(bare) > 253 {
		return fmt.Errorf("address %q is longer than a host name may be", clip(bare))
	}
	for _, r := range bare {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '.', r == '_':
		default:
			return fmt.Errorf("address %q is neither an IP address nor a host name", clip(host))
		}
	}
	return nil
}

// clip shortens text from a registration for a message.
func clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "..."
	}
	return s
}
