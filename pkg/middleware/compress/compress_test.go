package compress_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/coding"
	"github.com/proconsul/proconsul/pkg/middleware/compress"
)

var long = strings.Repeat("all the world's a stage, ", 400)

// plain decodes a body.
func plain(t testing.TB, name string, b []byte) (string, error) {
	t.Helper()
	if name == "" {
		return string(b), nil
	}
	d, err := coding.NewDecoders().From(bytes.NewReader(b), name)
	if err != nil {
		return "", err
	}
	out, err := io.ReadAll(d)
	return string(out), err
}

// fetch gets an answer of h through the middleware, over a real connection.
func fetch(t *testing.T, c config.Compress, method string, header map[string]string, h http.HandlerFunc) (*http.Response, []byte, error) {
	t.Helper()
	mw, err := compress.New(c)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(mw(h))
	t.Cleanup(s.Close)
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept-Encoding", "gzip, br, zstd")
	for name, value := range header {
		req.Header.Set(name, value)
	}
	client := &http.Client{Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

// serve answers with a body and fields.
func serve(status int, body string, length bool, fields ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		for i := 0; i < len(fields); i += 2 {
			w.Header().Set(fields[i], fields[i+1])
		}
		if length {
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		}
		w.WriteHeader(status)
		if r.Method != "HEAD" && status != 204 && status != 304 {
			_, _ = io.WriteString(w, body)
		}
	}
}

func TestWhatIsCoded(t *testing.T) {
	for _, tt := range []struct {
		name   string
		accept string
		h      http.HandlerFunc
		coding string
		vary   bool
	}{
		{"a known length", "gzip", serve(200, long, true), "gzip", true},
		{"an unknown one", "gzip", serve(200, long, false), "gzip", true},
		{"the best of several", "gzip, deflate, br, zstd", serve(200, long, true), "zstd", true},
		{"br", "gzip;q=0.5, br", serve(404, long, true), "br", true},
		{"a client that accepts none", "identity", serve(200, long, true), "", true},
		{"short", "gzip", serve(200, "{}", true), "", false},
		{"short and unknown", "gzip", serve(200, "{}", false), "", false},
		{"empty", "gzip", serve(200, "", true), "", false},
		{"no body", "gzip", serve(204, "", false), "", false},
		{"a type that gains nothing", "gzip", serve(200, long, true, "Content-Type", "image/png"), "", false},
		{"a type by its end", "gzip", serve(200, long, true, "Content-Type", "Application/Hal+JSON"), "gzip", true},
		{"no type", "gzip", serve(200, long, true, "Content-Type", ""), "", false},
		{"coded already", "gzip", serve(200, long, true, "Content-Encoding", "deflate"), "", false},
		{"a part", "gzip", serve(206, long, true, "Content-Range", "bytes 0-9/10"), "", false},
		{"events", "gzip", serve(200, long, false, "Content-Type", "text/event-stream"), "", false},
		{"gRPC", "gzip", serve(200, long, false, "Content-Type", "application/grpc+json"), "", false},
		{"no-transform", "gzip", serve(200, long, true, "Cache-Control", "public, No-Transform"), "", false},
		{"a digest", "gzip", serve(200, long, true, "Content-Digest", "sha-256=:x:"), "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want, wantBody, err := fetch(t, config.DefaultCompress(), "GET", map[string]string{"Accept-Encoding": "identity"}, tt.h)
			if err != nil {
				t.Fatal(err)
			}
			resp, body, err := fetch(t, config.DefaultCompress(), "GET", map[string]string{"Accept-Encoding": tt.accept}, tt.h)
			if err != nil {
				t.Fatal(err)
			}
			got := resp.Header.Get("Content-Encoding")
			if own := want.Header.Get("Content-Encoding"); own != "" {
				if got != own || !bytes.Equal(body, wantBody) {
					t.Errorf("a coded answer was touched: %q", got)
				}
				return
			}
			if got != tt.coding || resp.StatusCode != want.StatusCode {
				t.Errorf("coding %q of %d, want %q of %d", got, resp.StatusCode, tt.coding, want.StatusCode)
			}
			if text, err := plain(t, got, body); err != nil || text != string(wantBody) {
				t.Errorf("the body is another: %d bytes, want %d, %v", len(text), len(wantBody), err)
			}
			if tt.coding != "" && len(body) > len(wantBody)/5 {
				t.Errorf("%d of %d bytes", len(body), len(wantBody))
			}
			if got := resp.Header.Get("Vary") == "Accept-Encoding"; got != tt.vary {
				t.Errorf("vary %q", resp.Header["Vary"])
			}
			if tt.coding == "" && tt.accept == "gzip" && resp.ContentLength != int64(len(wantBody)) && resp.StatusCode == 200 && want.ContentLength >= 0 {
				t.Errorf("length %d, want %d", resp.ContentLength, len(wantBody))
			}
		})
	}
}

func TestWhatIsCodedIsAnotherRepresentation(t *testing.T) {
	fields := []string{"Etag", `"v1"`, "Accept-Ranges", "bytes", "Vary", "Origin"}
	get, _, err := fetch(t, config.DefaultCompress(), "GET", nil, serve(200, long, true, fields...))
	if err != nil {
		t.Fatal(err)
	}
	if h := get.Header; h.Get("Etag") != `W/"v1"` || h.Get("Accept-Ranges") != "" || strings.Join(h["Vary"], ", ") != "Origin, Accept-Encoding" {
		t.Errorf("got %v", h)
	}
	head, _, err := fetch(t, config.DefaultCompress(), "HEAD", nil, serve(200, long, true, fields...))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Content-Encoding", "Etag", "Accept-Ranges", "Vary"} {
		if head.Header.Get(name) != get.Header.Get(name) {
			t.Errorf("HEAD has %s %q, GET %q", name, head.Header.Get(name), get.Header.Get(name))
		}
	}
	if head.ContentLength == int64(len(long)) {
		t.Error("HEAD has the length of the plain body")
	}
	same, _, err := fetch(t, config.DefaultCompress(), "GET", nil, serve(304, "", false, "Etag", `"v1"`))
	if err != nil {
		t.Fatal(err)
	}
	if same.StatusCode != 304 || same.Header.Get("Etag") != `W/"v1"` || same.Header.Get("Vary") != "Accept-Encoding" || same.Header.Get("Content-Encoding") != "" {
		t.Errorf("304: %v", same.Header)
	}
	weak, _, err := fetch(t, config.DefaultCompress(), "GET", nil, serve(200, long, true, "Etag", `W/"v1"`))
	if err != nil || weak.Header.Get("Etag") != `W/"v1"` {
		t.Errorf("a weak one became %q, %v", weak.Header.Get("Etag"), err)
	}
}

// A flush reaches the client although the stream goes on, trailers come behind
// it, and interim answers in front.
func TestStreams(t *testing.T) {
	for _, name := range coding.Names() {
		t.Run(name, func(t *testing.T) {
			c := config.DefaultCompress()
			mw, err := compress.New(c)
			if err != nil {
				t.Fatal(err)
			}
			read := make(chan struct{})
			s := httptest.NewServer(mw(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusEarlyHints)
				w.Header().Set("Content-Type", "text/plain")
				w.Header().Set("Trailer", "X-Sum")
				_, _ = io.WriteString(w, "first ")
				if err := http.NewResponseController(w).Flush(); err != nil {
					t.Error(err)
				}
				<-read
				_, _ = io.WriteString(w, "second")
				w.Header().Set("X-Sum", "12")
			})))
			defer s.Close()
			req, _ := http.NewRequestWithContext(t.Context(), "GET", s.URL, nil)
			req.Header.Set("Accept-Encoding", name)
			resp, err := (&http.Client{Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true}}).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.Header.Get("Content-Encoding") != name {
				t.Fatalf("coding %q", resp.Header.Get("Content-Encoding"))
			}
			d, err := coding.NewDecoders().From(resp.Body, name)
			if err != nil {
				t.Fatal(err)
			}
			first := make([]byte, 6)
			if _, err := io.ReadFull(d, first); err != nil || string(first) != "first " {
				t.Fatalf("%q, %v", first, err)
			}
			close(read)
			rest, err := io.ReadAll(d)
			if err != nil || string(rest) != "second" {
				t.Errorf("%q, %v", rest, err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			if resp.Trailer.Get("X-Sum") != "12" {
				t.Errorf("trailers %v", resp.Trailer)
			}
		})
	}
}

// What breaks off does not look whole.
func TestAnAnswerThatBreaksOffIsNotEnded(t *testing.T) {
	_, body, err := fetch(t, config.DefaultCompress(), "GET", nil, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, long)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the client saw a whole answer of %d bytes: %v", len(body), err)
	}
}

// Nor where nothing but the coding shows it, as on a connection whose end is
// the body's.
func TestACodingThatBreaksOffIsNotEnded(t *testing.T) {
	mw, err := compress.New(config.DefaultCompress())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range coding.Names() {
		rec := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept-Encoding", name)
		func() {
			defer func() { _ = recover() }()
			mw(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/plain")
				_, _ = io.WriteString(w, long)
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			})).ServeHTTP(rec, r)
		}()
		if text, err := plain(t, name, rec.Body.Bytes()); err == nil {
			t.Errorf("%s: a reader takes %d bytes for the whole", name, len(text))
		}
	}
}

func TestUpgradesAndGRPCAreNotWrapped(t *testing.T) {
	mw, err := compress.New(config.DefaultCompress())
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range []http.Header{{"Upgrade": {"websocket"}}, {"Content-Type": {"application/grpc"}}} {
		rec := httptest.NewRecorder()
		r := httptest.NewRequest("POST", "/", nil)
		r.Header = header
		r.Header.Set("Accept-Encoding", "gzip")
		mw(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if w != http.ResponseWriter(rec) {
				t.Errorf("%v: the writer is another", header)
			}
		})).ServeHTTP(rec, r)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []config.Compress{{Level: "most"}, {Level: "fast", Encodings: []string{"deflate"}}} {
		if _, err := compress.New(c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}

type sink struct{ h http.Header }

func (s sink) Header() http.Header         { return s.h }
func (s sink) Write(b []byte) (int, error) { return len(b), nil }
func (s sink) WriteHeader(int)             {}

// BenchmarkAnswer is 10 KB of text; "passed" is what an image costs that
// nobody compresses.
func BenchmarkAnswer(b *testing.B) {
	for _, bench := range []struct{ name, accept, kind string }{{"passed", "gzip, br, zstd", "image/png"}, {"gzip", "gzip", "text/plain"}, {"br", "br", "text/plain"}, {"zstd", "zstd", "text/plain"}} {
		b.Run(bench.name, func(b *testing.B) {
			mw, err := compress.New(config.DefaultCompress())
			if err != nil {
				b.Fatal(err)
			}
			body, kind, length := []byte(long), []string{bench.kind}, []string{strconv.Itoa(len(long))}
			h := mw(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Content-Type"], w.Header()["Content-Length"] = kind, length
				w.WriteHeader(200)
				_, _ = w.Write(body)
			}))
			w, r := sink{http.Header{}}, httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Accept-Encoding", bench.accept)
			b.SetBytes(int64(len(long)))
			b.ReportAllocs()
			for b.Loop() {
				clear(w.h)
				h.ServeHTTP(w, r)
			}
		})
	}
}
