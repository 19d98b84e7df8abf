package accesslog_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/accesslog"
	"github.com/proconsul/proconsul/pkg/problem"
)

var quiet = slog.New(slog.DiscardHandler)

// lines serves requests through a log and returns what it wrote.
func lines(t *testing.T, c config.AccessLog, serve func(l *accesslog.Log)) []map[string]any {
	t.Helper()
	var out bytes.Buffer
	l := accesslog.NewLog(&out, c, quiet)
	serve(l)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	for line := range strings.SplitSeq(strings.TrimSuffix(out.String(), "\n"), "\n") {
		if line == "" {
			continue
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, m)
	}
	return all
}

func request(l *accesslog.Log, x *middleware.Exchange, r *http.Request, h http.HandlerFunc) {
	defer func() { _ = recover() }()
	accesslog.New(l)(h).ServeHTTP(x, r)
}

func TestLine(t *testing.T) {
	start := time.Now().Add(-time.Second)
	got := lines(t, config.AccessLog{Sample: 100}, func(l *accesslog.Log) {
		x := middleware.NewExchange(httptest.NewRecorder(), start)
		x.RequestID, x.ClientIP, x.Host, x.Path, x.Scheme = "id-1", netip.MustParseAddr("203.0.113.9"), "shop.test", "/a%22/b", "https"
		x.Route, x.Upstream = "orders", "orders"
		r := httptest.NewRequest("POST", "/a%22/b?token=secret", nil)
		r.Header.Set("Authorization", "secret")
		r.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		request(l, x, r, func(w http.ResponseWriter, r *http.Request) {
			x.Instance, x.BytesIn, x.Upstreamed, x.FirstByte = "n/i2", 7, 30*time.Millisecond, 40*time.Millisecond
			x.Attempts = []middleware.Attempt{{Instance: "n/i1", Reason: "upstream_refused", Duration: 1500 * time.Microsecond}, {Instance: "n/i2", Status: 200, Duration: 28 * time.Millisecond}}
			x.RateLimit, x.Cache, x.Consumer = "allowed", "miss", "acme"
			r.Method = "rewritten"
			_, _ = io.WriteString(w, "hello")
		})
	})
	if len(got) != 1 {
		t.Fatalf("got %d lines, want 1", len(got))
	}
	m := got[0]
	if d, _ := m["dur_ms"].(float64); d < 1000 || d > 60000 {
		t.Errorf("got dur_ms %v", m["dur_ms"])
	}
	if at, err := time.Parse(time.RFC3339, m["time"].(string)); err != nil || at.Sub(start).Abs() > time.Millisecond {
		t.Errorf("got time %v", m["time"])
	}
	delete(m, "dur_ms")
	delete(m, "time")
	want := map[string]any{
		"request_id": "id-1", "trace_id": "0af7651916cd43dd8448eb211c80319c", "client_ip": "203.0.113.9", "consumer": "acme", "method": "POST", "scheme": "https",
		"host": "shop.test", "path": "/a%22/b", "proto": "HTTP/1.1", "route": "orders", "service": "orders", "instance": "n/i2",
		"status": 200., "bytes_in": 7., "bytes_out": 5., "upstream_ms": 30., "ttfb_ms": 40., "cache": "miss", "ratelimit": "allowed",
		"attempts": []any{map[string]any{"instance": "n/i1", "reason": "upstream_refused", "dur_ms": 1.5}, map[string]any{"instance": "n/i2", "status": 200., "dur_ms": 28.}},
	}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("got  %v\nwant %v", m, want)
	}
}

func TestOutcomes(t *testing.T) {
	tests := []struct {
		name   string
		h      http.HandlerFunc
		status float64
		reason any
		extra  string
	}{
		{"silent handler", func(http.ResponseWriter, *http.Request) {}, 200, nil, ""},
		{"problem with its cause", func(w http.ResponseWriter, r *http.Request) {
			problem.Write(w, r, problem.New(problem.UpstreamReset, "", errors.New("read: eof")))
		}, 502, "upstream_reset", "err"},
		{"client gone", func(w http.ResponseWriter, r *http.Request) {
			problem.Write(w, r, problem.New(problem.ClientCanceled, "", nil))
		}, 499, "client_canceled", ""},
		{"aborted answer", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(200); panic(http.ErrAbortHandler) }, 200, nil, "aborted"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := lines(t, config.AccessLog{Sample: 100}, func(l *accesslog.Log) {
				request(l, middleware.NewExchange(httptest.NewRecorder(), time.Now()), httptest.NewRequest("GET", "/", nil), tt.h)
			})
			if len(got) != 1 || got[0]["status"] != tt.status || got[0]["reason"] != tt.reason {
				t.Fatalf("got %v, want status %v reason %v", got, tt.status, tt.reason)
			}
			if _, ok := got[0][tt.extra]; tt.extra != "" && !ok {
				t.Errorf("%q is missing: %v", tt.extra, got[0])
			}
		})
	}
}

func TestSamplingKeepsWhatMatters(t *testing.T) {
	old := time.Now().Add(-time.Minute)
	tests := []struct {
		name  string
		c     config.AccessLog
		start time.Time
		h     func(x *middleware.Exchange)
		want  bool
	}{
		{"ordinary", config.AccessLog{}, time.Now(), func(x *middleware.Exchange) { x.WriteHeader(200) }, false},
		{"client's error", config.AccessLog{}, time.Now(), func(x *middleware.Exchange) { x.WriteHeader(404) }, false},
		{"our error", config.AccessLog{}, time.Now(), func(x *middleware.Exchange) { x.WriteHeader(500) }, true},
		{"limited", config.AccessLog{}, time.Now(), func(x *middleware.Exchange) { x.RateLimit = "limited"; x.WriteHeader(429) }, true},
		{"slow", config.AccessLog{Slow: time.Second}, old, func(x *middleware.Exchange) {}, true},
		{"slow does not matter", config.AccessLog{}, old, func(x *middleware.Exchange) {}, false},
		{"a long connection is not slow", config.AccessLog{Slow: time.Second}, old, func(x *middleware.Exchange) { x.Hijacked = true }, false},
		{"aborted", config.AccessLog{}, time.Now(), func(x *middleware.Exchange) { x.WriteHeader(200); panic(http.ErrAbortHandler) }, true},
		{"disabled", config.AccessLog{Disabled: true, Sample: 100}, time.Now(), func(x *middleware.Exchange) { x.WriteHeader(500) }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := lines(t, tt.c, func(l *accesslog.Log) {
				x := middleware.NewExchange(httptest.NewRecorder(), tt.start)
				request(l, x, httptest.NewRequest("GET", "/", nil), func(http.ResponseWriter, *http.Request) { tt.h(x) })
			})
			if (len(got) == 1) != tt.want {
				t.Errorf("got %d lines, want one: %v", len(got), tt.want)
			}
		})
	}
	n := len(lines(t, config.AccessLog{Sample: 10}, func(l *accesslog.Log) {
		for range 2000 {
			request(l, middleware.NewExchange(httptest.NewRecorder(), time.Now()), httptest.NewRequest("GET", "/", nil), func(http.ResponseWriter, *http.Request) {})
		}
	}))
	if n < 100 || n > 320 { // nine standard deviations
		t.Errorf("a sample of 10%% of 2000 gave %d lines", n)
	}
}

// blocked is a writer that waits until it may go on.
type blocked struct {
	gate chan struct{}
	mu   sync.Mutex
	n    int
}

func (b *blocked) Write(p []byte) (int, error) {
	<-b.gate
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n += bytes.Count(p, []byte{'\n'})
	return len(p), nil
}

// A log that cannot be written costs lines, never requests.
func TestFullBufferDrops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &blocked{gate: make(chan struct{})}
		l := accesslog.NewLog(out, config.AccessLog{Sample: 100}, quiet)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		path := strings.Repeat("x", 10000)
		total := 2000 // 20 MB
		for range total {
			x := middleware.NewExchange(httptest.NewRecorder(), time.Now())
			x.Path = path
			request(l, x, httptest.NewRequest("GET", "/", nil), func(http.ResponseWriter, *http.Request) {})
		}
		synctest.Wait()
		if l.Dropped() == 0 {
			t.Error("nothing was dropped by a log that is stuck")
		}
		close(out.gate)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if out.n+int(l.Dropped()) != total {
			t.Errorf("%d written and %d dropped of %d", out.n, l.Dropped(), total)
		}
	})
}

func TestLinesAppearWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &blocked{gate: make(chan struct{})}
		close(out.gate)
		l := accesslog.NewLog(out, config.AccessLog{Sample: 100}, quiet)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		request(l, middleware.NewExchange(httptest.NewRecorder(), time.Now()), httptest.NewRequest("GET", "/", nil), func(http.ResponseWriter, *http.Request) {})
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		out.mu.Lock()
		if out.n != 1 {
			t.Errorf("got %d lines after a second, want 1", out.n)
		}
		out.mu.Unlock()
		cancel()
		<-done
	})
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestFailedWritesAreCountedAndLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		l := accesslog.NewLog(failing{}, config.AccessLog{Sample: 100}, slog.New(slog.NewJSONHandler(&log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		for range 3 {
			request(l, middleware.NewExchange(httptest.NewRecorder(), time.Now()), httptest.NewRequest("GET", "/", nil), func(http.ResponseWriter, *http.Request) {})
			time.Sleep(2 * time.Second)
		}
		cancel()
		<-done
		if l.Dropped() != 3 {
			t.Errorf("got %d dropped, want 3", l.Dropped())
		}
		if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "disk full") {
			t.Errorf("got %d log lines, want one about the full disk: %s", n, log.String())
		}
	})
}

// Whatever a client sends, a line is one line of JSON and clean on a terminal.
func FuzzLine(f *testing.F) {
	f.Add("GET", "/a\"\\\n\x1b[31m", "host\x00", "\xff\xfe\u2028\u0085")
	f.Fuzz(func(t *testing.T, method, path, host, cause string) {
		var out bytes.Buffer
		l := accesslog.NewLog(&out, config.AccessLog{Sample: 100}, quiet)
		x := middleware.NewExchange(httptest.NewRecorder(), time.Now())
		x.Path, x.Host, x.Err = path, host, errors.New(cause)
		r := httptest.NewRequest("GET", "/", nil)
		r.Method = method
		request(l, x, r, func(http.ResponseWriter, *http.Request) {})
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = l.Run(ctx)
		b := out.Bytes()
		if !json.Valid(b) || bytes.Count(b, []byte{'\n'}) != 1 {
			t.Fatalf("not one line of JSON: %q", b)
		}
		for _, c := range string(b[:len(b)-1]) {
			if c < 0x20 || c >= 0x7f && c < 0xa0 || c == 0x2028 || c == 0x2029 {
				t.Fatalf("control character %q in %q", c, b)
			}
		}
	})
}

func BenchmarkLine(b *testing.B) {
	l := accesslog.NewLog(io.Discard, config.AccessLog{Sample: 100}, quiet)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	h := accesslog.New(l)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	x := middleware.NewExchange(httptest.NewRecorder(), time.Now())
	x.RequestID, x.ClientIP, x.Host, x.Path, x.Route, x.Upstream, x.Instance = "01K", netip.MustParseAddr("203.0.113.9"), "shop.test", "/api/orders/42", "orders", "orders", "n/i"
	r := httptest.NewRequest("GET", "/api/orders/42", nil)
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(x, r)
	}
	cancel()
	<-done
}
