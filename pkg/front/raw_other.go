//go:build !unix

package front

import (
	"errors"
	"net"

	"github.com/proconsul/proconsul/pkg/rawio"
)

func peekFD(uintptr) error            { return rawio.ErrDry }
func shutFD(uintptr)                  {}
func dupFD(uintptr) (net.Conn, error) { return nil, errors.ErrUnsupported }
