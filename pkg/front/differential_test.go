package front_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/front"
)

// script is what a client sends on one connection, perhaps spoiled.
type script struct {
	text    []byte
	cuts    []int    // where it is cut into writes
	methods []string // of the requests that were meant, for reading answers
	waits   bool     // a request expects 100
	spoiled string
	leaves  bool // it ends its side when it has said everything
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// generate makes the script of a number, always the same.
func generate(seed uint64) *script {
	r := rand.New(rand.NewPCG(seed, 11))
	s := &script{leaves: r.IntN(4) > 0}
	var b bytes.Buffer
	for range 1 + r.IntN(pick(r, 1, 1, 4)) {
		s.request(r, &b)
	}
	s.text = b.Bytes()
	if r.IntN(10) < 5 {
		s.spoil(r)
		s.leaves = true // it might wait for ever
	}
	for range r.IntN(5) {
		s.cuts = append(s.cuts, r.IntN(len(s.text)+1))
	}
	slices.Sort(s.cuts)
	return s
}

func (s *script) request(r *rand.Rand, b *bytes.Buffer) {
	method := pick(r, "GET", "GET", "GET", "HEAD", "POST", "POST", "PUT", "DELETE", "OPTIONS", "REPORT")
	s.methods = append(s.methods, method)
	path := pick(r, "/", "/a/b", "/a%2Fb", "/x?q=1&r=%20", "/a;v=1?", "//x", "/%C3%A9", "/\xc3\xa9", "/a'(b)*!", "/x?a#b", "http://host/a", "/[x]")
	// What the handler does is said in the query of a field.
	version := pick(r, "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0")
	fmt.Fprintf(b, "%s %s %s\r\n", method, path, version)
	b.WriteString("Host: host\r\n")
	fmt.Fprintf(b, "X-Do: %s\r\n", pick(r, "echo", "echo", "length", "chunks", "nothing", "early", "duplex", "status 204", "status 304", "status 500", "trailer", "hint", "short", "close", "big"))
	for range r.IntN(5) {
		fmt.Fprintf(b, "%s:%s%s%s\r\n", pick(r, "Accept", "cookie", "X-A", "X-A", "x-_!~", "User-Agent", "TE", "Cache-Control"), pick(r, "", " ", " \t"),
			pick(r, "", "1", "a, b", "a\tb", "\xc3\xa9\xff", strings.Repeat("v", r.IntN(2000))), pick(r, "", " "))
	}
	if r.IntN(4) == 0 {
		fmt.Fprintf(b, "Connection: %s\r\n", pick(r, "close", "keep-alive", "Close, X", "x"))
	}
	body := bytes.Repeat([]byte("0123456789abcdef"), pick(r, 0, 1, 3, 40, 300, 3000))
	switch {
	case method == "GET" && r.IntN(8) > 0 || method == "HEAD" || r.IntN(4) == 0:
		b.WriteString("\r\n")
	case version == "HTTP/1.0" || r.IntN(2) == 0: // which has no chunks
		if r.IntN(6) == 0 {
			b.WriteString("Expect: 100-continue\r\n")
			s.waits = true
		}
		fmt.Fprintf(b, "%s: %d\r\n\r\n", pick(r, "Content-Length", "content-length"), len(body))
		b.Write(body)
	default:
		fmt.Fprintf(b, "%s: %s\r\n", pick(r, "Transfer-Encoding", "transfer-encoding"), pick(r, "chunked", "Chunked"))
		trailers := r.IntN(3) == 0
		if trailers && r.IntN(2) == 0 {
			b.WriteString("Trailer: X-Sum, x-other\r\n")
		}
		b.WriteString("\r\n")
		for len(body) > 0 {
			n := min(len(body), 1+r.IntN(pick(r, 3, 30, 20000)))
			if len(body) > 2000 {
				n = min(len(body), max(n, 100))
			}
			fmt.Fprintf(b, pick(r, "%x", "%X", "0%x"), n)
			b.WriteString(pick(r, "", "", "", ";a", "; a=b") + "\r\n")
			b.Write(body[:n])
			b.WriteString("\r\n")
			body = body[n:]
		}
		b.WriteString(pick(r, "0", "000", "0;x") + "\r\n")
		if trailers {
			b.WriteString("X-Sum: 12\r\nx-undeclared:3\r\n")
		}
		b.WriteString("\r\n")
	}
}

// spoil makes it wrong, or dubious, in one way.
func (s *script) spoil(r *rand.Rand) {
	a := string(s.text)
	lines := strings.SplitAfter(a, "\r\n")
	at := func() int { return r.IntN(min(len(a), 600)) }
	odd := func() byte { return byte(pick(r, r.IntN(256), ' ', '\t', ';', ':', '0', '\n', '\r', 0, '-')) }
	switch s.spoiled = pick(r, "cut off", "bare LF", "bare CR", "byte gone", "byte changed", "byte added", "line twice", "field added", "line gone", "folded", "surplus"); s.spoiled {
	case "cut off":
		a = a[:at()]
	case "bare LF", "bare CR":
		var ends []int
		for i := range len(a) - 1 {
			if a[i:i+2] == "\r\n" {
				ends = append(ends, i)
			}
		}
		i := ends[r.IntN(min(len(ends), 12))]
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
		b[at()] = odd()
		a = string(b)
	case "byte added":
		i := at()
		a = a[:i] + string([]byte{odd()}) + a[i:]
	case "line twice":
		i := r.IntN(min(len(lines), 8))
		a = strings.Join(slices.Insert(lines, i, lines[i]), "")
	case "line gone":
		i := r.IntN(min(len(lines), 8))
		a = strings.Join(slices.Delete(lines, i, i+1), "")
	case "field added":
		field := pick(r, "Content-Length: 5", "Content-Length: 0", "Content-Length: 5, 5", "Content-Length: -5", "Content-Length : 5", "Content-Length:",
			"Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Transfer-Encoding: chunked, chunked", "Transfer-Encoding : chunked", "Transfer-Encoding: identity",
			"Trailer: Content-Length", "X Y: 1", ": 1", "nothing", "X: \x00", "X: \x7f", "X\xe9: 1", "Host: other", "Expect: cake")
		a = strings.Join(slices.Insert(lines, 1+r.IntN(2), field+"\r\n"), "")
	case "folded":
		a = strings.Join(slices.Insert(lines, 2, pick(r, " folded\r\n", "\tfolded: 1\r\n", " \r\n")), "")
	case "surplus":
		a += pick(r, "\r\n", "x", "\x00\x00", "0\r\n\r\n")
	}
	s.text = []byte(a)
}

// served is the handler of both servers. It answers with what it was given.
func served(w http.ResponseWriter, r *http.Request) {
	do := r.Header.Get("X-Do")
	rc := http.NewResponseController(w)
	w.Header()["Date"] = nil
	switch do {
	case "early":
		w.WriteHeader(401)
		_, _ = io.WriteString(w, "early")
		return
	case "duplex":
		_ = rc.EnableFullDuplex()
		w.Header().Set("Content-Type", "text/plain")
		_ = rc.Flush()
	}
	if do == "nothing" {
		return
	}
	said := describe(r) // after which nothing of the body is left
	switch do {
	case "length":
		w.Header().Set("Content-Length", strconv.Itoa(len(said)))
		_, _ = io.WriteString(w, said)
	case "chunks":
		for len(said) > 0 {
			n := min(len(said), 37)
			_, _ = io.WriteString(w, said[:n])
			said = said[n:]
			_ = rc.Flush()
		}
	case "status 204", "status 304", "status 500":
		code, _ := strconv.Atoi(do[len("status "):])
		w.WriteHeader(code)
		_, _ = io.WriteString(w, said)
	case "trailer":
		w.Header().Set("Trailer", "X-End")
		_, _ = io.WriteString(w, said)
		w.Header().Set("X-End", "1")
		w.Header().Set(http.TrailerPrefix+"X-More", "2")
	case "hint":
		w.Header().Set("Link", "</a>")
		if r.ProtoAtLeast(1, 1) { // net/http sends it to HTTP/1.0 too, which RFC 9110 forbids
			w.WriteHeader(103)
		}
		w.Header().Del("Link")
		_, _ = io.WriteString(w, said)
	case "short":
		w.Header().Set("Content-Length", strconv.Itoa(len(said)+1))
		_, _ = io.WriteString(w, said)
	case "close":
		w.Header().Set("Connection", "close")
		_, _ = io.WriteString(w, said)
	case "big":
		w.Header().Set("Content-Type", "text/plain")
		for range 300 {
			_, _ = io.WriteString(w, said[:min(len(said), 100)])
		}
	default:
		_, _ = io.WriteString(w, said)
	}
}

// outcome is what a client hears.
type outcome struct {
	answers []string
	refused bool // the last answer is the server's own
	ended   bool // the connection ended by itself
	reset   bool // by a reset, which takes back what had been answered
}

func closing(yes bool) string {
	if yes {
		return " and closes"
	}
	return ""
}

// refusedBy reports whether an answer is the server's and not the handler's.
func refusedBy(resp *http.Response) bool {
	return resp.Header.Get("X-Refused") != "" || resp.Header.Get("X-Served") == ""
}

// play plays a script to a server.
func play(t *testing.T, addr string, s *script) (o outcome) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	sent := make(chan bool)
	go func() {
		defer close(sent)
		from := 0
		for _, i := range append(slices.Clone(s.cuts), len(s.text)) {
			if i > from {
				if _, err := c.Write(s.text[from:i]); err != nil {
					return // the server has ended it
				}
				from = i
			}
		}
		if s.leaves {
			_ = c.(*net.TCPConn).CloseWrite()
		}
	}()
	defer func() { <-sent }()
	r := bufio.NewReader(c)
	for i := 0; ; {
		method := "GET"
		if i < len(s.methods) {
			method = s.methods[i]
		}
		if !s.leaves && i == len(s.methods) {
			return o
		}
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			o.ended, o.reset = true, errors.Is(err, syscall.ECONNRESET)
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("the server neither answers nor ends")
			}
			return o
		}
		if resp.StatusCode < 200 {
			if resp.StatusCode != 100 { // which may come or not where the client does not wait
				o.answers = append(o.answers, fmt.Sprint(resp.StatusCode, resp.Header))
			}
			continue
		}
		i++
		body, err := io.ReadAll(resp.Body)
		if errors.Is(err, syscall.ECONNRESET) {
			o.ended, o.reset = true, true
			return o
		}
		if refusedBy(resp) {
			o.refused = true
			return o
		}
		h := resp.Header
		h.Del("Content-Length") // whether a short body has one is a matter of buffers
		o.answers = append(o.answers, fmt.Sprint(resp.Proto, " ", resp.StatusCode, " ", h, " ", resp.Trailer, " ", string(body), " ", err != nil, closing(resp.Close)))
		if err != nil || resp.Close {
			_, err := r.ReadByte()
			o.ended, o.reset = err != nil, errors.Is(err, syscall.ECONNRESET)
			if !o.ended && s.spoiled == "" { // else it may be the answer to another method than was meant
				t.Errorf("something follows the last answer to %.300q", s.text)
			}
			return o
		}
	}
}

// Generated conversations mean the same as with net/http's server, or less: a
// request may be refused here and not there, but never the other way round,
// and what comes before it is the same.
func TestDifferential(t *testing.T) {
	cases := uint64(6000)
	if testing.Short() {
		cases = 500
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Served", "1")
		served(w, r)
	})
	ours := serve(t, front.Options{Handler: handler, Refuse: func(w http.ResponseWriter, _ *http.Request, why *front.Refusal) {
		w.Header().Set("X-Refused", why.Detail)
		w.WriteHeader(why.Status)
	}}, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	std := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
	ended := make(chan bool)
	go func() {
		defer close(ended)
		_ = std.Serve(l)
	}()
	defer func() {
		_ = std.Close()
		<-ended
	}()
	var mu sync.Mutex
	count := map[string]int{}
	var wg sync.WaitGroup
	const workers = 4
	for w := range uint64(workers) {
		wg.Go(func() {
			for seed := w; seed < cases && !t.Failed(); seed += workers {
				s := generate(seed)
				want := play(t, l.Addr().String(), s)
				got := play(t, ours.addr, s)
				verdict, bad := judge(s, got, want)
				if bad != "" {
					t.Errorf("case %d (%s): %s\nsent %.700q\nours   %.600q refused %v ended %v\ntheirs %.600q refused %v ended %v", seed, s.spoiled, bad, s.text,
						got.answers, got.refused, got.ended, want.answers, want.refused, want.ended)
				}
				mu.Lock()
				count[verdict]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Log(count)
	for _, verdict := range []string{"same", "same refusal", "stricter"} {
		if count[verdict] == 0 {
			t.Errorf("no case was %q: %v", verdict, count)
		}
	}
}

// judge compares, and says what is bad about it.
func judge(s *script, got, want outcome) (verdict, bad string) {
	n := len(got.answers)
	switch {
	case n > len(want.answers) && want.reset:
		return "same, but for a reset", ""
	case n > len(want.answers):
		return "", "more is answered than by net/http"
	case n < len(want.answers) && s.spoiled == "":
		return "", "less is answered though nothing is wrong"
	case n < len(want.answers) && !got.refused && !got.ended:
		return "", "less is answered without a refusal"
	}
	for i, a := range got.answers {
		b := want.answers[i]
		if s.spoiled != "" && got.ended && want.ended {
			// Whether the end is announced depends on when it is decided.
			announced := strings.NewReplacer("Connection:[keep-alive] ", "", closing(true), "")
			a, b = announced.Replace(a), announced.Replace(b)
		}
		if a != b {
			// Where only one of the two has seen what is wrong with a body,
			// it says so, and the connection ends with the answer.
			if s.spoiled != "" && i == n-1 && strings.Contains(a, " error") && got.ended {
				return "stricter", ""
			}
			return "", fmt.Sprintf("answer %d differs", i)
		}
	}
	switch {
	case n < len(want.answers):
		return "stricter", ""
	case got.refused && want.refused:
		return "same refusal", ""
	case got.refused:
		return "stricter", ""
	case want.refused && !got.ended:
		return "", "only net/http refuses"
	case s.spoiled == "" && got.ended != want.ended:
		return "", "the connection ends with one of the two"
	}
	return "same", ""
}
