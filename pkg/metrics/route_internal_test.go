package metrics

import (
	"testing"
	"unsafe"
)

// What each request touches of a route is in one line of a processor's cache:
// with many routes each further line is a wait of a tenth of a microsecond.
func TestWhatARequestTouchesIsInOneLine(t *testing.T) {
	var r Route
	const line, header = 64, 8 // the allocator's own word is before objects of this size
	for name, at := range map[string]uintptr{
		"slot":     unsafe.Offsetof(r.timings) + unsafe.Offsetof(r.timings.slot),
		"m":        unsafe.Offsetof(r.m),
		"inFlight": unsafe.Offsetof(r.inFlight),
		"out":      unsafe.Offsetof(r.out),
		"known":    unsafe.Offsetof(r.usual) + unsafe.Offsetof(r.usual.known),
		"key":      unsafe.Offsetof(r.usual) + unsafe.Offsetof(r.usual.key),
		"requests": unsafe.Offsetof(r.usual) + unsafe.Offsetof(r.usual.requests),
		"sum":      unsafe.Offsetof(r.usual) + unsafe.Offsetof(r.usual.duration) + unsafe.Offsetof(r.usual.duration.sum),
	} {
		if (at+header)/line != 1 {
			t.Errorf("%s is at byte %d", name, at)
		}
	}
}
