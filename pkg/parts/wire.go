package parts

import (
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Wire is a TCP proxy in front of an address that breaks the way networks and
// dying processes break. Safe for concurrent use.
type Wire struct {
	Addr string // where it listens
	to   string
	t    testing.TB

	mu       sync.Mutex
	listener net.Listener
	conns    map[*wireConn]struct{}
	mode     wireMode
	delay    time.Duration // Latency
	cut      int           // CutAnswers: bytes of each answer that come through
	hole     []func()      // undo Drop
	wg       sync.WaitGroup
}

type wireMode uint8

const (
	wireWell wireMode = iota
	wireSwallow
	wireCut
)

// StartWire starts a well-behaved proxy to that address.
func StartWire(t testing.TB, to string) *Wire {
	t.Helper()
	w := &Wire{t: t, to: to, conns: map[*wireConn]struct{}{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.Addr = l.Addr().String()
	w.serve(l)
	t.Cleanup(w.close)
	return w
}

func (w *Wire) close() {
	w.Refuse()
	w.wg.Wait()
}

// Heal ends every fault. Connections that a fault left half dead are reset.
func (w *Wire) Heal() {
	w.t.Helper()
	w.mu.Lock()
	fill := w.hole
	w.hole = nil
	listening := w.listener != nil
	if w.mode != wireWell || fill != nil {
		w.resetAll()
	}
	w.mode, w.delay, w.cut = wireWell, 0, 0
	w.mu.Unlock()
	for _, undo := range fill {
		undo()
	}
	if listening {
		return
	}
	Eventually(w.t, 10*time.Second, "listen again on "+w.Addr, func() bool {
		l, err := net.Listen("tcp", w.Addr)
		if err != nil {
			return false
		}
		w.serve(l)
		return true
	})
}

// Refuse refuses new connections and resets those there are, as a machine does
// whose process has ended.
func (w *Wire) Refuse() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deafen()
	w.resetAll()
}

// RefuseNew refuses new connections only.
func (w *Wire) RefuseNew() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deafen()
}

// Swallow accepts connections and takes every byte, old connections' too, and
// lets none through.
func (w *Wire) Swallow() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mode = wireSwallow
}

// Drop swallows what established connections send and leaves new ones without
// an answer to their SYN, as a partition that drops packets does.
func (w *Wire) Drop() {
	w.t.Helper()
	w.Swallow()
	w.mu.Lock()
	w.deafen()
	w.mu.Unlock()
	undo, err := blackHole(w.Addr)
	if err != nil {
		w.t.Fatalf("black hole on %s: %v", w.Addr, err)
	}
	w.mu.Lock()
	w.hole = append(w.hole, undo...)
	w.mu.Unlock()
}

// Latency delays every answer by d.
func (w *Wire) Latency(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.delay = d
}

// CutAnswers lets n bytes of the next answer of each connection through and
// then resets the connection.
func (w *Wire) CutAnswers(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mode, w.cut = wireCut, n
}

// ResetConnections resets every connection once, as a router that forgot them.
func (w *Wire) ResetConnections() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.resetAll()
}

// deafen closes the listener. It is called under w.mu.
func (w *Wire) deafen() {
	if w.listener != nil {
		_ = w.listener.Close()
		w.listener = nil
	}
}

// resetAll is called under w.mu.
func (w *Wire) resetAll() {
	for c := range w.conns {
		c.reset()
	}
}

func (w *Wire) serve(l net.Listener) {
	w.mu.Lock()
	w.listener = l
	w.mu.Unlock()
	w.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() { w.carry(c.(*net.TCPConn)) })
		}
	})
}

// wireConn is one connection through a Wire.
type wireConn struct {
	w                *Wire
	client, instance *net.TCPConn
}

func (c *wireConn) reset() {
	for _, half := range []*net.TCPConn{c.client, c.instance} {
		_ = half.SetLinger(0)
		_ = half.Close()
	}
}

func (w *Wire) carry(client *net.TCPConn) {
	up, err := net.Dial("tcp", w.to)
	if err != nil {
		_ = client.SetLinger(0)
		_ = client.Close()
		return
	}
	c := &wireConn{w: w, client: client, instance: up.(*net.TCPConn)}
	w.mu.Lock()
	w.conns[c] = struct{}{}
	w.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { c.move(c.instance, c.client, false) })
	both.Go(func() { c.move(c.client, c.instance, true) })
	both.Wait()
	w.mu.Lock()
	delete(w.conns, c)
	w.mu.Unlock()
	_ = client.Close()
	_ = up.Close()
}

// move carries one direction until it ends.
func (c *wireConn) move(to, from *net.TCPConn, answers bool) {
	b := make([]byte, 16<<10)
	for {
		n, err := from.Read(b)
		c.w.mu.Lock()
		mode, delay, cut := c.w.mode, c.w.delay, c.w.cut
		c.w.mu.Unlock()
		out := b[:n]
		switch {
		case mode == wireSwallow:
			if err != nil { // the other side learns nothing of it
				_, _ = io.Copy(io.Discard, to)
				return
			}
			continue
		case n > 0 && mode == wireCut && answers:
			_, _ = to.Write(out[:min(cut, n)])
			c.reset()
			return
		case n > 0 && delay > 0 && answers:
			time.Sleep(delay)
		}
		if n > 0 {
			if _, err := to.Write(out); err != nil {
				_ = from.Close()
				return
			}
		}
		if err != nil {
			_ = to.CloseWrite()
			return
		}
	}
}

// blackHole makes addr a place whose SYNs nobody answers: a socket whose queue
// of connections to accept is full, and that accepts none.
func blackHole(addr string) (undo []func(), err error) {
	a, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return nil, err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	undo = append(undo, func() { _ = syscall.Close(fd) })
	defer func() {
		if err != nil {
			for _, u := range undo {
				u()
			}
			undo = nil
		}
	}()
	if err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return undo, err
	}
	if err = syscall.Bind(fd, &syscall.SockaddrInet4{Port: a.Port, Addr: [4]byte(a.IP.To4())}); err != nil {
		return undo, err
	}
	if err = syscall.Listen(fd, 0); err != nil {
		return undo, err
	}
	late := 0 // in a row: one may be a machine that has stalled
	for range 16 {
		c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			if late++; late == 2 {
				return undo, nil // full
			}
			continue
		}
		late = 0
		undo = append(undo, func() { _ = c.Close() })
	}
	return undo, fmt.Errorf("its queue does not fill")
}
