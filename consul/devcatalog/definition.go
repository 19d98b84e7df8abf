package devcatalog

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// duration is a time as Consul takes it: "15s", or a number of nanoseconds.
type duration time.Duration

// UnmarshalJSON reads both forms; null is no time.
func (d *duration) UnmarshalJSON(b []byte) error {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	switch v := v.(type) {
	case string:
		parsed, err := time.ParseDuration(v)
		if err != nil {
			return err
		}
		*d = duration(parsed)
	case float64:
		*d = duration(v)
	}
	return nil
}

// checkNames refuses names that are too long to be remembered.
func checkNames(names ...string) error {
	for _, name := range names {
		if len(name) > maxName {
			return badRequest("devcatalog: a name or id of %d bytes is too long, the limit is %d", len(name), maxName)
		}
	}
	return nil
}

// validate checks a service's registration, in Consul's order, and returns it
// as the agent keeps it, with its checks.
func (def *serviceDefinition) validate(datacenter string) (*agentServiceRow, []*checkDefinition, error) {
	if def.Name == "" {
		return nil, nil, badRequest("Missing service name")
	}
	if addr, err := netip.ParseAddr(def.Address); err == nil && addr.IsUnspecified() {
		return nil, nil, badRequest("Invalid service address")
	}
	row := &agentServiceRow{
		Kind: def.Kind, ID: def.ID, Service: def.Name, Tags: emptyTags(def.Tags), Meta: def.Meta, Port: def.Port,
		Address: def.Address, SocketPath: def.SocketPath, Weights: weights{Passing: 1, Warning: 1},
		EnableTagOverride: def.EnableTagOverride || def.EnableTagOverrideSnake, Datacenter: datacenter,
	}
	if row.ID == "" {
		row.ID = def.Name
	}
	if err := checkNames(row.ID, row.Service); err != nil {
		return nil, nil, err
	}
	if def.Weights != nil {
		if err := def.Weights.validate(); err != nil {
			return nil, nil, err
		}
		row.Weights = *def.Weights
	}
	if err := validateMeta(def.Meta); err != nil {
		return nil, nil, err
	}
	if row.Meta == nil {
		row.Meta = map[string]string{}
	}
	row.TaggedAddresses = def.TaggedAddresses
	if len(row.TaggedAddresses) == 0 {
		row.TaggedAddresses = def.TaggedAddressesSnake
	}
	row.addTaggedAddresses()
	if def.Connect != nil && def.Connect.Native {
		if row.Port == 0 && row.SocketPath == "" {
			return nil, nil, badRequest("Validation failed: 1 error occurred:\n\t* Port or SocketPath must be set for a Connect native service.\n\n")
		}
		row.Connect = &connectRow{Native: true}
	}
	checks, err := def.allChecks()
	if err != nil {
		return nil, nil, err
	}
	for i, c := range checks {
		if c.CheckID == "" {
			c.CheckID = "service:" + row.ID
			if len(checks) > 1 {
				c.CheckID = fmt.Sprintf("service:%s:%d", row.ID, i+1)
			}
		}
		if c.Name == "" {
			c.Name = fmt.Sprintf("Service '%s' check", row.Service)
		}
		if err := checkNames(c.CheckID, c.Name); err != nil {
			return nil, nil, err
		}
	}
	return row, checks, nil
}

// addTaggedAddresses adds those that an agent makes of a literal address.
func (a *agentServiceRow) addTaggedAddresses() {
	addr, err := netip.ParseAddr(a.Address)
	if err != nil {
		return
	}
	family := "_ipv6"
	if addr.Unmap().Is4() {
		family = "_ipv4"
	}
	tagged := maps.Clone(a.TaggedAddresses)
	if tagged == nil {
		tagged = make(map[string]serviceAddress)
	}
	for _, name := range []string{"lan" + family, "wan" + family} {
		if _, ok := tagged[name]; !ok {
			tagged[name] = serviceAddress{Address: a.Address, Port: a.Port}
		}
	}
	a.TaggedAddresses = tagged
}

// allChecks are Check, unless it is empty, and then Checks, all of them valid.
func (def *serviceDefinition) allChecks() ([]*checkDefinition, error) {
	var checks []*checkDefinition
	if def.Check != nil && !def.Check.empty() {
		checks = append(checks, def.Check)
	}
	for _, c := range def.Checks {
		if c == nil {
			c = &checkDefinition{}
		}
		checks = append(checks, c)
	}
	for _, c := range checks {
		if err := c.validate(); err != nil {
			return nil, badRequest("Invalid check: %v", err)
		}
	}
	for _, c := range checks {
		if c.Status != "" && !validStatus(c.Status) {
			return nil, badRequest("Status for checks must 'passing', 'warning', 'critical'")
		}
	}
	return checks, nil
}

func validStatus(s string) bool { return s == passing || s == warning || s == critical }

// empty reports whether nothing was said but, perhaps, whose check it is.
func (c *checkDefinition) empty() bool {
	b, err := json.Marshal(c)
	if err != nil {
		return false
	}
	blank, err := json.Marshal(&checkDefinition{checkFields: checkFields{ServiceID: c.ServiceID, ServiceIDSnake: c.ServiceIDSnake}})
	return err == nil && string(b) == string(blank)
}

// foreign names what the check needs that this server does not have.
func (c *checkFields) foreign() string {
	switch {
	case len(c.ScriptArgs)+len(c.Args)+len(c.ScriptArgsSnake) > 0, c.DockerContainerID+c.DockerContainerIDSnake != "":
		return "Script"
	case c.GRPC != "":
		return "GRPC"
	case c.H2PING != "":
		return "H2PING"
	case c.UDP != "":
		return "UDP"
	case c.OSService != "":
		return "OSService"
	case c.AliasNode != "" || c.AliasService != "":
		return "Alias"
	}
	return ""
}

// validate checks what must hold for every check, and merges the second
// spellings into the first.
func (c *checkFields) validate() error {
	c.TLSSkipVerify = c.TLSSkipVerify || c.TLSSkipVerifySnake
	if c.TLSServerName == "" {
		c.TLSServerName = c.TLSServerNameSnake
	}
	if c.DeregisterCriticalServiceAfter == 0 {
		c.DeregisterCriticalServiceAfter = c.DeregisterCriticalServiceAfterSnake
	}
	if c.ServiceID == "" {
		c.ServiceID = c.ServiceIDSnake
	}
	probes := c.HTTP != "" || c.TCP != ""
	foreign := c.foreign()
	// The messages are Consul's, so they begin as they do there.
	switch {
	case c.Interval > 0 && c.TTL > 0:
		return badRequest("Interval and TTL cannot both be specified")
	case (probes || foreign != "" && foreign != "Alias") && c.Interval <= 0:
		return badRequest("Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks")
	case foreign != "":
		return badRequest("devcatalog runs HTTP, TCP and TTL checks, and no %s check", foreign)
	case !probes && c.TTL <= 0:
		return badRequest("TTL must be > 0 for TTL checks")
	case c.OutputMaxSize < 0:
		return badRequest("MaxOutputMaxSize must be positive")
	case c.FailuresBeforeWarning > c.FailuresBeforeCritical:
		return badRequest("FailuresBeforeWarning can't be higher than FailuresBeforeCritical")
	}
	return nil
}

func (w weights) validate() error {
	switch {
	case w.Passing < 1:
		return badRequest("Invalid Weights: Passing must be greater than 0")
	case w.Warning < 0:
		return badRequest("Invalid Weights: Warning must be greater or equal than 0")
	case w.Passing > 65535 || w.Warning > 65535:
		return badRequest("Invalid Weights: DNS Weight must be between 0 and 65535")
	}
	return nil
}

// The bounds of a service's meta, as Consul has them.
const (
	maxMetaPairs = 64
	maxMetaKey   = 128
	maxMetaValue = 512
)

func validateMeta(meta map[string]string) error {
	if len(meta) > maxMetaPairs {
		return badRequest("Invalid Service Meta: Node metadata cannot contain more than %d key/value pairs", maxMetaPairs)
	}
	for _, key := range slices.Sorted(maps.Keys(meta)) {
		if fault := metaFault(key, meta[key]); fault != "" {
			return badRequest("Invalid Service Meta: Couldn't load metadata pair ('%s', '%s'): %s", key, meta[key], fault)
		}
	}
	return nil
}

func metaFault(key, value string) string {
	switch {
	case key == "":
		return "Key cannot be blank"
	case strings.ContainsFunc(key, func(c rune) bool { return c >= 0x80 || c != '-' && !isWord(byte(c)) }):
		return "Key contains invalid characters"
	case len(key) > maxMetaKey:
		return fmt.Sprintf("Key is too long (limit: %d characters)", maxMetaKey)
	case strings.HasPrefix(key, "consul-"):
		return "Key prefix 'consul-' is reserved for internal use"
	case len(value) > maxMetaValue:
		return fmt.Sprintf("Value is too long (limit: %d characters)", maxMetaValue)
	}
	return ""
}

// size is about how much a check's definition holds of the client's bytes.
func (c *checkFields) size() int64 {
	size := int64(len(c.HTTP) + len(c.TCP) + len(c.Method) + len(c.Body) + len(c.TLSServerName) + len(c.Shell) + len(c.ProxyHTTP) + len(c.ProxyGRPC))
	for name, values := range c.Header {
		size += int64(len(name)) + 48
		for _, v := range values {
			size += int64(len(v)) + 16
		}
	}
	return size
}
