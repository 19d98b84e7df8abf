package breaker_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/parts"
)

// shortTry is the timeout of a try that is to run into it, longTry that of one
// that is not, wherever a busy machine stands still meanwhile.
const shortTry, longTry = 40 * time.Millisecond, 700 * time.Millisecond

// beyond is longer than a try's timeout, by enough to tell them apart.
const beyond = 3 * longTry / 2

// instance starts a server and returns a transport that speaks to it.
func instance(t *testing.T, h http.HandlerFunc, h2c bool) (string, *http.Transport) {
	t.Helper()
	server := httptest.NewUnstartedServer(h)
	transport := &http.Transport{}
	if h2c {
		server.Config.Protocols, transport.Protocols = new(http.Protocols), new(http.Protocols)
		server.Config.Protocols.SetUnencryptedHTTP2(true)
		transport.Protocols.SetUnencryptedHTTP2(true)
	}
	server.Start()
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		server.Close()
	})
	return server.URL, transport
}

func send(t *testing.T, b *breaker.Breaker, transport http.RoundTripper, method, url string, body io.Reader, header ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := b.RoundTrip(r, transport, time.Now(), longTry)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// The try's timer ends with the header: what streams may go on for ever.
func TestStreamsOutliveTheTry(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		t.Run("events", func(t *testing.T) {
			url, transport := instance(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				for i := range 4 {
					fmt.Fprintf(w, "data: %d\n\n", i)
					http.NewResponseController(w).Flush()
					time.Sleep(beyond / 4)
				}
			}, false)
			b, _ := newBreaker(t, breaker.Settings{Engine: engine})
			resp := send(t, b, transport, http.MethodGet, url, nil)
			defer resp.Body.Close()
			if got, err := io.ReadAll(resp.Body); string(got) != "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\n" {
				t.Errorf("stream %q, %v", got, err)
			}
			if got := b.Counters(); got != (breaker.Counters{Success: 1}) {
				t.Errorf("counters %+v", got)
			}
		})
		t.Run("upgrade", func(t *testing.T) {
			url, transport := instance(t, func(w http.ResponseWriter, r *http.Request) {
				conn, rw, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				rw.Flush()
				_, _ = io.Copy(conn, rw)
			}, false)
			b, _ := newBreaker(t, breaker.Settings{Engine: engine})
			resp := send(t, b, transport, http.MethodGet, url, nil, "Connection", "Upgrade", "Upgrade", "echo")
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("status %d", resp.StatusCode)
			}
			echo(t, resp.Body.(io.ReadWriter), resp.Body)
		})
		t.Run("both ways over HTTP/2", func(t *testing.T) {
			url, transport := instance(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Trailer", "Grpc-Status")
				w.WriteHeader(200)
				http.NewResponseController(w).Flush()
				_, _ = io.Copy(flushing{w}, r.Body)
				w.Header().Set("Grpc-Status", "0")
			}, true)
			b, _ := newBreaker(t, breaker.Settings{Engine: engine})
			in, out := io.Pipe()
			resp := send(t, b, transport, http.MethodPost, url, in, "Content-Type", "application/grpc")
			defer resp.Body.Close()
			echo(t, out, resp.Body)
			out.Close()
			if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
				t.Errorf("rest %q, %v", rest, err)
			}
			if got := resp.Trailer.Get("Grpc-Status"); got != "0" || resp.ProtoMajor != 2 {
				t.Errorf("HTTP/%d, trailer %q", resp.ProtoMajor, got)
			}
		})
	})
}

type flushing struct{ w http.ResponseWriter }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	_ = http.NewResponseController(f.w).Flush()
	return n, err
}

// echo says something now and then, for longer than the try may take.
func echo(t *testing.T, w io.Writer, r io.Reader) {
	t.Helper()
	back := bufio.NewReader(r)
	for i := range 4 {
		fmt.Fprintf(w, "hello %d\n", i)
		if got, err := back.ReadString('\n'); got != fmt.Sprintf("hello %d\n", i) {
			t.Fatalf("echo %q, %v", got, err)
		}
		time.Sleep(beyond / 4)
	}
}

// A client that takes its time to send is not an instance that takes its time
// to answer.
func TestSlowUpload(t *testing.T) {
	slowly := func(pause time.Duration) io.Reader {
		in, out := io.Pipe()
		go func() {
			for range 2 {
				time.Sleep(pause)
				_, _ = io.WriteString(out, "part ")
			}
			out.Close()
		}()
		return in
	}
	engines(t, func(t *testing.T, engine string) {
		t.Run("passes", func(t *testing.T) {
			url, transport := instance(t, func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				_, _ = w.Write(body)
			}, false)
			b, _ := newBreaker(t, breaker.Settings{Engine: engine})
			resp := send(t, b, transport, http.MethodPost, url, slowly(beyond))
			defer resp.Body.Close()
			if got, err := io.ReadAll(resp.Body); string(got) != "part part " {
				t.Errorf("answer %q, %v", got, err)
			}
		})
		t.Run("but the instance is timed after it", func(t *testing.T) {
			url, transport := instance(t, func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
			}, false)
			b, _ := newBreaker(t, breaker.Settings{Engine: engine})
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, url, slowly(2*shortTry))
			if _, err := b.RoundTrip(r, transport, time.Now(), shortTry); !errors.Is(err, breaker.ErrTimeout) {
				t.Errorf("error %v", err)
			}
			if got := b.Counters(); got != (breaker.Counters{Timeout: 1}) {
				t.Errorf("counters %+v", got)
			}
		})
		t.Run("and while it does not read", func(t *testing.T) {
			// A server only notices that a client has gone while it reads.
			end := make(chan struct{})
			url, transport := instance(t, func(http.ResponseWriter, *http.Request) { <-end }, false)
			defer close(end)
			b, _ := newBreaker(t, breaker.Settings{Engine: engine})
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, url, io.LimitReader(zeros{}, 1<<30))
			if _, err := b.RoundTrip(r, transport, time.Now(), shortTry); !errors.Is(err, breaker.ErrTimeout) {
				t.Errorf("error %v", err)
			}
			if got := b.Counters(); got != (breaker.Counters{Timeout: 1}) {
				t.Errorf("counters %+v", got)
			}
		})
		t.Run("a deadline during it is nobody's failure", func(t *testing.T) {
			url, transport := instance(t, func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
			}, false)
			b, _ := newBreaker(t, breaker.Settings{Engine: engine})
			ctx := &deadline{t.Context(), make(chan struct{})}
			var sent context.Context
			// It passes while the client is waited for, who is until the transport
			// knows of it.
			r, _ := http.NewRequestWithContext(ctx, http.MethodPost, url, reader(func([]byte) (int, error) {
				close(ctx.passed)
				<-sent.Done()
				return 0, io.EOF
			}))
			if _, err := b.RoundTrip(r, via(func(r *http.Request) (*http.Response, error) {
				sent = r.Context()
				return transport.RoundTrip(r)
			}), time.Now(), time.Minute); !errors.Is(err, breaker.ErrTimeout) {
				t.Errorf("error %v", err)
			}
			if got := b.Counters(); got != (breaker.Counters{Canceled: 1}) {
				t.Errorf("counters %+v", got)
			}
		})
		t.Run("an instance that breaks off is to blame", func(t *testing.T) {
			url, transport := instance(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.ReadFull(r.Body, make([]byte, 4096))
				panic(http.ErrAbortHandler)
			}, false)
			b, _ := newBreaker(t, breaker.Settings{Engine: engine})
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, url, io.LimitReader(zeros{}, 1<<30))
			if _, err := b.RoundTrip(r, transport, time.Now(), time.Minute); err == nil {
				t.Error("no error")
			}
			if got := b.Counters(); got != (breaker.Counters{Failure: 1}) {
				t.Errorf("counters %+v", got)
			}
		})
	})
}

// A transport that fails closes the request's body, also under a pending read;
// what that read then returns is not the client's doing.
func TestBodyClosedByTheTransport(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		b, _ := newBreaker(t, breaker.Settings{Engine: engine})
		in, out := io.Pipe()
		defer out.Close()
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://orders.test/", in)
		_, err := b.RoundTrip(r, via(func(r *http.Request) (*http.Response, error) {
			r.Body.Close()
			if _, err := r.Body.Read(make([]byte, 1)); err == nil {
				t.Error("a closed body can be read")
			}
			return nil, errReset
		}), time.Now(), time.Minute)
		if got := b.Counters(); !errors.Is(err, errReset) || got != (breaker.Counters{Failure: 1}) {
			t.Errorf("error %v, counters %+v", err, got)
		}
	})
}

// deadline is a context whose deadline passes when it is told to.
type deadline struct {
	context.Context
	passed chan struct{}
}

func (d *deadline) Done() <-chan struct{} { return d.passed }

func (d *deadline) Err() error {
	select {
	case <-d.passed:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// reader is a reader made of a function.
type reader func([]byte) (int, error)

func (f reader) Read(p []byte) (int, error) { return f(p) }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A whole gateway in small: clients that hang up in the middle of an answer or
// of their upload, or before either. The process lives, nothing opens.
func TestClientsThatHangUp(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		url, transport := instance(t, func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/endless":
				for r.Context().Err() == nil {
					if _, err := w.Write(make([]byte, 4096)); err != nil {
						return
					}
				}
			case "/never":
				<-r.Context().Done()
			default:
				_, _ = io.Copy(w, r.Body)
			}
		}, false)
		b, told := newBreaker(t, breaker.Settings{Engine: engine, MinRequests: 1, ErrorPercent: 1, MaxInFlight: 4})
		var served atomic.Int64
		gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer served.Add(1)
			if err := b.Acquire(); err != nil {
				w.WriteHeader(503)
				return
			}
			defer b.Release()
			out, _ := http.NewRequestWithContext(r.Context(), r.Method, url+r.URL.Path, r.Body)
			out.ContentLength = r.ContentLength
			resp, err := b.RoundTrip(out, transport, time.Now(), time.Minute)
			if err != nil {
				w.WriteHeader(502)
				return
			}
			defer resp.Body.Close()
			w.WriteHeader(resp.StatusCode)
			if _, err := io.Copy(w, resp.Body); err != nil {
				panic(http.ErrAbortHandler) // as every reverse proxy does
			}
		}))
		defer gateway.Close()
		want := int64(0)
		for _, start := range []string{
			"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n",
			"GET /never HTTP/1.1\r\nHost: x\r\n\r\n",
			"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhalf",
		} {
			for range 10 {
				conn, err := net.Dial("tcp", gateway.Listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.WriteString(conn, start)
				parts.Eventually(t, 5*time.Second, "the request is in flight", func() bool { return b.InFlight() == 1 })
				if start[5] == 'e' {
					_, _ = io.ReadFull(conn, make([]byte, 100))
				}
				conn.Close()
				want++
				parts.Eventually(t, 5*time.Second, "it has ended", func() bool { return served.Load() == want && b.InFlight() == 0 })
			}
		}
		passes(t, b, 10, answer(200))
		told.want(t)
		if got := b.Counters(); got.Failure+got.Timeout != 0 {
			t.Errorf("counters %+v", got)
		}
	})
}

// Two instances, one of which answers 503, under a breaker of 20 requests and
// 50 %: what clients see with and without retries and ejection. Ejection must
// bite before the breaker does; a retry that helps the client does not help
// the breaker.
func TestOneBadInstance(t *testing.T) {
	tests := []struct {
		instances, retries, eject int
		ok, bad, refused          int // of 300
	}{
		{2, 0, 0, 10, 10, 280},
		{2, 1, 0, 10, 0, 290},
		{2, 0, 5, 295, 5, 0},
		{2, 1, 5, 300, 0, 0},
		{3, 0, 0, 200, 100, 0},
		{3, 1, 0, 300, 0, 0},
		{3, 0, 5, 295, 5, 0},
		{3, 1, 5, 300, 0, 0},
	}
	engines(t, func(t *testing.T, engine string) {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%d instances, %d retries, ejected after %d", tt.instances, tt.retries, tt.eject), func(t *testing.T) {
				b, _ := newBreaker(t, breaker.Settings{Engine: engine, OpenFor: time.Hour})
				next, inARow := 0, 0
				var ok, bad, refused int
				for range 300 {
					var status int
					var err error
					for range 1 + tt.retries {
						if next++; tt.eject > 0 && inARow >= tt.eject && next%tt.instances == 0 {
							next++
						}
						pick := answer(200)
						if next%tt.instances == 0 {
							pick = answer(503)
						}
						if status, err = once(t, b, pick, time.Minute); status == 503 {
							inARow++
							continue
						}
						break
					}
					switch {
					case errors.Is(err, breaker.ErrOpen):
						refused++
					case status == 200:
						ok++
					default:
						bad++
					}
				}
				if ok != tt.ok || bad != tt.bad || refused != tt.refused {
					t.Errorf("%d ok, %d bad, %d refused; want %d, %d, %d", ok, bad, refused, tt.ok, tt.bad, tt.refused)
				}
			})
		}
	})
}

// A burst with few errors, silence, and good requests in the eleventh second:
// hystrix has forgotten the burst's requests by then, but not its errors.
func TestFalseTripIsUndone(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		var b *breaker.Breaker
		var told *changes
		var second int64
		// All within one second of the wall clock: a burst that took longer, on a
		// machine that has stood still meanwhile, is none.
		for whole := false; !whole; whole = time.Now().Unix() == second {
			b, told = newBreaker(t, breaker.Settings{Engine: engine, OpenFor: time.Hour})
			now := time.Now()
			time.Sleep(now.Truncate(time.Second).Add(time.Second).Sub(now))
			second = time.Now().Unix()
			var wg sync.WaitGroup
			for i := range 10 {
				wg.Go(func() {
					for j := range 100 {
						if i == 0 && j >= 70 { // last, or they open the circuit where this goroutine runs alone
							_, _ = once(t, b, answer(503), 0)
						} else {
							_, _ = once(t, b, answer(200), 0)
						}
					}
				})
			}
			wg.Wait()
		}
		if got := b.Counters(); got.Failure != 30 || got.Success != 970 {
			t.Fatalf("the burst: %+v", got)
		}
		eleventh := time.Unix(second+10, 0).Add(50 * time.Millisecond)
		time.Sleep(time.Until(eleventh))
		for range 150 {
			if status, err := once(t, b, answer(200), 0); status != 200 {
				t.Fatalf("refused: %v, %+v", err, b.Status())
			}
			time.Sleep(time.Millisecond)
		}
		told.want(t)
		if b.Counters().Vetoed == 0 {
			t.Error("hystrix has not opened: is there still anything to undo?")
		}
	})
}
