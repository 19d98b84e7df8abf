package breaker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/parts"
)

func TestSettings(t *testing.T) {
	r := breaker.NewRegistry(nil, nil)
	tests := []struct {
		name string
		s    breaker.Settings
		want string
	}{
		{"percent", breaker.Settings{ErrorPercent: 101}, "error percent is 101: want 1 to 100"},
		{"negative percent", breaker.Settings{ErrorPercent: -1}, "error percent is -1"},
		{"requests", breaker.Settings{MinRequests: -1}, "min requests is -1"},
		{"limit", breaker.Settings{MaxInFlight: -1}, "max in flight is -1"},
		{"open for", breaker.Settings{OpenFor: -time.Second}, "open for is -1s"},
		{"engine", breaker.Settings{Engine: "warp"}, `engine "warp": want command or direct`},
		{"status", breaker.Settings{FailOn: []int{200}}, "fail on 200: want a status from 400 to 599"},
		{"all of them", breaker.Settings{MinRequests: -1, Engine: "warp"}, "engine"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := r.Breaker("settings", tt.s)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "breaker settings: ") {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if r.Lookup("settings") != nil {
				t.Error("a breaker was made all the same")
			}
		})
	}
	if _, err := r.Breaker("", breaker.Settings{}); err == nil {
		t.Error("no error without a name")
	}
	b := in(t, r, "settings", breaker.Settings{OpenFor: time.Microsecond})
	got := b.Status().Settings
	if got.ErrorPercent != 50 || got.MinRequests != 20 || got.OpenFor != time.Millisecond || got.Engine != breaker.EngineCommand || len(got.FailOn) != 4 {
		t.Errorf("settings with defaults are %+v", got)
	}
	if _, err := r.Breaker("settings", breaker.Settings{Engine: "warp"}); err == nil {
		t.Error("no error")
	}
	if got := b.Status().Settings.OpenFor; got != time.Millisecond {
		t.Errorf("settings that are not valid have changed the breaker: %v", got)
	}
}

// Every setting changes a breaker that is in use, and its state survives.
func TestReconfigure(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		told := &changes{}
		r := breaker.NewRegistry(nil, told.add)
		s := breaker.Settings{Engine: engine, MinRequests: 1 << 20, OpenFor: time.Hour}
		b := in(t, r, "reconfigured", s)
		set := func(change func(*breaker.Settings)) {
			t.Helper()
			change(&s)
			again, err := r.Breaker("reconfigured", s)
			if err != nil || again != b {
				t.Fatalf("another breaker, or %v", err)
			}
		}
		for range 20 {
			_, _ = once(t, b, answer(503), 0)
			_, _ = once(t, b, answer(200), 0)
			_, _ = once(t, b, answer(200), 0)
		}
		passes(t, b, 5, answer(200))
		set(func(s *breaker.Settings) { s.MinRequests = 30 })
		passes(t, b, 5, answer(200)) // a third of the answers were errors
		set(func(s *breaker.Settings) { s.ErrorPercent = 20 })
		open(t, b)
		set(func(s *breaker.Settings) { s.OpenFor = time.Millisecond })
		parts.Eventually(t, 5*time.Second, "the probe comes sooner", func() bool {
			status, _ := once(t, b, answer(200), 0)
			return status == 200
		})
		set(func(s *breaker.Settings) { s.MinRequests, s.OpenFor = 2, time.Hour })
		open(t, b)
		set(func(s *breaker.Settings) { s.Disabled = true })
		passes(t, b, 50, via(broken))
		set(func(s *breaker.Settings) { s.Disabled = false })
		passes(t, b, 5, answer(200)) // what happened meanwhile is forgotten
		open(t, b)
		other := breaker.EngineDirect
		if engine == other {
			other = breaker.EngineCommand
		}
		set(func(s *breaker.Settings) { s.Engine = other })
		if _, err := once(t, b, answer(200), 0); !errors.Is(err, breaker.ErrOpen) {
			t.Errorf("the other engine has another circuit: %v", err)
		}
		set(func(s *breaker.Settings) { s.OpenFor = time.Millisecond })
		parts.Eventually(t, 5*time.Second, "the other engine probes", func() bool {
			status, _ := once(t, b, answer(200), 0)
			return status == 200
		})
		set(func(s *breaker.Settings) { s.FailOn = []int{418}; s.OpenFor = time.Hour })
		parts.Eventually(t, 5*time.Second, "teapots open it", func() bool {
			_, err := once(t, b, answer(418), 0)
			return errors.Is(err, breaker.ErrOpen)
		})
		told.want(t, breaker.Open, breaker.HalfOpen, breaker.Closed, breaker.Open, breaker.Closed,
			breaker.Open, breaker.HalfOpen, breaker.Closed, breaker.Open)
	})
}

func TestReconfigureUnderLoad(t *testing.T) {
	r := breaker.NewRegistry(nil, nil)
	b := in(t, r, "busy", breaker.Settings{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if b.Acquire() == nil {
					_, _ = once(t, b, answer(200), time.Second)
					b.Release()
				}
				b.Status()
			}
		})
	}
	for i := range 100 {
		s := breaker.Settings{MinRequests: 1 + i, MaxInFlight: i % 5, Disabled: i%7 == 0, Engine: breaker.EngineCommand, OpenFor: time.Duration(1+i) * time.Millisecond}
		if i%2 == 0 {
			s.Engine = breaker.EngineDirect
		}
		if _, err := r.Breaker("busy", s); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			until := time.Now().Add(time.Millisecond)
			if err := b.Force(breaker.Open, until); err != nil && time.Now().Before(until) {
				t.Fatal(err)
			}
		}
	}
	b.Reset()
	cancel()
	wg.Wait()
	if n := b.InFlight(); n != 0 {
		t.Errorf("%d permits held", n)
	}
	if got := b.Counters(); got.Failure+got.Timeout+got.Canceled > 0 {
		t.Errorf("counters %+v", got)
	}
}

func TestPermits(t *testing.T) {
	r := breaker.NewRegistry(nil, nil)
	b := in(t, r, "permits", breaker.Settings{MaxInFlight: 2})
	take := func(want error) {
		t.Helper()
		if err := b.Acquire(); err != want {
			t.Errorf("error %v with %d of %d in flight, want %v", err, b.InFlight(), b.Status().Settings.MaxInFlight, want)
		}
	}
	resize := func(n int) {
		t.Helper()
		if _, err := r.Breaker("permits", breaker.Settings{MaxInFlight: n}); err != nil {
			t.Fatal(err)
		}
	}
	take(nil)
	take(nil)
	take(breaker.ErrLimited)
	resize(3)
	take(nil)
	take(breaker.ErrLimited)
	resize(1)
	b.Release()
	b.Release()
	take(breaker.ErrLimited) // one is still held
	b.Release()
	take(nil)
	resize(0)
	for range 100 {
		take(nil)
	}
	if got := b.Counters().Rejected; got != 3 {
		t.Errorf("%d rejected, want 3", got)
	}
	for range 101 {
		b.Release()
	}
	defer func() {
		if recover() == nil {
			t.Error("Release without Acquire went unnoticed")
		}
	}()
	b.Release()
}

// The limit holds exactly while it is resized under load: never more than it
// has been, and no refusal while there is room.
func TestPermitsUnderLoad(t *testing.T) {
	r := breaker.NewRegistry(nil, nil)
	b := in(t, r, "permits", breaker.Settings{MaxInFlight: 8})
	var wg sync.WaitGroup
	for range 8 { // as many as there are permits
		wg.Go(func() {
			for range 2000 {
				if err := b.Acquire(); err != nil {
					t.Errorf("refused with room: %v", err)
				}
				if n := b.InFlight(); n > 8 {
					t.Errorf("%d in flight", n)
				}
				b.Release()
			}
		})
	}
	wg.Wait()
	for range 16 {
		wg.Go(func() {
			for i := range 2000 {
				if b.Acquire() == nil {
					if n := b.InFlight(); n > 8 {
						t.Errorf("%d in flight", n)
					}
					b.Release()
				}
				if i%100 == 0 {
					if _, err := r.Breaker("permits", breaker.Settings{MaxInFlight: 1 + i/100%8}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if n := b.InFlight(); n != 0 {
		t.Errorf("%d in flight at the end", n)
	}
}

// Ten times as many requests as the limit lets in: the rest are refused, the
// service is well, and the breaker knows it.
func TestBurstBeyondTheLimit(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		const limit = 10
		b, told := newBreaker(t, breaker.Settings{Engine: engine, MaxInFlight: limit, MinRequests: 1, ErrorPercent: 1})
		release, entered := make(chan struct{}), &atomic.Int64{}
		var served, refused atomic.Int64
		var wg sync.WaitGroup
		for range 10 * limit {
			wg.Go(func() {
				if err := b.Acquire(); err != nil {
					refused.Add(1)
					return
				}
				defer b.Release()
				if status, err := once(t, b, held(release, entered, 200), time.Minute); status == 200 {
					served.Add(1)
				} else {
					t.Errorf("error %v", err)
				}
			})
		}
		parts.Eventually(t, 10*time.Second, "everybody has asked", func() bool { return refused.Load() == 9*limit && entered.Load() == limit })
		close(release)
		wg.Wait()
		if served.Load() != limit {
			t.Errorf("%d served, want %d", served.Load(), limit)
		}
		passes(t, b, 50, answer(200))
		if got := b.Counters(); got.Rejected != 9*limit || got.ShortCircuited != 0 || got.Failure != 0 {
			t.Errorf("counters %+v", got)
		}
		told.want(t)
	})
}

// More attempts at once than hystrix has tickets: it would refuse some, count
// them as errors and open.
func TestMoreThanTickets(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		const tickets, n = 8, 100
		r := breaker.NewTightRegistry(nil, time.Hour, tickets)
		b := in(t, r, "tickets", breaker.Settings{Engine: engine, MinRequests: 1, ErrorPercent: 1})
		release, entered := make(chan struct{}), &atomic.Int64{}
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				if _, err := once(t, b, held(release, entered, 200), time.Minute); err != nil {
					t.Errorf("error %v", err)
				}
			})
		}
		parts.Eventually(t, 10*time.Second, "all are under way", func() bool { return entered.Load() == n })
		close(release)
		wg.Wait()
		passes(t, b, 50, answer(200))
		if got := b.Counters(); got.Success != n+50 {
			t.Errorf("counters %+v", got)
		}
	})
}

func TestForce(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		b, told := newBreaker(t, breaker.Settings{Engine: engine, MinRequests: 2, OpenFor: time.Hour})
		force := func(s breaker.State, until time.Time) {
			t.Helper()
			if err := b.Force(s, until); err != nil {
				t.Fatal(err)
			}
			if got := b.State(); got != s {
				t.Errorf("state %v, want %v", got, s)
			}
		}
		refused := func() {
			t.Helper()
			if _, err := once(t, b, answer(200), 0); !errors.Is(err, breaker.ErrOpen) {
				t.Errorf("not refused: %v", err)
			}
		}
		force(breaker.Open, time.Time{})
		refused()
		if after := b.RetryAfter(); after != time.Hour {
			t.Errorf("retry after %v without an end, want open_for", after)
		}
		if s := b.Status(); !s.Forced || !s.ForcedUntil.IsZero() {
			t.Errorf("status %+v", s)
		}
		b.Lift()
		passes(t, b, 5, answer(200))
		told.want(t, breaker.Open, breaker.Closed)

		// An order that ends by itself: far from its end it is seen at work, near
		// it another is seen to end.
		force(breaker.Open, time.Now().Add(time.Hour))
		refused()
		if after := b.RetryAfter(); after <= 59*time.Minute || after > time.Hour {
			t.Errorf("retry after %v", after)
		}
		until := time.Now().Add(300 * time.Millisecond)
		if err := b.Force(breaker.Open, until); err != nil {
			t.Fatal(err)
		}
		parts.Eventually(t, 5*time.Second, "the order ends", func() bool { return b.State() == breaker.Closed })
		if left := time.Until(until); left > 0 {
			t.Errorf("it ended %v before its time", left)
		}
		passes(t, b, 5, answer(200))

		// The last order holds, and an end that belonged to another is none.
		force(breaker.Open, time.Now().Add(time.Hour))
		force(breaker.Closed, time.Now().Add(time.Hour))
		passes(t, b, 50, via(broken))
		if after := b.RetryAfter(); after != 0 {
			t.Errorf("retry after %v", after)
		}
		b.Lift()
		passes(t, b, 5, answer(200)) // what happened meanwhile does not count
		open(t, b)
		force(breaker.Closed, time.Now().Add(300*time.Millisecond))
		passes(t, b, 5, answer(200))
		parts.Eventually(t, 5*time.Second, "the order ends", func() bool { return !b.Status().Forced })
		passes(t, b, 5, answer(200)) // the circuit was closed with it
		open(t, b)
		b.Reset()
		passes(t, b, 5, answer(200))
		told.want(t, breaker.Open, breaker.Closed, breaker.Open, breaker.Closed,
			breaker.Open, breaker.Closed, breaker.Open, breaker.Closed, breaker.Open, breaker.Closed)

		if err := b.Force(breaker.HalfOpen, time.Time{}); err == nil {
			t.Error("forced half-open")
		}
		if err := b.Force(breaker.Open, time.Now().Add(-time.Second)); err == nil {
			t.Error("forced until the past")
		}
	})
}

// A listener may do anything: no lock is held.
func TestListenerMayAskBack(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		var r *breaker.Registry
		var forced, count atomic.Int64
		r = breaker.NewRegistry(nil, func(name string, s breaker.State) {
			count.Add(1)
			b := r.Lookup(name)
			b.Status()
			if forced.Add(1) == 1 {
				if err := b.Force(breaker.Closed, time.Time{}); err != nil {
					t.Error(err)
				}
				if _, err := once(t, b, answer(200), 0); err != nil {
					t.Error(err)
				}
				b.Reset()
			}
		})
		b := in(t, r, "asked", breaker.Settings{Engine: engine, MinRequests: 2})
		parts.Eventually(t, 5*time.Second, "the listener was told", func() bool {
			_, _ = once(t, b, via(broken), 0)
			return count.Load() >= 2
		})
	})
}

// Circuits belong to the process. Registries still share nothing.
func TestRegistriesAreApart(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		var told [2]changes
		s := breaker.Settings{Engine: engine, MinRequests: 2, OpenFor: time.Hour}
		one := in(t, breaker.NewRegistry(nil, told[0].add), "twin of "+engine, s)
		two := in(t, breaker.NewRegistry(nil, told[1].add), "twin of "+engine, s)
		if got := one.Status().Command; got != "twin of "+engine {
			t.Errorf("command %q", got)
		}
		if got := two.Status().Command; got != "twin of "+engine+"#2" {
			t.Errorf("command %q", got)
		}
		open(t, one)
		passes(t, two, 10, answer(200))
		told[0].want(t, breaker.Open)
		told[1].want(t)
	})
}

// An upstream that goes and comes again finds a breaker like new.
func TestReleaseAndReuse(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		told := &changes{}
		r := breaker.NewRegistry(nil, told.add)
		name := "comes and goes, " + engine
		s := breaker.Settings{Engine: engine, MinRequests: 3, OpenFor: time.Hour}
		old := in(t, r, name, s)
		passes(t, old, 1000, answer(200)) // would keep its heir from opening
		r.Release(name)
		r.Release(name)
		if r.Lookup(name) != nil || len(r.All()) != 0 {
			t.Error("released and still there")
		}
		b := in(t, r, name, s)
		if b == old || b.Counters() != (breaker.Counters{}) || b.Status().Command != name {
			t.Errorf("not as new: %+v", b.Status())
		}
		open(t, b)
		if got := b.Counters().Failure; got > 10 {
			t.Errorf("%d failures opened it: it remembers its former life", got)
		}
		r.Release(name)
		if err := b.Force(breaker.Open, time.Time{}); err == nil {
			t.Error("a released breaker can be forced")
		}
		passes(t, b, 5, answer(200)) // by those who still hold it, unguarded

		b = in(t, r, name, s)
		passes(t, b, 20, answer(200))
		if b.State() != breaker.Closed {
			t.Errorf("state %v", b.State())
		}
		told.want(t, breaker.Open)

		// A circuit serves nobody else while an attempt is under way on it.
		release, entered := make(chan struct{}), &atomic.Int64{}
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = once(t, b, held(release, entered, 200), 0) })
		parts.Eventually(t, 5*time.Second, "an attempt is under way", func() bool { return entered.Load() == 1 })
		r.Release(name)
		if got := in(t, r, name, s).Status().Command; got == name {
			t.Error("two breakers have one circuit")
		}
		r.Release(name)
		close(release)
		wg.Wait()
		if got := in(t, r, name, s).Status().Command; got != name {
			t.Errorf("command %q, though %q is free", got, name)
		}
	})
}

// A thousand upstreams that come and go, by these names or others, cost what
// the first thousand cost.
func TestNamesAreReused(t *testing.T) {
	const n = 1000
	r := breaker.NewRegistry(nil, nil)
	round := func(engine string) {
		for i := range n {
			b, err := r.Breaker(fmt.Sprintf("service-%d", i), breaker.Settings{Engine: engine})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := once(t, b, answer(200), time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		for _, b := range r.All() {
			r.Release(b.Name())
		}
	}
	round(breaker.EngineCommand)
	circuits, goroutines := breaker.Circuits(), runtime.NumGoroutine()
	if circuits < n {
		t.Fatalf("%d circuits", circuits)
	}
	round(breaker.EngineDirect)
	round(breaker.EngineCommand)
	if got := breaker.Circuits(); got != circuits {
		t.Errorf("%d circuits, then %d", circuits, got)
	}
	parts.Eventually(t, 5*time.Second, fmt.Sprintf("back to %d goroutines", goroutines), func() bool {
		return runtime.NumGoroutine() <= goroutines+2
	})

	// At the bound, a name that was never seen takes a circuit that is free.
	bounded := breaker.NewBoundedRegistry(circuits)
	for i := range 10 {
		name := fmt.Sprintf("newcomer-%d", i)
		b := in(t, bounded, name, breaker.Settings{MinRequests: 2})
		if b.Name() != name || b.Status().Command == name {
			t.Errorf("breaker %q has command %q", b.Name(), b.Status().Command)
		}
		open(t, b)
	}
	if got := breaker.Circuits(); got != circuits {
		t.Errorf("%d circuits beyond the bound of %d", got, circuits)
	}
}

func TestTooMany(t *testing.T) {
	r := breaker.NewBoundedRegistry(0)
	var held []string
	defer func() {
		for _, name := range held {
			r.Release(name)
		}
	}()
	for i := range 5000 {
		name := fmt.Sprintf("last-%d", i)
		_, err := r.Breaker(name, breaker.Settings{})
		if errors.Is(err, breaker.ErrTooMany) {
			if r.Lookup(name) != nil {
				t.Error("a breaker without a circuit")
			}
			if _, err := r.Breaker(name, breaker.Settings{Disabled: true}); err != nil {
				t.Errorf("a disabled breaker needs no circuit: %v", err)
			}
			held = append(held, name)
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, name)
	}
	t.Error("no bound")
}

// A disabled breaker makes no circuit, and its limit and timers hold.
func TestDisabled(t *testing.T) {
	circuits := breaker.Circuits()
	r := breaker.NewRegistry(nil, nil)
	b := in(t, r, "disabled", breaker.Settings{Disabled: true, MaxInFlight: 1, MinRequests: 1, ErrorPercent: 1})
	passes(t, b, 50, via(broken))
	if _, err := once(t, b, via(hung), 5*time.Millisecond); !errors.Is(err, breaker.ErrTimeout) {
		t.Errorf("error %v", err)
	}
	if got := b.Counters(); got.Failure != 50 || got.Timeout != 1 {
		t.Errorf("counters %+v", got)
	}
	if err := errors.Join(b.Acquire(), b.Acquire()); !errors.Is(err, breaker.ErrLimited) {
		t.Errorf("error %v", err)
	}
	b.Release()
	if got := breaker.Circuits(); got != circuits {
		t.Errorf("%d circuits made", got-circuits)
	}
}

func TestLog(t *testing.T) {
	var out lines
	r := breaker.NewRegistry(slog.New(slog.NewTextHandler(&out, nil)), nil)
	b := in(t, r, "logged", breaker.Settings{MinRequests: 2})
	open(t, b)
	b.Reset()
	_ = func() (value any) {
		defer func() { value = recover() }()
		_, _ = once(t, b, via(func(*http.Request) (*http.Response, error) { panic("boom") }), 0)
		return nil
	}()
	for _, want := range []string{
		`level=WARN msg="breaker open" component=breaker upstream=logged forced=false requests=`,
		`level=INFO msg="breaker closed" component=breaker upstream=logged`,
		`level=ERROR msg="panic in the transport" component=breaker upstream=logged panic=boom stack=`,
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no line %q in:\n%s", want, out.String())
		}
	}
}

// lines is a writer for concurrent use.
type lines struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}
