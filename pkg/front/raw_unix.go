//go:build unix

package front

import (
	"io"
	"net"
	"os"
	"syscall"

	"github.com/proconsul/proconsul/pkg/rawio"
)

// peekFD looks at what comes next without taking it.
func peekFD(fd uintptr) error {
	var b [1]byte
	for {
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return rawio.ErrDry
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		default:
			return nil
		}
	}
}

// shutFD ends both directions without closing, so that whoever uses the
// descriptor finds out.
func shutFD(fd uintptr) { _ = syscall.Shutdown(int(fd), syscall.SHUT_RDWR) }

// dupFD returns a connection of its own on the same socket.
func dupFD(fd uintptr) (net.Conn, error) {
	d, err := syscall.Dup(int(fd))
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	syscall.CloseOnExec(d)
	f := os.NewFile(uintptr(d), "hijacked")
	defer f.Close()
	return net.FileConn(f)
}
