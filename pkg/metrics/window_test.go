package metrics_test

import (
	"math"
	"math/rand/v2"
	"slices"
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

// The page shows the last minute by the slot, whatever came when.
func TestStatsAreThoseOfAListOfRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type request struct {
			at     time.Time
			status int
		}
		m := newMetrics(t)
		r := m.Route("orders", "orders")
		var list []request
		const slot = 5 * time.Second
		random := rand.New(rand.NewPCG(1, 2))
		for range 400 {
			if random.IntN(3) == 0 {
				time.Sleep(time.Duration(random.Int64N([]int64{int64(slot), int64(4 * slot), int64(20 * slot)}[random.IntN(3)])))
			}
			q := request{time.Now(), []int{200, 404, 429, 500}[random.IntN(4)]}
			list = append(list, q)
			r.Begin()
			r.End(metrics.Request{Method: "GET", Status: q.status, Duration: time.Duration(q.status) * time.Millisecond})

			now := time.Now()
			var minute, failed, recent, limited, errors int
			var middle []int
			for _, q := range list {
				age := now.Unix()/5 - q.at.Unix()/5
				if age <= 2 {
					recent++
				}
				if q.status == 429 {
					limited++
				}
				if q.status == 500 {
					errors++
				}
				if age <= 12 {
					minute++
					middle = append(middle, q.status)
					if q.status == 500 {
						failed++
					}
				}
			}
			slices.Sort(middle)
			s := r.Stats()
			if int(s.Requests) != len(list) || int(s.Errors) != errors || int(s.Limited) != limited {
				t.Fatalf("totals %+v of %d requests, %d errors, %d limited", s, len(list), errors, limited)
			}
			into := now.Sub(now.Truncate(slot)).Seconds()
			if want := float64(recent) / (10 + into); math.Abs(s.Rate-want) > .01 {
				t.Fatalf("rate %v, want %v", s.Rate, want)
			}
			if want := float64(failed) / float64(minute); math.Abs(s.ErrorShare-want) > 1e-9 {
				t.Fatalf("share of errors %v, want %v", s.ErrorShare, want)
			}
			near(t, "p50", s.P50, time.Duration(middle[(len(middle)-1)/2])*time.Millisecond)
		}
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
