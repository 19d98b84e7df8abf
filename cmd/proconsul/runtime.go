package main

import (
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// What the garbage collector is set to where the environment does not say.
const (
	// gcPercent is GOGC: a request leaves little behind and lives shortly, so
	// that a larger heap costs some ten MiB and saves a few percent of the
	// processor (docs/performance.md).
	gcPercent = 400
	// memoryPercent is how much of the container's memory the heap may come
	// close to before it is collected more often than that.
	memoryPercent = 90
)

// tune sets the collector, unless GOGC or GOMEMLIMIT do, and tells log. The
// number of processors is the runtime's to find out: it heeds the container's
// quota.
func tune(log *slog.Logger) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if limit := containerMemory(os.DirFS("/")); limit > 0 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit / 100 * memoryPercent)
	}
	percent := debug.SetGCPercent(gcPercent)
	debug.SetGCPercent(percent) // there is no other way to read it
	attrs := []any{"gc_percent", percent}
	if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
		attrs = append(attrs, "memory_limit", limit)
	}
	log.Info("runtime", attrs...)
}

// containerMemory returns the least limit of the control groups that this
// process is in, of either version, or 0 where there is none. root is the file
// system.
func containerMemory(root fs.FS) int64 {
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return 0 // not Linux
	}
	var least int64
	for line := range strings.Lines(string(groups)) {
		id, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, group, _ := strings.Cut(rest, ":")
		at, file := "sys/fs/cgroup", "memory.max"
		if id != "0" {
			at, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
			if !strings.Contains(","+controllers+",", ",memory,") {
				continue
			}
		}
		// A limit of a group above holds too. Inside a container the path may be
		// the host's, of which only the root is to be seen.
		for dir := path.Clean("/" + group); ; dir = path.Dir(dir) {
			if n := limitIn(root, at+path.Join("/", dir, file)); n > 0 && (least == 0 || n < least) {
				least = n
			}
			if dir == "/" {
				break
			}
		}
	}
	return least
}

// limitIn reads a limit; 0 where there is none.
func limitIn(root fs.FS, name string) int64 {
	text, err := fs.ReadFile(root, name)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n <= 0 || n >= 1<<50 { // "max", or version 1's word for it
		return 0
	}
	return n
}
