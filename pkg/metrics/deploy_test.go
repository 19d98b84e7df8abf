package metrics_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/proconsul/proconsul/config"
)

const deploy = "../../deploy/"

// query is a PromQL expression of a dashboard or a rule, and where it stands.
type query struct{ where, expr string }

type dashboard struct {
	UID, Title string
	Panels     []struct {
		ID      int
		Type    string
		Title   string
		GridPos struct{ H, W, X, Y int }
		Targets []struct {
			RefID      string
			Expr       string
			Datasource struct{ UID string }
		}
	}
	Templating struct {
		List []struct {
			Name  string
			Query any
		}
	}
	Annotations struct{ List []struct{ Name, Expr string } }
}

func dashboards(t *testing.T) map[string]dashboard {
	t.Helper()
	files, err := filepath.Glob(deploy + "grafana/dashboards/*.json")
	if err != nil || len(files) != 3 {
		t.Fatalf("dashboards %v, %v", files, err)
	}
	out := map[string]dashboard{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		out[filepath.Base(f)] = d
	}
	return out
}

type rule struct {
	Record, Alert, Expr, For string
	Labels, Annotations      map[string]string
}

func rules(t *testing.T) []rule {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string
			Rules []rule
		}
	}
	readYAML(t, deploy+"prometheus/rules.yml", &file)
	var out []rule
	for _, g := range file.Groups {
		out = append(out, g.Rules...)
	}
	return out
}

func readYAML(t *testing.T, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func queries(t *testing.T) []query {
	var out []query
	for name, d := range dashboards(t) {
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				out = append(out, query{name + ": " + p.Title, target.Expr})
			}
		}
		for _, a := range d.Annotations.List {
			out = append(out, query{name + ": annotation " + a.Name, a.Expr})
		}
		for _, v := range d.Templating.List {
			if q, ok := v.Query.(map[string]any); ok {
				expr, label, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(q["query"].(string), "label_values("), ")"), ", ")
				out = append(out, query{name + ": variable " + v.Name, "sum by (" + label + ") (" + expr + ")"})
			}
		}
	}
	for _, r := range rules(t) {
		out = append(out, query{"rules.yml: " + r.Record + r.Alert, r.Expr})
	}
	return out
}

var (
	promString   = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	promName     = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*`)
	promSelector = regexp.MustCompile(`([a-zA-Z_:][a-zA-Z0-9_:]*)\{([^}]*)\}`)
	promMatcher  = regexp.MustCompile(`([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"`)
	promGrouping = regexp.MustCompile(`\b(?:by|without|on|ignoring)\s*\(([^)]*)\)`)
	sampleLine   = regexp.MustCompile(`(?m)^([a-z_]+)(?:\{(.*)\})? \S+$`)
	sampleLabel  = regexp.MustCompile(`([a-z_]+)="([^"]*)"`)
)

// scraped is what a gateway in which everything happened once shows: label
// values by metric and label. Every label of a metric is there.
func scraped(t *testing.T) map[string]map[string][]string {
	out := map[string]map[string][]string{}
	for _, m := range sampleLine.FindAllStringSubmatch(scrape(t, exercised(t)), -1) {
		labels := out[m[1]]
		if labels == nil {
			labels = map[string][]string{}
			out[m[1]] = labels
		}
		for _, l := range sampleLabel.FindAllStringSubmatch(m[2], -1) {
			labels[l[1]] = append(labels[l[1]], l[2])
		}
	}
	return out
}

func TestQueriesNameWhatTheGatewayExports(t *testing.T) {
	have := scraped(t)
	used := map[string]bool{}
	recorded := map[string]bool{}
	for _, r := range rules(t) {
		recorded[r.Record] = true
	}
	// Prometheus adds these to every sample.
	scraper := []string{"job", "instance"}
	// Words that only the events of a bad day bring: no scrape shows them all.
	open := []string{"code", "class", "route", "upstream", "instance_id", "policy", "hash", "watch", "op", "__name__"}
	all := queries(t)
	if len(all) < 80 {
		t.Fatalf("%d queries; the test does not see them all", len(all))
	}
	for _, q := range all {
		labels := slices.Clone(scraper)
		bare := promString.ReplaceAllString(q.expr, `""`)
		for _, name := range promName.FindAllString(bare, -1) {
			switch {
			case strings.Contains(name, ":"):
				if !recorded[name] {
					t.Errorf("%s: no rule records %s", q.where, name)
				}
				labels = append(labels, "route")
			case strings.HasPrefix(name, "proconsul_"), strings.HasPrefix(name, "go_"), strings.HasPrefix(name, "process_"):
				if have[name] == nil {
					t.Errorf("%s: the gateway has no metric %s", q.where, name)
				}
				labels = append(labels, slices.Collect(maps.Keys(have[name]))...)
				for _, suffix := range []string{"_bucket", "_count", "_sum"} {
					name = strings.TrimSuffix(name, suffix)
				}
				used[name] = true
			}
		}
		for _, g := range promGrouping.FindAllStringSubmatch(bare, -1) {
			for label := range strings.SplitSeq(g[1], ",") {
				if label = strings.TrimSpace(label); !slices.Contains(labels, label) {
					t.Errorf("%s: groups by %s, which none of its metrics has", q.where, label)
				}
			}
		}
		for _, s := range promSelector.FindAllStringSubmatch(q.expr, -1) {
			for _, m := range promMatcher.FindAllStringSubmatch(s[2], -1) {
				label, value := m[1], m[3]
				if slices.Contains(scraper, label) || label == "__name__" || s[1] == "up" {
					continue
				}
				values, ok := have[s[1]][label]
				if !ok {
					t.Errorf("%s: %s has no label %s", q.where, s[1], label)
					continue
				}
				if slices.Contains(open, label) || strings.Contains(value, "$") {
					continue
				}
				// Prometheus 3 writes le="1" as le="1.0": one of the two has to be there.
				alternatives := strings.Split(value, "|")
				found := slices.ContainsFunc(alternatives, func(a string) bool { return slices.Contains(values, a) })
				missing := slices.ContainsFunc(alternatives, func(a string) bool { return !slices.Contains(values, a) })
				if !found || label != "le" && missing {
					t.Errorf("%s: %s never has %s=%q", q.where, s[1], label, value)
				}
			}
		}
	}
	for _, f := range newMetrics(t).Families() {
		if !used[f.Name] {
			t.Errorf("no dashboard and no rule shows %s", f.Name)
		}
	}
}

func TestDashboardsAreWhole(t *testing.T) {
	uids := map[string]bool{}
	for name, d := range dashboards(t) {
		if uids[d.UID] || d.UID == "" || d.Title == "" {
			t.Errorf("%s: uid %q, title %q", name, d.UID, d.Title)
		}
		uids[d.UID] = true
		ids, cells := map[int]bool{}, map[[2]int]string{}
		for _, p := range d.Panels {
			if ids[p.ID] || p.Title == "" || (p.Type != "row" && len(p.Targets) == 0) {
				t.Errorf("%s: panel %d %q has a double id, no title or no query", name, p.ID, p.Title)
			}
			ids[p.ID] = true
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if other := cells[[2]int{x, y}]; other != "" || x >= 24 {
						t.Fatalf("%s: %q lies on %q or beyond the edge", name, p.Title, other)
					}
					cells[[2]int{x, y}] = p.Title
				}
			}
			for _, target := range p.Targets {
				if target.Datasource.UID != "${datasource}" {
					t.Errorf("%s: %q asks data source %q", name, p.Title, target.Datasource.UID)
				}
				for _, v := range regexp.MustCompile(`\$(\w+)`).FindAllStringSubmatch(target.Expr, -1) {
					known := v[1] == "__rate_interval"
					for _, l := range d.Templating.List {
						known = known || l.Name == v[1]
					}
					if !known {
						t.Errorf("%s: %q uses $%s, which the dashboard does not have", name, p.Title, v[1])
					}
				}
			}
		}
	}
}

func TestEveryAlertSaysWhatToDo(t *testing.T) {
	b, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	headings := regexp.MustCompile(`(?m)^## (\S+)$`).FindAllStringSubmatch(string(b), -1)
	alerts := map[string]bool{}
	for _, r := range rules(t) {
		if r.Alert == "" {
			continue
		}
		alerts[r.Alert] = true
		if s := r.Labels["severity"]; s != "page" && s != "ticket" {
			t.Errorf("%s has severity %q", r.Alert, s)
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s says nothing", r.Alert)
		}
		if _, anchor, _ := strings.Cut(r.Annotations["runbook_url"], "docs/runbook.md#"); anchor != strings.ToLower(r.Alert) {
			t.Errorf("%s leads to %q", r.Alert, r.Annotations["runbook_url"])
		}
		if !slices.ContainsFunc(headings, func(h []string) bool { return h[1] == r.Alert }) {
			t.Errorf("docs/runbook.md has no section %s", r.Alert)
		}
	}
	for _, h := range headings {
		if !alerts[h[1]] {
			t.Errorf("docs/runbook.md describes %s, which is no alert", h[1])
		}
	}
	if len(alerts) < 10 {
		t.Errorf("%d alerts", len(alerts))
	}
}

type composeFile struct {
	Services map[string]struct {
		Image       string
		Build       struct{ Dockerfile, Target string }
		Ports       []string
		Volumes     []string
		Command     []string
		Healthcheck struct{ Test []string }
		DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
	}
	Volumes map[string]any
}

func TestComposeStack(t *testing.T) {
	var c composeFile
	readYAML(t, "../../docker-compose.yml", &c)
	pinned := regexp.MustCompile(`^[a-z0-9./-]+:v?\d+\.\d+\.\d+(-[a-z0-9.]+)?$`)
	for _, want := range []string{"consul", "redis", "gateway-1", "gateway-2", "edge", "orders-1", "orders-2", "orders-3", "prometheus", "grafana"} {
		if _, ok := c.Services[want]; !ok {
			t.Errorf("no service %s", want)
		}
	}
	dockerfile, err := os.ReadFile(deploy + "Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range c.Services {
		if len(s.Healthcheck.Test) < 2 {
			t.Errorf("%s has no health check", name)
		}
		if s.Build.Dockerfile == "" && !pinned.MatchString(s.Image) {
			t.Errorf("%s: image %q is not pinned to a version", name, s.Image)
		}
		if s.Build.Target != "" && !strings.Contains(string(dockerfile), " AS "+s.Build.Target+"\n") {
			t.Errorf("%s: the Dockerfile has no stage %s", name, s.Build.Target)
		}
		for _, p := range s.Ports {
			if !strings.HasPrefix(p, "127.0.0.1:") {
				t.Errorf("%s publishes %s beyond loopback", name, p)
			}
		}
		for other, d := range s.DependsOn {
			if _, ok := c.Services[other]; !ok || d.Condition != "service_healthy" {
				t.Errorf("%s depends on %s, %s", name, other, d.Condition)
			}
		}
		for _, v := range s.Volumes {
			source, _, _ := strings.Cut(v, ":")
			if !strings.HasPrefix(source, "./") {
				if _, ok := c.Volumes[source]; !ok {
					t.Errorf("%s mounts the volume %s, which is not declared", name, source)
				}
				continue
			}
			if _, err := os.Stat("../../" + source); err != nil {
				t.Errorf("%s mounts %v", name, err)
			}
			if !strings.HasSuffix(v, ":ro") {
				t.Errorf("%s may write to %s", name, source)
			}
		}
	}

	cfg, err := config.Load(deploy+"compose/proconsul.yaml", config.LoadOptions{Pure: true})
	if err != nil {
		t.Fatal(err)
	}
	for addr, service := range map[string]string{cfg.Consul.Addr: "consul", cfg.Redis.Addr: "redis"} {
		if host, _, _ := strings.Cut(addr, ":"); host != service {
			t.Errorf("the gateway looks for %s at %s", service, addr)
		}
	}
	haproxy, err := os.ReadFile(deploy + "compose/haproxy.cfg")
	if err != nil {
		t.Fatal(err)
	}
	var prometheus struct {
		ScrapeConfigs []struct {
			StaticConfigs []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	readYAML(t, deploy+"prometheus/prometheus.yml", &prometheus)
	for _, replica := range []string{"gateway-1", "gateway-2"} {
		if !strings.Contains(string(haproxy), "server "+replica+" "+replica+":8080\n") {
			t.Errorf("edge does not know %s", replica)
		}
		if !slices.Contains(prometheus.ScrapeConfigs[0].StaticConfigs[0].Targets, replica+":8081") {
			t.Errorf("Prometheus does not scrape %s", replica)
		}
	}
}
