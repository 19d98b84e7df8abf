package transport_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/proconsul/proconsul/pkg/transport"
)

// captured is a server that keeps the bytes of each request and answers when
// its framing says that it is complete.
func captured(t *testing.T) (*server, chan string) {
	got := make(chan string, 100)
	s := serve(t, func(c net.Conn, _ *bufio.Reader, _ int) {
		for {
			var b strings.Builder
			r := bufio.NewReader(io.TeeReader(c, &b))
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			got <- b.String()
			if _, err := io.WriteString(c, ok("ok")); err != nil {
				return
			}
		}
	})
	return s, got
}

// dissect splits a request into its line, its sorted fields and its body.
func dissect(s string) (line string, fields []string, body string) {
	headText, body, _ := strings.Cut(s, "\r\n\r\n")
	all := strings.Split(headText, "\r\n")
	slices.Sort(all[1:])
	return all[0], all[1:], body
}

// onlyReader hides what a body is.
type onlyReader struct{ io.Reader }

// Requests arrive byte for byte as http.Transport would send them, but for the
// order of the fields and the User-Agent that it invents.
func TestRequestsOnTheWire(t *testing.T) {
	tests := []struct {
		name string
		make func(r *http.Request) *http.Request
		body io.Reader
		verb string
	}{
		{name: "plain"},
		{name: "path and query", make: func(r *http.Request) *http.Request {
			r.URL.Path, r.URL.RawPath, r.URL.RawQuery = "/a/b c", "/a%2Fb%20c", "x=1&y=%zz;2"
			return r
		}},
		{name: "path to escape", make: func(r *http.Request) *http.Request { r.URL.Path = "/a b\x00é"; return r }},
		{name: "no path", make: func(r *http.Request) *http.Request { r.URL.Path = ""; return r }},
		{name: "bare question mark", make: func(r *http.Request) *http.Request { r.URL.ForceQuery = true; return r }},
		{name: "opaque", make: func(r *http.Request) *http.Request { r.URL.Opaque = "/x%2f//y"; return r }},
		{name: "opaque authority", make: func(r *http.Request) *http.Request { r.URL.Opaque = "//other/x"; return r }},
		{name: "asterisk", verb: "OPTIONS", make: func(r *http.Request) *http.Request { r.URL.Path = "*"; return r }},
		{name: "host", make: func(r *http.Request) *http.Request { r.Host = "shop.example:81"; return r }},
		{name: "no method", make: func(r *http.Request) *http.Request { r.Method = ""; return r }},
		{name: "odd method", verb: "M-SEARCH"},
		{name: "fields", make: func(r *http.Request) *http.Request {
			r.Header = http.Header{"X-A": {"1", " 2\t"}, "X-Empty": {""}, "X-None": nil, "lower": {"x"}, "Te": {"trailers"}, "X-Utf": {"\xc3\xa9"}}
			return r
		}},
		{name: "framing is not the caller's", make: func(r *http.Request) *http.Request {
			r.Header = http.Header{"Host": {"evil"}, "Content-Length": {"7"}, "Transfer-Encoding": {"chunked"}, "Trailer": {"X"}}
			return r
		}},
		{name: "close", make: func(r *http.Request) *http.Request { r.Close = true; return r }},
		{name: "close by field", make: func(r *http.Request) *http.Request { r.Header.Set("Connection", "close"); return r }},
		{name: "empty post", verb: "POST"},
		{name: "empty put", verb: "PUT"},
		{name: "empty patch", verb: "PATCH"},
		{name: "empty delete", verb: "DELETE"},
		{name: "post", verb: "POST", body: strings.NewReader("hello")},
		{name: "large post", verb: "POST", body: strings.NewReader(strings.Repeat("x", 200<<10))},
		{name: "chunked post", verb: "POST", body: onlyReader{strings.NewReader("hello")}},
		{name: "empty chunked post", verb: "POST", body: onlyReader{strings.NewReader("")}},
		{name: "get with a body", body: strings.NewReader("hello")},
		{name: "get with an unknown body", body: onlyReader{strings.NewReader("hello")}},
		{name: "get with a body that turns out empty", body: onlyReader{strings.NewReader("")}},
		{name: "trailers", verb: "POST", body: onlyReader{strings.NewReader("hello")}, make: func(r *http.Request) *http.Request {
			r.Trailer = http.Header{"X-Sum": {"1"}, "X-None": nil}
			return r
		}},
		{name: "large header and body", verb: "POST", body: strings.NewReader("hello"), make: func(r *http.Request) *http.Request {
			r.Header.Set("X-Big", strings.Repeat("b", 40<<10))
			return r
		}},
		{name: "half the buffer and a body", verb: "POST", body: strings.NewReader(strings.Repeat("x", 64<<10)), make: func(r *http.Request) *http.Request {
			r.Header.Set("X-Big", strings.Repeat("b", 15<<10))
			return r
		}},
		{name: "many trailers", verb: "POST", body: onlyReader{strings.NewReader("hello")}, make: func(r *http.Request) *http.Request {
			r.Trailer = http.Header{}
			for i := range 60 {
				r.Trailer["X-"+strings.Repeat("T", i+1)] = []string{"1"}
			}
			return r
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, got := captured(t)
			verb := tt.verb
			if verb == "" {
				verb = "GET"
			}
			var sent [2]string
			theirs := std()
			for i, rt := range []http.RoundTripper{theirs, client(t, transport.Options{})} {
				if seek, ok := tt.body.(io.Seeker); ok {
					_, _ = seek.Seek(0, 0)
				} else if o, ok := tt.body.(onlyReader); ok {
					_, _ = o.Reader.(io.Seeker).Seek(0, 0)
				}
				req := request(t, verb, s.url, tt.body)
				req.Header.Set("User-Agent", "test")
				if tt.make != nil {
					req = tt.make(req)
				}
				if _, ok := req.Header["User-Agent"]; !ok {
					req.Header["User-Agent"] = nil
				}
				mustDo(t, rt, req)
				sent[i] = <-got
			}
			theirs.CloseIdleConnections()
			line, fields, body := dissect(sent[0])
			gotLine, gotFields, gotBody := dissect(sent[1])
			if gotLine != line || !slices.Equal(gotFields, fields) {
				t.Errorf("sent\n%s\n%.3000q\nhttp.Transport\n%s\n%.3000q", gotLine, gotFields, line, fields)
			}
			if dechunk(t, fields, gotBody) != dechunk(t, fields, body) {
				t.Errorf("sent body %.200q, http.Transport %.200q", gotBody, body)
			}
		})
	}
}

// dechunk makes bodies comparable: chunks may be cut differently, and trailers
// come in any order.
func dechunk(t *testing.T, fields []string, body string) string {
	t.Helper()
	if !slices.Contains(fields, "Transfer-Encoding: chunked") {
		return body
	}
	var out strings.Builder
	for {
		line, rest, ok := strings.Cut(body, "\r\n")
		if !ok {
			t.Fatalf("no chunk size in %q", body)
		}
		n := 0
		for _, c := range line {
			n = n*16 + strings.IndexRune("0123456789abcdef", c)
		}
		if body = rest; n == 0 {
			break
		}
		out.WriteString(body[:n])
		body = strings.TrimPrefix(body[n:], "\r\n")
	}
	lines := strings.Split(body, "\r\n")
	slices.Sort(lines)
	return out.String() + "|" + strings.Join(lines, "|")
}

// A small request is one segment, with its body.
func TestSmallRequestsAreOneWrite(t *testing.T) {
	var writes atomic.Int64
	tr := client(t, transport.Options{Dial: counting(&writes)})
	s, _ := captured(t)
	for _, body := range []io.Reader{nil, strings.NewReader("hello"), iotest.DataErrReader(strings.NewReader("hello"))} {
		verb := "GET"
		if body != nil {
			verb = "POST"
		}
		writes.Store(0)
		mustDo(t, tr, request(t, verb, s.url, body))
		if n := writes.Load(); n != 1 {
			t.Errorf("%s with %T took %d writes", verb, body, n)
		}
	}
}

func TestInvalidRequests(t *testing.T) {
	s := answers(t, ok("ok"))
	tests := map[string]func(r *http.Request){
		"method":             func(r *http.Request) { r.Method = "GE T" },
		"method with a CRLF": func(r *http.Request) { r.Method = "GET / HTTP/1.1\r\nX: 1\r\n\r\nGET" },
		"name":               func(r *http.Request) { r.Header["X: 1\r\nY"] = []string{"1"} },
		"empty name":         func(r *http.Request) { r.Header[""] = []string{"1"} },
		"value":              func(r *http.Request) { r.Header["X"] = []string{"1\r\nY: 2"} },
		"host":               func(r *http.Request) { r.Host = "a\r\nX: 1" },
		"host with a slash":  func(r *http.Request) { r.Host = "a/b" },
		"opaque with space":  func(r *http.Request) { r.URL.Opaque = "/ HTTP/1.1" },
		"query":              func(r *http.Request) { r.URL.RawQuery = "a b" },
		"trailer":            func(r *http.Request) { r.Trailer = http.Header{"Content-Length": {"1"}} },
		"length, no body":    func(r *http.Request) { r.Body, r.ContentLength = nil, 5 },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			tr := client(t, transport.Options{})
			b := &spyBody{Reader: strings.NewReader("hello")}
			req := request(t, "POST", s.url, b)
			spoil(req)
			_, err := do(t, tr, req)
			var bad *transport.RequestError
			if !errors.As(err, &bad) || !strings.HasPrefix(err.Error(), "net/http: invalid ") {
				t.Errorf("got error %v, want a RequestError in net/http's words", err)
			}
			if req.Body != nil && b.closed.Load() != 1 {
				t.Errorf("body closed %d times, want once", b.closed.Load())
			}
			// Nothing was sent: a connection that was made for it serves another.
			if got := mustDo(t, tr, request(t, "GET", s.url, nil)); got.StatusCode != 200 {
				t.Errorf("the next request got %d", got.StatusCode)
			}
			if n := tr.Stats().Dials; n != 1 {
				t.Errorf("dialled %d times, want once", n)
			}
		})
	}
}

// spyBody counts how often it is closed.
type spyBody struct {
	io.Reader
	closed atomic.Int64
}

func (b *spyBody) Close() error { b.closed.Add(1); return nil }

// What the transport does not do itself goes to the fallback, untouched.
func TestFallback(t *testing.T) {
	tests := map[string]struct {
		make  func(r *http.Request)
		falls bool
	}{
		"plain":             {func(*http.Request) {}, false},
		"keep-alive":        {func(r *http.Request) { r.Header.Set("Connection", "keep-alive") }, false},
		"upgrade":           {func(r *http.Request) { r.Header.Set("Upgrade", "websocket"); r.Header.Set("Connection", "Upgrade") }, true},
		"connection only":   {func(r *http.Request) { r.Header.Set("Connection", "keep-alive, UPGRADE") }, true},
		"connect":           {func(r *http.Request) { r.Method = "CONNECT" }, true},
		"https without TLS": {func(r *http.Request) { r.URL.Scheme = "https" }, true},
		"ftp":               {func(r *http.Request) { r.URL.Scheme = "ftp" }, true},
		"no URL":            {func(r *http.Request) { r.URL = nil }, true},
		"no host":           {func(r *http.Request) { r.URL = &url.URL{Scheme: "http", Path: "/"} }, true},
		"name to encode":    {func(r *http.Request) { r.URL.Host = "bücher.example" }, true},
		"zone":              {func(r *http.Request) { r.URL.Host = "[fe80::1%25eth0]:80" }, true},
		"odd encoding":      {func(r *http.Request) { r.TransferEncoding = []string{"identity"} }, true},
	}
	s := answers(t, ok("ok"))
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var got atomic.Pointer[http.Request]
			tr := client(t, transport.Options{Fallback: roundTripper(func(r *http.Request) (*http.Response, error) {
				got.Store(r)
				return &http.Response{StatusCode: 299, Body: http.NoBody}, nil
			})})
			b := &spyBody{Reader: strings.NewReader("hello")}
			req := request(t, "POST", s.url, b)
			tt.make(req)
			r := mustDo(t, tr, req)
			if fell := r.StatusCode == 299; fell != tt.falls {
				t.Errorf("fallback used: %v, want %v", fell, tt.falls)
			}
			if tt.falls && (got.Load() != req || b.closed.Load() != 0) {
				t.Error("the fallback did not get the request as it was")
			}
			none := client(t, transport.Options{})
			req = request(t, "POST", s.url, b)
			tt.make(req)
			if _, err := do(t, none, req); tt.falls != errors.Is(err, transport.ErrUnsupported) {
				t.Errorf("without a fallback: %v", err)
			}
		})
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Hooks are called as http.Transport calls them.
func TestTrace(t *testing.T) {
	s := answers(t, crlf("HTTP/1.1 103 Early Hints\nLink: </a>\n\nHTTP/1.1 103 Early Hints\nLink: </b>\n\nHTTP/1.1 200 OK\nContent-Length: 2\n\nok"))
	run := func(rt http.RoundTripper) []string {
		var mu sync.Mutex
		var got []string
		told := 0
		add := func(s string) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, s)
		}
		for range 2 {
			req := request(t, "GET", s.url, nil)
			req.Header["User-Agent"] = nil
			trace := &httptrace.ClientTrace{
				GetConn: func(a string) { add("get " + a) },
				GotConn: func(i httptrace.GotConnInfo) {
					if i.Conn == nil || i.Conn.RemoteAddr().String() != s.addr {
						t.Errorf("got connection %v", i.Conn)
					}
					if i.Reused {
						add("reused")
					} else {
						add("new")
					}
				},
				GotFirstResponseByte: func() { add("first byte") },
				Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
					add(http.StatusText(code) + h.Get("Link"))
					return nil
				},
				WroteHeaders: func() { add("wrote header") },
				WroteRequest: func(i httptrace.WroteRequestInfo) {
					if i.Err != nil {
						t.Error(i.Err)
					}
					add("wrote")
				},
			}
			req = req.WithContext(httptrace.WithClientTrace(req.Context(), trace))
			mustDo(t, rt, req)
			// http.Transport writes in another goroutine, which may tell of it
			// after the answer.
			eventually(t, "not told that it is written", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return slices.Contains(got[told:], "wrote")
			})
			mu.Lock()
			told = len(got)
			mu.Unlock()
		}
		mu.Lock()
		defer mu.Unlock()
		slices.Sort(got)
		return got
	}
	theirs := std()
	defer theirs.CloseIdleConnections()
	want := run(theirs)
	if got := run(client(t, transport.Options{})); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	// An error of the hook ends the request.
	req := request(t, "GET", s.url, nil)
	wrong := errors.New("no")
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(int, textproto.MIMEHeader) error { return wrong },
	}))
	if _, err := do(t, client(t, transport.Options{}), req); !errors.Is(err, wrong) {
		t.Errorf("got error %v, want the hook's", err)
	}
}

// The header of an interim answer is the hook's to keep.
func TestInterimHeadersAreKept(t *testing.T) {
	s := answers(t, crlf("HTTP/1.1 103 Early Hints\nLink: </a>\n\nHTTP/1.1 200 OK\nContent-Length: 2\nX-A: 1\n\nok"))
	var kept textproto.MIMEHeader
	req := request(t, "GET", s.url, nil)
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(_ int, h textproto.MIMEHeader) error { kept = h; return nil },
	}))
	tr := client(t, transport.Options{})
	first := mustDo(t, tr, req)
	mustDo(t, tr, request(t, "GET", s.url, nil))
	if len(kept) != 1 || kept.Get("Link") != "</a>" || len(first.Header) != 2 || first.Header.Get("X-A") != "1" {
		t.Errorf("got %v and %v afterwards", kept, first.Header)
	}
}

// Headers belong to the caller: changing one is not seen in the next answer.
func TestHeadersAreNotShared(t *testing.T) {
	s := answers(t, crlf("HTTP/1.1 200 OK\nX-A: 1\nX-B: 2\nContent-Length: 2\n\nok"))
	tr := client(t, transport.Options{})
	var all []http.Header
	for range 3 {
		r := mustDo(t, tr, request(t, "GET", s.url, nil))
		r.Header["X-A"] = append(r.Header["X-A"], "more")
		r.Header["X-B"][0] = "changed"
		all = append(all, r.Header)
	}
	for _, h := range all {
		if !slices.Equal(h["X-A"], []string{"1", "more"}) || h.Get("X-B") != "changed" || h.Get("Content-Length") != "2" {
			t.Errorf("got %v", h)
		}
	}
	if r := mustDo(t, tr, request(t, "GET", s.url, nil)); r.Header.Get("X-B") != "2" || len(r.Header["X-A"]) != 1 {
		t.Errorf("got %v, want a fresh header", r.Header)
	}
}

// A trace learns that its request is written when it is, and not with the
// answer: an instance that takes its time is told from a slow connection.
func TestWrittenIsToldBeforeTheAnswer(t *testing.T) {
	written := make(chan struct{}, 1)
	s := serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			select {
			case <-written:
			case <-t.Context().Done():
				return
			}
			if _, err := io.WriteString(c, ok("ok")); err != nil {
				return
			}
		}
	})
	tr := client(t, transport.Options{})
	for range 2 { // on a new connection, and on the same one again
		req := request(t, "GET", s.url, nil)
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
			WroteRequest: func(info httptrace.WroteRequestInfo) {
				if info.Err != nil {
					t.Error(info.Err)
				}
				written <- struct{}{}
			},
		}))
		mustDo(t, tr, req)
	}
	if n := tr.Stats().Dials; n != 1 {
		t.Errorf("dialled %d times", n)
	}
}
