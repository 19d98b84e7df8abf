package breaker_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/parts"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// hystrix never ends the two goroutines of a circuit; that they do not
		// multiply is TestNamesAreReused.
		goleak.IgnoreAnyFunction("github.com/afex/hystrix-go/hystrix.(*metricExchange).Monitor"),
		goleak.IgnoreAnyFunction("github.com/afex/hystrix-go/hystrix.(*poolMetrics).Monitor"),
	)
}

// engines runs a test with either engine: they differ in cost alone.
func engines(t *testing.T, test func(t *testing.T, engine string)) {
	for _, engine := range []string{breaker.EngineCommand, breaker.EngineDirect} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			test(t, engine)
		})
	}
}

// changes are what a registry's owner is told.
type changes struct {
	mu  sync.Mutex
	all []breaker.State
}

func (c *changes) add(_ string, s breaker.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, s)
}

func (c *changes) want(t *testing.T, want ...breaker.State) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.all, want) {
		t.Errorf("changes %v, want %v", c.all, want)
	}
}

func newBreaker(t *testing.T, s breaker.Settings) (*breaker.Breaker, *changes) {
	t.Helper()
	c := &changes{}
	r := breaker.NewRegistry(nil, c.add)
	return in(t, r, "orders", s), c
}

// leaveAlone changes for how long the breaker that was made with s is left alone
// once it is open.
func leaveAlone(t *testing.T, r *breaker.Registry, s breaker.Settings, openFor time.Duration) {
	t.Helper()
	s.OpenFor = openFor
	if _, err := r.Breaker("orders", s); err != nil {
		t.Error(err)
	}
}

func in(t *testing.T, r *breaker.Registry, name string, s breaker.Settings) *breaker.Breaker {
	t.Helper()
	b, err := r.Breaker(name, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Release(name) })
	return b
}

// via is a transport made of a function.
type via func(*http.Request) (*http.Response, error)

func (f via) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

var errReset = errors.New("connection reset")

func answer(status int) via {
	return func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
	}
}

func broken(*http.Request) (*http.Response, error) { return nil, errReset }

// hung is an instance that never answers.
func hung(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, context.Cause(r.Context())
}

// held is an instance that answers when it is let.
func held(release <-chan struct{}, entered *atomic.Int64, status int) via {
	return func(r *http.Request) (*http.Response, error) {
		entered.Add(1)
		select {
		case <-release:
			return answer(status)(r)
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
}

func request(t testing.TB, ctx context.Context) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders.test/", nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// once makes one attempt and returns its status, or its error.
func once(t testing.TB, b *breaker.Breaker, next http.RoundTripper, try time.Duration) (int, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	resp, err := b.RoundTrip(request(t, ctx), next, time.Now(), try)
	if err != nil {
		if resp != nil {
			t.Error("an error and an answer")
		}
		return 0, err
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}

// open makes a service fail until its breaker opens.
func open(t *testing.T, b *breaker.Breaker) {
	t.Helper()
	for range 100 {
		if _, err := once(t, b, via(broken), 0); errors.Is(err, breaker.ErrOpen) {
			return
		}
	}
	t.Fatalf("after 100 failures not open: %+v", b.Status())
}

// passes makes attempts that must all reach the service.
func passes(t *testing.T, b *breaker.Breaker, n int, next http.RoundTripper) {
	t.Helper()
	for i := range n {
		if _, err := once(t, b, next, 0); errors.Is(err, breaker.ErrOpen) {
			t.Fatalf("attempt %d of %d was refused: %+v", i+1, n, b.Status())
		}
	}
}

func TestOutcomes(t *testing.T) {
	wrapped := func(err error) via {
		return func(*http.Request) (*http.Response, error) {
			return nil, &url.Error{Op: "Get", URL: "http://orders.test/", Err: err}
		}
	}
	grpc := func(status string) via {
		return func(r *http.Request) (*http.Response, error) {
			resp, err := answer(200)(r)
			resp.Header.Set("Grpc-Status", status)
			return resp, err
		}
	}
	type counters = breaker.Counters
	tests := []struct {
		name   string
		next   via
		failOn []int
		status int
		err    error
		want   counters
	}{
		{"200", answer(200), nil, 200, nil, counters{Success: 1}},
		{"404 is the client's", answer(404), nil, 404, nil, counters{Success: 1}},
		{"429 is the client's", answer(429), nil, 429, nil, counters{Success: 1}},
		{"500", answer(500), nil, 500, nil, counters{Failure: 1}},
		{"501 says that the service works", answer(501), nil, 501, nil, counters{Success: 1}},
		{"502", answer(502), nil, 502, nil, counters{Failure: 1}},
		{"503", answer(503), nil, 503, nil, counters{Failure: 1}},
		{"504", answer(504), nil, 504, nil, counters{Failure: 1}},
		{"own list, not on it", answer(500), []int{503}, 500, nil, counters{Success: 1}},
		{"own list, on it", answer(429), []int{429}, 429, nil, counters{Failure: 1}},
		{"no list", answer(503), []int{}, 503, nil, counters{Success: 1}},
		{"no header", hung, nil, 0, breaker.ErrTimeout, counters{Timeout: 1}},
		{"no header matches a deadline", hung, nil, 0, context.DeadlineExceeded, counters{Timeout: 1}},
		{"reset", broken, nil, 0, errReset, counters{Failure: 1}},
		{"wrapped cancel", wrapped(context.Canceled), nil, 0, context.Canceled, counters{Canceled: 1}},
		{"dial timeout", wrapped(context.DeadlineExceeded), nil, 0, context.DeadlineExceeded, counters{Timeout: 1}},
		{"unsendable", func(*http.Request) (*http.Response, error) {
			return nil, errors.New(`net/http: invalid header field value for "X"`)
		}, nil, 0, nil, counters{Canceled: 1}},
		{"neither answer nor error", func(*http.Request) (*http.Response, error) { return nil, nil }, nil, 0, nil, counters{Failure: 1}},
		{"gRPC ok", grpc("0"), nil, 200, nil, counters{Success: 1}},
		{"gRPC not found", grpc("5"), nil, 200, nil, counters{Success: 1}},
		{"gRPC unavailable", grpc("14"), nil, 200, nil, counters{Failure: 1}},
		{"gRPC deadline", grpc("4"), nil, 200, nil, counters{Failure: 1}},
	}
	engines(t, func(t *testing.T, engine string) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				b, _ := newBreaker(t, breaker.Settings{Engine: engine, FailOn: tt.failOn})
				try := time.Minute
				if tt.want.Timeout > 0 {
					try = 20 * time.Millisecond
				}
				status, err := once(t, b, tt.next, try)
				if status != tt.status {
					t.Errorf("status %d, want %d", status, tt.status)
				}
				if (err == nil) != (tt.status != 0) || tt.err != nil && !errors.Is(err, tt.err) {
					t.Errorf("error %v, want %v", err, tt.err)
				}
				if got := b.Counters(); got != tt.want {
					t.Errorf("counters %+v, want %+v", got, tt.want)
				}
				errs := int(tt.want.Failure + tt.want.Timeout)
				if s := b.Status(); s.Requests != errs+int(tt.want.Success) || s.Errors != errs {
					t.Errorf("window %d of %d, want %d of %d", s.Errors, s.Requests, errs, errs+int(tt.want.Success))
				}
			})
		}
	})
}

// A timeout is one, whatever the transport makes of its canceled context, and
// its error keeps what the transport knows.
func TestTimeoutError(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		b, _ := newBreaker(t, breaker.Settings{Engine: engine})
		_, err := once(t, b, via(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, &url.Error{Op: "dial", Err: context.Canceled}
		}), 10*time.Millisecond)
		if !errors.Is(err, breaker.ErrTimeout) || errors.Is(err, context.Canceled) {
			t.Errorf("error %v: want a timeout and not the client's cancel", err)
		}
		var phase *url.Error
		if !errors.As(err, &phase) || phase.Op != "dial" {
			t.Errorf("error %v does not say where it was", err)
		}
		if !strings.Contains(err.Error(), "10ms") {
			t.Errorf("error %q does not name the bound", err)
		}
	})
}

func TestOpensProbesCloses(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		s, told := breaker.Settings{Engine: engine, MinRequests: 4, OpenFor: time.Hour}, &changes{}
		r := breaker.NewRegistry(nil, told.add)
		b := in(t, r, "orders", s)
		open(t, b)
		if s := b.State(); s != breaker.Open {
			t.Errorf("state %v after ErrOpen", s)
		}
		if after := b.RetryAfter(); after <= 59*time.Minute || after > time.Hour {
			t.Errorf("retry after %v, want up to an hour", after)
		}
		told.want(t, breaker.Open)

		// One request probes, and everybody can see that; the others wait, for as
		// long as an open breaker is left alone: were that short, one of them
		// could be the next probe already.
		release, entered := make(chan struct{}), &atomic.Int64{}
		probe := make(chan error, 1)
		leaveAlone(t, r, s, time.Millisecond)
		go func() {
			err := error(breaker.ErrOpen)
			for errors.Is(err, breaker.ErrOpen) && t.Context().Err() == nil {
				_, err = once(t, b, via(func(req *http.Request) (*http.Response, error) {
					leaveAlone(t, r, s, time.Hour)
					return held(release, entered, 200)(req)
				}), 0)
			}
			probe <- err
		}()
		parts.Eventually(t, 5*time.Second, "a probe is under way", func() bool { return entered.Load() == 1 })
		if s := b.State(); s != breaker.HalfOpen {
			t.Errorf("state %v during the probe", s)
		}
		told.want(t, breaker.Open, breaker.HalfOpen)
		if _, err := once(t, b, answer(200), 0); !errors.Is(err, breaker.ErrOpen) {
			t.Errorf("a second request during the probe: %v", err)
		}
		close(release)
		if err := <-probe; err != nil {
			t.Fatal(err)
		}
		// The probe's answer is out, so the next request passes.
		if status, err := once(t, b, answer(200), 0); status != 200 {
			t.Errorf("after the probe: %v", err)
		}
		if s := b.State(); s != breaker.Closed {
			t.Errorf("state %v", s)
		}
		if after := b.RetryAfter(); after != 0 {
			t.Errorf("retry after %v while closed", after)
		}
		told.want(t, breaker.Open, breaker.HalfOpen, breaker.Closed)
	})
}

func TestProbeThatDoesNotSucceed(t *testing.T) {
	probes := map[string]via{
		"fails":    answer(503),
		"hangs":    hung,
		"canceled": func(*http.Request) (*http.Response, error) { return nil, context.Canceled },
		"panics":   func(*http.Request) (*http.Response, error) { panic(http.ErrAbortHandler) },
	}
	engines(t, func(t *testing.T, engine string) {
		for name, next := range probes {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s, told := breaker.Settings{Engine: engine, MinRequests: 2, OpenFor: time.Hour}, &changes{}
				r := breaker.NewRegistry(nil, told.add)
				b := in(t, r, "orders", s)
				open(t, b)
				var asked atomic.Int64
				leaveAlone(t, r, s, time.Millisecond)
				parts.Eventually(t, 5*time.Second, "a probe was made", func() bool {
					defer func() { _ = recover() }()
					_, _ = once(t, b, via(func(req *http.Request) (*http.Response, error) {
						asked.Add(1)
						leaveAlone(t, r, s, time.Hour) // this is the only probe
						return next(req)
					}), 10*time.Millisecond)
					return asked.Load() == 1
				})
				if s := b.State(); s != breaker.Open {
					t.Errorf("state %v after the probe, want open", s)
				}
				told.want(t, breaker.Open, breaker.HalfOpen, breaker.Open)
				if got := b.Counters().Success; got != 0 {
					t.Errorf("%d successes", got)
				}
				leaveAlone(t, r, s, time.Millisecond)
				parts.Eventually(t, 5*time.Second, "the next probe closes it", func() bool {
					status, _ := once(t, b, answer(200), 0)
					return status == 200
				})
				told.want(t, breaker.Open, breaker.HalfOpen, breaker.Open, breaker.HalfOpen, breaker.Closed)
			})
		}
	})
}

// What the client does, or the gateway, says nothing of the service.
func TestNeutral(t *testing.T) {
	uploads := func(body func() io.Reader) func(context.Context) *http.Request {
		return func(ctx context.Context) *http.Request {
			r, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://orders.test/", io.NopCloser(body()))
			return r
		}
	}
	plain := uploads(func() io.Reader { return http.NoBody })
	drain := via(func(r *http.Request) (*http.Response, error) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return nil, err
		}
		return answer(200)(r)
	})
	tests := []struct {
		name    string
		request func(context.Context) *http.Request
		next    via
		end     func(cancel context.CancelFunc)
	}{
		{"client leaves", plain, hung, func(cancel context.CancelFunc) { time.AfterFunc(time.Millisecond, cancel) }},
		{"client had left", plain, answer(503), func(cancel context.CancelFunc) { cancel() }},
		{"wrapped by a client", plain, func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, &url.Error{Op: "Get", Err: r.Context().Err()}
		}, func(cancel context.CancelFunc) { time.AfterFunc(time.Millisecond, cancel) }},
		{"upload breaks", uploads(func() io.Reader {
			return io.MultiReader(strings.NewReader("half"), broke{io.ErrUnexpectedEOF})
		}), drain, nil},
		{"upload too large", uploads(func() io.Reader {
			return http.MaxBytesReader(nil, io.NopCloser(strings.NewReader("too much")), 3)
		}), drain, nil},
	}
	engines(t, func(t *testing.T, engine string) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				b, told := newBreaker(t, breaker.Settings{Engine: engine, MinRequests: 1, ErrorPercent: 1})
				for range 30 {
					ctx, cancel := context.WithCancel(t.Context())
					if tt.end != nil {
						tt.end(cancel)
					}
					if resp, err := b.RoundTrip(tt.request(ctx), tt.next, time.Now(), time.Minute); err == nil {
						resp.Body.Close()
						t.Fatal("no error")
					}
					cancel()
				}
				if got := b.Counters(); got != (breaker.Counters{Canceled: 30}) {
					t.Errorf("counters %+v", got)
				}
				passes(t, b, 5, answer(200))
				told.want(t)
			})
		}
	})
}

// Nor does it hide that the service fails: hystrix counts a canceled command as
// one more request.
func TestCancelsDoNotDilute(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		s, told := breaker.Settings{Engine: engine, MinRequests: 20, OpenFor: time.Hour}, &changes{}
		r := breaker.NewRegistry(nil, told.add)
		b := in(t, r, "canceled", s)
		cancel := via(func(*http.Request) (*http.Response, error) { return nil, context.Canceled })
		for b.State() == breaker.Closed {
			for range 5 {
				_, _ = once(t, b, cancel, 0)
			}
			_, _ = once(t, b, via(broken), 0)
		}
		if got := b.Counters().Failure; got != 20 {
			t.Errorf("it took %d failures", got)
		}
		told.want(t, breaker.Open)

		// hystrix would not have opened, so it must have been made to: else
		// nobody would probe.
		s.OpenFor = 10 * time.Millisecond
		in(t, r, "canceled", s)
		parts.Eventually(t, 5*time.Second, "a probe closes it", func() bool {
			_, _ = once(t, b, answer(200), 0)
			return b.State() == breaker.Closed
		})
		told.want(t, breaker.Open, breaker.HalfOpen, breaker.Closed)
	})
}

type broke struct{ err error }

func (b broke) Read([]byte) (int, error) { return 0, b.err }

// The overall deadline is a timer like the try's: the instance was too slow.
// hystrix alone takes a deadline for a success of sorts.
func TestDeadlineIsATimeout(t *testing.T) {
	errTotal := errors.New("the total timeout is used up")
	engines(t, func(t *testing.T, engine string) {
		b, _ := newBreaker(t, breaker.Settings{Engine: engine, MinRequests: 3})
		var err error
		parts.Eventually(t, 10*time.Second, "timeouts open the breaker", func() bool {
			ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, errTotal)
			defer cancel()
			_, err = b.RoundTrip(request(t, ctx), via(hung), time.Now(), time.Minute)
			if !errors.Is(err, breaker.ErrTimeout) && !errors.Is(err, breaker.ErrOpen) {
				t.Fatalf("error %v", err)
			}
			return errors.Is(err, breaker.ErrOpen)
		})
		if got := b.Counters(); got.Timeout < 3 {
			t.Errorf("counters %+v", got)
		}
	})
}

func TestPanicIsTheCallers(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		b, told := newBreaker(t, breaker.Settings{Engine: engine, MinRequests: 1, ErrorPercent: 1})
		for _, value := range []any{http.ErrAbortHandler, "boom"} {
			func() {
				defer func() {
					if got := recover(); got != value {
						t.Errorf("recovered %v, want %v", got, value)
					}
				}()
				_, _ = once(t, b, via(func(*http.Request) (*http.Response, error) { panic(value) }), time.Second)
			}()
		}
		passes(t, b, 5, answer(200))
		told.want(t)
	})
}

// closing is a body that knows whether it was closed.
type closing struct {
	io.Reader
	closed chan struct{}
}

func (c *closing) Close() error { close(c.closed); return nil }

// A transport that does not heed its context brings its answer when nobody
// waits for it any more.
func TestLateAnswerIsClosed(t *testing.T) {
	late := func(body *closing) (*http.Response, error) { return &http.Response{StatusCode: 200, Body: body}, nil }
	engines(t, func(t *testing.T, engine string) {
		b, _ := newBreaker(t, breaker.Settings{Engine: engine})
		body := &closing{strings.NewReader(""), make(chan struct{})}
		_, err := once(t, b, via(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return late(body)
		}), 5*time.Millisecond)
		if !errors.Is(err, breaker.ErrTimeout) {
			t.Errorf("error %v", err)
		}
		<-body.closed
		if got := b.Counters(); got != (breaker.Counters{Timeout: 1}) {
			t.Errorf("counters %+v", got)
		}
	})
	t.Run("hystrix has given up", func(t *testing.T) {
		t.Parallel()
		// hystrix counts from before the transport is asked. Where it has given up
		// by then there is no answer to close, and we would wait for ever.
		r := breaker.NewTightRegistry(nil, 700*time.Millisecond, 1024)
		b := in(t, r, "orders", breaker.Settings{})
		release, body := make(chan struct{}), &closing{strings.NewReader(""), make(chan struct{})}
		_, err := once(t, b, via(func(*http.Request) (*http.Response, error) {
			<-release
			return late(body)
		}), 0)
		if !errors.Is(err, breaker.ErrTimeout) {
			t.Errorf("error %v", err)
		}
		close(release)
		<-body.closed
		if got := b.Counters(); got != (breaker.Counters{Timeout: 1}) {
			t.Errorf("counters %+v", got)
		}
	})
	t.Run("hystrix has given up on a panic", func(t *testing.T) {
		t.Parallel()
		r := breaker.NewTightRegistry(nil, 20*time.Millisecond, 1024)
		b := in(t, r, "orders", breaker.Settings{})
		if _, err := once(t, b, via(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			panic("nobody is there to recover")
		}), 0); !errors.Is(err, breaker.ErrTimeout) {
			t.Errorf("error %v", err)
		}
	})
}

// Answers that come just when the timer fires: each is either delivered or
// closed, and counted as what the caller got.
func TestRaceWithTheTimer(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		b, _ := newBreaker(t, breaker.Settings{Engine: engine, MinRequests: 1 << 20})
		var made, closed atomic.Int64
		next := via(func(*http.Request) (*http.Response, error) {
			time.Sleep(2 * time.Millisecond)
			made.Add(1)
			return &http.Response{StatusCode: 200, Body: counted{&closed}}, nil
		})
		var delivered, late atomic.Uint64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 50 {
					switch status, err := once(t, b, next, 2*time.Millisecond); {
					case status == 200:
						delivered.Add(1)
					case errors.Is(err, breaker.ErrTimeout):
						late.Add(1)
					default:
						t.Errorf("error %v", err)
					}
				}
			})
		}
		wg.Wait()
		if made.Load() != 400 || closed.Load() != 400 {
			t.Errorf("%d answers, %d closed", made.Load(), closed.Load())
		}
		if got := b.Counters(); got.Success != delivered.Load() || got.Timeout != late.Load() {
			t.Errorf("counters %+v; callers saw %d answers, %d timeouts", got, delivered.Load(), late.Load())
		}
	})
}

type counted struct{ closed *atomic.Int64 }

func (counted) Read([]byte) (int, error) { return 0, io.EOF }
func (c counted) Close() error           { c.closed.Add(1); return nil }

// A request that began before the circuit opened says nothing of the time
// after: neither may its success close it, nor its failure open it again.
func TestLateNews(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		b, told := newBreaker(t, breaker.Settings{Engine: engine, MinRequests: 2, OpenFor: time.Hour})
		good, bad, entered := make(chan struct{}), make(chan struct{}), &atomic.Int64{}
		var goods, bads sync.WaitGroup
		for range 5 {
			goods.Go(func() { _, _ = once(t, b, held(good, entered, 200), 0) })
			bads.Go(func() { _, _ = once(t, b, held(bad, entered, 503), 0) })
		}
		parts.Eventually(t, 5*time.Second, "all are under way", func() bool { return entered.Load() == 10 })
		open(t, b)
		close(good)
		goods.Wait()
		if _, err := once(t, b, answer(200), 0); !errors.Is(err, breaker.ErrOpen) {
			t.Errorf("a late success has closed the breaker: %v", err)
		}
		if got := b.Counters().Success; got != 5 {
			t.Errorf("%d successes counted, want 5", got)
		}
		b.Reset()
		close(bad)
		bads.Wait()
		passes(t, b, 20, answer(200))
		told.want(t, breaker.Open, breaker.Closed)
	})
}

// Nor may a success that hystrix counts only after the circuit has opened:
// most of many requests fail, and once open the breaker stays open.
func TestStaysOpen(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		b, told := newBreaker(t, breaker.Settings{Engine: engine, MinRequests: 2, OpenFor: time.Hour})
		var reached atomic.Int64
		var wg sync.WaitGroup
		for i := range 16 {
			next := answer(200)
			if i%4 > 0 {
				next = answer(503)
			}
			wg.Go(func() {
				for range 100 {
					_, _ = once(t, b, via(func(r *http.Request) (*http.Response, error) {
						reached.Add(1)
						return next(r)
					}), 0)
				}
			})
		}
		wg.Wait()
		if b.State() != breaker.Open {
			t.Errorf("state %v", b.State())
		}
		if n := b.Counters().ShortCircuited; n == 0 || reached.Load()+int64(n) != 1600 {
			t.Errorf("%d refused, %d reached the service", n, reached.Load())
		}
		told.want(t, breaker.Open)
	})
}

func TestNoGoroutineIsLeft(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		defer server.Close()
		transport := &http.Transport{}
		defer transport.CloseIdleConnections()
		b, _ := newBreaker(t, breaker.Settings{Engine: engine, MinRequests: 1 << 20})
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
				if resp, err := b.RoundTrip(r, transport, time.Now(), 20*time.Millisecond); !errors.Is(err, breaker.ErrTimeout) {
					t.Errorf("error %v", err)
					if err == nil {
						resp.Body.Close()
					}
				}
			})
		}
		wg.Wait() // and TestMain looks for what is left
	})
}
