package app

import (
	"strings"
	"sync"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/limiter"
)

// The meta by which replicas tell each other, through Consul, who they are and
// what they serve by.
const (
	metaReplica = "proconsul_replica"
	metaConfig  = "proconsul_config"
	metaVersion = "proconsul_version"
)

// announce publishes what this replica serves by with its registration.
func (a *App) announce(cfg *config.Config) {
	if a.registrar == nil {
		return
	}
	a.registrar.Announce(map[string]string{metaReplica: a.id, metaConfig: cfg.Hash, metaVersion: a.options.Version})
}

// fleet lists the registered replicas of this gateway.
func (a *App) fleet(cfg *config.Config) (list []admin.Peer) {
	if a.watcher == nil {
		return nil
	}
	for _, q := range a.ownQuery(cfg) {
		for _, in := range a.catalog.State(q.Key()).Snapshot.Instances {
			list = append(list, admin.Peer{ID: in.ID, Replica: in.Meta[metaReplica], Address: in.Address, Status: in.Status.String(),
				Version: in.Meta[metaVersion], Config: in.Meta[metaConfig], Self: in.Meta[metaReplica] == a.id})
		}
	}
	return list
}

// limited are the identities that were limited most often, looked up no more
// often than people can read: the limiter goes through all that it remembers.
type limited struct {
	mu   sync.Mutex
	at   time.Time
	rows []admin.Limited
}

const (
	limitedEvery = 5 * time.Second
	limitedShown = 10
)

func (l *limited) list(from *limiter.Limiter) []admin.Limited {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.at) < limitedEvery {
		return l.rows
	}
	l.at, l.rows = time.Now(), nil
	l.rows = limitedRows(from.Top(limitedShown))
	return l.rows
}

// limitedRows words who was limited. A key is rl:{POLICY:IDENTITY} with both as
// hashes, or the identity as the limit has it.
func limitedRows(top []limiter.Limited) []admin.Limited {
	rows := []admin.Limited{}
	for _, t := range top {
		key := t.Key
		if hash, ok := strings.CutPrefix(key, "rl:{"); ok {
			key = strings.TrimSuffix(hash[strings.LastIndexByte(hash, ':')+1:], "}")
			key = key[:min(len(key), 10)]
		}
		rows = append(rows, admin.Limited{Route: t.Policy, Key: key, Denied: t.Denied, Error: t.Error, Last: t.Last.UTC()})
	}
	return rows
}

// topLimited is how the limiter works and whom it limits most.
func (a *App) topLimited(n int) admin.RateLimits {
	st := a.limiter.State()
	out := admin.RateLimits{StoreCalls: st.Calls, Keys: st.Keys, Waiting: st.Waiting, Top: limitedRows(a.limiter.Top(n))}
	for _, l := range a.current.Load().config.AllLimits() {
		d := a.metrics.RateLimitDecisions(l.Name)
		out.Decisions += d.Allowed + d.Limited + d.FailOpen + d.FailClosed + d.Local + d.Delayed + d.QueueFull
	}
	if out.Decisions > 0 {
		out.CallsPerDecision = float64(out.StoreCalls) / float64(out.Decisions)
	}
	return out
}
