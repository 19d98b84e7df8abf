package chaos_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/proconsul/proconsul/pkg/parts"
)

// rolling replaces three instances one by one while requests come. end takes
// an old one away once its successor serves.
func (s *scene) rolling(end func(*parts.Echo)) {
	s.Helper()
	list, gw := s.three(options)
	tr := s.traffic(gw.Addr, mixed("/"))
	began := time.Now()
	for i, old := range list {
		e := s.echo(fmt.Sprintf("v2-%d", i+1))
		tr.awaitFrom(e.ID)
		end(old)
		s.awaitOut(gw, old.ID)
		tr.await(rate() / 2)
	}
	s.note("three instances replaced in %.1f s", time.Since(began).Seconds())
	s.awaitWhole(gw, 3)
	s.end(tr)
}

func rollingGraceful(s *scene) { s.rolling((*parts.Echo).Stop) }

// rollingKilled leaves the dead to Consul and to the gateway's own traffic.
func rollingKilled(s *scene) {
	s.mayFail = sentTo("upstream_reset")
	s.rolling((*parts.Echo).Kill)
}

// rollingAtOnce replaces all three in one step, as a blue-green deploy does.
func rollingAtOnce(s *scene) {
	list, gw := s.three(options)
	tr := s.traffic(gw.Addr, mixed("/"))
	for i := range list {
		e := s.echo(fmt.Sprintf("v2-%d", i+1))
		tr.awaitFrom(e.ID)
	}
	var wg sync.WaitGroup
	for _, old := range list {
		wg.Go(old.Stop)
	}
	wg.Wait()
	s.awaitWhole(gw, 3)
	tr.await(rate())
	s.end(tr)
}

// scaleToZero ends every instance in order and starts them again. What comes
// while nobody is there is told so at once.
func scaleToZero(s *scene) {
	list, gw := s.three(options)
	tr := s.traffic(gw.Addr, mixed("/"))
	for _, e := range list[1:] {
		e.Stop()
	}
	none := time.Now()
	list[0].Stop()
	eventually(s, "the pool is not empty", func() bool { return len(gw.Upstream(s.service).Instances) == 0 })
	empty := time.Now()
	tr.await(s.fault() / 2)
	if err := ready(gw); err != nil {
		s.Errorf("a gateway is not ready because a service is gone: %v", err)
	}
	back := time.Now()
	list[0].Start()
	tr.awaitFrom(list[0].ID)
	s.windows = append(s.windows, window{none, time.Now()})
	s.recovered(back)
	for _, e := range list[1:] {
		e.Start()
	}
	s.awaitWhole(gw, 3)
	tr.await(rate())
	s.end(tr)
	for i := range s.results {
		r := &s.results[i]
		if r.began.After(empty) && r.end().Before(back) && (r.status != http.StatusServiceUnavailable || r.reason != "no_instances") {
			s.Errorf("with no instance registered: %s", r.failure())
			break
		}
	}
}

// replicasRestart restarts two replicas of the gateway in turn, twice, behind
// a balancer that knows nothing but their readiness.
func replicasRestart(s *scene) {
	for _, id := range []string{"1", "2", "3"} {
		s.echo(id)
	}
	front := parts.StartFront(s)
	config := s.config(s.agent.Addr, options, "registration: {enabled: true, name: "+s.service+"-gateway}")
	for range 2 {
		r := s.replica(config)
		r.AwaitUsable(s.service, 3)
		front.Add(r.Addr, "http://"+r.Admin+"/readyz")
	}
	eventually(s, "the balancer does not see the replicas", func() bool { return front.Up() == 2 })
	// Requests that are under way for a while, too: they have to be let finish.
	tr := s.traffic(front.Addr, append(mixed("/"), shot{method: http.MethodGet, path: "/?delay=400ms"}))
	for range 2 {
		for _, r := range s.replicas {
			down := time.Now()
			r.Signal(syscall.SIGTERM)
			if code := r.Wait(time.Minute); code != 0 {
				s.Errorf("a replica ended with %d", code)
			}
			r.Start()
			eventually(s, "the balancer does not see the replica again", func() bool { return front.Up() == 2 })
			s.recovered(down)
			tr.await(rate() / 2)
		}
	}
	s.end(tr)
}

// reloads changes the configuration under load, by file and by signal, to good
// ones and to bad ones.
func reloads(s *scene) {
	_, gw := s.three(options)
	tr := s.traffic(gw.Addr, mixed("/"))
	good := s.config(s.agent.Addr, options)
	other := good + `  - {name: extra, match: {path: "/extra/**"}, upstream: {service: ` + s.service + "}}\n"
	other = strings.Replace(other, "response: 1s", "response: 1100ms", 1)
	n := 10
	if *full {
		n = 60
	}
	for i := range n {
		switch i % 3 {
		case 0:
			gw.Configure(other)
			s.awaitConfig(gw, 2)
		case 1:
			gw.Configure(good)
			s.awaitConfig(gw, 1)
		case 2:
			gw.Configure(other + "  - {name: \"\"}\n")
			gw.Signal(syscall.SIGHUP)
			eventually(s, "nobody is told that the configuration was refused", func() bool { return gw.MustStatus().Config.State == "refused" })
		}
	}
	for _, in := range gw.Upstream(s.service).Instances {
		if in.Requests == 0 {
			s.Errorf("%s: its counters have not survived", in.ID)
		}
	}
	s.end(tr)
	s.note("%d reloads, a third of them refused", n)
}

// awaitConfig waits until the gateway serves so many routes, and refuses
// nothing.
func (s *scene) awaitConfig(r *parts.Replica, routes int) {
	s.Helper()
	eventually(s, fmt.Sprintf("the configuration with %d routes is not taken over", routes), func() bool {
		st := r.MustStatus()
		return len(st.Routes) == routes && st.Config.State == "ok"
	})
}

// aborts are clients that leave: before the answer, and in the middle of it.
func aborts(s *scene) {
	_, gw := s.three(options)
	shots := append(mixed("/"),
		shot{method: http.MethodGet, path: "/?delay=500ms", abort: 20 * time.Millisecond, share: 3},
		shot{method: http.MethodGet, path: "/stream?n=100&every=20ms", abort: 50 * time.Millisecond, share: 3},
		shot{method: http.MethodGet, path: "/?size=8MiB", abort: 3 * time.Millisecond, share: 1},
		shot{method: http.MethodPost, path: "/?delay=500ms", body: strings.Repeat("x", 100_000), abort: 5 * time.Millisecond, share: 2})
	tr := s.traffic(gw.Addr, shots)
	tr.await(2 * s.fault())
	u := gw.Upstream(s.service)
	if u.Usable != 3 || u.Breaker.State != "closed" {
		s.Errorf("clients that leave have cost instances: %d usable, breaker %s", u.Usable, u.Breaker.State)
	}
	s.end(tr)
	eventually(s, "requests of clients that have left are still under way", func() bool { return gw.Upstream(s.service).InFlight == 0 })
	left := 0
	for i := range s.results {
		if r := &s.results[i]; r.shot.abort > 0 && !r.ok() {
			left++
		}
	}
	s.note("%d clients left", left)
}
