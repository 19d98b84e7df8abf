package adaptive_test

import (
	"container/heap"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/pkg/adaptive"
)

// service is an upstream with a knee, in a time of its own: it serves so many
// requests at once, the rest queue inside it.
type service struct {
	servers int
	mean    time.Duration
	noise   float64 // share of the time that varies, exponentially
}

// load is what is sent.
type load struct {
	rate  float64 // requests a second
	share [adaptive.Classes]float64
}

// phase is a stretch of time with one service and load.
type phase struct {
	service
	load
	length time.Duration
}

// result is what a phase saw in its second half.
type result struct {
	done, sent, shed [adaptive.Classes]int
	latencies        []time.Duration
	length           time.Duration
	limits           []int
}

func (r result) goodput() float64 {
	return float64(r.done[0]+r.done[1]+r.done[2]) / r.length.Seconds()
}

func (r result) mean() time.Duration {
	sum := time.Duration(0)
	for _, l := range r.latencies {
		sum += l
	}
	return sum / time.Duration(max(1, len(r.latencies)))
}

type event struct {
	at    time.Time
	began time.Time
	class adaptive.Class
	end   bool
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at.Before(e[j].at) }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any          { o := *e; x := o[len(o)-1]; *e = o[:len(o)-1]; return x }

// simulate runs the phases one after another on one limiter; nil: without.
func simulate(seed uint64, s adaptive.Settings, limited bool, phases ...phase) []result {
	rnd := rand.New(rand.NewPCG(seed, 1))
	now := time.Unix(1_000_000, 0)
	l := adaptive.New(s, now)
	var queue events
	var waiting []event // inside the service
	busy := 0
	var out []result
	for _, p := range phases {
		end := now.Add(p.length)
		half := now.Add(p.length / 2)
		r := result{length: p.length / 2}
		heap.Push(&queue, event{at: now})
		begin := func(e event) {
			busy++
			took := p.mean.Seconds() * (1 - p.noise + p.noise*rnd.ExpFloat64())
			heap.Push(&queue, event{at: now.Add(time.Duration(took * float64(time.Second))), began: e.began, class: e.class, end: true})
		}
		for len(queue) > 0 {
			e := heap.Pop(&queue).(event)
			if e.at.After(end) {
				if e.end {
					heap.Push(&queue, e)
				}
				break
			}
			now = e.at
			counts := now.After(half)
			if e.end {
				busy--
				if limited {
					l.Release(e.class, e.began, now, adaptive.Answered)
				}
				if counts {
					r.done[e.class]++
					r.latencies = append(r.latencies, now.Sub(e.began))
				}
				for busy < p.servers && len(waiting) > 0 {
					next := waiting[0]
					waiting = waiting[1:]
					begin(next)
				}
				continue
			}
			heap.Push(&queue, event{at: now.Add(time.Duration(rnd.ExpFloat64() / p.rate * float64(time.Second)))})
			class, x := adaptive.Low, rnd.Float64()
			for class < adaptive.High && x > p.share[class] {
				x -= p.share[class]
				class++
			}
			if counts {
				r.sent[class]++
				if r.sent[class]%100 == 1 {
					r.limits = append(r.limits, l.Status().Limit)
				}
			}
			if limited && l.Acquire(class, now) != nil {
				if counts {
					r.shed[class]++
				}
				continue
			}
			came := event{began: now, class: class}
			if busy < p.servers {
				begin(came)
			} else {
				waiting = append(waiting, came)
			}
		}
		now = end
		// The next phase's own arrivals.
		kept := queue[:0]
		for _, e := range queue {
			if e.end {
				kept = append(kept, e)
			}
		}
		queue = kept
		heap.Init(&queue)
		out = append(out, r)
	}
	return out
}

var usual = adaptive.Settings{Min: 5, Max: 1000, Headroom: 0.5, Probe: 20 * time.Second}

var normal = [adaptive.Classes]float64{adaptive.Normal: 1}

// best is what a service can do.
func (s service) best() float64 { return float64(s.servers) / s.mean.Seconds() }

// Under three times what the service can serve it serves nearly all that it
// can, in a latency near its own. Without the limiter the latency has no bound.
func TestOverload(t *testing.T) {
	for _, s := range []service{
		{10, 20 * time.Millisecond, 0.2}, {50, 50 * time.Millisecond, 0.5}, {100, 50 * time.Millisecond, 1}, {200, 100 * time.Millisecond, 0.3}, {8, 5 * time.Millisecond, 0.5},
	} {
		over := phase{s, load{3 * s.best(), normal}, 30 * time.Second}
		for seed := range uint64(3) {
			r := simulate(seed, usual, true, over)[0]
			if r.goodput() < 0.9*s.best() || r.mean() > 3*s.mean {
				t.Errorf("%+v, seed %d: %.0f a second of %.0f in %v", s, seed, r.goodput(), s.best(), r.mean())
			}
			t.Logf("%+v: goodput %.0f of %.0f, latency %v, limit %d", s, r.goodput(), s.best(), r.mean().Round(time.Millisecond), r.limits[len(r.limits)-1])
		}
	}
	s := service{10, 20 * time.Millisecond, 0.2}
	without := simulate(1, usual, false, phase{s, load{3 * s.best(), normal}, 20 * time.Second})[0]
	if without.mean() < 50*s.mean {
		t.Errorf("the simulation has no queue: %v", without.mean())
	}
}

// What the service can take with ease is not touched, however much its latency
// varies.
func TestNothingIsShedWithoutNeed(t *testing.T) {
	for _, noise := range []float64{0, 0.3, 1} {
		s := service{50, 40 * time.Millisecond, noise}
		r := simulate(2, usual, true, phase{s, load{0.7 * s.best(), normal}, 60 * time.Second})[0]
		if shed := float64(r.shed[adaptive.Normal]) / float64(r.sent[adaptive.Normal]); shed > 0.005 {
			t.Errorf("noise %v: %.2f%% were turned away, limits %d..%d", noise, 100*shed, r.limits[0], r.limits[len(r.limits)-1])
		}
	}
}

// A service that loses most of its capacity, and gets it back, or becomes
// slower for good.
func TestCapacityChanges(t *testing.T) {
	whole, part := service{50, 40 * time.Millisecond, 0.5}, service{10, 40 * time.Millisecond, 0.5}
	slow := service{50, 160 * time.Millisecond, 0.5}
	offered := load{2 * whole.best(), normal}
	r := simulate(3, usual, true, phase{whole, offered, 40 * time.Second}, phase{part, offered, 40 * time.Second}, phase{whole, offered, 40 * time.Second}, phase{slow, offered, 60 * time.Second}, phase{whole, offered, 40 * time.Second})
	for i, s := range []service{whole, part, whole, slow, whole} {
		if r[i].goodput() < 0.9*s.best() || r[i].mean() > 3*s.mean {
			t.Errorf("phase %d: %.0f a second of %.0f in %v of %v, limit %d", i, r[i].goodput(), s.best(), r[i].mean(), s.mean, r[i].limits[len(r[i].limits)-1])
		}
	}
}

// The lowest class is turned away first, and the highest only where it alone
// is too much.
func TestTheLowestIsShedFirst(t *testing.T) {
	s := service{50, 20 * time.Millisecond, 0.5}
	passed := func(r result, c adaptive.Class) float64 { return 1 - float64(r.shed[c])/float64(max(1, r.sent[c])) }
	// High and normal fit together; low does not beside them.
	r := simulate(4, usual, true, phase{s, load{3 * s.best(), [adaptive.Classes]float64{0.8, 0.1, 0.1}}, 60 * time.Second})[0]
	if passed(r, adaptive.High) < 0.97 || passed(r, adaptive.Normal) < 0.9 || passed(r, adaptive.Low) > 0.3 {
		t.Errorf("passed: low %.2f, normal %.2f, high %.2f", passed(r, adaptive.Low), passed(r, adaptive.Normal), passed(r, adaptive.High))
	}
	if r.goodput() < 0.85*s.best() {
		t.Errorf("%.0f a second of %.0f", r.goodput(), s.best())
	}
	// Only high fits.
	r = simulate(5, usual, true, phase{s, load{3 * s.best(), [adaptive.Classes]float64{0.4, 0.4, 0.2}}, 60 * time.Second})[0]
	t.Logf("passed: low %.2f, normal %.2f, high %.2f", passed(r, adaptive.Low), passed(r, adaptive.Normal), passed(r, adaptive.High))
	if passed(r, adaptive.High) < 0.95 || passed(r, adaptive.Low) > passed(r, adaptive.Normal)/3 {
		t.Errorf("passed: low %.2f, normal %.2f, high %.2f", passed(r, adaptive.Low), passed(r, adaptive.Normal), passed(r, adaptive.High))
	}
	// Alone, the lowest may have everything.
	r = simulate(6, usual, true, phase{s, load{0.8 * s.best(), [adaptive.Classes]float64{adaptive.Low: 1}}, 30 * time.Second})[0]
	if passed(r, adaptive.Low) < 0.99 {
		t.Errorf("low alone: %.2f", passed(r, adaptive.Low))
	}
}

// Timeouts are overload although they are no answers.
func TestTimeoutsLowerTheLimit(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	l := adaptive.New(usual, now)
	before := l.Status().Limit
	for range 2000 {
		began := now
		if l.Acquire(adaptive.Normal, now) == nil {
			now = now.Add(2 * time.Millisecond)
			l.Release(adaptive.Normal, began, now, adaptive.TimedOut)
		}
	}
	if got := l.Status().Limit; got > before/2 || got < usual.Min {
		t.Errorf("limit %d after timeouts, it was %d", got, before)
	}
}

// Whatever happens: the limit stays within its bounds, what is in flight is
// what was taken and not given back, and never above the limit when it was let
// in.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := adaptive.Settings{Min: rapid.IntRange(1, 20).Draw(t, "min"), Headroom: rapid.Float64Range(0.1, 1).Draw(t, "headroom"), Probe: time.Second}
		s.Max = s.Min + rapid.IntRange(0, 200).Draw(t, "more")
		now := time.Unix(1_000_000, 0)
		l := adaptive.New(s, now)
		type one struct {
			class adaptive.Class
			began time.Time
		}
		var flying []one
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(200*time.Millisecond)).Draw(t, "after")))
			if len(flying) > 0 && rapid.Bool().Draw(t, "release") {
				i := rapid.IntRange(0, len(flying)-1).Draw(t, "which")
				l.Release(flying[i].class, flying[i].began, now, adaptive.Outcome(rapid.IntRange(0, 2).Draw(t, "how")))
				flying = append(flying[:i], flying[i+1:]...)
			} else {
				c := adaptive.Class(rapid.IntRange(0, 2).Draw(t, "class"))
				limit := l.Status().Limit
				if l.Acquire(c, now) == nil {
					flying = append(flying, one{c, now})
					if len(flying) > limit {
						t.Fatalf("%d in flight with a limit of %d", len(flying), limit)
					}
				} else if len(flying) == 0 {
					t.Fatal("an idle service turns a request away")
				}
			}
			st := l.Status()
			if st.Limit < min(s.Min, st.Limit+1) || st.Limit < s.Min || st.Limit > s.Max || st.InFlight != len(flying) {
				t.Fatalf("%+v with %d in flight and bounds %d..%d", st, len(flying), s.Min, s.Max)
			}
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	l := adaptive.New(usual, time.Now())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 5000 {
				now := time.Now()
				if l.Acquire(adaptive.Class(i%3), now) == nil {
					l.Release(adaptive.Class(i%3), now, time.Now(), adaptive.Answered)
				}
			}
		})
	}
	wg.Wait()
	if s := l.Status(); s.InFlight != 0 {
		t.Errorf("%d are in flight at the end", s.InFlight)
	}
}

func TestConfigureKeepsWhatWasFound(t *testing.T) {
	l := adaptive.New(usual, time.Unix(1, 0))
	l.Configure(adaptive.Settings{Min: 5, Max: 10, Headroom: 0.5, Probe: time.Second})
	if got := l.Status().Limit; got != 10 {
		t.Errorf("limit %d, want the new most", got)
	}
	if c, err := adaptive.ParseClass("urgent"); err == nil {
		t.Errorf("urgent is %v", c)
	}
}

func BenchmarkAcquireRelease(b *testing.B) {
	l := adaptive.New(usual, time.Now())
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Microsecond)
		if l.Acquire(adaptive.Normal, now) == nil {
			l.Release(adaptive.Normal, now, now.Add(time.Millisecond), adaptive.Answered)
		}
	}
}

// A service that is overloaded from its first request is measured down to where
// it has no queue: half of a limit that is much too high still has one.
func TestTheMeasureGoesBelowTheQueue(t *testing.T) {
	seldom := adaptive.Settings{Min: 1, Max: 1000, Headroom: 0.5, Probe: time.Hour}
	for _, s := range []service{{5, 50 * time.Millisecond, 0.2}, {6, 20 * time.Millisecond, 0.3}} {
		for seed := range uint64(4) {
			r := simulate(seed, seldom, true, phase{s, load{4 * s.best(), normal}, 20 * time.Second})[0]
			if r.goodput() < 0.95*s.best() || r.mean() > 2*s.mean {
				t.Errorf("%+v, seed %d: %.0f a second of %.0f in %v, limit %d", s, seed, r.goodput(), s.best(), r.mean(), r.limits[len(r.limits)-1])
			}
		}
	}
}

// Where a higher class is turned away the one below it loses its share, also of
// what is free, and gets it back when the higher has enough.
func TestSharesFollowWhoIsTurnedAway(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	l := adaptive.New(adaptive.Settings{Min: 20, Max: 20, Headroom: 0.5, Probe: time.Hour}, now)
	take := func(c adaptive.Class) bool { return l.Acquire(c, now) == nil }
	end := func(c adaptive.Class) { l.Release(c, now.Add(-10*time.Millisecond), now, adaptive.Answered) }
	// window lets one pass in which requests of the high class come and go.
	window := func() {
		for range 40 {
			now = now.Add(30 * time.Millisecond)
			if take(adaptive.High) {
				end(adaptive.High)
			}
		}
	}
	held, high := 0, 0
	if take(adaptive.High) { // it is there, and low leaves it a little room
		high++
	}
	for take(adaptive.Low) {
		held++
	}
	for take(adaptive.High) {
		high++
	}
	if held < 15 || high < 2 || held+high != 20 {
		t.Fatalf("%d low and %d high fill a limit of 20", held, high)
	}
	for range 20 { // the high class wants more, and does not get it
		now = now.Add(1100 * time.Millisecond)
		if take(adaptive.High) {
			t.Fatal("more than the limit are let in")
		}
		end(adaptive.High)
		if !take(adaptive.High) {
			t.Fatal("a place that was given back is not given")
		}
	}
	for held > 5 {
		end(adaptive.Low)
		held--
	}
	if take(adaptive.Low) {
		t.Errorf("low is let in beside %d of its own and %d high, while high was turned away", held, high)
	}
	if !take(adaptive.High) {
		t.Error("high is turned away with room")
	}
	for range 60 {
		window()
	}
	if !take(adaptive.Low) {
		t.Error("low does not get its share back")
	}
}
