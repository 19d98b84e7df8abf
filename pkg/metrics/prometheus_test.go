package metrics_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// promtool runs Prometheus's own judge on files.
func promtool(t *testing.T, dir string, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatalf("%v: run make tools", err)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestPrometheusAcceptsRulesAndConfiguration(t *testing.T) {
	promtool(t, deploy+"prometheus", "check", "rules", "rules.yml")
	promtool(t, deploy+"prometheus", "test", "rules", "rules_test.yml")

	// In the container the rules lie elsewhere.
	dir := t.TempDir()
	text, err := os.ReadFile(deploy + "prometheus/prometheus.yml")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := filepath.Abs(deploy + "prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	moved := strings.Replace(string(text), "/etc/prometheus/rules.yml", rules, 1)
	if moved == string(text) {
		t.Fatal("prometheus.yml names no rules")
	}
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(moved), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, dir, "check", "config", "prometheus.yml")
}

// Every query of the dashboards is PromQL to Prometheus itself.
func TestPrometheusParsesEveryQuery(t *testing.T) {
	variables := strings.NewReplacer("$__rate_interval", "5m", "$__range", "1h", "$__interval", "1m")
	var b strings.Builder
	b.WriteString("groups:\n  - name: queries\n    rules:\n")
	n := 0
	for _, q := range queries(t) {
		expr := regexp.MustCompile(`\$\{?\w+\}?`).ReplaceAllString(variables.Replace(q.expr), ".+")
		fmt.Fprintf(&b, "      # %s\n      - {record: 'query:%d', expr: %q}\n", q.where, n, expr)
		n++
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "queries.yml"), []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, dir, "check", "rules", "--lint=none", "queries.yml")
	if n < 80 {
		t.Errorf("%d queries", n)
	}
}
