package proxy_test

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/adaptive"
	"github.com/proconsul/proconsul/pkg/proxy"
)

func adaptively(least, most int) func(*proxy.Settings) {
	return func(s *proxy.Settings) {
		s.Adaptive = &adaptive.Settings{Min: least, Max: most, Headroom: 0.5, Probe: time.Minute}
	}
}

// A request holds a place until the header of its answer, whatever becomes of
// it, and is turned away at once where there is none.
func TestTheAdaptiveLimitCountsWhoWaitsForAnAnswer(t *testing.T) {
	release, waiting := make(chan struct{}), make(chan struct{}, 10)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/wait":
			waiting <- struct{}{}
			<-release
		case "/stream":
			w.Header().Set("Content-Type", "text/event-stream")
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case "/fail":
			w.WriteHeader(500)
		}
	})
	g := newGate(t, gateOptions{settings: adaptively(2, 2), route: proxy.RouteOptions{Shed: adaptive.Low}}, addr)
	c := client(t)
	inFlight := func() int { s, _ := g.up.Adaptive(); return s.InFlight }

	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			resp, err := c.Get(g.url("/wait"))
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
		})
	}
	<-waiting
	<-waiting
	r := get(t, c, g.url("/other"))
	if r.StatusCode != 503 || r.Header.Get("X-Proconsul-Reason") != "concurrency_limited" || r.Header.Get("Retry-After") != "1" || !strings.Contains(r.body, "class is low") {
		t.Errorf("above the limit: %d %v %s", r.StatusCode, r.Header, r.body)
	}
	close(release)
	wg.Wait()

	stream, err := c.Get(g.url("/stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	if got := inFlight(); got != 0 {
		t.Errorf("a stream holds %d places", got)
	}
	for _, path := range []string{"/fail", "/other"} {
		get(t, c, g.url(path))
	}
	g.set(refused(t))
	get(t, c, g.url("/other"))
	if r := do(t, c, request(t, "POST", g.url("/x"), struct{ io.Reader }{strings.NewReader("body")})); r.StatusCode < 500 {
		t.Errorf("nobody listens, and it answered %d", r.StatusCode)
	}
	if got := inFlight(); got != 0 {
		t.Errorf("%d places are lost", got)
	}
	s, _ := g.up.Adaptive()
	if s.Shed[adaptive.Low] != 1 {
		t.Errorf("shed %v", s.Shed)
	}
	off := g.settings
	off.Adaptive = nil
	if err := g.up.Configure(off); err != nil {
		t.Fatal(err)
	}
	if _, ok := g.up.Adaptive(); ok {
		t.Error("it is still on")
	}
}
