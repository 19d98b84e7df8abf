package config

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// quiet is how long the directory has to be still before a change counts:
// editors and kubelets make one change of several steps.
const quiet = 100 * time.Millisecond

// rewatch is how often a directory that went is looked for.
const rewatch = time.Second

// Watch calls onChange after the configuration at path, a file or a directory,
// or one of the files that it refers to, may have changed, and once when it
// begins to watch, until ctx ends; then it returns nil. Changes within 100 ms are one call. Calls do not overlap, and
// none is lost: what changes during a call leads to another. also lists the
// files that are referred to, see LoadOptions.OnFile; it is asked again after
// each call, and may be nil.
//
// It watches the directory and not the file: an atomic rename puts a new file
// in the old one's place, and a ConfigMap swaps a symbolic link (..data)
// beside it. A change elsewhere in the directory may cause a call too, so
// onChange should compare (Config.Same) before it acts.
func Watch(ctx context.Context, path string, also func() []string, onChange func()) error {
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	return WatchFiles(ctx, func() []string {
		if also == nil {
			return []string{path}
		}
		return append([]string{path}, also()...)
	}, onChange)
}

// WatchFiles is Watch for files and directories that need not exist yet.
func WatchFiles(ctx context.Context, files func() []string, onChange func()) error {
	fw, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch files: %w", err)
	}
	defer fw.Close()
	w := &watch{fw: fw, files: files, dirs: map[string]bool{}}
	timer := time.NewTimer(quiet)
	timer.Stop()
	defer timer.Stop()
	again := time.NewTimer(rewatch)
	again.Stop()
	defer again.Stop()
	look := func() (found bool) {
		found, missing := w.look()
		if missing {
			again.Reset(rewatch)
		}
		return found
	}
	if look() { // a file may have changed between being read and being watched
		timer.Reset(quiet)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-fw.Events:
			if !ok {
				return fmt.Errorf("watch files: %w", fsnotify.ErrClosed)
			}
			if dir := filepath.Clean(e.Name); w.dirs[dir] && (e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename)) {
				delete(w.dirs, dir) // it may come back, as a mount does
				again.Reset(rewatch)
			} else if w.concerned(e) {
				timer.Reset(quiet)
			}
		case _, ok := <-fw.Errors:
			if !ok {
				return fmt.Errorf("watch files: %w", fsnotify.ErrClosed)
			}
			// The queue overflowed: something was lost, so look.
			timer.Reset(quiet)
		case <-again.C:
			if look() {
				timer.Reset(quiet)
			}
		case <-timer.C:
			onChange()
			if look() { // likewise
				timer.Reset(quiet)
			}
		}
	}
}

// watch is what is watched now.
type watch struct {
	fw      *fsnotify.Watcher
	files   func() []string
	targets []target
	dirs    map[string]bool // that the watcher has
}

// target is a file or directory whose changes count, and the directories in
// which they show.
type target struct {
	path  string
	isDir bool
	dirs  []string
}

// look brings the watched directories up to date. It reports whether one has
// come, and whether one could not be watched.
func (w *watch) look() (found, missing bool) {
	w.targets = w.targets[:0]
	wanted := map[string]bool{}
	for _, path := range w.files() {
		path = filepath.Clean(path)
		if slices.ContainsFunc(w.targets, func(t target) bool { return t.path == path }) {
			continue
		}
		info, err := os.Stat(path)
		t := target{path: path, isDir: err == nil && info.IsDir()}
		t.dirs = watchDirs(path, t.isDir)
		w.targets = append(w.targets, t)
		for _, dir := range t.dirs {
			wanted[dir] = true
		}
	}
	for dir := range wanted {
		if w.dirs[dir] {
			continue
		}
		if w.fw.Add(dir) != nil {
			missing = true
			continue
		}
		w.dirs[dir], found = true, true
	}
	for dir := range w.dirs {
		if !wanted[dir] {
			_ = w.fw.Remove(dir) // it may be gone already
			delete(w.dirs, dir)
		}
	}
	return found, missing
}

// watchDirs lists the directories to watch. Where the file is a symbolic link
// the target's directory counts too, unless the link is a ConfigMap's, whose
// swap shows in the first.
func watchDirs(path string, isDir bool) []string {
	if isDir {
		return []string{path}
	}
	dirs := []string{filepath.Dir(path)}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		dir := filepath.Dir(target)
		own, err := filepath.EvalSymlinks(dirs[0])
		if err == nil && dir != own && !strings.HasPrefix(dir, own+string(filepath.Separator)+"..") {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// concerned reports whether an event may have changed a target.
func (w *watch) concerned(e fsnotify.Event) bool {
	if e.Op == fsnotify.Chmod {
		return false // backups and indexers touch files all day
	}
	return slices.ContainsFunc(w.targets, func(t target) bool {
		return slices.Contains(t.dirs, filepath.Dir(e.Name)) && concerns(e, t.path, t.isDir)
	})
}

// concerns reports whether an event in one of its directories may have changed
// the file or directory.
func concerns(e fsnotify.Event, path string, isDir bool) bool {
	name := filepath.Base(e.Name)
	switch {
	case strings.HasPrefix(name, ".."): // a ConfigMap's data
		return true
	case isDir:
		return !strings.HasPrefix(name, ".")
	}
	return filepath.Dir(e.Name) != filepath.Dir(path) || name == filepath.Base(path)
}
