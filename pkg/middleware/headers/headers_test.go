package headers_test

import (
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/headers"
	"github.com/proconsul/proconsul/pkg/problem"
)

func rules() config.Headers {
	return config.Headers{
		Request: config.HeaderRules{
			Remove: []string{"cookie", "X-Set"},
			Set:    []config.HeaderField{{Name: "x-set", Value: "ours"}},
			Add:    []config.HeaderField{{Name: "X-Add", Value: "2"}, {Name: "X-Add", Value: "3"}},
		},
		Response: config.HeaderRules{
			Remove: []string{"Server"},
			Set:    []config.HeaderField{{Name: "X-Frame-Options", Value: "DENY"}},
			Add:    []config.HeaderField{{Name: "Vary", Value: "Origin"}},
		},
	}
}

func TestRules(t *testing.T) {
	wantResponse := http.Header{"X-Frame-Options": {"DENY"}, "Vary": {"Accept", "Origin"}}
	tests := []struct {
		name string
		end  func(w http.ResponseWriter, r *http.Request)
	}{
		{"header", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201) }},
		{"interim before it", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(103); w.WriteHeader(201) }},
		{"body only", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "x") }},
		{"flush only", func(w http.ResponseWriter, _ *http.Request) { _ = http.NewResponseController(w).Flush() }},
		{"twice is once", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200); _, _ = io.WriteString(w, "x") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mw, err := headers.New(rules())
			if err != nil {
				t.Fatal(err)
			}
			var got http.Header
			s := httptest.NewServer(mw(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				got = r.Header.Clone()
				w.Header()["Content-Type"] = nil
				w.Header()["Date"] = nil
				w.Header().Set("Server", "instance")
				w.Header().Set("X-Frame-Options", "ALLOW")
				w.Header().Set("Vary", "Accept")
				tt.end(w, r)
			})))
			defer s.Close()
			req, _ := http.NewRequest("GET", s.URL, nil)
			req.Header = http.Header{"Cookie": {"a=b"}, "X-Set": {"theirs"}, "X-Add": {"1"}, "User-Agent": nil, "Accept-Encoding": {"br"}}
			resp, err := s.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			want := http.Header{"X-Set": {"ours"}, "X-Add": {"1", "2", "3"}, "Accept-Encoding": {"br"}}
			if !maps.EqualFunc(got, want, slices.Equal) {
				t.Errorf("instance got %v, want %v", got, want)
			}
			resp.Header.Del("Content-Length")
			if !maps.EqualFunc(resp.Header, wantResponse, slices.Equal) {
				t.Errorf("client got %v, want %v", resp.Header, wantResponse)
			}
		})
	}
}

func TestRulesReachTheGatewaysOwnAnswers(t *testing.T) {
	mw, err := headers.New(rules())
	if err != nil {
		t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	x := middleware.NewExchange(rec, time.Now())
	mw(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		problem.Write(w, r, problem.New(problem.Draining, "", nil))
	})).ServeHTTP(x, httptest.NewRequest("GET", "/", nil))
	if rec.Header().Get("X-Frame-Options") != "DENY" || x.Reason != problem.Draining || x.Status != 503 {
		t.Errorf("got %v, account %q %d", rec.Header(), x.Reason, x.Status)
	}
}

// Rules are shared by all requests: one must not leave anything for the next.
func TestRequestsDoNotMix(t *testing.T) {
	mw, err := headers.New(rules())
	if err != nil {
		t.Fatal(err)
	}
	h := mw(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Add("X-Set", "more")
		w.WriteHeader(200)
		if got := r.Header["X-Add"]; len(got) != 2 {
			t.Errorf("got X-Add %v, want 2 values", got)
		}
	}))
	for range 3 {
		r := httptest.NewRequest("GET", "/", nil)
		h.ServeHTTP(httptest.NewRecorder(), r)
		if got := r.Header["X-Set"]; len(got) != 2 {
			t.Errorf("got X-Set %v", got)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	set := func(name, value string) config.HeaderRules {
		return config.HeaderRules{Set: []config.HeaderField{{Name: name, Value: value}}}
	}
	tests := []struct {
		name string
		c    config.Headers
		want string
	}{
		{"hop-by-hop", config.Headers{Request: set("connection", "x")}, `request.set[0]: "connection" concerns one connection only`},
		{"upgrade", config.Headers{Response: set("Upgrade", "x")}, "concerns one connection only"},
		{"framing", config.Headers{Response: set("Content-Length", "1")}, "frames the message"},
		{"transfer encoding removed", config.Headers{Response: config.HeaderRules{Remove: []string{"Transfer-Encoding"}}}, "response.remove[0]"},
		{"host", config.Headers{Request: set("Host", "x")}, "upstream.host"},
		{"ours", config.Headers{Request: set("X-Forwarded-For", "x")}, "gateway's own"},
		{"name", config.Headers{Request: set("X Y", "x")}, "not a field name"},
		{"empty name", config.Headers{Request: set("", "x")}, "not a field name"},
		{"splitting", config.Headers{Response: set("X-A", "a\r\nSet-Cookie: b")}, "control characters"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := headers.New(tt.c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	_, err := headers.New(config.Headers{Request: set("Te", ""), Response: set("Trailer", "")})
	if err == nil || !strings.Contains(err.Error(), "request.set") || !strings.Contains(err.Error(), "response.set") {
		t.Errorf("got %v, want every fault at once", err)
	}
}

type sink struct{ h http.Header }

func (s sink) Header() http.Header         { return s.h }
func (s sink) Write(b []byte) (int, error) { return len(b), nil }
func (s sink) WriteHeader(int)             {}

// BenchmarkRules is what eight rules in both directions cost a request.
func BenchmarkRules(b *testing.B) {
	mw, err := headers.New(rules())
	if err != nil {
		b.Fatal(err)
	}
	h := mw(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }))
	r := httptest.NewRequest("GET", "/", nil)
	theirs := []string{"theirs"}
	w := sink{http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(r.Header)
		clear(w.h)
		r.Header["Cookie"], r.Header["X-Set"], r.Header["X-Add"] = theirs, theirs, theirs
		w.h["Server"], w.h["Vary"] = theirs, theirs
		h.ServeHTTP(w, r)
	}
}
