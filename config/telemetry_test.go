package config_test

import (
	"testing"

	"github.com/proconsul/proconsul/config"
)

// The variables of OpenTelemetry stand below the file and below our own.
func TestOpenTelemetrysVariables(t *testing.T) {
	tests := []struct {
		name, file string
		env        map[string]string
		want       config.Tracing
	}{
		{"nothing", "", nil, config.Tracing{Service: "proconsul", Ratio: 1, Parent: "trusted"}},
		{"a base", "", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318/"},
			config.Tracing{Endpoint: "http://otel:4318/v1/traces", Service: "proconsul", Ratio: 1, Parent: "trusted"}},
		{"the traces' own", "", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:1/x", "OTEL_SERVICE_NAME": "edge"},
			config.Tracing{Endpoint: "http://t:1/x", Service: "edge", Ratio: 1, Parent: "trusted"}},
		{"the file wins", "tracing: {endpoint: \"http://file:1\", ratio: 5%}", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318", "OTEL_TRACES_SAMPLER": "parentbased_always_on"},
			config.Tracing{Endpoint: "http://file:1", Service: "proconsul", Ratio: 5, Parent: "trusted"}},
		{"our own variable wins", "", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318", "PROCONSUL_TRACING_ENDPOINT": "http://ours:1"},
			config.Tracing{Endpoint: "http://ours:1", Service: "proconsul", Ratio: 1, Parent: "trusted"}},
		{"a share", "", map[string]string{"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"},
			config.Tracing{Service: "proconsul", Ratio: 25, Parent: "trusted"}},
		{"without parents", "", map[string]string{"OTEL_TRACES_SAMPLER": "always_off"}, config.Tracing{Service: "proconsul", Ratio: 0, Parent: "never"}},
		{"off", "tracing: {endpoint: \"http://file:1\"}", map[string]string{"OTEL_SDK_DISABLED": "TRUE"},
			config.Tracing{Endpoint: "http://file:1", Service: "proconsul", Ratio: 1, Parent: "trusted", Disabled: true}},
		{"exported nowhere", "", map[string]string{"OTEL_TRACES_EXPORTER": "none"}, config.Tracing{Service: "proconsul", Ratio: 1, Parent: "trusted", Disabled: true}},
		{"exported", "", map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, config.Tracing{Service: "proconsul", Ratio: 1, Parent: "trusted"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			c, err := config.Parse("x.yaml", []byte("version: 1\n"+tt.file), config.LoadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if got := c.Tracing; got.Endpoint != tt.want.Endpoint || got.Service != tt.want.Service || got.Ratio != tt.want.Ratio || got.Parent != tt.want.Parent || got.Disabled != tt.want.Disabled {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "nonsense")
	if _, err := config.Parse("x.yaml", []byte("version: 1"), config.LoadOptions{}); err == nil {
		t.Error("an endpoint that is no URL is taken")
	}
}

func TestWhatOfTracingNeedsARestart(t *testing.T) {
	load := func(text string) *config.Config {
		c, err := config.Parse("x.yaml", []byte("version: 1\n"+text), config.LoadOptions{Pure: true})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a := load("tracing: {endpoint: \"http://a:1\", ratio: 1%}")
	if got := a.NeedsRestart(load("tracing: {endpoint: \"http://a:1\", ratio: 50%, parent: always}")); len(got) != 0 {
		t.Errorf("ratio and parent need a restart: %v", got)
	}
	if got := a.NeedsRestart(load("tracing: {endpoint: \"http://b:1\"}")); len(got) != 1 || got[0] != "tracing.endpoint" {
		t.Errorf("the endpoint does not: %v", got)
	}
}
