package secureheaders_test

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/secureheaders"
	"github.com/proconsul/proconsul/pkg/problem"
)

// answer passes an instance's answer through the middleware.
func answer(t testing.TB, c config.SecureHeaders, scheme string, instance http.Header) http.Header {
	t.Helper()
	mw, err := secureheaders.New(c)
	if err != nil {
		t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	x := middleware.NewExchange(rec, time.Now())
	x.Scheme = scheme
	mw(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		maps.Copy(w.Header(), instance.Clone())
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusOK)
	})).ServeHTTP(x, httptest.NewRequest("GET", "/", nil))
	return rec.Header()
}

func same(t *testing.T, got, want http.Header) {
	t.Helper()
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestFields(t *testing.T) {
	full := config.SecureHeaders{
		HSTS: config.HSTS{MaxAge: time.Hour * 24 * 400, IncludeSubdomains: true, Preload: true}, Nosniff: true, FrameOptions: "sameorigin",
		ContentSecurityPolicy: "default-src 'self'", ReferrerPolicy: "no-referrer", PermissionsPolicy: "camera=()",
		CrossOriginOpenerPolicy: "same-origin", CrossOriginResourcePolicy: "same-site", CrossOriginEmbedderPolicy: "require-corp",
	}
	forced := full
	forced.Override = true
	theirs := http.Header{"X-Frame-Options": {"ALLOWALL"}, "X-Content-Type-Options": {"sniff"}, "Strict-Transport-Security": {"max-age=1"}, "Referrer-Policy": {"origin"}}
	all := func(change http.Header) http.Header {
		h := http.Header{"Strict-Transport-Security": {"max-age=34560000; includeSubDomains; preload"}, "X-Content-Type-Options": {"nosniff"}, "X-Frame-Options": {"SAMEORIGIN"},
			"Content-Security-Policy": {"default-src 'self'"}, "Referrer-Policy": {"no-referrer"}, "Permissions-Policy": {"camera=()"},
			"Cross-Origin-Opener-Policy": {"same-origin"}, "Cross-Origin-Resource-Policy": {"same-site"}, "Cross-Origin-Embedder-Policy": {"require-corp"}}
		for name, values := range change {
			if values == nil {
				delete(h, name)
			} else {
				h[name] = values
			}
		}
		return h
	}
	same(t, answer(t, full, "https", nil), all(nil))
	same(t, answer(t, full, "http", nil), all(http.Header{"Strict-Transport-Security": nil}))
	same(t, answer(t, full, "https", theirs), all(http.Header{"X-Frame-Options": {"ALLOWALL"}, "Strict-Transport-Security": {"max-age=1"}, "Referrer-Policy": {"origin"}}))
	same(t, answer(t, full, "http", theirs), all(http.Header{"X-Frame-Options": {"ALLOWALL"}, "Strict-Transport-Security": nil, "Referrer-Policy": {"origin"}}))
	same(t, answer(t, forced, "https", theirs), all(nil))

	leaky := http.Header{"Server": {"nginx/1.2"}, "X-Powered-By": {"PHP"}, "Via": {"1.1 inner-7"}, "X-Aspnet-Version": {"4"}, "X-Kept": {"1"}}
	same(t, answer(t, config.DefaultSecureHeaders(), "https", leaky), http.Header{"Strict-Transport-Security": {"max-age=31536000"}, "X-Content-Type-Options": {"nosniff"},
		"X-Frame-Options": {"DENY"}, "Referrer-Policy": {"strict-origin-when-cross-origin"}, "X-Kept": {"1"}})
}

func TestLocationsLoseInternalHosts(t *testing.T) {
	c := config.SecureHeaders{InternalHosts: []string{"private", "*.service.consul", "orders-1", "203.0.113.0/24"}}
	for _, tt := range []struct{ in, want string }{
		{"http://10.0.0.5:8080/a/b?q=1#f", "/a/b?q=1#f"},
		{"http://127.0.0.1", "/"},
		{"http://[::1]:80/x", "/x"},
		{"http://[fd00::1%25eth0]/x", "/x"},
		{"http://localhost:3000/x", "/x"},
		{"https://orders.service.consul./x%2Fy", "/x%2Fy"},
		{"//orders-1/x", "/x"},
		{"http://203.0.113.9/x?", "/x?"},
		{"http://10.0.0.5//evil.test/x", "/evil.test/x"},
		{`http://10.0.0.5/\evil.test/x`, `/%5Cevil.test/x`},
		{"https://shop.example.com/x", "https://shop.example.com/x"},
		{"http://8.8.8.8/x", "http://8.8.8.8/x"},
		{"http://evilservice.consul.test/x", "http://evilservice.consul.test/x"},
		{"/x//y", "/x//y"},
		{"x?u=http://10.0.0.5/", "x?u=http://10.0.0.5/"},
	} {
		got := answer(t, c, "https", http.Header{"Location": {tt.in}, "Content-Location": {tt.in}})
		if got.Get("Location") != tt.want || got.Get("Content-Location") != tt.want {
			t.Errorf("%s became %q and %q, want %q", tt.in, got.Get("Location"), got.Get("Content-Location"), tt.want)
		}
		if strings.HasPrefix(got.Get("Location"), "//") {
			t.Errorf("%s became %q, which names a host", tt.in, got.Get("Location"))
		}
	}
}

func TestCookies(t *testing.T) {
	all := config.Cookies{Secure: true, HTTPOnly: true, SameSite: "lax", Except: []string{"csrf"}}
	for _, tt := range []struct {
		name   string
		c      config.Cookies
		scheme string
		in     string
		want   string
	}{
		{"all are absent", all, "https", "a=b; Path=/", "a=b; Path=/; Secure; HttpOnly; SameSite=Lax"},
		{"in the clear", all, "http", "a=b", "a=b; HttpOnly; SameSite=Lax"},
		{"all are there", all, "https", "a=b; secure; HTTPONLY ; samesite=None", "a=b; secure; HTTPONLY ; samesite=None"},
		{"a value is no attribute", all, "https", "secure=httponly; path=/samesite", "secure=httponly; path=/samesite; Secure; HttpOnly; SameSite=Lax"},
		{"an exception", all, "https", "csrf=1", "csrf=1"},
		{"strict alone", config.Cookies{SameSite: "strict"}, "https", "a=b;", "a=b; SameSite=Strict"},
		{"nothing asked", config.Cookies{SameSite: "off"}, "https", "a=b", "a=b"},
		{"None without Secure is refused by browsers", config.Cookies{Secure: true}, "https", "a=b; SameSite=None", "a=b; SameSite=None; Secure"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := answer(t, config.SecureHeaders{Cookies: tt.c}, tt.scheme, http.Header{"Set-Cookie": {tt.in, "z=1; Secure; HttpOnly; SameSite=Lax"}})
			if len(got["Set-Cookie"]) != 2 || got["Set-Cookie"][0] != tt.want {
				t.Errorf("got %q, want %q", got["Set-Cookie"], tt.want)
			}
		})
	}
}

func TestTheGatewaysOwnAnswersHaveThemToo(t *testing.T) {
	mw, err := secureheaders.New(config.DefaultSecureHeaders())
	if err != nil {
		t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	x := middleware.NewExchange(rec, time.Now())
	x.Scheme = "https"
	mw(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		problem.Write(w, r, problem.New(problem.Unauthenticated, "", nil))
	})).ServeHTTP(x, httptest.NewRequest("GET", "/", nil))
	if rec.Header().Get("X-Frame-Options") != "DENY" || rec.Header().Get("Strict-Transport-Security") == "" || x.Reason != problem.Unauthenticated {
		t.Errorf("got %v, reason %q", rec.Header(), x.Reason)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []config.SecureHeaders{
		{Remove: []string{"Connection"}},
		{ContentSecurityPolicy: "a\r\nb"},
		{InternalHosts: []string{"10.0.0.0/99"}},
	} {
		if _, err := secureheaders.New(c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}

type sink struct{ h http.Header }

func (s sink) Header() http.Header         { return s.h }
func (s sink) Write(b []byte) (int, error) { return len(b), nil }
func (s sink) WriteHeader(int)             {}

func typical(t testing.TB) (http.Handler, func(w sink)) {
	c := config.DefaultSecureHeaders()
	c.ContentSecurityPolicy, c.InternalHosts = "default-src 'self'", []string{"private"}
	mw, err := secureheaders.New(c)
	if err != nil {
		t.Fatal(err)
	}
	server := []string{"nginx"}
	return mw(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) })),
		func(w sink) { clear(w.h); w.h["Server"] = server }
}

func BenchmarkTypical(b *testing.B) {
	h, reset := typical(b)
	w, r := sink{http.Header{}}, httptest.NewRequest("GET", "/", nil)
	b.ReportAllocs()
	for b.Loop() {
		reset(w)
		h.ServeHTTP(w, r)
	}
}

func TestCost(t *testing.T) {
	h, reset := typical(t)
	w, r := sink{http.Header{}}, httptest.NewRequest("GET", "/", nil)
	if got := testing.AllocsPerRun(100, func() { reset(w); h.ServeHTTP(w, r) }); got > 1 { // the writer
		t.Errorf("%v allocations a request, want 1", got)
	}
}

// What is said of an answer is what an answer gets.
func TestPeekSaysWhatAnAnswerGets(t *testing.T) {
	c := config.SecureHeaders{
		HSTS: config.HSTS{MaxAge: time.Hour}, Nosniff: true, FrameOptions: "deny", ReferrerPolicy: "no-referrer",
		Remove: []string{"server"}, HideVia: true, InternalHosts: []string{"private"}, Cookies: config.Cookies{Secure: true, HTTPOnly: true, SameSite: "lax"},
	}
	for scheme, want := range map[string]string{
		"https": "sets Strict-Transport-Security, X-Content-Type-Options, X-Frame-Options, Referrer-Policy; without Server, Via; Location without internal hosts; cookies get Secure, HttpOnly, SameSite",
		"http":  "sets X-Content-Type-Options, X-Frame-Options, Referrer-Policy; no Strict-Transport-Security in the clear; without Server, Via; Location without internal hosts; cookies get HttpOnly, SameSite",
	} {
		text := secureheaders.Peek(c, scheme)
		if text != want {
			t.Errorf("%s: it says %q", scheme, text)
		}
		got := answer(t, c, scheme, http.Header{"Server": {"x"}, "Via": {"1.1 x"}, "Location": {"http://10.0.0.1/a"}, "Set-Cookie": {"a=b"}})
		sets, _, _ := strings.Cut(strings.TrimPrefix(text, "sets "), ";")
		for name := range strings.SplitSeq(sets, ", ") {
			if len(got[name]) != 1 {
				t.Errorf("%s: it says %s, and the answer has %v", scheme, name, got)
			}
			delete(got, name)
		}
		if len(got["Set-Cookie"]) != 1 || strings.Contains(got["Set-Cookie"][0], "Secure") != strings.Contains(text, "get Secure") || got.Get("Location") != "/a" {
			t.Errorf("%s: the answer has %v", scheme, got)
		}
		delete(got, "Set-Cookie")
		delete(got, "Location")
		same(t, got, http.Header{})
	}
	if text := secureheaders.Peek(config.SecureHeaders{}, "https"); text != "" {
		t.Errorf("of nothing it says %q", text)
	}
}
