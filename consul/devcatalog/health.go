package devcatalog

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

func (s *Server) healthService(w http.ResponseWriter, r *http.Request) error {
	return s.serviceEntries(w, r, "/v1/health/service/", func(*serviceRow) bool { return true })
}

// healthConnect lists the instances that speak Connect themselves. Sidecars do
// not exist here.
func (s *Server) healthConnect(w http.ResponseWriter, r *http.Request) error {
	return s.serviceEntries(w, r, "/v1/health/connect/", func(row *serviceRow) bool { return row.Connect.Native })
}

func (s *Server) serviceEntries(w http.ResponseWriter, r *http.Request, prefix string, want func(*serviceRow) bool) error {
	name := trim(r, prefix)
	if name == "" {
		return badRequest("Missing service name")
	}
	q, err := s.parseQuery(r)
	if err != nil {
		return err
	}
	keep, err := filterOf[*entryRow](q)
	if err != nil {
		return err
	}
	t := topic{topicService, strings.ToLower(name)}
	if q.index > 0 && s.Faults().PhantomEmpty {
		s.writeMeta(w, q, t, 1, s.streams(q, t, r))
		return writeJSON(w, r, []*entryRow{})
	}
	entries := []*entryRow{}
	if err := s.read(w, r, q, t, func() {
		for _, in := range s.catalog.instances(name) {
			n := s.catalog.nodes[in.node]
			row := n.services[in.id]
			if !want(row) || !hasMeta(n.row, q) || !hasTags(row, q) {
				continue
			}
			checks := n.checksOf("")
			if in.id != "" {
				checks = append(checks, n.checksOf(in.id)...)
			}
			entries = append(entries, &entryRow{Node: n.row, Service: row, Checks: checks})
		}
	}); err != nil {
		return err
	}
	if q.index > 0 && s.Faults().PhantomEmpty { // set while the query was blocked
		s.writeMeta(w, q, t, 1, s.streams(q, t, r))
		return writeJSON(w, r, []*entryRow{})
	}
	entries = keep(entries)
	if q.params.Has("passing") {
		// Consul looks at this one only after the query, so a watcher is
		// woken all the same, and a wrong value has the query's headers.
		only, err := strconv.ParseBool(q.params.Get("passing"))
		if v := q.params.Get("passing"); v == "" {
			only = true
		} else if err != nil {
			return badRequest("Invalid value for ?passing")
		}
		if only {
			entries = slices.DeleteFunc(entries, func(e *entryRow) bool {
				return slices.ContainsFunc(e.Checks, func(c *checkRow) bool { return c.Status != passing })
			})
		}
	}
	return writeJSON(w, r, entries)
}

func (s *Server) healthChecks(w http.ResponseWriter, r *http.Request) error {
	name := trim(r, "/v1/health/checks/")
	if name == "" {
		return badRequest("Missing service name")
	}
	return s.checkList(w, r, topic{topicService, strings.ToLower(name)}, func(q query) []*checkRow {
		var rows []*checkRow
		// The checks of a name are not those of its instances: a check keeps
		// the name that its service had when it was written.
		for _, n := range s.sortedNodes(q) {
			for _, row := range n.allChecks() {
				if row.ServiceID != "" && strings.EqualFold(row.ServiceName, name) {
					rows = append(rows, row)
				}
			}
		}
		return rows
	})
}

func (s *Server) healthNode(w http.ResponseWriter, r *http.Request) error {
	name := trim(r, "/v1/health/node/")
	if name == "" {
		return badRequest("Missing node name")
	}
	return s.checkList(w, r, topic{topicNodeChecks, strings.ToLower(name)}, func(query) []*checkRow {
		if n := s.catalog.node(name); n != nil {
			return n.allChecks()
		}
		return nil
	})
}

func (s *Server) healthState(w http.ResponseWriter, r *http.Request) error {
	state := trim(r, "/v1/health/state/")
	if state == "" {
		return badRequest("Missing check state")
	}
	return s.checkList(w, r, topic{kind: topicChecks}, func(q query) []*checkRow {
		var rows []*checkRow
		for _, n := range s.sortedNodes(q) {
			for _, row := range n.allChecks() {
				if state == "any" || row.Status == state {
					rows = append(rows, row)
				}
			}
		}
		return rows
	})
}

// checkList answers with the checks that list finds, with s.mu held.
func (s *Server) checkList(w http.ResponseWriter, r *http.Request, t topic, list func(query) []*checkRow) error {
	q, err := s.parseQuery(r)
	if err != nil {
		return err
	}
	keep, err := filterOf[*checkRow](q)
	if err != nil {
		return err
	}
	rows := []*checkRow{}
	if err := s.read(w, r, q, t, func() { rows = append(rows, list(q)...) }); err != nil {
		return err
	}
	return writeJSON(w, r, keep(rows))
}

// aggregate is the status of an instance by its checks: the worst one, and
// maintenance before all.
func aggregate(checks []*checkRow) string {
	status := passing
	for _, c := range checks {
		switch {
		case c.CheckID == nodeMaintenanceID || strings.HasPrefix(c.CheckID, serviceMaintenancePrefix):
			return maintenance
		case c.Status == critical:
			status = critical
		case c.Status == warning && status == passing:
			status = warning
		}
	}
	return status
}

// healthCode is the HTTP status that tells an aggregated status to a load
// balancer.
func healthCode(status string) int {
	switch status {
	case passing:
		return http.StatusOK
	case warning:
		return http.StatusTooManyRequests
	default:
		return http.StatusServiceUnavailable
	}
}

func (s *Server) agentHealthByID(w http.ResponseWriter, r *http.Request) error {
	id := trim(r, "/v1/agent/health/service/id/")
	if id == "" {
		return serverError("Missing serviceID")
	}
	s.mu.Lock()
	row := s.agentHealth(id)
	s.mu.Unlock()
	if row == nil {
		reason := "ServiceId " + id + " not found"
		return writeAgentHealth(w, r, http.StatusNotFound, reason, reason, &agentHealthRow{AggregatedStatus: critical})
	}
	return writeAgentHealth(w, r, healthCode(row.AggregatedStatus), row.AggregatedStatus, row.AggregatedStatus, row)
}

func (s *Server) agentHealthByName(w http.ResponseWriter, r *http.Request) error {
	name := trim(r, "/v1/agent/health/service/name/")
	if name == "" {
		return serverError("Missing service Name")
	}
	rows := []*agentHealthRow{}
	s.mu.Lock()
	for _, id := range slices.Sorted(maps.Keys(s.agent.services)) {
		if s.agent.services[id].row.Service == name {
			rows = append(rows, s.agentHealth(id))
		}
	}
	s.mu.Unlock()
	if len(rows) == 0 {
		reason := "ServiceName " + name + " Not Found"
		return writeAgentHealth(w, r, http.StatusNotFound, reason, reason, rows)
	}
	order := []string{passing, warning, critical, maintenance}
	worst := slices.MaxFunc(rows, func(a, b *agentHealthRow) int {
		return slices.Index(order, a.AggregatedStatus) - slices.Index(order, b.AggregatedStatus)
	}).AggregatedStatus
	return writeAgentHealth(w, r, healthCode(worst), worst, worst, rows)
}

// agentHealth is the health of a registration, or nil. It needs s.mu.
func (s *Server) agentHealth(id string) *agentHealthRow {
	svc := s.agent.services[id]
	if svc == nil {
		return nil
	}
	row := &agentHealthRow{Service: svc.row, Checks: []*checkRow{}}
	for _, check := range slices.Sorted(maps.Keys(s.agent.checks)) {
		if c := s.agent.checks[check].row; c.ServiceID == id || c.ServiceID == "" {
			row.Checks = append(row.Checks, &c)
		}
	}
	row.AggregatedStatus = aggregate(row.Checks)
	return row
}

func writeAgentHealth(w http.ResponseWriter, r *http.Request, code int, reason, text string, v any) error {
	w.Header().Set("X-Consul-Reason", oneLine(reason))
	if r.URL.Query().Get("format") == "text" {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Content-Length", strconv.Itoa(len(text)))
		w.WriteHeader(code)
		_, _ = w.Write([]byte(text)) // an error here is a client that left
		return nil
	}
	return writeJSONStatus(w, r, code, v)
}

// oneLine makes what a client sent fit into a header.
func oneLine(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, s)
}
