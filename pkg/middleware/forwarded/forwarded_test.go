package forwarded_test

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/forwarded"
)

func apply(trusted []string, peer string, set func(*http.Request)) (*middleware.Exchange, *http.Request) {
	var prefixes []netip.Prefix
	for _, p := range trusted {
		prefixes = append(prefixes, netip.MustParsePrefix(p))
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.Host, r.RemoteAddr = "Shop.Example.com.:8080", peer
	set(r)
	x := middleware.NewExchange(httptest.NewRecorder(), time.Now())
	forwarded.New(prefixes).Apply(x, r)
	return x, r
}

func TestClientAddress(t *testing.T) {
	lan := []string{"10.0.0.0/8", "fd00::/8", "192.168.1.1/32"}
	tests := []struct {
		name    string
		trusted []string
		peer    string
		xff     []string
		want    string
	}{
		{"direct", lan, "203.0.113.9:1", nil, "203.0.113.9"},
		{"spoofed by a stranger", lan, "203.0.113.9:1", []string{"1.1.1.1"}, "203.0.113.9"},
		{"nobody is trusted", nil, "10.0.0.1:1", []string{"1.1.1.1"}, "10.0.0.1"},
		{"one proxy", lan, "10.0.0.1:1", []string{"203.0.113.9"}, "203.0.113.9"},
		{"spoofed through a proxy: the right end counts", lan, "10.0.0.1:1", []string{"1.1.1.1, 203.0.113.9"}, "203.0.113.9"},
		{"a chain of proxies", lan, "10.0.0.1:1", []string{"1.1.1.1, 203.0.113.9, 10.9.9.9, 192.168.1.1"}, "203.0.113.9"},
		{"over several lines", lan, "10.0.0.1:1", []string{"1.1.1.1", "203.0.113.9, 10.9.9.9", "10.8.8.8"}, "203.0.113.9"},
		{"only proxies", lan, "10.0.0.1:1", []string{"10.3.3.3, 10.2.2.2"}, "10.3.3.3"},
		{"malformed at once", lan, "10.0.0.1:1", []string{"203.0.113.9, garbage"}, "10.0.0.1"},
		{"malformed further left", lan, "10.0.0.1:1", []string{"203.0.113.9, unknown, 10.2.2.2"}, "10.2.2.2"},
		{"empty elements are malformed", lan, "10.0.0.1:1", []string{"203.0.113.9,,10.2.2.2"}, "10.2.2.2"},
		{"empty field", lan, "10.0.0.1:1", []string{""}, "10.0.0.1"},
		{"with a port", lan, "10.0.0.1:1", []string{"203.0.113.9:5000"}, "203.0.113.9"},
		{"IPv6", lan, "[fd00::1]:1", []string{"2001:db8::1"}, "2001:db8::1"},
		{"IPv6 in brackets, with a port", lan, "[fd00::1%eth0]:1", []string{"[2001:db8::1]:99, [fd00::2]"}, "2001:db8::1"},
		{"IPv4 in IPv6 is IPv4", lan, "[::ffff:10.0.0.1]:1", []string{"::ffff:203.0.113.9, ::ffff:10.0.0.2"}, "203.0.113.9"},
		{"a trusted network written as IPv4 in IPv6", []string{"::ffff:10.0.0.0/104"}, "10.0.0.1:1", []string{"203.0.113.9"}, "203.0.113.9"},
		{"zones are dropped", lan, "10.0.0.1:1", []string{"fe80::1%eth0"}, "fe80::1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x, _ := apply(tt.trusted, tt.peer, func(r *http.Request) {
				for _, v := range tt.xff {
					r.Header.Add("X-Forwarded-For", v)
				}
			})
			if got := x.ClientIP.String(); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestSchemeAndHost(t *testing.T) {
	tests := []struct {
		name         string
		peer         string
		xff          string
		proto, host  string
		scheme, want string
	}{
		{"direct", "10.0.0.1:1", "", "", "", "http", "shop.example.com"},
		{"a stranger's claims", "1.1.1.1:1", "", "https", "evil.test", "http", "shop.example.com"},
		{"a proxy's", "10.0.0.1:1", "2.2.2.2", "HTTPS", "Public.example.com:443", "https", "public.example.com"},
		{"one element per hop: the client's", "10.0.0.1:1", "2.2.2.2, 10.0.0.2", "https, http", "a.test, b.test", "https", "a.test"},
		{"otherwise what the peer wrote", "10.0.0.1:1", "2.2.2.2", "https, http", "evil.test, b.test", "http", "b.test"},
		{"nonsense", "10.0.0.1:1", "2.2.2.2", "gopher", "a/b", "http", "shop.example.com"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x, _ := apply([]string{"10.0.0.0/8"}, tt.peer, func(r *http.Request) {
				for name, v := range map[string]string{"X-Forwarded-For": tt.xff, "X-Forwarded-Proto": tt.proto, "X-Forwarded-Host": tt.host} {
					if v != "" {
						r.Header.Set(name, v)
					}
				}
			})
			if x.Scheme != tt.scheme || x.Host != tt.want {
				t.Errorf("got %s %s, want %s %s", x.Scheme, x.Host, tt.scheme, tt.want)
			}
		})
	}
}

func TestClaimsAreTakenFromStrangersOnly(t *testing.T) {
	claims := []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix", "Forwarded", "X-Real-Ip"}
	for _, trusted := range []bool{false, true} {
		peer := "1.1.1.1:1"
		if trusted {
			peer = "10.0.0.1:1"
		}
		x, r := apply([]string{"10.0.0.0/8"}, peer, func(r *http.Request) {
			for _, name := range claims {
				r.Header.Set(name, "x")
			}
			r.Header.Set("Connection", "X-Hop")
			r.Header.Set("X-Hop", "1")
		})
		for _, name := range claims {
			if got := r.Header.Get(name) != ""; got != trusted {
				t.Errorf("trusted %v: %s is there: %v", trusted, name, got)
			}
		}
		if r.Header.Get("X-Hop") != "" || r.Header.Get("Connection") != "" {
			t.Errorf("what Connection names went on: %v", r.Header)
		}
		if !x.Sanitized || x.Trusted != trusted {
			t.Errorf("got sanitized %v trusted %v", x.Sanitized, x.Trusted)
		}
	}
}

func TestCanonicalHost(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "A.b": "a.b", "a.b:80": "a.b", "a.b.": "a.b", "A.B.:443": "a.b", "[::1]:80": "::1", "[::1]": "::1", "[::1": "", "[::1]x": "",
		"1.2.3.4:1": "1.2.3.4", "a b": "", "a/b": "", "user@a": "", "a\x00": "", "::1": "::1",
	} {
		if got := forwarded.CanonicalHost(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// Whatever is sent, the client is the peer, or an address that stands in the
// field and right of which there are only trusted ones.
func FuzzApply(f *testing.F) {
	f.Add("10.0.0.1:1", "1.1.1.1, 2.2.2.2, 10.0.0.3", "https,http", "a, b")
	f.Add("9.9.9.9:1", "[::1]:80,::ffff:1.2.3.4", "", "[x")
	f.Add("", ",", ",", ",")
	lan := netip.MustParsePrefix("10.0.0.0/8")
	f.Fuzz(func(t *testing.T, peer, xff, proto, host string) {
		x, r := apply([]string{lan.String()}, peer, func(r *http.Request) {
			r.Header["X-Forwarded-For"] = strings.Split(xff, "\n")
			r.Header["X-Forwarded-Proto"] = []string{proto}
			r.Header["X-Forwarded-Host"] = []string{host}
		})
		if x.Scheme != "http" && x.Scheme != "https" {
			t.Errorf("scheme %q", x.Scheme)
		}
		if strings.ContainsAny(x.Host, " \r\n/") || x.Host != strings.ToLower(x.Host) {
			t.Errorf("host %q", x.Host)
		}
		ap, err := netip.ParseAddrPort(peer)
		if err != nil {
			if x.ClientIP.IsValid() || x.Trusted {
				t.Errorf("no peer, but client %v", x.ClientIP)
			}
			return
		}
		direct := ap.Addr().Unmap().WithZone("")
		if !lan.Contains(direct) {
			if x.ClientIP != direct || x.Trusted || len(r.Header["X-Forwarded-For"]) > 0 {
				t.Errorf("stranger %v became %v", direct, x.ClientIP)
			}
			return
		}
		if x.ClientIP.Is4In6() || x.ClientIP.Zone() != "" {
			t.Errorf("client %v is not canonical", x.ClientIP)
		}
	})
}
