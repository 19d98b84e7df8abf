package app_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/parts"
)

// edgeRoutes are for pages of a shop, whose orders fit a schema in a file.
const edgeRoutes = `
routes:
  - name: orders
    match: {path: "/orders/**", methods: [GET, POST]}
    upstream: {service: echo}
    cors: {origins: ["https://shop.test"], headers: [Content-Type], credentials: true}
    secure_headers: {content_security_policy: "default-src 'none'"}
    compress: {min_size: 200B}
    decompress: {max: 64KiB, ratio: 50}
    validate: {max_body: 32KiB, body_schema: SCHEMA, params: [{name: size, in: query, type: string, pattern: "[0-9]+[A-Z]?i?B?"}]}
`

// TestTheEdgeEndToEnd passes what browsers and clients send through a real
// replica to a real instance.
func TestTheEdgeEndToEnd(t *testing.T) {
	t.Parallel()
	bin, consul := binaries(t), parts.StartConsul(t)
	file := filepath.Join(t.TempDir(), "order.json")
	if err := os.WriteFile(file, []byte(`{"type":"object","required":["n"],"properties":{"n":{"type":"integer"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	r := bin.StartReplica(t, parts.ReplicaOptions{Config: dependencies(consul, nil) + strings.ReplaceAll(edgeRoutes, "SCHEMA", strconv.Quote(file))})
	bin.StartEcho(t, parts.EchoOptions{Consul: consul.Addr, Name: "echo", ID: "echo-1"})
	r.AwaitUsable("echo", 1)

	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	defer client.CloseIdleConnections()
	send := func(method, path, body string, fields ...string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, r.URL(path), strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(fields); i += 2 {
			req.Header.Set(fields[i], fields[i+1])
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b)
	}
	requests := func() float64 { n, _ := r.Metric("proconsul_upstream_requests_total", "echo"); return n }

	before := requests()
	resp, _ := send("OPTIONS", "/orders/1", "", "Origin", "https://shop.test", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type")
	if resp.StatusCode != 204 || resp.Header.Get("Access-Control-Allow-Origin") != "https://shop.test" || resp.Header.Get("X-Echo-Instance") != "" {
		t.Errorf("preflight: %d %v", resp.StatusCode, resp.Header)
	}
	resp, _ = send("OPTIONS", "/orders/1", "", "Origin", "https://evil.test", "Access-Control-Request-Method", "POST")
	if resp.StatusCode != 403 || resp.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("another's preflight: %d %v", resp.StatusCode, resp.Header)
	}
	for body, want := range map[string]int{`{"n":"x"}`: 422, `{"n":1,"n":2}`: 400, `{`: 400, `{"n":1,"x":"` + strings.Repeat("x", 40<<10) + `"}`: 413} {
		resp, text := send("POST", "/orders/1", body, "Content-Type", "application/json", "Origin", "https://shop.test")
		if resp.StatusCode != want || resp.Header.Get("Access-Control-Allow-Origin") == "" {
			t.Errorf("%.20s: %d, want %d: %s", body, resp.StatusCode, want, text)
		}
	}
	if resp, text := send("POST", "/orders/1", "n=1", "Content-Type", "text/plain"); resp.StatusCode != 415 {
		t.Errorf("another type: %d %s", resp.StatusCode, text)
	}
	if resp, text := send("GET", "/orders/1?size=all", ""); resp.StatusCode != 422 || !strings.Contains(text, `"parameter":"size"`) {
		t.Errorf("a parameter: %d %s", resp.StatusCode, text)
	}
	var coded bytes.Buffer
	z := gzip.NewWriter(&coded)
	_, _ = z.Write(bytes.Repeat([]byte(" "), 60<<10))
	_ = z.Close()
	if resp, text := send("POST", "/orders/1", coded.String(), "Content-Type", "application/json", "Content-Encoding", "gzip"); resp.StatusCode != 413 {
		t.Errorf("a bomb: %d %s", resp.StatusCode, text)
	}
	if after := requests(); after != before {
		t.Errorf("%v requests reached the instance that should not have", after-before)
	}

	// What fits reaches it decoded, and comes back coded.
	coded.Reset()
	z.Reset(&coded)
	const order = ` { "n" : 1 } `
	_, _ = io.WriteString(z, order)
	_ = z.Close()
	resp, text := send("POST", "/orders/1", coded.String(), "Content-Type", "application/json", "Content-Encoding", "gzip", "Accept-Encoding", "gzip", "Origin", "https://shop.test")
	h := resp.Header
	if resp.StatusCode != 200 || h.Get("Content-Encoding") != "gzip" || h.Get("X-Frame-Options") != "DENY" || h.Get("Content-Security-Policy") != "default-src 'none'" ||
		h.Get("Via") != "" || h.Get("Strict-Transport-Security") != "" || h.Get("Access-Control-Allow-Credentials") != "true" {
		t.Fatalf("an order: %d %v %s", resp.StatusCode, h, text)
	}
	if vary := strings.Join(h["Vary"], ", "); !strings.Contains(vary, "Origin") || !strings.Contains(vary, "Accept-Encoding") {
		t.Errorf("vary %q", vary)
	}
	plain, err := gzip.NewReader(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	var reply struct {
		BodyBytes int64               `json:"body_bytes"`
		Headers   map[string][]string `json:"headers"`
	}
	if err := json.NewDecoder(plain).Decode(&reply); err != nil || reply.BodyBytes != int64(len(order)) || reply.Headers["Content-Encoding"] != nil {
		t.Errorf("the instance saw %+v, %v", reply, err)
	}

	// A change of the schema's file is taken over by a reload.
	if err := os.WriteFile(file, []byte(`{"type":"object","required":["m"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Configure(dependencies(consul, nil) + strings.ReplaceAll(edgeRoutes, "SCHEMA", strconv.Quote(file)))
	parts.Eventually(t, patience, "the new schema is not in force", func() bool {
		resp, _ := send("POST", "/orders/1", `{"n":1}`, "Content-Type", "application/json")
		return resp.StatusCode == 422
	})
}

// TestAdaptiveConcurrencyShedsTheLowestFirst gives a service of four places many
// times what it can do: its queue stays short, those of low class are turned
// away, and those of high class hardly.
func TestAdaptiveConcurrencyShedsTheLowestFirst(t *testing.T) {
	t.Parallel()
	bin, consul := binaries(t), parts.StartConsul(t)
	r := bin.StartReplica(t, parts.ReplicaOptions{Config: dependencies(consul, nil) + `
upstreams:
  - {service: echo, concurrency: {adaptive: true, min: 2, max: 200, probe: 5s}, timeout: {response: 10s}}
routes:
  - {name: low, match: {path: /low}, upstream: {service: echo}, shed: low}
  - {name: high, match: {path: /high}, upstream: {service: echo}, shed: high}
`})
	bin.StartEcho(t, parts.EchoOptions{Consul: consul.Addr, Name: "echo", ID: "echo-1", Args: []string{"-delay", "50ms", "-places", "4"}})
	r.AwaitUsable("echo", 1)

	low := parts.StartLoad(t, parts.LoadOptions{URLs: []string{r.URL("/low")}, Workers: 40, Pace: 40 * time.Millisecond})
	shed := func() float64 {
		n, _ := r.Metric("proconsul_concurrency_shed_total", "echo", `class="low"`)
		return n
	}
	parts.Eventually(t, patience, "nothing is turned away", func() bool { return shed() > 50 })
	parts.Eventually(t, patience, "the limit stays high", func() bool {
		k := r.Upstream("echo").Concurrency
		return k != nil && k.Limit <= 14 && !k.Probing
	})
	high := parts.StartLoad(t, parts.LoadOptions{URLs: []string{r.URL("/high")}, Workers: 2, Pace: 100 * time.Millisecond})
	high.Await(20) // until the shares have moved
	high.Stop()
	high = parts.StartLoad(t, parts.LoadOptions{URLs: []string{r.URL("/high")}, Workers: 2, Pace: 100 * time.Millisecond})
	high.Await(60)
	h, l := high.Stop(), low.Stop()
	t.Logf("high: %v\nlow: %v\n%+v", h, l, r.Upstream("echo").Concurrency)
	if refused := h.Reasons["concurrency_limited"]; refused*5 > h.Requests {
		t.Errorf("%d of %d requests of high class were turned away", refused, h.Requests)
	}
	if refused := l.Reasons["concurrency_limited"]; refused*4 < l.Requests {
		t.Errorf("only %d of %d requests of low class were turned away", refused, l.Requests)
	}
	if l.Status[http.StatusOK] == 0 || l.Status[http.StatusOK]+l.Reasons["concurrency_limited"] != l.Requests {
		t.Errorf("others than those that were turned away failed: %v", l)
	}

	// The capacity is there again: nothing is turned away any more.
	calm := parts.Fire(t, 40, parts.LoadOptions{URLs: []string{r.URL("/low")}, Workers: 1})
	noFailures(t, calm)
}
