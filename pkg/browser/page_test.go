package browser_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/proconsul/proconsul/pkg/parts"
)

const hostile = `<script>alert(1)</script><img src=x onerror=alert(2)>"'&{{.}}</pre></details>`

// stage is a gateway on a real Consul with a service of three instances, and
// load on it.
type stage struct {
	consul  *parts.Consul
	gateway *parts.Replica
	echoes  []*parts.Echo
	load    *parts.Load
}

const stageRoutes = `
upstreams: [{service: echo, outlier: {eject_for: 2s}}]
routes:
  - {name: echo, match: {path: "/api/**", methods: [GET]}, upstream: {service: echo, strip: /api}}
  - {name: limited, match: {path: /limited}, upstream: {service: echo}, rate_limit: {by: client_ip, limits: [3/1h]}}
  - {name: admin-only, match: {host: admin.internal, path: "/api/**"}, upstream: {service: echo}}
`

const token = "the-operators-token"

func newStage(t *testing.T) *stage {
	t.Helper()
	bin := binaries(t)
	s := &stage{consul: parts.StartConsul(t)}
	s.gateway = bin.StartReplica(t, parts.ReplicaOptions{Config: s.config(""), Tokens: `[{name: sre, role: operator, token: ` + token + `}, {name: eyes, role: viewer, token: only-looks}]`})
	for i := range 3 {
		s.echoes = append(s.echoes, bin.StartEcho(t, parts.EchoOptions{Consul: s.consul.Addr, Name: "echo", ID: fmt.Sprintf("echo-%d", i+1)}))
	}
	s.gateway.AwaitUsable("echo", 3)
	s.load = parts.StartLoad(t, parts.LoadOptions{URLs: []string{s.gateway.URL("/api/x")}, Workers: 2, Pace: 10 * time.Millisecond})
	return s
}

func (s *stage) config(more string) string {
	return fmt.Sprintf("consul: {addr: %q}\nregistration: {enabled: true}\nshutdown: {delay: 0s, grace: 5s}\n", s.consul.Addr) + stageRoutes + more
}

// page opens the gateway's page and waits until it is alive.
func (s *stage) page(t *testing.T, width, height int64) *tab {
	t.Helper()
	b := open(t, "http://"+s.gateway.Admin+"/", width, height)
	b.until("the instances pass", instance("echo-3")+"?.classList.contains('passing') && document.querySelector('.tile .spark')")
	return b
}

// instance is the row of an instance as an expression.
func instance(id string) string {
	return fmt.Sprintf(`[...document.querySelectorAll("details.inst")].find(e => e.querySelector(".name b").textContent === %q)`, id)
}

// out is whether an instance is out of the pool, as an expression.
func out(id string) string { return "/ejected|critical/.test(" + instance(id) + "?.className)" }

// An instance is killed under load, and comes back: the page says which, why
// and what became of its requests, and when it serves again, while nobody
// touches it.
func TestAnInstanceDiesAndComesBack(t *testing.T) {
	s := newStage(t)
	b := s.page(t, 1280, 900)

	s.echoes[1].Kill()
	took := b.until("echo-2 is out", out("echo-2"))
	t.Logf("%v from the kill to the page", took.Round(time.Millisecond))
	b.until("it says why", "/refused|reset/.test("+instance("echo-2")+".textContent)")
	b.until("it says what became of its requests", "/tried again|failed for the client/.test("+instance("echo-2")+".textContent)")
	b.until("the service is degraded", `document.querySelector("details.svc.degraded .health")?.innerText.includes("2/3")`)
	b.keys("e")
	b.shows("#event-list", "echo-2", "critical")

	s.echoes[1].Start()
	b.keys("s")
	took = b.until("echo-2 passes again", instance("echo-2")+"?.classList.contains('passing')")
	t.Logf("%v from the start to the page", took.Round(time.Millisecond))
	b.until("the service is whole", `document.querySelector("details.svc.ok")`)
	if tally := s.load.Tally(); tally.Failed() > 0 {
		t.Errorf("clients saw failures: %v", tally)
	}
	b.clean()
}

// What operators click and type: folds, filter, keys, deep links, explain.
func TestClicksKeysAndLinks(t *testing.T) {
	s := newStage(t)
	b := s.page(t, 1280, 900)

	// A row opens and shows the check's output, the share and the registration.
	b.click("details.inst > summary .name", "")
	b.until("the details", `document.querySelector("details.inst[open] pre")`)
	b.shows("details.inst[open]", "Agent alive and reachable", "id ", "33 %")
	b.click("details.svc > summary .name", "")
	b.until("the service folds", `!document.querySelector("details.svc").open`)
	b.keys("u")
	b.until("and unfolds", `document.querySelector("details.svc").open`)

	b.keys("/")
	b.until("the filter has the cursor", "document.activeElement.id === 'filter'")
	b.fill("#filter", "echo-3")
	b.until("the filter leaves one", `document.querySelectorAll("details.inst").length === 1`)
	b.keys("nobody")
	b.shows("#service-list", "No service matches.")
	b.keys("\x1b")
	b.until("the filter is gone", `document.querySelectorAll("details.inst").length === 3`)

	b.keys("r")
	b.until("the routes", "location.hash === '#/routes' && !document.getElementById('routes').hidden")
	b.shows("#route-list", "GET /api/**", "admin.internal/api/**", "file", "proconsul.yaml:", "3/1h by client_ip")
	b.click("#route-list a", "echo")
	b.until("a route's upstream leads to the service", "location.hash === '#/services/echo'")

	for range 5 { // two more than the limit has
		resp, err := http.Get(s.gateway.URL("/limited"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	b.keys("l")
	b.shows("#limits", "3/1h by client_ip", "40 %", "2 times")
	b.keys("f")
	b.shows("#fleet", "this one", "No operator overrides anything.")

	// A link from elsewhere.
	b.do(chromedp.Navigate("about:blank"))
	b.do(chromedp.Navigate("http://" + s.gateway.Admin + "/#/services/echo/echo-2"))
	b.until("the linked instance stands out", instance("echo-2")+"?.classList.contains('target')")

	b.keys("x")
	b.until("the explain panel has the cursor", "document.activeElement.id === 'x-url'")
	b.fill("#x-url", "http://gw/api/orders/42?q=1")
	b.fill("#x-headers", "X-Test: 1")
	b.fill("#x-ip", "203.0.113.9")
	b.click("#x-form button", "Explain")
	b.shows("#x-result", "proxied", "GET http://gw/api/orders/42?q=1", "client 203.0.113.9", "admin-only", "echo-1", "echo-3", "strip /api", "no request was sent")
	b.until("the address can be passed on, without the headers", `location.hash === "#/explain/GET/" + encodeURIComponent("http://gw/api/orders/42?q=1")`)
	b.fill("#x-url", "/nowhere")
	b.click("#x-form button", "Explain")
	b.shows("#x-result", "refused 404 no_route")
	b.fill("#x-ip", "not an address")
	b.click("#x-form button", "Explain")
	b.shows("#x-result", "is no address")
	b.do(chromedp.Navigate("about:blank"))
	b.do(chromedp.Navigate("http://" + s.gateway.Admin + "/#/explain/GET/%2Flimited"))
	b.shows("#x-result", "rate limit", "of 3 left", "looked at, nothing taken")
	b.clean()
}

// Acts need a token, which stays in memory; each is asked for twice and ends
// by itself.
func TestOperatorsActs(t *testing.T) {
	s := newStage(t)
	b := s.page(t, 1280, 900)

	act := func() { b.click("#act-go", "") }
	b.click("details.inst .act button", "drain") // of the first
	b.shows("#act", "echo-1 in echo", "no new requests")
	act()
	b.shows("#act-error", "A token is needed")
	b.fill("#act-token", "only-looks")
	act()
	b.shows("#act-error", "needs the role operator")
	b.fill("#act-token", token)
	b.fill("#act-reason", "new kernel")
	act()
	b.until("the dialog closes", "!document.getElementById('act').open")
	b.shows("#note", "drained until")
	b.until("echo-1 drains", instance("echo-1")+"?.classList.contains('draining')")
	b.keys("f")
	b.shows("#override-list", "drain: drained", "echo-1", "by sre: new kernel", "ends in 59m")
	b.click("#override-list button", "end it")
	b.until("the token is not asked for again", "document.getElementById('act').open && !document.getElementById('act-token').checkVisibility()")
	act()
	b.shows("#override-list", "No operator overrides anything.")
	b.keys("s")
	b.until("echo-1 is back", instance("echo-1")+"?.classList.contains('passing')")

	breaker := `document.querySelector("details.svc button.pill").innerText`
	b.click("details.svc button.pill", "")
	b.shows("#act", "the breaker of echo", "breaker_open")
	act()
	b.until("the breaker is open", breaker+".includes('open')")
	b.shows("details.svc", "held open by an operator")
	b.click("details.svc button.pill", "")
	js[any](b, `(() => { const w = document.getElementById("act-what"); w.value = "reset"; w.dispatchEvent(new Event("change")) })()`)
	b.until("a reset needs no end", "!document.getElementById('act-for').checkVisibility()")
	act()
	b.until("the breaker is closed", breaker+".includes('closed')")
	b.keys("e")
	b.shows("#event-list", "by sre", "drain instance", "new kernel", "open breaker echo")

	// Neither storage nor cookies nor the address nor the document have the token.
	if text := js[string](b, "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href, document.documentElement.outerHTML])"); strings.Contains(text, token) {
		t.Error("the page keeps the token where others can read it")
	}
	b.clean()
}

// A configuration with mistakes is refused: the page says so, with every
// reason, until one without is taken over.
func TestARefusedReload(t *testing.T) {
	s := newStage(t)
	b := s.page(t, 1280, 900)
	s.gateway.Configure(s.config("  - {name: lost, match: {path: /lost}, upstream: {service: echo, stripp: /}}\n  - {name: echo, match: {path: /again}, upstream: {service: echo}}\n"))
	b.shows("#refused", "was refused", "Still serving by", "proconsul.yaml:", "stripp", "did you mean", `"echo"`)
	b.shows("#deps", "refused")
	s.gateway.Configure(s.config("  - {name: more, match: {path: /more}, upstream: {service: echo}}\n"))
	b.until("the banner goes", "document.getElementById('refused').hidden")
	b.keys("r")
	b.shows("#route-list", "/more")
	b.clean()
}

// A replica that serves by another configuration than the others stands out on
// the page of each.
func TestADivergedReplicaStandsOut(t *testing.T) {
	s := newStage(t)
	other := strings.Replace(s.config(""), "enabled: true", "enabled: true, meta: {site: b}", 1)
	second := binaries(t).StartReplica(t, parts.ReplicaOptions{Config: other})
	b := s.page(t, 1280, 900)
	b.keys("f")
	b.shows("#deps", "2 replicas", "another configuration")
	b.until("one row of two", `document.querySelectorAll("#peer-list .pill.diverged").length === 1`)
	b.shows("#peer-list", "this one", "serves by another configuration")
	// A reload is told to the others.
	before := second.MustStatus().Config.Hash
	second.Configure(strings.Replace(other, "site: b", "site: c", 1))
	parts.Eventually(t, patience, "the second replica reloads", func() bool { return second.MustStatus().Config.Hash != before })
	b.shows("#peer-list", second.MustStatus().Config.Hash)
	b.clean()
}

// Whatever a service calls itself stays text: no script runs and nothing is
// loaded.
func TestHostileTextStaysText(t *testing.T) {
	s := newStage(t)
	put := func(path string, body map[string]any) {
		t.Helper()
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		s.consul.Put(path, string(text))
	}
	// The one is refused, because its address is another's; the other is shown.
	put("/v1/agent/service/register", map[string]any{"Name": "echo", "ID": hostile, "Port": s.echoes[0].Port, "Address": "127.0.0.1"})
	put("/v1/agent/service/register", map[string]any{"Name": "echo", "ID": "evil", "Port": 1, "Address": "127.0.0.1",
		"Tags": []string{hostile}, "Meta": map[string]string{"version": hostile, "zone": hostile},
		"Checks": []map[string]any{{"CheckID": "hostile", "Name": hostile, "TTL": "1h", "Status": "critical"}}})
	put("/v1/agent/check/update/hostile", map[string]any{"Status": "critical", "Output": hostile})
	b := s.page(t, 1280, 900)
	b.until("it is there", `document.querySelectorAll("details.inst").length === 4`)
	js[any](b, `document.querySelectorAll("details.inst").forEach(d => { d.open = true })`)
	b.until("its tags are shown", `[...document.querySelectorAll(".more .tags")].some(e => e.textContent.includes("<script>alert(1)</script>"))`)
	b.until("and its check's output", `[...document.querySelectorAll(".inst .why")].some(e => e.textContent.includes("<img src=x onerror=alert(2)>"))`)
	js[any](b, "location.hash = '#/rejected'")
	b.shows("#rejected-list", "<script>alert(1)</script>")
	for _, hash := range []string{"#/services/echo/%3Cimg%20src%3Dx%20onerror%3Dalert(3)%3E", "#/routes/%22%3E%3Cscript%3Ealert(4)%3C%2Fscript%3E"} {
		b.do(chromedp.Navigate("about:blank"))
		b.do(chromedp.Navigate("http://" + s.gateway.Admin + "/" + hash))
		b.until("the page is alive", "document.querySelector('.tile .spark')")
	}
	b.do(chromedp.Navigate("about:blank"))
	b.do(chromedp.Navigate("http://" + s.gateway.Admin + "/#/explain/GET/%3Cimg%20src%3Dx%20onerror%3Dalert(5)%3E"))
	b.until("explain answers", "document.getElementById('x-result').innerText.length > 0")
	if n := js[int](b, `document.querySelectorAll("main script, main img, main iframe").length`); n != 0 {
		t.Errorf("hostile text made %d elements", n)
	}
	b.clean()
}

// The page of a gateway that is gone says how old it is, and is current again
// by itself when the gateway is back.
func TestThePageOfAGatewayThatIsGone(t *testing.T) {
	s := newStage(t)
	b := s.page(t, 1280, 900)
	s.gateway.Freeze()
	b.until("the banner", "!document.getElementById('banner').hidden")
	b.shows("#banner", "The gateway does not answer: what you see is", "s old")
	b.shows("#service-list", "echo-1") // what was known stays
	s.gateway.Thaw()
	b.until("the banner goes", "document.getElementById('banner').hidden")
	s.gateway.Kill()
	b.until("the banner comes back", "!document.getElementById('banner').hidden")
	s.gateway.Start()
	b.until("and goes", "document.getElementById('banner').hidden")
	b.shows("#about", s.gateway.MustStatus().Replica.ID) // the new process is followed
}

// Where no stream is to be had, the page polls.
func TestWithoutAStreamThePagePolls(t *testing.T) {
	s := newStage(t)
	for range 64 { // as many as there may be
		resp, err := http.Get("http://" + s.gateway.Admin + "/api/v1/stream")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		go func() { // a viewer that does not read is let go
			for b := make([]byte, 1<<16); ; {
				if _, err := resp.Body.Read(b); err != nil {
					return
				}
			}
		}()
	}
	b := s.page(t, 1280, 900)
	s.echoes[2].Kill()
	b.until("echo-3 is out", out("echo-3"))
	if !js[bool](b, "document.getElementById('banner').hidden") {
		t.Error("a page that polls calls itself stale")
	}
	if resp, err := http.Get("http://" + s.gateway.Admin + "/api/v1/stream"); err != nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("there was a stream to be had: %v %v", resp, err)
	}
}

// Nothing of the page is wider than the screen of a small telephone, light or
// dark.
func TestTheNarrowPage(t *testing.T) {
	s := newStage(t)
	b := s.page(t, 390, 844)
	s.echoes[0].Kill()
	b.until("a long reason", out("echo-1"))
	js[any](b, `document.querySelectorAll("details.inst").forEach(d => { d.open = true })`)
	s.gateway.Configure(s.config("  - {name: " + strings.Repeat("long", 15) + ", match: {pathh: /" + strings.Repeat("x", 200) + "}, upstream: {service: echo}}\n"))
	b.shows("#refused", "was refused")
	for _, view := range []string{"services", "routes", "limits", "fleet", "events", "explain", "rejected"} {
		for _, dark := range []bool{false, true} {
			b.dark(dark)
			js[any](b, "location.hash = '#/"+view+"'")
			b.until(view+" is shown", "!document.getElementById('"+view+"').hidden")
			if w := js[int](b, "document.documentElement.scrollWidth"); w > 390 {
				t.Errorf("%s is %d pixels wide", view, w)
			}
			if !dark {
				b.picture("narrow-" + view)
			}
		}
	}
	b.clean()
}
