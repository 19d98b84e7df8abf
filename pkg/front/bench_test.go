package front_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/front"
	"github.com/proconsul/proconsul/pkg/parts"
)

// The load of the benchmarks is a process of its own, so that the CPU time of
// this one is the server's alone.
const loadVariable = "FRONT_BENCH_LOAD"

const benchConnections = 64

// load is that process: it sends requests until it has sent n.
func load(spec string) {
	addr, rest, _ := strings.Cut(spec, " ")
	count, shape, _ := strings.Cut(rest, " ")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		panic(err)
	}
	request, answer := shapes[shape].request, shapes[shape].answer
	var left atomic.Int64
	left.Store(n)
	var wg sync.WaitGroup
	for range benchConnections {
		wg.Go(func() {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				panic(err)
			}
			defer c.Close()
			buf := make([]byte, 256<<10)
			for left.Add(-1) >= 0 {
				if _, err := io.WriteString(c, request); err != nil {
					panic(err)
				}
				for n, want := 0, -1; want < 0 || n < want; {
					m, err := c.Read(buf[n:])
					if err != nil {
						panic(err)
					}
					n += m
					if i := bytes.Index(buf[:n], []byte("\r\n\r\n")); want < 0 && i >= 0 {
						want = i + 4 + answer
					}
				}
			}
		})
	}
	wg.Wait()
}

type shape struct {
	request string
	answer  int // bytes of the answer's body, or of its chunks
	handler http.HandlerFunc
}

const fields = "Host: example.test\r\nUser-Agent: bench\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n"

var kilobyte, many = bytes.Repeat([]byte("a"), 1<<10), bytes.Repeat([]byte("a"), 100<<10)

func release(w http.ResponseWriter) {
	if r, ok := w.(interface{ ReleaseRequest() }); ok {
		r.ReleaseRequest()
	}
}

var buffers = sync.Pool{New: func() any { return new([1024]byte) }}

var (
	contentType = []string{"application/json"}
	length1K    = []string{"1024"}
	length100K  = []string{"102400"}
	length2     = []string{"2"}
)

var shapes = map[string]shape{
	"get": {"GET /some/path?q=1 HTTP/1.1\r\n" + fields + "\r\n", 1 << 10, func(w http.ResponseWriter, _ *http.Request) {
		release(w)
		w.Header()["Content-Type"], w.Header()["Content-Length"] = contentType, length1K
		_, _ = w.Write(kilobyte)
	}},
	"get100K": {"GET /some/path?q=1 HTTP/1.1\r\n" + fields + "\r\n", 100 << 10, func(w http.ResponseWriter, _ *http.Request) {
		release(w)
		w.Header()["Content-Type"], w.Header()["Content-Length"] = contentType, length100K
		_, _ = w.Write(many)
	}},
	"post": {"POST /some/path HTTP/1.1\r\n" + fields + "Content-Length: 512\r\n\r\n" + strings.Repeat("p", 512), 2, func(w http.ResponseWriter, r *http.Request) {
		release(w)
		buf := buffers.Get().(*[1024]byte)
		for {
			if _, err := r.Body.Read(buf[:]); err != nil {
				break
			}
		}
		buffers.Put(buf)
		w.Header()["Content-Type"], w.Header()["Content-Length"] = contentType, length2
		_, _ = io.WriteString(w, "ok")
	}},
	"chunked": {"POST /some/path HTTP/1.1\r\n" + fields + "Transfer-Encoding: chunked\r\n\r\n200\r\n" + strings.Repeat("p", 512) + "\r\n0\r\n\r\n", 1<<10 + len("400\r\n\r\n0\r\n\r\n"), func(w http.ResponseWriter, r *http.Request) {
		release(w)
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header()["Content-Type"] = contentType
		_, _ = w.Write(kilobyte)
		_ = http.NewResponseController(w).Flush()
	}},
}

// measure serves n requests of a shape and returns CPU time and allocations of
// each.
func measure(tb testing.TB, engine, name string, n int) (cpu time.Duration, allocs float64) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var s interface {
		Serve(net.Listener) error
		Close() error
	}
	if engine == "front" {
		s = front.New(front.Options{Handler: shapes[name].handler})
	} else {
		s = &http.Server{Handler: shapes[name].handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 75 * time.Second}
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Serve(l)
	}()
	defer func() {
		_ = s.Close()
		<-ended
	}()
	run := func(n int) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", loadVariable, l.Addr(), n, name), "GOMAXPROCS=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			tb.Fatalf("%v\n%s", err, out)
		}
	}
	run(benchConnections * 20)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := parts.CPU(tb)
	run(n)
	cpu = parts.CPU(tb) - start
	runtime.ReadMemStats(&after)
	return cpu / time.Duration(n), float64(after.Mallocs-before.Mallocs) / float64(n)
}

// BenchmarkServe has its load in another process.
func BenchmarkServe(b *testing.B) {
	for _, name := range []string{"get", "post", "chunked", "get100K"} {
		for _, engine := range []string{"front", "net/http"} {
			b.Run(name+"/"+strings.ReplaceAll(engine, "/", ""), func(b *testing.B) {
				cpu, allocs := measure(b, engine, name, b.N)
				b.ReportMetric(float64(cpu.Nanoseconds())/1000, "cpu-us/op")
				b.ReportMetric(allocs, "allocs/op")
			})
		}
	}
}

// raceEnabled reports whether the race detector runs, under which pools forget
// at random and nothing is used again.
func raceEnabled() bool {
	bi, _ := debug.ReadBuildInfo()
	for _, s := range bi.Settings {
		if s.Key == "-race" {
			return s.Value == "true"
		}
	}
	return false
}
