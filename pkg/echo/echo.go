// Package echo is the sample service: it answers each request with what it saw
// of it, misbehaves on request, and registers itself with Consul the way a
// user's service would. The demo, the examples and the end-to-end tests run
// it; it keeps nothing and trusts nothing.
package echo

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Options says who the instance is and how it misbehaves for everyone.
type Options struct {
	Name    string // of the service
	ID      string // of the instance
	Version string
	// FailRate is the share of requests, 0 to 1, that get 500.
	FailRate float64
	// Delay comes before every answer but that of /healthz.
	Delay time.Duration
	// Places is how many requests are worked on at once, for Delay each, while
	// others wait; 0: all.
	Places int
}

// What one request can ask for at most.
const (
	maxDelay  = time.Minute
	maxSize   = 64 << 20
	maxChunks = 10_000
	maxBody   = 256 << 20
)

// Reply is the JSON that a plain request gets.
type Reply struct {
	Service    string              `json:"service"`
	Instance   string              `json:"instance"`
	Version    string              `json:"version,omitempty"`
	Method     string              `json:"method"`
	Proto      string              `json:"proto"`
	Host       string              `json:"host"`
	Path       string              `json:"path"`
	Query      string              `json:"query,omitempty"`
	Headers    map[string][]string `json:"headers"`
	Trailers   map[string][]string `json:"trailers,omitempty"`
	BodyBytes  int64               `json:"body_bytes"`
	RemoteAddr string              `json:"remote_addr"`
	TLS        bool                `json:"tls"`
}

// Server is the handler of one instance. It is safe for concurrent use.
//
// Paths: /healthz answers 200 while the instance is well, and PUT /healthz?ok=false
// makes it sick; /events streams server-sent events; /stream answers in chunks
// and ends with a trailer; /upgrade switches to an echo of bytes; any other
// path echoes the request.
//
// Queries of any but /healthz: delay=100ms before the answer, fail=0.5 for a
// share of 500s, status=418, size=1MiB of body instead of the reply,
// abort=true to break the connection. /events and /stream take n= and
// every=100ms.
type Server struct {
	o        Options
	places   chan struct{} // taken while a request is worked on; nil: there is no end of them
	sick     atomic.Bool
	requests atomic.Uint64
}

// New returns an instance's handler. It is well.
func New(o Options) *Server {
	s := &Server{o: o}
	if o.Places > 0 {
		s.places = make(chan struct{}, o.Places)
	}
	return s
}

// SetHealthy makes /healthz answer 200, or 503.
func (s *Server) SetHealthy(ok bool) { s.sick.Store(!ok) }

// Healthy reports what /healthz answers.
func (s *Server) Healthy() bool { return !s.sick.Load() }

// Requests returns how many requests came, without those of /healthz.
func (s *Server) Requests() uint64 { return s.requests.Load() }

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Echo-Instance", s.o.ID)
	if r.URL.Path == "/healthz" {
		s.health(w, r)
		return
	}
	s.requests.Add(1)
	k, err := parseKnobs(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !s.work(r, s.o.Delay+k.delay) {
		return
	}
	if fails(s.o.FailRate) || fails(k.fail) {
		http.Error(w, "failed on request", http.StatusInternalServerError)
		return
	}
	if k.abort {
		panic(http.ErrAbortHandler)
	}
	switch r.URL.Path {
	case "/events":
		s.events(w, r, k)
	case "/stream":
		s.stream(w, r, k)
	case "/upgrade":
		s.upgrade(w, r)
	default:
		s.echo(w, r, k)
	}
}

func fails(share float64) bool { return share > 0 && rand.Float64() < share }

// work takes d of one of the instance's places, after waiting for one; false:
// the client has gone.
func (s *Server) work(r *http.Request, d time.Duration) bool {
	if s.places == nil {
		return pause(r, d)
	}
	select {
	case s.places <- struct{}{}:
	case <-r.Context().Done():
		return false
	}
	defer func() { <-s.places }()
	return pause(r, d)
}

// pause waits for d; false: the client has gone.
func pause(r *http.Request, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPut, http.MethodPost:
		ok, err := strconv.ParseBool(r.URL.Query().Get("ok"))
		if err != nil {
			http.Error(w, "ok must be true or false", http.StatusBadRequest)
			return
		}
		s.SetHealthy(ok)
	default:
		w.Header().Set("Allow", "GET, HEAD, PUT, POST")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	if !s.Healthy() {
		http.Error(w, "sick", http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}

func (s *Server) echo(w http.ResponseWriter, r *http.Request, k knobs) {
	n, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, "request body: "+err.Error(), http.StatusBadRequest)
		return
	}
	if k.size >= 0 {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatInt(k.size, 10))
		w.WriteHeader(k.status)
		if bodyAllowed(k.status) {
			_, _ = io.CopyN(w, filler{}, k.size)
		}
		return
	}
	reply := Reply{Service: s.o.Name, Instance: s.o.ID, Version: s.o.Version, Method: r.Method, Proto: r.Proto, Host: r.Host,
		Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Headers: r.Header, Trailers: r.Trailer, BodyBytes: n,
		RemoteAddr: r.RemoteAddr, TLS: r.TLS != nil}
	text, err := json.Marshal(reply)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(k.status)
	if bodyAllowed(k.status) {
		_, _ = w.Write(append(text, '\n'))
	}
}

func bodyAllowed(status int) bool {
	return status != http.StatusNoContent && status != http.StatusNotModified
}

// events sends server-sent events, each flushed at once.
func (s *Server) events(w http.ResponseWriter, r *http.Request, k knobs) {
	flush := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(k.status)
	for i := range k.n {
		if i > 0 && !pause(r, k.every) {
			return
		}
		if _, err := fmt.Fprintf(w, "id: %d\ndata: {\"instance\":%q,\"n\":%d}\n\n", i, s.o.ID, i); err != nil {
			return
		}
		if flush.Flush() != nil {
			return
		}
	}
}

// stream answers in chunks, each flushed, and a trailer with their number.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, k knobs) {
	flush := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Trailer", "X-Echo-Chunks")
	w.WriteHeader(k.status)
	sent := 0
	for ; sent < k.n; sent++ {
		if sent > 0 && !pause(r, k.every) {
			return
		}
		if _, err := fmt.Fprintf(w, "chunk %d of %s\n", sent, s.o.ID); err != nil {
			return
		}
		if flush.Flush() != nil {
			return
		}
	}
	w.Header().Set("X-Echo-Chunks", strconv.Itoa(sent))
}

// upgrade switches protocols to "echo": every byte comes back, until either
// side ends.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "echo") {
		w.Header().Set("Upgrade", "echo")
		http.Error(w, "send Connection: Upgrade and Upgrade: echo", http.StatusUpgradeRequired)
		return
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "this connection cannot be upgraded", http.StatusHTTPVersionNotSupported)
		return
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Hour)); err != nil {
		return
	}
	_, _ = fmt.Fprintf(buf, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-Echo-Instance: %s\r\n\r\n", clean(s.o.ID))
	if buf.Flush() != nil {
		return
	}
	_, _ = io.Copy(conn, bufio.NewReader(buf))
}

// clean keeps an id that came from a flag from ending a header line.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s)
}

type knobs struct {
	delay  time.Duration
	fail   float64
	status int
	size   int64 // -1: the reply instead
	abort  bool
	n      int
	every  time.Duration
}

func parseKnobs(q url.Values) (knobs, error) {
	k := knobs{status: http.StatusOK, size: -1, n: 10, every: 100 * time.Millisecond}
	var err error
	for name, parse := range map[string]func(string) error{
		"delay":  func(v string) error { k.delay, err = time.ParseDuration(v); return within(err, k.delay, 0, maxDelay) },
		"every":  func(v string) error { k.every, err = time.ParseDuration(v); return within(err, k.every, 0, maxDelay) },
		"fail":   func(v string) error { k.fail, err = strconv.ParseFloat(v, 64); return within(err, k.fail, 0, 1) },
		"status": func(v string) error { k.status, err = strconv.Atoi(v); return within(err, k.status, 200, 999) },
		"size":   func(v string) error { k.size, err = parseSize(v); return within(err, k.size, 0, maxSize) },
		"n":      func(v string) error { k.n, err = strconv.Atoi(v); return within(err, k.n, 0, maxChunks) },
		"abort":  func(v string) error { k.abort, err = strconv.ParseBool(v); return err },
	} {
		if v := q.Get(name); v != "" {
			if err := parse(v); err != nil {
				return knobs{}, fmt.Errorf("%s=%q: %w", name, v, err)
			}
		}
	}
	return k, nil
}

func within[T int | int64 | float64 | time.Duration](err error, v, low, high T) error {
	if err == nil && !(v >= low && v <= high) {
		return fmt.Errorf("not between %v and %v", low, high)
	}
	return err
}

func parseSize(v string) (int64, error) {
	for _, u := range []struct {
		suffix string
		shift  uint
	}{{"KiB", 10}, {"MiB", 20}} {
		if rest, ok := strings.CutSuffix(v, u.suffix); ok {
			n, err := strconv.ParseInt(rest, 10, 32)
			return n << u.shift, err
		}
	}
	return strconv.ParseInt(strings.TrimSuffix(v, "B"), 10, 64)
}

// filler reads as an endless text.
type filler struct{}

func (filler) Read(p []byte) (int, error) {
	const line = "proconsul echo filler 0123456789\n"
	for i := range p {
		p[i] = line[i%len(line)]
	}
	return len(p), nil
}
