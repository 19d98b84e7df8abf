package parts

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// LoadOptions describe the requests of a Load.
type LoadOptions struct {
	URLs    []string // taken in turn
	Workers int      // requests at once; 0: 4
	Method  string   // empty: GET
	Header  http.Header
	// From is the address that the requests come from, as 127.0.0.2; empty:
	// the system chooses, which is 127.0.0.1.
	From string
	// Pace is the time between two requests of one worker; 0: none.
	Pace time.Duration
	// TLS is for https URLs; Fresh makes a connection, and a handshake, for each
	// request, and HTTP2 speaks nothing else.
	TLS          *tls.Config
	Fresh, HTTP2 bool
	// Body, if set, makes the body of each request.
	Body func() io.Reader
}

// Tally is what the clients of a load saw.
type Tally struct {
	Requests  int
	Status    map[int]int    // answers by status code
	Reasons   map[string]int // the gateway's own answers by X-Proconsul-Reason
	Instances map[string]int // answers of instances by X-Echo-Instance
	Errors    int            // requests without a whole answer
	Longest   time.Duration  // of all requests, to the end of the body
	Samples   []string       // the first few failures, for messages
}

// Failed returns how many requests got no answer or a 5xx.
func (t Tally) Failed() int {
	n := t.Errors
	for code, count := range t.Status {
		if code >= 500 {
			n += count
		}
	}
	return n
}

// String sums the tally up in one line, and the failures below it.
func (t Tally) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d requests, longest %v, %d without an answer, status", t.Requests, t.Longest.Round(time.Millisecond), t.Errors)
	for _, code := range slices.Sorted(maps.Keys(t.Status)) {
		fmt.Fprintf(&b, " %d:%d", code, t.Status[code])
	}
	for _, reason := range slices.Sorted(maps.Keys(t.Reasons)) {
		fmt.Fprintf(&b, " %s:%d", reason, t.Reasons[reason])
	}
	for _, id := range slices.Sorted(maps.Keys(t.Instances)) {
		fmt.Fprintf(&b, " %s:%d", id, t.Instances[id])
	}
	for _, s := range t.Samples {
		b.WriteString("\n\t" + s)
	}
	return b.String()
}

// Load is requests under way, with what came of each counted.
type Load struct {
	t      testing.TB
	o      LoadOptions
	client *http.Client
	cancel context.CancelFunc
	ctx    context.Context
	left   atomic.Int64 // requests that may still be begun
	next   atomic.Int64
	done   sync.WaitGroup

	mu    sync.Mutex
	tally Tally
	open  map[int64]bool // numbers of the requests under way
}

// maxSamples is how many failures a Tally quotes.
const maxSamples = 8

// StartLoad begins to send requests until Stop, or the end of the test. Each
// connection is kept alive and used again, as a browser's or a balancer's is.
func StartLoad(t testing.TB, o LoadOptions) *Load {
	return startLoad(t, o, 1<<62)
}

// Fire sends exactly n requests, o.Workers at once, and returns what came of
// them.
func Fire(t testing.TB, n int, o LoadOptions) Tally {
	l := startLoad(t, o, int64(n))
	l.done.Wait()
	return l.Stop()
}

func startLoad(t testing.TB, o LoadOptions, n int64) *Load {
	if o.Workers == 0 {
		o.Workers = 4
	}
	if o.Method == "" {
		o.Method = http.MethodGet
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	if o.From != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(o.From)}
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!o.HTTP2)
	protocols.SetHTTP2(o.HTTP2)
	l := &Load{t: t, o: o, client: &http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{DialContext: dialer.DialContext, MaxIdleConnsPerHost: o.Workers, DisableCompression: true,
			TLSClientConfig: o.TLS.Clone(), DisableKeepAlives: o.Fresh, Protocols: protocols},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	l.tally = Tally{Status: map[int]int{}, Reasons: map[string]int{}, Instances: map[string]int{}}
	l.open = map[int64]bool{}
	l.left.Store(n)
	l.ctx, l.cancel = context.WithCancel(context.Background())
	for range o.Workers {
		l.done.Go(l.work)
	}
	t.Cleanup(func() { l.Stop() })
	return l
}

// Stop begins no further request, waits for those under way, and returns what
// came of all.
func (l *Load) Stop() Tally {
	l.cancel()
	l.done.Wait()
	l.client.CloseIdleConnections()
	return l.Tally()
}

// Tally returns what came of the requests so far.
func (l *Load) Tally() Tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tally
	t.Status, t.Reasons, t.Instances = maps.Clone(t.Status), maps.Clone(t.Reasons), maps.Clone(t.Instances)
	t.Samples = slices.Clone(t.Samples)
	return t
}

// Await waits until n more requests have been answered than now, so that what
// a test does next is known to happen under load.
func (l *Load) Await(n int) {
	l.t.Helper()
	from := l.Tally().Requests
	Eventually(l.t, startPatience, fmt.Sprintf("the load has not come %d requests further", n), func() bool {
		return l.Tally().Requests >= from+n
	})
}

// AwaitOpen waits until the requests that are under way now are in the tally,
// so that what it counts from then on was begun after the call.
func (l *Load) AwaitOpen() {
	l.t.Helper()
	l.mu.Lock()
	open := maps.Clone(l.open)
	l.mu.Unlock()
	Eventually(l.t, startPatience, "requests of the load stay under way", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		maps.DeleteFunc(open, func(n int64, _ bool) bool { return !l.open[n] })
		return len(open) == 0
	})
}

func (l *Load) work() {
	for l.ctx.Err() == nil && l.left.Add(-1) >= 0 {
		l.once()
		if l.o.Pace > 0 {
			select {
			case <-l.ctx.Done():
			case <-time.After(l.o.Pace):
			}
		}
	}
}

func (l *Load) once() {
	n := l.next.Add(1) - 1
	url := l.o.URLs[int(n)%len(l.o.URLs)]
	l.mu.Lock()
	l.open[n] = true
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.open, n)
		l.mu.Unlock()
	}()
	var body io.Reader
	if l.o.Body != nil {
		body = l.o.Body()
	}
	// Not l.ctx: a request that has begun is waited for.
	req, err := http.NewRequest(l.o.Method, url, body)
	if err != nil {
		panic(err) // the test's own mistake
	}
	maps.Copy(req.Header, l.o.Header)
	began := time.Now()
	resp, err := l.client.Do(req)
	if err != nil {
		l.count(nil, time.Since(began), fmt.Sprintf("%s: %v", url, err))
		return
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	took := time.Since(began)
	switch {
	case err != nil:
		l.count(nil, took, fmt.Sprintf("%s: %s, then %v after %d bytes", url, resp.Status, err, len(text)))
	case resp.StatusCode >= 500:
		l.count(resp, took, fmt.Sprintf("%s: %s %s", url, resp.Status, text))
	default:
		l.count(resp, took, "")
	}
}

func (l *Load) count(resp *http.Response, took time.Duration, failure string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := &l.tally
	t.Requests++
	t.Longest = max(t.Longest, took)
	if failure != "" && len(t.Samples) < maxSamples {
		t.Samples = append(t.Samples, time.Now().Format("15:04:05.000 ")+failure)
	}
	if resp == nil {
		t.Errors++
		return
	}
	t.Status[resp.StatusCode]++
	if reason := resp.Header.Get("X-Proconsul-Reason"); reason != "" {
		t.Reasons[reason]++
	}
	if id := resp.Header.Get("X-Echo-Instance"); id != "" {
		t.Instances[id]++
	}
}
