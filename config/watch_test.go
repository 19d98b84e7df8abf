package config_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/proconsul/proconsul/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// watching runs Watch until the test ends and counts its calls.
func watching(t *testing.T, path string) (calls *atomic.Int32) {
	t.Helper()
	return watchingAlso(t, path, nil)
}

func watchingAlso(t *testing.T, path string, also func() []string) (calls *atomic.Int32) {
	t.Helper()
	calls = new(atomic.Int32)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- config.Watch(ctx, path, also, func() { calls.Add(1) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Watch = %v", err)
		}
	})
	// The watch is up once it sees a change; probe until it does.
	probe := path
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		probe = filepath.Join(path, "probe.yaml")
	}
	text, _ := os.ReadFile(probe)
	deadline := time.Now().Add(10 * time.Second)
	for calls.Load() == 0 {
		if time.Now().After(deadline) {
			t.Fatal("Watch never saw a change")
		}
		write(t, probe, string(text))
		until(300*time.Millisecond, func() bool { return calls.Load() > 0 })
	}
	settle(calls)
	calls.Store(0)
	return calls
}

// until polls cond and reports whether it held in time.
func until(d time.Duration, cond func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(d); time.Now().Before(deadline); <-tick.C {
		if cond() {
			return true
		}
	}
	return cond()
}

// settle waits until no call came for longer than Watch waits itself.
func settle(calls *atomic.Int32) {
	for {
		n := calls.Load()
		if !until(400*time.Millisecond, func() bool { return calls.Load() != n }) {
			return
		}
	}
}

func TestWatch(t *testing.T) {
	rename := func(t *testing.T, from, to string) {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("written in place, in many steps", func(t *testing.T) {
		t.Parallel()
		file := filepath.Join(t.TempDir(), "proconsul.yaml")
		write(t, file, "version: 1\n")
		calls := watching(t, file)
		pauses, last := 0, time.Now()
		for i := range 20 {
			write(t, file, strings.Repeat("#\n", i))
			if time.Since(last) > 50*time.Millisecond {
				pauses++ // a machine that stalls makes bursts of one
			}
			last = time.Now()
		}
		if !until(5*time.Second, func() bool { return calls.Load() > 0 }) {
			t.Fatal("the change went unseen")
		}
		settle(calls)
		if n := calls.Load(); int(n) > 2+pauses {
			t.Errorf("%d calls for one burst of writes with %d pauses", n, pauses)
		}
	})
	t.Run("replaced by rename, twice", func(t *testing.T) {
		t.Parallel()
		file := filepath.Join(t.TempDir(), "proconsul.yaml")
		write(t, file, "version: 1\n")
		calls := watching(t, file)
		for range 2 {
			calls.Store(0)
			write(t, file+".tmp", "version: 1\n#\n")
			rename(t, file+".tmp", file)
			if !until(5*time.Second, func() bool { return calls.Load() > 0 }) {
				t.Fatal("the rename went unseen")
			}
			settle(calls)
		}
	})
	t.Run("another file is none of our business", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		file := filepath.Join(dir, "proconsul.yaml")
		write(t, file, "version: 1\n")
		calls := watching(t, file)
		write(t, filepath.Join(dir, "other.yaml"), "x")
		settle(calls)
		if n := calls.Load(); n != 0 {
			t.Errorf("%d calls for another file", n)
		}
	})
	t.Run("a ConfigMap's link is swapped", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		link := func(version, text string) {
			if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, version, "proconsul.yaml"), text)
			if err := os.Symlink(version, filepath.Join(dir, "..data_tmp")); err != nil {
				t.Fatal(err)
			}
			rename(t, filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data"))
		}
		link("..2026_1", "version: 1\n")
		file := filepath.Join(dir, "proconsul.yaml")
		if err := os.Symlink("..data/proconsul.yaml", file); err != nil {
			t.Fatal(err)
		}
		calls := new(atomic.Int32)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- config.Watch(ctx, file, nil, func() { calls.Add(1) }) }()
		swaps := 1
		if !until(10*time.Second, func() bool {
			if swaps < 9 {
				swaps++
				link("..2026_"+string(rune('0'+swaps)), "version: 1\n#\n")
			}
			return until(300*time.Millisecond, func() bool { return calls.Load() > 0 })
		}) {
			t.Error("the swap went unseen")
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Watch = %v", err)
		}
	})
	t.Run("a file of a directory", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		calls := watching(t, dir)
		write(t, filepath.Join(dir, "20-new.yaml"), "version: 1\n")
		if !until(5*time.Second, func() bool { return calls.Load() > 0 }) {
			t.Fatal("the new file went unseen")
		}
		settle(calls)
		calls.Store(0)
		if err := os.Remove(filepath.Join(dir, "20-new.yaml")); err != nil {
			t.Fatal(err)
		}
		if !until(5*time.Second, func() bool { return calls.Load() > 0 }) {
			t.Fatal("the removal went unseen")
		}
	})
	t.Run("the directory goes and comes back", func(t *testing.T) {
		t.Parallel()
		dir := filepath.Join(t.TempDir(), "conf")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "proconsul.yaml")
		write(t, file, "version: 1\n")
		calls := watching(t, file)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		settle(calls)
		calls.Store(0)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, file, "version: 1\n")
		if !until(10*time.Second, func() bool { return calls.Load() > 0 }) {
			t.Error("the new directory went unseen")
		}
	})
	t.Run("nothing there", func(t *testing.T) {
		t.Parallel()
		if err := config.Watch(t.Context(), filepath.Join(t.TempDir(), "none"), nil, func() {}); err == nil {
			t.Error("Watch of nothing succeeded")
		}
	})
}
