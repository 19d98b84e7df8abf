package metrics_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/pkg/metrics"
)

func TestStatsAreOfTheLastMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMetrics(t)
		r := m.Route("orders", "orders")
		send := func(n int, d time.Duration, status int) {
			for range n {
				r.Begin()
				r.End(metrics.Request{Method: "GET", Status: status, Duration: d})
			}
		}
		if s := r.Stats(); s != (metrics.Stats{}) {
			t.Errorf("before the first request: %+v", s)
		}
		for range 20 { // 20 s of 10 req/s
			send(9, 10*time.Millisecond, 200)
			send(1, 500*time.Millisecond, 503)
			time.Sleep(time.Second)
		}
		s := r.Stats()
		if s.Requests != 200 || s.Errors != 20 || math.Abs(s.Rate-10) > 1 {
			t.Errorf("requests %d, errors %d, rate %.1f; want 200, 20, 10", s.Requests, s.Errors, s.Rate)
		}
		if math.Abs(s.ErrorShare-.1) > .001 {
			t.Errorf("error share %.3f, want 0.1", s.ErrorShare)
		}
		near(t, "p50", s.P50, 10*time.Millisecond)
		near(t, "p99", s.P99, 500*time.Millisecond)
		if total := m.Stats(); total.Requests != 200 {
			t.Errorf("all routes: %+v", total)
		}

		time.Sleep(70 * time.Second)
		if s := r.Stats(); s.Rate != 0 || s.ErrorShare != 0 || s.P50 != 0 || s.Requests != 200 {
			t.Errorf("a minute later: %+v; want the totals alone", s)
		}
		send(1, 3*time.Minute, 429)
		if s := r.Stats(); s.Limited != 1 || s.P50 < time.Minute {
			t.Errorf("one limited, very slow request: %+v", s)
		}
		send(1, -1, 0) // a clock that stepped back
	})
}

func TestQuantilesAreAnEighthOffAtMost(t *testing.T) {
	for d := 8 * time.Microsecond; d < time.Minute; d = d*11/10 + 1 {
		m := newMetrics(t)
		r := m.Route("r", "u")
		r.End(metrics.Request{Status: 200, Duration: d})
		near(t, d.String(), r.Stats().P50, d)
	}
}

func near(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	slack := want / 8
	if got < want-slack || got > want+slack {
		t.Errorf("%s is %v, want about %v", what, got, want)
	}
}
