package app

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/consul"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/identity"
)

// consumers are those of Consul's KV store: one below each key of a prefix,
// beside the configuration's own. A key that is faulty costs only itself, and
// where it was good before, that version stays. It is safe for concurrent use.
type consumers struct {
	prefix string
	file   *consul.KVFile // nil: none
	log    *slog.Logger

	mu     sync.Mutex
	loaded bool // some answer of Consul, or a snapshot, has been used
	index  uint64
	all    []consul.Pair               // as the store has them
	pairs  []consul.Pair               // the last good version of each, for the snapshot
	good   map[string]*config.Consumer // by key
	bad    map[string]string           // why a key is not used, or not its last version
	taken  map[string]string           // why a good one has no place beside the configuration's
}

func newConsumers(prefix string, file *consul.KVFile, log *slog.Logger) *consumers {
	return &consumers{prefix: prefix, file: file, log: log, good: map[string]*config.Consumer{}, bad: map[string]string{}, taken: map[string]string{}}
}

// warm takes over what a snapshot file has.
func (c *consumers) warm(cfg *config.Config) {
	if c.file == nil {
		return
	}
	pairs, index, err := c.file.Load()
	switch {
	case consul.NoSnapshot(err):
		return
	case err != nil:
		c.log.Warn("snapshot file of consumers ignored", "err", err)
		return
	}
	c.set(cfg, pairs, index)
	c.log.Info("consumers loaded from the snapshot file", "keys", len(pairs))
}

// change is what became of a key.
type change struct{ key, what, reason string } // what: added, changed, removed, refused

// set makes pairs the keys that there are, and returns what changed.
func (c *consumers) set(cfg *config.Config, pairs []consul.Pair, index uint64) (changes []change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := map[string]consul.Pair{}
	for _, p := range c.pairs {
		before[p.Key] = p
	}
	c.loaded, c.index, c.all, c.pairs = true, index, pairs, nil
	seen := map[string]bool{}
	for _, p := range pairs {
		if strings.HasSuffix(p.Key, "/") { // what Consul's UI makes of a folder
			continue
		}
		seen[p.Key] = true
		was, had := before[p.Key]
		if had && string(was.Value) == string(p.Value) && c.bad[p.Key] == "" {
			c.pairs = append(c.pairs, p)
			continue
		}
		one, err := judge(cfg, c.prefix, p)
		switch {
		case err == nil:
			delete(c.bad, p.Key)
			c.good[p.Key] = &one
			c.pairs = append(c.pairs, p)
			what := "added"
			if had {
				what = "changed"
			}
			changes = append(changes, change{p.Key, what, ""})
			continue
		case c.bad[p.Key] != err.Error():
			c.bad[p.Key] = err.Error()
			changes = append(changes, change{p.Key, "refused", err.Error()})
		}
		if had {
			c.pairs = append(c.pairs, was)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.good)) {
		if !seen[key] {
			delete(c.good, key)
			changes = append(changes, change{key, "removed", ""})
		}
	}
	maps.DeleteFunc(c.bad, func(key, _ string) bool { return !seen[key] })
	return changes
}

// judge reads a key's consumer.
func judge(cfg *config.Config, prefix string, p consul.Pair) (config.Consumer, error) {
	name := strings.TrimPrefix(p.Key, prefix)
	name = name[strings.LastIndexByte(name, '/')+1:]
	one, err := config.ParseConsumer(p.Key, name, p.Value, cfg)
	if err == nil {
		err = identity.CheckConsumer(one)
	}
	return one, err
}

// join returns the consumers of a configuration and of the store, and whether
// some are not known yet. The configuration's come first: what one of the store
// takes from them, or from another key, costs that one.
// cfg is as it is served.
func (c *consumers) join(cfg *config.Config) (all []config.Consumer, partial bool) {
	if c == nil {
		return cfg.Consumers, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	crowd := config.NewCrowd(cfg)
	clear(c.taken)
	for _, key := range slices.Sorted(maps.Keys(c.good)) {
		if err := crowd.Add(*c.good[key]); err != nil {
			c.taken[key] = err.Error()
		}
	}
	return crowd.Consumers(), !c.loaded
}

// save writes what is known to the snapshot file.
func (c *consumers) save() error {
	if c.file == nil {
		return nil
	}
	c.mu.Lock()
	pairs, index := slices.Clone(c.pairs), c.index
	c.mu.Unlock()
	return c.file.Save(pairs, index)
}

// rejected returns the keys that are not used, or not their last version, and
// why.
func (c *consumers) rejected() (list []admin.Rejected) {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(c.bad)) {
		reason := c.bad[key]
		if c.good[key] != nil {
			reason += " (its last good version stays)"
		}
		list = append(list, admin.Rejected{Kind: "consumer", Name: key, Reason: reason})
	}
	for _, key := range slices.Sorted(maps.Keys(c.taken)) {
		list = append(list, admin.Rejected{Kind: "consumer", Name: key, Reason: c.taken[key]})
	}
	return list
}

// withoutPlace returns the keys whose consumer others leave no place, and why.
func (c *consumers) withoutPlace() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.taken)
}

// used returns the store's consumers that are in use, by key.
func (c *consumers) used() map[string]config.Consumer {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]config.Consumer{}
	for key, one := range c.good {
		if c.taken[key] == "" {
			out[key] = *one
		}
	}
	return out
}

func (c *consumers) known() (index uint64, keys int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.index, len(c.pairs)
}

// openConsumers prepares the watch of the store's consumers.
func (a *App) openConsumers(cfg *config.Config) {
	prefix := cfg.KV.Consumers
	if prefix == "" || a.watcher == nil {
		return
	}
	var file *consul.KVFile
	if cfg.Consul.Snapshot != "" {
		file = consul.NewKVFile(cfg.Consul.Snapshot+".consumers", prefix)
	}
	a.consumers = newConsumers(prefix, file, a.log.With("component", "consumers"))
	a.consumers.warm(cfg)
	index, keys := a.consumers.known()
	a.consumerWatch = consul.NewKVWatch(a.watcher, consul.KVOptions{
		Prefix: prefix, Last: index, LastKeys: keys, OnChange: a.takeConsumers,
		OnQuery: func(err error, _ time.Duration) {
			if err != nil {
				a.metrics.WatchError("kv:" + prefix)
			}
		},
	})
}

// takeConsumers makes what the store has the live consumers. The table of
// routes stays: its methods look at the present ones for each request.
func (a *App) takeConsumers(pairs []consul.Pair, index uint64) {
	a.reloading.Lock() // a reload under way joins them with another configuration
	defer a.reloading.Unlock()
	a.joinConsumers(pairs, index)
}

// joinConsumers is takeConsumers with reloading held.
func (a *App) joinConsumers(pairs []consul.Pair, index uint64) {
	cfg := a.asServed(a.current.Load().config)
	before := a.consumers.withoutPlace()
	changes := a.consumers.set(cfg, pairs, index)
	all, partial := a.consumers.join(cfg)
	for key, reason := range a.consumers.withoutPlace() {
		if before[key] != reason {
			changes = append(changes, change{key, "refused", reason})
		}
	}
	err := a.handler.Table().Identity().SetConsumers(all, partial)
	log := a.consumers.log
	if err != nil { // each has been checked by itself
		log.Error("consumers were not taken over", "err", err)
		return
	}
	counts := map[string]int{}
	for _, c := range changes {
		counts[c.what]++
		if c.what == "refused" {
			log.Warn("consumer is not taken over", "key", c.key, "err", c.reason)
			a.tell(admin.Event{Kind: "consumer", Severity: admin.Warn, Message: fmt.Sprintf("key %s is not taken over: %s", c.key, c.reason)})
		}
	}
	if n := counts["added"] + counts["changed"] + counts["removed"]; n > 0 {
		log.Info("consumers changed", "added", counts["added"], "changed", counts["changed"], "removed", counts["removed"], "index", index)
		a.tell(admin.Event{Kind: "consumer", Severity: admin.Info,
			Message: fmt.Sprintf("consumers in Consul: %d added, %d changed, %d removed", counts["added"], counts["changed"], counts["removed"])})
	}
	if err := a.consumers.save(); err != nil {
		log.Error("snapshot of consumers cannot be written", "err", err)
	}
}

// rejudge looks at the store's keys anew by a configuration that has come: what
// referred to nothing may refer to something now.
func (a *App) rejudge() {
	if a.consumers == nil {
		return
	}
	a.consumers.mu.Lock()
	loaded, all, index := a.consumers.loaded, a.consumers.all, a.consumers.index
	a.consumers.mu.Unlock()
	if loaded {
		a.joinConsumers(all, index)
	}
}

// runConsumers follows the store until ctx ends.
func (a *App) runConsumers(ctx context.Context) error { return a.consumerWatch.Run(ctx) }

// consumerRows is every consumer without its secrets, for operators.
func (a *App) consumerRows() []admin.Consumer {
	cfg := a.current.Load().config
	rows := []admin.Consumer{}
	for _, c := range cfg.Consumers {
		rows = append(rows, consumerRow(c, "file", ""))
	}
	used := a.consumers.used()
	for _, key := range slices.Sorted(maps.Keys(used)) {
		rows = append(rows, consumerRow(used[key], "kv", key))
	}
	return rows
}

func consumerRow(c config.Consumer, source, key string) admin.Consumer {
	row := admin.Consumer{Name: c.Name, Groups: c.Groups, Roles: c.Roles, Source: source, Key: key}
	for _, k := range c.APIKeys {
		row.APIKeys = append(row.APIKeys, k.ID)
	}
	for _, l := range c.Basic {
		row.Usernames = append(row.Usernames, l.Username)
	}
	for _, claim := range c.Claims {
		row.Claims = append(row.Claims, fmt.Sprintf("%s: %s=%s", claim.Method, claim.Claim, claim.Equals))
	}
	for _, cert := range c.MTLS {
		row.Certificates = append(row.Certificates, strings.TrimLeft(cert.Subject+cert.SAN+cert.SPIFFE, " "))
	}
	return row
}
