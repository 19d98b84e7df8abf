package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/app"
	"github.com/proconsul/proconsul/pkg/parts"
)

// inside is a gateway in the test's own process.
type inside struct {
	t      testing.TB
	app    *app.App
	log    *lines
	access *lines // the access log
	stop   func() // goes down in order; the end of the test does too
	level  *slog.LevelVar

	options config.LoadOptions

	mu   sync.Mutex
	text string // of the configuration that a reload reads
}

// lines is a log that tests read.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const operatorsHead = `version: 1
listen: [{name: public, addr: "127.0.0.1:0"}]
admin: {addr: "127.0.0.1:0", tokens: [{name: sre, role: operator, token: op-secret}, {name: graphs, role: viewer, token: view-secret}]}
shutdown: {delay: 0s, grace: 1s}
`

const operatorsConfig = operatorsHead + `consul: {disabled: true}
upstreams:
  - {name: orders, instances: [{address: "127.0.0.1:7001", weight: 10}, {address: "127.0.0.1:7002", weight: 5}]}
  - {name: orders-again, instances: [{address: "127.0.0.1:7001", weight: 1}, {address: "127.0.0.1:7003", weight: 1}]}
routes:
  - {name: orders, match: {path: "/api/orders/**"}, upstream: {service: orders, strip: /api/orders}, rate_limit: {by: client_ip, limits: [5/1h]}}
  - {name: keyed, match: {path: "/keyed"}, upstream: {service: orders}, rate_limit: {by: api_key, limits: [2/1h]}, headers: {request: {set: [{name: X-Backend-Token, value: hunter2}]}}}
  - {name: again, match: {path: "/again/**"}, upstream: {service: orders-again}}
`

func startInside(t testing.TB, text string) *inside {
	t.Helper()
	return startReading(t, text, config.LoadOptions{Pure: true})
}

// startReading is startInside for a configuration that may name files.
func startReading(t testing.TB, text string, o config.LoadOptions) *inside {
	t.Helper()
	in := &inside{t: t, text: text, options: o, log: &lines{}, access: &lines{}, level: new(slog.LevelVar)}
	cfg, err := in.load()
	if err != nil {
		t.Fatal(err)
	}
	in.app, err = app.New(cfg, app.Options{
		Version: "v0.0.0-test", Log: slog.New(slog.NewTextHandler(in.log, &slog.HandlerOptions{Level: in.level})),
		AccessLog: in.access, Level: in.level, Load: in.load,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- in.app.Run(ctx) }()
	in.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	t.Cleanup(in.stop)
	<-in.app.Ready()
	return in
}

func (in *inside) load() (*config.Config, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return config.Parse("gateway.yaml", []byte(in.text), in.options)
}

func (in *inside) write(text string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.text = text
}

// call sends "METHOD path" to the admin listener; headers are "Name: value".
func (in *inside) call(what, body string, headers ...string) (*http.Response, string) {
	in.t.Helper()
	method, path, _ := strings.Cut(what, " ")
	r, err := http.NewRequest(method, "http://"+in.app.AdminAddr()+path, strings.NewReader(body))
	if err != nil {
		in.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			r.Host = value
		} else {
			r.Header.Set(name, value)
		}
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		in.t.Fatal(err)
	}
	defer resp.Body.Close()
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		b := make([]byte, 6)
		_, err = io.ReadFull(resp.Body, b)
		return resp, string(b)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		in.t.Fatal(err)
	}
	return resp, string(b)
}

const (
	asOperator = "Authorization: Bearer op-secret"
	asViewer   = "Authorization: Bearer view-secret"
)

// ask calls and reads the answer, which has to be 200.
func ask[T any](in *inside, what, body string, headers ...string) T {
	in.t.Helper()
	resp, text := in.call(what, body, append(headers, asOperator)...)
	var v T
	if resp.StatusCode != http.StatusOK {
		in.t.Fatalf("%s: %s: %s", what, resp.Status, text)
	}
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		in.t.Fatalf("%s: %v in %s", what, err, text)
	}
	return v
}

func (in *inside) instance(upstream, id string) admin.Instance {
	in.t.Helper()
	for _, i := range ask[admin.Upstream](in, "GET /api/v1/services/"+upstream, "").Instances {
		if i.ID == id {
			return i
		}
	}
	in.t.Fatalf("%s has no instance %s", upstream, id)
	return admin.Instance{}
}

func instanceAct(id, act string) string {
	return "POST /api/v1/instances/" + url.PathEscape(id) + "/" + act
}

const seven1 = "config/127.0.0.1:7001"

func TestAnOperatorDrainsAnInstanceForAWhile(t *testing.T) {
	in := startInside(t, operatorsConfig)
	done := ask[admin.Done](in, instanceAct(seven1, "drain"), `{"for":"30m","reason":"new kernel"}`)
	if !done.Changed || done.Result != "drained" || done.Actor != "sre" || strings.Join(done.Upstreams, " ") != "orders orders-again" {
		t.Errorf("drained: %+v", done)
	}
	if left := time.Until(done.Until); left < 29*time.Minute || left > 30*time.Minute {
		t.Errorf("it ends in %v, want in 30m", left)
	}
	if i := in.instance("orders", seven1); i.Usable || i.State != "draining" {
		t.Errorf("a drained instance is %s, usable: %v", i.State, i.Usable)
	}
	if done := ask[admin.Done](in, instanceAct(seven1, "drain"), ""); done.Changed || time.Until(done.Until) < 59*time.Minute {
		t.Errorf("drained again: %+v; want no change, and an hour from now", done)
	}

	// A reload does not undo it, not even one that makes the pool anew.
	in.write(strings.ReplaceAll(operatorsConfig, "weight: 5", "weight: 6"))
	ask[admin.Plan](in, "POST /api/v1/reload", "")
	if i := in.instance("orders", seven1); i.Usable {
		t.Error("a reload has undone a drain")
	}
	without, _, _ := strings.Cut(operatorsConfig, "upstreams:")
	in.write(without)
	ask[admin.Plan](in, "POST /api/v1/reload", "")
	in.write(operatorsConfig)
	ask[admin.Plan](in, "POST /api/v1/reload", "")
	parts.Eventually(t, 10*time.Second, "a pool that was made anew has forgotten a drain", func() bool { return !in.instance("orders", seven1).Usable })

	// In one upstream only, and back.
	if done := ask[admin.Done](in, instanceAct(seven1, "undrain"), `{"upstream":"orders"}`); !done.Changed || strings.Join(done.Upstreams, " ") != "orders" {
		t.Errorf("undrained: %+v", done)
	}
	if a, b := in.instance("orders", seven1), in.instance("orders-again", seven1); !a.Usable || b.Usable {
		t.Errorf("usable in orders: %v, in orders-again: %v", a.Usable, b.Usable)
	}
	list := ask[struct{ Overrides []admin.Override }](in, "GET /api/v1/overrides", "").Overrides
	if len(list) != 1 || list[0].Upstream != "orders-again" || list[0].Actor != "sre" || list[0].Kind != "drain" {
		t.Errorf("overrides: %+v", list)
	}
}

func TestOverridesEndByThemselves(t *testing.T) {
	in := startInside(t, operatorsConfig)
	ask[admin.Done](in, instanceAct(seven1, "drain"), `{"for":"1s"}`)
	ask[admin.Done](in, "POST /api/v1/breakers/orders/open", `{"for":"1s"}`)
	ask[admin.Done](in, "POST /api/v1/drain", `{"for":"1s"}`)
	ask[admin.LogLevel](in, "POST /api/v1/log-level", `{"level":"debug","for":"1s"}`)
	if in.level.Level() != slog.LevelDebug {
		t.Error("the level is not debug")
	}
	parts.Eventually(t, 10*time.Second, "an override has not ended", func() bool {
		resp, _ := in.call("GET /readyz", "")
		return in.instance("orders", seven1).Usable && resp.StatusCode == http.StatusOK && in.level.Level() == slog.LevelInfo &&
			ask[admin.Upstream](in, "GET /api/v1/services/orders", "").Breaker.State == "closed" &&
			len(ask[struct{ Overrides []admin.Override }](in, "GET /api/v1/overrides", "").Overrides) == 0
	})
	if _, events := in.call("GET /api/v1/events", ""); !strings.Contains(events, "drain of "+seven1+" is over") {
		t.Errorf("nothing tells that the drain is over: %s", events)
	}
}

func TestAnOperatorEjectsAndRestores(t *testing.T) {
	in := startInside(t, operatorsConfig)
	ask[admin.Done](in, instanceAct(seven1, "eject"), `{"for":"30m","upstream":"orders","reason":"odd answers"}`)
	i := in.instance("orders", seven1)
	if i.Usable || i.State != "ejected" || !strings.Contains(i.EjectedFor, "odd answers") || time.Until(i.EjectedUntil) < 25*time.Minute {
		t.Errorf("ejected: %+v", i)
	}
	if done := ask[admin.Done](in, instanceAct(seven1, "restore"), ""); !done.Changed || done.Result != "restored" {
		t.Errorf("restored: %+v", done)
	}
	if !in.instance("orders", seven1).Usable {
		t.Error("it is not restored")
	}
}

func TestAnOperatorHoldsABreaker(t *testing.T) {
	in := startInside(t, operatorsConfig)
	breaker := func() admin.Breaker {
		return ask[admin.Upstream](in, "GET /api/v1/services/orders", "").Breaker
	}
	ask[admin.Done](in, "POST /api/v1/breakers/orders/open", `{"for":"10m"}`)
	if b := breaker(); b.State != "open" || !b.Forced || time.Until(b.ForcedUntil) < 9*time.Minute {
		t.Errorf("opened: %+v", b)
	}
	resp, err := http.Get("http://" + in.app.Addr("") + "/api/orders/1")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 503 || resp.Header.Get("X-Proconsul-Reason") != "breaker_open" {
		t.Errorf("a request is answered %s", resp.Status)
	}
	ask[admin.Done](in, "POST /api/v1/breakers/orders/close", "")
	if b := breaker(); b.State != "closed" || !b.Forced {
		t.Errorf("closed: %+v", b)
	}
	ask[admin.Done](in, "POST /api/v1/breakers/orders/reset", "")
	if b := breaker(); b.State != "closed" || b.Forced {
		t.Errorf("reset: %+v", b)
	}
}

func TestAnOperatorTakesTheReplicaOutOfService(t *testing.T) {
	in := startInside(t, operatorsConfig)
	ask[admin.Done](in, "POST /api/v1/drain", "")
	if resp, body := in.call("GET /readyz", ""); resp.StatusCode != 503 {
		t.Errorf("readyz: %s %s", resp.Status, body)
	}
	if s := ask[admin.Status](in, "GET /api/v1/status", ""); s.Replica.State != "draining" {
		t.Errorf("the replica is %s", s.Replica.State)
	}
	resp, err := http.Get("http://" + in.app.Addr("") + "/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 404 || !resp.Close {
		t.Errorf("a client is answered %s and kept: %v", resp.Status, !resp.Close)
	}
	ask[admin.Done](in, "POST /api/v1/undrain", "")
	if resp, body := in.call("GET /readyz", ""); resp.StatusCode != 200 {
		t.Errorf("readyz: %s %s", resp.Status, body)
	}
}

// A replica out of service is not in the catalog, and comes back to it.
func TestADrainedReplicaIsDeregistered(t *testing.T) {
	consul := parts.StartConsul(t)
	in := startInside(t, operatorsHead+"consul: {addr: \""+consul.Addr+"\"}\nregistration: {enabled: true, name: gw}\n")
	registered := func() bool {
		resp, err := http.Get("http://" + consul.Addr + "/v1/catalog/service/gw")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return strings.Contains(string(b), "ServiceID")
	}
	parts.Eventually(t, 20*time.Second, "it did not register", registered)
	ask[admin.Done](in, "POST /api/v1/drain", "")
	parts.Eventually(t, 20*time.Second, "a drained replica is still registered", func() bool { return !registered() })
	ask[admin.Done](in, "POST /api/v1/undrain", "")
	parts.Eventually(t, 20*time.Second, "it did not register again", registered)
}

func TestEveryActIsKeptWithItsActor(t *testing.T) {
	in := startInside(t, operatorsConfig)
	in.call(instanceAct(seven1, "drain"), `{"reason":"new kernel"}`, asOperator)
	in.call("POST /api/v1/breakers/nobody/open", "", asOperator)
	in.call("POST /api/v1/ratelimits/reset", `{"route":"keyed","key":"top-secret"}`, asOperator)
	_, events := in.call("GET /api/v1/events", "")
	for _, want := range []string{"drain instance " + seven1 + " for 1h0m0s: new kernel", "open breaker nobody refused", "reset a limit of route keyed", `"actor":"sre"`} {
		if !strings.Contains(events, want) {
			t.Errorf("the events do not tell %q: %s", want, events)
		}
	}
	if log := in.log.String(); strings.Count(log, "actor=sre") < 3 || strings.Contains(log+events, "top-secret") {
		t.Errorf("the log is %s", log)
	}
}

func TestAPlanSaysWhatAReloadWouldChange(t *testing.T) {
	in := startInside(t, operatorsConfig)
	next := strings.NewReplacer(
		"limits: [5/1h]", "limits: [9/1h]",
		"name: again, match", "name: newer, match",
		"hunter2", "hunter3",
		"op-secret", "other-secret",
	).Replace(operatorsConfig)
	p := ask[admin.Plan](in, "POST /api/v1/config/plan", next)
	var got []string
	for _, c := range p.Changes {
		line := c.Action + " " + c.Kind + " " + c.Name
		for _, f := range c.Fields {
			line += " " + f.Path + ": " + f.Was + " -> " + f.Is
		}
		got = append(got, line)
	}
	want := []string{
		"changed route orders rate_limit.limits: [5/1h] -> [9/1h]",
		"changed route keyed headers.request.set[0].value: '***' -> '***'",
		"removed route again",
		"added route newer",
		"changed setting admin tokens[0].token: '***' -> '***'",
	}
	if !p.Valid || strings.Join(got, "\n") != strings.Join(want, "\n") || len(p.NeedsRestart) != 0 {
		t.Errorf("plan (valid: %v, restart: %v):\n%s\nwant:\n%s", p.Valid, p.NeedsRestart, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if p := ask[admin.Plan](in, "POST /api/v1/config/plan", strings.Replace(operatorsConfig, "consul: {disabled: true}", "consul: {disabled: true, token: other}", 1)); strings.Join(p.NeedsRestart, " ") != "consul.token" {
		t.Errorf("a plan that changes what is read at start needs a restart for %v", p.NeedsRestart)
	}
	if p := ask[admin.Plan](in, "POST /api/v1/config/plan", operatorsConfig); !p.Valid || len(p.Changes) != 0 || p.Hash != p.Running {
		t.Errorf("what is served differs from itself: %+v", p)
	}
	// A configuration is judged with all that its routes need.
	keyed := "consumers: [{name: acme, api_keys: [{id: a, sha256: " + strings.Repeat("ab", 32) + "}]}]\n" +
		strings.Replace(operatorsConfig, "routes:", "policies: [{name: keyed, auth: {any_of: [api-key]}}]\nroutes:\n  - {name: guarded, match: {path: /guarded}, use: [keyed], redirect: {to: /x, code: 302}}", 1)
	if p := ask[admin.Plan](in, "POST /api/v1/config/plan", keyed); !p.Valid {
		t.Errorf("a configuration with authentication is judged as %+v", p.Verdict)
	}
	bad := ask[admin.Plan](in, "POST /api/v1/config/plan", "version: 1\nrouts: []\nroutes: [{name: a}]\n")
	if bad.Valid || len(bad.Faults) < 2 || bad.Faults[0].Line != 2 || bad.Faults[0].Code != "PC1004" || bad.Faults[0].Hint == "" {
		t.Errorf("judged as %+v", bad.Verdict)
	}
	if s := ask[admin.Status](in, "GET /api/v1/status", ""); len(s.Routes) != 3 || s.Config.Hash != p.Running {
		t.Errorf("a plan has changed what is served: %+v", s.Config)
	}

	// Neither the metrics nor the pools have heard of it.
	if _, metrics := in.call("GET /metrics", ""); strings.Contains(metrics, "newer") {
		t.Error("a plan has left series in the metrics")
	}
	in.write(next)
	if r := ask[admin.Plan](in, "POST /api/v1/reload", ""); len(r.Changes) != len(want) || r.Running != p.Running || r.Hash != p.Hash {
		t.Errorf("reloaded: %+v", r)
	}
}

// What a configuration refers to is the gateway's, not its author's.
func TestAPlanDoesNotReadTheEnvironmentOut(t *testing.T) {
	t.Setenv("GATEWAY_ONLY", "very-secret")
	in := startInside(t, operatorsConfig)
	for _, text := range []string{
		operatorsHead + "routes: [{name: \"${env:GATEWAY_ONLY}\", redirect: {to: \"/x\", code: 302}}]\n",
		operatorsHead + "upstreams: [{service: a, balance: \"${env:GATEWAY_ONLY}\"}]\n",
	} {
		for _, ask := range []string{"plan", "validate"} {
			if _, body := in.call("POST /api/v1/config/"+ask, text, asOperator); strings.Contains(body, "very-secret") {
				t.Errorf("%s tells %s", ask, body)
			}
		}
	}
}

func TestLimitsAreLookedAtAndGivenBack(t *testing.T) {
	in := startInside(t, operatorsConfig)
	left := func() admin.RateLimit {
		return ask[admin.RateLimit](in, "GET /api/v1/ratelimits?route=keyed&key=k", "")
	}
	send := func() {
		r, _ := http.NewRequest("GET", "http://"+in.app.Addr("")+"/keyed", nil)
		r.Header.Set("X-API-Key", "k")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	for i := range int64(3) {
		want := "allowed"
		if i == 2 {
			want = "limited"
		}
		if l := left(); l.Limits[0].Remaining != 2-i || l.Decision != want || l.By != "api_key" || l.Limits[0].Limit != "2/1h" {
			t.Fatalf("after %d requests: %+v", i, l)
		}
		send()
	}
	top := ask[admin.RateLimits](in, "GET /api/v1/ratelimits/top", "")
	if top.Decisions != 3 || len(top.Top) != 1 || top.Top[0].Route != "keyed" || top.Top[0].Denied != 1 || len(top.Top[0].Key) != 10 || time.Since(top.Top[0].Last) > time.Minute {
		t.Errorf("limited most: %+v", top)
	}
	ask[admin.Done](in, "POST /api/v1/ratelimits/reset", `{"route":"keyed","key":"k"}`)
	if l := left(); l.Limits[0].Remaining != 2 {
		t.Errorf("after a reset: %+v", l)
	}
}

func TestExplainAnswersWhyARequestGoesWhereItGoes(t *testing.T) {
	in := startInside(t, operatorsConfig)
	ask[admin.Done](in, instanceAct(seven1, "eject"), `{"reason":"odd answers"}`)
	e := ask[admin.Explanation](in, "POST /api/v1/explain", `{"url":"https://Shop.test/api/orders/./42?q=1","client_ip":"203.0.113.9"}`)
	if e.Route == nil || e.Route.Name != "orders" || e.Route.Location == "" || e.Request.Path != "/api/orders/42" || e.Request.ClientIP != "203.0.113.9" {
		t.Fatalf("%+v of %+v", e.Route, e.Request)
	}
	if e.Outcome.Answer != "proxied" || e.Send.URL != "http://{instance}/42?q=1" || e.Send.Rewrite != "strip /api/orders" || !e.Send.Retry.Replayable {
		t.Errorf("%+v, %+v", e.Outcome, e.Send)
	}
	c := e.Upstream.Candidates
	if len(c) != 2 || c[0].ID != "config/127.0.0.1:7002" || !c[0].Usable || c[0].Share != 1 || c[1].Usable || !strings.Contains(c[1].Why, "odd answers") || !strings.Contains(c[1].Why, "probe in") {
		t.Errorf("candidates %+v", c)
	}
	limit := e.Steps[len(e.Steps)-1]
	if limit.Name != "rate_limit" || limit.Verdict != "pass" || limit.Limits[0].Remaining != 5 {
		t.Errorf("the last step is %+v", limit)
	}
	_, text := in.call("POST /api/v1/explain", `{"url":"/keyed","headers":["X-API-Key: k"]}`)
	if strings.Contains(text, "hunter2") {
		t.Errorf("it tells a secret of the configuration: %s", text)
	}
	ask[admin.Done](in, "POST /api/v1/breakers/orders/open", "")
	if e := ask[admin.Explanation](in, "POST /api/v1/explain", `{"url":"/keyed"}`); e.Outcome.Answer != "refused" || e.Outcome.Reason != "breaker_open" || e.Outcome.Status != 503 {
		t.Errorf("%+v", e.Outcome)
	}
}
