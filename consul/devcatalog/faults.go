package devcatalog

import (
	"net/http"
	"time"
)

// Faults are the ways in which a Server can be told to misbehave, each as a
// real Consul was seen to. The zero value is none. They may be combined.
type Faults struct {
	// Cut closes every connection without an answer, as an agent that went
	// away behind a proxy does. Queries that block are closed too.
	Cut bool
	// PhantomEmpty answers a blocking health query at once with 200, an
	// empty list and index 1, as a restarted agent without servers and a
	// revoked token do. It tells nothing about the service.
	PhantomEmpty bool
	// NoLeader answers 500 "No cluster leader" to everything that needs a
	// server. With Options.Streaming a blocking health query goes on with
	// the last data, and gives no sign. The agent's own endpoints work.
	NoLeader bool
	// TooManyConnections answers 429 and closes the connection, as an agent
	// does whose limit per client is reached.
	TooManyConnections bool
	// Delay comes before every answer.
	Delay time.Duration
}

// SetFaults replaces the faults. Queries that block meet the new ones at once.
func (s *Server) SetFaults(f Faults) {
	s.faults.Store(&f)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.interrupt()
	s.log.Info("faults set", "cut", f.Cut, "phantom_empty", f.PhantomEmpty, "no_leader", f.NoLeader,
		"too_many_connections", f.TooManyConnections, "delay", f.Delay)
}

// Faults returns those that are set.
func (s *Server) Faults() Faults { return *s.faults.Load() }

// ResetIndex makes the index start again from a small number, as after a
// restore or a dev agent's restart, with everything that is registered kept.
// Queries that block answer at once, with an index below the one they gave.
func (s *Server) ResetIndex() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.indexes.restart(20)
	s.renumber()
	s.interrupt()
	s.log.Info("index reset")
}

// Wipe forgets every service, check, key and foreign node, as a dev agent that
// was started anew does; the index goes on. Services have to register again.
func (s *Server) Wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.indexes.next()
	for _, n := range s.catalog.nodes {
		s.removeNode(n.row.Node)
	}
	for _, t := range s.kv.topics() {
		s.indexes.bump(t)
	}
	for id := range s.agent.services {
		s.indexes.bump(topic{topicAgentService, id})
	}
	s.reset()
	s.log.Info("catalog wiped")
}

// interrupt ends every blocking query. It needs s.mu.
func (s *Server) interrupt() {
	s.epoch++
	s.indexes.wakeAll()
}

// cut ends the connection without an answer: net/http's documented way.
func cut() { panic(http.ErrAbortHandler) }

// injectFaults applies the faults that concern every request and reports
// whether the request should still be answered.
func (s *Server) injectFaults(w http.ResponseWriter, r *http.Request) bool {
	f := s.Faults()
	if f.Delay > 0 {
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.Context().Done():
			return false
		case <-s.ended:
		}
		f = s.Faults()
	}
	if f.Cut {
		cut()
	}
	if f.TooManyConnections {
		w.Header().Set("Connection", "close")
		writeText(w, http.StatusTooManyRequests, "Your IP is issuing too many concurrent connections, please rate limit your calls\n")
		return false
	}
	return true
}

// needsLeader is the error of everything that a server has to answer, while
// there is none.
func (s *Server) needsLeader() error {
	if s.Faults().NoLeader {
		return &apiError{http.StatusInternalServerError, "No cluster leader"}
	}
	return nil
}
