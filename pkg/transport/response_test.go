package transport_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/pkg/transport"
)

func TestAnswers(t *testing.T) {
	tests := []struct {
		name    string
		method  string // GET
		answer  string
		status  int // 200
		length  int64
		body    string
		header  http.Header
		trailer http.Header
		reused  bool // the next request gets the same connection
	}{
		{name: "content length", answer: "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", length: 5, body: "hello", reused: true},
		{name: "empty", answer: "HTTP/1.1 200 OK\nContent-Length: 0\n\n", reused: true},
		{name: "no reason", answer: "HTTP/1.1 200 \nContent-Length: 0\n\n", reused: true},
		{name: "no reason and no space", answer: "HTTP/1.1 200\nContent-Length: 0\n\n", reused: true},
		{name: "leading zeros", answer: "HTTP/1.1 200 OK\nContent-Length: 0005\n\nhello", length: 5, body: "hello", reused: true},
		{name: "chunked", answer: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello\n6\n world\n0\n\n", length: -1, body: "hello world", reused: true},
		{name: "chunked, other cases", answer: "HTTP/1.1 200 OK\nTRANSFER-ENCODING: \tChunked \n\nA\n0123456789\n000\n\n", length: -1, body: "0123456789", reused: true},
		{name: "chunk extensions", answer: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5;a=b\nhello\n0; x=\"y\"\n\n", length: -1, body: "hello", reused: true},
		{name: "trailers", answer: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: X-Sum\n\n1\na\n0\nX-Sum: 1\nx-more: 2\nX-More: 3\n\n", length: -1, body: "a",
			trailer: http.Header{"X-Sum": {"1"}, "X-More": {"2", "3"}}, reused: true},
		{name: "trailers that would frame", answer: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n0\nContent-Length: 7\nTransfer-Encoding: chunked\nX-A: 1\n\n", length: -1,
			trailer: http.Header{"X-A": {"1"}}, reused: true},
		{name: "until the end", answer: "HTTP/1.1 200 OK\n\nhello", length: -1, body: "hello"},
		{name: "close", answer: "HTTP/1.1 200 OK\nConnection: foo, Close\nContent-Length: 2\n\nok", length: 2, body: "ok"},
		{name: "keep-alive is nothing special", answer: "HTTP/1.1 200 OK\nConnection: keep-alive\nContent-Length: 2\n\nok", length: 2, body: "ok",
			header: http.Header{"Connection": {"keep-alive"}, "Content-Length": {"2"}}, reused: true},
		{name: "HTTP/1.0", answer: "HTTP/1.0 200 OK\nContent-Length: 2\n\nok", length: 2, body: "ok"},
		{name: "HTTP/1.0 keep-alive", answer: "HTTP/1.0 200 OK\nConnection: keep-alive\nContent-Length: 2\n\nok", length: 2, body: "ok"},
		{name: "HEAD", method: "HEAD", answer: "HTTP/1.1 200 OK\nContent-Length: 1000\n\n", length: 1000, reused: true},
		{name: "HEAD chunked", method: "HEAD", answer: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", length: -1, reused: true},
		{name: "HEAD without framing", method: "HEAD", answer: "HTTP/1.1 200 OK\n\n", length: -1, reused: true},
		{name: "HEAD with a body", method: "HEAD", answer: "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", length: 5},
		{name: "204", answer: "HTTP/1.1 204 No Content\n\n", status: 204, reused: true},
		{name: "204 of length 0", answer: "HTTP/1.1 204 No Content\nContent-Length: 0\n\n", status: 204, reused: true},
		{name: "204 that says it has a body", answer: "HTTP/1.1 204 No Content\nContent-Length: 5\n\n", status: 204},
		{name: "204 chunked", answer: "HTTP/1.1 204 No Content\nTransfer-Encoding: chunked\n\n0\n\n", status: 204},
		{name: "304", answer: "HTTP/1.1 304 Not Modified\nContent-Length: 1000\nEtag: \"a\"\n\n", status: 304, reused: true,
			header: http.Header{"Content-Length": {"1000"}, "Etag": {`"a"`}}},
		{name: "surplus", answer: "HTTP/1.1 200 OK\nContent-Length: 2\n\nokmore", length: 2, body: "ok"},
		{name: "surplus after chunks", answer: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nok\n0\n\n\n", length: -1, body: "ok"},
		{name: "another answer", answer: "HTTP/1.1 200 OK\nContent-Length: 2\n\nokHTTP/1.1 200 OK\nContent-Length: 4\n\nevil", length: 2, body: "ok"},
		{name: "interim answers", answer: "HTTP/1.1 100 Continue\n\nHTTP/1.1 103 Early Hints\nLink: </a>\n\nHTTP/1.1 102 Processing\n\nHTTP/1.1 200 OK\nContent-Length: 2\n\nok",
			length: 2, body: "ok", header: http.Header{"Content-Length": {"2"}}, reused: true},
		{name: "repeated fields, odd values", answer: "HTTP/1.1 200 OK\nset-cookie: a\nSet-Cookie:b\nX-Empty:\nX-Utf: \xc3\xa9\nX-Tab: a\tb\nContent-Length: 0\n\n",
			header: http.Header{"Set-Cookie": {"a", "b"}, "X-Empty": {""}, "X-Utf": {"\xc3\xa9"}, "X-Tab": {"a\tb"}, "Content-Length": {"0"}}, reused: true},
		{name: "500", answer: "HTTP/1.1 500 Internal Server Error\nContent-Length: 3\n\nbad", status: 500, length: 3, body: "bad", reused: true},
		{name: "status 799", answer: "HTTP/1.1 799 What\nContent-Length: 0\n\n", status: 799, reused: true},
		{name: "more header than the buffer", answer: "HTTP/1.1 200 OK\nX-Big: " + strings.Repeat("a", 60<<10) + "\nContent-Length: 2\n\nok", length: 2, body: "ok", reused: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s *server
			if tt.length < 0 && !strings.Contains(strings.ToLower(tt.answer), "chunked") && tt.method == "" {
				s = answersOnce(t, crlf(tt.answer))
			} else {
				s = answers(t, crlf(tt.answer))
			}
			tr := client(t, transport.Options{})
			method := tt.method
			if method == "" {
				method = "GET"
			}
			for i := range 2 {
				r := mustDo(t, tr, request(t, method, s.url, nil))
				if want := max(tt.status, 200); tt.status == 0 && r.StatusCode != 200 || tt.status != 0 && r.StatusCode != want {
					t.Errorf("got status %d", r.StatusCode)
				}
				if r.body != tt.body || r.ContentLength != tt.length {
					t.Errorf("got body %.40q of declared length %d, want %q of %d", r.body, r.ContentLength, tt.body, tt.length)
				}
				if tt.header != nil && !equalHeader(r.Header, tt.header) {
					t.Errorf("got header %q, want %q", r.Header, tt.header)
				}
				if !equalHeader(r.Trailer, tt.trailer) {
					t.Errorf("got trailers %q, want %q", r.Trailer, tt.trailer)
				}
				if i == 1 {
					want := 2
					if tt.reused {
						want = 1
					}
					if got := s.accepted(); got != want {
						t.Errorf("two requests took %d connections, want %d", got, want)
					}
				}
			}
		})
	}
}

func equalHeader(a, b http.Header) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if !slices.Equal(v, b[k]) {
			return false
		}
	}
	return true
}

// What may be read in two ways is an error, before anything of it is told, and
// the end of the connection.
func TestAmbiguousAnswers(t *testing.T) {
	tests := map[string]string{
		"not HTTP":                     "SSH-2.0-OpenSSH_9\n",
		"no line feed":                 "\x15\x03\x01\x00\x02\x02\x46",
		"HTTP/2":                       "HTTP/2 200 OK\nContent-Length: 0\n\n",
		"HTTP/1.2":                     "HTTP/1.2 200 OK\nContent-Length: 0\n\n",
		"lower case":                   "http/1.1 200 OK\nContent-Length: 0\n\n",
		"leading empty line":           "\nHTTP/1.1 200 OK\nContent-Length: 0\n\n",
		"two spaces":                   "HTTP/1.1  200 OK\nContent-Length: 0\n\n",
		"status of two digits":         "HTTP/1.1 20 OK\nContent-Length: 0\n\n",
		"status of four digits":        "HTTP/1.1 2000 OK\nContent-Length: 0\n\n",
		"status with a sign":           "HTTP/1.1 +20 OK\nContent-Length: 0\n\n",
		"status 099":                   "HTTP/1.1 099 OK\nContent-Length: 0\n\n",
		"control in the reason":        "HTTP/1.1 200 O\x00K\nContent-Length: 0\n\n",
		"carriage return in reason":    "HTTP/1.1 200 O\rK\nContent-Length: 0\n\n",
		"bare LF after the status":     "HTTP/1.1 200 OK<LF>Content-Length: 0\n\n",
		"bare LF after a field":        "HTTP/1.1 200 OK\nX: 1<LF>Content-Length: 0\n\n",
		"bare LF at the end":           "HTTP/1.1 200 OK\nContent-Length: 0\n<LF>",
		"folded line":                  "HTTP/1.1 200 OK\nX: 1\n 2\nContent-Length: 0\n\n",
		"folded with a tab":            "HTTP/1.1 200 OK\nX: 1\n\tContent-Length: 5\n\n",
		"folded first line":            "HTTP/1.1 200 OK\n X: 1\nContent-Length: 0\n\n",
		"space before the colon":       "HTTP/1.1 200 OK\nContent-Length : 0\n\n",
		"no colon":                     "HTTP/1.1 200 OK\nContent-Length\n\n",
		"no name":                      "HTTP/1.1 200 OK\n: 0\n\n",
		"odd name":                     "HTTP/1.1 200 OK\nContent\"Length: 0\n\n",
		"name beyond ASCII":            "HTTP/1.1 200 OK\nX\xe9: 0\nContent-Length: 0\n\n",
		"NUL in a value":               "HTTP/1.1 200 OK\nX: a\x00b\nContent-Length: 0\n\n",
		"CR in a value":                "HTTP/1.1 200 OK\nX: a\rContent-Length: 5\nContent-Length: 0\n\n",
		"DEL in a value":               "HTTP/1.1 200 OK\nX: \x7f\nContent-Length: 0\n\n",
		"two Content-Length":           "HTTP/1.1 200 OK\nContent-Length: 0\nContent-Length: 5\n\nhello",
		"the same Content-Length":      "HTTP/1.1 200 OK\nContent-Length: 5\nContent-Length: 5\n\nhello",
		"Content-Length list":          "HTTP/1.1 200 OK\nContent-Length: 5, 5\n\nhello",
		"negative Content-Length":      "HTTP/1.1 200 OK\nContent-Length: -1\n\n",
		"Content-Length with a sign":   "HTTP/1.1 200 OK\nContent-Length: +5\n\nhello",
		"hexadecimal Content-Length":   "HTTP/1.1 200 OK\nContent-Length: 0x5\n\nhello",
		"empty Content-Length":         "HTTP/1.1 200 OK\nContent-Length: \n\n",
		"huge Content-Length":          "HTTP/1.1 200 OK\nContent-Length: 92233720368547758080\n\n",
		"Content-Length of a HEAD":     "HTTP/1.1 200 OK\nContent-Length: a\n\n",
		"both":                         "HTTP/1.1 200 OK\nContent-Length: 5\nTransfer-Encoding: chunked\n\n0\n\n",
		"both, other order":            "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nContent-Length: 5\n\n0\n\n",
		"two Transfer-Encoding":        "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n0\n\n",
		"gzip, chunked":                "HTTP/1.1 200 OK\nTransfer-Encoding: gzip, chunked\n\n0\n\n",
		"identity":                     "HTTP/1.1 200 OK\nTransfer-Encoding: identity\nContent-Length: 0\n\n",
		"xchunked":                     "HTTP/1.1 200 OK\nTransfer-Encoding: xchunked\n\n0\n\n",
		"empty Transfer-Encoding":      "HTTP/1.1 200 OK\nTransfer-Encoding: \nContent-Length: 0\n\n",
		"chunked with a vertical tab":  "HTTP/1.1 200 OK\nTransfer-Encoding: \x0bchunked\n\n0\n\n",
		"chunked in HTTP/1.0":          "HTTP/1.0 200 OK\nTransfer-Encoding: chunked\n\n0\n\n",
		"bad trailer name":             "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: a b\n\n0\n\n",
		"framing as a trailer":         "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: Content-Length\n\n0\n\n",
		"switches protocols unasked":   "HTTP/1.1 101 Switching Protocols\nUpgrade: websocket\nConnection: upgrade\n\n",
		"interim with a length":        "HTTP/1.1 103 Early Hints\nContent-Length: 5\n\nhelloHTTP/1.1 200 OK\nContent-Length: 0\n\n",
		"interim chunked":              "HTTP/1.1 103 Early Hints\nTransfer-Encoding: chunked\n\n0\n\nHTTP/1.1 200 OK\nContent-Length: 0\n\n",
		"interim answers without end":  strings.Repeat("HTTP/1.1 102 Processing\n\n", 102),
		"a large header":               "HTTP/1.1 200 OK\nX: " + strings.Repeat("a", 64<<10) + "\nContent-Length: 0\n\n",
		"a header without end":         "HTTP/1.1 200 OK\nX: " + strings.Repeat("a", 100<<10),
		"many fields":                  "HTTP/1.1 200 OK\n" + strings.Repeat("X: a\n", 20<<10) + "Content-Length: 0\n\n",
		"interim answers of much size": strings.Repeat("HTTP/1.1 103 Early Hints\nX: "+strings.Repeat("a", 8<<10)+"\n\n", 9),
	}
	for name, answer := range tests {
		t.Run(name, func(t *testing.T) {
			s := answers(t, strings.ReplaceAll(crlf(answer), "<LF>", "\n"))
			tr := client(t, transport.Options{})
			method := "GET"
			if strings.Contains(name, "HEAD") {
				method = "HEAD"
			}
			_, err := do(t, tr, request(t, method, s.url, nil))
			var bad *transport.ProtocolError
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), "malformed") {
				t.Errorf("got error %v, want a ProtocolError", err)
			}
			if st := tr.Stats(); st.Idle != 0 || st.Active != 0 {
				t.Errorf("got %+v, want no connection left", st)
			}
		})
	}
}

// A body that breaks off or goes wrong is an error, and never the end.
func TestBrokenBodies(t *testing.T) {
	tests := []struct {
		name, answer string
		malformed    bool
		body         string
	}{
		{"short of its length", "HTTP/1.1 200 OK\nContent-Length: 10\n\nhello", false, "hello"},
		{"within a chunk", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\na\nhello", false, "hello"},
		{"without the last chunk", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello\n", false, "hello"},
		{"within the size", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello\n5", false, "hello"},
		{"within the end", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello\n0\n", false, "hello"},
		{"within the trailers", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello\n0\nX-A: 1\n", false, "hello"},
		{"a size that is none", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello\nxyz\n", true, "hello"},
		{"an empty size", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello\n\n", true, "hello"},
		{"a size with a sign", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n+5\nhello\n0\n\n", true, ""},
		{"a size with 0x", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n0x5\nhello\n0\n\n", true, ""},
		{"a size after a space", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n 5\nhello\n0\n\n", true, ""},
		{"a size before a space", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5 \nhello\n0\n\n", true, ""},
		{"a size before a space and an extension", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5 ;a\nhello\n0\n\n", true, ""},
		{"a size that overflows", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n10000000000000005\nhello\n0\n\n", true, ""},
		{"a chunk that is longer", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello!\n0\n\n", true, "hello"},
		{"no CRLF after a chunk", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello0\n\n", true, "hello"},
		{"control in an extension", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5;a\x00\nhello\n0\n\n", true, ""},
		{"CR in an extension", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5;a\rb\nhello\n0\n\n", true, ""},
		{"a long extension", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5;" + strings.Repeat("a", 5000) + "\nhello\n0\n\n", true, ""},
		{"many extensions", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n" + strings.Repeat("1;"+strings.Repeat("a", 1000)+"\na\n", 17) + "0\n\n", true, strings.Repeat("a", 16)},
		{"a folded trailer", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n0\nX: a\n b\n\n", true, ""},
		{"a trailer without a colon", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n0\nX\n\n", true, ""},
		{"large trailers", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n0\n" + strings.Repeat("X: "+strings.Repeat("a", 1000)+"\n", 70) + "\n", true, ""},
		{"a large trailer", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n0\nX: " + strings.Repeat("a", 70<<10) + "\n\n", true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := answersOnce(t, crlf(tt.answer))
			tr := client(t, transport.Options{})
			r, err := do(t, tr, request(t, "GET", s.url, nil))
			var bad *transport.ProtocolError
			if tt.malformed && !errors.As(err, &bad) || !tt.malformed && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("got error %v", err)
			}
			if r.Response != nil && r.body != tt.body {
				t.Errorf("got body %q before the error, want %q", r.body, tt.body)
			}
			if st := tr.Stats(); st.Idle != 0 || st.Active != 0 {
				t.Errorf("got %+v, want no connection left", st)
			}
		})
	}
	// Bare line feeds, wherever a chunked body has line ends.
	whole := crlf("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5;x\nhello\n0\nX: 1\n\n")
	start := strings.Index(whole, "\r\n\r\n") + 4
	for i := start; i < len(whole); i++ {
		if whole[i] != '\r' {
			continue
		}
		t.Run(fmt.Sprintf("bare LF at %d", i-start), func(t *testing.T) {
			s := answersOnce(t, whole[:i]+whole[i+1:])
			_, err := do(t, client(t, transport.Options{}), request(t, "GET", s.url, nil))
			var bad *transport.ProtocolError
			if !errors.As(err, &bad) {
				t.Errorf("got error %v, want a ProtocolError", err)
			}
		})
	}
}

// An answer means the same in whatever pieces it arrives.
func TestAnswersInPieces(t *testing.T) {
	answer := crlf("HTTP/1.1 103 Early Hints\nLink: </a>\n\nHTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: X-Sum\n\n5;x=y\nhello\n10\n0123456789abcdef\n0\nX-Sum: 1\n\n")
	for _, size := range []int{1, 2, 3, 7, 50} {
		s := serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
			for {
				if _, err := http.ReadRequest(r); err != nil {
					return
				}
				for rest := answer; rest != ""; {
					n := min(size, len(rest))
					if _, err := io.WriteString(c, rest[:n]); err != nil {
						return
					}
					rest = rest[n:]
				}
			}
		})
		tr := client(t, transport.Options{})
		for range 20 {
			r := mustDo(t, tr, request(t, "GET", s.url, nil))
			if r.body != "hello0123456789abcdef" || r.Trailer.Get("X-Sum") != "1" {
				t.Errorf("in pieces of %d: got %q, trailers %v", size, r.body, r.Trailer)
			}
		}
		if got := s.accepted(); got != 1 {
			t.Errorf("took %d connections", got)
		}
	}
}

// What is there is returned rather than more waited for.
func TestBodyStreams(t *testing.T) {
	for _, framing := range []string{"Transfer-Encoding: chunked", "Content-Length: 30", "X-Until: close"} {
		next := make(chan struct{})
		s := serve(t, func(c net.Conn, r *bufio.Reader, _ int) {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n"+framing+"\r\n\r\n")
			for range 3 {
				<-next
				if strings.Contains(framing, "chunked") {
					_, _ = io.WriteString(c, "a\r\n0123456789\r\n")
				} else {
					_, _ = io.WriteString(c, "0123456789")
				}
			}
			if strings.Contains(framing, "chunked") {
				_, _ = io.WriteString(c, "0\r\n\r\n")
			}
		})
		resp, err := client(t, transport.Options{}).RoundTrip(request(t, "GET", s.url, nil))
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		for range 3 {
			next <- struct{}{}
			if n, err := resp.Body.Read(b); n != 10 || err != nil && err != io.EOF {
				t.Fatalf("%s: got %d bytes, %v; want the 10 that have come", framing, n, err)
			}
		}
		if n, err := resp.Body.Read(b); n != 0 || err != io.EOF {
			t.Errorf("%s: got %d, %v at the end", framing, n, err)
		}
		resp.Body.Close()
	}
}
