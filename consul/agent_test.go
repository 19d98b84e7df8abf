package consul_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/proconsul/proconsul/consul"
	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/parts"
)

// put sends a PUT to a real agent and fails the test on any status but 200.
func put(t *testing.T, addr, path string, body any, token ...string) {
	t.Helper()
	if code, text := tryPut(t, addr, path, body, token...); code != http.StatusOK {
		t.Fatalf("PUT %s: %d %s", path, code, text)
	}
}

func tryPut(t *testing.T, addr, path string, body any, token ...string) (int, string) {
	t.Helper()
	var b bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&b).Encode(body); err != nil {
			t.Fatal(err)
		}
	}
	req, err := http.NewRequest(http.MethodPut, "http://"+addr+path, &b)
	if err != nil {
		t.Fatal(err)
	}
	for _, tok := range token {
		req.Header.Set("X-Consul-Token", tok)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

func register(t *testing.T, addr, name, id string, port int, token ...string) {
	t.Helper()
	put(t, addr, "/v1/agent/service/register", map[string]any{"Name": name, "ID": id, "Port": port,
		"Check": map[string]any{"CheckID": "ttl:" + id, "TTL": "10m", "Status": "passing"}}, token...)
}

// first returns the only instance of a service.
func (w *watching) first(key string) discovery.Instance {
	if in := w.catalog.State(key).Snapshot.Instances; len(in) == 1 {
		return in[0]
	}
	return discovery.Instance{}
}

func TestRealChangesAndTheirLatency(t *testing.T) {
	t.Parallel()
	c := parts.StartConsul(t)
	w := watch(t, consul.Options{Addr: c.Addr}, consul.WatchOptions{}, query("web"))
	parts.Eventually(t, 5*time.Second, "the empty service is loaded", func() bool { return w.catalog.State("web").Loaded })

	steps := []struct {
		name string
		do   func()
		is   func(discovery.Instance) bool
	}{
		{"register", func() { register(t, c.Addr, "web", "web-1", 8001) },
			func(in discovery.Instance) bool {
				return in.Status == discovery.StatusPassing && in.Address == "127.0.0.1:8001"
			}},
		{"critical", func() { put(t, c.Addr, "/v1/agent/check/fail/ttl:web-1?note=boom", nil) },
			func(in discovery.Instance) bool { return in.Status == discovery.StatusCritical }},
		{"warning", func() { put(t, c.Addr, "/v1/agent/check/warn/ttl:web-1", nil) },
			func(in discovery.Instance) bool { return in.Status == discovery.StatusWarning }},
		{"passing", func() { put(t, c.Addr, "/v1/agent/check/pass/ttl:web-1", nil) },
			func(in discovery.Instance) bool { return in.Status == discovery.StatusPassing }},
		{"maintenance", func() { put(t, c.Addr, "/v1/agent/service/maintenance/web-1?enable=true&reason=deploy", nil) },
			func(in discovery.Instance) bool {
				return in.Status == discovery.StatusMaintenance && slices.ContainsFunc(in.Checks, func(c discovery.Check) bool { return c.Notes == "deploy" })
			}},
		{"back", func() { put(t, c.Addr, "/v1/agent/service/maintenance/web-1?enable=false", nil) },
			func(in discovery.Instance) bool { return in.Status == discovery.StatusPassing }},
		{"deregister", func() { put(t, c.Addr, "/v1/agent/service/deregister/web-1", nil) },
			func(in discovery.Instance) bool { return in.ID == "" }},
	}
	latencies := map[string][]time.Duration{}
	var all []time.Duration
	for range 10 {
		for _, s := range steps {
			start := time.Now()
			s.do()
			parts.Eventually(t, 5*time.Second, s.name+" reaches the pool", func() bool { return s.is(w.first("web")) })
			latencies[s.name] = append(latencies[s.name], time.Since(start))
			all = append(all, time.Since(start))
		}
	}
	for _, s := range steps {
		slices.Sort(latencies[s.name])
		l := latencies[s.name]
		t.Logf("%-12s p50 %-8v max %v, from before the PUT until the catalog has it", s.name, l[len(l)/2].Round(10*time.Microsecond), l[len(l)-1].Round(10*time.Microsecond))
	}
	slices.Sort(all)
	if p50 := all[len(all)/2]; p50 > 50*time.Millisecond {
		t.Errorf("median from change to pool is %v, want below 50ms", p50)
	}
	if st := w.catalog.State("web"); st.Stale() || w.State().Watches[0].Held != 0 {
		t.Errorf("stale after mere changes: %+v %+v", st, w.State())
	}
}

func TestRealAgentRestartKillAndFreeze(t *testing.T) {
	t.Parallel()
	c := parts.StartConsul(t)
	w := watch(t, consul.Options{Addr: c.Addr}, consul.WatchOptions{Wait: 3 * time.Second, ProbeInterval: time.Second}, query("web"))
	register(t, c.Addr, "web", "web-1", 8001)
	register(t, c.Addr, "web", "web-2", 8002)
	parts.Eventually(t, 5*time.Second, "both are in", func() bool { return w.ids("web") == "web-1 web-2" })

	empty := make(chan struct{})
	cancel := w.catalog.Subscribe("web", func(s discovery.Snapshot) {
		if len(s.Instances) == 0 {
			close(empty)
		}
	})
	defer cancel()
	n := 2
	expect := "web-1 web-2"
	for _, fault := range []struct {
		name  string
		down  func()
		up    func()
		stale bool
	}{
		{"restart", c.Stop, c.Start, true},
		{"kill", c.Kill, c.Start, true},
		{"freeze", c.Freeze, c.Thaw, true},
	} {
		start := time.Now()
		fault.down()
		parts.Eventually(t, 20*time.Second, fault.name+" makes it stale", func() bool { return w.catalog.State("web").Stale() && !w.State().Up })
		t.Logf("%s: known after %v: %s", fault.name, time.Since(start).Round(time.Millisecond), w.State().Err)
		if got := w.ids("web"); got != expect {
			t.Fatalf("%s: pool is %q, want %q", fault.name, got, expect)
		}
		start = time.Now()
		fault.up()
		parts.Eventually(t, 20*time.Second, fault.name+" is over", func() bool { return !w.catalog.State("web").Stale() && w.State().Up })
		n++
		id := fmt.Sprintf("web-%d", n)
		register(t, c.Addr, "web", id, 8000+n)
		expect += " " + id
		parts.Eventually(t, 10*time.Second, "a change after "+fault.name+" arrives", func() bool { return w.ids("web") == expect })
		t.Logf("%s: fresh again, with a change, %v after the agent's return", fault.name, time.Since(start).Round(time.Millisecond))
	}
	select {
	case <-empty:
		t.Fatal("the pool was empty for a moment")
	default:
	}
}
