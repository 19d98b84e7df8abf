package front

import (
	"encoding/binary"
	"syscall"
)

// TCP states, as the kernel numbers them.
const (
	tcpClose     = 7
	tcpCloseWait = 8
)

// stateFD asks what the other side has done: reset says that the connection is
// over, ended that nothing more will come on it. ok is false for sockets that
// cannot say.
func stateFD(fd uintptr) (reset, ended, ok bool) {
	// The state is the first byte of the answer, which may be cut off.
	v, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_INFO)
	if err != nil {
		return false, false, false
	}
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(v))
	return b[0] == tcpClose, b[0] == tcpCloseWait, true
}
