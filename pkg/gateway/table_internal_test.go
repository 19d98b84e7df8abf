package gateway

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
)

func compileTable(t testing.TB, matches ...config.Match) *Table {
	t.Helper()
	routes := make([]*Route, len(matches))
	for i, m := range matches {
		p, err := parsePattern(m.Path)
		if err != nil {
			t.Fatal(err)
		}
		routes[i] = &Route{compiled: &compiled{Config: config.Route{Name: m.Host + m.Path, Match: m}, pattern: p}}
	}
	table, err := newTable(routes)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// find matches as Handler does: the path in its canonical spelling.
func find(t testing.TB, table *Table, method, target string, header ...string) (name string, allow []string) {
	t.Helper()
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	canonical, err := canonicalPath(r.URL.EscapedPath(), false)
	if err != nil {
		t.Fatal(err)
	}
	setPath(r.URL, canonical)
	if got := r.URL.EscapedPath(); got != canonical {
		t.Fatalf("the URL spells %q as %q", canonical, got)
	}
	rt, allow := table.match(r, r.Host)
	if rt == nil {
		return "", allow
	}
	return rt.Config.Name, allow
}

func TestMostSpecificRouteWins(t *testing.T) {
	table := compileTable(t,
		config.Match{Path: "/**"},
		config.Match{Path: "/api/**"},
		config.Match{Path: "/api/orders/**"},
		config.Match{Path: "/api/orders/{id}"},
		config.Match{Path: "/api/orders/latest"},
		config.Match{Path: "/api/{thing}/{id}/lines/**"},
		config.Match{Path: "/{thing}/about"},
		config.Match{Path: "/café"},
		config.Match{Path: "/paren(s)/**"},
		config.Match{Host: "shop.example.com", Path: "/api/**"},
		config.Match{Host: "*.example.com", Path: "/**"},
		config.Match{Host: "*.eu.example.com", Path: "/**"},
	)
	for _, tc := range []struct{ target, want string }{
		{"http://h/", "/**"},
		{"http://h/other", "/**"},
		{"http://h/apix", "/**"},
		{"http://h/api", "/api/**"},
		{"http://h/api/", "/api/**"},
		{"http://h/api/orders", "/api/orders/**"},
		{"http://h/api/ordersx", "/api/**"},
		{"http://h/api/orders/", "/api/orders/**"},
		{"http://h/api/orders/42", "/api/orders/{id}"},
		{"http://h/api/orders/42/x", "/api/orders/**"},
		{"http://h/api/orders/latest", "/api/orders/latest"},
		{"http://h/api/carts/1/lines", "/api/{thing}/{id}/lines/**"},
		{"http://h/api/carts/1/lines/2", "/api/{thing}/{id}/lines/**"},
		{"http://h/x/about", "/{thing}/about"},
		{"http://h/caf%c3%a9", "/café"},
		{"http://h/paren(s)/1", "/paren(s)/**"},
		{"http://h/paren%28s%29/1", "/**"}, // an escaped delimiter is another path (RFC 3986 2.2)
		{"http://h/x/../api/orders/%6c%61test", "/api/orders/latest"},
		{"http://h/api;v=1/orders/latest", "/api/orders/latest"},
		{"http://shop.example.com/api/orders/42", "shop.example.com/api/**"},
		{"http://shop.example.com/x", "*.example.com/**"},
		{"http://a.eu.example.com/x", "*.eu.example.com/**"},
		{"http://example.com/x", "/**"},
	} {
		if got, _ := find(t, table, "GET", tc.target); got != tc.want {
			t.Errorf("%s matched %q, want %q", tc.target, got, tc.want)
		}
	}
}

func TestMethodsHeadersAndQuery(t *testing.T) {
	table := compileTable(t,
		config.Match{Path: "/a/**", Methods: []string{"GET"}},
		config.Match{Path: "/a/b", Methods: []string{"POST", "DELETE"}},
		config.Match{Path: "/h/**", Headers: []config.MatchField{{Name: "X-Beta", Value: "1"}, {Name: "accept", Regex: `text/.*`}}},
		config.Match{Path: "/q/**", Query: []config.MatchField{{Name: "v", Regex: "[0-9]+"}, {Name: "on"}}},
	)
	for _, tc := range []struct {
		method, target string
		header         []string
		want           string
		allow          []string
	}{
		{method: "GET", target: "http://h/a/b", want: "/a/**"},
		{method: "HEAD", target: "http://h/a/b", want: "/a/**"},
		{method: "POST", target: "http://h/a/b", want: "/a/b"},
		{method: "PUT", target: "http://h/a/b", allow: []string{"DELETE", "GET", "HEAD", "POST"}},
		{method: "PUT", target: "http://h/a/c", allow: []string{"GET", "HEAD"}},
		{method: "PUT", target: "http://h/zzz"},
		{method: "GET", target: "http://h/h/1", header: []string{"x-beta", "1", "Accept", "text/html"}, want: "/h/**"},
		{method: "GET", target: "http://h/h/1", header: []string{"x-beta", "1", "Accept", "a/text/html"}},
		{method: "GET", target: "http://h/h/1", header: []string{"x-beta", "2", "Accept", "text/html"}},
		{method: "GET", target: "http://h/q/?v=12&on", want: "/q/**"},
		{method: "GET", target: "http://h/q/?v=x&on"},
		{method: "GET", target: "http://h/q/?v=12"},
	} {
		got, allow := find(t, table, tc.method, tc.target, tc.header...)
		if got != tc.want || !slices.Equal(allow, tc.allow) {
			t.Errorf("%s %s %v matched %q, allow %v; want %q, allow %v", tc.method, tc.target, tc.header, got, allow, tc.want, tc.allow)
		}
	}
}

func TestMoreConditionsThenPriorityBreakTies(t *testing.T) {
	table := compileTable(t,
		config.Match{Path: "/a/**"},
		config.Match{Path: "/a/**", Headers: []config.MatchField{{Name: "X-Beta"}}},
	)
	table.Routes[0].Config.Name = "first"
	if got, _ := find(t, table, "GET", "http://h/a/1", "X-Beta", "1"); got != "first" || len(table.Routes[0].Config.Match.Headers) != 1 {
		t.Errorf("the route with a header condition was not tried first")
	}
	p, _ := parsePattern("/a/**")
	low := &Route{compiled: &compiled{Config: config.Route{Name: "low", Match: config.Match{Path: "/a/**"}}, pattern: p}}
	high := &Route{compiled: &compiled{Config: config.Route{Name: "high", Match: config.Match{Path: "/a/**"}, Priority: 1}, pattern: p}}
	table, err := newTable([]*Route{low, high})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := find(t, table, "GET", "http://h/a"); got != "high" {
		t.Errorf("matched %q, want the higher priority", got)
	}
}

func TestBadPatterns(t *testing.T) {
	for _, bad := range []string{"a", "/a{x}", "/{}", "/{a-b}", "/a/**/b", "/a//b", "/a/*", "/..", "/a/./b", "/a;b", "/a\x00"} {
		if p, err := parsePattern(bad); err == nil {
			t.Errorf("parsePattern(%q) = %+v, want an error", bad, p)
		}
	}
}

// The buckets must find what one flat ordered list finds.
func TestBucketsAgreeWithAFlatList(t *testing.T) {
	seg := rapid.SampledFrom([]string{"a", "b", "c", "{x}", "{y}"})
	path := rapid.Custom(func(t *rapid.T) string {
		p := ""
		for range rapid.IntRange(0, 3).Draw(t, "segments") {
			p += "/" + seg.Draw(t, "segment")
		}
		switch end := rapid.SampledFrom([]string{"", "/", "/**", "/**"}).Draw(t, "end"); {
		case p == "" && end == "":
			return "/**"
		default:
			return p + end
		}
	})
	host := rapid.SampledFrom([]string{"", "h.test", "*.test", "*.h.test"})
	rapid.Check(t, func(t *rapid.T) {
		var routes []*Route
		seen := map[string]bool{}
		for range rapid.IntRange(1, 24).Draw(t, "routes") {
			m := config.Match{Host: host.Draw(t, "host"), Path: path.Draw(t, "path")}
			if rapid.IntRange(0, 3).Draw(t, "restricted") == 0 {
				m.Methods = []string{"POST"}
			}
			name := fmt.Sprint(m.Host, m.Path, m.Methods)
			if seen[name] {
				continue
			}
			seen[name] = true
			p, err := parsePattern(m.Path)
			if err != nil {
				t.Fatal(err)
			}
			routes = append(routes, &Route{compiled: &compiled{Config: config.Route{Name: name, Match: m}, pattern: p}})
		}
		table, err := newTable(routes)
		if err != nil {
			t.Fatal(err)
		}
		target := ""
		for range rapid.IntRange(0, 4).Draw(t, "depth") {
			target += "/" + rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "part")
		}
		if target == "" || rapid.Bool().Draw(t, "slash") {
			target += "/"
		}
		r := httptest.NewRequest("GET", "http://"+rapid.SampledFrom([]string{"h.test", "x.test", "x.h.test", "other"}).Draw(t, "to")+target, nil)

		var want *Route
		for _, rt := range table.Routes {
			flat, err := newTable([]*Route{rt})
			if err != nil {
				t.Fatal(err)
			}
			if want, _ = flat.match(r, r.Host); want != nil {
				break
			}
		}
		if got, _ := table.match(r, r.Host); got != want {
			t.Fatalf("%s: the table found %v, a flat list %v", r.URL, got, want)
		}
	})
}

// Among so many routes that segments decide, an exact path is still exact.
func TestAnExactPathAmongManyIsExact(t *testing.T) {
	var list []config.Match
	for i := range 2 * splitAbove {
		list = append(list, config.Match{Path: fmt.Sprintf("/exact%d", i)}, config.Match{Path: fmt.Sprintf("/open%d/**", i)})
	}
	table := compileTable(t, list...)
	for target, want := range map[string]string{
		"/exact1": "/exact1", "/exact1/": "", "/exact1/a": "", "/exact": "",
		"/open1": "/open1/**", "/open1/": "/open1/**", "/open1/a/b": "/open1/**", "/open": "", "/": "",
	} {
		got := ""
		if rt, _ := table.match(httptest.NewRequest("GET", "http://h"+target, nil), "h"); rt != nil {
			got = rt.Config.Match.Path
		}
		if got != want {
			t.Errorf("%s belongs to %q, want %q", target, got, want)
		}
	}
}

// manyRoutes is a table of n routes and requests that each match another, told
// apart by the first segment or by a later one.
func manyRoutes(t testing.TB, n int, path string) (*Table, []*http.Request) {
	var list []config.Match
	for i := range n {
		list = append(list, config.Match{Path: fmt.Sprintf(path, i)})
	}
	requests := make([]*http.Request, 1024)
	for i := range requests {
		target := strings.NewReplacer("{id}", "42", "**", "items/7").Replace(fmt.Sprintf(path, rand.IntN(n)))
		requests[i] = httptest.NewRequest("GET", "http://h"+target, nil)
	}
	return compileTable(t, list...), requests
}

// Looking a route up allocates nothing, however many there are and wherever
// their paths differ.
func TestLookupAllocatesNothing(t *testing.T) {
	if !middleware.Reuse {
		t.Log("the race detector makes pools forget")
		return
	}
	for _, path := range []string{"/svc%d/**", "/svc%d/{id}", "/api/v1/svc%d/{id}", "/{id}/svc%d/**"} {
		table, requests := manyRoutes(t, 1000, path)
		i := 0
		if got := testing.AllocsPerRun(1000, func() {
			r := requests[i&1023]
			i++
			if rt, _ := table.match(r, r.Host); rt == nil {
				t.Fatalf("%s is not found", r.URL)
			}
		}); got != 0 {
			t.Errorf("%s: a lookup makes %v allocations, want none", path, got)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	for _, path := range []string{"/svc%d/**", "/svc%d/{id}", "/api/v1/svc%d/{id}"} {
		for _, n := range []int{1, 100, 1000} {
			b.Run(fmt.Sprintf("%s/routes=%d", strings.ReplaceAll(path[1:], "/", "_"), n), func(b *testing.B) {
				table, requests := manyRoutes(b, n, path)
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					r := requests[i&1023]
					i++
					if rt, _ := table.match(r, r.Host); rt == nil {
						b.Fatal("no match")
					}
				}
			})
		}
	}
}

// What a request reads of a route is in one line of memory.
func TestARouteIsInOneLine(t *testing.T) {
	if size := unsafe.Sizeof(Route{}); size > 64 {
		t.Errorf("a route is %d bytes", size)
	}
}
