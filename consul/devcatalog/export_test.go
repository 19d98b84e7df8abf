package devcatalog

import (
	"fmt"
	"strings"
)

// Audit recomputes what the server keeps count of, and says what differs.
func (s *Server) Audit() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var bytes int64
	checks := 0
	for key, n := range s.catalog.nodes {
		bytes += n.row.size()
		for id, row := range n.services {
			bytes += row.size()
			if !s.catalog.byName[strings.ToLower(row.Service)][instance{key, id}] {
				return fmt.Errorf("instance %s/%s is not listed under %q", key, id, row.Service)
			}
		}
		for owner, set := range n.checks {
			for id, row := range set {
				checks++
				bytes += row.size()
				if n.owner[id] != owner || row.ServiceID != owner {
					return fmt.Errorf("check %s/%s is listed under %q, and owned by %q", key, id, owner, n.owner[id])
				}
			}
		}
	}
	for name, set := range s.catalog.byName {
		for in := range set {
			if n := s.catalog.nodes[in.node]; n == nil || n.services[in.id] == nil || !strings.EqualFold(n.services[in.id].Service, name) {
				return fmt.Errorf("service %q lists %v, which is gone", name, in)
			}
		}
	}
	for _, reg := range s.agent.services {
		bytes += reg.row.size()
	}
	for id, c := range s.agent.checks {
		bytes += c.size()
		if c.place > 0 && s.agent.schedule[c.place-1] != c || (c.place > 0) != !c.next().IsZero() {
			return fmt.Errorf("check %s is misplaced in the schedule", id)
		}
	}
	for _, row := range s.kv {
		bytes += row.size()
	}
	waiters := 0
	for _, w := range s.indexes.waiters {
		waiters += len(w)
	}
	l := s.opts.Limits
	switch {
	case waiters != s.blocked:
		return fmt.Errorf("%d waiters of %d queries", waiters, s.blocked)
	case checks != s.catalog.checks:
		return fmt.Errorf("%d checks, counted %d", checks, s.catalog.checks)
	case bytes != s.bytes:
		return fmt.Errorf("%d bytes held, counted %d", bytes, s.bytes)
	case bytes > l.Bytes+1<<20:
		return fmt.Errorf("%d bytes held, the limit is %d", bytes, l.Bytes)
	case len(s.kv) > l.Keys, s.catalog.size() > l.Services+1, len(s.agent.services) > l.Services,
		len(s.catalog.nodes) > l.Nodes, len(s.indexes.at) > s.indexes.max:
		return fmt.Errorf("a limit is passed: %d keys, %d instances, %d nodes, %d topics", len(s.kv), s.catalog.size(), len(s.catalog.nodes), len(s.indexes.at))
	}
	return nil
}
