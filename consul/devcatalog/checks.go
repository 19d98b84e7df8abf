package devcatalog

import (
	"cmp"
	"container/heap"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// maxOutput is how much a check may say, as in Consul.
const maxOutput = 4 << 10

// maxProbes is how many checks run at the same time. The others wait.
const maxProbes = 64

// probeTimeout is that of a check without one of its own.
const probeTimeout = 10 * time.Second

type checkKind uint8

const (
	kindMaintenance checkKind = iota
	kindTTL
	kindHTTP
	kindTCP
)

// agentCheck is a check that is registered with the agent. It is guarded by
// Server.mu, but for def, which never changes.
type agentCheck struct {
	row checkRow     // as the agent tells it: with the newest output
	def *checkFields // nil for maintenance

	run     time.Time // of the next probe, or of the TTL's end; zero if none
	publish time.Time // when the catalog learns the newest output; zero if it knows
	place   int       // in the schedule, from 1; 0 if it is not in it

	reported      string // what the service said last, for the TTL's end
	criticalSince time.Time
	successes     int // in a row
	failures      int // in a row
}

func (c *agentCheck) kind() checkKind {
	switch {
	case c.def == nil:
		return kindMaintenance
	case c.def.TTL > 0:
		return kindTTL
	case c.def.HTTP != "":
		return kindHTTP
	}
	return kindTCP
}

func (c *agentCheck) kindName() string {
	return [...]string{maintenance, "ttl", "http", "tcp"}[c.kind()]
}

// next is when something is to be done about the check; zero if nothing is.
func (c *agentCheck) next() time.Time {
	if c.run.IsZero() || !c.publish.IsZero() && c.publish.Before(c.run) {
		return c.publish
	}
	return c.run
}

// schedule is a heap of the checks about which something is to be done.
type schedule []*agentCheck

func (q schedule) Len() int           { return len(q) }
func (q schedule) Less(i, j int) bool { return q[i].next().Before(q[j].next()) }
func (q schedule) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i+1, j+1
}

// Push is heap's.
func (q *schedule) Push(c any) {
	*q = append(*q, c.(*agentCheck))
	(*q)[len(*q)-1].place = len(*q)
}

// Pop is heap's.
func (q *schedule) Pop() any {
	last := len(*q) - 1
	c := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	c.place = 0
	return c
}

// update puts a check where its next says.
func (q *schedule) update(c *agentCheck) {
	switch {
	case c.next().IsZero():
		q.remove(c)
	case c.place > 0:
		heap.Fix(q, c.place-1)
	default:
		heap.Push(q, c)
	}
}

func (q *schedule) remove(c *agentCheck) {
	if c.place > 0 {
		heap.Remove(q, c.place-1)
	}
}

// addCheck registers a check, of which row says whose it is. One with the same
// id is replaced, and leaves its status and its output. It needs s.mu and a
// change begun.
func (s *Server) addCheck(id string, def *checkFields, row checkRow) {
	now := time.Now()
	row.Node, row.CheckID, row.Status = s.opts.NodeName, id, critical
	c := &agentCheck{def: def, criticalSince: now}
	row.Type = c.kindName()
	if def != nil {
		row.Name, row.Notes = def.Name, def.Notes
		row.Status = cmp.Or(def.Status, critical)
		// Consul's counters begin full, so that the first result counts.
		c.successes, c.failures = def.SuccessBeforePassing, def.FailuresBeforeCritical
	}
	if old := s.agent.checks[id]; old != nil {
		row.Status, row.Output = old.row.Status, old.row.Output
		c.reported, c.criticalSince, c.publish = old.reported, old.criticalSince, old.publish
		s.forgetCheck(old)
	}
	c.row = row
	switch c.kind() {
	case kindTTL:
		c.run = now.Add(time.Duration(def.TTL))
	case kindHTTP, kindTCP:
		c.run = now.Add(rand.N(s.interval(c)))
	}
	s.agent.checks[id] = c
	s.bytes += c.size()
	s.tellCatalog(c, now)
	s.agent.schedule.update(c)
}

// dropCheck removes a check. It needs s.mu and a change begun.
func (s *Server) dropCheck(id string) {
	s.forgetCheck(s.agent.checks[id])
	s.removeCheck(s.opts.NodeName, id)
}

// forgetCheck removes a check from the agent only.
func (s *Server) forgetCheck(c *agentCheck) {
	s.agent.schedule.remove(c)
	delete(s.agent.checks, c.row.CheckID)
	s.bytes -= c.size()
}

// size is about how much of the client's bytes a check holds besides its row,
// of which the catalog has a copy that counts.
func (c *agentCheck) size() int64 {
	if c.def == nil {
		return 0
	}
	return c.def.size()
}

func (s *Server) interval(c *agentCheck) time.Duration {
	return max(time.Duration(c.def.Interval), s.opts.MinCheckInterval)
}

// tellCatalog writes the check there, unless only its output is new: that is
// written minutes later, so that a chatty check wakes no watcher.
func (s *Server) tellCatalog(c *agentCheck, now time.Time) {
	n := s.catalog.node(s.opts.NodeName)
	owner, ok := n.owner[c.row.CheckID]
	if ok {
		known := *n.checks[owner][c.row.CheckID]
		newOutput := known.Output != c.row.Output
		known.Output = c.row.Output
		if sameCheck(&known, &c.row) {
			switch {
			case !newOutput:
				c.publish = time.Time{}
			case c.publish.IsZero():
				c.publish = now.Add(s.opts.CheckUpdateInterval/2 + rand.N(s.opts.CheckUpdateInterval))
			}
			return
		}
	}
	s.publish(c)
}

func (s *Server) publish(c *agentCheck) {
	c.publish = time.Time{}
	row := c.row
	s.putCheck(&row)
}

// sameCheck compares what clients see of a check, but for its indexes.
func sameCheck(a, b *checkRow) bool {
	if len(a.ServiceTags) != len(b.ServiceTags) {
		return false
	}
	for i := range a.ServiceTags {
		if a.ServiceTags[i] != b.ServiceTags[i] {
			return false
		}
	}
	return a.Name == b.Name && a.Status == b.Status && a.Notes == b.Notes && a.Output == b.Output &&
		a.ServiceID == b.ServiceID && a.ServiceName == b.ServiceName && a.Type == b.Type &&
		a.Interval == b.Interval && a.Timeout == b.Timeout
}

// setStatus changes a check as a report, a probe or its TTL says. It needs s.mu.
func (s *Server) setStatus(c *agentCheck, status, output string) {
	now := time.Now()
	if c.row.Status != status {
		s.log.Info("check changed", "check", c.row.CheckID, "instance", c.row.ServiceID, "status", status)
		if status == critical {
			c.criticalSince = now
		}
	}
	c.row.Status, c.row.Output = status, output
	s.indexes.next()
	s.tellCatalog(c, now)
	s.agent.schedule.update(c)
}

// wakeRun makes Run look at its schedule again.
func (s *Server) wakeRun() {
	select {
	case s.kick <- struct{}{}:
	default: // it is about to
	}
}

// runChecks is the loop of Run.
func (s *Server) runChecks(ctx context.Context) {
	var probes sync.WaitGroup
	defer probes.Wait()
	slots := make(chan struct{}, maxProbes)
	reap := time.NewTicker(s.opts.ReapInterval)
	defer reap.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-reap.C:
			s.reapCritical(time.Now())
			continue
		case <-timer.C:
		case <-s.kick:
		}
		due, next := s.takeDue(time.Now())
		for _, c := range due {
			probes.Go(func() {
				select {
				case slots <- struct{}{}:
				case <-ctx.Done():
					return
				}
				defer func() { <-slots }()
				status, output := probe(ctx, c.kind(), c.def)
				if ctx.Err() == nil { // else it says nothing about the service
					s.finishProbe(c, status, output)
				}
			})
		}
		timer.Reset(next)
	}
}

// takeDue ends the TTLs that are over, publishes the outputs that waited long
// enough, and returns the checks to run now and the time until it is needed
// again.
func (s *Server) takeDue(now time.Time) (due []*agentCheck, next time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.agent.schedule) > 0 {
		c := s.agent.schedule[0]
		if c.next().After(now) {
			return due, c.next().Sub(now)
		}
		if !c.publish.IsZero() && !c.publish.After(now) {
			s.indexes.next()
			s.publish(c)
		}
		if !c.run.IsZero() && !c.run.After(now) {
			c.run = time.Time{} // until the next report, or the probe's end
			if c.kind() == kindTTL {
				output := "TTL expired"
				if c.reported != "" {
					output += " (last output before timeout follows): " + c.reported
				}
				s.setStatus(c, critical, output)
			} else {
				due = append(due, c)
			}
		}
		s.agent.schedule.update(c)
	}
	return due, time.Hour
}

// finishProbe counts a probe's result, and plans the next one. A check that was
// removed or replaced meanwhile is not touched.
func (s *Server) finishProbe(c *agentCheck, status, output string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent.checks[c.row.CheckID] != c {
		return
	}
	c.run = time.Now().Add(s.interval(c))
	if status == critical {
		c.failures++
		c.successes = 0
		switch {
		case c.failures >= c.def.FailuresBeforeCritical:
			s.setStatus(c, critical, output)
		case c.failures >= cmp.Or(c.def.FailuresBeforeWarning, c.def.FailuresBeforeCritical):
			s.setStatus(c, warning, output)
		}
	} else {
		c.successes++
		c.failures = 0
		if c.successes >= c.def.SuccessBeforePassing {
			s.setStatus(c, status, output)
		}
	}
	s.agent.schedule.update(c)
	s.wakeRun()
}

// reapCritical deregisters the services of which a check was critical for
// longer than it allows.
func (s *Server) reapCritical(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := make(map[string]bool)
	for _, c := range s.agent.checks {
		if c.def == nil || c.def.DeregisterCriticalServiceAfter <= 0 || c.row.Status != critical || c.row.ServiceID == "" {
			continue
		}
		after := max(time.Duration(c.def.DeregisterCriticalServiceAfter), s.opts.MinDeregisterCritical)
		if now.Sub(c.criticalSince) > after {
			gone[c.row.ServiceID] = true
		}
	}
	for id := range gone {
		if s.agent.services[id] != nil {
			s.log.Warn("service critical for too long", "instance", id)
			s.dropService(id)
		}
	}
}

// probe runs a check once and says what became of it.
func probe(ctx context.Context, kind checkKind, def *checkFields) (status, output string) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(time.Duration(max(def.Timeout, 0)), probeTimeout))
	defer cancel()
	if kind == kindTCP {
		return probeTCP(ctx, def)
	}
	return probeHTTP(ctx, def)
}

func probeTCP(ctx context.Context, def *checkFields) (status, output string) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", def.TCP)
	if err != nil {
		return critical, err.Error()
	}
	_ = conn.Close() // it connected, which was the question
	return passing, fmt.Sprintf("TCP connect %s: Success", def.TCP)
}

func probeHTTP(ctx context.Context, def *checkFields) (status, output string) {
	method := cmp.Or(def.Method, http.MethodGet)
	req, err := http.NewRequestWithContext(ctx, method, def.HTTP, strings.NewReader(def.Body))
	if err != nil {
		return critical, err.Error()
	}
	for name, values := range def.Header {
		req.Header[http.CanonicalHeaderKey(name)] = values
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "Consul Health Check")
	}
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "text/plain, text/*, */*")
	}
	// A connection of its own each time: a check asks whether one can connect.
	transport := &http.Transport{
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: 64 << 10,
		TLSClientConfig:        &tls.Config{InsecureSkipVerify: def.TLSSkipVerify, ServerName: def.TLSServerName},
	}
	client := &http.Client{Transport: transport}
	if def.DisableRedirects {
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	resp, err := client.Do(req)
	if err != nil {
		return critical, err.Error()
	}
	defer resp.Body.Close()
	limit := int64(maxOutput)
	if def.OutputMaxSize > 0 {
		limit = min(limit, int64(def.OutputMaxSize))
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, limit)) // what was read is what the check says
	output = fmt.Sprintf("HTTP %s %s: %s Output: %s", method, def.HTTP, resp.Status, strings.ToValidUTF8(string(body), "\ufffd"))
	switch {
	case resp.StatusCode >= 200 && resp.StatusCode <= 299:
		return passing, output
	case resp.StatusCode == http.StatusTooManyRequests:
		return warning, output
	}
	return critical, output
}
