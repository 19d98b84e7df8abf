package proxy

// frames follows the frames of a WebSocket (RFC 6455 section 5.2) in one
// direction, to know where one ends: only there may the gateway put a frame of
// its own. It looks at no payload.
type frames struct {
	head [14]byte
	have int   // bytes of head so far
	left int64 // payload still to come
}

// boundary reports whether the next byte begins a frame.
func (f *frames) boundary() bool { return f.have == 0 && f.left == 0 }

// advance takes note of bytes that were passed on.
func (f *frames) advance(p []byte) {
	for len(p) > 0 {
		p = p[f.step(p):]
	}
}

// untilBoundary returns how many bytes of p belong to the frame under way: all
// where it does not end in p, none at a boundary.
func (f *frames) untilBoundary(p []byte) int {
	at := *f
	n := 0
	for n < len(p) && !at.boundary() {
		n += at.step(p[n:])
	}
	return n
}

// step takes in the next bytes of p, at least one and at most to the end of
// the frame under way, and returns how many. p is not empty.
func (f *frames) step(p []byte) int {
	if f.left > 0 {
		n := int(min(f.left, int64(len(p))))
		f.left -= int64(n)
		return n
	}
	f.head[f.have] = p[0]
	f.have++
	if f.have < 2 {
		return 1
	}
	need, length := 2, int64(f.head[1]&0x7f)
	switch length {
	case 126:
		need = 4
	case 127:
		need = 10
	}
	extended := need
	if f.head[1]&0x80 != 0 {
		need += 4
	}
	if f.have < need {
		return 1
	}
	if extended > 2 {
		length = 0
		for _, b := range f.head[2:extended] {
			length = length<<8 | int64(b)
		}
	}
	f.have, f.left = 0, max(length, 0)
	return 1
}
