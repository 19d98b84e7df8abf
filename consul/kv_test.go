package consul_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/consul"
)

const kvPrefix = "proconsul/consumers/"

// store is the KV part of a fake.
type store struct {
	mu      sync.Mutex
	index   uint64
	pairs   map[string]string
	changed chan struct{}
	asked   int
	answer  func(w http.ResponseWriter) bool // instead; true: it has answered
}

func newStore(f *fake) *store {
	s := &store{index: 50, pairs: map[string]string{}, changed: make(chan struct{})}
	f.handle = s.handle
	return s
}

// put changes keys; an empty value takes one out.
func (s *store) put(kv ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index++
	for i := 0; i < len(kv); i += 2 {
		s.pairs[kvPrefix+kv[i]] = kv[i+1]
		if kv[i+1] == "" {
			delete(s.pairs, kvPrefix+kv[i])
		}
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *store) with(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *store) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *store) handle(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path != "/v1/kv/"+kvPrefix || !r.URL.Query().Has("recurse") {
		return false
	}
	index, _ := strconv.ParseUint(r.URL.Query().Get("index"), 10, 64)
	block, _ := time.ParseDuration(r.URL.Query().Get("wait"))
	end := time.NewTimer(block)
	defer end.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	for waiting := index > 0; waiting && index == s.index; {
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-end.C:
			waiting = false
		case <-r.Context().Done():
			s.mu.Lock()
			return true
		}
		s.mu.Lock()
	}
	if s.answer != nil && s.answer(w) {
		return true
	}
	w.Header().Set("X-Consul-Index", strconv.FormatUint(s.index, 10))
	w.Header().Set("X-Consul-Lastcontact", "0")
	w.Header().Set("X-Consul-Knownleader", "true")
	list := []map[string]any{}
	for key, value := range s.pairs {
		list = append(list, map[string]any{"Key": key, "Value": []byte(value), "ModifyIndex": s.index})
	}
	if len(list) == 0 {
		w.WriteHeader(404)
		return true
	}
	_ = json.NewEncoder(w).Encode(list)
	return true
}

// follow runs a watch of the keys and returns it with what it was told last.
func follow(t *testing.T, f *fake, o consul.KVOptions) (k *consul.KVWatch, last func() string) {
	t.Helper()
	var mu sync.Mutex
	seen := "nothing"
	o.Prefix = kvPrefix
	o.OnChange = func(pairs []consul.Pair, _ uint64) {
		mu.Lock()
		defer mu.Unlock()
		var parts []string
		for _, p := range pairs {
			parts = append(parts, strings.TrimPrefix(p.Key, kvPrefix)+"="+string(p.Value))
		}
		seen = strings.Join(parts, " ")
	}
	w := watch(t, f.options(), consul.WatchOptions{})
	k = consul.NewKVWatch(w.Watcher, o)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := k.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	synctest.Wait()
	return k, func() string {
		mu.Lock()
		defer mu.Unlock()
		return seen
	}
}

func TestKeysAreFollowed(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		s := newStore(f)
		k, last := follow(t, f, consul.KVOptions{})
		check := func(want string) {
			t.Helper()
			time.Sleep(3 * time.Second)
			synctest.Wait()
			if last() != want || k.State().Err != "" || !k.State().Loaded {
				t.Fatalf("got %q, %+v, want %q", last(), k.State(), want)
			}
		}
		check("")
		s.put("a", "1")
		check("a=1")
		s.put("a", "2")
		check("a=2")
		s.put("a", "")
		check("") // 404 with an index is an answer
		s.put("b", "1")
		check("b=1")
		s.with(func() { s.index = 20; s.pairs[kvPrefix+"b"] = "restored" }) // a snapshot of Consul's was restored
		check("b=restored")
		before := s.count()
		time.Sleep(time.Hour)
		if n := s.count() - before; n > 70 {
			t.Errorf("%d queries in an hour without a change", n)
		}
	})
}

// What is not an answer of Consul's to the question changes nothing, says why,
// and is no storm; afterwards the keys are followed again.
func TestKeysStayWhereConsulDoesNotSay(t *testing.T) {
	says := func(code int, text string) func(http.ResponseWriter) bool {
		return func(w http.ResponseWriter) bool { w.WriteHeader(code); fmt.Fprint(w, text); return true }
	}
	for name, tt := range map[string]struct {
		answer func(http.ResponseWriter) bool
		refuse bool
		want   string
	}{
		"no leader": {says(500, "No cluster leader"), false, "500"},
		"denied":    {says(403, "Permission denied"), false, `key_prefix "proconsul/consumers/" read`},
		"not JSON": {func(w http.ResponseWriter) bool {
			w.Header().Set("X-Consul-Index", "99")
			fmt.Fprint(w, "<html>")
			return true
		}, false, "invalid"},
		"hidden by ACL": {func(w http.ResponseWriter) bool {
			w.Header().Set("X-Consul-Index", "99")
			w.Header().Set("X-Consul-LastContact", "0")
			w.Header().Set("X-Consul-KnownLeader", "true")
			w.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
			w.WriteHeader(404)
			return true
		}, false, "hides keys"},
		"some hidden by ACL": {func(w http.ResponseWriter) bool {
			w.Header().Set("X-Consul-Index", "99")
			w.Header().Set("X-Consul-LastContact", "0")
			w.Header().Set("X-Consul-KnownLeader", "true")
			w.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
			fmt.Fprintf(w, `[{"Key": "%sz", "Value": "Mg==", "ModifyIndex": 99}]`, kvPrefix)
			return true
		}, false, "hides keys"},
		"a wiped Consul": {func(w http.ResponseWriter) bool {
			w.Header().Set("X-Consul-Index", "3")
			w.Header().Set("X-Consul-LastContact", "0")
			w.WriteHeader(404)
			return true
		}, false, "forgot every key"},
		"the agent is gone": {nil, true, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, f *fake) {
				s := newStore(f)
				s.put("a", "1")
				k, last := follow(t, f, consul.KVOptions{})
				time.Sleep(time.Second)
				s.with(func() { s.answer = tt.answer })
				if tt.refuse {
					f.with(func() { f.refuse = true })
					f.srv.Close() // and every connection
				}
				time.Sleep(time.Minute)
				before := s.count()
				time.Sleep(time.Hour)
				if last() != "a=1" || !strings.Contains(k.State().Err, tt.want) || k.State().Failures == 0 {
					t.Errorf("got %q, %+v", last(), k.State())
				}
				if n := s.count() - before; n > 1500 {
					t.Errorf("%d queries in an hour of trouble", n)
				}
				if tt.refuse {
					return // its listener cannot come back
				}
				s.with(func() { s.answer = nil })
				s.put("b", "2")
				time.Sleep(10 * time.Second)
				if got := last(); got != "a=1 b=2" && got != "b=2 a=1" || k.State().Err != "" {
					t.Errorf("afterwards %q, %+v", got, k.State())
				}
			})
		})
	}
}

// A replica that knows the keys from before believes no Consul that has lost
// its memory.
func TestKeysFromBefore(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		s := newStore(f)
		s.with(func() { s.index = 5 })
		k, last := follow(t, f, consul.KVOptions{Last: 51, LastKeys: 2})
		time.Sleep(time.Minute)
		if last() != "nothing" || k.State().Loaded || k.State().Err == "" {
			t.Errorf("got %q, %+v", last(), k.State())
		}
		s.put("a", "1")
		time.Sleep(10 * time.Second)
		if last() != "a=1" {
			t.Errorf("got %q", last())
		}
	})
}

func TestKVFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir", "catalog.json.kv")
	f := consul.NewKVFile(path, kvPrefix)
	if _, _, err := f.Load(); !consul.NoSnapshot(err) {
		t.Fatalf("without a file: %v", err)
	}
	if err := f.Save([]consul.Pair{{Key: kvPrefix + "a", Value: []byte("x: 1"), Index: 7}}, 9); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info.Mode(), err)
	}
	pairs, index, err := f.Load()
	if err != nil || index != 9 || len(pairs) != 1 || pairs[0].Key != kvPrefix+"a" || string(pairs[0].Value) != "x: 1" || pairs[0].Index != 7 {
		t.Fatalf("got %+v %d %v", pairs, index, err)
	}
	if _, _, err := consul.NewKVFile(path, "other/").Load(); err == nil {
		t.Error("keys of another prefix are taken")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{{"eDogMQ", "eDogMg"}, {`"version":1`, `"version":2`}, {"proconsul-kv", "proconsul-catalog"}, {"}\n", ""}} {
		if err := os.WriteFile(path, []byte(strings.Replace(string(text), change[0], change[1], 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _, err := f.Load(); err == nil || got != nil {
			t.Errorf("with %s changed it is taken: %+v", change[0], got)
		}
	}
}
