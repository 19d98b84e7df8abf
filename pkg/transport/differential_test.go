package transport_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/proconsul/proconsul/pkg/transport"
)

// script is a generated exchange: what the client sends, and what the instance
// does, whatever it was sent.
type script struct {
	// The client.
	method  string
	path    string
	header  http.Header
	body    []byte
	chunked bool
	pieces  int // how much of the body a Read returns; 0: all
	trailer http.Header
	closing bool
	early   int // bytes of the answer's body after which the client closes it; -1: it reads on

	// The instance.
	answer  []byte
	cut     []int // where the answer is cut into writes
	spoiled string
	first   bool // it answers before it reads the request's body
	leave   bool // it closes the connection afterwards
}

// outcome is what the client sees.
type outcome struct {
	failed   bool // before the header
	err      error
	status   string
	proto    string
	header   http.Header
	length   int64
	encoding []string
	close    bool
	body     string
	broken   bool // after the header
	trailer  http.Header
	interim  []string
	request  string // what the instance understood
}

func (o outcome) String() string {
	if o.failed {
		return "error: " + o.err.Error()
	}
	return fmt.Sprintf("%s %s %.200v length %d encoding %v close %v body %.60q (%d) broken %v (%v) trailer %v interim %v", o.proto, o.status, fmt.Sprint(o.header), o.length, o.encoding,
		o.close, o.body, len(o.body), o.broken, o.err, o.trailer, o.interim)
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// generate makes the script of a number, always the same.
func generate(seed uint64) *script {
	r := rand.New(rand.NewPCG(seed, 7))
	s := &script{method: pick(r, "GET", "GET", "GET", "HEAD", "POST", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "REPORT"), early: -1}
	s.path = pick(r, "/", "/a/b", "/a%2Fb", "/x?q=1&r=%20", "/a;v=1?", "/%C3%A9")
	s.header = http.Header{"User-Agent": {"diff"}}
	for range r.IntN(5) {
		s.header.Add(pick(r, "Accept", "X-A", "X-B", "Cookie", "Te", "Idempotency-Key"), pick(r, "1", "", "a, b", "x=y; z", strings.Repeat("v", r.IntN(300))))
	}
	if s.method != "GET" && s.method != "HEAD" && r.IntN(4) > 0 {
		s.body = bytes.Repeat([]byte("0123456789abcdef"), pick(r, 0, 1, 3, 40, 600, 5000))
		s.body = s.body[:max(0, len(s.body)-r.IntN(5))]
		s.chunked = r.IntN(2) == 0
		s.pieces = pick(r, 0, 0, 7, 1000)
		if len(s.body) > 1000 && s.pieces == 7 {
			s.pieces = 0
		}
		if s.chunked && r.IntN(3) == 0 {
			s.trailer = http.Header{"X-Sum": {"1"}, "X-More": {"2", "3"}}
		}
	}
	s.closing = r.IntN(10) == 0
	s.first = r.IntN(8) == 0
	s.leave = r.IntN(5) == 0
	s.respond(r)
	if r.IntN(10) == 0 {
		s.early = r.IntN(20)
	}
	if r.IntN(10) < 4 {
		s.spoil(r)
	}
	for range r.IntN(5) {
		if len(s.answer) > 0 {
			s.cut = append(s.cut, r.IntN(len(s.answer)))
		}
	}
	slices.Sort(s.cut)
	return s
}

// respond makes a valid answer.
func (s *script) respond(r *rand.Rand) {
	var b bytes.Buffer
	for range pick(r, 0, 0, 0, 1, 2) {
		fmt.Fprintf(&b, "HTTP/1.1 %s\r\n", pick(r, "103 Early Hints", "102 Processing", "100 Continue", "199 Odd"))
		if r.IntN(2) == 0 {
			b.WriteString("Link: </a>; rel=preload\r\n")
		}
		b.WriteString("\r\n")
	}
	status := pick(r, "200 OK", "200 OK", "200 OK", "200", "201 Created", "204 No Content", "304 Not Modified", "404 Not Found", "500 Oh  no", "302 Found", "206 Partial", "599 \xe9")
	proto := pick(r, "1.1", "1.1", "1.1", "1.1", "1.0")
	fmt.Fprintf(&b, "HTTP/%s %s\r\n", proto, status)
	for range r.IntN(6) {
		fmt.Fprintf(&b, "%s:%s%s%s\r\n", pick(r, "Content-Type", "set-cookie", "ETag", "X-REQUEST-ID", "Date", "Server", "Vary", "x-_!~"), pick(r, "", " ", "  \t"),
			pick(r, "", "a", "text/html; charset=utf-8", "a\tb", "\xc3\xa9\xff", strings.Repeat("l", r.IntN(3000))), pick(r, "", " ", "\t"))
	}
	if r.IntN(5) == 0 {
		fmt.Fprintf(&b, "Connection: %s\r\n", pick(r, "close", "keep-alive", "Close, X", "x, y"))
	}
	body := bytes.Repeat([]byte("0123456789"), pick(r, 0, 1, 2, 50, 900, 7000))
	none := s.method == "HEAD" || status[:3] == "204" || status[:3] == "304"
	switch kind := r.IntN(10); {
	case kind < 4:
		if !(status[:3] == "204" && len(body) > 0) {
			fmt.Fprintf(&b, "%s: %d\r\n", pick(r, "Content-Length", "content-length"), len(body))
		}
		b.WriteString("\r\n")
		if !none {
			b.Write(body)
		}
	case kind < 8 && proto == "1.1" && status[:3] != "204" && status[:3] != "304":
		fmt.Fprintf(&b, "%s: %s\r\n", pick(r, "Transfer-Encoding", "transfer-encoding"), pick(r, "chunked", "Chunked"))
		trailers := r.IntN(3) == 0
		if trailers && r.IntN(2) == 0 {
			b.WriteString("Trailer: X-Sum, x-other\r\n")
		}
		b.WriteString("\r\n")
		if none {
			break
		}
		for len(body) > 0 {
			n := min(len(body), 1+r.IntN(pick(r, 3, 30, 10000)))
			if len(body) > 2000 {
				n = min(len(body), max(n, 100))
			}
			fmt.Fprintf(&b, pick(r, "%x", "%X", "0%x"), n)
			b.WriteString(pick(r, "", "", "", ";a", "; a=b", ";a=\"b c\" ; d") + "\r\n")
			b.Write(body[:n])
			b.WriteString("\r\n")
			body = body[n:]
		}
		b.WriteString(pick(r, "0", "000", "0;x") + "\r\n")
		if trailers {
			b.WriteString("X-Sum: 12\r\nx-undeclared:3\r\n")
		}
		b.WriteString("\r\n")
	default:
		b.WriteString("\r\n")
		if !none {
			b.Write(body)
			s.leave = true // that is the end
		}
	}
	s.answer = b.Bytes()
}

// spoil makes it wrong, or dubious, in one way.
func (s *script) spoil(r *rand.Rand) {
	a := string(s.answer)
	head, rest, _ := strings.Cut(a, "\r\n\r\n")
	headLines := strings.Split(head, "\r\n")
	at := func() int { return r.IntN(len(a)) }
	switch s.spoiled = pick(r, "cut off", "bare LF", "bare CR", "byte gone", "byte changed", "byte added", "line twice", "field added", "surplus", "folded", "line gone"); s.spoiled {
	case "cut off":
		a = a[:at()]
	case "bare LF", "bare CR":
		var ends []int
		for i := range len(a) - 1 {
			if a[i:i+2] == "\r\n" {
				ends = append(ends, i)
			}
		}
		i := pick(r, ends...)
		if s.spoiled == "bare LF" {
			a = a[:i] + a[i+1:]
		} else {
			a = a[:i+1] + a[i+2:]
		}
	case "byte gone":
		i := at()
		a = a[:i] + a[i+1:]
	case "byte changed":
		b := []byte(a)
		b[min(at(), r.IntN(400))%len(b)] = byte(pick(r, r.IntN(256), ' ', '\t', ';', ':', '0', '\n', '\r', 0, '-'))
		a = string(b)
	case "byte added":
		i := min(at(), r.IntN(400))
		a = a[:i] + string([]byte{byte(pick(r, r.IntN(256), ' ', '\t', ';', ':', '0', '\n', '\r', 0, '-'))}) + a[i:]
	case "line twice":
		i := r.IntN(len(headLines))
		a = strings.Join(slices.Insert(slices.Clone(headLines), i, headLines[i]), "\r\n") + "\r\n\r\n" + rest
	case "line gone":
		i := r.IntN(len(headLines))
		a = strings.Join(slices.Delete(slices.Clone(headLines), i, i+1), "\r\n") + "\r\n\r\n" + rest
	case "field added":
		field := pick(r, "Content-Length: 5", "Content-Length: 0", "Content-Length: 5, 5", "Content-Length: -5", "Content-Length: +1", "Content-Length : 5", "Content-Length:",
			"Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Transfer-Encoding: chunked, chunked", "Transfer-Encoding : chunked", "Transfer-Encoding: identity",
			"Trailer: Content-Length", "X Y: 1", ": 1", "nothing", "X: \x00", "X: \x7f", "X\xe9: 1")
		i := 1 + r.IntN(len(headLines))
		a = strings.Join(slices.Insert(slices.Clone(headLines), i, field), "\r\n") + "\r\n\r\n" + rest
	case "folded":
		i := 1 + r.IntN(len(headLines))
		a = strings.Join(slices.Insert(slices.Clone(headLines), i, pick(r, " folded", "\tfolded: 1", " ")), "\r\n") + "\r\n\r\n" + rest
	case "surplus":
		a += pick(r, "\r\n", "x", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", "0\r\n\r\n")
	}
	s.answer = []byte(a)
	s.leave = s.leave || s.spoiled != "surplus" // else the client might wait for what never comes
}

// instance plays scripts: a request says which by its X-Case field.
type instance struct {
	*server
	mu    sync.Mutex
	plays map[string]*play
}

type play struct {
	*script
	heard string
	done  chan struct{}
}

func newInstance(t *testing.T) *instance {
	in := &instance{plays: map[string]*play{}}
	in.server = serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			id := req.Header.Get("X-Case")
			if marker, ok := strings.CutPrefix(id, "marker "); ok {
				_, _ = io.WriteString(c, ok200(marker))
				continue
			}
			in.mu.Lock()
			p := in.plays[id]
			in.mu.Unlock()
			if !in.play(c, req, p) {
				return
			}
		}
	})
	return in
}

func ok200(body string) string { return ok(body) }

func (in *instance) play(c net.Conn, req *http.Request, p *play) (again bool) {
	defer close(p.done)
	say := func() {
		rest := p.answer
		from := 0
		for _, i := range p.cut {
			if i > from {
				_, _ = c.Write(rest[from:i])
				from = i
			}
		}
		_, _ = c.Write(rest[from:])
	}
	if p.first {
		say()
	}
	body, err := io.ReadAll(req.Body)
	req.Header.Del("X-Case")
	p.heard = fmt.Sprint(req.Method, req.RequestURI, req.Host, req.Header, req.Trailer, req.Close, len(body), string(body), err)
	if !p.first {
		say()
	}
	if p.leave {
		// Without this what the client has sent since could reset what was
		// said to it.
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, req.Body)
		return false
	}
	return !req.Close
}

// run plays a script with an engine.
func (in *instance) run(t *testing.T, rt http.RoundTripper, s *script, id string) outcome {
	p := &play{script: s, done: make(chan struct{})}
	in.mu.Lock()
	in.plays[id] = p
	in.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var o outcome
	var mu sync.Mutex
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		mu.Lock()
		defer mu.Unlock()
		o.interim = append(o.interim, fmt.Sprint(code, h))
		return nil
	}})
	var body io.Reader
	if s.body != nil {
		body = bytes.NewReader(s.body)
		if s.pieces > 0 {
			body = &pieces{body, s.pieces}
		} else if len(s.body)%2 == 0 {
			body = iotest.DataErrReader(body)
		}
		body = onlyReader{body}
	}
	req, err := http.NewRequestWithContext(ctx, s.method, "http://"+in.addr+s.path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = s.header.Clone()
	req.Header.Set("X-Case", id)
	req.Trailer, req.Close = s.trailer.Clone(), s.closing
	if body != nil && !s.chunked {
		req.ContentLength = int64(len(s.body))
		if len(s.body) == 0 {
			req.Body = http.NoBody
		}
	}
	resp, err := rt.RoundTrip(req)
	mu.Lock()
	defer mu.Unlock()
	if err != nil {
		o.failed, o.err = true, err
		return o
	}
	defer resp.Body.Close()
	o.status, o.proto, o.header, o.length, o.encoding, o.close = resp.Status, resp.Proto, resp.Header, resp.ContentLength, resp.TransferEncoding, resp.Close
	var b []byte
	if s.early >= 0 {
		b = make([]byte, s.early)
		n, _ := io.ReadFull(resp.Body, b)
		b = b[:n]
	} else {
		b, err = io.ReadAll(resp.Body)
		o.trailer = resp.Trailer
	}
	o.body, o.err, o.broken = string(b), err, err != nil
	resp.Body.Close()
	if s.spoiled == "" {
		select {
		case <-p.done:
			o.request = p.heard
		case <-time.After(20 * time.Second):
			t.Errorf("case %s: the instance waits", id)
		}
	}
	return o
}

type pieces struct {
	io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) { return p.Reader.Read(b[:min(len(b), p.n)]) }

// Generated exchanges mean the same as with http.Transport, or less: an answer
// that is not valid may fail here and not there, but never the other way
// round, and none may leave anything for the next request.
func TestDifferential(t *testing.T) {
	cases := uint64(4500)
	if testing.Short() {
		cases = 500
	}
	in := newInstance(t)
	ours := client(t, transport.Options{})
	var mu sync.Mutex
	count := map[string]int{}
	var wg sync.WaitGroup
	const workers = 4
	for w := range uint64(workers) {
		wg.Go(func() {
			theirs := std()
			defer theirs.CloseIdleConnections()
			for seed := w; seed < cases && !t.Failed(); seed += workers {
				s := generate(seed)
				id := strconv.FormatUint(seed, 10)
				theirs.CloseIdleConnections() // it would send on those that are about to be closed
				want := in.run(t, theirs, s, id)
				got := in.run(t, ours, s, id+" fast")
				// A connection that the last script has closed a moment ago may
				// still look good; to tell that apart is the point of LostError.
				var lost *transport.LostError
				for n := 0; n < 5 && errors.As(got.err, &lost) && lost.Reused && !lost.Answered; n++ {
					got = in.run(t, ours, s, id+" fast")
				}
				verdict, bad := judge(s, got, want)
				if bad != "" {
					t.Errorf("case %d (%s %s): %s\nanswer  %q\nours    %s\ntheirs  %s\ninstance heard\n%.300q\n%.300q", seed, s.method, s.spoiled, bad, brief(s.answer), got, want, got.request, want.request)
				}
				req := request(t, "GET", in.url, nil)
				req.Header.Set("X-Case", "marker "+id)
				if r, err := do(t, ours, req); err != nil || r.body != id {
					t.Errorf("case %d (%s %s): the next request got %q, %v\nanswer %.400q", seed, s.method, s.spoiled, r.body, err, brief(s.answer))
				}
				mu.Lock()
				count[verdict]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Log(count)
	for _, verdict := range []string{"same", "same failure", "stricter"} {
		if count[verdict] == 0 {
			t.Errorf("no case was %q: %v", verdict, count)
		}
	}
}

// judge compares, and says what is bad about it.
func judge(s *script, got, want outcome) (verdict, bad string) {
	fine := func(o outcome) bool { return !o.failed && !o.broken }
	switch {
	case fine(got) && !fine(want):
		return "", "only http.Transport fails"
	case !fine(got) && fine(want):
		if s.spoiled == "" {
			return "", "a valid answer fails"
		}
		return "stricter", ""
	case !fine(got):
		return "same failure", ""
	}
	switch {
	case got.status != want.status || got.proto != want.proto || !equalHeader(got.header, want.header) || got.length != want.length || !slices.Equal(got.encoding, want.encoding) || got.close != want.close:
		return "", "another header"
	case got.body != want.body:
		return "", "another body"
	case !equalHeader(got.trailer, want.trailer):
		return "", "other trailers"
	case !slices.Equal(got.interim, want.interim):
		return "", "other interim answers"
	case got.request != want.request && !s.first:
		return "", "the instance got another request"
	}
	return "same", ""
}

// brief shortens what is repeated.
func brief(b []byte) string {
	return strings.NewReplacer(strings.Repeat("l", 50), "", strings.Repeat("0123456789", 10), "").Replace(string(b))
}
