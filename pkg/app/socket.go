package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"
)

// socketMode lets the gateway's user and group in, and nobody else.
const socketMode = 0o660

// socket is a listener at a path. Its file goes with it, unless it is another's
// by then.
type socket struct {
	net.Listener
	path string
	file fs.FileInfo
}

// Addr implements net.Listener.
func (s *socket) Addr() net.Addr { return &net.UnixAddr{Name: "unix:" + s.path, Net: "unix"} }

// Close implements net.Listener.
func (s *socket) Close() error {
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.file) {
		_ = os.Remove(s.path) // what stays is taken for what a dead process left
	}
	return s.Listener.Close()
}

// listenSocket listens at path. What a dead process left there is replaced, and
// a living one's socket is not touched, nor is a file that is none.
func listenSocket(name, path string) (net.Listener, error) {
	if err := vacant(path); err != nil {
		return nil, fmt.Errorf("listener %s: %w", name, err)
	}
	// It gets its name once its mode is right: no one else comes in before, and
	// whoever looks sees the old socket or the new one.
	unnamed := path + ".new"
	_ = os.Remove(unnamed) // of a process that died just here
	l, err := new(net.ListenConfig).Listen(context.Background(), "unix", unnamed)
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w (is there the directory, and may the gateway write it?)", name, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	s := &socket{Listener: l, path: path}
	err = os.Chmod(unnamed, socketMode)
	if err == nil {
		err = os.Rename(unnamed, path)
	}
	if err == nil {
		s.file, err = os.Lstat(path)
	}
	if err != nil {
		_ = os.Remove(unnamed)
		_ = l.Close()
		return nil, fmt.Errorf("listener %s: %w", name, err)
	}
	return s, nil
}

// vacant returns an error where something at path is in use.
func vacant(path string) error {
	there, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case there.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is a file that is no socket: remove it, or change admin.addr", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		_ = c.Close()
		return fmt.Errorf("another process listens on %s: stop it, or change admin.addr", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil // nobody has it open any more
	}
	return fmt.Errorf("another process may listen on %s: %w", path, err)
}
