package wire

import (
	"bytes"
	"net/http"
)

const (
	// maxChunkLine bounds a chunk's size and extensions, and maxExtension all
	// extensions of a message: they carry nothing, and cost.
	maxChunkLine = 4 << 10
	maxExtension = 16 << 10
)

// Chunked reads the framing of a chunked body; the data between is the
// caller's to move. The zero value is at the beginning of a body. It is not
// safe for concurrent use.
type Chunked struct {
	Left        int64        // bytes of data that come next
	MaxTrailers int          // bytes of trailers, at most
	Trailer     *http.Header // gets the trailers but those that would frame the message; made when the first comes; nil: they are dropped

	phase      phase
	extensions int // bytes of chunk extensions so far
	trailers   int // bytes of trailers so far
}

// phase is what comes next in a chunked body.
type phase uint8

const (
	phaseSize phase = iota
	phaseData
	phaseDataEnd
	phaseTrailer
	phaseEnd
)

// Done reports whether the body is at its end.
func (c *Chunked) Done() bool { return c.phase == phaseEnd }

// Frame takes what framing is whole at the beginning of b and returns its
// length. After it either data comes next (Left is positive), or the body is
// Done, or more has to be read: b[n:] is the beginning of a line, of at most
// Longest bytes.
func (c *Chunked) Frame(b []byte) (n int, err error) {
	for {
		switch c.phase {
		case phaseData:
			if c.Left > 0 {
				return n, nil
			}
			c.phase = phaseDataEnd
		case phaseDataEnd:
			if len(b)-n < 2 {
				if len(b) > n && b[n] != '\r' {
					return n, Malformed("chunk does not end where it says")
				}
				return n, nil
			}
			if b[n] != '\r' || b[n+1] != '\n' {
				return n, Malformed("chunk does not end where it says")
			}
			n += 2
			c.phase = phaseSize
		case phaseSize:
			line, size, err := cutLine(b[n:], maxChunkLine)
			if size == 0 {
				return n, err
			}
			n += size
			left, extension, err := chunkSize(line)
			if err != nil {
				return n, err
			}
			if c.extensions += extension; c.extensions > maxExtension {
				return n, Malformed("too many chunk extensions")
			}
			c.Left, c.phase = left, phaseData
			if left == 0 {
				c.phase = phaseTrailer
			}
		case phaseTrailer:
			line, size, err := cutLine(b[n:], c.MaxTrailers)
			if size == 0 {
				return n, err
			}
			n += size
			if c.trailers += size; c.trailers > c.MaxTrailers {
				return n, Malformed("trailers are too large")
			}
			if len(line) == 0 {
				c.phase = phaseEnd
				return n, nil
			}
			name, value, err := Field(string(line))
			if err != nil {
				return n, err
			}
			if c.Trailer != nil && !Framing(name) {
				c.add(name, value)
			}
		case phaseEnd:
			return n, nil
		}
	}
}

// add keeps a trailer.
func (c *Chunked) add(name, value string) {
	if *c.Trailer == nil {
		*c.Trailer = http.Header{}
	}
	(*c.Trailer)[name] = append((*c.Trailer)[name], value)
}

// Longest returns how long the line that comes next may be.
func (c *Chunked) Longest() int {
	if c.phase == phaseTrailer {
		return c.MaxTrailers
	}
	return maxChunkLine
}

// cutLine returns the first line of b without its CRLF, and its length with
// it: 0 if there is no whole line yet.
func cutLine(b []byte, max int) (line []byte, n int, err error) {
	i := bytes.IndexByte(b, '\n')
	switch {
	case i < 0 && len(b) > max+1, i-1 > max:
		return nil, 0, Malformed("line too long in the chunked body")
	case i < 0:
		return nil, 0, nil
	case i == 0 || b[i-1] != '\r':
		return nil, 0, Malformed("line feed without carriage return in the chunked body")
	}
	return b[:i-1], i + 1, nil
}

// chunkSize parses a chunk's first line: hexadecimal digits and, perhaps,
// extensions after a semicolon, whose length it returns.
func chunkSize(line []byte) (size int64, extension int, err error) {
	i := 0
	for ; i < len(line); i++ {
		var d byte
		switch c := line[i]; {
		case c >= '0' && c <= '9':
			d = c - '0'
		case c >= 'a' && c <= 'f':
			d = c - 'a' + 10
		case c >= 'A' && c <= 'F':
			d = c - 'A' + 10
		default:
			d = 16
		}
		if d == 16 {
			break
		}
		if i == 15 { // 60 bits are enough, and cannot overflow
			return 0, 0, Malformed("chunk size too large")
		}
		size = size<<4 | int64(d)
	}
	if i == 0 {
		return 0, 0, Malformed("bad chunk size")
	}
	rest := line[i:]
	if len(rest) == 0 {
		return size, 0, nil
	}
	if rest[0] != ';' {
		return 0, 0, Malformed("bad chunk size")
	}
	if !ValidValue(string(rest)) {
		return 0, 0, Malformed("control character in a chunk extension")
	}
	return size, len(rest), nil
}
