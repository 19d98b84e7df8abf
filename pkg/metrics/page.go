package metrics

import (
	"maps"
	"slices"
	"strings"
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
func (r *Route) Answers() []Answers { return r.m.answersOf(r.account) }

// Answers returns the gateway's own answers to all requests, by reason.
func (m *Metrics) Answers() []Answers {
	m.mu.Lock()
	accounts := slices.Collect(maps.Values(m.accounts))
	m.mu.Unlock()
	return m.answersOf(accounts...)
}

func (m *Metrics) answersOf(accounts ...*account) (list []Answers) {
	sums := make([]uint64, len(m.options.Reasons))
	overflow := false
	for _, a := range accounts {
		if a.name == Overflow { // names beyond the bound share one
			if overflow {
				continue
			}
			overflow = true
		}
		for i := range a.local {
			sums[i] += a.local[i].count.Load()
		}
	}
	for i, n := range sums {
		if n > 0 {
			list = append(list, Answers{m.options.Reasons[i], n})
		}
	}
	slices.SortFunc(list, func(x, y Answers) int { return strings.Compare(x.Reason, y.Reason) })
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

// Stats returns what all routes did together, for the status page.
func (m *Metrics) Stats() Stats {
	st := m.total.stats(time.Now())
	st.Limited = m.limited.Load()
	return st
}
