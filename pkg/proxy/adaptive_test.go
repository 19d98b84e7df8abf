package proxy_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/adaptive"
	"github.com/proconsul/proconsul/pkg/breaker"
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

// What the service does not answer in time says that it is overloaded; what the
// client does not wait for says nothing.
func TestOnlyTheServicesTimeLowersTheAdaptiveLimit(t *testing.T) {
	for _, tt := range []struct {
		name   string
		header []string
		falls  bool
	}{
		{"the service's time", nil, true},
		{"the client's deadline", []string{"Content-Type", "application/grpc", "Te", "trailers", "Grpc-Timeout", "50m"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var seen atomic.Int64
			g := newGate(t, gateOptions{settings: func(s *proxy.Settings) {
				adaptively(2, 100)(s)
				if tt.falls {
					s.Response = 50 * time.Millisecond
				}
			}}, failing(t, "silent", &seen))
			before, _ := g.up.Adaptive()
			for range 6 { // a window wants thirty of them, and a moment
				var wg sync.WaitGroup
				for range 12 {
					req := request(t, "POST", g.url("/"), nil, tt.header...)
					wg.Go(func() {
						resp, err := client(t).Do(req)
						if err != nil {
							t.Error(err)
							return
						}
						resp.Body.Close()
					})
				}
				wg.Wait()
			}
			if seen.Load() == 0 {
				t.Fatal("the service was not asked")
			}
			if after, _ := g.up.Adaptive(); after.Limit < before.Limit != tt.falls {
				t.Errorf("the limit was %d and is %d", before.Limit, after.Limit)
			}
		})
	}
}

// Clients that take their time over a small body hold no place until it is
// there.
func TestSlowClientsHoldNoPlaces(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	for name, o := range map[string]gateOptions{
		"adaptive": {settings: adaptively(2, 2)},
		"breaker":  {breaker: breaker.Settings{MaxInFlight: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, o, addr)
			if g.settings.Engine != proxy.EngineFast {
				return // net/http's transport streams all bodies
			}
			var slow []net.Conn
			var answers []*bufio.Reader
			for range 3 {
				c, r := raw(t, g.addr, "POST / HTTP/1.1\nHost: x\nContent-Length: 10\n\nhello")
				slow, answers = append(slow, c), append(answers, r)
			}
			c := client(t)
			for range 20 { // whenever the slow ones arrive
				if r := get(t, c, g.url("/")); r.StatusCode != 200 {
					t.Fatalf("got %d %s", r.StatusCode, r.Header.Get("X-Proconsul-Reason"))
				}
			}
			for i, c := range slow {
				_, _ = io.WriteString(c, "world")
				resp, err := http.ReadResponse(answers[i], nil)
				if err != nil {
					t.Fatal(err)
				}
				if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != "helloworld" {
					t.Errorf("a slow client got %d %q", resp.StatusCode, b)
				}
			}
		})
	}
}
