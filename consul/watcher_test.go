package consul_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/consul"
)

// bubble runs a test against a fake Consul under synctest's clock.
func bubble(t *testing.T, test func(t *testing.T, f *fake)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		t.Cleanup(f.close)
		test(t, f)
	})
}

func (f *fake) options() consul.Options { return consul.Options{Addr: "127.0.0.1:8500", Dial: f.dial} }

func want(t *testing.T, w *watching, key, ids string) {
	t.Helper()
	synctest.Wait()
	if got := w.ids(key); got != ids {
		t.Fatalf("pool of %s is %q, want %q (state %+v)", key, got, ids, w.catalog.State(key))
	}
}

func TestFollowsChangesAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		f.set("web", "web-1", "web-2")
		w := watch(t, f.options(), consul.WatchOptions{}, query("web"))
		want(t, w, "web", "web-1 web-2")
		f.set("web", "web-2")
		want(t, w, "web", "web-2") // no time has passed
		f.set("web", "web-2", "web-3")
		want(t, w, "web", "web-2 web-3")
		f.set("web")
		want(t, w, "web", "")
		if st := w.catalog.State("web"); !st.Loaded || st.Stale() {
			t.Fatalf("an empty service is not a failure: %+v", st)
		}
	})
}

func TestQuietServiceCostsAQueryAMinute(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		f.set("web", "web-1")
		w := watch(t, f.options(), consul.WatchOptions{}, query("web"))
		synctest.Wait()
		time.Sleep(10 * time.Minute)
		want(t, w, "web", "web-1")
		if n := len(f.asked()); n < 9 || n > 14 {
			t.Fatalf("%d queries in ten quiet minutes, want about eleven", n)
		}
		if st := w.catalog.State("web"); time.Since(st.FreshAt) > 65*time.Second {
			t.Fatalf("an unchanged service was last confirmed %v ago", time.Since(st.FreshAt))
		}
	})
}

func TestPhantomEmptyIsNotBelieved(t *testing.T) {
	for _, index := range []uint64{1, 1000} {
		t.Run(fmt.Sprint("index ", index), func(t *testing.T) {
			bubble(t, func(t *testing.T, f *fake) {
				f.set("web", "web-1", "web-2")
				w := watch(t, f.options(), consul.WatchOptions{}, query("web"))
				want(t, w, "web", "web-1 web-2")
				// The agent has lost its servers: its view says [], a server's
				// answer cannot be had.
				f.with(func() {
					f.handle = func(rw http.ResponseWriter, r *http.Request) bool {
						switch {
						case !strings.HasPrefix(r.URL.Path, "/v1/health/"):
							return false
						case r.URL.Query().Get("index") != "":
							empty(rw, index)
						default:
							http.Error(rw, "No known Consul servers", http.StatusInternalServerError)
						}
						return true
					}
				})
				f.set("web", "web-1", "web-2") // wakes the blocked query into the handler's regime
				time.Sleep(10 * time.Minute)
				want(t, w, "web", "web-1 web-2")
				if !w.catalog.State("web").Stale() {
					t.Fatal("nobody confirms the pool, yet it is not stale")
				}
				f.with(func() { f.handle = nil })
				f.set("web", "web-2", "web-3")
				time.Sleep(10 * time.Second)
				want(t, w, "web", "web-2 web-3")
				if w.catalog.State("web").Stale() {
					t.Fatal("stale after recovery")
				}
			})
		})
	}
}

func TestErrorsKeepThePool(t *testing.T) {
	fail := func(code int, text string) func(*fake) {
		return func(f *fake) {
			f.handle = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.HasPrefix(r.URL.Path, "/v1/health/") {
					http.Error(w, text, code)
					return true
				}
				return false
			}
		}
	}
	tests := []struct {
		name   string
		break_ func(*fake)
		kind   string
	}{
		{"500", fail(500, "rpc error getting client: failed to get conn"), "500"},
		{"no leader", fail(500, "No cluster leader"), "No cluster leader"},
		{"429", fail(429, "Your IP is issuing too many concurrent connections"), "http_max_conns_per_client"},
		{"403", fail(403, "ACL not found"), "no token is set"},
		{"not JSON", fail(200, "<html>"), "consul"},
		{"refused", func(f *fake) {
			f.refuse = true
			f.handle = func(w http.ResponseWriter, _ *http.Request) bool { panic(http.ErrAbortHandler) }
		}, "connection refused"},
		{"hangs", func(f *fake) {
			f.handle = func(w http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
		}, "in time"},
		{"hangs after its header", func(f *fake) {
			f.handle = func(w http.ResponseWriter, r *http.Request) bool {
				w.Header().Set("X-Consul-Index", "99")
				w.WriteHeader(200)
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return true
			}
		}, "in time"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, f *fake) {
				f.set("web", "web-1", "web-2")
				w := watch(t, f.options(), consul.WatchOptions{}, query("web"))
				want(t, w, "web", "web-1 web-2")
				f.with(func() { tt.break_(f) })
				f.set("web", "web-1", "web-2")
				time.Sleep(10 * time.Minute)
				want(t, w, "web", "web-1 web-2")
				st := w.catalog.State("web")
				if !st.Stale() || !strings.Contains(st.Err, tt.kind) {
					t.Fatalf("state %+v, want stale with %q", st, tt.kind)
				}
				if n := len(f.asked()); n > 20 {
					t.Fatalf("%d good queries in an outage", n)
				}
				f.with(func() { f.handle, f.refuse = nil, false })
				f.set("web", "web-3")
				time.Sleep(10 * time.Second)
				want(t, w, "web", "web-3")
				if st := w.catalog.State("web"); st.Stale() {
					t.Fatalf("stale after recovery: %+v", st)
				}
			})
		})
	}
}

// An index from the future makes Consul block through real changes: it is what
// a watcher would hold after the catalog's state went back.
func TestIndexFromTheFuture(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		f.with(func() { f.index = 5000 })
		f.set("web", "web-1")
		w := watch(t, f.options(), consul.WatchOptions{}, query("web"))
		want(t, w, "web", "web-1")
		f.with(func() { f.index = 20 })
		f.set("web", "web-1", "web-2")
		time.Sleep(75 * time.Second) // one wait, then the truth
		want(t, w, "web", "web-1 web-2")
		f.set("web", "web-2")
		want(t, w, "web", "web-2")
	})
}

// What index was held before a failure may mean nothing after it.
func TestFailureStartsOver(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		f.with(func() { f.index = 5000 })
		f.set("web", "web-1")
		w := watch(t, f.options(), consul.WatchOptions{}, query("web"))
		want(t, w, "web", "web-1")
		f.with(func() {
			f.handle = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.HasPrefix(r.URL.Path, "/v1/health/") {
					http.Error(w, "boom", 500)
					return true
				}
				return false
			}
		})
		f.set("web", "web-1") // ends the query that blocks
		time.Sleep(time.Second)
		f.with(func() { f.index, f.handle = 20, nil })
		f.set("web", "web-1", "web-2")
		time.Sleep(8 * time.Second)
		want(t, w, "web", "web-1 web-2")
	})
}

// One service's query may be lost while all else is well.
func TestLostQueryIsGivenUp(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		f.set("web", "web-1")
		f.set("other", "other-1")
		w := watch(t, f.options(), consul.WatchOptions{}, query("web"), query("other"))
		want(t, w, "web", "web-1")
		f.with(func() {
			f.handle = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/v1/health/service/web" && r.URL.Query().Get("index") != "" {
					<-r.Context().Done()
					return true
				}
				return false
			}
		})
		f.set("web", "web-1") // brings the watch into the handler's regime
		synctest.Wait()
		f.with(func() { f.handle = nil; f.services["web"] = []string{"web-2"}; f.index++ })
		time.Sleep(80 * time.Second)
		want(t, w, "web", "web-2")
		want(t, w, "other", "other-1")
	})
}

// A partition that drops packets leaves queries that never end. They are asked
// again when the agent is reachable, not when their deadline comes.
func TestSilentPartition(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		f.set("web", "web-1")
		w := watch(t, f.options(), consul.WatchOptions{}, query("web"))
		want(t, w, "web", "web-1")
		f.with(func() {
			f.handle = func(w http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
		})
		f.set("web", "web-1") // the next query is swallowed
		time.Sleep(20 * time.Second)
		if st := w.catalog.State("web"); !st.Stale() || w.State().Up {
			t.Fatalf("after 20s of silence: %+v", st)
		}
		f.with(func() { f.handle = nil })
		f.set("web", "web-2")
		time.Sleep(10 * time.Second) // one probe was under way when the silence ended
		want(t, w, "web", "web-2")
		if st := w.catalog.State("web"); st.Stale() {
			t.Fatalf("state %+v", st)
		}
	})
}

func TestForgottenInstancesAreHeld(t *testing.T) {
	wipe := func(f *fake, index uint64, back ...string) {
		f.with(func() {
			f.refuse = true
			f.handle = func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }
		})
		f.set("web")
		time.Sleep(5 * time.Second)
		f.with(func() { f.index, f.handle, f.refuse = index, nil, false })
		f.set("web", back...)
		time.Sleep(5 * time.Second)
	}
	for _, index := range []uint64{3, 3000} {
		bubble(t, func(t *testing.T, f *fake) {
			f.set("web", "web-1", "web-2")
			w := watch(t, f.options(), consul.WatchOptions{}, query("web"))
			want(t, w, "web", "web-1 web-2")
			wipe(f, index)
			want(t, w, "web", "web-1 web-2")
			if st := w.catalog.State("web"); !st.Stale() || !strings.Contains(st.Err, "forgot 2 instances") {
				t.Fatalf("state %+v", st)
			}
			f.set("web", "web-1")
			want(t, w, "web", "web-1 web-2")
			f.set("web", "web-1", "web-2")
			want(t, w, "web", "web-1 web-2")
			if st := w.catalog.State("web"); st.Stale() {
				t.Fatalf("all are back, yet stale: %+v", st)
			}
			f.set("web", "web-2")
			want(t, w, "web", "web-2") // a deregistration counts again at once
		})
	}
	// Not for ever.
	bubble(t, func(t *testing.T, f *fake) {
		f.set("web", "web-1", "web-2")
		w := watch(t, f.options(), consul.WatchOptions{}, query("web"))
		want(t, w, "web", "web-1 web-2")
		wipe(f, 3, "web-1")
		want(t, w, "web", "web-1 web-2")
		time.Sleep(70 * time.Second)
		want(t, w, "web", "web-1")
		if st := w.catalog.State("web"); st.Stale() {
			t.Fatalf("stale: %+v", st)
		}
	})
}

func TestNoLeaderMakesStale(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		f.set("web", "web-1")
		w := watch(t, f.options(), consul.WatchOptions{}, query("web"))
		want(t, w, "web", "web-1")
		f.with(func() { f.leader = "" })
		time.Sleep(3 * time.Minute) // the watch goes on being answered
		if st := w.catalog.State("web"); !st.Stale() || w.State().Leader != "" || !w.State().Up {
			t.Fatalf("catalog %+v, watcher %+v", st, w.State())
		}
		f.with(func() { f.leader = "127.0.0.1:8300" })
		time.Sleep(12 * time.Second)
		if st := w.catalog.State("web"); st.Stale() {
			t.Fatalf("still stale: %+v", st)
		}
	})
}

// Behind a proxy that lets only health queries through, all is well.
func TestProbeMayBeRefused(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		f.handle = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, "/v1/status/") {
				http.Error(w, "not for you", http.StatusForbidden)
				return true
			}
			return false
		}
		f.set("web", "web-1")
		w := watch(t, f.options(), consul.WatchOptions{}, query("web"))
		time.Sleep(5 * time.Minute)
		want(t, w, "web", "web-1")
		if st := w.catalog.State("web"); st.Stale() || !w.State().Up {
			t.Fatalf("state %+v", st)
		}
	})
}

func TestOutageIsOneProbeNotAHerd(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		var all []string
		queries := watchQueries(100)
		for _, q := range queries {
			f.set(q.Service, q.Service+"-1")
			all = append(all, q.Service)
		}
		w := watch(t, f.options(), consul.WatchOptions{}, queries...)
		want(t, w, all[99], all[99]+"-1")
		f.with(func() {
			f.refuse = true
			f.handle = func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }
		})
		f.set("other")
		time.Sleep(10 * time.Second)
		f.with(func() { f.dials = 0 })
		time.Sleep(10 * time.Minute)
		f.with(func() {
			// one every second or so by the probe, one each 30 s by each watch
			if f.dials > 600+100*20*2 {
				t.Errorf("%d dials in ten minutes of outage", f.dials)
			}
			f.handle, f.refuse, f.dials = nil, false, 0
		})
		for _, name := range all {
			f.set(name, name+"-2")
		}
		time.Sleep(4 * time.Second)
		for _, name := range all {
			want(t, w, name, name+"-2")
		}
	})
}
