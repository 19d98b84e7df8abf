package devcatalog

import (
	"cmp"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
)

// catalog is what the servers know: nodes, their services and their checks.
// It is guarded by Server.mu. Node and service names are looked up without case.
type catalog struct {
	nodes  map[string]*node             // by lower-case name
	byName map[string]map[instance]bool // by lower-case service name
	checks int                          // how many there are
}

// instance names one registered service of one node.
type instance struct{ node, id string } // the node in lower case

type node struct {
	row      *nodeRow
	services map[string]*serviceRow // by id
	// checks are by the service's id, and "" for those of the node itself,
	// then by their own id, which is unique on the node.
	checks map[string]map[string]*checkRow
	owner  map[string]string // check id to service id
}

func newCatalog() catalog {
	return catalog{nodes: make(map[string]*node), byName: make(map[string]map[instance]bool)}
}

func newNode(row *nodeRow) *node {
	return &node{row: row, services: make(map[string]*serviceRow), checks: make(map[string]map[string]*checkRow), owner: make(map[string]string)}
}

func (c *catalog) node(name string) *node { return c.nodes[strings.ToLower(name)] }

// instances are those of a service, ordered by node and id.
func (c *catalog) instances(service string) []instance {
	return slices.SortedFunc(maps.Keys(c.byName[strings.ToLower(service)]), func(a, b instance) int {
		return cmp.Or(strings.Compare(a.node, b.node), byLowerCase(a.id, b.id))
	})
}

// size is the number of instances.
func (c *catalog) size() int {
	n := 0
	for _, set := range c.byName {
		n += len(set)
	}
	return n
}

// checksOf are a service's checks by id; with "" those of the node.
func (n *node) checksOf(service string) []*checkRow {
	set := n.checks[service]
	rows := make([]*checkRow, 0, len(set))
	for _, id := range slices.SortedFunc(maps.Keys(set), byLowerCase) {
		rows = append(rows, set[id])
	}
	return rows
}

// byLowerCase is the order of ids.
func byLowerCase(a, b string) int {
	return cmp.Or(strings.Compare(strings.ToLower(a), strings.ToLower(b)), strings.Compare(a, b))
}

// allChecks are those of the node and of all its services, by id.
func (n *node) allChecks() []*checkRow {
	rows := make([]*checkRow, 0, len(n.owner))
	for _, id := range slices.SortedFunc(maps.Keys(n.owner), byLowerCase) {
		rows = append(rows, n.checks[n.owner[id]][id])
	}
	return rows
}

// The following change the catalog. They need s.mu, and a change begun with
// s.indexes.next; a write of what is already there changes nothing.

func (s *Server) putNode(row *nodeRow) {
	key := strings.ToLower(row.Node)
	n := s.catalog.nodes[key]
	if n == nil {
		n = newNode(nil)
		s.catalog.nodes[key] = n
	}
	row.CreateIndex, row.ModifyIndex = s.indexes.counter, s.indexes.counter
	if old := n.row; old != nil {
		row.CreateIndex, row.ModifyIndex = old.CreateIndex, old.ModifyIndex
		if reflect.DeepEqual(old, row) {
			return
		}
		row.ModifyIndex = s.indexes.counter
		s.bytes -= old.size()
	}
	n.row = row
	s.bytes += row.size()
	s.indexes.bump(topic{kind: topicNodes})
	s.indexes.bump(topic{topicNode, key})
	for _, row := range n.services { // a node's address is part of its instances
		s.indexes.bump(topic{topicService, strings.ToLower(row.Service)})
	}
}

func (s *Server) putService(nodeName string, row *serviceRow) {
	key := strings.ToLower(nodeName)
	n := s.catalog.nodes[key]
	row.CreateIndex, row.ModifyIndex = s.indexes.counter, s.indexes.counter
	old := n.services[row.ID]
	if old != nil {
		row.CreateIndex, row.ModifyIndex = old.CreateIndex, old.ModifyIndex
		if reflect.DeepEqual(old, row) {
			return
		}
		row.ModifyIndex = s.indexes.counter
		if !strings.EqualFold(old.Service, row.Service) {
			s.forgetName(old, instance{key, row.ID})
		}
		s.bytes -= old.size()
	}
	n.services[row.ID] = row
	s.bytes += row.size()
	name := strings.ToLower(row.Service)
	if s.catalog.byName[name] == nil {
		s.catalog.byName[name] = make(map[instance]bool)
	}
	s.catalog.byName[name][instance{key, row.ID}] = true
	s.indexes.bump(topic{topicService, name})
	s.indexes.bump(topic{topicNode, key})
	s.indexes.bump(topic{kind: topicServices})
}

// forgetName takes an instance out of the list of its service.
func (s *Server) forgetName(row *serviceRow, in instance) {
	name := strings.ToLower(row.Service)
	delete(s.catalog.byName[name], in)
	if len(s.catalog.byName[name]) == 0 {
		delete(s.catalog.byName, name)
	}
	s.indexes.bump(topic{topicService, name})
}

func (s *Server) putCheck(row *checkRow) {
	key := strings.ToLower(row.Node)
	n := s.catalog.nodes[key]
	row.CreateIndex, row.ModifyIndex = s.indexes.counter, s.indexes.counter
	if owner, ok := n.owner[row.CheckID]; ok {
		old := n.checks[owner][row.CheckID]
		row.CreateIndex, row.ModifyIndex = old.CreateIndex, old.ModifyIndex
		if reflect.DeepEqual(old, row) {
			return
		}
		row.ModifyIndex = s.indexes.counter
		if owner != row.ServiceID {
			s.removeCheck(row.Node, row.CheckID)
		} else {
			s.bytes -= old.size()
		}
	}
	if _, ok := n.owner[row.CheckID]; !ok {
		s.catalog.checks++
	}
	n.owner[row.CheckID] = row.ServiceID
	if n.checks[row.ServiceID] == nil {
		n.checks[row.ServiceID] = make(map[string]*checkRow)
	}
	n.checks[row.ServiceID][row.CheckID] = row
	s.bytes += row.size()
	s.bumpCheck(key, n, row.ServiceID)
}

// bumpCheck notes that a check of a service, or of the node with "", changed.
func (s *Server) bumpCheck(key string, n *node, service string) {
	s.indexes.bump(topic{kind: topicChecks})
	s.indexes.bump(topic{topicNodeChecks, key})
	if service != "" {
		if row := n.services[service]; row != nil {
			s.indexes.bump(topic{topicService, strings.ToLower(row.Service)})
		}
		return
	}
	for _, row := range n.services { // the node's checks count for all of them
		s.indexes.bump(topic{topicService, strings.ToLower(row.Service)})
	}
}

func (s *Server) removeCheck(nodeName, id string) {
	key := strings.ToLower(nodeName)
	n := s.catalog.nodes[key]
	if n == nil {
		return
	}
	owner, ok := n.owner[id]
	if !ok {
		return
	}
	s.bytes -= n.checks[owner][id].size()
	delete(n.owner, id)
	delete(n.checks[owner], id)
	if len(n.checks[owner]) == 0 {
		delete(n.checks, owner)
	}
	s.catalog.checks--
	s.bumpCheck(key, n, owner)
}

// removeService removes an instance with its checks.
func (s *Server) removeService(nodeName, id string) {
	key := strings.ToLower(nodeName)
	n := s.catalog.nodes[key]
	if n == nil || n.services[id] == nil {
		return
	}
	for check := range n.checks[id] {
		s.removeCheck(nodeName, check)
	}
	row := n.services[id]
	s.bytes -= row.size()
	delete(n.services, id)
	s.forgetName(row, instance{key, id})
	s.indexes.bump(topic{topicNode, key})
	s.indexes.bump(topic{kind: topicServices})
}

func (s *Server) removeNode(name string) {
	key := strings.ToLower(name)
	n := s.catalog.nodes[key]
	if n == nil {
		return
	}
	for id := range n.services {
		s.removeService(name, id)
	}
	for id := range n.owner {
		s.removeCheck(name, id)
	}
	s.bytes -= n.row.size()
	delete(s.catalog.nodes, key)
	s.indexes.bump(topic{topicNode, key})
	s.indexes.bump(topic{topicNodeChecks, key})
	s.indexes.bump(topic{kind: topicNodes})
}

// renumber gives every row the present index, after the index was restarted.
func (s *Server) renumber() {
	for _, n := range s.catalog.nodes {
		row := *n.row
		row.CreateIndex, row.ModifyIndex = s.indexes.counter, s.indexes.counter
		n.row = &row
		for id, old := range n.services {
			row := *old
			row.CreateIndex, row.ModifyIndex = s.indexes.counter, s.indexes.counter
			n.services[id] = &row
		}
		for _, set := range n.checks {
			for id, old := range set {
				row := *old
				row.CreateIndex, row.ModifyIndex = s.indexes.counter, s.indexes.counter
				set[id] = &row
			}
		}
	}
	for key, old := range s.kv {
		row := *old
		row.CreateIndex, row.ModifyIndex = s.indexes.counter, s.indexes.counter
		s.kv[key] = &row
	}
}

// The endpoints.

func (s *Server) catalogDatacenters(w http.ResponseWriter, r *http.Request) error {
	return writeJSON(w, r, []string{s.opts.Datacenter})
}

func (s *Server) statusLeader(w http.ResponseWriter, r *http.Request) error {
	if err := s.checkScope(r.URL.Query()); err != nil {
		return err
	}
	if s.Faults().NoLeader {
		return writeJSON(w, r, "")
	}
	return writeJSON(w, r, s.raftAddress())
}

func (s *Server) statusPeers(w http.ResponseWriter, r *http.Request) error {
	if err := s.checkScope(r.URL.Query()); err != nil {
		return err
	}
	return writeJSON(w, r, []string{s.raftAddress()})
}

func (s *Server) catalogNodes(w http.ResponseWriter, r *http.Request) error {
	q, err := s.parseQuery(r)
	if err != nil {
		return err
	}
	keep, err := filterOf[*nodeRow](q)
	if err != nil {
		return err
	}
	rows := []*nodeRow{}
	if err := s.read(w, r, q, topic{kind: topicNodes}, func() {
		for _, n := range s.sortedNodes(q) {
			rows = append(rows, n.row)
		}
	}); err != nil {
		return err
	}
	return writeJSON(w, r, keep(rows))
}

// sortedNodes are those that have the query's ?node-meta, by name.
func (s *Server) sortedNodes(q query) []*node {
	var nodes []*node
	for _, key := range slices.Sorted(maps.Keys(s.catalog.nodes)) {
		if n := s.catalog.nodes[key]; hasMeta(n.row, q) {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

func hasMeta(row *nodeRow, q query) bool {
	for _, pair := range q.params["node-meta"] {
		key, value, _ := strings.Cut(pair, ":")
		if got, ok := row.Meta[key]; !ok || got != value {
			return false
		}
	}
	return true
}

func (s *Server) catalogServices(w http.ResponseWriter, r *http.Request) error {
	q, err := s.parseQuery(r)
	if err != nil {
		return err
	}
	keep, err := filterOf[*catalogServiceRow](q)
	if err != nil {
		return err
	}
	var rows []*catalogServiceRow
	if err := s.read(w, r, q, topic{kind: topicServices}, func() {
		for _, n := range s.sortedNodes(q) {
			for _, id := range slices.Sorted(maps.Keys(n.services)) {
				rows = append(rows, flat(n.row, n.services[id]))
			}
		}
	}); err != nil {
		return err
	}
	services := make(map[string][]string)
	for _, row := range keep(rows) {
		tags := services[row.ServiceName]
		if tags == nil {
			tags = []string{}
		}
		for _, tag := range row.ServiceTags {
			if !slices.Contains(tags, tag) {
				tags = append(tags, tag)
			}
		}
		services[row.ServiceName] = tags
	}
	return writeJSON(w, r, services)
}

func (s *Server) catalogService(w http.ResponseWriter, r *http.Request) error {
	name := trim(r, "/v1/catalog/service/")
	if name == "" {
		return badRequest("Missing service name")
	}
	q, err := s.parseQuery(r)
	if err != nil {
		return err
	}
	keep, err := filterOf[*catalogServiceRow](q)
	if err != nil {
		return err
	}
	rows := []*catalogServiceRow{}
	if err := s.read(w, r, q, topic{topicService, strings.ToLower(name)}, func() {
		for _, in := range s.catalog.instances(name) {
			n := s.catalog.nodes[in.node]
			if row := n.services[in.id]; hasMeta(n.row, q) && hasTags(row, q) {
				rows = append(rows, flat(n.row, row))
			}
		}
	}); err != nil {
		return err
	}
	return writeJSON(w, r, keep(rows))
}

// hasTags reports whether an instance has all of the query's ?tag.
func hasTags(row *serviceRow, q query) bool {
	for _, want := range q.params["tag"] {
		if !slices.ContainsFunc(row.Tags, func(tag string) bool { return strings.EqualFold(tag, want) }) {
			return false
		}
	}
	return true
}

func flat(n *nodeRow, svc *serviceRow) *catalogServiceRow {
	meta := svc.Meta
	if meta == nil {
		meta = map[string]string{}
	}
	return &catalogServiceRow{
		ID: n.ID, Node: n.Node, Address: n.Address, Datacenter: n.Datacenter,
		TaggedAddresses: n.TaggedAddresses, NodeMeta: n.Meta,
		ServiceKind: svc.Kind, ServiceID: svc.ID, ServiceName: svc.Service, ServiceTags: svc.Tags,
		ServiceAddress: svc.Address, ServiceTaggedAddresses: svc.TaggedAddresses,
		ServiceWeights: svc.Weights, ServiceMeta: meta, ServicePort: svc.Port, ServiceSocketPath: svc.SocketPath,
		ServiceEnableTagOverride: svc.EnableTagOverride, ServiceProxy: svc.Proxy, ServiceConnect: svc.Connect,
		CreateIndex: svc.CreateIndex, ModifyIndex: svc.ModifyIndex,
	}
}

func (s *Server) catalogNode(w http.ResponseWriter, r *http.Request) error {
	name := trim(r, "/v1/catalog/node/")
	if name == "" {
		return badRequest("Missing node name")
	}
	q, err := s.parseQuery(r)
	if err != nil {
		return err
	}
	keep, err := filterOf[*serviceRow](q)
	if err != nil {
		return err
	}
	var answer *nodeServicesRow // null where the node is not known
	if err := s.read(w, r, q, topic{topicNode, strings.ToLower(name)}, func() {
		if n := s.catalog.node(name); n != nil {
			answer = &nodeServicesRow{Node: n.row, Services: maps.Clone(n.services)}
		}
	}); err != nil {
		return err
	}
	if answer != nil {
		for id, row := range answer.Services {
			if len(keep([]*serviceRow{row})) == 0 {
				delete(answer.Services, id)
			}
		}
	}
	return writeJSON(w, r, answer)
}

func (s *Server) catalogRegister(w http.ResponseWriter, r *http.Request) error {
	if err := s.checkScope(r.URL.Query()); err != nil {
		return err
	}
	var reg catalogRegistration
	size, err := decode(r, &reg)
	if err != nil {
		return err
	}
	if err := s.needsLeader(); err != nil {
		return err
	}
	if reg.Datacenter != "" && reg.Datacenter != s.opts.Datacenter {
		return serverError("No path to datacenter")
	}
	checks := reg.Checks
	if reg.Check != nil {
		checks = append(checks, reg.Check)
	}
	svc, err := reg.validate(checks)
	if err != nil {
		return err
	}
	if err := s.applyRegistration(&reg, svc, checks, size); err != nil {
		return err
	}
	return writeJSON(w, r, true)
}

// applyRegistration writes a registration that is valid in itself, as one change.
func (s *Server) applyRegistration(reg *catalogRegistration, svc *serviceRow, checks []*catalogCheckDefinition, size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.catalog.node(reg.Node)
	if err := s.roomFor(n, svc, checks, size); err != nil {
		return err
	}
	for _, c := range checks {
		if c.ServiceID != "" && (svc == nil || svc.ID != c.ServiceID) && (n == nil || n.services[c.ServiceID] == nil) {
			return serverError("Unknown service ID '%s' for check ID '%s'", c.ServiceID, c.CheckID)
		}
	}

	s.indexes.next()
	if n == nil || !reg.SkipNodeUpdate {
		s.putNode(&nodeRow{
			ID: reg.ID, Node: reg.Node, Address: reg.Address, Datacenter: s.opts.Datacenter,
			TaggedAddresses: reg.TaggedAddresses, Meta: reg.NodeMeta,
		})
		n = s.catalog.node(reg.Node)
	}
	if svc != nil {
		s.putService(reg.Node, svc)
	}
	for _, c := range checks {
		row := &checkRow{
			Node: n.row.Node, CheckID: c.CheckID, Name: c.Name, Status: c.Status, Notes: c.Notes, Output: c.Output,
			ServiceID: c.ServiceID, ServiceTags: []string{}, Type: c.Type, Interval: c.Interval, Timeout: c.Timeout, ExposedPort: c.ExposedPort,
		}
		if owner := n.services[c.ServiceID]; owner != nil && c.ServiceID != "" {
			row.ServiceName, row.ServiceTags = owner.Service, owner.Tags
		}
		s.putCheck(row)
	}
	return nil
}

// validate checks a registration, fills its defaults and returns its service,
// if it has one.
func (reg *catalogRegistration) validate(checks []*catalogCheckDefinition) (*serviceRow, error) {
	switch {
	case reg.Node == "":
		return nil, serverError("Must provide node")
	case reg.Address == "" && !reg.SkipNodeUpdate:
		return nil, serverError("Must provide address if SkipNodeUpdate is not set")
	}
	if err := checkNames(reg.Node, reg.ID, reg.Address); err != nil {
		return nil, err
	}
	for _, c := range checks {
		if c == nil {
			return nil, badRequest("Request decode failed: a check is null")
		}
		if c.CheckID == "" {
			c.CheckID = c.Name
		}
		if c.Node != "" && !strings.EqualFold(c.Node, reg.Node) {
			return nil, serverError("Node '%s' for check '%s' doesn't match register request node '%s'", c.Node, c.Name, reg.Node)
		}
		if c.Status == "" {
			c.Status = critical
		}
		if err := checkNames(c.CheckID, c.Name, c.ServiceID); err != nil {
			return nil, err
		}
	}
	def := reg.Service
	if def == nil {
		return nil, nil
	}
	if def.ID == "" {
		def.ID = def.Service
	}
	if err := checkNames(def.ID, def.Service); err != nil {
		return nil, err
	}
	row := &serviceRow{
		Kind: def.Kind, ID: def.ID, Service: def.Service, Tags: emptyTags(def.Tags), Address: def.Address,
		TaggedAddresses: def.TaggedAddresses, Meta: def.Meta, Port: def.Port, SocketPath: def.SocketPath,
		Weights: weights{Passing: 1, Warning: 1}, EnableTagOverride: def.EnableTagOverride,
	}
	if def.Weights != nil {
		if err := def.Weights.validate(); err != nil {
			return nil, err
		}
		row.Weights = *def.Weights
	}
	if def.Connect != nil {
		row.Connect.Native = def.Connect.Native
	}
	if len(row.Meta) == 0 {
		row.Meta = nil
	}
	return row, nil
}

func emptyTags(tags []string) []string {
	if tags == nil {
		return []string{}
	}
	return tags
}

// roomFor answers with an error where a registration would pass a limit.
func (s *Server) roomFor(n *node, svc *serviceRow, checks []*catalogCheckDefinition, size int64) error {
	if n == nil && len(s.catalog.nodes) >= s.opts.Limits.Nodes {
		return full("nodes", s.opts.Limits.Nodes)
	}
	if svc != nil && (n == nil || n.services[svc.ID] == nil) && s.catalog.size() >= s.opts.Limits.Services {
		return full("services", s.opts.Limits.Services)
	}
	added := 0
	for _, c := range checks {
		if n == nil || n.owner[c.CheckID] == "" && n.checks[""][c.CheckID] == nil {
			added++
		}
	}
	if added > 0 && s.catalog.checks+added > s.opts.Limits.Checks {
		return full("checks", s.opts.Limits.Checks)
	}
	if svc != nil && n != nil && n.services[svc.ID] != nil {
		size -= n.services[svc.ID].size() // which it takes the place of
	}
	return s.roomForBytes(size)
}

// roomForBytes answers with an error where so many more would be too many.
func (s *Server) roomForBytes(size int64) error {
	if s.bytes+size > s.opts.Limits.Bytes {
		return full("bytes", int(s.opts.Limits.Bytes))
	}
	return nil
}

func (s *Server) catalogDeregister(w http.ResponseWriter, r *http.Request) error {
	if err := s.checkScope(r.URL.Query()); err != nil {
		return err
	}
	var d catalogDeregistration
	if _, err := decode(r, &d); err != nil {
		return err
	}
	if err := s.needsLeader(); err != nil {
		return err
	}
	if d.Node == "" {
		return serverError("Must provide node")
	}
	s.mu.Lock()
	s.indexes.next()
	switch {
	case d.ServiceID != "":
		s.removeService(d.Node, d.ServiceID)
	case d.CheckID != "":
		s.removeCheck(d.Node, d.CheckID)
	default:
		s.removeNode(d.Node)
		if strings.EqualFold(d.Node, s.opts.NodeName) {
			s.putSelf() // an agent brings its own node back
		}
	}
	s.mu.Unlock()
	return writeJSON(w, r, true)
}
