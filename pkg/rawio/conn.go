package rawio

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// Transparent is implemented by connections that wrap another and change
// nothing of what is read and written, as those do that count. They are looked
// through, which saves time with every request, and closed.
type Transparent interface{ Unwrapped() net.Conn }

// Unwrapped returns what Transparent connections are wrapped around.
func Unwrapped(nc net.Conn) net.Conn {
	for {
		t, ok := nc.(Transparent)
		if !ok {
			return nc
		}
		nc = t.Unwrapped()
	}
}

// Of returns what a connection's descriptor is reached by; nil: it has none, or
// it cannot be read and written without waiting.
func Of(nc net.Conn) syscall.RawConn {
	sc, ok := nc.(syscall.Conn)
	if !ok || !Possible {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// CloseWrite ends one direction of a connection that can; for those that wrap
// one.
func CloseWrite(nc net.Conn) error {
	if half, ok := nc.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Conn returns nc with reads and writes that are made as Read and Write make
// them, for those who know no RawConn: TLS and net/http. A connection without a
// descriptor is returned as it is. before is called before each write, unless it
// is nil.
func Conn(nc net.Conn, before func()) net.Conn {
	raw := Of(Unwrapped(nc))
	if raw == nil {
		return nc
	}
	c := &conn{Conn: nc, raw: raw, before: before}
	c.in.step, c.out.step = c.read, c.write // one value each: a closure for each call would be an allocation
	return c
}

// conn reads and writes raw. What is done in one direction is done by one
// goroutine at a time, as with any connection.
type conn struct {
	net.Conn
	raw     syscall.RawConn
	before  func()
	in, out side
}

type side struct {
	mu   sync.Mutex
	p    []byte // to be read into or written, from n on
	n    int
	err  error
	step func(fd uintptr) bool
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.in.p = p
	return c.in.end("read", c.raw.Read(c.in.step), c)
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	if c.before != nil {
		c.before()
	}
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.p = p
	return c.out.end("write", c.raw.Write(c.out.step), c)
}

// end returns what the steps have come to, and what a connection of package net
// would make of an error.
func (s *side) end(op string, err error, c *conn) (n int, _ error) {
	if err == nil {
		err = s.err
	}
	n = s.n
	s.p, s.n, s.err = nil, 0, nil
	if errno, ok := err.(syscall.Errno); ok {
		err = &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(op, errno)}
	}
	return n, err
}

func (c *conn) read(fd uintptr) (done bool) {
	s := &c.in
	s.n, s.err = Read(fd, s.p)
	return s.err != ErrDry
}

func (c *conn) write(fd uintptr) (done bool) {
	s := &c.out
	for s.n < len(s.p) {
		n, err := Write(fd, s.p[s.n:])
		s.n += n
		if err == ErrDry {
			return false
		}
		if s.err = err; err != nil {
			return true
		}
	}
	return true
}

// Unwrapped returns what the connection reads and writes, which it does not
// change.
func (c *conn) Unwrapped() net.Conn { return c.Conn }

// CloseWrite ends one direction where the connection can.
func (c *conn) CloseWrite() error { return CloseWrite(c.Conn) }

// ReadFrom implements io.ReaderFrom. The kernel moves files where it can.
func (c *conn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }
