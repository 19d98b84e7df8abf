//go:build unix

package transport

import (
	"io"
	"syscall"
)

// rawIO says that connections can be read without waiting.
const rawIO = true

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
