//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// paced sends requests at a fixed rate whatever the answers do, and takes
// their time from when each was due, so that a proxy that stalls is charged
// for all the requests that it made late. One thread and the kernel's own
// timer: Go's timers are too coarse for a fifth of a millisecond.
func paced(args []string) error {
	f := flag.NewFlagSet("paced", flag.ExitOnError)
	addr := f.String("addr", "", "where requests go")
	path := f.String("path", "/", "what they ask for")
	rate := f.Int("rate", 3000, "requests a second")
	conns := f.Int("conns", 64, "connections")
	length := f.Duration("length", 3*time.Second, "for how long")
	if err := f.Parse(args); err != nil {
		return err
	}
	p, err := newPacer(*addr, *path, *conns)
	if err != nil {
		return err
	}
	if _, err := p.run(*rate, time.Second/2); err != nil { // warm
		return err
	}
	took, err := p.run(*rate, *length)
	if err != nil {
		return err
	}
	slices.Sort(took)
	at := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))]) / 1e3 }
	return json.NewEncoder(os.Stdout).Encode(load{Requests: int64(len(took)), Rate: float64(len(took)) / length.Seconds(),
		P50: at(.5), P99: at(.99), P999: at(.999)})
}

// pacer is one epoll loop over its connections and a timer.
type pacer struct {
	epoll, timer int
	request      []byte
	conns        []pacedConn
	free         []int // indices of conns
}

type pacedConn struct {
	fd      int
	due     int64 // when its request should have been sent, ns of the monotonic clock
	in      []byte
	missing int // of the answer's body; -1: its head has not come
}

func newPacer(addr, path string, conns int) (*pacer, error) {
	tcp, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return nil, err
	}
	p := &pacer{request: []byte("GET " + path + " HTTP/1.1\r\nHost: bench\r\nUser-Agent: paced\r\nAccept: */*\r\nX-Team: a\r\n\r\n")}
	if p.epoll, err = unix.EpollCreate1(0); err != nil {
		return nil, err
	}
	if p.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK); err != nil {
		return nil, err
	}
	if err := p.watch(p.timer, -1); err != nil {
		return nil, err
	}
	sa := &unix.SockaddrInet4{Port: tcp.Port}
	copy(sa.Addr[:], tcp.IP.To4())
	for i := range conns {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return nil, err
		}
		if err := unix.Connect(fd, sa); err != nil {
			return nil, fmt.Errorf("connect to %s: %w", addr, err)
		}
		if err := errors.Join(unix.SetNonblock(fd, true), unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), p.watch(fd, i)); err != nil {
			return nil, err
		}
		p.conns = append(p.conns, pacedConn{fd: fd, missing: -1})
		p.free = append(p.free, i)
	}
	return p, nil
}

func (p *pacer) watch(fd, index int) error {
	return unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(index)})
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return ts.Nano()
}

// run sends for that long and returns how long each answer took, in ns.
func (p *pacer) run(rate int, length time.Duration) (took []int64, err error) {
	gap := int64(time.Second) / int64(rate)
	begin := monotonic()
	end := begin + int64(length)
	next := begin // when the next request is due
	open := 0     // requests without an answer
	events := make([]unix.EpollEvent, 256)
	buf := make([]byte, 256<<10)
	for {
		now := monotonic()
		for ; next < end && next <= now && len(p.free) > 0; next += gap {
			i := p.free[len(p.free)-1]
			p.free = p.free[:len(p.free)-1]
			c := &p.conns[i]
			c.due, c.missing, c.in = next, -1, c.in[:0]
			if _, err := unix.Write(c.fd, p.request); err != nil {
				return nil, fmt.Errorf("write: %w", err)
			}
			open++
		}
		if next >= end && open == 0 {
			return took, nil
		}
		if now > end+int64(10*time.Second) {
			return nil, fmt.Errorf("%d requests have no answer", open)
		}
		if next < end && len(p.free) > 0 {
			at := unix.ItimerSpec{Value: unix.NsecToTimespec(next)}
			if err := unix.TimerfdSettime(p.timer, unix.TFD_TIMER_ABSTIME, &at, nil); err != nil {
				return nil, err
			}
		}
		n, err := unix.EpollWait(p.epoll, events, 1000)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return nil, err
		}
		for _, e := range events[:max(n, 0)] {
			if e.Fd < 0 {
				_, _ = unix.Read(p.timer, buf[:8])
				continue
			}
			c := &p.conns[e.Fd]
			n, err := unix.Read(c.fd, buf)
			if err != nil || n == 0 {
				return nil, fmt.Errorf("the proxy closed a connection: %v", err)
			}
			done, err := c.feed(buf[:n])
			if err != nil {
				return nil, err
			}
			if done {
				took = append(took, monotonic()-c.due)
				p.free = append(p.free, int(e.Fd))
				open--
			}
		}
	}
}

// feed takes bytes of an answer and reports whether it is complete.
func (c *pacedConn) feed(b []byte) (bool, error) {
	if c.missing < 0 {
		c.in = append(c.in, b...)
		head, rest, ok := bytes.Cut(c.in, []byte("\r\n\r\n"))
		if !ok {
			return false, nil
		}
		if !bytes.HasPrefix(head, []byte("HTTP/1.1 200")) {
			return false, fmt.Errorf("answer: %.60q", head)
		}
		n, err := contentLength(head)
		if err != nil {
			return false, err
		}
		c.missing, b = n, rest
	}
	c.missing -= len(b)
	return c.missing == 0, nil
}

func contentLength(head []byte) (int, error) {
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		if name, value, _ := bytes.Cut(line, []byte(":")); bytes.EqualFold(name, []byte("Content-Length")) {
			return strconv.Atoi(string(bytes.TrimSpace(value)))
		}
	}
	return 0, fmt.Errorf("an answer without Content-Length: %.100q", head)
}
