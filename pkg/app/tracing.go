package app

import (
	"fmt"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/certs"
	"github.com/proconsul/proconsul/pkg/tracing"
)

// openTracing makes the tracer, where there is a collector to send spans to.
func (a *App) openTracing(cfg *config.Config) error {
	c := cfg.Tracing
	if !c.Enabled() {
		return nil
	}
	o := tracing.Options{Endpoint: c.Endpoint, Service: c.Service, Version: a.options.Version, Replica: a.id,
		Headers: map[string]string{}, Log: a.log.With("component", "tracing")}
	for _, f := range c.Headers {
		o.Headers[f.Name] = f.Value
	}
	var err error
	if c.CAFile != "" {
		files, err := certs.OpenClient(config.ClientTLS{CAFile: c.CAFile})
		if err != nil {
			return fmt.Errorf("tracing: %w", err)
		}
		o.TLS = files.Current
		a.follow("tracing", files)
	}
	if a.tracer, err = tracing.New(o, tracingRules(c)); err != nil {
		return fmt.Errorf("tracing: %w", err)
	}
	return nil
}

func tracingRules(c config.Tracing) tracing.Rules {
	return tracing.Rules{Ratio: c.Ratio.Fraction(), Parent: c.Parent}
}
