package ratelimit_test

import (
	"cmp"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/ratelimit"
)

// own returns a limiter without a store; away returns one whose store cannot
// be reached.
func own(t testing.TB) *limiter.Limiter { return newLimiter(t, limiter.Options{}) }

func away(t testing.TB) *limiter.Limiter {
	return newLimiter(t, limiter.Options{Redis: &limiter.Redis{Addr: "127.0.0.1:1"}})
}

func newLimiter(t testing.TB, o limiter.Options) *limiter.Limiter {
	t.Helper()
	l, err := limiter.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func perMinute(count int) config.RateLimit {
	return config.RateLimit{By: "client_ip", Limits: []config.Limit{{Count: count, Window: time.Minute}}}
}

// alone returns the middleware of a route that is under its own limit only.
func alone(route string, l config.RateLimit, lim *limiter.Limiter, told func(policy, decision string)) (middleware.Middleware, error) {
	return ratelimit.NewGuards(lim, ratelimit.Account{Decision: told}).New(route, []config.NamedLimit{{Name: route, RateLimit: l}})
}

// visitor is a client of the middleware under test.
type visitor struct {
	ip       string
	header   http.Header
	consumer string
	method   string
}

// visit sends a request and returns the answer and the account of it.
func visit(t testing.TB, mw middleware.Middleware, v visitor, h http.Handler) (*http.Response, *middleware.Exchange) {
	t.Helper()
	rec := httptest.NewRecorder()
	ex := middleware.NewExchange(rec, time.Now())
	if v.ip != "" {
		ex.ClientIP = netip.MustParseAddr(v.ip)
	}
	ex.Consumer = v.consumer
	r := httptest.NewRequest(cmp.Or(v.method, "GET"), "/", nil)
	if v.header != nil {
		r.Header = v.header
	}
	mw(h).ServeHTTP(ex, r)
	return rec.Result(), ex
}

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }

func TestAnswersTellWhatIsLeft(t *testing.T) {
	cfg := config.RateLimit{By: "client_ip", Limits: []config.Limit{{Count: 100, Window: time.Hour}, {Count: 2, Window: time.Minute}, {Count: 50, Window: 500 * time.Millisecond}}}
	mw, err := alone("orders", cfg, own(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		status int
		left   string
		word   string
	}{{200, "1", "allowed"}, {200, "0", "allowed"}, {429, "0", "limited"}} {
		resp, ex := visit(t, mw, visitor{ip: "192.0.2.1"}, http.HandlerFunc(ok))
		if resp.StatusCode != want.status || ex.RateLimit != want.word {
			t.Errorf("request %d: %d %s, want %d %s", i, resp.StatusCode, ex.RateLimit, want.status, want.word)
		}
		if got, want := resp.Header.Get("RateLimit-Policy"), `"1h";q=100;w=3600, "1m";q=2;w=60, "500ms";q=50`; got != want {
			t.Errorf("request %d: RateLimit-Policy %s, want %s", i, got, want)
		}
		state := resp.Header.Get("RateLimit")
		if !strings.HasPrefix(state, `"1h";r=9`) || !strings.Contains(state, `, "1m";r=`+want.left+`;t=6`) {
			t.Errorf("request %d: RateLimit %s", i, state)
		}
		if resp.Header.Get("X-RateLimit-Limit") != "2" || resp.Header.Get("X-RateLimit-Remaining") != want.left || !strings.HasPrefix(resp.Header.Get("X-RateLimit-Reset"), "6") {
			t.Errorf("request %d: aliases %v", i, resp.Header)
		}
		retry := resp.Header.Get("Retry-After")
		if want.status == 200 {
			if retry != "" {
				t.Errorf("request %d passed and is told Retry-After %s", i, retry)
			}
			continue
		}
		reset, err := strconv.Atoi(resp.Header.Get("X-RateLimit-Reset"))
		if n, err2 := strconv.Atoi(retry); err != nil || err2 != nil || n < reset || n > 65 {
			t.Errorf("request %d: Retry-After %s with reset %d", i, retry, reset)
		}
		var body struct{ Reason string }
		if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || body.Reason != "rate_limited" {
			t.Errorf("request %d: body %+v, %v", i, body, err)
		}
	}
}

func TestWhoIsCountedTogether(t *testing.T) {
	h := func(kv ...string) http.Header {
		out := http.Header{}
		for i := 0; i < len(kv); i += 2 {
			out.Add(kv[i], kv[i+1])
		}
		return out
	}
	tests := []struct {
		name, by string
		a, b     visitor
		together bool
	}{
		{"same address", "client_ip", visitor{ip: "192.0.2.1"}, visitor{ip: "192.0.2.1"}, true},
		{"two addresses", "client_ip", visitor{ip: "192.0.2.1"}, visitor{ip: "192.0.2.2"}, false},
		{"mapped address", "client_ip", visitor{ip: "192.0.2.1"}, visitor{ip: "::ffff:192.0.2.1"}, true},
		{"one /64", "client_ip", visitor{ip: "2001:db8:1:2::1"}, visitor{ip: "2001:db8:1:2:ffff::9"}, true},
		{"two /64", "client_ip", visitor{ip: "2001:db8:1:2::1"}, visitor{ip: "2001:db8:1:3::1"}, false},
		{"the route", "route", visitor{ip: "192.0.2.1"}, visitor{ip: "192.0.2.2"}, true},
		{"one key from two addresses", "api_key", visitor{ip: "192.0.2.1", header: h("X-API-Key", "k")}, visitor{ip: "192.0.2.2", header: h("X-API-Key", "k")}, true},
		{"two keys from one address", "api_key", visitor{ip: "192.0.2.1", header: h("X-API-Key", "k")}, visitor{ip: "192.0.2.1", header: h("X-API-Key", "l")}, false},
		{"no key, two addresses", "api_key", visitor{ip: "192.0.2.1"}, visitor{ip: "192.0.2.2"}, false},
		{"no key, one address", "api_key", visitor{ip: "192.0.2.1"}, visitor{ip: "192.0.2.1", header: h("X-API-Key", "")}, true},
		{"a key is no address", "api_key", visitor{ip: "192.0.2.1"}, visitor{ip: "192.0.2.2", header: h("X-API-Key", "192.0.2.1")}, false},
		{"one consumer from two addresses", "consumer", visitor{ip: "192.0.2.1", consumer: "acme"}, visitor{ip: "192.0.2.2", consumer: "acme"}, true},
		{"two consumers from one address", "consumer", visitor{ip: "192.0.2.1", consumer: "acme"}, visitor{ip: "192.0.2.1", consumer: "other"}, false},
		{"no consumer, two addresses", "consumer", visitor{ip: "192.0.2.1"}, visitor{ip: "192.0.2.2"}, false},
		{"a consumer is no address", "consumer", visitor{ip: "192.0.2.1"}, visitor{ip: "192.0.2.2", consumer: "192.0.2.1"}, false},
		{"one header value", "header(x-tenant)", visitor{ip: "192.0.2.1", header: h("X-Tenant", "t")}, visitor{ip: "192.0.2.2", header: h("X-Tenant", "t")}, true},
		{"one method", "method", visitor{ip: "192.0.2.1"}, visitor{ip: "192.0.2.2"}, true},
		{"two methods", "method", visitor{ip: "192.0.2.1"}, visitor{ip: "192.0.2.1", method: "POST"}, false},
		{"two invented methods", "method", visitor{ip: "192.0.2.1", method: "FOO"}, visitor{ip: "192.0.2.1", method: "BAR"}, true},
		{"one cookie", "cookie(sid)", visitor{ip: "192.0.2.1", header: h("Cookie", "a=b; sid=1")}, visitor{ip: "192.0.2.2", header: h("Cookie", "sid=1")}, true},
		{"two cookies", "cookie(sid)", visitor{ip: "192.0.2.1", header: h("Cookie", "sid=1")}, visitor{ip: "192.0.2.1", header: h("Cookie", "sid=2")}, false},
		{"no cookie, two addresses", "cookie(sid)", visitor{ip: "192.0.2.1"}, visitor{ip: "192.0.2.2"}, false},
		{"a cookie is no address", "cookie(sid)", visitor{ip: "192.0.2.1"}, visitor{ip: "192.0.2.2", header: h("Cookie", "sid=192.0.2.1")}, false},
		{"both the same", "consumer+method", visitor{ip: "192.0.2.1", consumer: "acme"}, visitor{ip: "192.0.2.2", consumer: "acme"}, true},
		{"the second differs", "consumer + method", visitor{ip: "192.0.2.1", consumer: "acme"}, visitor{ip: "192.0.2.1", consumer: "acme", method: "PUT"}, false},
		{"the first differs", "consumer+method", visitor{ip: "192.0.2.1", consumer: "acme"}, visitor{ip: "192.0.2.1", consumer: "other"}, false},
		{"a value that reaches over", "header(a)+header(b)", visitor{ip: "192.0.2.1", header: h("A", "x10:header:B:y", "B", "z")}, visitor{ip: "192.0.2.1", header: h("A", "x", "B", "y10:header:B:z")}, false},
		{"no header, two addresses", "header(X-Tenant)", visitor{ip: "192.0.2.1"}, visitor{ip: "192.0.2.2"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := perMinute(1)
			cfg.By = tt.by
			mw, err := alone("orders", cfg, own(t), nil)
			if err != nil {
				t.Fatal(err)
			}
			if resp, _ := visit(t, mw, tt.a, http.HandlerFunc(ok)); resp.StatusCode != 200 {
				t.Fatalf("the first request got %d", resp.StatusCode)
			}
			resp, _ := visit(t, mw, tt.b, http.HandlerFunc(ok))
			if got := resp.StatusCode == 429; got != tt.together {
				t.Errorf("the second request got %d, counted together: want %v", resp.StatusCode, tt.together)
			}
		})
	}
}

func TestWithoutTheStore(t *testing.T) {
	tests := []struct {
		mode   string
		status int
		reason string
		word   string
		left   string
	}{
		{"", 200, "", "local", "0"},
		{"local", 200, "", "local", "0"},
		{"open", 200, "", "fail_open", ""},
		{"closed", 503, "limiter_unavailable", "fail_closed", ""},
	}
	for _, tt := range tests {
		t.Run("mode "+tt.mode, func(t *testing.T) {
			var told []string
			cfg := perMinute(1)
			cfg.OnStoreError = tt.mode
			mw, err := alone("orders", cfg, away(t), func(policy, decision string) { told = append(told, policy+" "+decision) })
			if err != nil {
				t.Fatal(err)
			}
			resp, ex := visit(t, mw, visitor{ip: "192.0.2.1"}, http.HandlerFunc(ok))
			if resp.StatusCode != tt.status || resp.Header.Get("X-Proconsul-Reason") != tt.reason || ex.RateLimit != tt.word ||
				resp.Header.Get("X-RateLimit-Remaining") != tt.left || len(told) != 1 || told[0] != "orders "+tt.word {
				t.Errorf("got %d %v, account %q, told %q", resp.StatusCode, resp.Header, ex.RateLimit, told)
			}
			if tt.status == 503 && resp.Header.Get("Retry-After") != "1" {
				t.Errorf("Retry-After %q", resp.Header.Get("Retry-After"))
			}
		})
	}
	mw, err := alone("orders", perMinute(1), away(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	visit(t, mw, visitor{ip: "192.0.2.1"}, http.HandlerFunc(ok))
	if resp, ex := visit(t, mw, visitor{ip: "192.0.2.1"}, http.HandlerFunc(ok)); resp.StatusCode != 429 || ex.RateLimit != "limited" {
		t.Errorf("the second local request got %d %s", resp.StatusCode, ex.RateLimit)
	}
}

func TestAnInstancesOwnFieldsDoNotPass(t *testing.T) {
	instance := map[string]http.HandlerFunc{
		"writes": func(w http.ResponseWriter, r *http.Request) {
			foreign(w)
			ok(w, r)
		},
		"writes a header": func(w http.ResponseWriter, _ *http.Request) {
			foreign(w)
			w.WriteHeader(http.StatusNoContent)
		},
		"flushes": func(w http.ResponseWriter, _ *http.Request) {
			foreign(w)
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
		},
		"copies": func(w http.ResponseWriter, _ *http.Request) {
			foreign(w)
			_, _ = io.Copy(w, strings.NewReader("ok"))
		},
		"writes nothing": func(w http.ResponseWriter, _ *http.Request) { foreign(w) },
	}
	for name, h := range instance {
		t.Run(name, func(t *testing.T) {
			for _, mode := range []string{"local", "open"} {
				cfg := perMinute(10)
				cfg.OnStoreError = mode
				mw, err := alone("orders", cfg, away(t), nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, _ := visit(t, mw, visitor{ip: "192.0.2.1"}, h)
				want := map[string][]string{"local": {"9"}, "open": nil}[mode]
				if got := resp.Header.Values("X-RateLimit-Remaining"); strings.Join(got, ",") != strings.Join(want, ",") {
					t.Errorf("%s: X-RateLimit-Remaining %q, want %q", mode, got, want)
				}
				if got := resp.Header.Get("RateLimit"); strings.Contains(got, "777") {
					t.Errorf("%s: RateLimit %q is the instance's", mode, got)
				}
			}
		})
	}
}

func foreign(w http.ResponseWriter) {
	w.Header().Add("RateLimit", `"x";r=777`)
	w.Header().Add("X-RateLimit-Remaining", "777")
}

func TestHiddenHeaders(t *testing.T) {
	cfg := perMinute(1)
	cfg.Headers = "none"
	mw, err := alone("orders", cfg, own(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, status := range []int{200, 429} {
		resp, _ := visit(t, mw, visitor{ip: "192.0.2.1"}, http.HandlerFunc(ok))
		if resp.StatusCode != status {
			t.Fatalf("got %d, want %d", resp.StatusCode, status)
		}
		for name := range resp.Header {
			if strings.Contains(strings.ToLower(name), "ratelimit") {
				t.Errorf("%d carries %s", status, name)
			}
		}
		if status == 429 && resp.Header.Get("Retry-After") == "" {
			t.Error("a 429 has to say when to come back")
		}
	}
}

func TestReplicasAndReloadsShareCounts(t *testing.T) {
	lim := own(t)
	for i, c := range []struct{ count, status int }{{2, 200}, {2, 200}, {2, 429}, {3, 200}, {3, 429}} {
		mw, err := alone("orders", perMinute(c.count), lim, nil) // as a reload does
		if err != nil {
			t.Fatal(err)
		}
		if resp, _ := visit(t, mw, visitor{ip: "192.0.2.1"}, http.HandlerFunc(ok)); resp.StatusCode != c.status {
			t.Errorf("request %d with a limit of %d: %d, want %d", i, c.count, resp.StatusCode, c.status)
		}
	}
	mw, err := alone("users", perMinute(2), lim, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, _ := visit(t, mw, visitor{ip: "192.0.2.1"}, http.HandlerFunc(ok)); resp.StatusCode != 200 {
		t.Errorf("another route shares the count: %d", resp.StatusCode)
	}
}

func TestWithoutAnExchange(t *testing.T) {
	mw, err := alone("orders", perMinute(1), own(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{200, 429} {
		rec := httptest.NewRecorder()
		mw(http.HandlerFunc(ok)).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
		if rec.Code != want {
			t.Errorf("got %d, want %d", rec.Code, want)
		}
	}
}

// What a request costs is taken at once; what costs more than the limit never
// passes, and what a client writes that is no number costs one.
func TestCosts(t *testing.T) {
	tests := []struct {
		cost, field string
		status      int
		left        string
	}{
		{"", "", 200, "9"},
		{"3", "", 200, "7"},
		{"header(x-cost)", "4", 200, "6"},
		{"header(X-Cost)", "", 200, "9"},
		{"header(X-Cost)", "-4", 200, "9"},
		{"header(X-Cost)", "many", 200, "9"},
		{"header(X-Cost)", "-99999999999999999999", 200, "9"},
		{"header(X-Cost)", "11", 429, ""},
		{"header(X-Cost)", "99999999999999999999", 429, ""},
	}
	for _, tt := range tests {
		cfg := perMinute(10)
		cfg.Cost = tt.cost
		mw, err := alone("orders", cfg, own(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, _ := visit(t, mw, visitor{ip: "192.0.2.1", header: http.Header{"X-Cost": {tt.field}}}, http.HandlerFunc(ok))
		if resp.StatusCode != tt.status || resp.Header.Get("X-RateLimit-Remaining") != tt.left {
			t.Errorf("cost %q, field %q: %d with %q left", tt.cost, tt.field, resp.StatusCode, resp.Header.Get("X-RateLimit-Remaining"))
		}
	}
}

// Each algorithm is told to clients by what it admits at once.
func TestAlgorithms(t *testing.T) {
	limit := func(text string) (l config.Limit) {
		if err := l.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		return l
	}
	tests := []struct {
		name   string
		change func(*config.RateLimit)
		policy string
		passes int
	}{
		{"bucket", func(c *config.RateLimit) { c.Algorithm, c.Burst = "token_bucket", 5 }, `"1h";q=5`, 5},
		{"bucket of its count", func(c *config.RateLimit) { c.Algorithm = "token_bucket" }, `"1h";q=3;w=3600`, 3},
		{"fixed", func(c *config.RateLimit) { c.Algorithm = "fixed_window" }, `"1h";q=3;w=3600`, 3},
		{"exact", func(c *config.RateLimit) { c.Precision = "exact" }, `"1h";q=3;w=3600`, 3},
		{"calendar", func(c *config.RateLimit) {
			c.Limits, c.Zone = []config.Limit{limit("2/day"), limit("9/month"), limit("5/1d")}, "Europe/Berlin"
		}, `"day";q=2, "month";q=9, "1d";q=5;w=86400`, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config.RateLimit{By: "client_ip", Limits: []config.Limit{{Count: 3, Window: time.Hour}}}
			tt.change(&cfg)
			mw, err := alone("orders", cfg, own(t), nil)
			if err != nil {
				t.Fatal(err)
			}
			for i := range tt.passes + 1 {
				resp, _ := visit(t, mw, visitor{ip: "192.0.2.1"}, http.HandlerFunc(ok))
				if got := resp.Header.Get("RateLimit-Policy"); got != tt.policy {
					t.Errorf("policy %s, want %s", got, tt.policy)
				}
				if passed := resp.StatusCode == 200; passed != (i < tt.passes) {
					t.Errorf("request %d got %d", i+1, resp.StatusCode)
				}
			}
		})
	}
}

// A consumer has its tier's counts, and keeps what it has used when a reload
// puts it into another one.
func TestTiers(t *testing.T) {
	lim := own(t)
	limits := func(n int) []config.Limit { return []config.Limit{{Count: n, Window: time.Hour}} }
	cfg := config.RateLimit{By: "consumer", Limits: limits(2), Tiers: []config.Tier{
		{Name: "pro", Consumers: []string{"acme"}, Limits: limits(5)},
		{Name: "enterprise", Consumers: []string{"big"}, Unlimited: true},
	}}
	passes := func(consumer string, most int) (n int, left string) {
		mw, err := alone("orders", cfg, lim, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range most {
			resp, ex := visit(t, mw, visitor{ip: "192.0.2.1", consumer: consumer}, http.HandlerFunc(ok))
			left = resp.Header.Get("X-RateLimit-Limit")
			if resp.StatusCode == 200 {
				n++
			}
			if (resp.StatusCode == 200) != (ex.RateLimit == "allowed") {
				t.Errorf("%d is accounted as %s", resp.StatusCode, ex.RateLimit)
			}
		}
		return n, left
	}
	for _, tt := range []struct {
		consumer string
		want     int
		limit    string
	}{{"", 2, "2"}, {"small", 2, "2"}, {"acme", 5, "5"}, {"big", 9, ""}} {
		if got, limit := passes(tt.consumer, 9); got != tt.want || limit != tt.limit {
			t.Errorf("%q: %d passed, limit %s; want %d, %s", tt.consumer, got, limit, tt.want, tt.limit)
		}
	}
	cfg.Tiers = []config.Tier{{Name: "pro", Consumers: []string{"small"}, Limits: limits(5)}}
	if got, _ := passes("small", 9); got != 3 {
		t.Errorf("after 2 of 2, a tier of 5 lets %d pass, want 3", got)
	}
	if got, _ := passes("acme", 9); got != 0 {
		t.Errorf("after 5 of 5, a limit of 2 lets %d pass", got)
	}
	if got, _ := passes("big", 9); got != 2 {
		t.Errorf("who leaves the unlimited tier has %d, want 2", got)
	}
}

func TestBadSettings(t *testing.T) {
	good := perMinute(1)
	for name, change := range map[string]func(*config.RateLimit){
		"unknown identity": func(c *config.RateLimit) { c.By = "claim" },
		"empty cookie":     func(c *config.RateLimit) { c.By = "cookie()" },
		"half a list":      func(c *config.RateLimit) { c.By = "client_ip+" },
		"no algorithm":     func(c *config.RateLimit) { c.Algorithm = "leaky" },
		"no precision":     func(c *config.RateLimit) { c.Precision = "vague" },
		"burst of windows": func(c *config.RateLimit) { c.Burst = 5 },
		"no zone":          func(c *config.RateLimit) { c.Zone = "Mars/Olympus" },
		"no calendar":      func(c *config.RateLimit) { c.Limits = []config.Limit{{Count: 1, Calendar: "year"}} },
		"bad tier":         func(c *config.RateLimit) { c.Tiers = []config.Tier{{Name: "t", Consumers: []string{"a"}}} },
		"no cost":          func(c *config.RateLimit) { c.Cost = "0" },
		"cost of nothing":  func(c *config.RateLimit) { c.Cost = "header()" },
		"empty header":     func(c *config.RateLimit) { c.By = "header()" },
		"unknown mode":     func(c *config.RateLimit) { c.OnStoreError = "maybe" },
		"no limits":        func(c *config.RateLimit) { c.Limits = nil },
		"a count of zero":  func(c *config.RateLimit) { c.Limits = []config.Limit{{Window: time.Second}} },
	} {
		cfg := good
		change(&cfg)
		if _, err := alone("orders", cfg, own(t), nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := alone("orders", good, nil, nil); err == nil {
		t.Error("no limiter: no error")
	}
}

func BenchmarkAllowed(b *testing.B) {
	mw, err := alone("orders", perMinute(1e9), own(b), nil)
	if err != nil {
		b.Fatal(err)
	}
	h := mw(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	ex := middleware.NewExchange(httptest.NewRecorder(), time.Now())
	ex.ClientIP = netip.MustParseAddr("192.0.2.1")
	r := httptest.NewRequest("GET", "/", nil)
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(ex, r)
	}
}
