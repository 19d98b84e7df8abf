package app_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/proconsul/proconsul/pkg/parts"
)

// prometheus is a running Prometheus that scrapes a gateway twice a second and
// evaluates the project's own rules, whose patience is cut to a second so that
// a test need not have more.
type prometheus struct {
	t    *testing.T
	addr string
}

func startPrometheus(t *testing.T, target string) *prometheus {
	t.Helper()
	path, err := exec.LookPath("prometheus")
	if err != nil {
		t.Fatalf("%v: run make tools", err)
	}
	text, err := os.ReadFile("../../deploy/prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	rules := regexp.MustCompile(`(?m)^        for: \w+$`).ReplaceAllString(string(text), "        for: 1s")
	if strings.Count(rules, "for: 1s") < 10 {
		t.Fatal("the rules' patience was not found")
	}
	dir := t.TempDir()
	p := &prometheus{t: t, addr: fmt.Sprintf("127.0.0.1:%d", parts.FreePorts(t, 1)[0])}
	config := fmt.Sprintf("global: {scrape_interval: 500ms, evaluation_interval: 500ms}\nrule_files: [rules.yml]\nscrape_configs:\n  - job_name: proconsul\n    scrape_timeout: 500ms\n    static_configs: [{targets: [%q]}]\n", target)
	for name, text := range map[string]string{"rules.yml": rules, "prometheus.yml": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+p.addr)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("log of prometheus:\n%s", text)
		}
	})
	return p
}

// query returns the value of each series that the expression finds, by label
// set.
func (p *prometheus) query(expr string) map[string]string {
	p.t.Helper()
	resp, err := http.Get("http://" + p.addr + "/api/v1/query?query=" + url.QueryEscape(expr))
	if err != nil {
		return nil // it starts
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil
	}
	if answer.Error != "" && resp.StatusCode < 500 {
		p.t.Fatalf("%s: %s", expr, answer.Error)
	}
	out := map[string]string{}
	for _, r := range answer.Data.Result {
		out[fmt.Sprint(r.Metric)] = fmt.Sprint(r.Value[1])
	}
	return out
}

// fires reports whether the alert fires for what the labels say.
func (p *prometheus) fires(alert, labels string) bool {
	return len(p.query(fmt.Sprintf(`ALERTS{alertname=%q,alertstate="firing",%s}`, alert, labels))) > 0
}

// A real Prometheus scrapes a running gateway. An instance is broken, the
// alert that is meant for that fires, and ends when the instance is mended; no
// other alert fires meanwhile.
func TestAnAlertFiresAndResolves(t *testing.T) {
	t.Parallel()
	bin, consul := binaries(t), parts.StartConsul(t)
	r := bin.StartReplica(t, parts.ReplicaOptions{Config: dependencies(consul, nil) + echoRoutes})
	e := bin.StartEcho(t, parts.EchoOptions{Consul: consul.Addr, Name: "echo", ID: "echo-1"})
	r.AwaitUsable("echo", 1)
	noFailures(t, parts.Fire(t, 20, parts.LoadOptions{URLs: []string{r.URL("/api/x")}, Workers: 2}))
	p := startPrometheus(t, r.Admin)
	parts.Eventually(t, patience, "Prometheus scrapes the gateway", func() bool { return len(p.query(`up{job="proconsul"} == 1`)) == 1 })
	parts.Eventually(t, patience, "it has the instance", func() bool {
		return len(p.query(`proconsul_instances{upstream="echo",state="passing"} == 1`)) == 1
	})
	parts.Eventually(t, patience, "it has the requests", func() bool {
		return len(p.query(`sum by (route, code) (proconsul_requests_total{route="echo",code="200"}) >= 20`)) == 1
	})
	if got := p.query(`ALERTS{alertstate="firing"}`); len(got) > 0 {
		t.Errorf("while all is well %v", got)
	}

	e.Kill()
	parts.Eventually(t, patience, "the alert fires", func() bool { return p.fires("ProconsulNoHealthyInstances", `upstream="echo"`) })
	e.Start()
	parts.Eventually(t, patience, "the alert ends", func() bool { return !p.fires("ProconsulNoHealthyInstances", `upstream="echo"`) })

	r.Configure("routs: []\n")
	parts.Eventually(t, patience, "a refused reload is told", func() bool { return p.fires("ProconsulConfigReloadFailed", `job="proconsul"`) })
	r.Kill()
	parts.Eventually(t, patience, "so is a gateway that is gone", func() bool { return p.fires("ProconsulDown", `job="proconsul"`) })
}
