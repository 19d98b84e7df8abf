package ip_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/ip"
)

func nets(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// ask returns the status of a request from an address; "" is none that is
// known.
func ask(cfg config.IP, method, from string) (*httptest.ResponseRecorder, *middleware.Exchange) {
	w := httptest.NewRecorder()
	x := middleware.NewExchange(w, time.Now())
	if from != "" {
		x.ClientIP = netip.MustParseAddr(from)
	}
	ip.New(cfg)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })).ServeHTTP(x, httptest.NewRequest(method, "/", nil))
	return w, x
}

func TestFromWhere(t *testing.T) {
	office := config.IP{Allow: nets("10.0.0.0/8", "2001:db8::/32", "192.0.2.7/32"), Deny: nets("10.9.0.0/16", "10.0.0.5/32")}
	writers := config.IP{Deny: nets("203.0.113.0/24"), ByMethod: []config.MethodIP{
		{Methods: []string{"POST", "DELETE"}, Allow: nets("10.0.0.0/8")},
		{Methods: []string{"GET"}, Deny: nets("198.51.100.0/24")},
	}}
	mapped := config.IP{Allow: nets("::ffff:10.0.0.0/104")}
	tests := []struct {
		name, method, from string
		cfg                config.IP
		passes             bool
	}{
		{"allowed", "GET", "10.1.2.3", office, true},
		{"allowed IPv6", "GET", "2001:db8::1", office, true},
		{"one address", "GET", "192.0.2.7", office, true},
		{"its neighbour", "GET", "192.0.2.8", office, false},
		{"allowed and denied", "GET", "10.9.1.1", office, false},
		{"one address denied", "GET", "10.0.0.5", office, false},
		{"neither", "GET", "8.8.8.8", office, false},
		{"IPv6 neither", "GET", "2001:db9::1", office, false},
		{"unknown", "GET", "", office, false},
		{"deny only: others", "GET", "8.8.8.8", config.IP{Deny: nets("10.0.0.0/8")}, true},
		{"deny only: unknown", "GET", "", config.IP{Deny: nets("10.0.0.0/8")}, false},
		{"all of IPv4 is not IPv6", "GET", "2001:db8::1", config.IP{Allow: nets("0.0.0.0/0")}, false},
		{"written as mapped", "GET", "10.1.2.3", mapped, true},
		{"a method's list", "POST", "10.1.2.3", writers, true},
		{"a method's list, outside", "POST", "8.8.8.8", writers, false},
		{"another method", "PUT", "8.8.8.8", writers, true},
		{"a method in another case", "delete", "8.8.8.8", writers, false},
		{"HEAD is GET", "HEAD", "198.51.100.1", writers, false},
		{"both count", "POST", "203.0.113.1", writers, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, x := ask(tt.cfg, tt.method, tt.from)
			if tt.passes {
				if w.Code != 204 {
					t.Fatalf("got %d %s", w.Code, w.Body)
				}
				return
			}
			if w.Code != 403 || w.Header().Get("X-Proconsul-Reason") != "forbidden" || w.Header().Get("WWW-Authenticate") != "" {
				t.Fatalf("got %d %v", w.Code, w.Header())
			}
			if strings.Contains(w.Body.String(), "10.") || tt.from != "" && (x.Err == nil || !strings.Contains(x.Err.Error(), tt.from)) {
				t.Errorf("the client is told %s, the log %v", w.Body, x.Err)
			}
			from := netip.Addr{}
			if tt.from != "" {
				from = netip.MustParseAddr(tt.from)
			}
			if ip.Peek(tt.cfg, tt.method, from) == nil {
				t.Error("an explanation says that it passes")
			}
		})
	}
}

// However many networks there are, an address is in the set exactly where it
// is in one of them.
func TestListsAreTheirNetworks(t *testing.T) {
	prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
		// Few bits, so that addresses meet networks.
		b := rapid.SliceOfN(rapid.ByteRange(0, 3), 4, 4).Draw(t, "address")
		a := netip.AddrFrom4([4]byte(b))
		bits := rapid.IntRange(0, 32).Draw(t, "bits")
		if rapid.Bool().Draw(t, "six") {
			a, bits = netip.AddrFrom16([16]byte{b[0], b[1], b[2], b[3]}), rapid.IntRange(0, 128).Draw(t, "bits6")
		}
		return netip.PrefixFrom(a, bits).Masked()
	})
	rapid.Check(t, func(t *rapid.T) {
		cfg := config.IP{Allow: rapid.SliceOfN(prefix, 1, 20).Draw(t, "allow"), Deny: rapid.SliceOfN(prefix, 0, 5).Draw(t, "deny")}
		a := prefix.Draw(t, "from").Addr()
		in := func(list []netip.Prefix) bool {
			for _, p := range list {
				if p.Contains(a) {
					return true
				}
			}
			return false
		}
		if got, want := ip.Peek(cfg, "GET", a) == nil, in(cfg.Allow) && !in(cfg.Deny); got != want {
			t.Fatalf("%s passes: %v, want %v", a, got, want)
		}
	})
}

// A thousand networks cost no more than a microsecond and no allocation.
func BenchmarkLists(b *testing.B) {
	var cfg config.IP
	for i := range 1000 {
		cfg.Allow = append(cfg.Allow, netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/%d", i/250, i%250, 24)))
	}
	cfg.Allow = append(cfg.Allow, nets("192.0.2.0/24", "2001:db8::/32", "172.16.0.0/12")...)
	cfg.Deny = nets("10.0.0.5/32")
	x := middleware.NewExchange(httptest.NewRecorder(), time.Now())
	x.ClientIP = netip.MustParseAddr("10.3.7.9")
	passed := 0
	h := ip.New(cfg)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed++ }))
	r := httptest.NewRequest("GET", "/", nil)
	if n := testing.AllocsPerRun(100, func() { h.ServeHTTP(x, r) }); n != 0 {
		b.Errorf("%v allocations for a decision", n)
	}
	passed = 0
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(x, r)
		n++
	}
	if passed != n {
		b.Fatalf("%d of %d passed", passed, n)
	}
}

func TestDecisionsDoNotAllocate(t *testing.T) {
	x := middleware.NewExchange(httptest.NewRecorder(), time.Now())
	x.ClientIP = netip.MustParseAddr("10.3.7.9")
	h := ip.New(config.IP{Allow: nets("10.0.0.0/8", "2001:db8::/32"), Deny: nets("10.9.0.0/16"), ByMethod: []config.MethodIP{{Methods: []string{"GET"}, Deny: nets("192.0.2.0/24")}}})(
		http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	r := httptest.NewRequest("GET", "/", nil)
	if n := testing.AllocsPerRun(100, func() { h.ServeHTTP(x, r) }); n != 0 {
		t.Errorf("%v allocations for a decision", n)
	}
}
