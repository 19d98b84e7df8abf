package gateway_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/gateway"
	"github.com/proconsul/proconsul/pkg/identity"
)

// told answers with the header that reached the instance.
var told = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "leaky")
	_ = json.NewEncoder(w).Encode(r.Header)
})

// secured is a handler for a configuration with auth.
func (r *rig) secured(text string) (*gateway.Handler, http.Handler) {
	r.t.Helper()
	r.know(r.parse(text))
	return r.handler(text)
}

func (r *rig) know(cfg *config.Config) {
	r.t.Helper()
	var err error
	via := func(name string) (http.RoundTripper, error) {
		up, err := r.deps.Upstream(name)
		if err != nil {
			return nil, err
		}
		return up.Client(), nil
	}
	if r.deps.Identity, err = identity.New(cfg, identity.NewKeys(slog.New(slog.DiscardHandler), nil), via); err != nil {
		r.t.Fatal(err)
	}
}

func fetch(h http.Handler, target, peer string, lines ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", target, nil)
	if peer != "" {
		r.RemoteAddr = peer
	}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ": ")
		r.Header[name] = append(r.Header[name], value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

var protected = fmt.Sprintf(`version: 1
listen: [{addr: ":0", trusted_proxies: [10.0.0.0/8]}]
consumers:
  - {name: acme, groups: [gold], api_keys: [{id: a, sha256: %s}]}
policies:
  - {name: closed, auth: {any_of: [api-key]}}
routes:
  - {name: open, match: {path: "/open/**"}, upstream: {service: a}}
  - {name: closed, match: {path: "/closed/**"}, use: [closed], upstream: {service: a}}
  - {name: gold, match: {path: "/closed/gold/**"}, auth: {any_of: [api-key], groups: [platinum]}, upstream: {service: a}}
  - {name: maybe, match: {path: "/maybe/**"}, auth: {any_of: [api-key], anonymous: true}, upstream: {service: a}}
  - name: rules
    match: {path: "/rules/**"}
    use: [closed]
    rate_limit: {by: consumer, rate: 2/1h}
    headers:
      request: {set: [{name: X-Api-Key, value: for-the-instance}]}
      response: {remove: [Server], set: [{name: X-Rule, value: "yes"}]}
    upstream: {service: a}
`, identity.HashKey("key-of-acme"))

const acme = "X-Api-Key: key-of-acme"

// Nobody but the gateway tells instances who called: not on an open route, not
// as a trusted proxy, not in another spelling.
func TestIdentityFieldsAreTheGateways(t *testing.T) {
	_, h := newRig(t, map[string]http.Handler{"a": told}).secured(protected)
	spoofs := []string{"X-Consumer-Name: root", "X-Consumer-Groups: admin", "X-Consumer-Claim-Email: root@example.com", "X_consumer_name: root", "X-Consumer-Name: root", "X-Consumer-Roles: root", "X_Consumer_Roles: root", "x-consumer-claim_email: root", "X_CONSUMER_GROUPS: root", "X-Consumer_groups: admin", "Connection: X-Consumer-Name, X-Consumer-Groups"}
	for _, peer := range []string{"", "10.1.2.3:99"} {
		for _, tt := range []struct{ path, key, consumer, groups string }{
			{"/open/x", "", "", ""},
			{"/open/x", acme, "", ""},
			{"/maybe/x", "", "", ""},
			{"/maybe/x", acme, "acme", "gold"},
			{"/closed/x", acme, "acme", "gold"},
		} {
			lines := spoofs
			if tt.key != "" {
				lines = append([]string{tt.key}, spoofs...)
			}
			w := fetch(h, tt.path, peer, lines...)
			var got http.Header
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 {
				t.Fatalf("%s: %d %s", tt.path, w.Code, w.Body)
			}
			if got.Get("X-Consumer-Name") != tt.consumer || got.Get("X-Consumer-Groups") != tt.groups {
				t.Errorf("%s from %q: the instance is told %q %q", tt.path, peer, got.Get("X-Consumer-Name"), got.Get("X-Consumer-Groups"))
			}
			for name, values := range got {
				if strings.Contains(strings.Join(values, " "), "root") || strings.Contains(name, "_") {
					t.Errorf("%s from %q: %s: %q reached the instance", tt.path, peer, name, values)
				}
			}
		}
	}
}

// Trailers, which software behind may merge into the header, do not tell who
// called either.
func TestTrailersNameNobody(t *testing.T) {
	trailers := make(chan http.Header, 1)
	instance := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		trailers <- r.Trailer
	})
	_, h := newRig(t, map[string]http.Handler{"a": instance, "judge": told}).secured(strings.ReplaceAll(forwarding, "KEY", identity.HashKey("x")))
	srv := httptest.NewServer(h)
	defer srv.Close()
	req, err := http.NewRequestWithContext(t.Context(), "POST", srv.URL+"/open/x", io.MultiReader(strings.NewReader("body")))
	if err != nil {
		t.Fatal(err)
	}
	req.Trailer = http.Header{"X-Consumer-Name": {"root"}, "X-Checksum": {"1"}, "Remote-User": {"root"}, "X_judged": {"root"}}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := <-trailers; len(got) != 1 || got.Get("X-Checksum") != "1" {
		t.Errorf("the instance got the trailers %v", got)
	}
}

// Rules for requests act inside auth: what they set is neither taken for the
// client's credential nor taken out. Those for answers reach the refusal.
func TestHeaderRulesAndLimitsStandInsideAuth(t *testing.T) {
	_, h := newRig(t, map[string]http.Handler{"a": told}).secured(protected)
	for i, tt := range []struct {
		lines  []string
		status int
	}{
		{nil, 401}, {nil, 401}, {nil, 401}, // not charged to anybody
		{[]string{"X-Api-Key: for-the-instance"}, 401},
		{[]string{acme}, 200}, {[]string{acme}, 200}, {[]string{acme}, 429},
		{nil, 401},
	} {
		w := fetch(h, "/rules/x", "", tt.lines...)
		if w.Code != tt.status || w.Header().Get("X-Rule") != "yes" || w.Header().Get("Server") != "" {
			t.Errorf("request %d: got %d %v, want %d with the answer's rules", i, w.Code, w.Header(), tt.status)
		}
		if w.Code == 200 && !strings.Contains(w.Body.String(), `"X-Api-Key":["for-the-instance"]`) {
			t.Errorf("request %d: the instance saw %s", i, w.Body)
		}
		if w.Code == 401 && w.Header().Get("WWW-Authenticate") == "" {
			t.Errorf("request %d: no challenge", i)
		}
	}
}

// However a path is spelled, it meets the policy of the route that serves it:
// nothing below /closed reaches an instance without the key, and nothing below
// /closed/gold with one.
func TestNoSpellingStepsAroundAuth(t *testing.T) {
	type seen struct{ path, consumer string }
	var reached atomic.Pointer[seen]
	instance := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		reached.Store(&seen{r.URL.Path, r.Header.Get("X-Consumer-Name")})
	})
	_, h := newRig(t, map[string]http.Handler{"a": instance}).secured(protected)
	segments := []string{"closed", "gold", "open", "maybe", "Closed", "..", ".", "", "%2e%2e", "%2E", "clos%65d", "%63losed", "g%6fld", "closed%2fgold", "closed;v=1", "x", "%00", `\`, "closed%5cgold", "%252e%252e", "closed%20"}
	rapid.Check(t, func(t *rapid.T) {
		path := "/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom(segments), 1, 6).Draw(t, "segments"), "/")
		r := httptest.NewRequest("GET", "/", nil)
		u, err := r.URL.Parse("http://h" + path)
		if err != nil {
			return // no server reads it
		}
		r.URL = u
		withKey := rapid.Bool().Draw(t, "key")
		if withKey {
			r.Header.Set("X-Api-Key", "key-of-acme")
		}
		reached.Store(nil)
		h.ServeHTTP(httptest.NewRecorder(), r)
		got := reached.Load()
		switch {
		case got == nil:
		case got.path == "/closed/gold" || strings.HasPrefix(got.path, "/closed/gold/"):
			t.Fatalf("%s reached the instance as %s", path, got.path)
		case (got.path == "/closed" || strings.HasPrefix(got.path, "/closed/")) && got.consumer != "acme":
			t.Fatalf("%s reached the instance as %s by nobody", path, got.path)
		}
	})
}

// Explain says what auth would say.
func TestExplainTellsOfAuth(t *testing.T) {
	r := newRig(t, map[string]http.Handler{"a": told})
	handler, _ := r.secured(protected)
	cfg := r.parse(protected)
	for _, tt := range []struct {
		header http.Header
		want   string
	}{{nil, "unauthenticated"}, {http.Header{"X-Api-Key": {"key-of-acme"}}, ""}} {
		e, err := handler.Explain(t.Context(), cfg.Listen[0], gateway.Question{URL: "/closed/x", Header: tt.header})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if e.Refusal != nil {
			got = string(e.Refusal.Reason)
		}
		if got != tt.want {
			t.Errorf("with %v: refused %q, want %q", tt.header, got, tt.want)
		}
	}
}

// Keys change under load: whoever has a key that both configurations know is
// never refused, and one that was taken back is refused from then on.
func TestKeysChangeUnderLoad(t *testing.T) {
	with := func(keys ...string) string {
		var list []string
		for i, k := range keys {
			list = append(list, fmt.Sprintf(`{id: k%d, sha256: %s}`, i, identity.HashKey(k)))
		}
		return `version: 1
listen: [{addr: ":0"}]
consumers: [{name: acme, api_keys: [` + strings.Join(list, ", ") + `]}]
routes: [{name: a, auth: {any_of: [api-key]}, upstream: {service: a}}]
`
	}
	r := newRig(t, map[string]http.Handler{"a": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })})
	handler, h := r.secured(with("stays", "old-1"))
	var stop atomic.Bool
	var load sync.WaitGroup
	var served atomic.Int64
	for range 4 {
		load.Go(func() {
			for !stop.Load() {
				if w := fetch(h, "/", "", "X-Api-Key: stays"); w.Code != 200 {
					t.Errorf("a key that stays got %d %s", w.Code, w.Body)
					return
				}
				served.Add(1)
			}
		})
	}
	for i := range 30 {
		next, gone := fmt.Sprintf("old-%d", i+2), fmt.Sprintf("old-%d", i+1)
		cfg := r.parse(with("stays", next))
		r.know(cfg)
		table, err := gateway.Build(cfg, r.deps)
		if err != nil {
			t.Fatal(err)
		}
		handler.Swap(table)
		if w := fetch(h, "/", "", "X-Api-Key: "+gone); w.Code != 401 {
			t.Errorf("a key that was taken back got %d", w.Code)
		}
		if w := fetch(h, "/", "", "X-Api-Key: "+next); w.Code != 200 {
			t.Errorf("a new key got %d", w.Code)
		}
	}
	stop.Store(true)
	load.Wait()
	if served.Load() == 0 {
		t.Error("there was no load")
	}
}
