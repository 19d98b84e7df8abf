package middleware_test

import (
	"maps"
	"net/http"
	"slices"
	"testing"

	"github.com/proconsul/proconsul/pkg/middleware"
)

func TestStripOverrides(t *testing.T) {
	h := http.Header{"X-Method": {"1"}, "X-Http-Methods": {"1"}, "X-Http": {"1"}, "Method": {"1"}}
	want := maps.Clone(h)
	for _, name := range []string{"X-Http-Method-Override", "X-HTTP-Method-Override", "X-Http-Method", "X-Method-Override",
		"X_http_method_override", "X_HTTP_METHOD", "X-Http_method-Override", "x_method-override"} {
		h[name] = []string{"DELETE"}
	}
	if middleware.StripOverrides(h); !maps.EqualFunc(h, want, slices.Equal) {
		t.Errorf("got %v", h)
	}
}

func TestStripRequest(t *testing.T) {
	tests := []struct {
		name    string
		in      http.Header
		upgrade string
		want    http.Header
	}{
		{"nothing to do", http.Header{"A": {"1"}}, "", http.Header{"A": {"1"}}},
		{"the fixed ones", http.Header{"Keep-Alive": {"1"}, "Proxy-Connection": {"1"}, "Proxy-Authorization": {"1"}, "Proxy-Authenticate": {"1"},
			"Transfer-Encoding": {"chunked"}, "Trailer": {"T"}, "Te": {"gzip"}, "Upgrade": {"h2c"}, "Http2-Settings": {"A"}, "Authorization": {"stays"}},
			"", http.Header{"Authorization": {"stays"}}},
		{"named ones, over lines, in any case", http.Header{"Connection": {"close, x-a", "X-B ,, X-C;"}, "X-A": {"1"}, "X-B": {"1"}, "X-D": {"1"}}, "", http.Header{"X-D": {"1"}}},
		{"not the gateway's", http.Header{"Connection": {"X-Forwarded-For, Via, X-Request-Id, Forwarded"}, "X-Forwarded-For": {"1"}, "Via": {"1"}, "X-Request-Id": {"1"}, "Forwarded": {"1"}},
			"", http.Header{"X-Forwarded-For": {"1"}, "Via": {"1"}, "X-Request-Id": {"1"}, "Forwarded": {"1"}}},
		{"trailers", http.Header{"Te": {"deflate", "Trailers;q=0.5"}, "Connection": {"TE"}}, "", http.Header{"Te": {"trailers"}}},
		{"upgrade", http.Header{"Connection": {"keep-alive, UPGRADE"}, "Upgrade": {"websocket"}}, "websocket", http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}},
		{"upgrade that Connection does not name", http.Header{"Upgrade": {"websocket"}}, "", http.Header{}},
		{"upgrade to what cannot be written", http.Header{"Connection": {"Upgrade"}, "Upgrade": {"web\xffsocket"}}, "", http.Header{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for range 2 { // a second call changes nothing
				if got := middleware.StripRequest(tt.in); got != tt.upgrade {
					t.Errorf("got upgrade %q, want %q", got, tt.upgrade)
				}
				if !maps.EqualFunc(tt.in, tt.want, slices.Equal) {
					t.Errorf("got %v, want %v", tt.in, tt.want)
				}
			}
		})
	}
}

func TestStripResponse(t *testing.T) {
	h := http.Header{"Connection": {"X-A, upgrade"}, "Upgrade": {"h2c"}, "X-A": {"1"}, "Te": {"trailers"}, "Server": {"s"}}
	middleware.StripResponse(h)
	if want := (http.Header{"Server": {"s"}}); !maps.EqualFunc(h, want, slices.Equal) {
		t.Errorf("got %v, want %v", h, want)
	}
}
