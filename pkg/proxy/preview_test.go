package proxy_test

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/proxy"
)

// A preview says what a request that is sent shows the instance to be.
func TestPreviewIsWhatIsSent(t *testing.T) {
	type sent struct {
		method, host, uri string
		header            http.Header
	}
	var got sent
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got = sent{r.Method, r.Host, r.RequestURI, r.Header.Clone()}
	}))
	defer srv.Close()
	address := srv.Listener.Addr().String()
	pool, err := balancer.New("a", balancer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	pool.Set(discovery.Snapshot{Instances: []discovery.Instance{{ID: "n/a", Address: address, Status: discovery.StatusPassing, Weight: 1}}})
	b, err := breaker.NewRegistry(nil, nil).Breaker(t.Name(), breaker.Settings{Disabled: true})
	if err != nil {
		t.Fatal(err)
	}
	up, err := proxy.NewUpstream("a", pool, b, proxy.Settings{
		Total: 7 * time.Second, Response: time.Second, Retry: proxy.Retry{Attempts: 2, On: []string{"reset"}, Methods: []string{"GET"}},
	}, proxy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	for _, tc := range []struct {
		name, method, target string
		header               http.Header
		o                    proxy.RouteOptions
		replayable           bool
		total                time.Duration
	}{
		{"plain", "GET", "/api/x?a=1;b&c=%zz", nil, proxy.RouteOptions{}, true, 7 * time.Second},
		{"strip", "GET", "/api/x%2Fy/", nil, proxy.RouteOptions{Strip: "/api"}, true, 7 * time.Second},
		{"strip all", "GET", "/api", nil, proxy.RouteOptions{Strip: "/api", Prepend: "/v2"}, true, 7 * time.Second},
		{"own host", "POST", "/", nil, proxy.RouteOptions{Host: "instance", Timeout: time.Minute}, false, time.Minute},
		{"a host", "POST", "/", http.Header{"Idempotency-Key": {"1"}}, proxy.RouteOptions{Host: "inner.test"}, true, 7 * time.Second},
		{"hop by hop", "GET", "/", http.Header{"Connection": {"X-Gone"}, "X-Gone": {"1"}, "X-Forwarded-For": {"6.6.6.6"}, "X-Kept": {"1"}}, proxy.RouteOptions{}, true, 7 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			request := func() *http.Request {
				r := httptest.NewRequest(tc.method, "http://shop.test"+tc.target, nil)
				for name, values := range tc.header {
					r.Header[name] = values
				}
				return r
			}
			before := b.Counters()
			p := proxy.NewPreview(up, tc.o, request(), nil)
			if b.Counters() != before || pool.Members()[0].Picks != 0 && got.uri == "" {
				t.Error("a preview has left a trace")
			}
			w := httptest.NewRecorder()
			proxy.New(up, tc.o).ServeHTTP(w, request())
			if w.Code != 200 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			host := p.Host
			if host == "" {
				host = address
			}
			// What the transport and the server add or read for themselves.
			got.header.Del("Accept-Encoding")
			got.header.Del("Content-Length")
			p.Header.Del("Accept-Encoding")
			if p.Header["User-Agent"] == nil {
				delete(p.Header, "User-Agent")
			}
			if p.Target != got.uri || host != got.host || p.Scheme != "http" || !reflect.DeepEqual(p.Header, got.header) {
				t.Errorf("preview: %s %s %v\n   sent: %s %s %v", host, p.Target, p.Header, got.host, got.uri, got.header)
			}
			if p.Replayable != tc.replayable || p.Total != tc.total || p.Response != time.Second || p.Retry.Attempts != 2 || p.Looped {
				t.Errorf("bounds are %+v", p)
			}
		})
	}
}

func TestPreviewKnowsALoopAndHTTPS(t *testing.T) {
	pool, err := balancer.New("a", balancer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := breaker.NewRegistry(nil, nil).Breaker(t.Name(), breaker.Settings{Disabled: true})
	if err != nil {
		t.Fatal(err)
	}
	up, err := proxy.NewUpstream("a", pool, b, proxy.Settings{Scheme: "https"}, proxy.Options{Via: "gw-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	r := httptest.NewRequest("GET", "https://shop.test/", nil)
	r.TLS = &tls.ConnectionState{}
	r.Header.Set("Via", "1.1 gw-1")
	p := proxy.NewPreview(up, proxy.RouteOptions{}, r, nil)
	if !p.Looped || p.Scheme != "https" || p.Header.Get("X-Forwarded-Proto") != "https" {
		t.Errorf("got %+v", p)
	}
}
