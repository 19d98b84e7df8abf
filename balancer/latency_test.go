package balancer_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/balancer"
)

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, balancer.Options{}, instance("a"))
		done := func(r balancer.Result, d time.Duration) {
			k, _ := p.Pick()
			k.Done(balancer.Outcome{Result: r, Latency: d})
		}
		near := func(what string, got, want time.Duration) {
			t.Helper()
			if math.Abs(float64(got-want)) > 0.13*float64(want) {
				t.Errorf("%s is %v, want about %v", what, got, want)
			}
		}

		// 100 requests a second for a second: 1 ms to 100 ms.
		for i := range 100 {
			done(balancer.Success, time.Duration(i+1)*time.Millisecond)
			time.Sleep(10 * time.Millisecond)
		}
		m := member(t, p, "a")
		near("p50", m.Minute.P50, 50*time.Millisecond)
		near("p95", m.Minute.P95, 95*time.Millisecond)
		near("p99", m.Minute.P99, 99*time.Millisecond)
		if m.Minute.Requests != 100 || m.Rate < 99 || m.Rate > 101 {
			t.Errorf("%d requests, %v a second, want 100 and 100", m.Minute.Requests, m.Rate)
		}

		// How fast somebody gave up is not the instance's latency.
		done(balancer.Canceled, time.Microsecond)
		done(balancer.Refused, time.Microsecond)
		if got := member(t, p, "a").Minute; got.P50 != m.Minute.P50 || got.Requests != 102 {
			t.Errorf("cancels count in the latency: %+v", got)
		}

		// Later the rate is of other requests than the minute's.
		time.Sleep(20 * time.Second)
		done(balancer.Success, 3*time.Second)
		m = member(t, p, "a")
		near("the minute's p50", m.Minute.P50, 50*time.Millisecond)
		if m.Rate < 1./15 || m.Rate > 1./10 || m.Minute.Requests != 103 {
			t.Errorf("%v a second, %d in a minute, want one in ten to fifteen seconds, and 103", m.Rate, m.Minute.Requests)
		}
		if m.Minute.Window < 20*time.Second || m.Minute.Window > time.Minute {
			t.Errorf("window %v", m.Minute.Window)
		}
		time.Sleep(2 * time.Minute)
		if m = member(t, p, "a"); m.Minute.Requests != 0 || m.Minute.P99 != 0 || m.Minute.Rate != 0 {
			t.Errorf("two minutes later: %+v", m.Minute)
		}
	})
}

func TestLatencyOfAnyLength(t *testing.T) {
	for _, d := range []time.Duration{1, time.Microsecond, 7 * time.Microsecond, 900 * time.Microsecond, time.Second, 100 * time.Second} {
		p := newPool(t, balancer.Options{}, instance("a"))
		k, _ := p.Pick()
		k.Done(balancer.Outcome{Latency: d})
		got := member(t, p, "a").Minute.P99
		if got < d*7/8-time.Microsecond || got > d*9/8+time.Microsecond {
			t.Errorf("p99 of one request of %v is %v", d, got)
		}
	}
	p := newPool(t, balancer.Options{}, instance("a"))
	k, _ := p.Pick()
	k.Done(balancer.Outcome{Latency: 24 * time.Hour})
	if got := member(t, p, "a").Minute.P99; got < time.Minute {
		t.Errorf("p99 of one request of a day is %v", got)
	}
}
