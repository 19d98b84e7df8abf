package metrics_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	schema "github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/heatmap"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/statetimeline"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// grafana reads a dashboard as Grafana's own schema has it, from which the
// types of its SDK are generated, and returns what is wrong: every member has
// to be known, of its type, and there where the schema requires it, down to the
// options of each kind of panel and to the queries.
func grafana(t *testing.T, text []byte) (faults []string) {
	t.Helper()
	runtime := cog.NewRuntime()
	runtime.RegisterPanelcfgVariant(heatmap.VariantConfig())
	runtime.RegisterPanelcfgVariant(stat.VariantConfig())
	runtime.RegisterPanelcfgVariant(statetimeline.VariantConfig())
	runtime.RegisterPanelcfgVariant(table.VariantConfig())
	runtime.RegisterPanelcfgVariant(timeseries.VariantConfig())
	runtime.RegisterDataqueryVariant(prometheus.VariantConfig())

	var d schema.Dashboard
	err := d.UnmarshalJSONStrict(text)
	var found cog.BuildErrors // none where all is well, though the error is not nil then
	if err != nil && !errors.As(err, &found) {
		t.Fatal(err)
	}
	for _, fault := range found {
		faults = append(faults, fault.Error())
	}
	if err := d.Validate(); err != nil {
		faults = append(faults, err.Error())
	}
	// The SDK lets pass what it has no schema for.
	var raw struct {
		Panels []struct {
			Type, Title string
			Targets     []struct{ Datasource struct{ Type string } }
		}
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return append(faults, err.Error())
	}
	for _, p := range raw.Panels {
		if _, known := cog.ConfigForPanelcfgVariant(p.Type); !known && p.Type != "row" {
			faults = append(faults, fmt.Sprintf("panel %q is of kind %q, whose schema is not looked at here", p.Title, p.Type))
		}
		for _, target := range p.Targets {
			if target.Datasource.Type != "prometheus" {
				faults = append(faults, fmt.Sprintf("panel %q asks a data source of kind %q", p.Title, target.Datasource.Type))
			}
		}
	}
	return faults
}

func dashboardFiles(t *testing.T) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for name := range dashboards(t) {
		b, err := os.ReadFile(filepath.Join(deploy, "grafana/dashboards", name))
		if err != nil {
			t.Fatal(err)
		}
		out[name] = b
	}
	return out
}

func TestDashboardsAreGrafanas(t *testing.T) {
	for name, text := range dashboardFiles(t) {
		for _, fault := range grafana(t, text) {
			t.Errorf("%s: %s", name, fault)
		}
	}
}

// The schema finds what people get wrong, wherever it is.
func TestTheSchemaOfDashboardsFindsMistakes(t *testing.T) {
	for _, tt := range []struct{ file, is, becomes string }{
		{"overview.json", `"schemaVersion"`, `"schemaVersoin"`},
		{"overview.json", `"h": 4`, `"h": "four"`},
		{"overview.json", `"unit": "s"`, `"unit": 7`},
		{"overview.json", `"wideLayout"`, `"wideLayuot"`},
		{"overview.json", `"legendFormat"`, `"legendFromat"`},
		{"service.json", `"multi": true`, `"multi": "yes"`},
		{"service.json", `"fillOpacity"`, `"fillOpactiy"`},
		{"dependencies.json", `"uid": "${datasource}"`, `"uid": 1`},
		{"dependencies.json", `"type": "stat"`, `"type": "sparkline"`},
	} {
		text := dashboardFiles(t)[tt.file]
		bad := bytes.Replace(text, []byte(tt.is), []byte(tt.becomes), 1)
		if bytes.Equal(bad, text) {
			t.Errorf("%s has no %s: this test is out of date", tt.file, tt.is)
			continue
		}
		if faults := grafana(t, bad); len(faults) == 0 {
			t.Errorf("%s with %s passes", tt.file, tt.becomes)
		}
	}
}
