package admin

import (
	"bytes"
	"time"
)

// FrameForTest returns a function that makes one frame of the live stream and
// returns its data and that of the snapshot at its time.
func FrameForTest(read func() Status) func() (delta, snapshot []byte) {
	a := New(Options{Status: read})
	data := func(event []byte) []byte {
		_, text, _ := bytes.Cut(event, []byte("data: "))
		return text
	}
	return func() (delta, snapshot []byte) {
		a.stream.advance(time.Now())
		return data(a.stream.frames[a.stream.seq%keptFrames].data), data(a.stream.snapshot())
	}
}

// AdvanceForTest returns a function that makes one frame and nothing else.
func AdvanceForTest(read func() Status) func() {
	a := New(Options{Status: read})
	return func() { a.stream.advance(time.Now()) }
}
