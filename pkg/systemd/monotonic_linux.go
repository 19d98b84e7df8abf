package systemd

import (
	"time"

	"golang.org/x/sys/unix"
)

// monotonic reads the clock that the manager compares a reload's start with.
func monotonic() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0 // every Linux has it
	}
	return time.Duration(t.Nano())
}
