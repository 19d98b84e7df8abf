package consul_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/consul"
	"github.com/proconsul/proconsul/discovery"
)

func instance(id string, s discovery.Status) discovery.Instance {
	return discovery.Instance{ID: "n1/" + id, Service: "web", ServiceID: id, Node: "n1", Datacenter: "dc1", Address: "127.0.0.1:1",
		Status: s, Weight: 3, Tags: []string{"a"}, Meta: map[string]string{"version": "7"}, Version: "7", Zone: "z"}
}

func TestSnapshotFileSurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "var", "catalog.json")
	at := time.Now().Add(-time.Hour).UTC()
	old := discovery.NewCatalog()
	in := instance("web-1", discovery.StatusWarning)
	old.Apply("web", discovery.Snapshot{Service: "web", Index: 42, Instances: []discovery.Instance{in}, At: at})
	old.Apply("gone", discovery.Snapshot{Service: "gone", Instances: []discovery.Instance{in}})
	if err := consul.NewSnapshotFile(path, old, slog.New(slog.DiscardHandler)).Save(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v %v, want 0600: it names every address", info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) != 0 {
		t.Fatalf("left behind: %v", left)
	}

	catalog := discovery.NewCatalog()
	catalog.Apply("live", discovery.Snapshot{Service: "live"})
	got, err := consul.NewSnapshotFile(path, catalog, slog.New(slog.DiscardHandler)).Load([]discovery.Query{query("web"), query("live"), query("new")})
	if err != nil || got.Services != 1 || got.Instances != 1 || got.Age > time.Minute {
		t.Fatalf("loaded %+v, %v", got, err)
	}
	st := catalog.State("web")
	if !st.Warm || !st.Stale() || st.Snapshot.Index != 42 || len(st.Snapshot.Instances) != 1 || !st.Snapshot.Instances[0].Equal(in) {
		t.Fatalf("got %+v", st)
	}
	if catalog.State("new").Loaded || catalog.State("gone").Loaded || catalog.State("live").Warm {
		t.Fatal("a query that the file lacks, nobody asks for, or has an answer, was touched")
	}
}

func TestDamagedSnapshotIsIgnored(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.json")
	catalog := discovery.NewCatalog()
	catalog.Apply("web", discovery.Snapshot{Service: "web", Instances: []discovery.Instance{instance("web-1", discovery.StatusPassing)}})
	if err := consul.NewSnapshotFile(path, catalog, slog.New(slog.DiscardHandler)).Save(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, text, want string }{
		{"cut short", string(good[:len(good)/2]), "damaged"},
		{"empty", "", "damaged"},
		{"a bit flipped", strings.Replace(string(good), "127.0.0.1", "127.0.0.9", 1), "checksum"},
		{"another program's", `{"a":1}`, "not a catalog snapshot"},
		{"a later version", strings.Replace(string(good), `"version":1`, `"version":2`, 1), "version 2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			catalog := discovery.NewCatalog()
			_, err := consul.NewSnapshotFile(path, catalog, slog.New(slog.DiscardHandler)).Load([]discovery.Query{query("web")})
			if err == nil || !strings.Contains(err.Error(), tt.want) || consul.NoSnapshot(err) {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
			if catalog.State("web").Loaded {
				t.Fatal("something of a damaged file was used")
			}
		})
	}
	_, err = consul.NewSnapshotFile(path+".none", catalog, slog.New(slog.DiscardHandler)).Load(nil)
	if !errors.Is(err, fs.ErrNotExist) || !consul.NoSnapshot(err) {
		t.Fatalf("error %v, want that there is none", err)
	}
}

func TestSnapshotIsWrittenOnceASecondAtMost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.json")
	synctest.Test(t, func(t *testing.T) {
		catalog := discovery.NewCatalog()
		f := consul.NewSnapshotFile(path, catalog, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		writes, last := 0, ""
		for range 100 {
			catalog.Apply("web", discovery.Snapshot{Instances: []discovery.Instance{instance(time.Now().String(), discovery.StatusPassing)}})
			f.Touch()
			time.Sleep(50 * time.Millisecond)
			synctest.Wait()
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(text) != last {
				writes, last = writes+1, string(text)
			}
		}
		if writes < 4 || writes > 6 {
			t.Errorf("%d writes in 5 s of changes, want one a second", writes)
		}
		end := instance("the-last", discovery.StatusPassing)
		catalog.Apply("web", discovery.Snapshot{Instances: []discovery.Instance{end}})
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), "the-last") {
			t.Fatalf("the last change is not in the file: %v", err)
		}
	})
}

func TestWarmStartServesUntilConsulAnswers(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake) {
		path := filepath.Join(t.TempDir(), "catalog.json")
		old := discovery.NewCatalog()
		old.Apply("web", discovery.Snapshot{Service: "web", Index: 500, Instances: []discovery.Instance{instance("web-1", discovery.StatusPassing)}})
		if err := consul.NewSnapshotFile(path, old, slog.New(slog.DiscardHandler)).Save(); err != nil {
			t.Fatal(err)
		}
		f.with(func() { f.refuse = true })
		w := watch(t, f.options(), consul.WatchOptions{}, query("web"))
		if _, err := consul.NewSnapshotFile(path, w.catalog, slog.New(slog.DiscardHandler)).Load([]discovery.Query{query("web")}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		want(t, w, "web", "web-1")
		if st := w.catalog.State("web"); !st.Warm || !st.Stale() {
			t.Fatalf("state %+v", st)
		}
		f.with(func() { f.refuse = false })
		f.set("web", "web-2", "web-3") // at an index far below the file's
		time.Sleep(5 * time.Second)
		want(t, w, "web", "web-2 web-3")
		if st := w.catalog.State("web"); st.Warm || st.Stale() {
			t.Fatalf("state %+v", st)
		}
	})
}

func TestReplicasShrinkLateAndNeverToNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		catalog := discovery.NewCatalog()
		r := consul.NewReplicas(catalog, query("web"))
		defer r.Close()
		apply := func(states ...discovery.Status) {
			var s discovery.Snapshot
			for i, st := range states {
				s.Instances = append(s.Instances, instance(string(rune('a'+i)), st))
			}
			catalog.Apply("web", s)
		}
		expect := func(n int) {
			t.Helper()
			if got := r.Count(); got != n {
				t.Fatalf("%d replicas, want %d", got, n)
			}
		}
		const up, down = discovery.StatusPassing, discovery.StatusCritical
		expect(1)
		apply(up, up, up, down)
		expect(3) // more counts at once
		apply(up, up)
		expect(3)
		time.Sleep(1900 * time.Millisecond)
		expect(3)
		apply(up, up, up)
		time.Sleep(time.Second)
		expect(3) // a flap was no shrink
		apply(up, up)
		time.Sleep(2 * time.Second)
		expect(2)
		apply()
		time.Sleep(time.Minute)
		expect(2) // a catalog that knows nobody knows less than we do
	})
}
