package metrics

import (
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// answered counts the gateway's own answers of one reason, for scrapes and for
// the status page, which would have to parse a scrape else.
type answered struct {
	counter prometheus.Counter
	count   atomic.Uint64
}

// Answers is how often the gateway answered itself for one reason.
type Answers struct {
	Reason string
	Count  uint64
}

// Answers returns the gateway's own answers to requests of the route's name,
// by reason; none where there were none.
func (r *Route) Answers() []Answers { return answersOf(r.account) }

// Answers returns the gateway's own answers to all requests, by reason.
func (m *Metrics) Answers() []Answers {
	m.mu.Lock()
	accounts := slices.Collect(maps.Values(m.accounts))
	m.mu.Unlock()
	return answersOf(accounts...)
}

func answersOf(accounts ...*account) (list []Answers) {
	sum := map[string]uint64{}
	seen := map[*account]bool{} // names beyond the bound share one
	for _, a := range accounts {
		if seen[a] {
			continue
		}
		seen[a] = true
		for reason, c := range a.local {
			if n := c.count.Load(); n > 0 {
				sum[reason] += n
			}
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(sum)) {
		list = append(list, Answers{reason, sum[reason]})
	}
	return list
}

// Decisions are what the limiter decided by one policy.
type Decisions struct{ Allowed, Limited, FailOpen, FailClosed, Local, Delayed, QueueFull uint64 }

// RateLimitDecisions returns what was decided by a policy so far.
func (m *Metrics) RateLimitDecisions(policy string) Decisions {
	d, ok := m.policies.get(policy)
	if !ok {
		return Decisions{}
	}
	return Decisions{d[0].count.Load(), d[1].count.Load(), d[2].count.Load(), d[3].count.Load(), d[4].count.Load(), d[5].count.Load(), d[6].count.Load()}
}

// Stats returns what the route's name did, for the status page.
func (r *Route) Stats() Stats { return r.account.window.stats(time.Now()) }

// Stats returns what all routes did together, for the status page.
func (m *Metrics) Stats() Stats { return m.total.stats(time.Now()) }
