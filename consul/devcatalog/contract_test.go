package devcatalog_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/proconsul/proconsul/consul/devcatalog"
	"github.com/proconsul/proconsul/pkg/parts"
)

// TestContract runs one suite against a real Consul agent and against ours. The
// suite is what Proconsul and its services rely on.
func TestContract(t *testing.T) {
	consul := parts.StartConsul(t)
	real := newAPI(t, consul.Addr, consul.Node)
	_, ours := dev(t, devcatalog.Options{NodeName: consul.Node, Streaming: true})

	t.Run("same answers", func(t *testing.T) { sameAnswers(t, real.with(t), ours.with(t)) })
	t.Run("suite", func(t *testing.T) { // waits for its parallel parts, so that the servers outlive them
		for name, a := range map[string]*api{"consul": real, "devcatalog": ours} {
			t.Run(name, func(t *testing.T) {
				t.Run("node maintenance", func(t *testing.T) { nodeMaintenance(t, a.with(t)) }) // alone: it concerns all
				for _, c := range contract {
					t.Run(c.name, func(t *testing.T) {
						t.Parallel()
						c.test(t, a.with(t))
					})
				}
			})
		}
	})
}

// contract is the suite. Its parts run at the same time on one agent, so each
// has service and key names of its own.
var contract = []struct {
	name string
	test func(*testing.T, *api)
}{
	{"registration is seen at once, and its end", registrationSeen},
	{"registration wakes a watch of a missing service", missingServiceBlocks},
	{"status changes wake, notes do not", statusWakes},
	{"maintenance", serviceMaintenance},
	{"the same registration again wakes nobody", idempotent},
	{"a registration keeps status and maintenance, replace-existing-checks removes the others", replaceChecks},
	{"other services wake nobody", othersDoNotWake},
	{"instances are ordered", ordered},
	{"the end of a wait", endOfWait},
	{"an index of the future", futureIndex},
	{"catalog services wakes by names and tags", servicesWake},
	{"key blocks", keyBlocks},
	{"prefix blocks", prefixBlocks},
	{"TTL expires", ttlExpires},
	{"HTTP and TCP checks run", checksRun},
	{"agent health", agentHealth},
	{"hash watch", hashWatch},
	{"two hundred watches", manyWatches},
	{"foreign nodes", foreignNodes},
	{"a renamed service", renamed},
	{"tags of the catalog survive", tagOverride},
}

// woken waits for a blocked answer that has to come because of a change.
func woken(t *testing.T, answer <-chan reply, what string) reply {
	t.Helper()
	select {
	case r := <-answer:
		return r
	case <-time.After(5 * time.Second):
		t.Fatalf("%s did not wake the query", what)
		panic("unreachable")
	}
}

// asleep makes sure that the query ends by its wait, with the index it had.
func asleep(t *testing.T, answer <-chan reply, index uint64, what string) {
	t.Helper()
	if r := woken(t, answer, "the end of the wait"); r.index() != index {
		t.Errorf("%s changed the index from %d to %d", what, index, r.index())
	}
}

func registrationSeen(t *testing.T, a *api) {
	a.register(`{"ID":"seen-1","Name":"seen","Port":80,"Tags":["a"],"Meta":{"k":"v"},"Check":{"TTL":"60s","Status":"passing"}}`)
	es := a.entries("seen")
	if len(es) != 1 || es[0].Service.ID != "seen-1" || *es[0].Service.Port != 80 || es[0].Service.Meta["k"] != "v" || es[0].Node.Node != a.node {
		t.Fatalf("got %+v", es)
	}
	if es[0].Service.Address != "" || es[0].Node.Address != "127.0.0.1" {
		t.Errorf("addresses %q and %q: the service's is empty and the node's counts", es[0].Service.Address, es[0].Node.Address)
	}
	if c := es[0].check("service:seen-1"); c == nil || c.Status != "passing" || c.Name != "Service 'seen' check" || c.Type != "ttl" {
		t.Errorf("check %+v", c)
	}
	if es[0].check("serfHealth") == nil {
		t.Error("the node's own check is missing")
	}
	if len(a.entries("SEEN")) != 1 {
		t.Error("a service is found by its name in any case")
	}
	index := a.get("/v1/health/service/seen").index()
	answer := a.blocked("/v1/health/service/seen", index, 10*time.Second)
	a.ok("PUT", "/v1/agent/service/deregister/seen-1", "")
	if r := woken(t, answer, "the deregistration"); compact(t, r.body) != "[]" || r.index() <= index {
		t.Errorf("after the deregistration: index %d to %d, %s", index, r.index(), r.body)
	}
	if strings.Contains(a.get("/v1/agent/checks").body, "seen-1") {
		t.Error("a check outlived its service")
	}
}

func missingServiceBlocks(t *testing.T, a *api) {
	r := a.get("/v1/health/service/missing")
	if compact(t, r.body) != "[]" {
		t.Fatalf("got %s", r.body)
	}
	answer := a.blocked("/v1/health/service/missing", r.index(), 10*time.Second)
	select {
	case r := <-answer:
		// Consul answers for the whole table, and may be ahead of itself.
		answer = a.blocked("/v1/health/service/missing", r.index(), 10*time.Second)
	case <-time.After(100 * time.Millisecond):
	}
	a.register(`{"Name":"missing"}`)
	for {
		r := woken(t, answer, "the registration")
		if len(decoded[[]entry](r)) == 1 {
			return
		}
		answer = a.blocked("/v1/health/service/missing", r.index(), 10*time.Second)
	}
}

func statusWakes(t *testing.T, a *api) {
	a.register(`{"Name":"status","Check":{"TTL":"60s"}}`)
	r := a.get("/v1/health/service/status")
	for _, step := range []struct{ verb, status string }{{"pass", "passing"}, {"warn", "warning"}, {"fail", "critical"}} {
		answer := a.blocked("/v1/health/service/status", r.index(), 10*time.Second)
		a.ok("PUT", "/v1/agent/check/"+step.verb+"/service:status?note=n-"+step.verb, "")
		woke := woken(t, answer, step.verb)
		c := decoded[[]entry](woke)[0].check("service:status")
		if c.Status != step.status || c.Output != "n-"+step.verb || woke.index() <= r.index() {
			t.Errorf("%s: index %d to %d, %+v", step.verb, r.index(), woke.index(), c)
		}
		r = woke
	}
	answer := a.blocked("/v1/health/service/status", r.index(), 300*time.Millisecond)
	a.ok("PUT", "/v1/agent/check/fail/service:status?note=another", "")
	asleep(t, answer, r.index(), "another note")
	if c := decoded[map[string]check](a.get("/v1/agent/checks"))["service:status"]; c.Output != "another" {
		t.Errorf("the agent itself has output %q", c.Output)
	}
	a.ok("PUT", "/v1/agent/check/update/service:status", `{"Status":"passing","Output":"by update"}`)
	if es := a.entries("status?passing"); len(es) != 1 || es[0].check("service:status").Output != "by update" {
		t.Errorf("after the update: %+v", es)
	}
}

func serviceMaintenance(t *testing.T, a *api) {
	a.register(`{"Name":"maint","Check":{"TTL":"60s","Status":"passing"}}`)
	r := a.get("/v1/health/service/maint")
	answer := a.blocked("/v1/health/service/maint", r.index(), 10*time.Second)
	a.ok("PUT", "/v1/agent/service/maintenance/maint?enable=true&reason=upgrade", "")
	r = woken(t, answer, "maintenance")
	c := decoded[[]entry](r)[0].check("_service_maintenance:maint")
	if c == nil || c.Status != "critical" || c.Notes != "upgrade" || c.Type != "maintenance" {
		t.Fatalf("check %+v", c)
	}
	if len(a.entries("maint?passing")) != 0 {
		t.Error("an instance in maintenance is passing")
	}
	answer = a.blocked("/v1/health/service/maint", r.index(), 300*time.Millisecond)
	a.ok("PUT", "/v1/agent/service/maintenance/maint?enable=true&reason=another", "")
	asleep(t, answer, r.index(), "maintenance that is on already")
	a.ok("PUT", "/v1/agent/service/maintenance/maint?enable=false", "")
	if len(a.entries("maint?passing")) != 1 {
		t.Error("maintenance did not end")
	}
}

func nodeMaintenance(t *testing.T, a *api) {
	a.register(`{"Name":"onnode"}`)
	r := a.get("/v1/health/service/onnode")
	answer := a.blocked("/v1/health/service/onnode", r.index(), 10*time.Second)
	a.ok("PUT", "/v1/agent/maintenance?enable=true", "")
	es := decoded[[]entry](woken(t, answer, "the node's maintenance"))
	c := es[0].check("_node_maintenance")
	if c == nil || c.Status != "critical" || c.Name != "Node Maintenance Mode" || !strings.HasPrefix(c.Notes, "Maintenance mode is enabled for this node, but no reason") {
		t.Errorf("check %+v", c)
	}
	a.ok("PUT", "/v1/agent/maintenance?enable=false", "")
	if a.entries("onnode")[0].check("_node_maintenance") != nil {
		t.Error("the node's maintenance did not end")
	}
}

func idempotent(t *testing.T, a *api) {
	body := `{"Name":"idem","Port":1,"Tags":["x"],"Meta":{"a":"b"},"Weights":{"Passing":5},"Checks":[{"TTL":"60s","Status":"passing"},{"HTTP":"http://127.0.0.1:1/","Interval":"1000h"}]}`
	a.register(body)
	a.ok("PUT", "/v1/agent/check/warn/service:idem:1?note=state", "")
	a.ok("PUT", "/v1/agent/check/warn/service:idem:1?note=output", "")
	// A Consul that has just started compares all it has with the catalog once,
	// and then tells it the newest output; so one change is forgiven.
	for forgiven := true; ; forgiven = false {
		index := a.get("/v1/health/service/idem").index()
		answer := a.blocked("/v1/health/service/idem", index, 300*time.Millisecond)
		a.register(body)
		after := woken(t, answer, "the end of the wait").index()
		if after == index {
			break
		}
		if !forgiven {
			t.Errorf("the same registration changed the index from %d to %d", index, after)
			break
		}
	}
	if w := a.entries("idem")[0].Service.Weights; w.Passing != 5 || w.Warning != 0 {
		t.Errorf("weights %+v, want 5 and what is not said, 0", w)
	}
}

func replaceChecks(t *testing.T, a *api) {
	body := `{"Name":"repl","Check":{"CheckID":"repl-ttl","TTL":"60s"}}`
	a.register(body)
	a.ok("PUT", "/v1/agent/check/pass/repl-ttl?note=mine", "")
	a.ok("PUT", "/v1/agent/check/register", `{"ID":"repl-extra","Name":"extra","ServiceID":"repl","TTL":"60s"}`)
	a.ok("PUT", "/v1/agent/service/maintenance/repl?enable=true", "")
	a.register(body)
	e := a.entries("repl")[0]
	if e.check("repl-ttl").Status != "passing" || e.check("repl-ttl").Output != "mine" || e.check("repl-extra") == nil || e.check("_service_maintenance:repl") == nil {
		t.Errorf("after the same registration: %+v", e.Checks)
	}
	a.ok("PUT", "/v1/agent/service/register?replace-existing-checks=true", body)
	e = a.entries("repl")[0]
	if e.check("repl-ttl").Status != "passing" || e.check("repl-extra") != nil || e.check("_service_maintenance:repl") != nil {
		t.Errorf("after replace-existing-checks: %+v", e.Checks)
	}
}

func othersDoNotWake(t *testing.T, a *api) {
	a.register(`{"Name":"quiet","Check":{"TTL":"60s"}}`)
	a.register(`{"Name":"loud","Check":{"TTL":"60s"}}`)
	index := a.get("/v1/health/service/quiet").index()
	answer := a.blocked("/v1/health/service/quiet", index, 300*time.Millisecond)
	a.ok("PUT", "/v1/agent/check/pass/service:loud", "")
	a.register(`{"ID":"loud-2","Name":"loud"}`)
	a.ok("PUT", "/v1/agent/service/deregister/loud-2", "")
	asleep(t, answer, index, "another service")
}

func ordered(t *testing.T, a *api) {
	for _, id := range []string{"b", "c", "a"} {
		a.register(`{"ID":"ord-` + id + `","Name":"ord"}`)
	}
	if got := ids(a.entries("ord")); got != "ord-a ord-b ord-c" {
		t.Errorf("got %s", got)
	}
	a.ok("PUT", "/v1/catalog/register", `{"Node":"aaa-first","Address":"10.0.0.1","Service":{"ID":"zz","Service":"ord"}}`)
	if got := ids(a.entries("ord")); got != "zz ord-a ord-b ord-c" {
		t.Errorf("with a second node: got %s", got)
	}
	a.ok("PUT", "/v1/catalog/deregister", `{"Node":"aaa-first"}`)
	if got := ids(a.entries("ord")); got != "ord-a ord-b ord-c" {
		t.Errorf("after the node left: got %s", got)
	}
}

func endOfWait(t *testing.T, a *api) {
	a.register(`{"Name":"wait"}`)
	first := a.get("/v1/health/service/wait")
	from := time.Now()
	asleep(t, a.blocked("/v1/health/service/wait", first.index(), 200*time.Millisecond), first.index(), "nothing")
	if took := time.Since(from); took < 200*time.Millisecond {
		t.Errorf("blocked for %v of 200ms", took)
	}
	// An index that is behind is answered at once.
	if r := a.get("/v1/health/service/wait?index=1&wait=10m"); r.index() != first.index() {
		t.Errorf("index %d, then %d", first.index(), r.index())
	}
	if r := a.get("/v1/health/service/wait?index=0&wait=10m"); r.index() != first.index() {
		t.Errorf("index=0 blocked, or the index went from %d to %d", first.index(), r.index())
	}
}

func futureIndex(t *testing.T, a *api) {
	a.register(`{"Name":"future","Check":{"TTL":"60s"}}`)
	index := a.get("/v1/health/service/future").index()
	const wait = 400 * time.Millisecond
	from := time.Now()
	answer := a.blocked("/v1/health/service/future", index+100_000, wait)
	a.ok("PUT", "/v1/agent/check/pass/service:future", "")
	least := index + 1
	if time.Since(from) >= wait {
		least = index // on a machine that stalls the wait may end before the change
	}
	r := woken(t, answer, "the end of the wait")
	if r.index() < least || r.index() >= index+100_000 {
		t.Errorf("index %d after %d: a future index gives the real one at the end", r.index(), index)
	}
}

func servicesWake(t *testing.T, a *api) {
	// The others of the suite come and go meanwhile, so this looks for its own.
	tags := func(r reply) []string { return decoded[map[string][]string](r)["names"] }
	until := func(what string, want func([]string) bool) {
		t.Helper()
		r := a.get("/v1/catalog/services")
		for deadline := time.Now().Add(5 * time.Second); !want(tags(r)); {
			if time.Now().After(deadline) {
				t.Fatalf("%s: tags %q", what, tags(r))
			}
			r = woken(t, a.blocked("/v1/catalog/services", r.index(), time.Second), what)
		}
	}
	a.register(`{"ID":"n1","Name":"names","Tags":["a"]}`)
	until("a service", func(tags []string) bool { return strings.Join(tags, " ") == "a" })
	a.register(`{"ID":"n2","Name":"names","Tags":["b","a"]}`)
	until("a second instance", func(tags []string) bool { return len(tags) == 2 })
	a.ok("PUT", "/v1/agent/service/deregister/n1", "")
	a.ok("PUT", "/v1/agent/service/deregister/n2", "")
	until("the end", func(tags []string) bool { return tags == nil })
}

func keyBlocks(t *testing.T, a *api) {
	r := a.get("/v1/kv/block/key")
	if r.code != 404 || r.body != "" {
		t.Fatalf("a missing key: %d %q", r.code, r.body)
	}
	answer := a.blocked("/v1/kv/block/key", r.index(), 10*time.Second)
	a.ok("PUT", "/v1/kv/block/key", "one")
	r = woken(t, answer, "the first write")
	for r.code == 404 {
		// Consul's index of a missing key is that of all keys: one that another
		// test has written before the query was there answers it.
		r = woken(t, a.blocked("/v1/kv/block/key", r.index(), 10*time.Second), "the first write")
	}
	if !strings.Contains(r.body, `"Value":"b25l"`) {
		t.Errorf("got %s", r.body)
	}
	answer = a.blocked("/v1/kv/block/key", r.index(), 300*time.Millisecond)
	a.ok("PUT", "/v1/kv/block/key", "one")
	a.ok("PUT", "/v1/kv/block/key2", "another key")
	asleep(t, answer, r.index(), "the same value and another key")
	answer = a.blocked("/v1/kv/block/key", r.index(), 10*time.Second)
	a.ok("DELETE", "/v1/kv/block/key", "")
	if gone := woken(t, answer, "the removal"); gone.code != 404 || gone.index() <= r.index() {
		t.Errorf("after the removal: %d, index %d to %d", gone.code, r.index(), gone.index())
	}
}

func prefixBlocks(t *testing.T, a *api) {
	a.ok("PUT", "/v1/kv/pre/a", "1")
	r := a.get("/v1/kv/pre/?recurse")
	answer := a.blocked("/v1/kv/pre/?recurse", r.index(), 10*time.Second)
	a.ok("PUT", "/v1/kv/pre/b/c", "2")
	r = woken(t, answer, "a new key")
	if got := decoded[[]struct{ Key string }](r); len(got) != 2 || got[1].Key != "pre/b/c" {
		t.Errorf("got %s", r.body)
	}
	answer = a.blocked("/v1/kv/pre/?recurse", r.index(), 300*time.Millisecond)
	a.ok("PUT", "/v1/kv/prefix-not", "3")
	asleep(t, answer, r.index(), "a key outside of the prefix")
	answer = a.blocked("/v1/kv/pre/?keys", r.index(), 10*time.Second)
	a.ok("DELETE", "/v1/kv/pre/?recurse", "")
	if r := woken(t, answer, "the removal of all"); r.code != 404 {
		t.Errorf("after the removal: %d %s", r.code, r.body)
	}
}

func ttlExpires(t *testing.T, a *api) {
	a.register(`{"Name":"ttl","Checks":[{"TTL":"300ms","Status":"passing"},{"TTL":"300ms"}]}`)
	a.ok("PUT", "/v1/agent/check/pass/service:ttl:1?note=last+words", "")
	parts.Eventually(t, 5*time.Second, "the TTL of a passing check does not end", func() bool {
		return a.entries("ttl")[0].check("service:ttl:1").Status == "critical"
	})
	local := decoded[map[string]check](a.get("/v1/agent/checks"))
	if got := local["service:ttl:1"].Output; got != "TTL expired (last output before timeout follows): last words" {
		t.Errorf("output %q", got)
	}
	parts.Eventually(t, 5*time.Second, "the TTL of a critical check does not end", func() bool {
		return decoded[map[string]check](a.get("/v1/agent/checks"))["service:ttl:2"].Output == "TTL expired"
	})
	for {
		from := time.Now()
		a.ok("PUT", "/v1/agent/check/pass/service:ttl:1", "")
		got := a.entries("ttl")[0].check("service:ttl:1").Status
		if got == "passing" {
			return
		}
		if time.Since(from) < 300*time.Millisecond { // else it may have expired again
			t.Fatalf("after a new report: %s", got)
		}
	}
}

func checksRun(t *testing.T, a *api) {
	var mu sync.Mutex
	broken := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case r.URL.Path == "/warn":
			w.WriteHeader(http.StatusTooManyRequests)
		case broken:
			w.WriteHeader(http.StatusInternalServerError)
		}
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.Host, r.UserAgent(), r.Header.Get("X-A"))
	}))
	defer srv.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a.register(`{"Name":"probed","Checks":[
		{"HTTP":"` + srv.URL + `/","Interval":"1s","Header":{"X-A":["v"],"Host":["example.org"]},"Method":"POST"},
		{"HTTP":"` + srv.URL + `/warn","Interval":"1s"},
		{"TCP":"` + l.Addr().String() + `","Interval":"1s"},
		{"TCP":"127.0.0.1:1","Interval":"1s","Status":"passing"},
		{"HTTP":"http://127.0.0.1:1/","Interval":"1s","Status":"passing"}]}`)
	status := func(n int) string { return a.entries("probed")[0].check(fmt.Sprintf("service:probed:%d", n)).Status }
	parts.Eventually(t, 10*time.Second, "the checks did not run", func() bool {
		return status(1) == "passing" && status(2) == "warning" && status(3) == "passing" && status(4) == "critical" && status(5) == "critical"
	})
	e := a.entries("probed")[0]
	want := "HTTP POST " + srv.URL + "/: 200 OK Output: POST example.org Consul Health Check v"
	if got := e.check("service:probed:1").Output; got != want {
		t.Errorf("output %q, want %q", got, want)
	}
	if got := e.check("service:probed:3").Output; got != "TCP connect "+l.Addr().String()+": Success" {
		t.Errorf("output %q", got)
	}
	for _, n := range []string{"service:probed:4", "service:probed:5"} {
		if got := e.check(n).Output; !strings.Contains(got, "connection refused") {
			t.Errorf("%s: output %q", n, got)
		}
	}
	mu.Lock()
	broken = true
	mu.Unlock()
	parts.Eventually(t, 10*time.Second, "the check did not fail", func() bool { return status(1) == "critical" })
	if r := a.put("/v1/agent/check/pass/service:probed:1", ""); r.code != 500 || r.body != `CheckID "service:probed:1" does not have associated TTL` {
		t.Errorf("a report for an HTTP check: %d %s", r.code, r.body)
	}
}

func agentHealth(t *testing.T, a *api) {
	a.register(`{"ID":"ah-1","Name":"ah","Check":{"TTL":"60s","Status":"passing"}}`)
	a.register(`{"ID":"ah-2","Name":"ah","Check":{"TTL":"60s","Status":"passing"}}`)
	for _, c := range []struct {
		verb, status string
		code         int
	}{{"pass", "passing", 200}, {"warn", "warning", 429}, {"fail", "critical", 503}} {
		a.ok("PUT", "/v1/agent/check/"+c.verb+"/service:ah-1", "")
		for _, by := range []string{"id/ah-1", "name/ah"} {
			r := a.get("/v1/agent/health/service/" + by)
			if r.code != c.code || r.header.Get("X-Consul-Reason") != c.status || !strings.Contains(r.body, `"AggregatedStatus":"`+c.status+`"`) {
				t.Errorf("%s %s: %d, reason %q, %s", by, c.verb, r.code, r.header.Get("X-Consul-Reason"), r.body)
			}
			if r := a.get("/v1/agent/health/service/" + by + "?format=text"); r.code != c.code || r.body != c.status {
				t.Errorf("%s %s as text: %d %s", by, c.verb, r.code, r.body)
			}
		}
	}
	a.ok("PUT", "/v1/agent/check/pass/service:ah-1", "") // Consul tells critical or maintenance, whichever it meets
	a.ok("PUT", "/v1/agent/service/maintenance/ah-2?enable=true", "")
	if r := a.get("/v1/agent/health/service/name/ah"); r.code != 503 || r.header.Get("X-Consul-Reason") != "maintenance" {
		t.Errorf("maintenance: %d %s", r.code, r.header.Get("X-Consul-Reason"))
	}
}

func hashWatch(t *testing.T, a *api) {
	a.register(`{"Name":"hash","Port":1}`)
	r := a.get("/v1/agent/service/hash")
	hash := r.header.Get("X-Consul-Contenthash")
	if hash == "" || !strings.Contains(r.body, `"ContentHash":"`+hash+`"`) {
		t.Fatalf("hash %q, %s", hash, r.body)
	}
	watch := func(hash string, wait time.Duration) <-chan reply {
		return a.blocked("/v1/agent/service/hash?hash="+hash, 1, wait)
	}
	a.register(`{"Name":"hash","Port":1}`)
	if r := woken(t, watch(hash, 200*time.Millisecond), "the end of the wait"); r.header.Get("X-Consul-Contenthash") != hash {
		t.Error("the same registration has another hash")
	}
	answer := watch(hash, 10*time.Second)
	a.register(`{"Name":"hash","Port":2}`)
	changed := woken(t, answer, "another port").header.Get("X-Consul-Contenthash")
	if changed == hash {
		t.Error("another registration has the same hash")
	}
	answer = watch(changed, 10*time.Second)
	a.ok("PUT", "/v1/agent/service/deregister/hash", "")
	if r := woken(t, answer, "the deregistration"); r.code != 404 || r.body != "unknown service ID: hash" {
		t.Errorf("after the deregistration: %d %s", r.code, r.body)
	}
}

func manyWatches(t *testing.T, a *api) {
	a.register(`{"Name":"many","Check":{"TTL":"60s"}}`)
	index := a.get("/v1/health/service/many").index()
	var answers []<-chan reply
	for range 200 {
		answers = append(answers, a.blocked("/v1/health/service/many", index, 20*time.Second))
	}
	a.ok("PUT", "/v1/agent/check/pass/service:many", "")
	for _, answer := range answers {
		select {
		case r := <-answer:
			if r.index() <= index {
				t.Errorf("index %d after %d", r.index(), index)
			}
		case <-time.After(15 * time.Second):
			t.Fatal("a watch was not woken")
		}
	}
}

func foreignNodes(t *testing.T, a *api) {
	a.ok("PUT", "/v1/catalog/register", `{"Node":"ext-1","Address":"10.1.1.1","NodeMeta":{"zone":"a"},
		"Service":{"ID":"ext","Service":"ext","Port":1,"Weights":{"Passing":3,"Warning":1}},
		"Checks":[{"CheckID":"ext-check","Name":"c","ServiceID":"ext","Status":"passing"},{"CheckID":"ext-node","Name":"n","Status":"passing"}]}`)
	r := a.get("/v1/health/service/ext")
	e := decoded[[]entry](r)[0]
	if e.Node.Address != "10.1.1.1" || e.Service.Weights.Passing != 3 || len(e.Checks) != 2 || e.check("ext-check").ServiceName != "ext" {
		t.Fatalf("got %+v", e)
	}
	answer := a.blocked("/v1/health/service/ext", r.index(), 10*time.Second)
	a.ok("PUT", "/v1/catalog/register", `{"Node":"ext-1","SkipNodeUpdate":true,"Check":{"CheckID":"ext-node","Name":"n","Status":"critical"}}`)
	r = woken(t, answer, "a check of the node")
	if len(a.entries("ext?passing")) != 0 || len(a.entries("ext?node-meta=zone:a")) != 1 || len(a.entries("ext?node-meta=zone:b")) != 0 {
		t.Error("a critical check of the node counts for its services, and node-meta selects")
	}
	answer = a.blocked("/v1/health/service/ext", r.index(), 10*time.Second)
	a.ok("PUT", "/v1/catalog/register", `{"Node":"ext-1","Address":"10.1.1.2"}`)
	if e := decoded[[]entry](woken(t, answer, "the node's address"))[0]; e.Node.Address != "10.1.1.2" {
		t.Errorf("address %s", e.Node.Address)
	}
	a.ok("PUT", "/v1/catalog/deregister", `{"Node":"ext-1","CheckID":"ext-node"}`)
	if len(a.entries("ext?passing")) != 1 {
		t.Error("the check did not go")
	}
	a.ok("PUT", "/v1/catalog/deregister", `{"Node":"ext-1"}`)
	if len(a.entries("ext")) != 0 || compact(t, a.get("/v1/catalog/node/ext-1").body) != "null" {
		t.Error("the node did not go")
	}
}

func renamed(t *testing.T, a *api) {
	a.register(`{"ID":"ren","Name":"ren-old","Check":{"CheckID":"ren-c","TTL":"60s"}}`)
	a.register(`{"ID":"ren","Name":"ren-new"}`)
	// Not by a watch: a query that begins just after this blocks on a real
	// Consul, which leaves the index of the name that went where it was.
	if es := a.entries("ren-old"); len(es) != 0 {
		t.Errorf("under the old name: %+v", es)
	}
	es := a.entries("ren-new")
	if len(es) != 1 || es[0].check("ren-c") == nil || es[0].check("ren-c").ServiceName != "ren-old" {
		t.Errorf("under the new name: %+v", es)
	}
}

func tagOverride(t *testing.T, a *api) {
	body := `{"Name":"over","Tags":["mine"],"EnableTagOverride":true}`
	a.register(body)
	a.ok("PUT", "/v1/catalog/register", `{"Node":"`+a.node+`","SkipNodeUpdate":true,"Service":{"ID":"over","Service":"over","Tags":["theirs"],"EnableTagOverride":true,"Weights":{"Passing":1,"Warning":1}}}`)
	a.register(body)
	if got := a.entries("over")[0].Service.Tags; strings.Join(got, " ") != "theirs" {
		t.Errorf("tags %q", got)
	}
}

// A client that leaves ends its query. Consul keeps some for their whole wait,
// so this is about ours.
func TestLeavingClientFreesItsQuery(t *testing.T) {
	s, a := dev(t, devcatalog.Options{})
	for _, path := range []string{"/v1/health/service/x", "/v1/catalog/services", "/v1/kv/x", "/v1/kv/?recurse", "/v1/agent/service/x?hash=1"} {
		if strings.HasPrefix(path, "/v1/agent") {
			a.register(`{"Name":"x"}`)
			path = "/v1/agent/service/x?hash=" + a.get("/v1/agent/service/x").header.Get("X-Consul-Contenthash")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			sep := "?"
			if strings.Contains(path, "?") {
				sep = "&"
			}
			_, _ = a.try(ctx, "GET", path+sep+"index=9999999999&wait=5m", "")
		}()
		parts.Eventually(t, 5*time.Second, path+" does not block", func() bool { return s.Blocked() == 1 })
		cancel()
		<-done
		parts.Eventually(t, 5*time.Second, path+" outlives its client", func() bool { return s.Blocked() == 0 })
	}
}
