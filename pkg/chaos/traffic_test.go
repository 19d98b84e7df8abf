package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/chaos"
)

// shot is one kind of request.
type shot struct {
	method string
	path   string
	body   string
	header map[string]string
	share  int           // of all; 0: 1
	abort  time.Duration // the client leaves after so long; 0: never
}

// replayable requests may never be lost while anybody is alive.
func (s shot) replayable() bool {
	switch s.method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
		return true
	}
	return s.header["Idempotency-Key"] != ""
}

func (s shot) name() string {
	if s.method != http.MethodGet && s.replayable() && s.header != nil {
		return s.method + "+key"
	}
	return s.method
}

// mixed is what most scenarios send: mostly GETs, some requests with a body
// that may be sent twice, and some that may not.
func mixed(path string) []shot {
	return []shot{
		{method: http.MethodGet, path: path, share: 7},
		{method: http.MethodPut, path: path, body: "hello", share: 1},
		{method: http.MethodPost, path: path, body: "hello", share: 1},
		{method: http.MethodPost, path: path, body: "hello", header: map[string]string{"Idempotency-Key": "k"}, share: 1},
	}
}

func gets(path string) []shot { return []shot{{method: http.MethodGet, path: path}} }

// shotResult is what came of one request.
type shotResult struct {
	shot     *shot
	began    time.Time
	took     time.Duration
	status   int // 0: no whole answer
	reason   string
	instance string
	err      string
}

func (r *shotResult) end() time.Time { return r.began.Add(r.took) }

func (r *shotResult) ok() bool { return r.status >= 200 && r.status < 400 }

func (r *shotResult) limited() bool { return r.status == http.StatusTooManyRequests }

// failure names what went wrong the way the report does.
func (r *shotResult) failure() string {
	what := r.reason
	if what == "" {
		what = r.err
	}
	if what == "" {
		what = "from the instance"
	}
	if r.status == 0 {
		return r.shot.name() + " " + what
	}
	return fmt.Sprintf("%s %d %s", r.shot.name(), r.status, what)
}

// traffic is an open loop: so many requests a second whatever becomes of them,
// as the world sends them. A client that waits does not keep others from
// coming.
type traffic struct {
	t      testing.TB
	client *http.Client
	base   string
	shots  []shot
	cancel context.CancelFunc
	done   sync.WaitGroup
	sent   atomic.Int64

	mu      sync.Mutex
	results []shotResult
}

// patience is how long a client waits for an answer. Nothing in a scenario
// takes as long, so that who runs into it was forgotten.
const patience = 60 * time.Second

// send begins to send rate requests a second to base, until stop.
func send(t testing.TB, base string, rate int, shots []shot) *traffic {
	t.Helper()
	tr := &traffic{t: t, base: base, client: &http.Client{
		Timeout:       patience,
		Transport:     &http.Transport{MaxIdleConnsPerHost: 4096, DisableCompression: true, IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	for _, s := range shots {
		for range max(s.share, 1) {
			tr.shots = append(tr.shots, s)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	tr.cancel = cancel
	tr.done.Go(func() { tr.run(ctx, rate) })
	t.Cleanup(func() { tr.stop() })
	return tr
}

func (tr *traffic) run(ctx context.Context, rate int) {
	start := time.Now()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; {
		due := int(time.Since(start).Seconds() * float64(rate))
		if due-n > rate/2 {
			// The machine stood still: what it missed is not sent in a burst.
			start = start.Add(time.Duration(float64(due-n-rate/2) / float64(rate) * float64(time.Second)))
			due = n + rate/2
		}
		for ; n < due; n++ {
			s := &tr.shots[n%len(tr.shots)]
			tr.done.Go(func() { tr.fire(s) })
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (tr *traffic) fire(s *shot) {
	var body io.Reader
	if s.body != "" {
		// Not a type that net/http can rewind: what is lost on the way shows.
		body = io.MultiReader(strings.NewReader(s.body))
	}
	ctx := context.Background()
	if s.abort > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.abort)
		defer cancel()
	}
	req, err := http.NewRequestWithContext(ctx, s.method, tr.base+s.path, body)
	if err != nil {
		panic(err) // the scenario's own mistake
	}
	req.ContentLength = int64(len(s.body))
	for k, v := range s.header {
		req.Header.Set(k, v)
	}
	res := shotResult{shot: s, began: time.Now()}
	tr.sent.Add(1)
	resp, err := tr.client.Do(req)
	if err == nil {
		res.reason, res.instance = resp.Header.Get("X-Proconsul-Reason"), resp.Header.Get("X-Echo-Instance")
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err == nil {
			res.status = resp.StatusCode
		} else {
			res.reason = "" // the answer broke after it had begun
		}
	}
	res.took = time.Since(res.began)
	if err != nil {
		res.err = word(err)
	}
	tr.mu.Lock()
	tr.results = append(tr.results, res)
	tr.mu.Unlock()
}

// word shortens a client's error to what it is.
func word(err error) string {
	var dns net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &dns) && dns.Timeout():
		return "no answer in time"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the gateway refused the connection"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "the gateway reset the connection"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return "the gateway broke the answer off"
	}
	return err.Error()
}

// await waits until n more requests have been answered, so that what comes
// next comes under load.
func (tr *traffic) await(n int) {
	tr.t.Helper()
	tr.mu.Lock()
	want := len(tr.results) + n
	tr.mu.Unlock()
	eventually(tr.t, fmt.Sprintf("no %d further answers", n), func() bool {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		return len(tr.results) >= want
	})
}

// awaitFrom waits until the instance has answered a request that began after
// now.
func (tr *traffic) awaitFrom(instance string) time.Duration {
	tr.t.Helper()
	since := time.Now()
	tr.mu.Lock()
	next := len(tr.results)
	tr.mu.Unlock()
	eventually(tr.t, "no answer of "+instance, func() bool {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		for ; next < len(tr.results); next++ {
			if r := &tr.results[next]; r.instance == instance && r.ok() && r.began.After(since) {
				return true
			}
		}
		return false
	})
	return time.Since(since)
}

// stop sends nothing more, waits for what is under way and returns all.
func (tr *traffic) stop() []shotResult {
	tr.cancel()
	tr.done.Wait()
	tr.client.CloseIdleConnections()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.results
}

// window is a time in which requests may fail: nobody was there to answer.
type window struct{ from, to time.Time }

// overlaps reports whether a request was under way in the window.
func (w window) overlaps(r *shotResult) bool {
	return !r.end().Before(w.from) && !r.began.After(w.to)
}

// count adds what came of requests to a row.
func count(row *chaos.Row, results []shotResult, windows ...window) {
	if row.Failed == nil {
		row.Failed, row.Allowed = map[string]int{}, map[string]int{}
	}
	for i := range results {
		r := &results[i]
		if r.shot.abort > 0 {
			row.Sent++
			if r.ok() {
				row.OK++
			}
			continue // who leaves does not count what he missed
		}
		row.Sent++
		row.Longest = max(row.Longest, r.took)
		switch {
		case r.ok():
			row.OK++
		case r.limited():
			row.Limited++
		case inAny(windows, r):
			row.Allowed[r.failure()]++
		default:
			row.Failed[r.failure()]++
		}
	}
}

func inAny(windows []window, r *shotResult) bool {
	for _, w := range windows {
		if w.overlaps(r) {
			return true
		}
	}
	return false
}
