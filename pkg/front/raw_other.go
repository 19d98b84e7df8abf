//go:build !unix

package front

import (
	"errors"
	"net"
)

// rawIO says that connections cannot be read without waiting here.
const rawIO = false

var errDry = errors.New("nothing to read")

func readFD(uintptr, []byte) (int, error) { return 0, errDry }
func peekFD(uintptr) error                { return errDry }
func shutFD(uintptr)                      {}
func dupFD(uintptr) (net.Conn, error)     { return nil, errors.ErrUnsupported }
