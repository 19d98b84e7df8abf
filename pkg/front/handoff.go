package front

import (
	"net"
	"sync"

	"github.com/proconsul/proconsul/pkg/rawio"
)

// preface is what a client that speaks HTTP/2 in the clear begins with
// (RFC 9113, section 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// handoff is the listener of the server that speaks HTTP/2.
type handoff struct {
	started bool // guarded by the server's mu
	conns   chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

func newHandoff() *handoff {
	return &handoff{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// give hands a connection over, or reports that it is too late.
func (h *handoff) give(c net.Conn) bool {
	select {
	case h.conns <- c:
		return true
	case <-h.closed:
		return false
	}
}

func (h *handoff) close() { h.once.Do(func() { close(h.closed) }) }

// Close implements net.Listener.
func (h *handoff) Close() error {
	h.close()
	return nil
}

// Addr implements net.Listener.
func (h *handoff) Addr() net.Addr { return &net.TCPAddr{} }

// replayed is a connection of which a part has been read already.
type replayed struct {
	net.Conn
	rest []byte
}

// Read implements net.Conn.
func (r *replayed) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return r.Conn.Read(p)
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// CloseWrite ends one direction where the connection can.
func (r *replayed) CloseWrite() error { return rawio.CloseWrite(r.Conn) }
