//go:build unix

package app

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// reusePort lets several processes of one user listen on one address: the
// kernel spreads connections over them (socket(7), SO_REUSEPORT).
func reusePort(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); cerr != nil {
		return cerr
	}
	return err
}
