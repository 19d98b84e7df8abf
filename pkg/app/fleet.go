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
	for _, top := range from.Top(limitedShown) {
		// rl:{POLICY:IDENTITY}, both as hashes.
		key := strings.TrimSuffix(top.Key[strings.LastIndexByte(top.Key, ':')+1:], "}")
		l.rows = append(l.rows, admin.Limited{Route: top.Policy, Key: key[:min(len(key), 10)], Denied: top.Denied})
	}
	return l.rows
}
