package app

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/metrics"
	"github.com/proconsul/proconsul/pkg/parts"
)

// crowd is a gateway in front of 200 services with ten instances each.
type crowd struct {
	app    *App
	rounds atomic.Int64 // of traffic
}

func newCrowd(tb testing.TB) *crowd {
	tb.Helper()
	var text strings.Builder
	text.WriteString("version: 1\nlisten: [{name: public, addr: \"127.0.0.1:0\"}]\nadmin: {addr: \"127.0.0.1:0\"}\nconsul: {disabled: true}\nshutdown: {delay: 0s}\nupstreams:\n")
	for u := range 200 {
		fmt.Fprintf(&text, "  - {name: s%d, instances: [{address: \"10.0.%d.0:80\"}]}\n", u, u)
	}
	text.WriteString("routes:\n")
	for u := range 200 {
		fmt.Fprintf(&text, "  - {name: s%d, match: {path: \"/s%d/**\"}, upstream: {service: s%d}}\n", u, u, u)
	}
	cfg, err := config.Parse("crowd.yaml", []byte(text.String()), config.LoadOptions{Pure: true})
	if err != nil {
		tb.Fatal(err)
	}
	a, err := New(cfg, Options{Log: slog.New(slog.DiscardHandler), AccessLog: io.Discard})
	if err != nil {
		tb.Fatal(err)
	}
	for u, up := range a.upstreams.list() {
		s := discovery.Snapshot{Service: up.config.Name, Index: 1, At: time.Now()}
		for i := range 10 {
			id := fmt.Sprintf("%s-%d", up.config.Name, i)
			s.Instances = append(s.Instances, discovery.Instance{
				ID: fmt.Sprintf("node-%d/%s", i, id), Service: up.config.Name, ServiceID: id, Node: fmt.Sprintf("node-%d", i),
				Address: fmt.Sprintf("10.0.%d.%d:8080", u, i), Status: discovery.StatusPassing, Weight: 1, Version: "v1",
				Tags: []string{"http", "v1"}, Meta: map[string]string{"version": "v1", "team": "shop"},
				Checks: []discovery.Check{{Name: "http", Type: "http", Status: discovery.StatusPassing, Output: "HTTP GET http://10.0.0.1:8080/health: 200 OK Output: ok"}},
			})
		}
		up.pool.Set(s)
	}
	return &crowd{app: a}
}

// close closes what was opened, of an app that does not run.
func (c *crowd) close(tb testing.TB) {
	if err := c.app.stack.unwind(); err != nil {
		tb.Error(err)
	}
}

// move counts 20 requests of every route, two of every instance, at latencies
// that differ from those of the round before.
func (c *crowd) move(tb testing.TB) {
	n := c.rounds.Add(1)
	for u, up := range c.app.upstreams.list() {
		route := c.app.metrics.Route(up.config.Name, up.config.Name)
		for i := range 20 {
			d := time.Duration(1+(int64(u+i)*7+n*13)%90) * time.Millisecond / 2
			p, err := up.pool.Pick()
			if err != nil {
				tb.Error(err)
				return
			}
			p.Done(balancer.Outcome{Latency: d})
			c.app.metrics.Attempt(metrics.Attempt{Upstream: up.config.Name, Route: up.config.Name, Status: 200, Duration: d})
			route.Begin()
			route.End(metrics.Request{Method: "GET", Status: 200, Duration: d, Overhead: 50 * time.Microsecond})
		}
	}
}

// viewer follows the live stream of a page and counts its frames.
type viewer struct {
	conn   net.Conn
	frames atomic.Int64
	bytes  atomic.Int64
}

// follow reads what is sent and looks at no more of it than its length: what
// is measured is the gateway.
func (v *viewer) follow() {
	fmt.Fprintf(v.conn, "GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
	r := bufio.NewReaderSize(v.conn, 128<<10)
	for line := "-"; line != "\r\n"; { // header
		var err error
		if line, err = r.ReadString('\n'); err != nil {
			return
		}
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		size, err := strconv.ParseInt(strings.TrimSpace(line), 16, 32)
		if err != nil {
			return
		}
		if _, err := r.Discard(int(size) + len("\r\n")); err != nil {
			return
		}
		v.bytes.Add(size)
		if size > 10_000 { // each event is a chunk; that of the reconnection time is a small one
			v.frames.Add(1)
		}
	}
}

// fiveViewers returns what five viewers of the crowd's page cost the process
// for each frame, which there is one of in a second, while all counters move.
// What the viewers themselves do is in it.
func fiveViewers(tb testing.TB, frames int64) time.Duration {
	tb.Helper()
	c := newCrowd(tb)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.app.Run(ctx) }()
	moved := make(chan struct{})
	go func() {
		defer close(moved)
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			c.move(tb)
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	var viewers [5]viewer
	followed := make(chan struct{}, len(viewers))
	defer func() {
		cancel()
		<-moved
		for i := range viewers {
			if viewers[i].conn != nil {
				viewers[i].conn.Close()
				<-followed
			}
		}
		if err := <-ended; err != nil {
			tb.Error(err)
		}
	}()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	until := func(what string, seen func() bool) {
		tb.Helper()
		for end := time.Now().Add(2 * time.Minute); !seen(); <-tick.C {
			if time.Now().After(end) {
				tb.Fatalf("never: %s", what)
			}
		}
	}
	seen := func() int64 {
		least := viewers[0].frames.Load()
		for i := range viewers {
			least = min(least, viewers[i].frames.Load())
		}
		return least
	}
	// span returns the processor time and the rounds of traffic until done.
	span := func(what string, done func() bool) (used time.Duration, rounds int64) {
		before, r := parts.CPU(tb), c.rounds.Load()
		until(what, done)
		return parts.CPU(tb) - before, c.rounds.Load() - r
	}

	until("traffic", func() bool { return c.rounds.Load() >= 2 })
	began := c.rounds.Load()
	alone, rounds := span("rounds without viewers", func() bool { return c.rounds.Load() >= began+frames/2 })
	perRound := alone / time.Duration(rounds)
	for i := range viewers {
		conn, err := net.Dial("tcp", c.app.AdminAddr())
		if err != nil {
			tb.Fatal(err)
		}
		viewers[i].conn = conn
		go func() { viewers[i].follow(); followed <- struct{}{} }()
	}
	until("first frames", func() bool { return seen() >= 1 })
	first, size := seen(), viewers[0].bytes.Load()
	looked, more := span("frames", func() bool { return seen() >= first+frames })
	got := seen() - first
	cost := (looked - time.Duration(more)*perRound) / time.Duration(got)
	tb.Logf("%d frames of %d KB to five viewers: %v each beside %v of traffic a second", got, (viewers[0].bytes.Load()-size)/got/1024, cost.Round(10*time.Microsecond), perRound.Round(10*time.Microsecond))
	return cost
}

// The page costs the gateway next to nothing: with 200 services and 2,000
// instances, all with traffic, five viewers are to cost less than a hundredth of
// a core, 10 ms a second. BenchmarkFiveViewers measures that; this is the guard,
// on processor time and with room for whatever else the machine does.
func TestFiveViewersCostLittle(t *testing.T) {
	most := 40 * time.Millisecond
	if raced {
		most *= 10
	}
	if cost := fiveViewers(t, 4); cost > most {
		t.Errorf("five viewers cost %v of a core each second, want less than %v", cost, most)
	}
}

// Gathering a status allocates for the rows themselves, and for one thing more
// of each instance, its checks: nothing that rests is made anew each second.
func TestGatheringAllocatesLittle(t *testing.T) {
	c := newCrowd(t)
	defer c.close(t)
	c.move(t)
	c.app.status() // what a configuration is in words is kept
	if n := testing.AllocsPerRun(5, func() { c.app.status() }); n > 3500 {
		t.Errorf("%.0f allocations for a status of 2,000 instances, want less than 3,500", n)
	}
}

// BenchmarkStatus is what one look of all viewers together costs the gateway
// beside the encoding (pkg/admin has that). It happens once a second.
func BenchmarkStatus(b *testing.B) {
	c := newCrowd(b)
	defer c.close(b)
	for range 10 {
		c.move(b)
	}
	b.ReportAllocs()
	for b.Loop() {
		if s := c.app.status(); len(s.Upstreams) != 200 || len(s.Upstreams[0].Instances) != 10 {
			b.Fatal("not the whole status")
		}
	}
}

// BenchmarkFiveViewers reports the processor time that five viewers of the
// page cost in a second, with 2,000 instances whose counters all move.
func BenchmarkFiveViewers(b *testing.B) {
	var sum time.Duration
	for b.Loop() {
		sum += fiveViewers(b, 20)
	}
	b.ReportMetric(float64(sum.Microseconds())/1000/float64(b.N), "cpu-ms/s")
	b.ReportMetric(0, "ns/op") // most of it is waiting
}
