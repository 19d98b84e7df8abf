// Package systemd tells the service manager how the process is, over the
// socket of sd_notify(3): ready, reloading, stopping, and that it still lives.
// Where nobody listens it does nothing. It never reads anything back.
package systemd

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// Notifier tells the service manager that started the process. A nil one tells
// nobody. Its methods are safe for concurrent use.
type Notifier struct {
	socket   string
	watchdog time.Duration // within which it wants to hear of us; 0: it does not care
}

// FromEnvironment returns the manager that the environment names, or nil. pid
// is that of this process: a watchdog may be meant for another one.
func FromEnvironment(getenv func(string) string, pid int) *Notifier {
	m := &Notifier{socket: getenv("NOTIFY_SOCKET")}
	if m.socket == "" {
		return nil
	}
	if usec, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64); err == nil && usec > 0 {
		if of := getenv("WATCHDOG_PID"); of == "" || of == strconv.Itoa(pid) {
			m.watchdog = time.Duration(usec) * time.Microsecond
		}
	}
	return m
}

// Ready says that the process serves, for the first time or after a reload,
// and in a line of status how.
func (m *Notifier) Ready(status string) error { return m.tell("READY=1", "STATUS="+line(status)) }

// Reloading says that a reload has begun. Ready ends it.
func (m *Notifier) Reloading() error {
	return m.tell("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", monotonic()/time.Microsecond))
}

// Stopping says that the process goes down.
func (m *Notifier) Stopping() error { return m.tell("STOPPING=1") }

// Run says again and again that the process lives, until ctx ends. alive is
// asked each time: where it does not return, the manager hears nothing and
// starts the process anew.
func (m *Notifier) Run(ctx context.Context, alive func()) error {
	if m == nil || m.watchdog <= 0 {
		return nil
	}
	tick := time.NewTicker(m.watchdog / 3)
	defer tick.Stop()
	for {
		alive()
		_ = m.tell("WATCHDOG=1") // one that is lost is followed by another in time
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (m *Notifier) tell(lines ...string) error {
	if m == nil {
		return nil
	}
	// Dialing anew each time costs nothing at this pace, and outlives a manager
	// that was itself started anew. A leading @ is an abstract socket to both.
	c, err := net.Dial("unixgram", m.socket)
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	defer c.Close()
	if err := c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	if _, err := c.Write([]byte(strings.Join(lines, "\n"))); err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}

// line keeps a text from being more than one assignment.
func line(text string) string { return strings.NewReplacer("\n", " ", "\r", " ").Replace(text) }
