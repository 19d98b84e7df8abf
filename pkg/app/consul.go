package app

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/consul"
	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/admin"
)

func (a *App) openConsul(cfg *config.Config) error {
	if cfg.Consul.Disabled {
		return nil
	}
	c := cfg.Consul
	client, err := consul.NewClient(consul.Options{
		Addr: c.Addr, Scheme: c.Scheme, Token: c.Token.Reveal(), TokenFile: c.TokenFile,
		Datacenter: c.Datacenter, Namespace: c.Namespace, Partition: c.Partition, Wait: c.Wait,
		TLS: consul.TLS{CAFile: c.TLS.CAFile, CertFile: c.TLS.CertFile, KeyFile: c.TLS.KeyFile,
			ServerName: c.TLS.ServerName, SkipVerify: c.TLS.SkipVerify},
	})
	if err != nil {
		return err
	}
	a.client = client
	if len(client.Files()) > 0 {
		a.follow("consul", client)
	}
	log := a.log.With("component", "consul") // the watcher adds its own
	o := consul.WatchOptions{
		OnQuery: func(key string, err error, _ time.Duration) {
			if err != nil {
				a.metrics.WatchError(key)
			}
		},
		OnApply: func(_ string, took time.Duration) { a.metrics.Propagation(took) },
	}
	if c.Snapshot != "" {
		o.Snapshot = consul.NewSnapshotFile(c.Snapshot, a.catalog, log)
		a.loadSnapshot(cfg, o.Snapshot, log)
		a.parts.run("snapshot file", o.Snapshot.Run)
	}
	a.watcher = consul.NewWatcher(client, a.catalog, a.log, o)
	a.replicas = consul.NewReplicas(a.catalog, discovery.Query{Service: cfg.Registration.Name})
	a.stack.push("replica count", func() error { a.replicas.Close(); return nil })
	return nil
}

// loadSnapshot fills the catalog with what was last known. A file that is not
// there or is damaged only costs the warm start.
func (a *App) loadSnapshot(cfg *config.Config, file *consul.SnapshotFile, log *slog.Logger) {
	var queries []discovery.Query
	for _, up := range cfg.Upstreams {
		if q := queryOf(up); q != (discovery.Query{}) {
			queries = append(queries, q)
		}
	}
	switch got, err := file.Load(append(queries, a.ownQuery(cfg)...)); {
	case err == nil:
		log.Info("catalog loaded from the snapshot file", "path", cfg.Consul.Snapshot, "services", got.Services, "instances", got.Instances, "age", got.Age)
	case consul.NoSnapshot(err):
		log.Info("no snapshot file yet", "path", cfg.Consul.Snapshot)
	default:
		log.Warn("snapshot file ignored", "path", cfg.Consul.Snapshot, "err", err)
	}
}

// ownQuery watches the gateway's own service, to know how many replicas live.
func (a *App) ownQuery(cfg *config.Config) []discovery.Query {
	return []discovery.Query{{Service: cfg.Registration.Name}}
}

func (a *App) openRegistrar(cfg *config.Config) error {
	if !cfg.Registration.Enabled || a.client == nil {
		return nil
	}
	reg := cfg.Registration
	port := a.public[0].listener.Addr().(*net.TCPAddr).Port
	check := consul.Check{TTL: 15 * time.Second}
	r, err := consul.NewRegistrar(a.client, consul.Registration{
		Name: reg.Name, Address: reg.Address, Port: port, Tags: reg.Tags, Meta: reg.Meta, Check: check,
	}, consul.RegistrarOptions{Log: a.log})
	if err != nil {
		return err
	}
	a.registrar = r
	a.announce(cfg)
	return nil
}

// register keeps the gateway registered, from when it is ready and while no
// operator has taken it out of service.
func (a *App) register(ctx context.Context) error {
	select {
	case <-a.ready:
	case <-ctx.Done():
	}
	for ctx.Err() == nil {
		in, out := context.WithCancel(ctx)
		var watch sync.WaitGroup
		watch.Go(func() {
			defer out()
			awaitTrue(in, a.drained.Load)
		})
		err := a.registrar.Run(in)
		out()
		watch.Wait()
		if err != nil && ctx.Err() == nil {
			// Consul is away: the instance turns critical there by itself.
			a.log.Warn("not deregistered", "err", err)
		} else if err != nil {
			return err
		}
		awaitTrue(ctx, func() bool { return !a.drained.Load() })
	}
	return nil
}

// awaitTrue returns when cond holds or ctx ends.
func awaitTrue(ctx context.Context, cond func() bool) {
	for ctx.Err() == nil && !cond() {
		wait(ctx, 50*time.Millisecond)
	}
}

// followConsul tells the events page when Consul goes away and comes back. The
// watcher has logged it; what it costs is known only from all watches together.
func (a *App) followConsul(ctx context.Context) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	stale := 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, why := 0, ""
		for _, st := range a.catalog.States() {
			if st.Stale() {
				now++
				why = st.Err
			}
		}
		switch {
		case now > 0 && stale == 0:
			a.tell(Event{Kind: "consul", Severity: admin.Warn, Message: fmt.Sprintf("Consul does not answer: the last catalog serves; %s", why)})
		case now == 0 && stale > 0:
			a.tell(Event{Kind: "consul", Severity: admin.Info, Message: "Consul answers: the catalog is fresh"})
		}
		stale = now
	}
}
