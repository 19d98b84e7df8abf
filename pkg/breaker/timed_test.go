package breaker_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/breaker"
)

// timed is a transport that keeps the time of a try itself.
type timed func(req *http.Request, by time.Time) (*http.Response, error)

func (f timed) RoundTripBy(req *http.Request, by time.Time) (*http.Response, error) {
	return f(req, by)
}

func (f timed) RoundTrip(req *http.Request) (*http.Response, error) { return f(req, time.Time{}) }

// A transport that keeps the time is told it, and what it says counts as what
// the breaker's own timer would have said. Requests with a body have the timer,
// which stands still while the client is waited for.
func TestTimed(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		b, _ := newBreaker(t, breaker.Settings{Engine: engine})
		answer := &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody}
		until := func(req *http.Request, by time.Time) (*http.Response, error) {
			if by.IsZero() {
				t.Error("no time is given")
			}
			time.Sleep(time.Until(by))
			return nil, context.DeadlineExceeded
		}
		_, err := b.RoundTrip(request(t, t.Context()), timed(until), time.Now(), 20*time.Millisecond)
		if !errors.Is(err, breaker.ErrTimeout) || !strings.Contains(err.Error(), "20ms") {
			t.Errorf("got error %v, want a timeout after 20ms", err)
		}
		early := errors.New("refused")
		if _, err = b.RoundTrip(request(t, t.Context()), timed(func(*http.Request, time.Time) (*http.Response, error) { return nil, early }), time.Now(), time.Minute); err != early {
			t.Errorf("got error %v, want the transport's", err)
		}
		for range 3 {
			resp, err := b.RoundTrip(request(t, t.Context()), timed(func(*http.Request, time.Time) (*http.Response, error) { return answer, nil }), time.Now(), time.Minute)
			if resp != answer || err != nil {
				t.Errorf("got %v, %v", resp, err)
			}
		}
		left, leave := context.WithCancel(t.Context())
		_, err = b.RoundTrip(request(t, left), timed(func(req *http.Request, by time.Time) (*http.Response, error) {
			leave()
			return nil, context.Cause(req.Context())
		}), time.Now(), time.Minute)
		if err != context.Canceled {
			t.Errorf("got error %v, want that the client has left", err)
		}
		post := request(t, t.Context())
		post.Body = http.MaxBytesReader(nil, http.NoBody, 1)
		if _, err := b.RoundTrip(post, timed(func(_ *http.Request, by time.Time) (*http.Response, error) {
			if !by.IsZero() {
				t.Error("a request with a body is timed by the transport")
			}
			return answer, nil
		}), time.Now(), time.Minute); err != nil {
			t.Error(err)
		}
		if got := b.Counters(); got != (breaker.Counters{Success: 4, Failure: 1, Timeout: 1, Canceled: 1}) {
			t.Errorf("got %+v", got)
		}
	})
}
