package browser_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/performance"

	"github.com/proconsul/proconsul/pkg/admin"
)

// crowd is the status of a gateway in front of many: 200 services with ten
// instances each, every counter of which moves between any two looks.
func crowd() func() admin.Status {
	var mu sync.Mutex
	n := uint64(0)
	return func() admin.Status {
		mu.Lock()
		defer mu.Unlock()
		n++
		s := admin.Status{Replica: admin.Replica{ID: "gw-1", State: "ready"}, Config: admin.Config{Hash: "9f3c1a2", State: "ok"},
			Consul: admin.Dependency{State: "up"}, Redis: admin.Dependency{State: "up"}, TLS: admin.Dependency{State: "disabled"},
			Traffic: admin.Traffic{Stats: admin.Stats{Requests: n * 4000, Rate: float64(4000 + n%100)}}}
		for u := range 200 {
			name := fmt.Sprintf("service-%03d", u)
			up := admin.Upstream{Name: name, Service: name, Breaker: admin.Breaker{State: "closed"}, Stats: admin.Stats{Requests: n * 20, Rate: float64(20 + n%7)}}
			for i := range 10 {
				in := admin.Instance{ID: fmt.Sprintf("node-%d/%s-%d", i, name, i), Address: fmt.Sprintf("10.0.%d.%d:8080", u, i), Status: "passing", State: "passing", Usable: true,
					Weight: 1, EffectiveWeight: 1, Requests: n * 2, Rate: float64(n%50) / 10, Ramp: 1, Tags: []string{"http", "v1"}, Version: "v1",
					Latency: admin.Latency{P50: admin.Millis(time.Duration(n%9) * time.Millisecond), P99: admin.Millis(time.Duration(n%90) * time.Millisecond)},
					Checks:  []admin.Check{{Name: "http", Status: "passing", Output: "HTTP GET: 200 OK"}}}
				if u == 7 && i == 3 {
					in.State, in.Usable, in.EjectedFor = "ejected", false, "3 connection errors in a row"
				}
				up.Instances = append(up.Instances, in)
			}
			s.Upstreams = append(s.Upstreams, up)
			s.Routes = append(s.Routes, admin.Route{Name: name, Path: "/" + name + "/**", Upstream: name, Source: "file", Location: fmt.Sprintf("proconsul.yaml:%d", u), Stats: up.Stats})
		}
		return s
	}
}

// The page of a gateway in front of 2,000 instances is cheap for who looks at
// it: less than 100 ms of scripts a second, folded and unfolded.
func TestTheCrowdedPageIsCheap(t *testing.T) {
	a := admin.New(admin.Options{Status: crowd()})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := a.Server()
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx)
		_ = srv.Close()
		<-done
		http.DefaultClient.CloseIdleConnections()
	})
	b := open(t, "http://"+l.Addr().String()+"/", 1280, 900)
	b.until("200 services are shown", `document.querySelectorAll("details.svc").length === 200 && document.querySelector(".tile .spark")`)
	call(b, performance.Enable, performance.EnableParams{TimeDomain: performance.EnableTimeDomainThreadTicks})

	measure := func(what string) {
		t.Helper()
		before, began := metricsOf(b), time.Now()
		goOn(b, 8)
		after, took := metricsOf(b), time.Since(began).Seconds()
		per := func(name string) float64 { return (after[name] - before[name]) * 1000 / took }
		t.Logf("%s: %.1f ms of work a second, of which layout and styles %.1f ms, %.0f nodes, %.1f MB of heap", what,
			per("TaskDuration"), per("LayoutDuration")+per("RecalcStyleDuration"), after["Nodes"], after["JSHeapUsedSize"]/1e6)
		// Work is scripts, layout, painting and all; by the thread's own clock,
		// so that it does not count what else the machine does.
		if work := per("TaskDuration"); work > 100 || work <= 0 {
			t.Errorf("%s: the page's thread works %.1f ms a second, want less than 100", what, work)
		}
	}
	measure("folded")
	b.keys("u")
	b.until("all are unfolded", `document.querySelectorAll("details.inst").length === 2000`)
	measure("2,000 instances unfolded")
	b.keys("r")
	b.until("the routes", `document.querySelectorAll("#route-list>.row").length === 200`)
	measure("routes")
	b.keys("s")
	b.click("#filter", "")
	b.keys("service-007-3")
	b.until("one is left", `document.querySelectorAll("details.inst").length === 1`)
	b.shows("details.inst", "3 connection errors in a row")
	measure("filtered")
	b.clean()
}

// goOn waits until the page has had so many frames more: each is a point of the
// first tile's line, which has more of them with each.
func goOn(b *tab, frames int) {
	b.t.Helper()
	points := `document.querySelector(".tile .spark path.area").getAttribute("d")?.split("L").length ?? 0`
	began := js[int](b, points)
	deadline := time.Now().Add(patience)
	for js[int](b, points) < began+frames {
		if time.Now().After(deadline) {
			b.t.Fatalf("the page has had no %d frames", frames)
		}
		time.Sleep(250 * time.Millisecond) // seldom, because asking costs the page what is measured
	}
}

func metricsOf(b *tab) map[string]float64 {
	b.t.Helper()
	out := map[string]float64{}
	for _, m := range call(b, performance.GetMetrics, cdp.Empty{}).Metrics {
		out[m.Name] = m.Value
	}
	return out
}
