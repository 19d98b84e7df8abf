package front_test

import (
	"fmt"
	"io"
	"net/http"
	"sort"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/pkg/front"
)

// describe says what a handler was given.
func describe(r *http.Request) string {
	var b strings.Builder
	length, coding := r.ContentLength, r.TransferEncoding
	body, err := io.ReadAll(r.Body)
	if length > 0 && r.Header.Get("Content-Length") == "" && int64(len(body)) == length {
		length, coding = -1, []string{"chunked"} // chunks that were all there: the length of those is known
	}
	fmt.Fprintf(&b, "%s %s %s host=%s uri=%s path=%s query=%s close=%v length=%d", r.Method, r.URL, r.Proto, r.Host, r.RequestURI, r.URL.Path, r.URL.RawQuery, r.Close, length)
	if len(coding) > 0 {
		fmt.Fprint(&b, " ", coding)
	}
	if err != nil {
		body = append(body, " error"...)
	}
	names := make([]string, 0, len(r.Header))
	for name := range r.Header {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(&b, " %s=%q", name, r.Header[name])
	}
	if len(r.Trailer) > 0 {
		fmt.Fprintf(&b, " trailer=%v", r.Trailer)
	}
	if len(body) > 0 {
		fmt.Fprintf(&b, " body=%s", body)
	}
	return b.String()
}

// A chunked body that has come with its header is one of a known length, and
// what follows it is the next request. One with trailers, without data or
// without an end stays what it is.
func TestChunksThatAreAllThere(t *testing.T) {
	s := serve(t, front.Options{}, func(w http.ResponseWriter, r *http.Request) {
		length, coding := r.ContentLength, r.TransferEncoding
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %d %v %s %v %v", r.URL.Path, length, coding, body, r.Trailer, err)
	})
	const head = "POST /a HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n"
	for name, tt := range map[string]struct{ request, want string }{
		"one":        {head + "\n5\nhello\n0\n\n", "/a 5 [] hello map[] <nil>"},
		"several":    {head + "\n1\nh\n3;x=y\nell\n001\no\n000\n\n", "/a 5 [] hello map[] <nil>"},
		"no data":    {head + "\n0\n\n", "/a -1 [chunked]  map[] <nil>"},
		"a trailer":  {head + "\n5\nhello\n0\nX-Sum: 1\n\n", "/a -1 [chunked] hello map[X-Sum:[1]] <nil>"},
		"announced":  {head + "Trailer: X-Sum\n\n5\nhello\n0\nX-Sum: 1\n\n", "/a -1 [chunked] hello map[X-Sum:[1]] <nil>"},
		"asked for":  {head + "Expect: 100-continue\n\n5\nhello\n0\n\n", "/a -1 [chunked] hello map[] <nil>"},
		"many bytes": {head + "\n400\n" + strings.Repeat("x", 1<<10) + "\n1\ny\n0\n\n", "/a 1025 [] " + strings.Repeat("x", 1<<10) + "y map[] <nil>"},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, s.addr)
			c.say(tt.request + "GET /next HTTP/1.1\nHost: x\n\n")
			got := c.hear("POST")
			if got.StatusCode == 100 {
				got = c.hear("POST")
			}
			if got.body != tt.want {
				t.Errorf("got  %.80s\nwant %.80s", got.body, tt.want)
			}
			if next := c.hear("GET"); next.body != "/next 0 []  map[] <nil>" {
				t.Errorf("after it: %d %s", next.StatusCode, next.body)
			}
		})
	}
	lengths := make(chan int64, 1)
	s = serve(t, front.Options{}, func(w http.ResponseWriter, r *http.Request) {
		lengths <- r.ContentLength
		_, _ = io.Copy(w, r.Body)
	})
	c := dial(t, s.addr)
	c.say(head + "\n5\nhel")
	if n := <-lengths; n != -1 {
		t.Errorf("the length of a part is said to be %d", n)
	}
	c.say("lo\n0\n\n")
	if got := c.hear("POST"); got.body != "hello" || got.err != nil {
		t.Errorf("in two parts: %q, %v", got.body, got.err)
	}
}

func TestRequestsThatAreServed(t *testing.T) {
	s := serve(t, front.Options{}, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, describe(r)) })
	for _, tt := range []struct{ name, request, want string }{
		{"plain", "GET /a/b?c=d HTTP/1.1\nHost: x\n\n", "GET /a/b?c=d HTTP/1.1 host=x uri=/a/b?c=d path=/a/b query=c=d close=false length=0"},
		{"fields", "GET / HTTP/1.1\nhost: x\naccept-encoding:gzip\nX-A: 1 \nX-a:\t2\nX-Empty:\n\n", `GET / HTTP/1.1 host=x uri=/ path=/ query= close=false length=0 Accept-Encoding=["gzip"] X-A=["1" "2"] X-Empty=[""]`},
		{"an escaped path", "GET /a%2Fb%20c HTTP/1.1\nHost: x\n\n", "GET /a%2Fb%20c HTTP/1.1 host=x uri=/a%2Fb%20c path=/a/b c query= close=false length=0"},
		{"a question mark alone", "GET /? HTTP/1.1\nHost: x\n\n", "GET /? HTTP/1.1 host=x uri=/? path=/ query= close=false length=0"},
		{"two slashes", "GET //a/b HTTP/1.1\nHost: x\n\n", "GET //a/b HTTP/1.1 host=x uri=//a/b path=//a/b query= close=false length=0"},
		{"a length", "POST / HTTP/1.1\nHost: x\nContent-Length: 5\n\nhello", `POST / HTTP/1.1 host=x uri=/ path=/ query= close=false length=5 Content-Length=["5"] body=hello`},
		{"no body by length", "POST / HTTP/1.1\nHost: x\nContent-Length: 0\n\n", `POST / HTTP/1.1 host=x uri=/ path=/ query= close=false length=0 Content-Length=["0"]`},
		{"chunks", "POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n3;a=b\nhel\n2\nlo\n0\n\n", "POST / HTTP/1.1 host=x uri=/ path=/ query= close=false length=-1 [chunked] body=hello"},
		{"chunks, otherwise spelled", "POST / HTTP/1.1\nHost: x\nTransfer-Encoding: CHUNKED\n\n005\nhello\n000\n\n", "POST / HTTP/1.1 host=x uri=/ path=/ query= close=false length=-1 [chunked] body=hello"},
		{"trailers", "POST / HTTP/1.1\nHost: x\nTrailer: X-Sum, X-None\nTransfer-Encoding: chunked\n\n0\nX-Sum: 1\nx-more: 2\nContent-Length: 7\n\n", "POST / HTTP/1.1 host=x uri=/ path=/ query= close=false length=-1 [chunked] trailer=map[X-More:[2] X-None:[] X-Sum:[1]]"},
		{"a body to GET", "GET / HTTP/1.1\nHost: x\nContent-Length: 2\n\nok", `GET / HTTP/1.1 host=x uri=/ path=/ query= close=false length=2 Content-Length=["2"] body=ok`},
		{"a method of its own", "M-SEARCH / HTTP/1.1\nHost: x\n\n", "M-SEARCH / HTTP/1.1 host=x uri=/ path=/ query= close=false length=0"},
		{"close", "GET / HTTP/1.1\nHost: x\nConnection: Close, X\n\n", `GET / HTTP/1.1 host=x uri=/ path=/ query= close=true length=0 Connection=["Close, X"]`},
		{"HTTP/1.0", "GET / HTTP/1.0\n\n", "GET / HTTP/1.0 host= uri=/ path=/ query= close=true length=0"},
		{"HTTP/1.0 kept alive", "GET / HTTP/1.0\nHost: x\nConnection: keep-alive\n\n", `GET / HTTP/1.0 host=x uri=/ path=/ query= close=false length=0 Connection=["keep-alive"]`},
		{"a whole URL", "GET http://x/a?b HTTP/1.1\nHost: X:80\n\n", "GET http://x/a?b HTTP/1.1 host=x uri=http://x/a?b path=/a query=b close=false length=0"},
		{"CONNECT", "CONNECT x:443 HTTP/1.1\nHost: x:443\n\n", "CONNECT //x:443 HTTP/1.1 host=x:443 uri=x:443 path= query= close=false length=0"},
		{"no host to name", "GET / HTTP/1.1\nHost:\n\n", "GET / HTTP/1.1 host= uri=/ path=/ query= close=false length=0"},
		{"an IPv6 address", "GET / HTTP/1.1\nHost: [::1]:80\n\n", "GET / HTTP/1.1 host=[::1]:80 uri=/ path=/ query= close=false length=0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, s.addr)
			c.say(tt.request)
			if got := c.hear("GET"); got.StatusCode != 200 || got.body != tt.want {
				t.Errorf("%d\ngot  %s\nwant %s", got.StatusCode, got.body, tt.want)
			}
			// The same in pieces.
			c = dial(t, s.addr)
			for _, b := range []byte(crlf(tt.request)) {
				if _, err := c.Write([]byte{b}); err != nil {
					t.Fatal(err)
				}
			}
			if got := c.hear("GET"); got.body != tt.want {
				t.Errorf("in pieces: %s", got.body)
			}
		})
	}
}

// What may be read in two ways is refused, nothing that follows it is served,
// and the handler hears of none of it.
func TestRequestsThatAreRefused(t *testing.T) {
	long := strings.Repeat("a", 70<<10)
	const second = "GET /smuggled HTTP/1.1\nHost: x\n\n"
	for _, tt := range []struct {
		name, request string // as it is: line ends are not made right
		status        int
	}{
		{"length and coding", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"coding and length", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400},
		{"two lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nhello", 400},
		{"the same length twice", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400},
		{"a list of lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\nhello", 400},
		{"a negative length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400},
		{"a signed length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello", 400},
		{"a hexadecimal length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x5\r\n\r\nhello", 400},
		{"an empty length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n", 400},
		{"a huge length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", 400},
		{"another coding", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501},
		{"two codings", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
		{"chunked twice", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501},
		{"identity", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n", 501},
		{"chunked with a tail", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", 501},
		{"two fields of coding", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"no coding named", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n\r\n", 501},
		{"coding in HTTP/1.0", "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"folded line", "GET / HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n 2\r\n\r\n", 400},
		{"folded line by a tab", "GET / HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n\t2\r\n\r\n", 400},
		{"space before the first field", "GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400},
		{"bare line feed", "GET / HTTP/1.1\r\nHost: x\nX-A: 1\r\n\r\n", 400},
		{"bare line feeds all over", "GET / HTTP/1.1\nHost: x\n\n", 400},
		{"bare line feed at the end", "GET / HTTP/1.1\r\nHost: x\r\n\n", 400},
		{"bare carriage return", "GET / HTTP/1.1\r\nHost: x\rX-A: 1\r\n\r\n", 400},
		{"carriage return in a value", "GET / HTTP/1.1\r\nHost: x\r\nX-A: 1\r2\r\n\r\n", 400},
		{"two carriage returns", "GET / HTTP/1.1\r\nHost: x\r\r\n\r\n", 400},
		{"NUL in a value", "GET / HTTP/1.1\r\nHost: x\r\nX-A: \x00\r\n\r\n", 400},
		{"control byte in a value", "GET / HTTP/1.1\r\nHost: x\r\nX-A: \x1b\r\n\r\n", 400},
		{"DEL in a value", "GET / HTTP/1.1\r\nHost: x\r\nX-A: \x7f\r\n\r\n", 400},
		{"space before the colon", "GET / HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\n", 400},
		{"tab before the colon", "GET / HTTP/1.1\r\nHost: x\r\nContent-Length\t: 5\r\n\r\n", 400},
		{"no colon", "GET / HTTP/1.1\r\nHost: x\r\nX-A\r\n\r\n", 400},
		{"no name", "GET / HTTP/1.1\r\nHost: x\r\n: 1\r\n\r\n", 400},
		{"name outside ASCII", "GET / HTTP/1.1\r\nHost: x\r\nX-\xc3\xa9: 1\r\n\r\n", 400},
		{"no Host", "GET / HTTP/1.1\r\n\r\n", 400},
		{"two Hosts", "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400},
		{"two Hosts in HTTP/1.0", "GET / HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400},
		{"a path in Host", "GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", 400},
		{"a list in Host", "GET / HTTP/1.1\r\nHost: x, y\r\n\r\n", 400},
		{"credentials in Host", "GET / HTTP/1.1\r\nHost: a@x\r\n\r\n", 400},
		{"two hosts named", "GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"credentials in the target", "GET http://a@x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"another scheme", "GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"neither path nor URL", "GET a HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"a star", "GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"CONNECT to a path of a host", "CONNECT x:1/a HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"a bad escape", "GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"a NUL in the target", "GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"a tab in the request line", "GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"two spaces", "GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"a space in the target", "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"a space at the end of the line", "GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400},
		{"HTTP/0.9", "GET /\r\n\r\n", 400},
		{"no method", " / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"a method that is no token", "GE(T / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"an empty line first", "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"lower case version", "GET / http/1.1\r\nHost: x\r\n\r\n", 400},
		{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505},
		{"HTTP/2.0", "GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505},
		{"the preface of HTTP/2, which this server has not", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
		{"something else expected", "GET / HTTP/1.1\r\nHost: x\r\nExpect: cake\r\n\r\n", 417},
		{"a length as a trailer", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n0\r\n\r\n", 400},
		{"a trailer that is no name", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: a b\r\n\r\n0\r\n\r\n", 400},
		{"a long request line", "GET /" + long + " HTTP/1.1\r\nHost: x\r\n\r\n", 414},
		{"a long header", "GET / HTTP/1.1\r\nHost: x\r\nX-A: " + long + "\r\n\r\n", 431},
		{"a long header of short lines", "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-A: 1\r\n", 9<<10) + "\r\n", 431},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01", 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			refused := make(chan *front.Refusal, 2)
			s := serve(t, front.Options{Refuse: func(w http.ResponseWriter, r *http.Request, why *front.Refusal) {
				if r.RemoteAddr == "" || r.URL == nil || r.Header == nil || r.Body == nil {
					t.Errorf("the request is %+v", r)
				}
				refused <- why
				w.WriteHeader(why.Status)
			}}, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("served %s", describe(r)) })
			c := dial(t, s.addr)
			_, _ = io.WriteString(c, tt.request+crlf(second)) // the end may be refused already
			resp := c.hear("GET")
			if resp.StatusCode != tt.status || !resp.Close {
				t.Errorf("got %d, close %v; want %d and the end", resp.StatusCode, resp.Close, tt.status)
			}
			c.ends()
			if why := <-refused; why.Status != tt.status || why.Detail == "" {
				t.Errorf("told of %+v", why)
			}
			if got := s.Stats(); got.Refused != 1 || got.Requests != 0 {
				t.Errorf("counted %+v", got)
			}
		})
	}
}

// A chunked body that is not one is an error to its reader, and nothing after
// it is a request.
func TestBodiesThatAreRefused(t *testing.T) {
	for _, tt := range []struct{ name, body string }{
		{"no number", "x\r\nhello\r\n0\r\n\r\n"},
		{"nothing", "\r\nhello\r\n0\r\n\r\n"},
		{"a minus", "-5\r\nhello\r\n0\r\n\r\n"},
		{"a prefix", "0x5\r\nhello\r\n0\r\n\r\n"},
		{"a space in front", " 5\r\nhello\r\n0\r\n\r\n"},
		{"a space behind", "5 \r\nhello\r\n0\r\n\r\n"},
		{"too large", "10000000000000005\r\nhello\r\n0\r\n\r\n"},
		{"bare line feed", "5\nhello\r\n0\r\n\r\n"},
		{"bare line feed in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"},
		{"carriage return in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"},
		{"control byte in an extension", "5;a\x01\r\nhello\r\n0\r\n\r\n"},
		{"a long extension", "5;" + strings.Repeat("a", 5000) + "\r\nhello\r\n0\r\n\r\n"},
		{"data too long", "4\r\nhello\r\n0\r\n\r\n"},
		{"data too short", "6\r\nhello\r\n0\r\n\r\n"},
		{"bare line feed after data", "5\r\nhello\n0\r\n\r\n"},
		{"a trailer folded", "5\r\nhello\r\n0\r\nX: 1\r\n 2\r\n\r\n"},
		{"a trailer without a colon", "5\r\nhello\r\n0\r\nX\r\n\r\n"},
		{"a space before a trailer's colon", "5\r\nhello\r\n0\r\nX : 1\r\n\r\n"},
		{"many trailers", "5\r\nhello\r\n0\r\n" + strings.Repeat("X: 1\r\n", 12<<10) + "\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			failed := make(chan error, 1)
			s := serve(t, front.Options{}, func(_ http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/" {
					t.Error("a request out of a body")
				}
				_, err := io.ReadAll(r.Body)
				failed <- err
			})
			c := dial(t, s.addr)
			_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"+tt.body+"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n") // the end may be refused already
			if err := <-failed; err == nil {
				t.Error("the body is taken")
			}
			if resp := c.hear("POST"); !resp.Close {
				t.Error("the answer does not say that the connection ends")
			}
			c.ends()
		})
	}
}

// The line end too many that some clients send after a POST may come in pieces.
func TestLineEndAfterAPost(t *testing.T) {
	text := []byte(crlf("POST / HTTP/1.1\nHost: x\nContent-Length: 2\n\nhi\n" + get))
	for _, step := range []int{1, 2, 3, len(text)} {
		if all, said := playback(t, text, step); len(all) != 2 || strings.Contains(said, "HTTP/1.1 400") {
			t.Errorf("in steps of %d: %d requests were served, and it said %q", step, len(all), said)
		}
	}
}
