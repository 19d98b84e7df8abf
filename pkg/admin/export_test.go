package admin

import "time"

// FrameForTest returns a function that makes one frame of the live stream.
func FrameForTest(read func() Status) func() {
	a := New(Options{Status: read})
	return func() { a.stream.advance(time.Now()) }
}
