package consul_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/consul"
	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/parts"
)

func TestSyncKeepsRunningWatches(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		f.set("a", "a-1")
		f.set("b", "b-1")
		w := watch(t, f.options(), consul.WatchOptions{}, query("a"), query("b"))
		want(t, w, "a", "a-1")
		before := f.asked()
		for range 20 {
			w.Sync([]discovery.Query{query("b"), query("a"), query("a")})
			synctest.Wait()
		}
		if after := f.asked(); len(after) != len(before) {
			t.Fatalf("reloads sent %v", after[len(before):])
		}
		w.Sync([]discovery.Query{query("b"), query("c")})
		f.set("c", "c-1")
		want(t, w, "c", "c-1")
		want(t, w, "b", "b-1")
		if st := w.catalog.State("a"); st.Loaded {
			t.Fatalf("a is not asked for any more, yet known: %+v", st)
		}
		f.set("a", "a-2")
		want(t, w, "a", "")
		if got := len(w.State().Watches); got != 2 {
			t.Fatalf("%d watches", got)
		}
		w.Sync([]discovery.Query{query("a")})
		want(t, w, "a", "a-2")
	})
}

func TestSyncLeavesNoGoroutines(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		w := watch(t, f.options(), consul.WatchOptions{}, query("svc000"))
		synctest.Wait()
		base := runtime.NumGoroutine()
		for range 3 {
			w.Sync(watchQueries(100))
			synctest.Wait()
			if grown := runtime.NumGoroutine() - base; grown < 99 {
				t.Fatalf("only %d goroutines more for 99 watches more", grown)
			}
			w.Sync(watchQueries(1))
			time.Sleep(2 * time.Minute) // idle connections go too
			synctest.Wait()
			if n := runtime.NumGoroutine(); n > base+8 { // two connections more may be in use
				t.Fatalf("%d goroutines, %d before", n, base)
			}
			if n := len(w.catalog.States()); n != 1 {
				t.Fatalf("the catalog knows %d services", n)
			}
		}
	})
}

// Over HTTP/1.1 each blocked query holds a connection: more watches than
// connections take turns, and none is left out.
func TestManyWatchesTakeTurns(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		queries := watchQueries(40)
		for _, q := range queries {
			f.set(q.Service, q.Service+"-1")
		}
		blocked, most := 0, 0
		f.with(func() {
			f.handle = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Query().Get("index") == "" {
					return false
				}
				f.with(func() { blocked++; most = max(most, blocked) })
				defer f.with(func() { blocked-- })
				f.serve(w, r)
				return true
			}
		})
		w := watch(t, f.options(), consul.WatchOptions{MaxConnections: 10}, queries[:10]...)
		synctest.Wait()
		w.Sync(queries) // those that wait for a minute make way
		time.Sleep(5 * time.Second)
		want(t, w, "svc039", "svc039-1")
		worst := time.Duration(0)
		for i, q := range queries {
			f.with(func() { f.services[q.Service] = []string{q.Service + "-2"}; f.index++ }) // wakes nobody
			start := time.Now()
			for w.ids(q.Service) != q.Service+"-2" {
				time.Sleep(10 * time.Millisecond)
				if time.Since(start) > time.Minute {
					t.Fatalf("watch %d never had its turn", i)
				}
			}
			worst = max(worst, time.Since(start))
		}
		if worst > 4*time.Second {
			t.Errorf("a change was seen only after %v", worst)
		}
		f.with(func() {
			// The server sees a query end a moment after its client does.
			if most > 20 {
				t.Errorf("%d queries blocked at once, want about 10", most)
			}
		})
		t.Logf("40 watches over 10 connections: at worst %v", worst)
	})
}

// A server that answers at once for ever must not become a hot loop.
func TestRestlessServerIsPaced(t *testing.T) {
	tests := []struct {
		name   string
		answer func(n int) (index uint64)
		most   int
	}{
		{"the same index", func(int) uint64 { return 50 }, 130},
		{"a new index each time", func(n int) uint64 { return uint64(100 + n) }, 130},
		{"back and forth", func(n int) uint64 { return uint64(50 + n%2) }, 250},
		{"no index", func(int) uint64 { return 0 }, 130},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, f *fake) {
				n := 0
				f.handle = func(w http.ResponseWriter, r *http.Request) bool {
					if !strings.HasPrefix(r.URL.Path, "/v1/health/") {
						return false
					}
					f.mu.Lock()
					defer f.mu.Unlock()
					n++
					f.services["web"] = []string{"web-1"}
					f.answer(w, "web", tt.answer(n))
					return true
				}
				w := watch(t, f.options(), consul.WatchOptions{}, query("web"))
				time.Sleep(time.Minute)
				want(t, w, "web", "web-1")
				f.with(func() {
					if n > tt.most {
						t.Errorf("%d queries a minute, want at most %d", n, tt.most)
					}
				})
			})
		})
	}
}

// What a watcher sends is what was configured, and nothing of Enterprise's.
func TestQueryParameters(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		var got []url.Values
		f.handle = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, "/v1/health/") {
				q := r.URL.Query()
				q.Set("path", r.URL.Path)
				f.with(func() { got = append(got, q) })
			}
			return false
		}
		o := f.options()
		o.Datacenter = "dc9"
		watch(t, o, consul.WatchOptions{}, query("plain"),
			discovery.Query{Service: "odd name?#%", Datacenter: "dc2", Namespace: "ns1", Partition: "p1", Filter: `Service.Meta.x == "1"`})
		time.Sleep(time.Second)
		f.with(func() {
			for _, q := range got {
				switch q.Get("path") {
				case "/v1/health/service/plain":
					if q.Has("ns") || q.Has("partition") || q.Has("passing") || q.Has("near") || q.Has("stale") || q.Get("dc") != "dc9" {
						t.Errorf("sent %v", q)
					}
				case "/v1/health/service/odd name?#%":
					if q.Get("ns") != "ns1" || q.Get("partition") != "p1" || q.Get("dc") != "dc2" || q.Get("filter") != `Service.Meta.x == "1"` {
						t.Errorf("sent %v", q)
					}
				default:
					t.Errorf("asked for %q", q.Get("path"))
				}
				if q.Has("index") != q.Has("wait") || q.Get("index") == "0" {
					t.Errorf("sent %v", q)
				}
			}
			if len(got) != 4 {
				t.Errorf("%d queries, want two each", len(got))
			}
		})
	})
}

func TestHooks(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		f.set("web", "web-1")
		var asked, failed, applied int
		w := watch(t, f.options(), consul.WatchOptions{
			OnQuery: func(key string, err error, took time.Duration) {
				f.with(func() {
					asked++
					if err != nil {
						failed++
					}
				})
			},
			OnApply: func(key string, took time.Duration) { f.with(func() { applied++ }) },
		}, query("web"))
		want(t, w, "web", "web-1")
		f.set("web", "web-1", "web-2")
		want(t, w, "web", "web-1 web-2")
		f.with(func() {
			f.handle = func(w http.ResponseWriter, r *http.Request) bool { http.Error(w, "boom", 500); return true }
		})
		f.set("web", "web-1", "web-2")
		time.Sleep(20 * time.Second)
		st := w.State()
		f.with(func() {
			if applied != 2 || failed == 0 || asked <= failed {
				t.Errorf("applied %d, asked %d, failed %d", applied, asked, failed)
			}
			if v := st.Watches[0]; int(v.TotalErrors) != failed || v.Failures != failed || !strings.Contains(v.Err, "boom") || v.Index == 0 {
				t.Errorf("state %+v, %d failed", v, failed)
			}
		})
		if !st.Up || st.Leader != "" || st.LastContact.IsZero() {
			t.Errorf("an agent that answers 500 is up, without a leader: %+v", st)
		}
	})
}

func TestRealManyServices(t *testing.T) {
	t.Parallel()
	const n = 300
	c := parts.StartConsul(t)
	for i := range n {
		// By the catalog, which is faster than the agent.
		put(t, c.Addr, "/v1/catalog/register", map[string]any{"Node": "ext", "Address": "127.0.0.9",
			"Service": map[string]any{"Service": fmt.Sprintf("svc%03d", i), "ID": fmt.Sprintf("svc%03d-1", i), "Port": 1000 + i}})
	}
	queries := watchQueries(n)
	start := time.Now()
	w := watch(t, consul.Options{Addr: c.Addr}, consul.WatchOptions{MaxConnections: 400}, queries...)
	loaded := func() bool {
		return !slices.ContainsFunc(queries, func(q discovery.Query) bool { return w.ids(q.Service) == "" })
	}
	parts.Eventually(t, 20*time.Second, "all services are loaded", loaded)
	t.Logf("%d services loaded after %v", n, time.Since(start).Round(time.Millisecond))

	// One change of the node is one of every service.
	start = time.Now()
	put(t, c.Addr, "/v1/catalog/register", map[string]any{"Node": "ext", "Address": "127.0.0.9",
		"Check": map[string]any{"CheckID": "node", "Name": "node", "Status": "critical"}})
	parts.Eventually(t, 20*time.Second, "all see the node's failure", func() bool {
		return !slices.ContainsFunc(queries, func(q discovery.Query) bool { return w.first(q.Service).Status != discovery.StatusCritical })
	})
	t.Logf("%d pools follow a change of their node after %v", n, time.Since(start).Round(time.Millisecond))
	for _, v := range w.State().Watches {
		if v.TotalErrors > 0 {
			t.Errorf("%+v", v)
			break
		}
	}
	// Each watch has a goroutine at least, and its connection two; other tests
	// run beside this one and have some of their own.
	many := runtime.NumGoroutine()
	w.Sync(queries[:1])
	parts.Eventually(t, 20*time.Second, "the goroutines of the others end", func() bool { return runtime.NumGoroutine() < many-2*n })
	w.stop()
}

func TestRealACLDenies(t *testing.T) {
	t.Parallel()
	const root = "4e0b1c5e-53a5-4b7c-9c4e-9a8b7c6d5e4f"
	acl := fmt.Sprintf(`{"acl":{"enabled":true,"default_policy":"deny","tokens":{"initial_management":%q,"agent":%q,"default":%q}}}`, root, root, root)
	c := parts.StartConsul(t, acl)
	register(t, c.Addr, "web", "web-1", 8001, root)

	t.Run("no token of ours, one of the agent's", func(t *testing.T) {
		w := watch(t, consul.Options{Addr: c.Addr}, consul.WatchOptions{}, query("web"), query("none"))
		parts.Eventually(t, 5*time.Second, "it is seen", func() bool { return w.ids("web") == "web-1" })
		parts.Eventually(t, 5*time.Second, "an empty service is just empty", func() bool { return w.catalog.State("none").Loaded })
	})
	put(t, c.Addr, "/v1/agent/token/default", map[string]any{"Token": ""}, root)

	tests := []struct{ name, token, want string }{
		{"no token", "", "no token is set"},
		{"unknown token", "11111111-2222-3333-4444-555555555555", "the token from the configuration needs service_prefix"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := watch(t, consul.Options{Addr: c.Addr, Token: tt.token}, consul.WatchOptions{}, query("web"))
			parts.Eventually(t, 5*time.Second, "it is said", func() bool { return strings.Contains(w.catalog.State("web").Err, tt.want) })
			if st := w.catalog.State("web"); st.Loaded {
				t.Fatalf("a service that may not be seen was taken for empty: %+v", st)
			}
			parts.Eventually(t, 5*time.Second, "the agent is up nevertheless", func() bool { return w.State().Up })
		})
	}

	t.Run("revoked while it watches", func(t *testing.T) {
		// Without streaming a token is checked with each query. Consul's
		// streaming backend ends the subscriptions of a revoked token just
		// before it commits the revocation: one that is made again in between
		// is answered 200 from the agent's view for as long as it is watched.
		c := parts.StartConsul(t, acl, `{"use_streaming_backend":false}`)
		register(t, c.Addr, "web", "web-1", 8001, root)
		var made struct{ SecretID, AccessorID string }
		policy := map[string]any{"Name": "gateway", "Rules": `service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }`}
		put(t, c.Addr, "/v1/acl/policy", policy, root)
		_, text := tryPut(t, c.Addr, "/v1/acl/token", map[string]any{"Policies": []map[string]any{{"Name": "gateway"}}}, root)
		if err := json.Unmarshal([]byte(text), &made); err != nil || made.SecretID == "" {
			t.Fatalf("%v: %s", err, text)
		}
		w := watch(t, consul.Options{Addr: c.Addr, Token: made.SecretID}, consul.WatchOptions{Wait: time.Second, ProbeInterval: time.Second}, query("web"), query("none"))
		parts.Eventually(t, 5*time.Second, "it is seen", func() bool { return w.ids("web") == "web-1" })
		parts.Eventually(t, 5*time.Second, "a service without instances is just empty", func() bool { return w.catalog.State("none").Loaded })

		req, _ := http.NewRequest(http.MethodDelete, "http://"+c.Addr+"/v1/acl/token/"+made.AccessorID, nil)
		req.Header.Set("X-Consul-Token", root)
		resp, err := http.DefaultClient.Do(req)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v %v", resp, err)
		}
		resp.Body.Close()
		parts.Eventually(t, 40*time.Second, "it is stale", func() bool { return strings.Contains(w.catalog.State("web").Err, "403") })
		if got := w.ids("web"); got != "web-1" {
			t.Fatalf("pool %q after the token was revoked", got)
		}
	})
}
