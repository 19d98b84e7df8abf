package transport_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/parts"
	"github.com/proconsul/proconsul/pkg/transport"
)

// std is http.Transport as a gateway would tune it.
func std() *http.Transport {
	return &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true, ForceAttemptHTTP2: false}
}

// echoes answers every request as fast as Go can: it looks for the end of the
// header and, where there is one, takes a body of the given size.
func echoes(b testing.TB, answer string, body int) *server {
	return serve(b, func(c net.Conn, _ *bufio.Reader, _ int) {
		buf, out := make([]byte, 64<<10), []byte(answer)
		n := 0
		for {
			m, err := c.Read(buf[n:])
			if err != nil {
				return
			}
			n += m
			if i := bytes.Index(buf[:n], []byte("\r\n\r\n")); i < 0 || n < i+4+body {
				continue
			}
			n = 0
			if _, err := c.Write(out); err != nil {
				return
			}
		}
	})
}

// What a request costs in allocations: the answer, its header's map, and what
// watching a context that can be canceled takes.
func TestAllocations(t *testing.T) {
	if raceEnabled() {
		t.Log("the race detector makes its own")
		return
	}
	s := echoes(t, "HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\nok", 0)
	for _, tt := range []struct {
		name  string
		sweep time.Duration
		watch bool
		want  float64
	}{{"no context", 0, false, 3}, {"watched", 0, true, 8}, {"swept", time.Second, true, 3}} {
		tr := client(t, transport.Options{Sweep: tt.sweep})
		base, err := http.NewRequest("GET", s.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		reqs := make([]*http.Request, 201)
		for i := range reqs { // beforehand: they are not the transport's
			reqs[i] = base
			if tt.watch {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				reqs[i] = base.WithContext(ctx)
			}
		}
		i := 0
		got := testing.AllocsPerRun(len(reqs)-1, func() {
			resp, err := tr.RoundTrip(reqs[i])
			i++
			if err != nil {
				t.Fatal(err)
			}
			if n, err := resp.Body.Read(buf); n != 2 || err != io.EOF {
				t.Fatal(n, err)
			}
		})
		if got > tt.want {
			t.Errorf("%s: %v allocations, want at most %v", tt.name, got, tt.want)
		}
		t.Log(tt.name, got)
	}
}

// raceEnabled reports whether the race detector runs, under which pools forget
// at random.
func raceEnabled() bool {
	bi, _ := debug.ReadBuildInfo()
	for _, s := range bi.Settings {
		if s.Key == "-race" {
			return s.Value == "true"
		}
	}
	return false
}

// BenchmarkRoundTrip has the server in the same process; what differs between
// the engines is the client alone. cpu-us is of both.
func BenchmarkRoundTrip(b *testing.B) {
	shapes := []struct {
		name, answer string
		body         int
	}{
		{"get 1KiB", "HTTP/1.1 200 OK\r\nServer: x\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n" + ok(strings.Repeat("a", 1024))[17:], 0},
		{"get chunked", "HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + strings.Repeat("a", 1024) + "\r\n0\r\n\r\n", 0},
		{"post 512B", ok("ok"), 512},
		{"get 100KiB", ok(strings.Repeat("a", 100<<10)), 0},
	}
	for _, shape := range shapes {
		for _, engine := range []string{"std", "fast", "fast sweep"} {
			b.Run(fmt.Sprintf("%s/%s", shape.name, engine), func(b *testing.B) {
				s := echoes(b, shape.answer, shape.body)
				var rt http.RoundTripper
				switch engine {
				case "std":
					t := std()
					defer t.CloseIdleConnections()
					rt = t
				case "fast":
					rt = client(b, transport.Options{})
				default:
					rt = client(b, transport.Options{Sweep: 50 * time.Millisecond})
				}
				payload := strings.Repeat("p", shape.body)
				buf := make([]byte, 32<<10)
				base, err := http.NewRequest("GET", s.url, nil)
				if err != nil {
					b.Fatal(err)
				}
				base.Header = http.Header{"User-Agent": {"bench"}, "Accept": {"*/*"}, "X-Forwarded-For": {"10.0.0.1"}, "X-Request-Id": {"0123456789abcdef"}}
				b.ReportAllocs()
				cpu := parts.CPU(b)
				for b.Loop() {
					ctx, cancel := context.WithCancel(context.Background())
					req := base.WithContext(ctx)
					if shape.body > 0 {
						req.Method, req.ContentLength = "POST", int64(shape.body)
						req.Body = io.NopCloser(strings.NewReader(payload))
					}
					resp, err := rt.RoundTrip(req)
					if err != nil {
						b.Fatal(err)
					}
					for err == nil {
						_, err = resp.Body.Read(buf)
					}
					if err != io.EOF {
						b.Fatal(err)
					}
					resp.Body.Close()
					cancel()
				}
				b.ReportMetric(float64((parts.CPU(b)-cpu).Microseconds())/float64(b.N), "cpu-us/op")
			})
		}
	}
}
