package app_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/parts"
)

// The unit is judged by systemd's own tools: that it says what it means, and
// that it leaves little to whoever breaks in.
func TestTheSystemdUnit(t *testing.T) {
	path, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatalf("%v: run make tools", err)
	}
	text, err := os.ReadFile("../../deploy/systemd/proconsul.service")
	if err != nil {
		t.Fatal(err)
	}
	// The binary is not installed here; its place has to be one that is there.
	unit := filepath.Join(t.TempDir(), "proconsul.service")
	moved := strings.Replace(string(text), "ExecStart=/usr/local/bin/proconsul ", "ExecStart=/bin/true ", 1)
	if moved == string(text) {
		t.Fatal("the unit does not start the gateway")
	}
	if err := os.WriteFile(unit, []byte(moved), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "verify", unit).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		// Known since systemd 253; the tool may be older.
		if strings.Contains(line, "proconsul.service") && !strings.Contains(line, "service type, ignoring: notify-reload") {
			t.Errorf("systemd-analyze verify: %s", line)
		}
	}
	if out, err := exec.Command(path, "security", "--offline=true", "--threshold=20", "--no-pager", unit).CombinedOutput(); err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}

// Consul itself reads its agent's files, and the gateway's policy is all that
// the gateway needs where everything else is denied.
func TestConsulsFiles(t *testing.T) {
	t.Parallel()
	validate := exec.Command(parts.ConsulPath(t), "validate", "../../deploy/consul/agent.hcl")
	if out, err := validate.CombinedOutput(); err != nil {
		t.Errorf("consul validate: %v\n%s", err, out)
	}

	// Whoever has no token may do everything, so that the agent can be asked
	// whether it is ready; the gateway has one.
	consul := parts.StartConsul(t, `{"acl": {"enabled": true, "default_policy": "deny", "tokens": {"initial_management": "`+management+`", "agent": "`+management+`", "default": "`+management+`"}}}`)
	ask := func(method, path string, body, answer any) int {
		t.Helper()
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequest(method, "http://"+consul.Addr+path, bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Consul-Token", management)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if answer != nil {
			if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
		}
		return resp.StatusCode
	}
	rules, err := os.ReadFile("../../deploy/consul/policy.hcl")
	if err != nil {
		t.Fatal(err)
	}
	parts.Eventually(t, patience, "Consul takes the policy", func() bool {
		return ask(http.MethodPut, "/v1/acl/policy", map[string]any{"Name": "proconsul", "Rules": string(rules)}, nil) == http.StatusOK
	})
	var made struct{ SecretID string }
	if code := ask(http.MethodPut, "/v1/acl/token", map[string]any{"Policies": []map[string]string{{"Name": "proconsul"}}}, &made); code != http.StatusOK || made.SecretID == "" {
		t.Fatalf("token: %d", code)
	}
	if code := ask(http.MethodPut, "/v1/agent/service/register", map[string]any{"Name": "echo", "Port": 1, "Address": "127.0.0.1"}, nil); code != http.StatusOK {
		t.Fatalf("register: %d", code)
	}

	bin := binaries(t)
	text := strings.Replace(dependencies(consul, nil), "consul: {", "consul: {token: "+made.SecretID+", ", 1) + echoRoutes
	r := bin.StartReplica(t, parts.ReplicaOptions{Config: text})
	r.AwaitUsable("echo", 1)
	parts.Eventually(t, patience, "the gateway registers itself", func() bool {
		s := r.MustStatus()
		return len(s.Fleet) == 1 && s.Fleet[0].Self && s.Fleet[0].Status == "passing"
	})
	req, err := http.NewRequest(http.MethodPut, "http://"+consul.Addr+"/v1/agent/service/register", strings.NewReader(`{"Name":"echo","ID":"squatter"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Consul-Token", made.SecretID)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("the gateway's token registers other services: %s", resp.Status)
	}
}

const management = "5c3b0a52-6f0f-4d59-9c33-0f1f0a5b7d11"

// The configurations inside other tools' files are ones that the gateway
// takes.
func TestConfigurationsInDeploymentFiles(t *testing.T) {
	job, err := os.ReadFile("../../deploy/nomad/proconsul.nomad.hcl")
	if err != nil {
		t.Fatal(err)
	}
	inJob := regexp.MustCompile(`(?s)<<-YAML\n(.*?)\n\s*YAML`).FindSubmatch(job)
	if inJob == nil {
		t.Fatal("the Nomad job has no configuration")
	}
	text := regexp.MustCompile(`(?m)^ {10}`).ReplaceAllString(strings.ReplaceAll(string(inJob[1]), "$${", "${"), "")
	kubernetes, err := os.ReadFile("../../deploy/kubernetes/proconsul.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"nomad.yaml": text, "kubernetes.yaml": string(kubernetes)} {
		// What they take from elsewhere is not here.
		text = regexp.MustCompile(`\$\{(env|file):[^}]+\}`).ReplaceAllString(text, "from-elsewhere")
		cfg, err := config.Parse(name, []byte(text), config.LoadOptions{Pure: true})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(cfg.Routes) == 0 || len(cfg.Admin.Tokens) == 0 || !cfg.Registration.Enabled {
			t.Errorf("%s: no routes, tokens or registration", name)
		}
	}
}
