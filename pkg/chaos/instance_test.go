package chaos_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/pkg/parts"
)

func instanceKilled(s *scene) {
	list, gw := s.three(options)
	s.mayFail = sentTo("upstream_reset")
	tr := s.traffic(gw.Addr, mixed("/"))
	list[0].Kill()
	took := s.awaitOut(gw, list[0].ID)
	tr.await(s.fault())
	healed := time.Now()
	list[0].Start()
	tr.awaitFrom(list[0].ID)
	s.recovered(healed)
	s.end(tr)
	s.note("out of the pool after %d ms", took.Milliseconds())
}

func instanceFrozen(s *scene) {
	list, gw := s.three(options)
	s.mayFail = sentTo("upstream_timeout", "upstream_reset")
	tr := s.traffic(gw.Addr, mixed("/"))
	list[0].Freeze()
	took := s.awaitOut(gw, list[0].ID)
	tr.await(s.fault())
	healed := time.Now()
	list[0].Thaw()
	tr.awaitFrom(list[0].ID)
	s.recovered(healed)
	s.end(tr)
	s.note("out of the pool after %d ms", took.Milliseconds())
}

// broken is a scenario in which the wire to the first of three instances
// breaks and is healed again.
func (s *scene) broken(gw *parts.Replica, e *parts.Echo, w *parts.Wire, shots []shot, fault func()) {
	s.Helper()
	tr := s.traffic(gw.Addr, shots)
	start := time.Now()
	fault()
	s.awaitOut(gw, e.ID)
	out := time.Since(start)
	tr.await(s.fault())
	healed := time.Now()
	w.Heal()
	tr.awaitFrom(e.ID)
	s.recovered(healed)
	s.end(tr)
	s.note("out of the pool after %d ms", out.Milliseconds())
}

func refused(s *scene) {
	list, wires, gw := s.threeWired(options)
	s.mayFail = sentTo("upstream_reset") // the first moment resets what is under way
	s.broken(gw, list[0], wires[0], mixed("/"), wires[0].Refuse)
}

func resetHeader(s *scene) {
	list, wires, gw := s.threeWired(options)
	s.mayFail = sentTo("upstream_reset", "upstream_protocol")
	s.broken(gw, list[0], wires[0], mixed("/"), func() { wires[0].CutAnswers(0) })
}

func resetBody(s *scene) {
	list, wires, gw := s.threeWired(options)
	s.mayFail = sentTo("upstream_reset", "upstream_protocol")
	s.broken(gw, list[0], wires[0], mixed("/?size=2000"), func() { wires[0].CutAnswers(1000) })
}

// resetConnections is what a firewall does that forgets its table. Nobody is
// dead, so nobody may be ejected for long; requests on idle connections lose
// nothing at all.
func resetConnections(s *scene) {
	_, wires, gw := s.threeWired(options)
	s.mayFail = sentTo("upstream_reset")
	tr := s.traffic(gw.Addr, mixed("/"))
	for range 5 {
		for _, w := range wires {
			w.ResetConnections()
		}
		tr.await(rate() / 2)
	}
	s.awaitWhole(gw, 3)
	s.end(tr)
}

func blackHole(s *scene) {
	list, wires, gw := s.threeWired(options)
	s.mayFail = sentTo("upstream_timeout", "upstream_reset") // reset: when the wire is healed
	s.broken(gw, list[0], wires[0], mixed("/"), wires[0].Swallow)
	s.patient(2 * time.Second)
}

// blackHoleLong is the same where instances may take their time. The instance
// has to be out long before the first request has run into its timeout, or the
// hole takes in all that the upstream may have in flight.
func blackHoleLong(s *scene) {
	list, wires, gw := s.threeWired("timeout: {connect: 500ms, response: 10s}, outlier: {eject_for: 2s}")
	s.mayFail = sentTo("upstream_timeout", "upstream_reset")
	tr := s.traffic(gw.Addr, mixed("/"))
	start := time.Now()
	wires[0].Swallow()
	s.awaitOut(gw, list[0].ID)
	out := time.Since(start)
	if why := instance(gw, s.service, list[0].ID).EjectedFor; !strings.Contains(why, "picks without an end") {
		s.Errorf("out for %q", why)
	}
	s.note("out of the pool after %d ms", out.Milliseconds())
	tr.await(11 * rate()) // what went into the hole comes out of it by its timeout
	healed := time.Now()
	wires[0].Heal()
	tr.awaitFrom(list[0].ID)
	s.recovered(healed)
	s.end(tr)
}

func partition(s *scene) {
	list, wires, gw := s.threeWired(options)
	s.mayFail = sentTo("upstream_timeout", "upstream_reset")
	s.broken(gw, list[0], wires[0], mixed("/"), wires[0].Drop)
	s.patient(2 * time.Second)
}

// patient fails where the clients as a whole waited longer than a try and its
// retry. The machine may keep a single one waiting for reasons of its own, so
// half as much again is granted.
func (s *scene) patient(limit time.Duration) {
	s.Helper()
	for i := range s.results {
		if r := &s.results[i]; r.took > limit+limit/2 {
			s.Errorf("a request took %v: %s %d %s", r.took, r.shot.name(), r.status, r.reason)
			return
		}
	}
}

func twoOfThree(s *scene) {
	_, wires, gw := s.threeWired(options)
	s.mayFail = sentTo("upstream_timeout", "upstream_reset")
	tr := s.traffic(gw.Addr, mixed("/"))
	wires[0].Refuse()
	wires[1].Swallow()
	tr.await(s.fault())
	wires[0].Heal()
	wires[1].Heal()
	s.awaitWhole(gw, 3)
	s.end(tr)
}

func latency(s *scene) {
	_, wires, gw := s.threeWired(options + ", balance: least_requests")
	tr := s.traffic(gw.Addr, mixed("/"))
	wires[0].Latency(300 * time.Millisecond)
	tr.await(s.fault())
	wires[0].Heal()
	tr.await(rate())
	s.end(tr)
}

// sick is an instance that answers with whatever status it is told to.
type sick struct {
	id     string
	status atomic.Int64
}

func (s *scene) sick(id string) *sick {
	s.Helper()
	k := &sick{id: s.service + "-" + id}
	k.status.Store(http.StatusOK)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("X-Echo-Instance", k.id)
		w.WriteHeader(int(k.status.Load()))
	}))
	s.Cleanup(srv.Close)
	register(s.agent, s.service, k.id, srv.Listener.Addr().String())
	return k
}

func (s *scene) threeSick(upstream string) ([]*sick, *parts.Replica) {
	s.Helper()
	list := []*sick{s.sick("1"), s.sick("2"), s.sick("3")}
	gw := s.replica(s.config(s.agent.Addr, upstream))
	gw.AwaitUsable(s.service, 3)
	return list, gw
}

// listed retries a status, which is for those to ask for whose services mean
// it so.
const listed = options + `, retry: {on: [refused, reset, timeout, "500"]}`

func storm(s *scene) {
	list, gw := s.threeSick(listed)
	s.mayFail = func(r *shotResult) bool { return r.status == 500 && r.reason == "" && r.instance == list[0].id }
	tr := s.traffic(gw.Addr, mixed("/"))
	list[0].status.Store(500)
	s.awaitOut(gw, list[0].id)
	tr.await(s.fault())
	healed := time.Now()
	list[0].status.Store(200)
	tr.awaitFrom(list[0].id)
	s.recovered(healed)
	s.end(tr)
}

// stormEverywhere is when the service as a whole is broken: nothing can be
// saved, but nobody waits, and the end of it is noticed.
func stormEverywhere(s *scene) {
	list, gw := s.threeSick(listed + ", breaker: {open_for: 1s}")
	tr := s.traffic(gw.Addr, mixed("/"))
	from := time.Now()
	for _, k := range list {
		k.status.Store(500)
	}
	eventually(s, "the breaker does not open", func() bool { return gw.Upstream(s.service).Breaker.State == "open" })
	tr.await(s.fault())
	for _, k := range list {
		k.status.Store(200)
	}
	healed := time.Now()
	eventually(s, "the breaker does not close", func() bool { return gw.Upstream(s.service).Breaker.State == "closed" })
	s.recovered(healed)
	s.windows = append(s.windows, window{from, time.Now()})
	tr.await(rate())
	s.end(tr)
}
