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
// may have changed, until ctx ends; then it returns nil. Changes within
// 100 ms are one call. Calls do not overlap, and none is lost: what changes
// during a call leads to another.
//
// It watches the directory and not the file: an atomic rename puts a new file
// in the old one's place, and a ConfigMap swaps a symbolic link (..data)
// beside it. A change elsewhere in the directory may cause a call too, so
// onChange should compare (Config.Hash) before it acts. Files that ${file:...}
// names are not watched.
func Watch(ctx context.Context, path string, onChange func()) error {
	path = filepath.Clean(path)
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	defer w.Close()
	dirs := watchDirs(path, info.IsDir())
	for _, dir := range dirs {
		if err := w.Add(dir); err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	timer := time.NewTimer(quiet)
	timer.Stop()
	defer timer.Stop()
	again := time.NewTimer(rewatch)
	again.Stop()
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Events:
			if !ok {
				return fmt.Errorf("watch %s: %w", path, fsnotify.ErrClosed)
			}
			if slices.Contains(dirs, filepath.Clean(e.Name)) && (e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename)) {
				again.Reset(rewatch)
			} else if concerns(e, path, info.IsDir()) {
				timer.Reset(quiet)
			}
		case _, ok := <-w.Errors:
			if !ok {
				return fmt.Errorf("watch %s: %w", path, fsnotify.ErrClosed)
			}
			// The queue overflowed: something was lost, so look.
			timer.Reset(quiet)
		case <-again.C:
			// A directory went. It may come back, as a mount does.
			for _, dir := range dirs {
				if err := w.Add(dir); err != nil {
					again.Reset(rewatch)
					continue
				}
				timer.Reset(quiet)
			}
		case <-timer.C:
			onChange()
		}
	}
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

// concerns reports whether an event may have changed the configuration.
func concerns(e fsnotify.Event, path string, isDir bool) bool {
	if e.Op == fsnotify.Chmod {
		return false // backups and indexers touch files all day
	}
	name := filepath.Base(e.Name)
	switch {
	case strings.HasPrefix(name, ".."): // a ConfigMap's data
		return true
	case isDir:
		return !strings.HasPrefix(name, ".")
	}
	return filepath.Dir(e.Name) != filepath.Dir(path) || name == filepath.Base(path)
}
