package devcatalog_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/consul/devcatalog"
	"github.com/proconsul/proconsul/pkg/parts"
)

func TestLimits(t *testing.T) {
	s, a := dev(t, devcatalog.Options{Limits: devcatalog.Limits{Services: 4, Checks: 6, Nodes: 2, Keys: 2, BlockingQueries: 2, Bytes: 1 << 20}})
	want := func(r reply, code int, text string) {
		t.Helper()
		if r.code != code || !strings.Contains(r.body, text) {
			t.Errorf("got %d %s, want %d %s", r.code, r.body, code, text)
		}
	}
	for i := range 3 { // the fourth is consul itself
		a.register(fmt.Sprintf(`{"Name":"s%d"}`, i))
	}
	want(a.put("/v1/agent/service/register", `{"Name":"more"}`), 503, "devcatalog: too many services, the limit is 4")
	want(a.put("/v1/catalog/register", `{"Node":"n","Address":"1.1.1.1","Service":{"Service":"more"}}`), 503, "too many services")
	a.register(`{"Name":"s1","Port":2}`) // what is there may change
	a.ok("PUT", "/v1/agent/service/deregister/s1", "")
	a.register(`{"Name":"room"}`)

	for i := range 6 {
		want(a.put("/v1/agent/check/register", fmt.Sprintf(`{"Name":"c%d","TTL":"1h"}`, i)), 200, "")
	}
	want(a.put("/v1/agent/check/register", `{"Name":"more","TTL":"1h"}`), 503, "too many checks")
	want(a.put("/v1/agent/service/register", `{"Name":"room","Check":{"TTL":"1h"}}`), 503, "too many checks")

	want(a.put("/v1/catalog/register", `{"Node":"n1","Address":"1.1.1.1"}`), 200, "true")
	want(a.put("/v1/catalog/register", `{"Node":"n2","Address":"1.1.1.1"}`), 503, "too many nodes")

	a.ok("PUT", "/v1/kv/a", "1")
	a.ok("PUT", "/v1/kv/b", "1")
	want(a.put("/v1/kv/c", "1"), 503, "too many keys")
	a.ok("PUT", "/v1/kv/b", strings.Repeat("x", 500<<10))
	want(a.put("/v1/kv/a", strings.Repeat("x", 512<<10)), 200, "true")
	want(a.put("/v1/kv/a", strings.Repeat("y", 512<<10)), 200, "true") // in its own place
	want(a.put("/v1/kv/b", strings.Repeat("x", 512<<10)), 503, "too many bytes")
	want(a.put("/v1/agent/service/register", `{"Name":"room","Tags":["`+strings.Repeat("t", 100<<10)+`"]}`), 503, "too many bytes")
	a.ok("DELETE", "/v1/kv/b", "")
	want(a.put("/v1/agent/service/register", `{"Name":"room","Tags":["`+strings.Repeat("t", 100<<10)+`"]}`), 200, "")

	want(a.put("/v1/kv/"+strings.Repeat("k", 1025), "1"), 400, "too long")
	want(a.put("/v1/agent/service/register", `{"Name":"`+strings.Repeat("k", 1025)+`"}`), 400, "too long")
	want(a.put("/v1/agent/service/register", `{"Name":"`+strings.Repeat("k", 512<<10)+`"}`), 413, "too large")
	want(a.put("/v1/agent/service/register", `{"Name":"x","Check":{"GRPC":"127.0.0.1:1","Interval":"1s"}}`), 400, "no GRPC check")

	left := a.blocked("/v1/kv/a", ahead, time.Minute)
	a.blocked("/v1/kv/b", ahead, time.Minute)
	parts.Eventually(t, 5*time.Second, "the queries do not block", func() bool { return s.Blocked() == 2 })
	want(a.get(fmt.Sprintf("/v1/kv/c?index=%d&wait=1m", ahead)), 429, "too many blocking queries")
	want(a.get("/v1/kv/a?raw"), 200, "yy")
	s.SetFaults(devcatalog.Faults{}) // ends the blocked ones
	<-left
}

func TestLargeAnswersAreCompressed(t *testing.T) {
	s := devcatalog.New(devcatalog.Options{})
	call(t, s, "PUT", "/v1/agent/service/register", `{"Name":"a","Meta":{"k":"`+strings.Repeat("v", 500)+`"}}`)
	plain := call(t, s, "GET", "/v1/health/service/a", "")
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/v1/health/service/a", nil)
	r.Header.Set("Accept-Encoding", "gzip, deflate")
	s.ServeHTTP(w, r)
	if w.Header().Get("Content-Encoding") != "gzip" || w.Body.Len() >= len(plain.body) {
		t.Fatalf("%d bytes as %q, %d without", w.Body.Len(), w.Header().Get("Content-Encoding"), len(plain.body))
	}
	z, err := gzip.NewReader(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(z); err != nil || string(b) != plain.body {
		t.Errorf("%v: %s", err, b)
	}
}

func TestPretty(t *testing.T) {
	s := devcatalog.New(devcatalog.Options{})
	r := call(t, s, "GET", "/v1/catalog/nodes?pretty", "")
	if !strings.HasPrefix(r.body, "[\n    {\n        \"ID\": ") || !strings.HasSuffix(r.body, "]\n") {
		t.Errorf("got %s", r.body)
	}
}

// Whatever happens, an answer that changed has a greater index, and no index
// ever goes back: this is all that a watcher can rely on.
func TestIndexFollowsTheAnswer(t *testing.T) {
	watched := []string{
		"/v1/health/service/a", "/v1/health/service/b", "/v1/catalog/service/a", "/v1/catalog/services", "/v1/catalog/nodes",
		"/v1/catalog/node/devcatalog", "/v1/catalog/node/ext", "/v1/health/node/devcatalog", "/v1/health/state/any",
		"/v1/kv/k/a", "/v1/kv/k/?recurse", "/v1/kv/?keys",
	}
	name := rapid.SampledFrom([]string{"a", "b"})
	ops := map[string]func(*rapid.T) (method, path, body string){
		"register": func(t *rapid.T) (string, string, string) {
			return "PUT", "/v1/agent/service/register" + rapid.SampledFrom([]string{"", "?replace-existing-checks"}).Draw(t, "replace"),
				fmt.Sprintf(`{"ID":"%s%d","Name":%q,"Port":%d,"Check":{"TTL":"1h"}}`, name.Draw(t, "id"), rapid.IntRange(1, 2).Draw(t, "n"), name.Draw(t, "name"), rapid.IntRange(1, 2).Draw(t, "port"))
		},
		"deregister": func(t *rapid.T) (string, string, string) {
			return "PUT", fmt.Sprintf("/v1/agent/service/deregister/%s%d", name.Draw(t, "id"), rapid.IntRange(1, 2).Draw(t, "n")), ""
		},
		"report": func(t *rapid.T) (string, string, string) {
			return "PUT", fmt.Sprintf("/v1/agent/check/%s/service:%s%d?note=%d", rapid.SampledFrom([]string{"pass", "warn", "fail"}).Draw(t, "verb"), name.Draw(t, "id"),
				rapid.IntRange(1, 2).Draw(t, "n"), rapid.IntRange(1, 2).Draw(t, "note")), ""
		},
		"maintenance": func(t *rapid.T) (string, string, string) {
			return "PUT", rapid.SampledFrom([]string{"/v1/agent/maintenance", "/v1/agent/service/maintenance/a1"}).Draw(t, "of") + "?enable=" + rapid.SampledFrom([]string{"true", "false"}).Draw(t, "on"), ""
		},
		"node check": func(t *rapid.T) (string, string, string) {
			return "PUT", "/v1/agent/check/register", fmt.Sprintf(`{"ID":"c","Name":"c","TTL":"1h","ServiceID":%q}`, rapid.SampledFrom([]string{"", "a1", "b1"}).Draw(t, "of"))
		},
		"check gone": func(*rapid.T) (string, string, string) { return "PUT", "/v1/agent/check/deregister/c", "" },
		"foreign": func(t *rapid.T) (string, string, string) {
			return "PUT", "/v1/catalog/register", fmt.Sprintf(`{"Node":"ext","Address":"1.1.1.%d","Service":{"ID":"e","Service":%q},"Check":{"Name":"n","Status":%q,"ServiceID":%q}}`,
				rapid.IntRange(1, 2).Draw(t, "address"), name.Draw(t, "name"), rapid.SampledFrom([]string{"passing", "critical"}).Draw(t, "status"), rapid.SampledFrom([]string{"", "e"}).Draw(t, "of"))
		},
		"foreign gone": func(t *rapid.T) (string, string, string) {
			return "PUT", "/v1/catalog/deregister", rapid.SampledFrom([]string{`{"Node":"ext"}`, `{"Node":"ext","ServiceID":"e"}`, `{"Node":"ext","CheckID":"n"}`, `{"Node":"devcatalog"}`, `{"Node":"devcatalog","ServiceID":"a1"}`}).Draw(t, "what")
		},
		"put": func(t *rapid.T) (string, string, string) {
			return "PUT", "/v1/kv/k/" + name.Draw(t, "key"), name.Draw(t, "value")
		},
		"delete":     func(t *rapid.T) (string, string, string) { return "DELETE", "/v1/kv/k/" + name.Draw(t, "key"), "" },
		"delete all": func(*rapid.T) (string, string, string) { return "DELETE", "/v1/kv/k?recurse", "" },
	}
	names := []string{"register", "register", "deregister", "report", "report", "maintenance", "node check", "check gone", "foreign", "foreign gone", "put", "delete", "delete all"}
	rapid.Check(t, func(rt *rapid.T) {
		s := devcatalog.New(devcatalog.Options{StartIndex: 10})
		before := make(map[string]reply)
		for _, path := range watched {
			before[path] = call(t, s, "GET", path, "")
		}
		for range rapid.IntRange(1, 30).Draw(rt, "ops") {
			op := rapid.SampledFrom(names).Draw(rt, "op")
			method, path, body := ops[op](rt)
			r := call(t, s, method, path, body)
			if r.code != 200 && r.code != 404 {
				rt.Fatalf("%s %s %s: %d %s", method, path, body, r.code, r.body)
			}
			for _, path := range watched {
				old, now := before[path], call(t, s, "GET", path, "")
				if now.index() < old.index() {
					rt.Fatalf("%s: index %d after %d", path, now.index(), old.index())
				}
				if now.body != old.body && now.index() == old.index() {
					rt.Fatalf("%s %s %s\nchanged %s without its index:\n%s\n%s", method, r.body, body, path, old.body, now.body)
				}
				before[path] = now
			}
			if err := s.Audit(); err != nil {
				rt.Fatalf("%s %s %s: %v", method, path, body, err)
			}
		}
	})
}

// FuzzAPI sends anything: it must not panic, and hold no more than it may.
func FuzzAPI(f *testing.F) {
	for _, st := range script() {
		if len(st.body) > 10_000 {
			continue
		}
		path, query, _ := strings.Cut(st.path, "?")
		f.Add(st.method, path, query, []byte(st.body))
	}
	f.Add("GET", "/v1/health/service/a", "filter="+url.QueryEscape(strings.Repeat("(", 5000)), []byte{})
	f.Add("GET", "/v1/health/service/a", "filter="+url.QueryEscape(strings.Repeat("not ", 2000)+"a == b"), []byte{})
	f.Add("GET", "/v1/health/service/a", "index=18446744073709551615&wait=10m", []byte{})
	s := devcatalog.New(devcatalog.Options{Limits: devcatalog.Limits{Services: 8, Checks: 16, Nodes: 4, Keys: 8, BlockingQueries: 4, Bytes: 1 << 20}})
	f.Fuzz(func(t *testing.T, method, path, query string, body []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		for _, body := range [][]byte{body, []byte(`{"Name":"a","Node":"n","Address":"1.1.1.1","Status":"passing","TTL":"1s"}`)} {
			r := (&http.Request{
				Method: method, URL: &url.URL{Path: path, RawQuery: query}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
				Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Host: "x",
			}).WithContext(ctx)
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if w.Code >= 500 && ctx.Err() == nil && w.Body.Len() == 0 {
				t.Errorf("%s %q %q: %d without a word", method, path, query, w.Code)
			}
		}
		if n := s.Blocked(); n != 0 {
			t.Errorf("%d queries are still blocked", n)
		}
		if err := s.Audit(); err != nil {
			t.Errorf("%s %q %q %q: %v", method, path, query, body, err)
		}
	})
}
