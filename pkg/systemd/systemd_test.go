package systemd_test

import (
	"context"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/systemd"
)

// hear listens as a service manager does.
func hear(t *testing.T, socket string) func() string {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return func() string {
		t.Helper()
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		b := make([]byte, 4096)
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
}

func environment(pairs ...string) func(string) string {
	return func(name string) string {
		for _, p := range pairs {
			if v, ok := strings.CutPrefix(p, name+"="); ok {
				return v
			}
		}
		return ""
	}
}

func TestWhatTheManagerHears(t *testing.T) {
	for name, socket := range map[string]string{"path": filepath.Join(t.TempDir(), "notify"), "abstract": "@proconsul-test-" + strconv.FormatInt(time.Now().UnixNano(), 36)} {
		t.Run(name, func(t *testing.T) {
			heard := hear(t, socket)
			m := systemd.FromEnvironment(environment("NOTIFY_SOCKET="+socket), 7)
			if err := m.Ready("serving\nSTOPPING=1"); err != nil {
				t.Fatal(err)
			}
			if got, want := heard(), "READY=1\nSTATUS=serving STOPPING=1"; got != want {
				t.Errorf("heard %q, want %q", got, want)
			}
			if err := m.Reloading(); err != nil {
				t.Fatal(err)
			}
			text, usec, _ := strings.Cut(heard(), "\nMONOTONIC_USEC=")
			if n, err := strconv.ParseInt(usec, 10, 64); text != "RELOADING=1" || err != nil || n <= 0 {
				t.Errorf("heard %q at %q", text, usec)
			}
			if err := m.Stopping(); err != nil {
				t.Fatal(err)
			}
			if got := heard(); got != "STOPPING=1" {
				t.Errorf("heard %q", got)
			}
		})
	}
}

func TestTheWatchdogHearsAsLongAsSomebodyLives(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	heard := hear(t, socket)
	m := systemd.FromEnvironment(environment("NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=30000", "WATCHDOG_PID=7"), 7)
	ctx, cancel := context.WithCancel(t.Context())
	asked, done := make(chan struct{}, 100), make(chan error, 1)
	go func() { done <- m.Run(ctx, func() { asked <- struct{}{} }) }()
	for range 3 {
		<-asked
		if got := heard(); got != "WATCHDOG=1" {
			t.Fatalf("heard %q", got)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWithoutAManagerNothingIsSaid(t *testing.T) {
	m := systemd.FromEnvironment(environment("WATCHDOG_USEC=1000"), 7)
	if m != nil {
		t.Fatal("a manager without a socket")
	}
	if m.Ready("") != nil || m.Reloading() != nil || m.Stopping() != nil || m.Run(t.Context(), nil) != nil {
		t.Error("no manager is an error")
	}
	// The watchdog of another process is none of ours.
	other := systemd.FromEnvironment(environment("NOTIFY_SOCKET=/nowhere", "WATCHDOG_USEC=1000", "WATCHDOG_PID=8"), 7)
	if err := other.Run(t.Context(), func() { t.Error("asked for another process") }); err != nil {
		t.Error(err)
	}
	if err := other.Ready(""); err == nil {
		t.Error("a socket that is not there is no error")
	}
}
