//go:build unix

package front

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// rawIO says that connections can be read without waiting.
const rawIO = true

var errDry = errors.New("nothing to read")

// readFD reads without waiting. It returns errDry where there is nothing yet
// and io.EOF at the end.
func readFD(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return 0, errDry
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// peekFD looks at what comes next without taking it.
func peekFD(fd uintptr) error {
	var b [1]byte
	for {
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return errDry
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
