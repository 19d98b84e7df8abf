package chaos_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/parts"
)

// own gives the scene a Consul of its own, to break.
func (s *scene) own(extra ...string) *parts.Consul {
	s.Helper()
	s.agent = parts.StartConsul(s, extra...)
	return s.agent
}

// consulState is what a replica says of Consul.
func consulState(r *parts.Replica) admin.Dependency {
	st, err := r.Status()
	if err != nil {
		return admin.Dependency{}
	}
	return st.Consul
}

// awaitStale waits until the replica has noticed that Consul is away, and
// shows that its pools are old.
func (s *scene) awaitStale(r *parts.Replica) {
	s.Helper()
	eventually(s, "Consul's absence does not show", func() bool { return len(consulState(r).Stale) > 0 })
	if n, ok := r.Metric("proconsul_catalog_stale_services"); !ok || n == 0 {
		s.Errorf("proconsul_catalog_stale_services is %v, %v", n, ok)
	}
}

// awaitFresh waits until the replica has an answer of Consul for everything,
// and notes the time as that of recovery.
func (s *scene) awaitFresh(r *parts.Replica, since time.Time) {
	s.Helper()
	eventually(s, "the catalog does not become fresh", func() bool {
		c := consulState(r)
		return c.State == "up" && len(c.Stale) == 0
	})
	s.recovered(since)
}

func consulRestarts(s *scene) {
	agent := s.own()
	_, gw := s.three(options)
	tr := s.traffic(gw.Addr, mixed("/"))
	for i, end := range []func(){agent.Stop, agent.Kill} {
		end()
		s.awaitStale(gw)
		tr.await(s.fault() / 2)
		back := time.Now()
		agent.Start()
		s.awaitFresh(gw, back)
		// What it hears is believed again: a new instance takes part.
		e := s.echo(fmt.Sprintf("new-%d", i))
		tr.awaitFrom(e.ID)
	}
	s.end(tr)
}

func catalogWiped(s *scene) {
	agent := s.own()
	list, gw := s.three(options)
	tr := s.traffic(gw.Addr, mixed("/"))
	agent.Kill()
	agent.Wipe()
	tr.await(s.fault() / 2)
	back := time.Now()
	agent.Start()
	s.awaitFresh(gw, back)
	eventually(s, "the instances have not come back by themselves", func() bool {
		for _, e := range list {
			if instance(gw, s.service, e.ID).Status != "passing" {
				return false
			}
		}
		return true
	})
	s.recovered(back)
	tr.await(s.fault() / 2)
	s.end(tr)
}

func leaderLost(s *scene) {
	cluster := parts.StartCluster(s, 3)
	leader := cluster.Leader()
	var others []*parts.Consul
	for _, c := range cluster.Servers {
		if c != leader {
			others = append(others, c)
		}
	}
	s.agent = others[0] // where the services register
	list := []*parts.Echo{s.echo("1"), s.echo("2"), s.echo("3")}
	gw := s.replica(s.config(others[1].Addr, options))
	gw.AwaitUsable(s.service, 3)
	tr := s.traffic(gw.Addr, mixed("/"))

	lost := time.Now()
	leader.Kill()
	e := s.echo("4")
	tr.awaitFrom(e.ID)
	s.recovered(lost)

	// Without a quorum nothing can be learned, and nothing is forgotten.
	others[0].Freeze()
	tr.await(s.fault() / 2)
	s.mayFail = sentTo("upstream_reset")
	list[0].Kill() // which only the gateway's own traffic can tell
	tr.await(s.fault() / 2)
	others[0].Thaw()
	leader.Start()
	s.awaitFresh(gw, time.Now())
	s.awaitOut(gw, list[0].ID)
	s.end(tr)
}

// consulGone is an outage of ten minutes in a tenth of the time or less. The
// gateway serves what it knew; one that starts meanwhile serves from the file
// that it is given; a damaged file is said to be one and serves nothing.
func consulGone(s *scene) {
	agent := s.own()
	file := filepath.Join(s.TempDir(), "catalog")
	list := []*parts.Echo{s.echo("1"), s.echo("2"), s.echo("3")}
	config := func(snapshot string) string {
		return strings.Replace(s.config(agent.Addr, options), "consul: {", fmt.Sprintf("consul: {snapshot: %q, ", snapshot), 1)
	}
	gw := s.replica(config(file))
	gw.AwaitUsable(s.service, 3)
	eventually(s, "no snapshot of three instances", func() bool {
		b, err := os.ReadFile(file)
		return err == nil && bytes.Count(b, []byte(`"status":"passing"`)) >= 3
	})
	s.mayFail = sentTo("upstream_reset")
	tr := s.traffic(gw.Addr, mixed("/"))
	agent.Kill()
	gone := time.Now()
	s.awaitStale(gw)
	if err := ready(gw); err != nil {
		s.Errorf("a replica that serves is not ready: %v", err)
	}

	// A replica starts from the file.
	second := s.replica(config(s.copyOf(file, func(b []byte) []byte { return b })))
	tr2 := s.traffic(second.Addr, mixed("/"))
	if c := consulState(second); len(c.Stale) == 0 {
		s.Errorf("a pool from a file does not show as stale: %+v", c)
	}
	if !strings.Contains(second.Log(), "catalog loaded from the snapshot file") {
		s.Error("the log does not say that the catalog is from the file")
	}

	// Another has a file with a flipped bit.
	third := binaries.NewReplica(s, parts.ReplicaOptions{Config: config(s.copyOf(file, func(b []byte) []byte {
		b[len(b)/2] ^= 1
		return b
	}))})
	third.Launch()
	eventually(s, "a damaged snapshot is not reported", func() bool { return strings.Contains(third.Log(), "snapshot file ignored") })
	eventually(s, "no admin listener", func() bool { _, err := third.Status(); return err == nil })
	if err := ready(third); err == nil {
		s.Error("a replica that knows nothing is ready")
	}

	list[0].Kill() // only traffic can tell
	s.awaitOut(gw, list[0].ID)
	long := s.fault()
	if *full {
		long *= 6
	}
	tr.await(long)
	back := time.Now()
	agent.Start()
	s.awaitFresh(gw, back)
	s.awaitFresh(second, back)
	third.AwaitUsable(s.service, 2)
	tr.await(rate())
	s.end(tr)
	s.end(tr2)
	s.note("away for %.0f s", back.Sub(gone).Seconds())
}

// copyOf copies a file, changed on the way.
func (s *scene) copyOf(path string, change func([]byte) []byte) string {
	s.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		s.Fatal(err)
	}
	to := filepath.Join(s.TempDir(), filepath.Base(path))
	if err := os.WriteFile(to, change(b), 0o600); err != nil {
		s.Fatal(err)
	}
	return to
}

// ready asks a replica whether it wants traffic.
func ready(r *parts.Replica) error {
	resp, err := http.Get("http://" + r.Admin + "/readyz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body) // for the message
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, text)
	}
	return nil
}

// consulSilent is a partition between gateway and agent that drops packets:
// no connection breaks, nothing is answered.
func consulSilent(s *scene) {
	list := []*parts.Echo{s.echo("1"), s.echo("2"), s.echo("3")}
	wire := parts.StartWire(s, s.agent.Addr)
	gw := s.replica(strings.Replace(s.config(wire.Addr, options), "consul: {", "consul: {wait: 1s, ", 1))
	gw.AwaitUsable(s.service, 3)
	s.mayFail = sentTo("upstream_reset")
	tr := s.traffic(gw.Addr, mixed("/"))
	wire.Drop()
	s.awaitStale(gw)
	list[0].Kill()
	s.awaitOut(gw, list[0].ID)
	tr.await(s.fault())
	back := time.Now()
	wire.Heal()
	s.awaitFresh(gw, back)
	// Slow is not away.
	wire.Latency(500 * time.Millisecond)
	e := s.echo("4")
	tr.awaitFrom(e.ID)
	s.end(tr)
}

func tokenExpires(s *scene) {
	const root = "5b2a3c1e-7f57-4f3c-9d0d-000000000001"
	agent := s.own(fmt.Sprintf(`{"acl":{"enabled":true,"default_policy":"deny","tokens":{"initial_management":%q,"agent":%q,"default":%q}}}`, root, root, root))
	admin := func(method, path, body string) {
		s.Helper()
		req, err := http.NewRequest(method, "http://"+agent.Addr+path, strings.NewReader(body))
		if err != nil {
			s.Fatal(err)
		}
		req.Header.Set("X-Consul-Token", root)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			s.Fatal(err)
		}
		defer resp.Body.Close()
		if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
			s.Fatalf("%s %s: %s %s", method, path, resp.Status, text)
		}
	}
	token := func(n int) string { return fmt.Sprintf("5b2a3c1e-7f57-4f3c-9d0d-0000000001%02d", n) }
	grant := func(n int) {
		admin(http.MethodPut, "/v1/acl/token", fmt.Sprintf(`{"AccessorID":%q,"SecretID":%q,"Policies":[{"Name":"gateway"}]}`, token(n+50), token(n)))
	}
	admin(http.MethodPut, "/v1/acl/policy", `{"Name":"gateway","Rules":"service_prefix \"\" {policy=\"read\"} node_prefix \"\" {policy=\"read\"}"}`)
	grant(1)
	file := filepath.Join(s.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token(1)), 0o600); err != nil {
		s.Fatal(err)
	}
	for _, id := range []string{"1", "2", "3"} {
		s.echo(id)
	}
	gw := s.replica(strings.Replace(s.config(agent.Addr, options), "consul: {", fmt.Sprintf("consul: {wait: 2s, token_file: %q, ", file), 1))
	gw.AwaitUsable(s.service, 3)
	tr := s.traffic(gw.Addr, mixed("/"))
	admin(http.MethodDelete, "/v1/acl/token/"+token(51), "")
	s.echo("4") // a change, which the gateway may no longer see
	s.awaitStale(gw)
	tr.await(s.fault())
	if u := gw.Upstream(s.service); u.Usable < 3 {
		s.Errorf("%d usable after the token was deleted", u.Usable)
	}
	grant(2)
	back := time.Now()
	if err := os.WriteFile(file, []byte(token(2)), 0o600); err != nil {
		s.Fatal(err)
	}
	s.awaitFresh(gw, back)
	tr.awaitFrom(s.service + "-4")
	s.recovered(back)
	s.end(tr)
}

// churn registers and deregisters a thousand instances a minute around three
// that stay.
func churn(s *scene) {
	list, gw := s.three(soon)
	tr := s.traffic(gw.Addr, mixed("/"))
	before := s.size(gw)
	seconds := 10
	if *full {
		seconds = 60
	}
	const alive = 20 // of those that come and go
	start := time.Now()
	n := 1000 * seconds / 60
	for i := range n + alive {
		if i < n {
			register(s.agent, s.service, fmt.Sprintf("%s-churn-%d", s.service, i), list[i%len(list)].Addr)
		}
		if i >= alive {
			s.agent.Put(fmt.Sprintf("/v1/agent/service/deregister/%s-churn-%d", s.service, i-alive), "")
		}
		if rest := time.Until(start.Add(time.Duration(i) * time.Minute / 1000)); rest > 0 {
			time.Sleep(rest)
		}
	}
	took := time.Since(start)
	s.awaitWhole(gw, 3)
	tr.await(rate())
	s.end(tr)
	s.shrunk(gw, before)
	s.note("%d registrations and as many deregistrations, %.0f a minute", n, float64(n)/took.Minutes())
}
