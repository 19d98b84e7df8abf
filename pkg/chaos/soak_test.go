package chaos_test

import (
	"bufio"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/proconsul/proconsul/pkg/parts"
)

// soon is options with connections that go soon after their use, so that what
// is left can be told from what is kept.
const soon = "timeout: {connect: 500ms, response: 1s, idle: 1s}, outlier: {eject_for: 2s}"

// What may differ for reasons of the moment: the goroutines of a connection or
// two, and the histograms that the first answer of a class makes.
const (
	fewGoroutines = 8
	fewSeries     = 60
)

// size is what a replica holds.
type size struct{ goroutines, series, memory float64 }

func (s *scene) size(r *parts.Replica) size {
	s.Helper()
	g, _ := r.Metric("go_goroutines")
	m, _ := r.Metric("process_resident_memory_bytes")
	return size{goroutines: g, series: float64(s.series(r)), memory: m}
}

// series counts what a scrape brings.
func (s *scene) series(r *parts.Replica) (n int) {
	s.Helper()
	resp, err := http.Get("http://" + r.Admin + "/metrics")
	if err != nil {
		s.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if !strings.HasPrefix(lines.Text(), "#") {
			n++
		}
	}
	return n
}

// shrunk fails if a replica keeps what it needed for what is over. Without
// traffic its idle connections are all that may differ.
func (s *scene) shrunk(r *parts.Replica, before size) {
	s.Helper()
	var now size
	s.Cleanup(func() {
		if s.Failed() {
			s.Logf("held %+v, holds %+v", before, now)
		}
	})
	eventually(s, "the replica has not shrunk again", func() bool {
		now = s.size(r)
		return now.goroutines <= before.goroutines+fewGoroutines && now.series <= before.series+fewSeries
	})
	s.note("goroutines %.0f, then %.0f; series %.0f, then %.0f", before.goroutines, now.goroutines, before.series, now.series)
}

// soak is everyday life for a while: all kinds of requests, clients that leave,
// instances that come and go and fail, and reloads. What the gateway holds has
// to come to rest: its last third within a tenth of its middle one.
func soak(s *scene) {
	list, gw := s.three(soon)
	shots := append(mixed("/"),
		shot{method: http.MethodGet, path: "/?size=200KiB"},
		shot{method: http.MethodPost, path: "/", body: strings.Repeat("x", 80_000)},
		shot{method: http.MethodGet, path: "/?delay=300ms", abort: 30 * time.Millisecond})
	s.mayFail = sentTo("upstream_reset")
	tr := s.traffic(gw.Addr, shots)
	long := 18 * time.Second
	if *full {
		long = 5 * time.Minute
	}
	good := s.config(s.agent.Addr, soon)
	var sizes []size
	start := time.Now()
	for i := 0; time.Since(start) < long; i++ {
		switch e := list[i%len(list)]; i % 4 {
		case 0:
			e.Kill()
			tr.await(rate() / 4)
			e.Start()
		case 1:
			id := fmt.Sprintf("%s-passing-by-%d", s.service, i)
			register(s.agent, s.service, id, list[0].Addr)
			tr.await(rate() / 4)
			s.agent.Put("/v1/agent/service/deregister/"+id, "")
		case 2:
			gw.Configure(good + fmt.Sprintf("  - {name: extra, match: {path: \"/extra-%d/**\"}, upstream: {service: %s}}\n", i%8, s.service))
			s.awaitConfig(gw, 2)
		case 3:
			gw.Configure(good)
			s.awaitConfig(gw, 1)
		}
		tr.await(rate() / 4)
		s.awaitPool(gw, 3)
		sizes = append(sizes, s.size(gw))
	}
	gw.Configure(good)
	s.awaitConfig(gw, 1)
	s.end(tr)
	middle, last := largest(sizes[len(sizes)/3:2*len(sizes)/3]), largest(sizes[2*len(sizes)/3:])
	slack := 48e6 // of a short run, in which the race detector's shadow still grows
	if *full {
		slack = 2e6
	}
	if last.memory > middle.memory*1.1+slack {
		s.Errorf("memory grows: %.1f MB, then %.1f MB", middle.memory/1e6, last.memory/1e6)
	}
	if last.series > middle.series+fewSeries {
		s.Errorf("series grow: %.0f, then %.0f", middle.series, last.series)
	}
	s.note("%.0f s: memory %.1f MB, then %.1f MB; series %.0f, then %.0f", time.Since(start).Seconds(),
		middle.memory/1e6, last.memory/1e6, middle.series, last.series)
	s.shrunk(gw, sizes[0])
}

// awaitPool waits until the gateway picks n instances.
func (s *scene) awaitPool(r *parts.Replica, n int) {
	s.Helper()
	eventually(s, fmt.Sprintf("the pool has not come to %d", n), func() bool { return r.Upstream(s.service).Usable == n })
}

// largest is the most that any of the samples holds.
func largest(samples []size) (most size) {
	for _, x := range samples {
		most = size{max(most.goroutines, x.goroutines), max(most.series, x.series), max(most.memory, x.memory)}
	}
	return most
}
