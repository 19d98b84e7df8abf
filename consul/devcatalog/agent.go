package devcatalog

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// agent is what the agent itself knows: what was registered with it. Its checks
// are ahead of the catalog by their newest output. It is guarded by Server.mu.
type agent struct {
	services map[string]*registration // by id
	checks   map[string]*agentCheck   // by check id
	schedule schedule
}

// registration is a service as the agent tells it, with a hash of that.
type registration struct {
	row  *agentServiceRow
	hash string
}

func newAgent() agent {
	return agent{services: make(map[string]*registration), checks: make(map[string]*agentCheck)}
}

const (
	nodeMaintenanceID        = "_node_maintenance"
	serviceMaintenancePrefix = "_service_maintenance:"
	maintenance              = "maintenance"
)

func (s *Server) raftAddress() string { return s.opts.Address + ":8300" }

func (s *Server) member() memberRow {
	return memberRow{
		Name: s.opts.NodeName, Addr: s.opts.Address, Port: 8301, Status: 1,
		Tags: map[string]string{
			"acls": "0", "bootstrap": "1", "build": version + ":", "dc": s.opts.Datacenter, "id": s.nodeID, "port": "8300",
			"raft_vsn": "3", "role": "consul", "segment": "", "vsn": "2", "vsn_max": "3", "vsn_min": "2",
		},
		ProtocolMin: 1, ProtocolMax: 5, ProtocolCur: 2, DelegateMin: 2, DelegateMax: 5, DelegateCur: 4,
	}
}

func (s *Server) agentSelf(w http.ResponseWriter, r *http.Request) error {
	return writeJSON(w, r, &selfRow{
		Config: selfConfig{
			Datacenter: s.opts.Datacenter, PrimaryDatacenter: s.opts.Datacenter, NodeName: s.opts.NodeName,
			NodeID: s.nodeID, Server: true, Version: version, BuildDate: "1970-01-01T00:00:01Z",
		},
		Member: s.member(),
		Meta:   map[string]string{"consul-network-segment": ""},
		Stats: map[string]map[string]string{
			"agent":  {"services": strconv.Itoa(s.countRegistrations())},
			"consul": {"leader": strconv.FormatBool(!s.Faults().NoLeader), "server": "true", "known_datacenters": "1"},
		},
	})
}

func (s *Server) countRegistrations() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.agent.services)
}

func (s *Server) agentMembers(w http.ResponseWriter, r *http.Request) error {
	if r.URL.Query().Get("wan") != "" {
		return writeJSON(w, r, nil)
	}
	return writeJSON(w, r, []memberRow{s.member()})
}

func (s *Server) agentServices(w http.ResponseWriter, r *http.Request) error {
	keep, err := compileFilter[*agentServiceRow](r.URL.Query().Get("filter"))
	if err != nil {
		return err
	}
	rows := make(map[string]*agentServiceRow)
	s.mu.Lock()
	for id, reg := range s.agent.services {
		rows[id] = reg.row
	}
	s.mu.Unlock()
	maps.DeleteFunc(rows, func(_ string, row *agentServiceRow) bool { return len(keep([]*agentServiceRow{row})) == 0 })
	return writeJSON(w, r, rows)
}

func (s *Server) agentChecks(w http.ResponseWriter, r *http.Request) error {
	keep, err := compileFilter[*checkRow](r.URL.Query().Get("filter"))
	if err != nil {
		return err
	}
	rows := make(map[string]*checkRow)
	s.mu.Lock()
	for id, c := range s.agent.checks {
		row := c.row
		rows[id] = &row
	}
	s.mu.Unlock()
	maps.DeleteFunc(rows, func(_ string, row *checkRow) bool { return len(keep([]*checkRow{row})) == 0 })
	return writeJSON(w, r, rows)
}

// agentService answers with one registration. With ?hash it blocks until the
// registration differs from the one that had that hash, or is gone.
func (s *Server) agentService(w http.ResponseWriter, r *http.Request) error {
	id := trim(r, "/v1/agent/service/")
	wait, err := parseWait(r.URL.Query())
	if err != nil {
		return err
	}
	if hash := r.URL.Query().Get("hash"); hash != "" {
		if err := s.await(r.Context(), topic{topicAgentService, id}, jittered(wait), func() bool {
			reg := s.agent.services[id]
			return reg == nil || reg.hash != hash
		}); err != nil {
			return err
		}
		if s.Faults().Cut { // set while the query was blocked
			cut()
		}
	}
	s.mu.Lock()
	reg := s.agent.services[id]
	s.mu.Unlock()
	if reg == nil {
		return notFound("unknown service ID: %s", id)
	}
	row := *reg.row
	row.ContentHash = reg.hash
	w.Header().Set("X-Consul-Contenthash", reg.hash)
	return writeJSON(w, r, &row)
}

func (s *Server) registerService(w http.ResponseWriter, r *http.Request) error {
	var def serviceDefinition
	size, err := decode(r, &def)
	if err != nil {
		return err
	}
	row, checks, err := def.validate(s.opts.Datacenter)
	if err != nil {
		return err
	}
	body, err := json.Marshal(row)
	if err != nil {
		return err
	}
	h := fnv.New64a()
	_, _ = h.Write(body) // a hash takes everything
	params := r.URL.Query()
	replace := params.Has("replace-existing-checks") && (params.Get("replace-existing-checks") == "" || params.Get("replace-existing-checks") == "true")
	return s.addService(&registration{row: row, hash: fmt.Sprintf("%016x", h.Sum64())}, checks, replace, size)
}

// addService registers a service with its checks as one change. What is there
// already stays as it is: a check keeps its status and its output, and with
// replace the service's other checks go.
func (s *Server) addService(reg *registration, checks []*checkDefinition, replace bool, size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	row := reg.row
	old := s.agent.services[row.ID]
	n := s.catalog.node(s.opts.NodeName)
	known := n.services[row.ID]
	if known == nil && s.catalog.size() >= s.opts.Limits.Services || old == nil && len(s.agent.services) >= s.opts.Limits.Services {
		return full("services", s.opts.Limits.Services)
	}
	added := 0
	for _, c := range checks {
		if s.agent.checks[c.CheckID] == nil {
			added++
		}
	}
	if added > 0 && len(s.agent.checks)+added > s.opts.Limits.Checks {
		return full("checks", s.opts.Limits.Checks)
	}
	if old != nil {
		size -= old.row.size() // which it takes the place of
	}
	if err := s.roomForBytes(size); err != nil {
		return err
	}

	s.indexes.next()
	s.agent.services[row.ID] = reg
	s.bytes += row.size()
	if old != nil {
		s.bytes -= old.row.size()
	}
	// A registration that repeats itself must not undo what the catalog
	// was told since, as other tags under EnableTagOverride.
	if old == nil || known == nil || !reflect.DeepEqual(old.row, row) {
		s.putService(s.opts.NodeName, row.catalogRow())
		s.indexes.bump(topic{topicAgentService, row.ID})
		s.log.Info("service registered", "service", row.Service, "instance", row.ID, "port", row.Port)
	}
	named := make(map[string]bool, len(checks))
	for _, c := range checks {
		named[c.CheckID] = true
		s.addCheck(c.CheckID, &c.checkFields, checkRow{
			ServiceID: row.ID, ServiceName: row.Service, ServiceTags: row.Tags,
			Interval: c.Interval.text(""), Timeout: c.Timeout.text(""),
		})
	}
	if replace {
		for id, c := range s.agent.checks {
			if c.row.ServiceID == row.ID && !named[id] {
				s.dropCheck(id)
			}
		}
	}
	s.wakeRun()
	return nil
}

// text writes a duration, or instead where there is none.
func (d duration) text(instead string) string {
	if d == 0 {
		return instead
	}
	return time.Duration(d).String()
}

func (a *agentServiceRow) size() int64 { return a.catalogRow().size() }

// catalogRow is the registration as the catalog has it.
func (a *agentServiceRow) catalogRow() *serviceRow {
	row := &serviceRow{
		Kind: a.Kind, ID: a.ID, Service: a.Service, Tags: a.Tags, Address: a.Address, TaggedAddresses: a.TaggedAddresses,
		Port: a.Port, SocketPath: a.SocketPath, Weights: a.Weights, EnableTagOverride: a.EnableTagOverride,
	}
	if len(a.Meta) > 0 {
		row.Meta = a.Meta
	}
	if a.Connect != nil {
		row.Connect = *a.Connect
	}
	return row
}

func unknownService(id string) error {
	return notFound("Unknown service ID %q. Ensure that the service ID is passed, not the service name.", id)
}

func unknownCheck(id string) error {
	return notFound("Unknown check ID %q. Ensure that the check ID is passed, not the check name.", id)
}

func (s *Server) deregisterService(_ http.ResponseWriter, r *http.Request) error {
	id := trim(r, "/v1/agent/service/deregister/")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent.services[id] == nil {
		return unknownService(id)
	}
	s.dropService(id)
	return nil
}

// dropService removes a registration and its checks, as one change.
func (s *Server) dropService(id string) {
	s.indexes.next()
	row := s.agent.services[id].row
	s.bytes -= row.size()
	delete(s.agent.services, id)
	for check, c := range s.agent.checks {
		if c.row.ServiceID == id {
			s.dropCheck(check)
		}
	}
	s.removeService(s.opts.NodeName, id)
	s.indexes.bump(topic{topicAgentService, id})
	s.log.Info("service deregistered", "service", row.Service, "instance", id)
}

// enableParam reads ?enable.
func enableParam(r *http.Request) (bool, error) {
	params := r.URL.Query()
	if !params.Has("enable") {
		return false, badRequest("Missing value for enable")
	}
	on, err := strconv.ParseBool(params.Get("enable"))
	if err != nil {
		return false, badRequest("Invalid value for enable: %q", params.Get("enable"))
	}
	return on, nil
}

// reasonParam reads ?reason, cut to the size of a check's output.
func reasonParam(r *http.Request, of string) string {
	if reason := r.URL.Query().Get("reason"); reason != "" {
		return reason[:min(len(reason), maxOutput)]
	}
	return "Maintenance mode is enabled for this " + of + ", but no reason was provided. This is a default message."
}

func (s *Server) serviceMaintenance(_ http.ResponseWriter, r *http.Request) error {
	id := trim(r, "/v1/agent/service/maintenance/")
	if id == "" {
		return badRequest("Missing service ID")
	}
	on, err := enableParam(r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	reg := s.agent.services[id]
	if reg == nil {
		return unknownService(id)
	}
	s.setMaintenance(on, serviceMaintenancePrefix+id, checkRow{
		Name: "Service Maintenance Mode", Notes: reasonParam(r, "service"),
		ServiceID: id, ServiceName: reg.row.Service, ServiceTags: reg.row.Tags,
	})
	return nil
}

func (s *Server) nodeMaintenance(_ http.ResponseWriter, r *http.Request) error {
	on, err := enableParam(r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setMaintenance(on, nodeMaintenanceID, checkRow{Name: "Node Maintenance Mode", Notes: reasonParam(r, "node"), ServiceTags: []string{}})
	return nil
}

// setMaintenance adds or removes the check that stands for it. One that is
// there keeps its reason.
func (s *Server) setMaintenance(on bool, id string, row checkRow) {
	if on == (s.agent.checks[id] != nil) {
		return
	}
	s.indexes.next()
	if on {
		s.addCheck(id, nil, row)
	} else {
		s.dropCheck(id)
	}
	s.log.Info("maintenance changed", "check", id, "enabled", on)
}

func (s *Server) registerCheck(_ http.ResponseWriter, r *http.Request) error {
	var def agentCheckDefinition
	size, err := decode(r, &def)
	if err != nil {
		return err
	}
	if def.Name == "" {
		return badRequest("Missing check name")
	}
	if def.Status != "" && !validStatus(def.Status) {
		return badRequest("Bad check status")
	}
	if err := def.validate(); err != nil {
		return badRequest("Invalid check: %v", err)
	}
	if def.ID == "" {
		def.ID = def.Name
	}
	if err := checkNames(def.ID, def.Name, def.ServiceID); err != nil {
		return err
	}
	row := checkRow{ServiceID: def.ServiceID, ServiceTags: []string{}, Interval: def.Interval.text("0s"), Timeout: def.Timeout.text("0s")}

	s.mu.Lock()
	defer s.mu.Unlock()
	if def.ServiceID != "" {
		reg := s.agent.services[def.ServiceID]
		if reg == nil {
			return notFound("ServiceID %q does not exist", def.ServiceID)
		}
		row.ServiceName, row.ServiceTags = reg.row.Service, reg.row.Tags
	}
	if s.agent.checks[def.ID] == nil && len(s.agent.checks) >= s.opts.Limits.Checks {
		return full("checks", s.opts.Limits.Checks)
	}
	if err := s.roomForBytes(size); err != nil {
		return err
	}
	s.indexes.next()
	s.addCheck(def.ID, &def.checkFields, row)
	s.wakeRun()
	return nil
}

func (s *Server) deregisterCheck(_ http.ResponseWriter, r *http.Request) error {
	id := trim(r, "/v1/agent/check/deregister/")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent.checks[id] == nil {
		return unknownCheck(id)
	}
	s.indexes.next()
	s.dropCheck(id)
	return nil
}

// reportCheck is the handler by which a service tells its own status.
func (s *Server) reportCheck(prefix, status string) func(http.ResponseWriter, *http.Request) error {
	return func(_ http.ResponseWriter, r *http.Request) error {
		return s.report(trim(r, prefix), status, r.URL.Query().Get("note"))
	}
}

func (s *Server) updateCheck(_ http.ResponseWriter, r *http.Request) error {
	var update struct{ Status, Output string }
	if _, err := decode(r, &update); err != nil {
		return err
	}
	if !validStatus(update.Status) {
		return badRequest("Invalid check status: '%s'", update.Status)
	}
	return s.report(trim(r, "/v1/agent/check/update/"), update.Status, update.Output)
}

// report takes what a service says about itself, and starts its TTL anew.
func (s *Server) report(id, status, output string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.agent.checks[id]
	switch {
	case c == nil:
		return unknownCheck(id)
	case c.kind() != kindTTL:
		return serverError("CheckID %q does not have associated TTL", id)
	}
	limit := maxOutput
	if c.def.OutputMaxSize > 0 {
		limit = min(c.def.OutputMaxSize, maxOutput)
	}
	if total := len(output); total > limit {
		output = fmt.Sprintf("%s ... (captured %d of %d bytes)", strings.ToValidUTF8(output[:limit], ""), limit, total)
	}
	c.reported = output
	c.run = time.Now().Add(time.Duration(c.def.TTL))
	s.setStatus(c, status, output)
	s.wakeRun()
	return nil
}
