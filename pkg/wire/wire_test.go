package wire_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/pkg/wire"
)

func TestField(t *testing.T) {
	for _, tt := range []struct {
		line, name, value string
		fails             bool
	}{
		{"Host: x", "Host", "x", false},
		{"x-a:\t a b \t", "X-A", "a b", false},
		{"X-A:", "X-A", "", false},
		{"X-A:\xff", "X-A", "\xff", false},
		{" X-A: 1", "", "", true},
		{"\tX-A: 1", "", "", true},
		{": 1", "", "", true},
		{"X-A", "", "", true},
		{"X-A : 1", "", "", true},
		{"X A: 1", "", "", true},
		{"X\xc3: 1", "", "", true},
		{"X-A: \x00", "", "", true},
		{"X-A: 1\r", "", "", true},
		{"X-A: \x7f", "", "", true},
	} {
		name, value, err := wire.Field(tt.line)
		if name != tt.name || value != tt.value || (err != nil) != tt.fails {
			t.Errorf("%q: got %q, %q, %v", tt.line, name, value, err)
		}
		var bad wire.Malformed
		if tt.fails && !errors.As(err, &bad) {
			t.Errorf("%q: the error is %T", tt.line, err)
		}
	}
}

func TestAnnounced(t *testing.T) {
	for _, tt := range []struct {
		lists []string
		want  http.Header
		fails bool
	}{
		{nil, nil, false},
		{[]string{""}, nil, false},
		{[]string{"x-a, X-B,,", " x-c"}, http.Header{"X-A": nil, "X-B": nil, "X-C": nil}, false},
		{[]string{"X-A", "x y"}, nil, true},
		{[]string{"X-A, content-length"}, nil, true},
		{[]string{"Transfer-Encoding"}, nil, true},
	} {
		got, err := wire.Announced(tt.lists)
		if !reflect.DeepEqual(got, tt.want) || (err != nil) != tt.fails {
			t.Errorf("%q: got %v, %v", tt.lists, got, err)
		}
	}
}

func TestLines(t *testing.T) {
	h := http.Header{"A": {" 1\t", "2"}, "B": {""}, "No token": {"1"}, "C": {"a\r\nInjected: 1", "\xff"}, "D": nil}
	lines := wire.AppendLines([]wire.Line{{"Z", "0"}}, h)
	var out []byte
	for _, l := range lines {
		out = l.Append(out)
	}
	got := strings.SplitAfter(string(out), "\r\n")
	slices.Sort(got)
	if want := []string{"", "A: 1\r\n", "A: 2\r\n", "B: \r\n", "C: \xff\r\n", "Z: 0\r\n"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if v, ok := wire.Find(lines, "A"); !ok || v != "1" {
		t.Errorf("A is %q, %v, want its first value", v, ok)
	}
	if v, ok := wire.Find(lines, "D"); ok {
		t.Errorf("D is %q", v)
	}
}

func TestHasToken(t *testing.T) {
	for list, want := range map[string]bool{"close": true, "x, Close ": true, ",,close,": true, "closed": false, "": false, "x close": false} {
		if wire.HasToken(list, "close") != want {
			t.Errorf("%q: want %v", list, want)
		}
	}
}

// decode reads a chunked body that comes in pieces of at most step bytes. It
// returns the data, the trailers, and what is left behind the body.
func decode(b []byte, step int) (data []byte, trailers http.Header, rest []byte, err error) {
	d := wire.Chunked{MaxTrailers: 1 << 10, Trailer: &trailers}
	have := 0
	for {
		n, err := d.Frame(b[:have])
		b, have = b[n:], have-n
		switch {
		case err != nil:
			return data, trailers, nil, err
		case d.Done():
			return data, trailers, b, nil
		case d.Left > 0 && have > 0:
			m := int(min(d.Left, int64(have)))
			data = append(data, b[:m]...)
			b, have, d.Left = b[m:], have-m, d.Left-int64(m)
			continue
		case have == len(b):
			return data, trailers, nil, io.ErrUnexpectedEOF
		case d.Left == 0 && have > d.Longest()+2:
			return data, trailers, nil, errors.New("a line is longer than it may be")
		}
		have = min(len(b), have+step)
	}
}

func TestChunked(t *testing.T) {
	for _, tt := range []struct {
		body, data string
		trailers   http.Header
		rest       string // "-": it fails
	}{
		{"5\r\nhello\r\n0\r\n\r\nrest", "hello", nil, "rest"},
		{"0\r\n\r\n", "", nil, ""},
		{"1;a=b\r\nx\r\n00A \r\n", "x", nil, "-"},
		{"1\r\nx\r\n0;x\r\nA: 1\r\nb:2\r\na:3\r\nContent-Length: 5\r\n\r\n", "x", http.Header{"A": {"1", "3"}, "B": {"2"}}, ""},
		{"a\r\n0123456789\r\n0\r\n\r\n", "0123456789", nil, ""},
		{"5\r\nhello", "hello", nil, "-"},
		{"5\r\nhellox", "hello", nil, "-"},
		{"0\r\nA: 1\r\n", "", nil, "-"},
		{"0\r\n" + strings.Repeat("A: 1\r\n", 200) + "\r\n", "", nil, "-"},
	} {
		for _, step := range []int{1, 3, 1 << 20} {
			data, trailers, rest, err := decode([]byte(tt.body), step)
			if (err != nil) != (tt.rest == "-") || string(data) != tt.data || err == nil && (!reflect.DeepEqual(trailers, tt.trailers) || string(rest) != tt.rest) {
				t.Errorf("%.40q by %d: got %q, %v, %q, %v", tt.body, step, data, trailers, rest, err)
			}
		}
	}
}

// FuzzChunked: what is taken for a whole body net/http takes for the same one,
// and it is the same in whatever pieces it comes.
func FuzzChunked(f *testing.F) {
	for _, s := range []string{
		"5\r\nhello\r\n0\r\n\r\n", "5;a=b\r\nhello\r\n0\r\nX: 1\r\n\r\nrest", "5\nhello\n0\n\n", "5 \r\nhello\r\n0\r\n\r\n", "10000000000000000\r\n",
		"0x5\r\nhello\r\n0\r\n\r\n", "5;\nx\r\nhello\r\n0\r\n\r\n", "00000000000000005\r\nhello\r\n0\r\n\r\n", "0\r\nX : 1\r\n\r\n", "5\r\nhello0\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		data, trailers, rest, err := decode(b, 1<<20)
		slow, slowly, left, serr := decode(b, 1)
		if (err == nil) != (serr == nil) || !bytes.Equal(data, slow) || err == nil && (!reflect.DeepEqual(trailers, slowly) || !bytes.Equal(rest, left)) {
			t.Fatalf("at once: %q, %v, %q, %v; byte by byte: %q, %v, %q, %v", data, trailers, rest, err, slow, slowly, left, serr)
		}
		if err != nil {
			return
		}
		want, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(b)))
		if err != nil {
			t.Fatalf("net/http refuses it: %v", err)
		}
		if !bytes.Equal(data, want) {
			t.Fatalf("got %q, net/http %q", data, want)
		}
	})
}

// The quick looks at names and values say what a look at each byte says.
func TestQuickLooksAgree(t *testing.T) {
	slow := func(s string) bool {
		return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
	}
	for c := range 256 {
		for _, n := range []int{1, 7, 8, 9, 16, 23} {
			for at := range n {
				b := bytes.Repeat([]byte("a"), n)
				b[at] = byte(c)
				if got := wire.ValidValue(string(b)); got != slow(string(b)) {
					t.Fatalf("ValidValue(%q) is %v", b, got)
				}
				if at > 0 && b[at-1] == 'a' {
					b[at-1] = ' ' // a neighbour at the edge
					if got := wire.ValidValue(string(b)); got != slow(string(b)) {
						t.Fatalf("ValidValue(%q) is %v", b, got)
					}
				}
			}
		}
	}
	for _, name := range []string{"a", "A", "a-b", "A-b", "A-B", "AB", "-a", "-A", "A--b", "A_b", "a1-2b", "X-Request-ID", "ETag", "Etag", "1a", "1A", "!a", "A!b"} {
		got, _, err := wire.Field(name + ": x")
		if want := textproto.CanonicalMIMEHeaderKey(name); err != nil || got != want {
			t.Errorf("%q became %q, %v, want %q", name, got, err, want)
		}
	}
}
