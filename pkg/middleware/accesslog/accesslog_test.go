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
	"regexp"
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

// text serves one hostile and full request through a log of that form.
func text(t *testing.T, c config.AccessLog, x *middleware.Exchange, r *http.Request) string {
	t.Helper()
	c.Sample = 100
	var out bytes.Buffer
	l := accesslog.NewLog(&out, c, quiet)
	request(l, x, r, func(w http.ResponseWriter, r *http.Request) {
		clear(r.Header) // as the proxy uses it up
		w.WriteHeader(201)
		_, _ = io.WriteString(w, "hello")
	})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = l.Run(ctx)
	return out.String()
}

func full() (*middleware.Exchange, *http.Request) {
	x := middleware.NewExchange(httptest.NewRecorder(), time.Now())
	x.RequestID, x.ClientIP, x.Host, x.Path, x.Scheme = "id-1", netip.MustParseAddr("203.0.113.9"), "shop.test", "/a", "https"
	x.Route, x.Upstream, x.Instance, x.Consumer, x.RateLimit = "orders", "orders-up", "n/i1", "acme", "allowed"
	x.Attempts = []middleware.Attempt{{Instance: "n/i0", Address: "10.0.0.1:80"}, {Instance: "n/i1", Address: "10.0.0.2:80"}}
	x.Trace = &middleware.Trace{ID: middleware.TraceID{1}, Span: middleware.SpanID{2}}
	r := httptest.NewRequest("GET", "/a?token=secret", nil)
	r.RemoteAddr = "10.9.9.9:4711"
	r.Header.Set("User-Agent", `curl/8 "quoted"`)
	r.Header.Set("Referer", "https://shop.test/page?key=secret")
	r.Header.Set("Authorization", "secret")
	return x, r
}

func TestForms(t *testing.T) {
	const id, span = "01000000000000000000000000000000", "0200000000000000"
	tests := []struct {
		name string
		c    config.AccessLog
		want string // a regular expression for the whole
	}{
		{"clf", config.AccessLog{Format: "clf"}, `^203\.0\.113\.9 - acme \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000\] "GET /a HTTP/1\.1" 201 5\n$`},
		{"combined", config.AccessLog{Format: "combined"}, `^203\.0\.113\.9 - acme \[[^]]+\] "GET /a HTTP/1\.1" 201 5 "https://shop\.test/page" "curl/8 \\"quoted\\""\n$`},
		{"otel", config.AccessLog{Format: "otel"}, `^\{"timestamp":"[^"]+","trace_id":"` + id + `","span_id":"` + span + `","client\.address":"203\.0\.113\.9","http\.request\.method":"GET","url\.scheme":"https","server\.address":"shop\.test","url\.path":"/a","network\.protocol\.version":"1\.1","http\.response\.status_code":201,"http\.request\.body\.size":0,"http\.response\.body\.size":5,"http\.server\.request\.duration":[0-9.]+,"proconsul\.request_id":"id-1","proconsul\.consumer":"acme","proconsul\.route":"orders","proconsul\.upstream":"orders-up","proconsul\.instance":"n/i1","proconsul\.ratelimit":"allowed","proconsul\.tries":2\}\n$`},
		{"template", config.AccessLog{Format: "template", Template: `$$ $remote_host $remote_addr "$request" $response_status/$response_body_size $route $upstream_service $upstream_instance $upstream_addr $upstream_tries $trace_id $span_id $reason "$header.user-agent" end`},
			`^\$ 203\.0\.113\.9 10\.9\.9\.9:4711 "GET /a HTTP/1\.1" 201/5 orders orders-up n/i1 10\.0\.0\.2:80 2 ` + id + ` ` + span + ` - "curl/8 \\"quoted\\"" end\n$`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x, r := full()
			got := text(t, tt.c, x, r)
			if !regexp.MustCompile(tt.want).MatchString(got) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if strings.Contains(got, "secret") {
				t.Errorf("a secret shows: %s", got)
			}
		})
	}
}

// Every variable that the configuration takes has a value, and no other.
func TestEveryVariableHasAValue(t *testing.T) {
	for _, v := range config.LogVariables() {
		x, r := full()
		x.FirstByte, x.Cache, x.Reason = time.Millisecond, "hit", "upstream_reset"
		if got := text(t, config.AccessLog{Format: "template", Template: v}, x, r); got == "-\n" || strings.Contains(got, "$") || len(got) < 2 {
			t.Errorf("%s is %q", v, got)
		}
	}
}

// Whatever a client sends is one line in every form, and its values stay
// inside their quotes.
func TestNoFormIsForged(t *testing.T) {
	hostile := "a\" 200 5\n203.0.113.1 - - \x1b[31m\r\u2028\u0085\xff\\"
	for _, c := range []config.AccessLog{{Format: "json"}, {Format: "otel"}, {Format: "clf"}, {Format: "combined"},
		{Format: "template", Template: `$request_method $request_uri "$request_host" $header.User-Agent "$header.X-Any" $request_id`}} {
		x, r := full()
		x.Path, x.Host = hostile, hostile
		r.Method = hostile
		r.Header["User-Agent"], r.Header["X-Any"], r.Header["Referer"] = []string{hostile}, []string{hostile}, []string{hostile}
		got := text(t, c, x, r)
		if strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, "\n") {
			t.Errorf("%s: not one line: %q", c.Format, got)
		}
		for _, b := range strings.TrimSuffix(got, "\n") {
			if b < 0x20 || b >= 0x7f && b < 0xa0 || b == 0x2028 || b == 0xfffd {
				t.Errorf("%s: %q stands in %q", c.Format, b, got)
			}
		}
		if (c.Format == "json" || c.Format == "otel") != json.Valid([]byte(got)) {
			t.Errorf("%s: JSON? %q", c.Format, got)
		}
		bare := strings.NewReplacer(`\\`, "", `\"`, "").Replace(got)
		if strings.Count(bare, `"`)%2 != 0 {
			t.Errorf("%s: quotes are broken: %q", c.Format, got)
		}
	}
}

func TestTheFilter(t *testing.T) {
	filter := &config.AccessLogFilter{Status: []string{"404", "410-429"}, MinDuration: time.Minute, Retried: true}
	tests := []struct {
		name string
		h    func(x *middleware.Exchange)
		want bool
	}{
		{"ordinary", func(x *middleware.Exchange) { x.WriteHeader(200) }, false},
		{"a status", func(x *middleware.Exchange) { x.WriteHeader(404) }, true},
		{"in a range", func(x *middleware.Exchange) { x.WriteHeader(418) }, true},
		{"beside the range", func(x *middleware.Exchange) { x.WriteHeader(409) }, false},
		{"retried", func(x *middleware.Exchange) { x.Attempts = make([]middleware.Attempt, 2) }, true},
		{"tried once", func(x *middleware.Exchange) { x.Attempts = make([]middleware.Attempt, 1) }, false},
		{"long", func(x *middleware.Exchange) { x.Start = x.Start.Add(-time.Hour) }, true},
		{"failed", func(x *middleware.Exchange) { x.WriteHeader(503) }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := lines(t, config.AccessLog{Sample: 100, Filter: filter}, func(l *accesslog.Log) {
				x := middleware.NewExchange(httptest.NewRecorder(), time.Now())
				request(l, x, httptest.NewRequest("GET", "/", nil), func(http.ResponseWriter, *http.Request) { tt.h(x) })
			})
			if (len(got) == 1) != tt.want {
				t.Errorf("got %d lines, want one: %v", len(got), tt.want)
			}
		})
	}
}
