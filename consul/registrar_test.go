package consul_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proconsul/proconsul/consul"
	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/parts"
)

// running starts a registrar against addr; end ends it and returns Run's error.
func running(t *testing.T, addr string, reg consul.Registration, o consul.RegistrarOptions) (r *consul.Registrar, end func() error) {
	t.Helper()
	client, err := consul.NewClient(consul.Options{Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	if r, err = consul.NewRegistrar(client, reg, o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	ended := false
	end = func() error {
		if ended {
			return nil
		}
		ended = true
		cancel()
		err := <-done
		client.CloseIdle()
		return err
	}
	t.Cleanup(func() { _ = end() })
	return r, end
}

// service is a small HTTP server with a health that can be switched. It counts
// the looks of the registrar, which come with each registration.
func service(t *testing.T) (port int, sick *atomic.Bool, looks *atomic.Int64) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sick, looks = &atomic.Bool{}, &atomic.Int64{}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.UserAgent(), "Consul") { // not the agent's
			looks.Add(1)
		}
		if sick.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	return ln.Addr().(*net.TCPAddr).Port, sick, looks
}

// wakes follows a service, as a gateway does, until done, and returns how often
// Consul woke it, and how often of those for nothing that it could see.
func wakes(t *testing.T, addr, service string, done func() bool) (all, idle int) {
	t.Helper()
	var index, before string
	for deadline := time.Now().Add(time.Minute); ; {
		resp, err := http.Get("http://" + addr + "/v1/health/service/" + service + "?wait=1s&index=" + index)
		if err != nil {
			t.Fatal(err)
		}
		var entries []map[string]any
		err = json.NewDecoder(resp.Body).Decode(&entries)
		_ = resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		dropIndexes(entries)
		text := fmt.Sprint(entries)
		if is := resp.Header.Get("X-Consul-Index"); index != "" && is != index {
			if all++; text == before {
				idle++
			}
		}
		if done() {
			return all, idle
		}
		if time.Now().After(deadline) {
			t.Fatal("a minute was not enough")
		}
		index, before = resp.Header.Get("X-Consul-Index"), text
	}
}

// dropIndexes takes out of an answer when its parts were written.
func dropIndexes[T any](list []T) {
	for _, v := range list {
		switch v := any(v).(type) {
		case map[string]any:
			delete(v, "CreateIndex")
			delete(v, "ModifyIndex")
			dropIndexes(slices.Collect(maps.Values(v)))
		case []any:
			dropIndexes(v)
		}
	}
}

func TestRegistrarLife(t *testing.T) {
	t.Parallel()
	c := parts.StartConsul(t)
	w := watch(t, consul.Options{Addr: c.Addr}, consul.WatchOptions{}, query("web"))
	port, sick, looks := service(t)
	// What an earlier life of this id left must not rot beside us.
	put(t, c.Addr, "/v1/agent/service/register", map[string]any{"Name": "web", "ID": "web-a", "Port": 1,
		"Check": map[string]any{"CheckID": "old", "TTL": "1h", "Status": "critical"}})

	registered := make(chan string, 10)
	r, end := running(t, c.Addr, consul.Registration{Name: "web", ID: "web-a", Port: port, Tags: []string{"blue"},
		Meta: map[string]string{"version": "2"}, Weights: consul.Weights{Passing: 5, Warning: 2},
		Check: consul.Check{HTTP: "/healthz", Interval: time.Second}},
		consul.RegistrarOptions{Refresh: 50 * time.Millisecond, OnRegistered: func(id, addr string) { registered <- id + " " + addr }})

	parts.Eventually(t, 20*time.Second, "it is registered, passing at once and without the old check", func() bool {
		in := w.first("web")
		return in.Status == discovery.StatusPassing && in.Weight == 5 && in.Version == "2" && in.Address == fmt.Sprintf("127.0.0.1:%d", port) && len(in.Checks) == 2
	})
	if got, want := <-registered, fmt.Sprintf("web-a 127.0.0.1:%d", port); got != want {
		t.Errorf("told %q, want %q", got, want)
	}

	t.Run("an operator's maintenance survives the refreshes", func(t *testing.T) {
		put(t, c.Addr, "/v1/agent/service/maintenance/web-a?enable=true&reason=x", nil)
		parts.Eventually(t, 20*time.Second, "maintenance is seen", func() bool { return w.first("web").Status == discovery.StatusMaintenance })
		var other atomic.Int32
		cancel := w.catalog.Subscribe("web", func(s discovery.Snapshot) {
			if len(s.Instances) != 1 || s.Instances[0].Status != discovery.StatusMaintenance {
				other.Add(1)
			}
		})
		// A refresh begins with a look: with the third the second is over.
		began := looks.Load()
		all, idle := wakes(t, c.Addr, "web", func() bool { return looks.Load() >= began+3 })
		cancel()
		if n := other.Load(); n != 0 {
			t.Fatalf("a refresh ended the maintenance, %d snapshots", n)
		}
		// Consul may push the output of a check along with a refresh; a refresh
		// alone is no change. Its index says nothing of that by itself: it is a
		// place in the log of all that is written.
		if idle >= 2 {
			t.Fatalf("two refreshes woke every gateway %d times, %d of them for nothing", all, idle)
		}
		put(t, c.Addr, "/v1/agent/service/maintenance/web-a?enable=false", nil)
		parts.Eventually(t, 20*time.Second, "it is back", func() bool { return w.first("web").Status == discovery.StatusPassing })
	})

	t.Run("a deregistration by somebody else is repaired", func(t *testing.T) {
		for range 3 {
			start := time.Now()
			put(t, c.Addr, "/v1/agent/service/deregister/web-a", nil)
			parts.Eventually(t, 20*time.Second, "it is registered again", func() bool {
				code, _ := get(t, "http://"+c.Addr+"/v1/agent/service/web-a")
				return code == http.StatusOK && w.first("web").Status == discovery.StatusPassing
			})
			t.Logf("registered again and in the pool %v after the deregistration", time.Since(start).Round(time.Millisecond))
		}
	})

	t.Run("what it announces is seen beside its own meta, and is no repair", func(t *testing.T) {
		r.Announce(map[string]string{"config": "abc"})
		parts.Eventually(t, 20*time.Second, "the meta is there", func() bool {
			in := w.first("web")
			return in.Meta["config"] == "abc" && in.Meta["version"] == "2" && in.Status == discovery.StatusPassing
		})
		r.Announce(map[string]string{"config": "def"})
		parts.Eventually(t, 20*time.Second, "the meta is replaced", func() bool { return w.first("web").Meta["config"] == "def" })
	})

	t.Run("a sick service stays sick through the refreshes", func(t *testing.T) {
		sick.Store(true)
		parts.Eventually(t, 20*time.Second, "critical is seen", func() bool { return w.first("web").Status == discovery.StatusCritical })
		var blips atomic.Int32
		cancel := w.catalog.Subscribe("web", func(s discovery.Snapshot) {
			if len(s.Instances) != 1 || s.Instances[0].Status != discovery.StatusCritical {
				blips.Add(1)
			}
		})
		defer cancel()
		time.Sleep(300 * time.Millisecond)
		if n := blips.Load(); n != 0 {
			t.Fatalf("a refresh made it look well %d times", n)
		}
		sick.Store(false)
		parts.Eventually(t, 20*time.Second, "it is well again", func() bool { return w.first("web").Status == discovery.StatusPassing })
	})

	if ok, err := r.Registered(); !ok || err != nil {
		t.Errorf("registered %v, %v", ok, err)
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	parts.Eventually(t, 20*time.Second, "it is deregistered", func() bool { return w.first("web").ID == "" })
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

// An agent whose memory is gone, as a development agent after a restart, gets
// its services back without anybody's help.
func TestRegistrarOutlivesItsAgent(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	c := parts.StartConsul(t, fmt.Sprintf(`{"data_dir":%q}`, data))
	w := watch(t, consul.Options{Addr: c.Addr}, consul.WatchOptions{}, query("job"))
	status := atomic.Int32{}
	status.Store(int32(discovery.StatusPassing))
	_, end := running(t, c.Addr, consul.Registration{Name: "job", Port: 9999, Check: consul.Check{TTL: 3 * time.Second,
		Report: func() (discovery.Status, string) { return discovery.Status(status.Load()), "as I say" }}}, consul.RegistrarOptions{})
	passing := func() bool { return w.first("job").Status == discovery.StatusPassing }
	parts.Eventually(t, 20*time.Second, "it is registered", passing)
	if id := w.first("job").ServiceID; !strings.HasPrefix(id, "job-") || !strings.HasSuffix(id, "-9999") {
		t.Errorf("id %q, want job-HOST-9999", id)
	}

	status.Store(int32(discovery.StatusWarning))
	parts.Eventually(t, 20*time.Second, "its own report is heard", func() bool { return w.first("job").Status == discovery.StatusWarning })
	status.Store(int32(discovery.StatusPassing))
	parts.Eventually(t, 20*time.Second, "and its recovery", passing)

	c.Kill()
	entries, err := os.ReadDir(data)
	if err != nil || len(entries) == 0 {
		t.Fatalf("nothing to wipe: %v", err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(data, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	c.Start()
	start := time.Now()
	parts.Eventually(t, 15*time.Second, "it is registered with an agent that never heard of it", func() bool {
		code, _ := get(t, "http://"+c.Addr+"/v1/agent/health/service/name/job")
		return code == http.StatusOK
	})
	t.Logf("registered again %v after the agent's return without a memory", time.Since(start).Round(time.Millisecond))
	parts.Eventually(t, 10*time.Second, "the pool is fresh", func() bool { return passing() && !w.catalog.State("job").Stale() })

	c.Kill()
	start = time.Now()
	if err := end(); !errors.Is(err, consul.ErrUnreachable) {
		t.Errorf("ended with %v, want that Consul is unreachable", err)
	}
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("going down without Consul took %v", took)
	}
}

func TestRegistrationIsChecked(t *testing.T) {
	client, err := consul.NewClient(consul.Options{})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		want string
		reg  consul.Registration
	}{
		{"name is empty", consul.Registration{Port: 1}},
		{"port 70000", consul.Registration{Name: "a", Port: 70000}},
		{"not both", consul.Registration{Name: "a", Check: consul.Check{HTTP: "/", TTL: time.Second}}},
		{"at least 1s", consul.Registration{Name: "a", Check: consul.Check{TTL: time.Millisecond}}},
		{"neither a path nor a URL", consul.Registration{Name: "a", Check: consul.Check{HTTP: "healthz"}}},
		{"passing is 1 to", consul.Registration{Name: "a", Weights: consul.Weights{Warning: 3}}},
	}
	for _, tt := range tests {
		if _, err := consul.NewRegistrar(client, tt.reg, consul.RegistrarOptions{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, want %q", err, tt.want)
		}
	}
}

// While Consul is away a service serves, says so once, and knocks politely.
func TestRegistrarWithoutConsul(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		defer f.close()
		f.refuse = true
		client, err := consul.NewClient(f.options())
		if err != nil {
			t.Fatal(err)
		}
		var log strings.Builder
		r, err := consul.NewRegistrar(client, consul.Registration{Name: "web", Port: 80, Check: consul.Check{TTL: 10 * time.Second}},
			consul.RegistrarOptions{Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		time.Sleep(10 * time.Minute)
		f.with(func() {
			if f.dials < 60 || f.dials > 400 {
				t.Errorf("%d tries in ten minutes, want one every five seconds or so", f.dials)
			}
		})
		if n := strings.Count(log.String(), "cannot be registered"); n != 1 {
			t.Errorf("said %d times that it cannot register", n)
		}
		if ok, err := r.Registered(); ok || err == nil {
			t.Errorf("registered %v, %v", ok, err)
		}
		cancel()
		if err := <-done; err == nil {
			t.Error("deregistration without Consul succeeded")
		}
		client.CloseIdle()
	})
}
