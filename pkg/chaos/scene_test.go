package chaos_test

import (
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/chaos"
	"github.com/proconsul/proconsul/pkg/parts"
)

// scenario is one line of the matrix.
type scenario struct {
	name  string
	fault string
	run   func(*scene)
}

// scenarios is the matrix, in the order of the report.
var scenarios = []scenario{
	{"instance killed", "SIGKILL to one of three instances, started again", instanceKilled},
	{"instance frozen", "SIGSTOP to one of three instances", instanceFrozen},
	{"connections refused", "one of three refuses connections; Consul believes it passing", refused},
	{"reset before the answer", "one of three resets every connection when it should answer", resetHeader},
	{"reset mid-response", "one of three resets every connection in the middle of the body", resetBody},
	{"connections reset", "all established connections to all instances reset at once, five times", resetConnections},
	{"black hole", "one of three accepts every byte and answers none", blackHole},
	{"black hole, long timeout", "likewise, where instances may take ten seconds to answer", blackHoleLong},
	{"partition", "packets to one of three are dropped, SYNs too", partition},
	{"two of three dead", "one refuses, one is a black hole, one is left", twoOfThree},
	{"latency", "one of three answers 300 ms late", latency},
	{"5xx storm", "one of three answers every request with 500", storm},
	{"5xx storm everywhere", "every instance answers 500, then none does", stormEverywhere},
	{"rolling deploy", "three instances replaced one by one; each deregisters and drains", rollingGraceful},
	{"rolling deploy by kill", "three instances replaced one by one by SIGKILL, none deregisters", rollingKilled},
	{"deploy at once", "three new instances, then all three old ones deregister together", rollingAtOnce},
	{"scale to zero", "all instances deregister; later they come back", scaleToZero},
	{"Consul restarts", "the agent ends by SIGTERM, and by SIGKILL, and starts again", consulRestarts},
	{"Consul forgets", "the agent is killed and starts with an empty catalog", catalogWiped},
	{"leader lost", "of three servers the leader is killed, then the quorum lost and an instance killed", leaderLost},
	{"Consul gone for long", "the agent is killed; an instance dies, replicas start from snapshot files, sound and damaged", consulGone},
	{"Consul silent", "packets to the agent are dropped; an instance dies", consulSilent},
	{"ACL token expires", "the gateway's token is deleted, later replaced in its file", tokenExpires},
	{"churn", "1,000 registrations a minute around three instances", churn},
	{"Redis killed", "SIGKILL under two replicas at five times a limit, started again empty", redisKilled},
	{"Redis frozen", "SIGSTOP, likewise", redisFrozen},
	{"Redis cut off", "packets to it are dropped, likewise", redisDropped},
	{"Redis failover", "it becomes a replica (READONLY) and loses its scripts, likewise", redisFailover},
	{"replicas restart", "two gateways behind a TCP balancer restarted in turn, twice", replicasRestart},
	{"reloads", "the configuration changes under load, a third of the changes is not valid", reloads},
	{"clients leave", "every second client goes away before or during its answer", aborts},
	{"soak", "all of it for a while: requests of all kinds, kills, churn, reloads, clients that leave", soak},
}

// eventually is parts.Eventually with the patience that all share: long enough
// for a machine that does three other things.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	parts.Eventually(t, 90*time.Second, what, ok)
}

// TestMatrix runs the scenarios. Each fails on one lost request that had to be
// answered, and each prints what its clients saw.
func TestMatrix(t *testing.T) {
	agent := parts.StartConsul(t)
	for i, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			if !*full {
				t.Parallel()
			}
			s := &scene{T: t, agent: agent, number: i, row: chaos.Row{Scenario: sc.name, Fault: sc.fault},
				service: "svc-" + strings.NewReplacer(" ", "-", ",", "").Replace(sc.name)}
			sc.run(s)
			s.finish()
		})
	}
}

// scene is one scenario under way.
type scene struct {
	*testing.T
	agent   *parts.Consul // shared by the scenarios that leave it alone
	number  int
	service string // the scenario's own name in Consul
	row     chaos.Row

	replicas []*parts.Replica
	windows  []window // while no instance was alive
	results  []shotResult
	mayFail  func(*shotResult) bool // of requests that are not replayable
}

// options are what most scenarios set: times in which a scenario can be
// watched, everything else as shipped.
const options = "timeout: {connect: 500ms, response: 1s}, outlier: {eject_for: 2s}"

// config is a configuration with one upstream and one route.
func (s *scene) config(agent, upstream string, more ...string) string {
	if upstream != "" {
		upstream = ", " + upstream
	}
	return fmt.Sprintf(`consul: {addr: %q}
log: {level: debug}
access_log: {disabled: true}
shutdown: {delay: 500ms, grace: 10s}
upstreams: [{service: %s%s}]
%s
routes:
  - {name: %s, match: {path: "/**"}, upstream: {service: %s}}
`, agent, s.service, upstream, strings.Join(more, "\n"), s.service, s.service)
}

// replica starts a gateway.
func (s *scene) replica(config string) *parts.Replica {
	s.Helper()
	r := binaries.StartReplica(s, parts.ReplicaOptions{Config: config})
	s.replicas = append(s.replicas, r)
	return r
}

// echo starts an instance that registers itself.
func (s *scene) echo(id string, args ...string) *parts.Echo {
	s.Helper()
	return binaries.StartEcho(s, parts.EchoOptions{Consul: s.agent.Addr, Name: s.service, ID: s.service + "-" + id, Args: args})
}

// wired starts an instance behind a wire. Consul is given the wire's address
// and a check that always passes, so that only the gateway's own traffic can
// tell that the wire is broken.
func (s *scene) wired(id string, args ...string) (*parts.Echo, *parts.Wire) {
	s.Helper()
	e := binaries.StartEcho(s, parts.EchoOptions{Name: s.service, ID: s.service + "-" + id, Args: args})
	w := parts.StartWire(s, e.Addr)
	register(s.agent, s.service, e.ID, w.Addr)
	return e, w
}

// register puts an instance that needs no check into Consul.
func register(agent *parts.Consul, service, id, addr string) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		panic(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		panic(err)
	}
	body, err := json.Marshal(map[string]any{"Name": service, "ID": id, "Address": host, "Port": n})
	if err != nil {
		panic(err)
	}
	agent.Put("/v1/agent/service/register", string(body))
}

// three starts three instances and a gateway that knows them.
func (s *scene) three(upstream string) ([]*parts.Echo, *parts.Replica) {
	s.Helper()
	list := []*parts.Echo{s.echo("1"), s.echo("2"), s.echo("3")}
	r := s.replica(s.config(s.agent.Addr, upstream))
	r.AwaitUsable(s.service, 3)
	return list, r
}

// threeWired is three with a wire in front of each.
func (s *scene) threeWired(upstream string) ([]*parts.Echo, []*parts.Wire, *parts.Replica) {
	s.Helper()
	var list []*parts.Echo
	var wires []*parts.Wire
	for _, id := range []string{"1", "2", "3"} {
		e, w := s.wired(id)
		list, wires = append(list, e), append(wires, w)
	}
	r := s.replica(s.config(s.agent.Addr, upstream))
	r.AwaitUsable(s.service, 3)
	return list, wires, r
}

// traffic begins the usual mix to a replica and lets it run for a while, so
// that pools are warm and retry budgets are filled as they are in service.
func (s *scene) traffic(addr string, shots []shot) *traffic {
	s.Helper()
	tr := send(s, "http://"+addr, rate(), shots)
	tr.await(rate())
	return tr
}

// for how long a fault lasts at least, in requests.
func (s *scene) fault() int {
	if *full {
		return 10 * rate()
	}
	return 3 * rate()
}

// recovered notes how long it took until all was as before.
func (s *scene) recovered(since time.Time) { s.row.Recovery = max(s.row.Recovery, time.Since(since)) }

// end stops traffic and takes its account.
func (s *scene) end(tr *traffic) { s.results = append(s.results, tr.stop()...) }

// note adds to the last column.
func (s *scene) note(format string, args ...any) {
	if s.row.Note != "" {
		s.row.Note += "; "
	}
	s.row.Note += fmt.Sprintf(format, args...)
}

// finish takes the account of a scenario and fails it on a request that was
// lost.
func (s *scene) finish() {
	s.Helper()
	count(&s.row, s.results, s.windows...)
	for _, r := range s.replicas {
		if n, ok := metric(r, "proconsul_retries_total"); ok {
			s.row.Retried += int(n)
		}
	}
	lost := 0
	for i := range s.results {
		r := &s.results[i]
		// Where nobody can answer the gateway does: never nothing.
		if r.ok() || r.limited() || r.shot.abort > 0 || inAny(s.windows, r) && r.status > 0 {
			continue
		}
		if !r.shot.replayable() && s.mayFail != nil && s.mayFail(r) {
			continue
		}
		if lost++; lost <= 10 {
			s.Errorf("lost at %s after %v: %s (instance %q)", r.began.UTC().Format("15:04:05.000"), r.took, r.failure(), r.instance)
		}
	}
	if lost > 0 {
		s.Errorf("%d requests lost", lost)
	}
	s.Log(s.row)
	table.Lock()
	table.rows[s.number] = s.row
	table.Unlock()
}

// metric asks a replica, which may have ended by the scenario's will.
func metric(r *parts.Replica, name string) (float64, bool) {
	if _, err := r.Status(); err != nil {
		return 0, false
	}
	return r.Metric(name)
}

// instance returns a replica's row of an instance.
func instance(r *parts.Replica, service, id string) admin.Instance {
	for _, in := range r.Upstream(service).Instances {
		if strings.HasSuffix(in.ID, "/"+id) || in.ID == id {
			return in
		}
	}
	return admin.Instance{}
}

// awaitOut waits until the gateway picks the instance no more, and returns how
// long that took.
func (s *scene) awaitOut(r *parts.Replica, id string) time.Duration {
	s.Helper()
	start := time.Now()
	eventually(s, id+" is still picked", func() bool { return !instance(r, s.service, id).Usable })
	return time.Since(start)
}

// awaitWhole waits until the gateway picks n instances, and notes the time as
// that of recovery.
func (s *scene) awaitWhole(r *parts.Replica, n int) {
	s.Helper()
	start := time.Now()
	eventually(s, fmt.Sprintf("the pool has not come back to %d", n), func() bool {
		u, err := r.Status()
		if err != nil {
			return false
		}
		for _, up := range u.Upstreams {
			if up.Name == s.service {
				return up.Usable == n
			}
		}
		return false
	})
	s.recovered(start)
}

// sentTo allows the failure of requests that may not be sent twice, where they
// had been sent to an instance that then died, told by the right words.
func sentTo(reasons ...string) func(*shotResult) bool {
	return func(r *shotResult) bool {
		for _, reason := range reasons {
			want := 502
			if reason == "upstream_timeout" {
				want = 504
			}
			if r.reason == reason && r.status == want {
				return true
			}
		}
		return false
	}
}
