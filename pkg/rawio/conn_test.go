//go:build unix

package rawio_test

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/proconsul/proconsul/pkg/rawio"
)

// loopback returns two ends of a TCP connection, both as Conn makes them.
func loopback() (a, b net.Conn, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		return nil, nil, err
	}
	if b, err = l.Accept(); err != nil {
		a.Close()
		return nil, nil, err
	}
	return rawio.Conn(a, nil), rawio.Conn(b, func() {}), nil
}

// It is a connection by all that Go's own suite asks of one.
func TestConn(t *testing.T) {
	nettest.TestConn(t, func() (a, b net.Conn, stop func(), err error) {
		if a, b, err = loopback(); err != nil {
			return nil, nil, nil, err
		}
		return a, b, func() { a.Close(); b.Close() }, nil
	})
}

func TestConnErrors(t *testing.T) {
	a, b, err := loopback()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p := make([]byte, 8)
	_ = a.SetReadDeadline(time.Unix(1, 0))
	var timeout net.Error
	if _, err := a.Read(p); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("after its time: %v", err)
	}
	_ = a.SetReadDeadline(time.Time{})
	if err := b.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := a.Read(p); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	_, _ = a.Write(make([]byte, 1<<10)) // which b does not read, so that its end is a reset
	b.Close()
	for err == nil {
		_, err = a.Write(p)
	}
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "write" || !strings.Contains(err.Error(), "write tcp 127.0.0.1:") {
		t.Errorf("to nobody: %v", err)
	}
	a.Close()
	if _, err := a.Read(p); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// What has no descriptor is left alone.
func TestConnWithout(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if rawio.Conn(a, nil) != a {
		t.Error("a pipe was wrapped")
	}
}
