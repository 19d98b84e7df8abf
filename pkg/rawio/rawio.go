// Package rawio reads and writes descriptors that never block, as those of
// connections are, within the callbacks of a syscall.RawConn.
//
// On Linux the calls are made without a word to the scheduler, which would get
// ready for a thread that waits. These never do, so that would be a twentieth of
// what a request costs; and where there is little to do the word wakes the
// runtime's monitor thread, which costs more than the call.
package rawio

import (
	"io"
	"syscall"
)

// ErrDry says that nothing can be read, or written, for now. It is temporary in
// the sense of net.Error, so that TLS goes on after it.
var ErrDry error = dry{}

type dry struct{}

func (dry) Error() string   { return "the descriptor is not ready" }
func (dry) Timeout() bool   { return true }
func (dry) Temporary() bool { return true }

// Read reads what there is into p, which must not be empty. It returns ErrDry
// where that is nothing yet, and io.EOF at the end.
func Read(fd uintptr, p []byte) (int, error) {
	n, err := read(fd, p)
	for err == syscall.EINTR {
		n, err = read(fd, p)
	}
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return outcome(n, err)
}

// Write writes what there is room for of p. It returns ErrDry where there is
// none.
func Write(fd uintptr, p []byte) (int, error) {
	n, err := write(fd, p)
	for err == syscall.EINTR {
		n, err = write(fd, p)
	}
	return outcome(n, err)
}

func outcome(n int, err error) (int, error) {
	switch err {
	case nil:
		return n, nil
	case syscall.EAGAIN:
		return 0, ErrDry
	}
	return 0, err
}
