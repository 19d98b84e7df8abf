package validate_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/validate"
	"github.com/proconsul/proconsul/pkg/problem"
	"github.com/proconsul/proconsul/pkg/schema"
)

func settings(t testing.TB, change func(*config.Validate)) config.Validate {
	t.Helper()
	c := config.DefaultValidate()
	c.MaxBody = 1000
	c.BodySchema = `{"type":"object","required":["n"],"properties":{"n":{"type":"integer"}},"additionalProperties":false}`
	if change != nil {
		change(&c)
	}
	var m *schema.Mistake
	if c.BodySchema != "" {
		if c.Schema, m = schema.CompileJSON("", []byte(c.BodySchema)); m != nil {
			t.Fatal(m)
		}
	}
	if c.OpenAPI != "" {
		if c.API, m = schema.CompileAPI("", []byte(c.OpenAPI)); m != nil {
			t.Fatal(m)
		}
	}
	return c
}

func build(t testing.TB, c config.Validate) middleware.Middleware {
	t.Helper()
	mw, err := validate.New(c, func(p string) string { return strings.TrimPrefix(p, "/api") })
	if err != nil {
		t.Fatal(err)
	}
	return mw
}

type answer struct {
	*httptest.ResponseRecorder
	got    string // what the instance read
	passed bool
	faults []problem.Fault
}

func send(t testing.TB, mw middleware.Middleware, r *http.Request) answer {
	t.Helper()
	a := answer{ResponseRecorder: httptest.NewRecorder()}
	mw(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			problem.Write(w, r, problem.Upload(err))
			return
		}
		a.got, a.passed = string(b), true
	})).ServeHTTP(a.ResponseRecorder, r)
	var body struct{ Errors []problem.Fault }
	_ = json.Unmarshal(a.Body.Bytes(), &body) // none where it passed
	a.faults = body.Errors
	return a
}

func post(body, kind string, header ...string) *http.Request {
	r := httptest.NewRequest("POST", "/api/x", strings.NewReader(body))
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

func TestBodies(t *testing.T) {
	good := " {\"n\" : 1}\r\n"
	chunked := func(body io.Reader) *http.Request {
		r := httptest.NewRequest("PUT", "/", struct{ io.Reader }{body})
		r.Header.Set("Content-Type", "application/json")
		return r
	}
	get := httptest.NewRequest("GET", "/", nil)
	for _, tt := range []struct {
		name    string
		r       *http.Request
		status  int
		reason  problem.Reason
		pointer string // of the first fault
	}{
		{"byte for byte", post(good, "application/json"), 200, "", ""},
		{"with a charset", post(good, "Application/JSON; charset=UTF-8"), 200, "", ""},
		{"another JSON", post(good, "application/vnd.x+json"), 200, "", ""},
		{"without a length", chunked(iotest.OneByteReader(strings.NewReader(good))), 200, "", ""},
		{"no body where none is needed", get, 200, "", ""},
		{"no body where one is", httptest.NewRequest("POST", "/", nil), 422, problem.InvalidRequest, "#"},
		{"an empty one without a length", chunked(strings.NewReader("")), 400, problem.InvalidRequest, "#"},
		{"another type", post(good, "text/plain"), 415, problem.UnsupportedMediaType, ""},
		{"no type", post(good, ""), 415, problem.UnsupportedMediaType, ""},
		{"two types", post(good, "application/json", "Content-Type", "text/plain"), 415, problem.UnsupportedMediaType, ""},
		{"another charset, which readers would read as something else", post(good, "application/json; charset=utf-7"), 415, problem.UnsupportedMediaType, ""},
		{"coded", post(good, "application/json", "Content-Encoding", "gzip"), 415, problem.UnsupportedMediaType, ""},
		{"too long", post(`{"n":1`+strings.Repeat(" ", 1000)+`}`, "application/json"), 413, problem.BodyTooLarge, ""},
		{"too long without a length", chunked(strings.NewReader(`{"n":1` + strings.Repeat(" ", 1000) + `}`)), 413, problem.BodyTooLarge, ""},
		{"too deep", post(strings.Repeat("[", 40)+strings.Repeat("]", 40), "application/json"), 400, problem.InvalidRequest, ""},
		{"no JSON", post(`{"n":1`, "application/json"), 400, problem.InvalidRequest, "#"},
		{"a name twice", post(`{"n":1,"n":2}`, "application/json"), 400, problem.InvalidRequest, "#/n"},
		{"does not fit", post(`{"n":"x"}`, "application/json"), 422, problem.InvalidRequest, "#/n"},
		{"a connection that ends", chunked(io.MultiReader(strings.NewReader(`{"n"`), iotest.ErrReader(io.ErrUnexpectedEOF))), 200, "", ""}, // nobody is there to answer
		{"a body that breaks", chunked(iotest.ErrReader(errors.New("malformed chunked encoding"))), 400, problem.BadRequest, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := send(t, build(t, settings(t, nil)), tt.r)
			if a.Code != tt.status || a.Header().Get("X-Proconsul-Reason") != string(tt.reason) {
				t.Errorf("got %d %s: %s", a.Code, a.Header().Get("X-Proconsul-Reason"), a.Body)
			}
			if tt.status != 200 && a.passed {
				t.Error("it reached the instance")
			}
			if tt.status == 200 && a.passed && tt.r.Method != "GET" && a.got != good {
				t.Errorf("the instance got %q", a.got)
			}
			if tt.pointer != "" && (len(a.faults) == 0 || a.faults[0].Pointer != tt.pointer) {
				t.Errorf("faults %+v, want the first at %s", a.faults, tt.pointer)
			}
		})
	}
}

// Without a schema JSON is looked at all the same, and other bodies stream up
// to their limit.
func TestWithoutASchema(t *testing.T) {
	c := settings(t, func(c *config.Validate) { c.BodySchema = ""; c.DuplicateKeys = "allow" })
	mw := build(t, c)
	if a := send(t, mw, post(`{"a":1,"a":2}`, "application/json")); !a.passed {
		t.Errorf("allowed duplicates: %d %s", a.Code, a.Body)
	}
	if a := send(t, mw, post(`{"a":`, "application/json")); a.Code != 400 {
		t.Errorf("no JSON: %d", a.Code)
	}
	if a := send(t, mw, post("anything", "image/png")); a.got != "anything" {
		t.Errorf("another type: %d %q", a.Code, a.got)
	}
	for name, r := range map[string]*http.Request{
		"doubled":         post(`{"a":`, "application/json", "Content-Type", "application/json"),
		"malformed":       post(`{"a":`, "application/json; charset"),
		"empty":           post(`{"a":`, "text/plain", "Content-Type", ""),
		"another charset": post(`{"a":`, "application/json; charset=utf-16"),
	} {
		if a := send(t, mw, r); a.passed || a.Code != 415 || a.Header().Get("X-Proconsul-Reason") != "unsupported_media_type" {
			t.Errorf("a Content-Type that is %s: %d %q", name, a.Code, a.got)
		}
	}
	if a := send(t, mw, post("anything", "")); a.got != "anything" {
		t.Errorf("no type: %d %q", a.Code, a.got)
	}
	r := httptest.NewRequest("POST", "/", struct{ io.Reader }{strings.NewReader(strings.Repeat("x", 2000))})
	if a := send(t, mw, r); a.Code != 413 || a.passed {
		t.Errorf("too long: %d", a.Code)
	}
	c.ContentTypes = []string{"image/*", "application/pdf"}
	for kind, want := range map[string]int{"image/png": 200, "application/pdf": 200, "text/html": 415, "image": 415} {
		if a := send(t, build(t, c), post("x", kind)); a.Code != want {
			t.Errorf("%s: %d, want %d", kind, a.Code, want)
		}
	}
}

func TestParameters(t *testing.T) {
	c := settings(t, func(c *config.Validate) {
		c.BodySchema = ""
		c.Params = []config.Param{
			{Name: "limit", In: "query", Required: true, Type: "integer", Min: "1", Max: "100", MaxLength: 10},
			{Name: "sort", In: "query", Enum: []string{"up", "down"}, Type: "string", MaxLength: 10},
			{Name: "tag", In: "query", Repeat: true, Pattern: "[a-z]+", Type: "string", MaxLength: 5},
			{Name: "x-debug", In: "header", Type: "boolean", MaxLength: 10},
			{Name: "session", In: "cookie", Pattern: "[0-9a-f]{4}", Type: "string", MaxLength: 10},
			{Name: "share", In: "query", Type: "number", Max: "1", MaxLength: 10},
		}
	})
	mw := build(t, c)
	for _, tt := range []struct{ query, debug, cookie, want string }{
		{"limit=5&sort=up&tag=a&tag=b&share=0.5", "true", "00ff", ""},
		{"", "", "", "limit"},
		{"limit=0", "", "", "limit"},
		{"limit=101", "", "", "limit"},
		{"limit=5.5", "", "", "limit"},
		{"limit=0x5", "", "", "limit"},
		{"limit=+5", "", "", "limit"},
		{"limit=5&limit=6", "", "", "limit"},
		{"limit=5&sort=left", "", "", "sort"},
		{"limit=5&tag=a&tag=B", "", "", "tag"},
		{"limit=5&tag=abcdefg", "", "", "tag"},
		{"limit=5&tag=a%0Ab", "", "", "tag"},
		{"limit=5", "yes", "", "X-Debug"},
		{"limit=5", "", "xyz!", "session"},
		{"limit=5&share=2e0", "", "", "share"},
		{"limit=5&share=NaN", "", "", "share"},
		{"limit=5&share=1_0", "", "", "share"},
		{"limit=5;sort=left", "", "", "query"}, // others read it as two
		{"limit=5&sort=%zz", "", "", "query"},
	} {
		r := httptest.NewRequest("GET", "/api/x", nil)
		r.URL.RawQuery = tt.query
		if tt.debug != "" {
			r.Header.Set("X-Debug", tt.debug)
		}
		if tt.cookie != "" {
			r.AddCookie(&http.Cookie{Name: "session", Value: tt.cookie})
		}
		a := send(t, mw, r)
		var got []string
		for _, f := range a.faults {
			if f.Parameter == "" {
				got = append(got, f.In)
			} else {
				got = append(got, f.Parameter)
			}
		}
		if strings.Join(got, " ") != tt.want || a.passed != (tt.want == "") || tt.want != "" && a.Code != 422 {
			t.Errorf("%q: %d %v, want %q", tt.query, a.Code, got, tt.want)
		}
	}
}

const api = `{"openapi":"3.0.3","info":{"title":"t","version":"1"},"paths":{"/orders/{id}":{
"parameters":[{"name":"id","in":"path","required":true,"schema":{"type":"integer"}}],
"get":{"responses":{"200":{"description":"ok"}}},
"put":{"requestBody":{"required":true,"content":{"application/json":{"schema":{"type":"object","required":["n"]}}}},"responses":{"200":{"description":"ok"}}}}}}`

func TestByADescription(t *testing.T) {
	mw := build(t, settings(t, func(c *config.Validate) { c.BodySchema, c.OpenAPI = "", api }))
	for _, tt := range []struct {
		method, path, body string
		status             int
		reason             problem.Reason
	}{
		{"GET", "/api/orders/7", "", 200, ""},
		{"PUT", "/api/orders/7", `{"n":1}`, 200, ""},
		{"PUT", "/api/orders/7", `{}`, 422, problem.InvalidRequest},
		{"PUT", "/api/orders/7", ``, 422, problem.InvalidRequest},
		{"GET", "/api/orders/seven", "", 422, problem.InvalidRequest},
		{"GET", "/api/orders/7", `{}`, 422, problem.InvalidRequest},
		{"DELETE", "/api/orders/7", "", 405, problem.MethodNotAllowed},
		{"GET", "/api/admin", "", 404, problem.NoRoute},
		{"GET", "/orders/7", "", 200, ""}, // what an instance sees counts
	} {
		r := httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body))
		if tt.body == "" {
			r = httptest.NewRequest(tt.method, tt.path, nil)
		}
		r.Header.Set("Content-Type", "application/json")
		a := send(t, mw, r)
		if a.Code != tt.status || a.Header().Get("X-Proconsul-Reason") != string(tt.reason) || a.passed != (tt.status == 200) {
			t.Errorf("%s %s %s: %d %s", tt.method, tt.path, tt.body, a.Code, a.Body)
		}
		if tt.status == 405 && a.Header().Get("Allow") != "GET, PUT" {
			t.Errorf("allow %q", a.Header().Get("Allow"))
		}
	}
}

// A reader that outlives its request gets an error, and nothing of another's.
func TestAReaderThatOutlivesItsRequest(t *testing.T) {
	mw := build(t, settings(t, nil))
	var kept io.Reader
	mw(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { kept = r.Body })).
		ServeHTTP(httptest.NewRecorder(), post(`{"n":1}`, "application/json"))
	send(t, mw, post(`{"n":2}`, "application/json"))
	if b, err := io.ReadAll(kept); err == nil || len(b) > 0 {
		t.Errorf("it read %q, %v", b, err)
	}
}

func FuzzBody(f *testing.F) {
	for _, s := range []string{`{"n":1}`, `{"n":1,"n":2}`, `{"n":1e99999}`, "\xff", `{"\u006e":1}`} {
		f.Add([]byte(s), true)
	}
	mw := build(f, settings(f, nil))
	f.Fuzz(func(t *testing.T, body []byte, length bool) {
		var in io.Reader = bytes.NewReader(body)
		if !length {
			in = struct{ io.Reader }{in}
		}
		r := httptest.NewRequest("POST", "/", in)
		r.Header.Set("Content-Type", "application/json")
		a := send(t, mw, r)
		if !a.passed {
			return
		}
		var v struct {
			N *json.Number `json:"n"`
		}
		d := json.NewDecoder(strings.NewReader(a.got))
		d.DisallowUnknownFields()
		if err := d.Decode(&v); err != nil || v.N == nil || a.got != string(body) {
			t.Errorf("%q passed as %q: %v", body, a.got, err)
		}
	})
}

func BenchmarkBody(b *testing.B) {
	mw := build(b, settings(b, nil))
	h := mw(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	r := post("", "application/json")
	text := []byte(`{"n":1}`)
	b.ReportAllocs()
	for b.Loop() {
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
}
