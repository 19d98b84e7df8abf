package proxy

import (
	"context"
	"errors"
	"maps"
	"math"
	"net/http"
	"strconv"
	"time"
)

// errDeadline ends a gRPC call whose time is up. It is no timeout to whoever
// asks it: clients choose their deadlines, and none may open a breaker by them.
var errDeadline = errors.New("the call's deadline has passed")

// deadline is how long a gRPC call may take as a whole, its streams included.
// The zero value is none.
type deadline struct {
	at     time.Time
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

// begin returns the request as it ends when the time that Grpc-Timeout gives it
// is up.
func (d *deadline) begin(r *http.Request, start time.Time) *http.Request {
	line := r.Header["Grpc-Timeout"]
	if len(line) != 1 {
		return r
	}
	timeout, ok := parseTimeout(line[0])
	if !ok {
		return r // the instance will have its say
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	d.at, d.cancel = start.Add(timeout), cancel
	d.timer = time.AfterFunc(time.Until(d.at), func() { cancel(errDeadline) })
	return r.WithContext(ctx)
}

// end lets go of the timer.
func (d *deadline) end() {
	if d.cancel != nil {
		d.timer.Stop()
		d.cancel(nil)
	}
}

// told returns a header by which the instance of a further attempt knows how
// much of the time is left.
func (d *deadline) told(h http.Header, now time.Time) http.Header {
	if d.cancel == nil {
		return h
	}
	h = maps.Clone(h) // the transport of an earlier try may still read it
	left := max(d.at.Sub(now).Milliseconds(), 1)
	h["Grpc-Timeout"] = []string{strconv.FormatInt(min(left, 99_999_999), 10) + "m"}
	return h
}

// punctual is a transport whose failures at the deadline are the deadline's: an
// instance that was told of it resets the call by a timer of its own, which may
// be seen before ours.
type punctual struct {
	next http.RoundTripper
	at   time.Time
}

// RoundTrip implements http.RoundTripper.
func (p punctual) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := p.next.RoundTrip(r)
	if err != nil && time.Until(p.at) < time.Millisecond { // further tries are told of it in milliseconds
		<-r.Context().Done()
	}
	return resp, err
}

// overdue reports whether the call's deadline is what ended it.
func (f *flight) overdue() bool {
	return f.deadline.cancel != nil && errors.Is(context.Cause(f.r.Context()), errDeadline)
}

// parseTimeout reads a Grpc-Timeout: at most eight digits and a unit.
func parseTimeout(s string) (time.Duration, bool) {
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	var unit time.Duration
	switch s[len(s)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		return 0, false
	}
	var n int64
	for _, c := range []byte(s[:len(s)-1]) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	if n > math.MaxInt64/int64(unit) {
		return 0, false // longer than anybody waits
	}
	return time.Duration(n) * unit, true
}
