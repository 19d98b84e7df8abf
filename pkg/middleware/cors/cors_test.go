package cors_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/cors"
)

// shop lets its own pages and those of partners in.
func shop() config.CORS {
	return config.CORS{
		Origins: []string{"https://shop.example.com", "http://localhost:3000", "https://*.partner.example"},
		Methods: []string{"GET", "PUT"}, Headers: []string{"Content-Type", "X-Token"}, Expose: []string{"X-Total"},
		Credentials: true, MaxAge: 10 * time.Minute,
	}
}

// ask sends a request through the middleware to an instance that has CORS
// fields of its own.
func ask(t testing.TB, c config.CORS, method string, header map[string]string) (rec *httptest.ResponseRecorder, reached bool) {
	t.Helper()
	mw, err := cors.New(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(method, "/x", nil)
	for name, value := range header {
		r.Header.Set(name, value)
	}
	rec = httptest.NewRecorder()
	mw(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		reached = true
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("Access-Control-Allow-Credentials", "true")
		w.Header().Set("Access-Control-Allow-Methods", "DELETE")
		w.Header().Set("Vary", "Accept")
		w.WriteHeader(http.StatusOK)
	})).ServeHTTP(middleware.NewExchange(rec, time.Now()), r)
	return rec, reached
}

func TestWhoMayRead(t *testing.T) {
	open := config.CORS{Origins: []string{"*"}}
	sandbox := config.CORS{Origins: []string{"null"}}
	for _, tt := range []struct {
		name, origin string
		c            config.CORS
		allow, vary  string
	}{
		{"an origin of the list", "https://shop.example.com", shop(), "https://shop.example.com", "Accept, Origin"},
		{"with its port", "http://localhost:3000", shop(), "http://localhost:3000", "Accept, Origin"},
		{"below a domain", "https://eu.shop.partner.example", shop(), "https://eu.shop.partner.example", "Accept, Origin"},
		{"the domain itself is not below it", "https://partner.example", shop(), "", "Accept, Origin"},
		{"another scheme", "http://shop.example.com", shop(), "", "Accept, Origin"},
		{"another scheme below", "http://eu.partner.example", shop(), "", "Accept, Origin"},
		{"another port", "https://shop.example.com:8443", shop(), "", "Accept, Origin"},
		{"another port below", "https://eu.partner.example:8443", shop(), "", "Accept, Origin"},
		{"only the end is the same", "https://evilpartner.example", shop(), "", "Accept, Origin"},
		{"the domain in front", "https://shop.example.com.evil.test", shop(), "", "Accept, Origin"},
		{"a user name that looks like a host", "https://evil.test@eu.partner.example", shop(), "", "Accept, Origin"},
		{"a path that looks like a host", "https://evil.test/.partner.example", shop(), "", "Accept, Origin"},
		{"an empty label", "https://.partner.example", shop(), "", "Accept, Origin"},
		{"another case", "https://SHOP.example.com", shop(), "", "Accept, Origin"},
		{"null is nobody's by accident", "null", shop(), "", "Accept, Origin"},
		{"null by name", "null", sandbox, "null", "Accept, Origin"},
		{"no origin: caches still need Vary", "", shop(), "", "Accept, Origin"},
		{"everybody", "https://any.test", open, "*", "Accept"},
		{"everybody without an origin", "", open, "*", "Accept"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			header := map[string]string{}
			if tt.origin != "" {
				header["Origin"] = tt.origin
			}
			rec, reached := ask(t, tt.c, "GET", header)
			h := rec.Header()
			if !reached || h.Get("Access-Control-Allow-Origin") != tt.allow || strings.Join(h["Vary"], ", ") != tt.vary {
				t.Errorf("reached %v, allow %q, vary %q; want %q, %q", reached, h.Get("Access-Control-Allow-Origin"), h["Vary"], tt.allow, tt.vary)
			}
			if h.Get("Access-Control-Allow-Methods") != "" {
				t.Error("the instance's own fields went to the client")
			}
			if got, want := h.Get("Access-Control-Allow-Credentials") == "true", tt.allow != "" && tt.c.Credentials; got != want {
				t.Errorf("credentials %v, want %v", got, want)
			}
		})
	}
}

func TestPreflights(t *testing.T) {
	with := func(change func(*config.CORS)) config.CORS {
		c := shop()
		change(&c)
		return c
	}
	anything := config.CORS{Origins: []string{"*"}, Methods: []string{"*"}, Headers: []string{"*"}}
	for _, tt := range []struct {
		name                    string
		c                       config.CORS
		origin, method, headers string
		status                  int
		wantOrigin, wantMethods string
	}{
		{"allowed", shop(), "https://shop.example.com", "PUT", "content-type,x-token", 204, "https://shop.example.com", "GET, PUT, HEAD"},
		{"spaces and empty elements", shop(), "https://shop.example.com", "GET", " x-token , ,", 204, "https://shop.example.com", "GET, PUT, HEAD"},
		{"HEAD comes with GET", shop(), "https://shop.example.com", "HEAD", "", 204, "https://shop.example.com", "GET, PUT, HEAD"},
		{"another origin", shop(), "https://evil.test", "GET", "", 403, "", ""},
		{"null", shop(), "null", "GET", "", 403, "", ""},
		{"another method", shop(), "https://shop.example.com", "DELETE", "", 403, "", ""},
		{"methods have a case", shop(), "https://shop.example.com", "put", "", 403, "", ""},
		{"another header", shop(), "https://shop.example.com", "GET", "x-token, x-other", 403, "", ""},
		{"malformed headers", anything, "https://shop.example.com", "GET", "x-token; x", 403, "", ""},
		{"too many headers", anything, "https://shop.example.com", "GET", strings.Repeat("x,", 101), 403, "", ""},
		{"everything", anything, "https://any.test", "PURGE", "x-any", 204, "*", "*"},
		{"the defaults", config.CORS{Origins: []string{"https://a.test"}}, "https://a.test", "POST", "content-type", 204, "https://a.test", "GET, HEAD, POST"},
		{"private networks", with(func(c *config.CORS) { c.PrivateNetwork = true }), "https://shop.example.com", "GET", "", 204, "https://shop.example.com", "GET, PUT, HEAD"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec, reached := ask(t, tt.c, "OPTIONS", map[string]string{"Origin": tt.origin, "Access-Control-Request-Method": tt.method,
				"Access-Control-Request-Headers": tt.headers, "Access-Control-Request-Private-Network": "true"})
			h := rec.Header()
			if reached {
				t.Error("the preflight reached the instance")
			}
			if rec.Code != tt.status || h.Get("Access-Control-Allow-Origin") != tt.wantOrigin || h.Get("Access-Control-Allow-Methods") != tt.wantMethods {
				t.Errorf("got %d %v", rec.Code, h)
			}
			vary := strings.Join(h["Vary"], ", ")
			if !strings.HasPrefix(vary, "Origin, Access-Control-Request-Method, Access-Control-Request-Headers") {
				t.Errorf("vary %q", vary)
			}
			if got := h.Get("Access-Control-Allow-Private-Network") == "true"; got != tt.c.PrivateNetwork {
				t.Errorf("private network %v, want %v", got, tt.c.PrivateNetwork)
			}
			switch {
			case tt.status == 403 && h.Get("X-Proconsul-Reason") != "cors_denied":
				t.Errorf("reason %q", h.Get("X-Proconsul-Reason"))
			case tt.status == 204 && rec.Body.Len() > 0:
				t.Errorf("a body: %s", rec.Body)
			}
		})
	}
}

// What is no preflight is the instance's to answer.
func TestOtherOptionsPass(t *testing.T) {
	for _, header := range []map[string]string{
		{"Origin": "https://shop.example.com"},
		{"Access-Control-Request-Method": "GET"},
		{"Origin": "https://shop.example.com", "Access-Control-Request-Method": "GET /"},
		{},
	} {
		if rec, reached := ask(t, shop(), "OPTIONS", header); !reached || rec.Code != 200 {
			t.Errorf("%v: reached %v, %d", header, reached, rec.Code)
		}
	}
}

// Whoever is allowed is in the list, whatever it looks like.
func TestAllowedOriginsAreInTheList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		origin := rapid.OneOf(
			rapid.StringMatching(`(https?://)?[a-zA-Z0-9@/.:_-]{0,12}\.?(shop\.example\.com|partner\.example)(:[0-9]{1,4})?[a-z./]{0,6}`),
			rapid.String(),
		).Draw(t, "origin")
		rec, _ := askRapid(t, shop(), origin)
		got := rec.Header().Get("Access-Control-Allow-Origin")
		if got == "" {
			return
		}
		host, ok := strings.CutPrefix(origin, "https://")
		if got != origin || origin != "https://shop.example.com" && origin != "http://localhost:3000" &&
			!(ok && strings.HasSuffix(host, ".partner.example") && !strings.ContainsAny(host, "/@:?#\\ ")) {
			t.Fatalf("origin %q is answered with %q", origin, got)
		}
	})
}

func askRapid(t *rapid.T, c config.CORS, origin string) (*httptest.ResponseRecorder, error) {
	mw, err := cors.New(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.Header["Origin"] = []string{origin}
	rec := httptest.NewRecorder()
	mw(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) })).ServeHTTP(rec, r)
	return rec, nil
}

func FuzzOrigin(f *testing.F) {
	f.Add("https://shop.example.com", "PUT", "x-token")
	f.Add("https://a@b.partner.example", "GET", ",,;")
	mw, err := cors.New(shop(), nil)
	if err != nil {
		f.Fatal(err)
	}
	h := mw(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }))
	f.Fuzz(func(t *testing.T, origin, method, headers string) {
		r := httptest.NewRequest("OPTIONS", "/", nil)
		r.Header["Origin"], r.Header["Access-Control-Request-Method"] = []string{origin}, []string{method}
		r.Header["Access-Control-Request-Headers"] = []string{headers}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if got := rec.Header().Get("Access-Control-Allow-Origin"); got != "" && (got != origin || strings.ContainsAny(got, "\r\n \x00")) {
			t.Errorf("origin %q is answered with %q", origin, got)
		}
	})
}

func TestEveryOriginWithCredentialsIsRefused(t *testing.T) {
	if _, err := cors.New(config.CORS{Origins: []string{"*"}, Credentials: true}, nil); err == nil {
		t.Error("it was taken")
	}
}

type sink struct{ h http.Header }

func (s sink) Header() http.Header         { return s.h }
func (s sink) Write(b []byte) (int, error) { return len(b), nil }
func (s sink) WriteHeader(int)             {}

func BenchmarkActualRequest(b *testing.B) {
	mw, err := cors.New(shop(), nil)
	if err != nil {
		b.Fatal(err)
	}
	h := mw(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }))
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Origin", "https://shop.example.com")
	w := sink{http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.h)
		h.ServeHTTP(w, r)
	}
}

func TestCost(t *testing.T) {
	mw, err := cors.New(shop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	h := mw(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }))
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Origin", "https://shop.example.com")
	w := sink{http.Header{}}
	if got := testing.AllocsPerRun(100, func() { clear(w.h); h.ServeHTTP(w, r) }); got > 2 { // the writer and Vary's list
		t.Errorf("%v allocations a request, want 2", got)
	}
}
