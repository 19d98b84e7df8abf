package admin_test

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/admin"
)

func TestStatusSaysEverything(t *testing.T) {
	f := start(t)
	f.events.Append(admin.Event{Kind: "instance", Message: "orders-2 turned critical"})
	resp, body := f.do("GET /api/v1/status")
	if resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("content type %q", resp.Header.Get("Content-Type"))
	}
	s := decode[admin.Status](t, body)
	orders := s.Upstreams[0]
	if len(s.Upstreams) != 2 || orders.Name != "orders" {
		t.Fatalf("upstreams are not sorted: %s", body)
	}
	if orders.Total != 4 || orders.Usable != 2 || orders.Health != "degraded" || !slices.Equal(orders.Routes, []string{"orders"}) {
		t.Errorf("orders %+v", orders)
	}
	if s.Upstreams[1].Health != "empty" {
		t.Errorf("users without instances is %q", s.Upstreams[1].Health)
	}
	if in := orders.Instances; in[0].Share != .8333 || in[1].Share != 0 || in[2].Share != 0 || in[3].Share != .1667 {
		t.Errorf("shares %v %v %v %v; want 5/6, 0, 0, 1/6", in[0].Share, in[1].Share, in[2].Share, in[3].Share)
	}
	if n := len(orders.Instances[1].Checks[0].Output); n > 4200 {
		t.Errorf("a check's output has %d bytes", n)
	}
	if s.Consul.AgeSeconds < 3 || s.Consul.AgeSeconds > 60 || s.Replica.Now.IsZero() || s.Replica.UptimeSeconds <= 0 {
		t.Errorf("age %v, now %v, uptime %v", s.Consul.AgeSeconds, s.Replica.Now, s.Replica.UptimeSeconds)
	}
	if len(s.Events) != 1 || len(s.Rejected) != 1 || len(s.Routes) != 2 || s.Routes[1].Order != 1 {
		t.Errorf("events %v, rejected %v, routes %v", s.Events, s.Rejected, s.Routes)
	}
	for _, want := range []string{`"rate":412.35`, `"p50_ms":4,`, `"ejected_until":`, `"breaker":{"state":"open"}`, `"instances":[]`} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in %s", want, body)
		}
	}
	if _, pretty := f.do("GET /api/v1/status?pretty"); !strings.Contains(pretty, "\n  \"replica\"") {
		t.Error("?pretty does not indent")
	}
}

func TestEmptyStatusHasListsNotNull(t *testing.T) {
	f := start(t, func(o *admin.Options) {
		o.Status = func() admin.Status {
			return admin.Status{Upstreams: []admin.Upstream{{Name: "a", Stats: admin.Stats{Rate: math.NaN(), ErrorShare: math.Inf(1)}}}}
		}
	})
	_, body := f.do("GET /api/v1/status")
	if strings.Contains(body, "null") {
		t.Errorf("null in %s", body)
	}
	if resp, _ := f.do("GET /"); resp.StatusCode != 200 {
		t.Errorf("page %d", resp.StatusCode)
	}
}

func TestViews(t *testing.T) {
	f := start(t)
	for i := range 3 {
		f.events.Append(admin.Event{Kind: "instance", Message: fmt.Sprint(i)})
	}
	tests := []struct {
		path, want string
		code       int
	}{
		{"/api/v1/services", `"name":"orders"`, 200},
		{"/api/v1/services/orders", `"n1/orders-1"`, 200},
		{"/api/v1/services/nobody", `"unknown_service"`, 404},
		{"/api/v1/services/", `"unknown_service"`, 404},
		{"/api/v1/routes", `"location":"proconsul.yaml:41"`, 200},
		{"/api/v1/routes", `"port 0 is not a port"`, 200},
		{"/api/v1/routes/orders", `"upstream":"orders"`, 200},
		{"/api/v1/routes/hello:shop.example.com/hello", `"redirect":"https://example.com"`, 200},
		{"/api/v1/routes/nothing", `"unknown_route"`, 404},
		{"/api/v1/instances", `"upstream":"orders","id":"n1/orders-1"`, 200},
		{"/api/v1/instances?service=users", `"instances":[]`, 200},
		{"/api/v1/instances?service=nobody", `"unknown_service"`, 404},
		{"/api/v1/events", `"last":3`, 200},
		{"/api/v1/events?since=2", `{"last":3,"events":[{"seq":3,`, 200},
		{"/api/v1/events?since=3", `{"last":3,"events":[]}`, 200},
		{"/api/v1/events?since=99999999999", `"events":[]`, 200},
		{"/api/v1/events?limit=1", `"events":[{"seq":3,`, 200},
		{"/api/v1/events?since=-1", `"bad_request"`, 400},
		{"/api/v1/events?limit=many", `"bad_request"`, 400},
	}
	for _, tt := range tests {
		resp, body := f.do("GET " + tt.path)
		if resp.StatusCode != tt.code || !strings.Contains(body, tt.want) {
			t.Errorf("%s: %d, want %d with %s: %s", tt.path, resp.StatusCode, tt.code, tt.want, body)
		}
	}
}

func TestMillis(t *testing.T) {
	b, err := json.Marshal(admin.Latency{P50: admin.Millis(1234567 * time.Nanosecond)})
	if err != nil || string(b) != `{"p50_ms":1.235,"p95_ms":0,"p99_ms":0}` {
		t.Errorf("%s, %v", b, err)
	}
	var l admin.Latency
	if err := json.Unmarshal(b, &l); err != nil || time.Duration(l.P50) != 1235*time.Microsecond {
		t.Errorf("%v, %v", time.Duration(l.P50), err)
	}
}

func TestEventsAreARing(t *testing.T) {
	e := admin.NewEvents(3)
	if got := e.Since(0, 10); len(got) != 0 || e.Last() != 0 {
		t.Errorf("a new ring has %v", got)
	}
	for i := range 5 {
		e.Append(admin.Event{Message: fmt.Sprint(i)})
	}
	seqs := func(list []admin.Event) (out []uint64) {
		for _, ev := range list {
			out = append(out, ev.Seq)
		}
		return out
	}
	for _, tt := range []struct {
		since uint64
		limit int
		want  []uint64
	}{{0, 10, []uint64{3, 4, 5}}, {4, 10, []uint64{5}}, {5, 10, nil}, {9, 10, nil}, {0, 2, []uint64{4, 5}}, {1, 0, []uint64{3, 4, 5}}} {
		if got := seqs(e.Since(tt.since, tt.limit)); !slices.Equal(got, tt.want) {
			t.Errorf("since %d limit %d: %v, want %v", tt.since, tt.limit, got, tt.want)
		}
	}
	e.Append(admin.Event{Message: strings.Repeat("ä", 5000)})
	last := e.Since(5, 1)[0]
	if len(last.Message) > 1100 || !strings.HasSuffix(last.Message, "ä…") || last.Severity != admin.Info || last.At.IsZero() {
		t.Errorf("event %d bytes, severity %q, at %v", len(last.Message), last.Severity, last.At)
	}
}
