//go:build unix

package rawio_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/proconsul/proconsul/pkg/rawio"
)

// pair returns two ends of a connection, and how to use the first raw.
func pair(t *testing.T) (a, b *net.UnixConn, raw syscall.RawConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	if raw, err = a.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	return a, b, raw
}

func read(t *testing.T, raw syscall.RawConn, p []byte) (n int, err error) {
	t.Helper()
	if cerr := raw.Control(func(fd uintptr) { n, err = rawio.Read(fd, p) }); cerr != nil {
		t.Fatal(cerr)
	}
	return n, err
}

func TestRead(t *testing.T) {
	_, b, raw := pair(t)
	p := make([]byte, 8)
	if n, err := read(t, raw, p); n != 0 || err != rawio.ErrDry {
		t.Errorf("with nothing there: %d, %v", n, err)
	}
	_, _ = b.Write([]byte("answer"))
	if n, err := read(t, raw, p); string(p[:n]) != "answer" || err != nil {
		t.Errorf("got %q, %v", p[:n], err)
	}
	b.Close()
	if n, err := read(t, raw, p); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
}

func TestWrite(t *testing.T) {
	_, b, raw := pair(t)
	part := bytes.Repeat([]byte("x"), 100_000)
	var sent int
	var err error
	for err == nil {
		var n int
		if cerr := raw.Control(func(fd uintptr) { n, err = rawio.Write(fd, part) }); cerr != nil {
			t.Fatal(cerr)
		}
		sent += n
	}
	if err != rawio.ErrDry || sent == 0 {
		t.Fatalf("after %d bytes: %v", sent, err)
	}
	if n, err := io.ReadFull(b, make([]byte, sent)); n != sent || err != nil {
		t.Errorf("%d of %d bytes arrived, %v", n, sent, err)
	}
	b.Close()
	if cerr := raw.Control(func(fd uintptr) { _, err = rawio.Write(fd, part) }); cerr != nil || !errors.Is(err, syscall.EPIPE) {
		t.Errorf("to nobody: %v, %v", cerr, err)
	}
}
