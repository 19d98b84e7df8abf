package decompress_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/coding"
	"github.com/proconsul/proconsul/pkg/middleware/decompress"
	"github.com/proconsul/proconsul/pkg/problem"
)

func settings() config.Decompress {
	return config.Decompress{Encodings: coding.Names(), Max: 1 << 20, Ratio: 50}
}

func encode(t testing.TB, name, text string) string {
	t.Helper()
	e, err := coding.NewEncoders("default")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	enc := e.To(&b, name)
	_, _ = io.WriteString(enc, text)
	if err := enc.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// send passes a body through the middleware. An instance that cannot read it
// answers as the proxy does.
func send(t testing.TB, c config.Decompress, body io.Reader, contentEncoding ...string) (rec *httptest.ResponseRecorder, got string, header http.Header) {
	t.Helper()
	mw, err := decompress.New(c)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/", body)
	r.Header["Content-Encoding"] = contentEncoding
	if len(contentEncoding) == 0 {
		delete(r.Header, "Content-Encoding")
	}
	rec = httptest.NewRecorder()
	mw(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			problem.Write(w, r, problem.Upload(err))
			return
		}
		got, header = string(b), r.Header
		if len(contentEncoding) > 0 && header.Get("Content-Encoding") == "" && r.ContentLength != -1 {
			t.Errorf("length %d of a decoded body", r.ContentLength)
		}
	})).ServeHTTP(rec, r)
	return rec, got, header
}

func TestInstancesGetThePlainBody(t *testing.T) {
	text := strings.Repeat("a line of text\n", 3000)
	for _, name := range coding.Names() {
		for range 3 {
			rec, got, header := send(t, settings(), iotest.OneByteReader(strings.NewReader(encode(t, name, text))), strings.ToUpper(name))
			if rec.Code != 200 || got != text || header.Get("Content-Encoding") != "" {
				t.Errorf("%s: %d %s, %d bytes", name, rec.Code, rec.Body, len(got))
			}
		}
	}
	if _, got, _ := send(t, settings(), strings.NewReader("plain"), "identity"); got != "plain" {
		t.Errorf("identity: %q", got)
	}
	if _, got, _ := send(t, settings(), strings.NewReader("plain")); got != "plain" {
		t.Errorf("not coded: %q", got)
	}
}

func TestWhatIsRefused(t *testing.T) {
	zeros := strings.Repeat("\x00", 900<<10)
	gone := errors.New("read tcp: connection reset")
	for _, tt := range []struct {
		name     string
		body     io.Reader
		encoding []string
		status   int
		reason   problem.Reason
	}{
		{"a bomb by ratio", strings.NewReader(encode(t, "gzip", zeros)), []string{"gzip"}, 413, problem.BodyTooLarge},
		{"a bomb by ratio, zstd", strings.NewReader(encode(t, "zstd", zeros)), []string{"zstd"}, 413, problem.BodyTooLarge},
		{"a bomb by ratio, br", strings.NewReader(encode(t, "br", zeros)), []string{"br"}, 413, problem.BodyTooLarge},
		{"no gzip", strings.NewReader("plain text that is long enough for a header"), []string{"gzip"}, 400, problem.BadRequest},
		{"no zstd", strings.NewReader("plain text"), []string{"zstd"}, 400, problem.BadRequest},
		{"no br", strings.NewReader("\xff\xff\xff\xff plain text"), []string{"br"}, 400, problem.BadRequest},
		{"nothing", strings.NewReader(""), []string{"gzip"}, 400, problem.BadRequest},
		{"a part", strings.NewReader(encode(t, "gzip", "some text")[:20]), []string{"gzip"}, 400, problem.BadRequest},
		{"more behind it", strings.NewReader(encode(t, "zstd", "some text") + "more"), []string{"zstd"}, 400, problem.BadRequest},
		{"another coding", strings.NewReader("x"), []string{"deflate"}, 415, problem.UnsupportedMediaType},
		{"two codings", strings.NewReader("x"), []string{"gzip, br"}, 415, problem.UnsupportedMediaType},
		{"two lines", strings.NewReader("x"), []string{"gzip", "gzip"}, 415, problem.UnsupportedMediaType},
		{"a connection that ends", io.MultiReader(strings.NewReader(encode(t, "gzip", "some text")[:20]), iotest.ErrReader(gone)), []string{"gzip"}, 400, problem.BadRequest},
		{"the listener's limit", io.MultiReader(strings.NewReader(encode(t, "gzip", "some text")[:20]), iotest.ErrReader(&http.MaxBytesError{Limit: 20})), []string{"gzip"}, 413, problem.BodyTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec, got, _ := send(t, settings(), tt.body, tt.encoding...)
			if rec.Code != tt.status || rec.Header().Get("X-Proconsul-Reason") != string(tt.reason) || got != "" {
				t.Errorf("got %d %s (%s), instance %q", rec.Code, rec.Header().Get("X-Proconsul-Reason"), rec.Body, got)
			}
			if tt.status == 415 && rec.Header().Get("Accept-Encoding") != "zstd, br, gzip" {
				t.Errorf("it is told to use %q", rec.Header().Get("Accept-Encoding"))
			}
		})
	}
	c := settings()
	c.Ratio, c.Max = 10000, 64<<10
	if rec, _, _ := send(t, c, strings.NewReader(encode(t, "gzip", zeros)), "gzip"); rec.Code != 413 || !strings.Contains(rec.Body.String(), "65536 bytes") {
		t.Errorf("above max: %d %s", rec.Code, rec.Body)
	}
}

// A transport may still read when the request is over: the decoder that it
// reads with must not go to another request.
func TestAReaderThatOutlivesItsRequest(t *testing.T) {
	mw, err := decompress.New(settings())
	if err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	began, done := make(chan struct{}), make(chan error)
	h := mw(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		go func() {
			close(began)
			_, err := io.ReadAll(r.Body)
			done <- err
		}()
		<-began
	}))
	r := httptest.NewRequest("POST", "/", pr)
	r.Header.Set("Content-Encoding", "gzip")
	coded := encode(t, "gzip", strings.Repeat("late ", 10000))
	h.ServeHTTP(httptest.NewRecorder(), r)
	for range 20 { // others get decoders meanwhile
		if _, got, _ := send(t, settings(), strings.NewReader(encode(t, "gzip", "other")), "gzip"); got != "other" {
			t.Fatalf("another request got %q", got)
		}
	}
	_, _ = io.WriteString(pw, coded)
	pw.Close()
	<-done // whole or refused, and the race detector is content
}

func FuzzBody(f *testing.F) {
	for _, name := range coding.Names() {
		f.Add(name, []byte(encode(f, name, "some text, some text, some text")))
	}
	f.Add("gzip", []byte{0x1f, 0x8b})
	c := settings()
	f.Fuzz(func(t *testing.T, name string, body []byte) {
		if !coding.Supports(name) {
			return
		}
		rec, got, _ := send(t, c, bytes.NewReader(body), name)
		if len(got) > int(c.Max) || got != "" && rec.Code != 200 {
			t.Errorf("%d with %d bytes", rec.Code, len(got))
		}
	})
}
