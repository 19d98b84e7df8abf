package main

import (
	"bytes"
	"log/slog"
	"math"
	"runtime/debug"
	"strings"
	"testing"
	"testing/fstest"
)

func TestContainerMemory(t *testing.T) {
	files := func(pairs ...string) fstest.MapFS {
		m := fstest.MapFS{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
		}
		return m
	}
	for _, tt := range []struct {
		name string
		root fstest.MapFS
		want int64
	}{
		{"no control groups", files(), 0},
		{"in a container", files("proc/self/cgroup", "0::/\n", "sys/fs/cgroup/memory.max", "268435456\n"), 256 << 20},
		{"no limit", files("proc/self/cgroup", "0::/\n", "sys/fs/cgroup/memory.max", "max\n"), 0},
		{"a service of the host, whose slice is smaller", files("proc/self/cgroup", "0::/system.slice/proconsul.service\n",
			"sys/fs/cgroup/system.slice/proconsul.service/memory.max", "1073741824\n", "sys/fs/cgroup/system.slice/memory.max", "536870912\n"), 512 << 20},
		{"the host's path, of which nothing is seen", files("proc/self/cgroup", "0::/docker/abc\n", "sys/fs/cgroup/memory.max", "134217728\n"), 128 << 20},
		{"version 1", files("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n",
			"sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "67108864\n", "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"), 64 << 20},
	} {
		if got := containerMemory(tt.root); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

// The environment has the last word.
func TestTune(t *testing.T) {
	percent, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(-1)
	defer func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	}()
	var log bytes.Buffer
	t.Setenv("GOMEMLIMIT", "1GiB")
	t.Setenv("GOGC", "100")
	tune(slog.New(slog.NewTextHandler(&log, nil)))
	if !strings.Contains(log.String(), "gc_percent=100") {
		t.Errorf("GOGC is set, and the log says %s", &log)
	}
	t.Setenv("GOGC", "")
	log.Reset()
	tune(slog.New(slog.NewTextHandler(&log, nil)))
	if got := debug.SetGCPercent(100); got != 400 || !strings.Contains(log.String(), "gc_percent=400") {
		t.Errorf("got %d, and the log says %s", got, &log)
	}
	if got := debug.SetMemoryLimit(-1); got != limit && got != math.MaxInt64 {
		t.Errorf("GOMEMLIMIT is set, and the limit became %d", got)
	}
}
