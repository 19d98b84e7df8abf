package ratelimit_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/ratelimit"
)

// A request is under its route's, its upstream's and the gateway's limit, and
// is charged by all of them or by none.
func TestLimitsOfSeveralScopes(t *testing.T) {
	lim := own(t)
	hour := func(by string, count int) config.RateLimit {
		return config.RateLimit{By: by, Limits: []config.Limit{{Count: count, Window: time.Hour}}}
	}
	global := config.NamedLimit{Name: config.GlobalLimit, RateLimit: hour("all", 10)}
	global.Headers = "ietf"
	upstream := config.NamedLimit{Name: "@upstream/orders", RateLimit: hour("route", 5)}
	told := map[string]int{}
	guards := ratelimit.NewGuards(lim, ratelimit.Account{Decision: func(policy, decision string) { told[policy+" "+decision]++ }})
	build := func(route string, count int) middleware.Middleware {
		mw, err := guards.New(route, []config.NamedLimit{{Name: route, RateLimit: hour("client_ip", count)}, upstream, global})
		if err != nil {
			t.Fatal(err)
		}
		return mw
	}
	one, two := build("one", 3), build("two", 100)
	status := func(mw middleware.Middleware, ip string) int {
		resp, _ := visit(t, mw, visitor{ip: ip}, http.HandlerFunc(ok))
		return resp.StatusCode
	}
	for i, want := range []int{200, 200, 200, 429, 429, 429} {
		if got := status(one, "192.0.2.1"); got != want {
			t.Errorf("request %d of one client: %d, want %d", i, got, want)
		}
	}
	// What the client was denied for, the others have not paid for: route one
	// has two left at its upstream.
	for i, want := range []int{200, 200, 429} {
		if got := status(one, "192.0.2.2"); got != want {
			t.Errorf("request %d of another: %d, want %d", i, got, want)
		}
	}
	// The upstream counts by route, so the other one has its five, which is what
	// is left of the gateway's ten.
	for i := range 5 {
		if got := status(two, "192.0.2."+strconv.Itoa(i)); got != 200 {
			t.Errorf("request %d of route two: %d", i, got)
		}
	}
	resp, ex := visit(t, two, visitor{ip: "192.0.2.9"}, http.HandlerFunc(ok))
	if resp.StatusCode != 429 || ex.RateLimit != "limited" {
		t.Errorf("the eleventh: %d %s", resp.StatusCode, ex.RateLimit)
	}
	if told["one limited"] != 3 || told["@upstream/orders limited"] != 2 || told["one allowed"] != 5 || told["@global allowed"] != 10 {
		t.Errorf("told %v", told)
	}

	// A client is told of all of them, each by its name.
	mw := build("three", 7)
	lim2 := own(t)
	mw, err := ratelimit.NewGuards(lim2, ratelimit.Account{}).New("three", []config.NamedLimit{{Name: "three", RateLimit: hour("client_ip", 7)}, upstream, global})
	if err != nil {
		t.Fatal(err)
	}
	resp, _ = visit(t, mw, visitor{ip: "192.0.2.1"}, http.HandlerFunc(ok))
	if got, want := resp.Header.Get("RateLimit-Policy"), `"1h";q=7;w=3600, "upstream-1h";q=5;w=3600, "global-1h";q=10;w=3600`; got != want {
		t.Errorf("RateLimit-Policy %s, want %s", got, want)
	}
	if got := resp.Header.Get("RateLimit"); !strings.HasPrefix(got, `"1h";r=6;t=3`) || !strings.Contains(got, `, "upstream-1h";r=4;t=3`) || !strings.Contains(got, `, "global-1h";r=9;t=3`) {
		t.Errorf("RateLimit %s", got)
	}
	if got := resp.Header.Get("X-RateLimit-Limit"); got != "5" { // the tightest of those with aliases
		t.Errorf("X-RateLimit-Limit %s", got)
	}
}

// headers: ietf leaves the aliases out, also those that an instance sent.
func TestWithoutAliases(t *testing.T) {
	cfg := perMinute(5)
	cfg.Headers = "ietf"
	mw, err := alone("orders", cfg, own(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, _ := visit(t, mw, visitor{ip: "192.0.2.1"}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { foreign(w); ok(w, r) }))
	if resp.Header.Get("RateLimit") == "" || resp.Header.Get("RateLimit-Policy") == "" {
		t.Errorf("the IETF's fields are missing: %v", resp.Header)
	}
	for name := range resp.Header {
		if strings.HasPrefix(strings.ToLower(name), "x-ratelimit") {
			t.Errorf("carries %s", name)
		}
	}
}

func TestAddressesAreTakenTogetherByPrefix(t *testing.T) {
	for _, tt := range []struct {
		v4, v6 int
		a, b   string
		same   bool
	}{
		{0, 0, "192.0.2.1", "192.0.2.2", false},
		{24, 64, "192.0.2.1", "192.0.2.254", true},
		{24, 64, "192.0.2.1", "192.0.3.1", false},
		{24, 64, "192.0.2.1", "::ffff:192.0.2.9", true},
		{0, 0, "2001:db8:0:1::1", "2001:db8:0:1:ffff::1", true},
		{0, 0, "2001:db8:0:1::1", "2001:db8:0:2::1", false},
		{32, 56, "2001:db8:0:1::1", "2001:db8:0:ff::1", true},
		{32, 56, "2001:db8:0:1::1", "2001:db8:0:100::1", false},
		{32, 128, "2001:db8::1", "2001:db8::2", false},
	} {
		cfg := perMinute(1)
		cfg.IPv4Prefix, cfg.IPv6Prefix = tt.v4, tt.v6
		mw, err := alone("orders", cfg, own(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		visit(t, mw, visitor{ip: tt.a}, http.HandlerFunc(ok))
		resp, _ := visit(t, mw, visitor{ip: tt.b}, http.HandlerFunc(ok))
		if same := resp.StatusCode == 429; same != tt.same {
			t.Errorf("/%d and /%d: %s and %s are one: %v", tt.v4, tt.v6, tt.a, tt.b, same)
		}
	}
}

func TestByClaim(t *testing.T) {
	for _, missing := range []string{"client_ip", "deny"} {
		cfg := perMinute(1)
		cfg.By, cfg.Missing = "claim(org)", missing
		mw, err := alone("orders", cfg, own(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		send := func(ip, org string) int {
			rec := httptest.NewRecorder()
			ex := middleware.NewExchange(rec, time.Now())
			ex.ClientIP = netip.MustParseAddr(ip)
			if org != "" {
				ex.Claims = map[string][]string{"org": {org}}
			}
			mw(http.HandlerFunc(ok)).ServeHTTP(ex, httptest.NewRequest("GET", "/", nil))
			return rec.Code
		}
		without := map[string]int{"client_ip": 200, "deny": 400}[missing]
		for i, c := range []struct {
			ip, org string
			want    int
		}{{"192.0.2.1", "a", 200}, {"192.0.2.2", "a", 429}, {"192.0.2.1", "b", 200}, {"192.0.2.3", "", without}, {"192.0.2.4", "", without}} {
			if got := send(c.ip, c.org); got != c.want {
				t.Errorf("missing: %s, request %d: %d, want %d", missing, i, got, c.want)
			}
		}
	}
}

// A part that is missing is never a count that all share who lack it.
func TestMissingPartsOfSeveral(t *testing.T) {
	cfg := perMinute(1)
	cfg.By, cfg.Missing = "method+header(X-Team)", "deny"
	mw, err := alone("orders", cfg, own(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, ex := visit(t, mw, visitor{ip: "192.0.2.1"}, http.HandlerFunc(ok))
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 400 || !strings.Contains(string(body), "method+header(X-Team)") || ex.RateLimit != "limited" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// What an answer turns out to cost is charged after it, once.
func TestCostsThatTheAnswerTells(t *testing.T) {
	for name, tt := range map[string]struct {
		cost   string
		answer http.HandlerFunc
		left   []string // before each request's own cost is known
	}{
		"field": {"response_header(X-Cost)", func(w http.ResponseWriter, r *http.Request) { w.Header().Set("X-Cost", "30"); ok(w, r) }, []string{"99", "69", "39"}},
		"none":  {"response_header(X-Cost)", ok, []string{"99", "98", "97"}},
		"odd":   {"response_header(X-Cost)", func(w http.ResponseWriter, r *http.Request) { w.Header().Set("X-Cost", "-3"); ok(w, r) }, []string{"99", "98"}},
		"bytes": {"response_bytes(1KiB)", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 10_000)) }, []string{"99", "89", "79"}},
		"small": {"response_bytes(1KiB)", ok, []string{"99", "98"}},
		"abort": {"response_header(X-Cost)", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Cost", "30")
			ok(w, r)
			panic(http.ErrAbortHandler)
		}, []string{"99", "69"}},
		"debt": {"response_header(X-Cost)", func(w http.ResponseWriter, r *http.Request) { w.Header().Set("X-Cost", "150"); ok(w, r) }, []string{"99", "0"}},
	} {
		cfg := perMinute(100)
		cfg.Cost = tt.cost
		mw, err := alone("orders", cfg, own(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range tt.left {
			func() {
				rec := httptest.NewRecorder()
				ex := middleware.NewExchange(rec, time.Now())
				ex.ClientIP = netip.MustParseAddr("192.0.2.1")
				defer func() {
					_ = recover()
					if got := rec.Header().Get("X-RateLimit-Remaining"); got != want {
						t.Errorf("%s: request %d was told %s, want %s", name, i, got, want)
					}
				}()
				mw(tt.answer).ServeHTTP(ex, httptest.NewRequest("GET", "/", nil))
			}()
		}
	}
}

// Requests above the limit wait for their turn instead of being refused, and
// say so; who finds the queue full, or would wait too long, is refused.
func TestOverDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		told := map[string]int{}
		var waits []time.Duration
		limit := config.RateLimit{By: "client_ip", Limits: []config.Limit{{Count: 2, Window: time.Second}}, Algorithm: "token_bucket",
			Over: "delay", MaxDelay: 10 * time.Second, MaxQueue: 5}
		lim := own(t)
		mw, err := ratelimit.NewGuards(lim, ratelimit.Account{
			Decision: func(_, decision string) { mu.Lock(); told[decision]++; mu.Unlock() },
			Delay:    func(d time.Duration) { mu.Lock(); waits = append(waits, d); mu.Unlock() },
		}).New("orders", []config.NamedLimit{{Name: "orders", RateLimit: limit}})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				<-time.After(time.Duration(i) * time.Millisecond)
				resp, ex := visit(t, mw, visitor{ip: "192.0.2.1"}, http.HandlerFunc(ok))
				switch {
				case i < 2 && (resp.StatusCode != 200 || ex.Delayed != 0 || ex.RateLimit != "allowed"),
					i >= 2 && i < 7 && (resp.StatusCode != 200 || ex.Delayed < time.Duration(i-1)*490*time.Millisecond || ex.RateLimit != "delayed"),
					i >= 7 && (resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "1" || ex.RateLimit != "queue_full"):
					t.Errorf("request %d: %d after %v, waited %v, %s, retry after %q", i, resp.StatusCode, time.Since(began), ex.Delayed, ex.RateLimit, resp.Header.Get("Retry-After"))
				}
			})
		}
		wg.Wait()
		if fmt.Sprint(told) != "map[allowed:2 delayed:5 queue_full:3]" || len(waits) != 5 {
			t.Errorf("told %v and %v", told, waits)
		}
		// A client that leaves is nobody's refusal.
		<-time.After(10 * time.Second)
		for range 2 {
			visit(t, mw, visitor{ip: "192.0.2.1"}, http.HandlerFunc(ok))
		}
		// Who asks beforehand is told of the wait.
		out, err := ratelimit.Peek(t.Context(), "orders", []config.NamedLimit{{Name: "orders", RateLimit: limit}}, lim,
			&http.Request{RemoteAddr: "192.0.2.1:1"}, nil)
		if err != nil || out.Decision != "delayed" || out.Refusal != nil || out.Delay.Round(time.Millisecond) != 500*time.Millisecond {
			t.Errorf("beforehand: %+v, %v", out, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		rec := httptest.NewRecorder()
		ex := middleware.NewExchange(rec, time.Now())
		ex.ClientIP = netip.MustParseAddr("192.0.2.1")
		mw(http.HandlerFunc(ok)).ServeHTTP(ex, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		if ex.Status != 499 || ex.RateLimit != "" {
			t.Errorf("a client that left: %d %s", ex.Status, ex.RateLimit)
		}
	})
}

// A quota of the calendar that is used up has a reason of its own.
func TestQuotasHaveAReasonOfTheirOwn(t *testing.T) {
	cfg := config.RateLimit{By: "client_ip", Limits: []config.Limit{{Count: 5, Window: time.Minute}, {Count: 1, Calendar: "month"}}}
	mw, err := alone("orders", cfg, own(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	visit(t, mw, visitor{ip: "192.0.2.1"}, http.HandlerFunc(ok))
	resp, _ := visit(t, mw, visitor{ip: "192.0.2.1"}, http.HandlerFunc(ok))
	if got := resp.Header.Get("X-Proconsul-Reason"); resp.StatusCode != 429 || got != "quota_exceeded" || resp.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s", resp.StatusCode, got)
	}
}

// A client that waits exactly as long as Retry-After says passes, by every
// algorithm and also where it owes for what it had before; one that comes a
// second earlier does not.
func TestRetryAfterIsRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		count := func(n int, window time.Duration) []config.Limit {
			return []config.Limit{{Count: n, Window: window}}
		}
		for name, cfg := range map[string]config.RateLimit{
			"sliding":  {Limits: count(3, 7*time.Second)},
			"fixed":    {Limits: count(3, 7*time.Second), Algorithm: "fixed_window"},
			"bucket":   {Limits: count(3, 30*time.Second), Algorithm: "token_bucket"},
			"burst":    {Limits: count(3, 30*time.Second), Algorithm: "token_bucket", Burst: 2},
			"day":      {Limits: []config.Limit{{Count: 3, Calendar: "day"}}, Zone: "Europe/Berlin"},
			"month":    {Limits: []config.Limit{{Count: 3, Calendar: "month"}}},
			"several":  {Limits: []config.Limit{{Count: 2, Window: 3 * time.Second}, {Count: 5, Window: time.Minute}, {Count: 7, Calendar: "day"}}},
			"costly":   {Limits: count(10, 7*time.Second), Cost: "4"},
			"in debt":  {Limits: count(10, 7*time.Second), Cost: "response_header(X-Cost)"},
			"throttle": {Limits: count(3, 30*time.Second), Algorithm: "token_bucket", Over: "delay", MaxDelay: time.Second, MaxQueue: 5},
		} {
			cfg.By = "client_ip"
			mw, err := alone(name, cfg, own(t), nil)
			if err != nil {
				t.Fatal(err)
			}
			get := func() (int, string) {
				resp, _ := visit(t, mw, visitor{ip: "192.0.2.1"}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("X-Cost", "7")
					ok(w, r)
				}))
				return resp.StatusCode, resp.Header.Get("Retry-After")
			}
			for round := range 4 {
				status, retry := get()
				for ; status == 200; status, retry = get() {
					<-time.After(300 * time.Millisecond)
				}
				seconds, err := strconv.Atoi(retry)
				if err != nil || seconds < 1 {
					t.Fatalf("%s, round %d: %d with Retry-After %q", name, round, status, retry)
				}
				<-time.After(time.Duration(seconds-1) * time.Second)
				if early, _ := get(); early == 200 && seconds > 1 && cfg.Over != "delay" {
					t.Errorf("%s, round %d: told to wait %ds, and passed a second before", name, round, seconds)
				} else if early == 200 {
					continue
				}
				<-time.After(time.Second)
				if status, _ := get(); status != 200 {
					t.Errorf("%s, round %d: %d after the %ds that it was told", name, round, status, seconds)
				}
			}
		}
	})
}
