package app_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/pkg/parts"
)

// reply is an answer with its body read.
type reply struct {
	*http.Response
	body string
}

// send sends one request on a connection of its own.
func send(t testing.TB, req *http.Request) reply {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	return reply{resp, string(b)}
}

func request(t testing.TB, method, url string) reply {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return send(t, req)
}

// readyz asks whether the replica is ready for traffic.
func readyz(r *parts.Replica) (int, error) {
	resp, err := http.Get("http://" + r.Admin + "/readyz")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return resp.StatusCode, nil
}

// TestAnswersOfTheGatewayItself are the requests that no instance can answer.
// Each answer says why in the header, the body, the access log and the
// metrics, and none comes from a route with a shorter prefix.
func TestAnswersOfTheGatewayItself(t *testing.T) {
	t.Parallel()
	bin, consul := binaries(t), parts.StartConsul(t)
	r := bin.StartReplica(t, parts.ReplicaOptions{Config: dependencies(consul, nil) + `
routes:
  - {name: api, match: {path: "/api/**"}, upstream: {service: echo}}
  - {name: sick, match: {path: "/api/sick/**"}, upstream: {service: sick}}
  - {name: unknown, match: {path: "/api/unknown/**"}, upstream: {service: unknown}}
  - {name: reads, match: {path: "/reads/**", methods: [GET, HEAD]}, upstream: {service: echo}}
  - {name: refused, match: {path: "/api/refused/**"}, upstream: {service: refused}}
  - {name: slow, match: {path: "/api/slow/**"}, upstream: {service: echo, timeout: 100ms}}
`})
	bin.StartEcho(t, parts.EchoOptions{Consul: consul.Addr, Name: "echo", ID: "echo-1"})
	consul.Put("/v1/agent/service/register", `{"ID":"sick-1","Name":"sick","Address":"127.0.0.1","Port":9,
"Check":{"TTL":"10m","Status":"critical"}}`)
	consul.Put("/v1/agent/service/register", `{"ID":"refused-1","Name":"refused","Address":"127.0.0.1","Port":`+strconv.Itoa(parts.FreePorts(t, 1)[0])+`}`)
	r.AwaitUsable("echo", 1)
	r.AwaitUsable("refused", 1)
	parts.Eventually(t, patience, "the sick instance is not shown", func() bool { return r.Upstream("sick").Total == 1 })

	tests := []struct {
		method, path string
		status       int
		reason       string
		route        string
		retry        bool
		allow        string
	}{
		{method: "GET", path: "/api/sick/x", status: 503, reason: "no_healthy_instances", route: "sick", retry: true},
		{method: "POST", path: "/api/sick", status: 503, reason: "no_healthy_instances", route: "sick", retry: true},
		{method: "GET", path: "/api/unknown/x", status: 503, reason: "no_instances", route: "unknown", retry: true},
		{method: "GET", path: "/nowhere", status: 404, reason: "no_route", route: "_none"},
		{method: "GET", path: "/apis", status: 404, reason: "no_route", route: "_none"},
		{method: "DELETE", path: "/reads/x", status: 405, reason: "method_not_allowed", route: "_none", allow: "GET, HEAD"},
		{method: "GET", path: "/api/refused/x", status: 502, reason: "upstream_refused", route: "refused"},
		{method: "GET", path: "/api/slow/x?delay=5s", status: 504, reason: "upstream_timeout", route: "slow"},
		{method: "GET", path: "/api/a%2Fb", status: 400, reason: "bad_request", route: "_none"},
	}
	lines := map[string][]string{} // what the access line of a request id has to hold
	for _, tt := range tests {
		t.Run(tt.method+tt.path, func(t *testing.T) {
			count := func() float64 {
				n, _ := r.Metric("proconsul_local_responses_total", `reason="`+tt.reason+`"`, `route="`+tt.route+`"`)
				return n
			}
			before := count()
			got := request(t, tt.method, r.URL(tt.path))
			if got.StatusCode != tt.status {
				t.Errorf("status %d, want %d: %s", got.StatusCode, tt.status, got.body)
			}
			if reason := got.Header.Get("X-Proconsul-Reason"); reason != tt.reason {
				t.Errorf("X-Proconsul-Reason: %q, want %q", reason, tt.reason)
			}
			if id := got.Header.Get("X-Echo-Instance"); id != "" {
				t.Errorf("instance %s answered", id)
			}
			if retry := got.Header.Get("Retry-After"); (retry != "") != tt.retry {
				t.Errorf("Retry-After: %q, want one: %v", retry, tt.retry)
			}
			if allow := got.Header.Get("Allow"); allow != tt.allow {
				t.Errorf("Allow: %q, want %q", allow, tt.allow)
			}
			if typ := got.Header.Get("Content-Type"); typ != "application/problem+json" {
				t.Errorf("Content-Type: %q", typ)
			}
			var problem struct {
				Type, Title, Reason string
				Status              int
				RequestID           string `json:"request_id"`
			}
			if err := json.Unmarshal([]byte(got.body), &problem); err != nil {
				t.Fatalf("body: %v: %s", err, got.body)
			}
			id := got.Header.Get("X-Request-Id")
			if !strings.HasSuffix(problem.Type, "#"+tt.reason) || problem.Title == "" || problem.Status != tt.status || problem.Reason != tt.reason || problem.RequestID != id || id == "" {
				t.Errorf("problem %+v, want reason %s, status %d, request id %q", problem, tt.reason, tt.status, id)
			}
			if after := count(); after != before+1 {
				t.Errorf("proconsul_local_responses_total{reason=%q,route=%q} went from %v to %v", tt.reason, tt.route, before, after)
			}
			lines[id] = []string{`"reason":"` + tt.reason + `"`, `"status":` + strconv.Itoa(tt.status) + `,`, `"method":"` + tt.method + `"`}
		})
	}

	log := ""
	for id, wants := range lines {
		parts.Eventually(t, patience, "no access line has the request id "+id, func() bool {
			if !strings.Contains(log, id) {
				log = r.AccessLog()
			}
			return strings.Contains(log, id)
		})
		for line := range strings.Lines(log) {
			for _, want := range wants {
				if strings.Contains(line, `"request_id":"`+id+`"`) && !strings.Contains(line, want) {
					t.Errorf("access line has no %s: %s", want, line)
				}
			}
		}
	}
}
