package app_test

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/parts"
)

// fixed is a configuration without Consul: the service echo is what the test
// started itself.
func fixed(instances ...*parts.Echo) string {
	text := "consul: {disabled: true}\nupstreams:\n  - {name: echo, instances: ["
	for i, e := range instances {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("{address: %q}", e.Addr)
	}
	return text + "]}\n"
}

const operator = "operator-token-of-this-test"

// TestReload changes a configuration under load, by each of the three ways to
// ask for it. One that is not valid changes nothing and says why; one that is
// takes over without a lost request, and what was counted stays counted.
func TestReload(t *testing.T) {
	t.Parallel()
	bin := binaries(t)
	first, second := bin.StartEcho(t, parts.EchoOptions{Name: "echo", ID: "echo-1"}), bin.StartEcho(t, parts.EchoOptions{Name: "echo", ID: "echo-2"})
	failing := bin.StartEcho(t, parts.EchoOptions{Name: "failing", ID: "failing-1", Args: []string{"-fail-rate", "1"}})
	config := func(routes string) string {
		return fixed(first, second) + fmt.Sprintf(`  - name: failing
    instances: [{address: %q}]
    breaker: {error_rate: 50%%, min_requests: 5, open_for: 10m}
    outlier: {disabled: true}
routes:
  - {name: steady, match: {path: "/steady/**"}, upstream: {service: echo}}
  - {name: failing, match: {path: "/failing/**"}, upstream: {service: failing}}
`, failing.Addr) + routes
	}
	tests := []struct {
		name string
		args []string
		ask  func(t *testing.T, r *parts.Replica) // for a reload, after the file has changed
	}{
		{"file", nil, func(*testing.T, *parts.Replica) {}},
		{"signal", []string{"--watch=false"}, func(_ *testing.T, r *parts.Replica) { r.Signal(syscall.SIGHUP) }},
		{"api", []string{"--watch=false"}, func(t *testing.T, r *parts.Replica) { reload(t, r, operator) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := bin.StartReplica(t, parts.ReplicaOptions{Config: config(""), Args: tt.args,
				Tokens: fmt.Sprintf("[{name: test, role: operator, token: %q}, {name: eye, token: viewer}]", operator)})
			opens(t, r)
			load := parts.StartLoad(t, parts.LoadOptions{URLs: []string{r.URL("/steady/x")}, Workers: 6, Pace: time.Millisecond})
			load.Await(100)
			before := r.MustStatus()

			r.Configure(config("  - {name: new, match: {path: /new}, upstrem: {service: echo}, use: [nothing]}\n"))
			tt.ask(t, r)
			parts.Eventually(t, patience, "a bad configuration was not refused", func() bool { return r.MustStatus().Config.State == "refused" })
			s := r.MustStatus()
			for _, want := range []string{"proconsul.yaml:", "upstrem", "upstream", "nothing"} {
				if !strings.Contains(s.Config.Error, want) {
					t.Errorf("the status does not say why a reload was refused: no %q in %q", want, s.Config.Error)
				}
			}
			if s.Config.Hash != before.Config.Hash || len(s.Routes) != 2 {
				t.Errorf("a refused reload left %d routes of configuration %s, want 2 of %s", len(s.Routes), s.Config.Hash, before.Config.Hash)
			}
			if ok, _ := r.Metric("proconsul_config_last_reload_successful"); ok != 0 {
				t.Error("proconsul_config_last_reload_successful is not 0 after a refused reload")
			}
			if n, _ := r.Metric("proconsul_config_reloads_total", `source="`+tt.name+`"`, `result="refused"`); n == 0 {
				t.Errorf("proconsul_config_reloads_total{source=%q,result=refused} is 0: %s", tt.name, r.Log())
			}
			if got := request(t, http.MethodGet, r.URL("/new")); got.StatusCode != http.StatusNotFound {
				t.Errorf("a refused route answers %d", got.StatusCode)
			}

			for i := range 5 {
				path := fmt.Sprintf("/new/%d", i)
				hash := r.MustStatus().Config.Hash
				r.Configure(config(fmt.Sprintf("  - {name: new, match: {path: %s}, upstream: {service: echo}}\n", path)))
				tt.ask(t, r)
				parts.Eventually(t, patience, "a good configuration was not taken over", func() bool { return r.MustStatus().Config.Hash != hash })
				if got := request(t, http.MethodGet, r.URL(path)); got.StatusCode != http.StatusOK {
					t.Errorf("a new route answers %d: %s", got.StatusCode, got.body)
				}
				load.Await(20)
			}

			tally := load.Stop()
			noFailures(t, tally)
			s = r.MustStatus()
			if s.Config.State != "ok" || s.Config.Error != "" {
				t.Errorf("after good reloads the status says %+v", s.Config)
			}
			if ok, _ := r.Metric("proconsul_config_last_reload_successful"); ok != 1 {
				t.Error("proconsul_config_last_reload_successful is not 1 after a good reload")
			}
			// Counters: every request of the test, over all tables.
			want := uint64(tally.Requests + 5)
			picks := uint64(0)
			for _, in := range r.Upstream("echo").Instances {
				picks += in.Requests
			}
			if picks != want {
				t.Errorf("the instances of echo show %d requests, clients sent %d", picks, want)
			}
			if got, _ := r.Metric("proconsul_requests_total", `route="steady"`); got != float64(tally.Requests) {
				t.Errorf("proconsul_requests_total{route=steady} is %v, clients sent %d", got, tally.Requests)
			}
			if b := r.Upstream("failing").Breaker; b.State != "open" || !b.Since.Equal(upstreamOf(before, "failing").Breaker.Since) {
				t.Errorf("a reload changed an open breaker: %+v, was %+v", b, upstreamOf(before, "failing").Breaker)
			}
		})
	}

	t.Run("who may", func(t *testing.T) {
		r := bin.StartReplica(t, parts.ReplicaOptions{Config: config(""), Args: []string{"--watch=false"},
			Tokens: fmt.Sprintf("[{name: test, role: operator, token: %q}, {name: eye, token: viewer}]", operator)})
		for token, want := range map[string]int{"": 401, "wrong": 401, "viewer": 403, operator: 200} {
			if got := reload(t, r, token); got.StatusCode != want {
				t.Errorf("a reload asked for with token %q: %d, want %d: %s", token, got.StatusCode, want, got.body)
			}
		}
		r.Configure("routes: 7\n")
		if got := reload(t, r, operator); got.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(got.body, "routes") {
			t.Errorf("a reload of a bad configuration: %d %s", got.StatusCode, got.body)
		}
	})
}

// opens makes the breaker of the upstream failing open.
func opens(t *testing.T, r *parts.Replica) {
	t.Helper()
	parts.Eventually(t, patience, "the breaker of a failing service did not open", func() bool {
		parts.Fire(t, 10, parts.LoadOptions{URLs: []string{r.URL("/failing/x")}})
		return r.Upstream("failing").Breaker.State == "open"
	})
	got := request(t, http.MethodGet, r.URL("/failing/x"))
	if got.StatusCode != http.StatusServiceUnavailable || got.Header.Get("X-Proconsul-Reason") != "breaker_open" || got.Header.Get("Retry-After") == "" {
		t.Errorf("an open breaker answers %d, reason %q, Retry-After %q", got.StatusCode, got.Header.Get("X-Proconsul-Reason"), got.Header.Get("Retry-After"))
	}
}

// reload asks the admin API for a reload.
func reload(t *testing.T, r *parts.Replica, token string) reply {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://"+r.Admin+"/api/v1/reload", nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return send(t, req)
}

// TestAnEarlySignalIsKept asks for a reload while the gateway still starts: it
// neither ends the gateway nor is forgotten.
func TestAnEarlySignalIsKept(t *testing.T) {
	t.Parallel()
	r := binaries(t).NewReplica(t, parts.ReplicaOptions{Config: "consul: {disabled: true}\n", Args: []string{"--watch=false"}})
	r.Launch()
	logged := func(text string) {
		t.Helper()
		parts.Eventually(t, patience, "the log has no "+text, func() bool { return strings.Contains(r.Log(), text) })
	}
	logged(`"msg":"runtime"`) // it has read its configuration and makes its parts
	r.Signal(syscall.SIGHUP)
	logged(`"msg":"reload: nothing has changed","source":"signal"`)
}

// TestMalformedRegistrationCostsOnlyItself puts into a real catalog what no
// service should: it is shown with its reason, and the others serve.
func TestMalformedRegistrationCostsOnlyItself(t *testing.T) {
	t.Parallel()
	bin, consul := binaries(t), parts.StartConsul(t)
	r := bin.StartReplica(t, parts.ReplicaOptions{Config: dependencies(consul, nil) + echoRoutes})
	bin.StartEcho(t, parts.EchoOptions{Consul: consul.Addr, Name: "echo", ID: "echo-1"})
	r.AwaitUsable("echo", 1)
	load := parts.StartLoad(t, parts.LoadOptions{URLs: []string{r.URL("/api/x")}, Pace: time.Millisecond})

	external := func(id, service string) {
		consul.Put("/v1/catalog/register", fmt.Sprintf(`{"Node":"external","Address":"127.0.0.1","SkipNodeUpdate":true,
"NodeMeta":{"external-node":"true"},"Service":{"ID":%q,"Service":"echo",%s}}`, id, service))
	}
	consul.Put("/v1/catalog/register", `{"Node":"external","Address":"127.0.0.1"}`)
	external("no-port", `"Address":"127.0.0.1","Port":0`)
	external("big-port", `"Address":"127.0.0.1","Port":70000`)
	external("no-host", `"Address":"a b/c","Port":80`)
	external("proxy", `"Kind":"connect-proxy","Proxy":{"DestinationServiceName":"echo"},"Address":"127.0.0.1","Port":81`)
	second := bin.StartEcho(t, parts.EchoOptions{Name: "echo", ID: "echo-2"})
	host, port, _ := strings.Cut(second.Addr, ":")
	external("bad-weight", fmt.Sprintf(`"Address":%q,"Port":%s,"Meta":{"proconsul_weight":"heavy"}`, host, port))

	// A bad weight is not used; its instance is.
	r.AwaitUsable("echo", 2)
	wants := map[string]string{
		"external/no-port":                     "port 0 is not between",
		"external/big-port":                    "port 70000 is not between",
		"external/no-host":                     "a b/c",
		"external/proxy":                       "connect-proxy",
		"external/bad-weight proconsul_weight": `"heavy" is not a number`,
	}
	parts.Eventually(t, patience, "not every malformed registration is shown as rejected", func() bool {
		return len(r.MustStatus().Rejected) >= len(wants)
	})
	for _, rejected := range r.MustStatus().Rejected {
		want, ok := wants[rejected.Name]
		if !ok || !strings.Contains(rejected.Reason, want) || rejected.Service != "echo" {
			t.Errorf("rejected %+v, want one of %v", rejected, wants)
		}
		delete(wants, rejected.Name)
	}
	for name := range wants {
		t.Errorf("%s is not shown as rejected", name)
	}
	before := load.Tally().Instances["echo-2"]
	parts.Eventually(t, patience, "the instance with a bad weight gets no request", func() bool { return load.Tally().Instances["echo-2"] > before })
	noFailures(t, load.Stop())
}
