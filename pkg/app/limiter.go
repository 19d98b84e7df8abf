package app

import (
	"fmt"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/certs"
	"github.com/proconsul/proconsul/pkg/limiter"
)

// openLimiter makes the limiter on the shared store, or on this replica's own
// account where none is named.
func (a *App) openLimiter(cfg *config.Config) error {
	o := limiter.Options{
		Replica:  a.id,
		Log:      a.log.With("component", "limiter"),
		OnChange: a.onStore,
		OnCall:   func(op string, took time.Duration, _ error) { a.metrics.RedisOp(op, took) },
	}
	if a.replicas != nil {
		o.Replicas = a.replicas.Count
	}
	if r := cfg.Redis; r.Configured() {
		mode, err := limiter.ParseTopology(r.Mode)
		if err != nil {
			return fmt.Errorf("redis: %w", err)
		}
		o.Redis = &limiter.Redis{Mode: mode, Addr: r.Addr, Addrs: r.Addrs,
			Master: r.Master, SentinelUsername: r.SentinelUsername, SentinelPassword: r.SentinelPassword.Reveal(),
			Username: r.Username, Password: r.Password.Reveal(), DB: r.DB, Timeout: r.Timeout}
		if r.TLS != nil {
			files, err := certs.OpenClient(*r.TLS)
			if err != nil {
				return fmt.Errorf("redis: %w", err)
			}
			o.Redis.TLS = files.Current
			a.follow("redis", files)
		}
	}
	var err error
	a.limiter, err = limiter.New(o)
	return err
}

func (a *App) onStore(s limiter.State) {
	ev := admin.Event{Kind: "redis", Severity: admin.Info, Message: "Redis answers: limits are shared again"}
	if !s.Up {
		ev.Severity, ev.Message = admin.Warn, "Redis is away: limits are kept by each replica's share; "+s.LastError
	}
	a.tell(ev)
}
