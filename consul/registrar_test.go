package consul_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
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

// service is a small HTTP server with a health that can be switched.
func service(t *testing.T) (port int, sick *atomic.Bool) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sick = &atomic.Bool{}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if sick.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	return ln.Addr().(*net.TCPAddr).Port, sick
}

func TestRegistrarLife(t *testing.T) {
	t.Parallel()
	c := parts.StartConsul(t)
	w := watch(t, consul.Options{Addr: c.Addr}, consul.WatchOptions{}, query("web"))
	port, sick := service(t)
	// What an earlier life of this id left must not rot beside us.
	put(t, c.Addr, "/v1/agent/service/register", map[string]any{"Name": "web", "ID": "web-a", "Port": 1,
		"Check": map[string]any{"CheckID": "old", "TTL": "1h", "Status": "critical"}})

	registered := make(chan string, 10)
	r, end := running(t, c.Addr, consul.Registration{Name: "web", ID: "web-a", Port: port, Tags: []string{"blue"},
		Meta: map[string]string{"version": "2"}, Weights: consul.Weights{Passing: 5, Warning: 2},
		Check: consul.Check{HTTP: "/healthz", Interval: time.Second}},
		consul.RegistrarOptions{Refresh: 50 * time.Millisecond, OnRegistered: func(id, addr string) { registered <- id + " " + addr }})

	parts.Eventually(t, 5*time.Second, "it is registered, passing at once and without the old check", func() bool {
		in := w.first("web")
		return in.Status == discovery.StatusPassing && in.Weight == 5 && in.Version == "2" && in.Address == fmt.Sprintf("127.0.0.1:%d", port) && len(in.Checks) == 2
	})
	if got, want := <-registered, fmt.Sprintf("web-a 127.0.0.1:%d", port); got != want {
		t.Errorf("told %q, want %q", got, want)
	}

	t.Run("an operator's maintenance survives the refreshes", func(t *testing.T) {
		put(t, c.Addr, "/v1/agent/service/maintenance/web-a?enable=true&reason=x", nil)
		parts.Eventually(t, 5*time.Second, "maintenance is seen", func() bool { return w.first("web").Status == discovery.StatusMaintenance })
		var other atomic.Int32
		cancel := w.catalog.Subscribe("web", func(s discovery.Snapshot) {
			if len(s.Instances) != 1 || s.Instances[0].Status != discovery.StatusMaintenance {
				other.Add(1)
			}
		})
		before := w.State().Watches[0].Index
		time.Sleep(2300 * time.Millisecond) // a refresh comes each two intervals of the check
		cancel()
		if n := other.Load(); n != 0 {
			t.Fatalf("a refresh ended the maintenance, %d snapshots", n)
		}
		// Consul may push the output of the first check along with a refresh,
		// once; a refresh alone is no change.
		if after := w.State().Watches[0].Index; after > before+3 {
			t.Fatalf("refreshes moved the index from %d to %d: they wake every gateway", before, after)
		}
		put(t, c.Addr, "/v1/agent/service/maintenance/web-a?enable=false", nil)
		parts.Eventually(t, 5*time.Second, "it is back", func() bool { return w.first("web").Status == discovery.StatusPassing })
	})

	t.Run("a deregistration by somebody else is repaired", func(t *testing.T) {
		for range 3 {
			start := time.Now()
			put(t, c.Addr, "/v1/agent/service/deregister/web-a", nil)
			parts.Eventually(t, 5*time.Second, "it is registered again", func() bool {
				code, _ := get(t, "http://"+c.Addr+"/v1/agent/service/web-a")
				return code == http.StatusOK && w.first("web").Status == discovery.StatusPassing
			})
			t.Logf("registered again and in the pool %v after the deregistration", time.Since(start).Round(time.Millisecond))
		}
	})

	t.Run("what it announces is seen beside its own meta, and is no repair", func(t *testing.T) {
		r.Announce(map[string]string{"config": "abc"})
		parts.Eventually(t, 5*time.Second, "the meta is there", func() bool {
			in := w.first("web")
			return in.Meta["config"] == "abc" && in.Meta["version"] == "2" && in.Status == discovery.StatusPassing
		})
		r.Announce(map[string]string{"config": "def"})
		parts.Eventually(t, 5*time.Second, "the meta is replaced", func() bool { return w.first("web").Meta["config"] == "def" })
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
	parts.Eventually(t, 5*time.Second, "it is deregistered", func() bool { return w.first("web").ID == "" })
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
	parts.Eventually(t, 5*time.Second, "it is registered", passing)
	if id := w.first("job").ServiceID; !strings.HasPrefix(id, "job-") || !strings.HasSuffix(id, "-9999") {
		t.Errorf("id %q, want job-HOST-9999", id)
	}

	status.Store(int32(discovery.StatusWarning))
	parts.Eventually(t, 5*time.Second, "its own report is heard", func() bool { return w.first("job").Status == discovery.StatusWarning })
	status.Store(int32(discovery.StatusPassing))
	parts.Eventually(t, 5*time.Second, "and its recovery", passing)

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
