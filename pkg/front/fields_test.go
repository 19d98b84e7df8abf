package front_test

import (
	"bufio"
	"io"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/pkg/front"
	"github.com/proconsul/proconsul/pkg/middleware"
	line "github.com/proconsul/proconsul/pkg/wire"
)

// Fields that come as a list make the same answer as those of Header do, but for
// their order: which of them frame it, and what is added where they are missing.
func TestWriteFields(t *testing.T) {
	const head, old = "HEAD / HTTP/1.1\nHost: x\n\n", "GET / HTTP/1.0\nHost: x\nConnection: keep-alive\n\n"
	for _, tt := range []struct {
		name, request string
		code          int
		header        http.Header // of both
		lines         []string
		body          string
	}{
		{"length", get, 200, nil, []string{"Content-Type: a/b", "Content-Length: 5", "Date: now", "X-A: 1", "X-A: 2"}, "hello"},
		{"beside others", get, 200, http.Header{"X-A": {"0"}, "Server": {"s"}}, []string{"Content-Type: a/b", "Content-Length: 5", "X-A: 1"}, "hello"},
		{"no length", get, 200, nil, []string{"X-A: 1"}, "<html>"},
		{"no body", get, 201, nil, []string{"X-A: 1"}, ""},
		{"no type wanted", get, 200, http.Header{"Content-Type": nil}, []string{"X-A: 1"}, "<html>"},
		{"encoded", get, 200, nil, []string{"Content-Encoding: br"}, "<html>"},
		{"identity", get, 200, nil, []string{"Transfer-Encoding: identity"}, "hello"},
		{"close", get, 200, nil, []string{"Connection: close", "Content-Length: 5"}, "hello"},
		{"close beside another", get, 200, http.Header{"Connection": {"X-B"}}, []string{"Connection: close", "Content-Length: 5"}, "hello"},
		{"head", head, 200, nil, []string{"Content-Length: 5", "Content-Type: a/b"}, ""},
		{"not modified", get, 304, nil, []string{"Content-Type: a/b", "Etag: 1", "Content-Length: 5"}, ""},
		{"no content", get, 204, nil, []string{"X-A: 1"}, ""},
		{"an old client", old, 200, nil, []string{"Content-Length: 5"}, "hello"},
		{"an old client, no length", old, 200, nil, []string{"X-A: 1"}, strings.Repeat("hello", 2000)},
		{"trailers", get, 200, nil, []string{"Trailer: X-T"}, "hello"},
		{"invalid length", get, 200, nil, []string{"Content-Length: 5x"}, "hello"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			answer := func(list bool) []string {
				s := serve(t, front.Options{}, func(w http.ResponseWriter, _ *http.Request) {
					h := w.Header()
					for name, values := range tt.header {
						h[name] = values
					}
					var lines []line.Line
					for _, l := range tt.lines {
						name, value, _ := strings.Cut(l, ": ")
						lines = append(lines, line.Line{Name: name, Value: value})
					}
					if !list {
						w = middleware.ByHeader(w)
					}
					middleware.WriteFields(w, tt.code, lines)
					_, _ = io.WriteString(w, tt.body)
				})
				c := dial(t, s.addr)
				c.say(tt.request)
				if !strings.Contains(tt.request, "close") {
					_ = c.Conn.(interface{ CloseWrite() error }).CloseWrite()
				}
				r := textproto.NewReader(bufio.NewReader(c))
				var got []string
				for {
					l, err := r.ReadLine()
					if err != nil {
						break
					}
					if !strings.HasPrefix(l, "Date: ") || l == "Date: now" {
						got = append(got, l)
					}
				}
				slices.Sort(got)
				return got
			}
			byHeader, byList := answer(false), answer(true)
			if !slices.Equal(byHeader, byList) || len(byList) == 0 {
				t.Errorf("by header %q\nby list   %q", byHeader, byList)
			}
		})
	}
}

// The fields of an interim answer are its own when they come as a list.
func TestInterimFields(t *testing.T) {
	s := serve(t, front.Options{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["X-A"] = []string{"1"}
		w.(middleware.FieldWriter).WriteFields(http.StatusEarlyHints, []line.Line{{Name: "Link", Value: "a"}, {Name: "Content-Length", Value: "5"}})
		_, _ = io.WriteString(w, "hi")
	})
	c := dial(t, s.addr)
	c.say("GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	first, rest, _ := strings.Cut(string(b), "\r\n\r\n")
	if !slices.Equal(slices.Sorted(strings.SplitSeq(first, "\r\n")), []string{"HTTP/1.1 103 Early Hints", "Link: a", "X-A: 1"}) {
		t.Errorf("interim answer %q", first)
	}
	if strings.Contains(rest, "Link") || !strings.Contains(rest, "X-A: 1\r\n") || !strings.HasSuffix(rest, "\r\n\r\nhi") {
		t.Errorf("final answer %q", rest)
	}
}
