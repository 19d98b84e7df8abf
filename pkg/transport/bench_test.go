package transport_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

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
		buf := make([]byte, 64<<10)
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
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
	})
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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
				cpu := cpuTime()
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
				b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/float64(b.N), "cpu-us/op")
			})
		}
	}
}
