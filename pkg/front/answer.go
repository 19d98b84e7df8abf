package front

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/proconsul/proconsul/pkg/wire"
)

// mode is how an answer's body is framed.
type mode uint8

const (
	undecided mode = iota
	bodyless
	counted    // by Content-Length
	chunked    // by chunks
	untilClose // by the end of the connection
)

// headroom is left between an answer's fields and what is held of its body,
// for the fields that depend on the body.
const headroom = 256

// answer is a request's answer. Its header is rendered when the handler
// writes it; what of it depends on the body is decided when more of the body is
// there than is held, or all of it.
type answer struct {
	begun       bool // the header is written, as far as the handler is concerned
	flushed     bool // something has gone out
	mode        mode
	identity    bool // the handler wants no chunks
	trailers    bool // there may be some
	typed       bool // there is a Content-Type, or none is wanted
	dated       bool // there is a Date, or none is wanted
	transferred bool // the handler has set Transfer-Encoding

	status     int
	length     int64 // by Content-Length; -1: not known
	written    int64 // of the body
	out        []byte
	fields     int // of out: where the fields end, while the mode is not decided
	err        error
	connection []string // the handler's Connection
}

// Header implements http.ResponseWriter.
func (x *exchange) Header() http.Header {
	if x.finished.Load() || x.c.sc == nil {
		if checked && x.finished.Load() {
			panic(errFinished)
		}
		return http.Header{} // nobody's
	}
	return x.c.sc.header
}

// usable reports whether the answer may be written to.
func (x *exchange) usable() error {
	if x.finished.Load() {
		if checked {
			panic(errFinished)
		}
		return errFinished
	}
	if x.hijacked {
		return errTaken
	}
	return nil
}

// WriteHeader implements http.ResponseWriter.
func (x *exchange) WriteHeader(code int) { x.WriteFields(code, nil) }

// WriteFields is WriteHeader with fields beside those of Header: going through a
// list is a fraction of what filling a map takes. The lines are not kept.
func (x *exchange) WriteFields(code int, lines []wire.Line) {
	if code < 100 || code > 999 {
		panic(fmt.Sprintf("invalid WriteHeader code %v", code))
	}
	if x.usable() != nil || x.answer.begun {
		return
	}
	if code < 200 && code != http.StatusSwitchingProtocols {
		x.interim(code, lines)
		return
	}
	x.ruleOutContinue()
	a := &x.answer
	a.begun, a.status = true, code
	x.render(lines)
	if x.body.eof.Load() || x.req.Body == http.NoBody {
		if a.length >= 0 && a.typed || a.status == http.StatusSwitchingProtocols {
			x.decide(nil, false) // there is nothing to wait for
		}
	}
}

// interim sends a 1xx answer at once.
func (x *exchange) interim(code int, lines []wire.Line) {
	if x.req.ProtoMinor == 0 {
		return // RFC 9110, section 15.2
	}
	b := appendStatus(nil, 1, code)
	for name, values := range x.c.sc.header {
		if name == "Content-Length" || name == "Transfer-Encoding" || strings.HasPrefix(name, http.TrailerPrefix) {
			continue
		}
		b = appendField(b, name, values)
	}
	for _, l := range lines {
		if !wire.Framing(l.Name) {
			b = l.Append(b)
		}
	}
	b = append(b, "\r\n"...)
	x.continuing.Lock()
	defer x.continuing.Unlock()
	if code == http.StatusContinue {
		x.expecting = false
	}
	if _, err := x.c.nc.Write(b); err != nil {
		x.broken(err)
	}
}

// note learns from a field what it says of the answer, and reports whether it is
// written with the rest.
func (a *answer) note(name, value string) bool {
	switch name {
	case "Content-Length":
		if value != "" {
			if n, err := wire.ContentLength(wire.Trim(value)); err == nil {
				a.length = n
			}
		}
		return false
	case "Transfer-Encoding":
		a.identity, a.transferred = value == "identity", value != ""
		return false
	case "Content-Type":
		a.typed = true
		return a.status != http.StatusNotModified
	case "Content-Encoding":
		a.typed = a.typed || value != ""
	case "Date":
		a.dated = true
	case "Trailer":
		a.trailers = true
	default:
		if strings.HasPrefix(name, http.TrailerPrefix) {
			a.trailers = true
			return false
		}
	}
	return true
}

// render writes the status and the fields that do not depend on the body.
func (x *exchange) render(lines []wire.Line) {
	a := &x.answer
	sc := x.c.sc
	if sc.write == nil {
		sc.write = x.c.s.writes.Get().(*[writeBufferSize]byte)
	}
	b := appendStatus(sc.write[:0], x.req.ProtoMinor, a.status)
	for name, values := range sc.header {
		first := ""
		if len(values) > 0 {
			first = values[0]
		}
		if name == "Connection" {
			a.connection = values
		} else if a.note(name, first) {
			b = appendField(b, name, values)
		}
	}
	for _, l := range lines {
		if l.Name == "Connection" {
			a.connection = append(a.connection[:len(a.connection):len(a.connection)], l.Value)
		} else if a.note(l.Name, l.Value) {
			b = l.Append(b)
		}
	}
	if a.transferred && a.length >= 0 && !a.identity {
		a.length = -1 // one of the two is wrong
	}
	a.out, a.fields = b, len(b)
}

func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// decide finishes the header, given what is held of the body and whether that
// is all, and appends it to what goes out.
func (x *exchange) decide(held []byte, all bool) {
	a := &x.answer
	r := &x.req
	head := r.Method == http.MethodHead
	bodied := bodyAllowed(a.status)
	if all && a.length < 0 && !a.trailers && !a.transferred && bodied && (!head || a.written > 0) {
		a.length = a.written
	}
	known := a.length >= 0
	old := r.ProtoMinor == 0
	again := ""
	if old && !x.close {
		if head || known || !bodied {
			again = "keep-alive"
		} else {
			x.close = true
		}
	}
	for _, v := range a.connection {
		x.close = x.close || wire.HasToken(v, "close")
	}
	if x.c.s.draining.Load() {
		x.close = true
	}
	if !x.duplex && !x.close && r.Body != http.NoBody && a.status != http.StatusSwitchingProtocols && !x.body.drain(true) {
		// Many clients send all of a request before they read the answer; one
		// whose body will not be read must not go on sending.
		x.close = true
	}
	tail := x.c.sc.tail[:0]
	if !a.dated {
		tail = append(append(append(tail, "Date: "...), x.c.s.now(time.Now())...), "\r\n"...)
	}
	switch {
	case head || !bodied:
		a.mode = bodyless
		if known && bodied {
			tail = appendLength(tail, a.length)
		}
	case known:
		a.mode = counted
		tail = appendLength(tail, a.length)
	case !old && !a.identity:
		a.mode = chunked
		tail = append(tail, "Transfer-Encoding: chunked\r\n"...)
	default:
		a.mode = untilClose
		x.close = true
	}
	if !a.typed && bodied && !a.transferred && len(held) > 0 {
		tail = append(append(append(tail, "Content-Type: "...), http.DetectContentType(held)...), "\r\n"...)
	}
	switch {
	case a.status == http.StatusSwitchingProtocols:
		tail = appendField(tail, "Connection", a.connection)
	case x.close && (!old || len(a.connection) > 0):
		tail = append(tail, "Connection: close\r\n"...)
	case x.close:
	case again != "" && len(a.connection) == 0:
		tail = append(tail, "Connection: keep-alive\r\n"...)
	default:
		tail = appendField(tail, "Connection", a.connection)
	}
	tail = append(tail, "\r\n"...)
	if a.mode == chunked && len(held) > 0 {
		tail = appendSize(tail, len(held))
	}
	if a.mode == bodyless {
		held = nil
	}
	if len(held) > 0 && len(tail) > headroom { // held lies where tail goes
		held = append([]byte(nil), held...)
	}
	a.out = append(append(a.out[:a.fields], tail...), held...)
	if a.mode == chunked && len(held) > 0 {
		a.out = append(a.out, "\r\n"...)
	}
}

// held returns what is held of the body.
func (a *answer) held() []byte {
	if len(a.out) <= a.fields {
		return nil
	}
	return a.out[a.fields+headroom:]
}

// Write implements http.ResponseWriter.
func (x *exchange) Write(p []byte) (int, error) {
	if err := x.usable(); err != nil {
		return 0, err
	}
	a := &x.answer
	if !a.begun {
		x.WriteHeader(http.StatusOK)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if !bodyAllowed(a.status) {
		return 0, http.ErrBodyNotAllowed
	}
	a.written += int64(len(p))
	if a.length >= 0 && a.written > a.length {
		return 0, http.ErrContentLength
	}
	if a.mode == undecided {
		// Room for the end of a chunk is kept.
		at := max(len(a.out), a.fields+headroom)
		if at+len(p)+2 <= cap(a.out) && cap(a.out) == writeBufferSize {
			a.out = a.out[:at+len(p)]
			copy(a.out[at:], p)
			return len(p), nil
		}
		if held := a.held(); len(held) > 0 {
			x.decide(held, false)
		} else {
			x.begin(p)
		}
	}
	if err := x.send(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// begin decides with the first part of the body, which is not held.
func (x *exchange) begin(p []byte) {
	a := &x.answer
	if !a.typed && bodyAllowed(a.status) && !a.transferred && len(a.out) == a.fields {
		a.out = append(append(append(a.out, "Content-Type: "...), http.DetectContentType(p)...), "\r\n"...)
		a.fields, a.typed = len(a.out), true
	}
	x.decide(nil, false)
}

// send passes a part of the body on, in the decided mode.
func (x *exchange) send(p []byte) error {
	a := &x.answer
	if a.err != nil {
		return a.err
	}
	switch a.mode {
	case bodyless:
		return nil
	case chunked:
		if len(a.out)+len(p)+12 <= cap(a.out) {
			a.out = append(append(appendSize(a.out, len(p)), p...), "\r\n"...)
			return nil
		}
		a.out = appendSize(a.out, len(p))
		return x.push(p, []byte("\r\n"))
	}
	if len(a.out)+len(p) <= cap(a.out) {
		a.out = append(a.out, p...)
		return nil
	}
	return x.push(p, nil)
}

// push writes what is waiting, and more.
func (x *exchange) push(p, end []byte) error {
	a := &x.answer
	if a.err != nil {
		return a.err
	}
	var err error
	switch sc := x.c.sc; {
	case len(p) == 0:
		if len(a.out) == 0 {
			return nil
		}
		_, err = x.c.nc.Write(a.out)
	case x.c.tls != nil || len(a.out) == 0 && len(end) == 0:
		if len(a.out) > 0 {
			// Together with the first of it, so that they share a record.
			if n := min(cap(a.out)-len(a.out), len(p)); n > 0 {
				a.out, p = append(a.out, p[:n]...), p[n:]
			}
			_, err = x.c.nc.Write(a.out)
		}
		if err == nil && len(p) > 0 {
			_, err = x.c.nc.Write(p)
		}
		if err == nil && len(end) > 0 {
			a.out = append(a.out[:0], end...)
			a.flushed = true
			return nil
		}
	default:
		sc.vector = [3][]byte{a.out, p, end}
		n := 2
		if len(end) > 0 {
			n = 3
		}
		sc.chunks = net.Buffers(sc.vector[:n])
		_, err = sc.chunks.WriteTo(x.c.nc)
		sc.vector, sc.chunks = [3][]byte{}, nil
	}
	a.out = a.out[:0]
	a.flushed = true
	if err != nil {
		return x.broken(err)
	}
	return nil
}

// broken notes that the client cannot be written to.
func (x *exchange) broken(err error) error {
	x.answer.err = err
	x.close = true
	x.kept.ctx.cancel()
	return err
}

// Flush implements http.Flusher.
func (x *exchange) Flush() { _ = x.FlushError() } // as its callers want it

// FlushError implements what http.ResponseController looks for.
func (x *exchange) FlushError() error {
	if err := x.usable(); err != nil {
		return err
	}
	a := &x.answer
	if !a.begun {
		x.WriteHeader(http.StatusOK)
	}
	if a.mode == undecided {
		x.decide(a.held(), false)
	}
	return x.push(nil, nil)
}

// WriteString implements io.StringWriter.
func (x *exchange) WriteString(s string) (int, error) {
	return x.Write(unsafe.Slice(unsafe.StringData(s), len(s))) // which does not change it
}

// ReadFrom implements io.ReaderFrom. The kernel moves the body where it can.
func (x *exchange) ReadFrom(src io.Reader) (n int64, err error) {
	if err := x.usable(); err != nil {
		return 0, err
	}
	a := &x.answer
	buf := x.c.s.copies.Get().(*[copyBufferSize]byte)
	defer x.c.s.copies.Put(buf)
	for {
		if to, ok := x.c.nc.(io.ReaderFrom); ok && a.mode == counted && x.c.tls == nil && a.length > a.written {
			if err := x.push(nil, nil); err != nil {
				return n, err
			}
			m, err := to.ReadFrom(io.LimitReader(src, a.length-a.written))
			a.written += m
			n += m
			if err != nil {
				return n, x.broken(err) // whose it is cannot be told
			}
			if a.written < a.length {
				return n, nil
			}
			// One byte more would be an error.
		}
		m, rerr := src.Read(buf[:])
		if m > 0 {
			w, err := x.Write(buf[:m])
			n += int64(w)
			if err != nil {
				return n, err
			}
		}
		switch {
		case rerr == io.EOF:
			return n, nil
		case rerr != nil:
			return n, rerr
		}
	}
}

// complete sends the rest of an answer and reports whether the answer is whole.
func (x *exchange) complete() bool {
	a := &x.answer
	if !a.begun {
		x.WriteHeader(http.StatusOK)
	}
	if a.mode == undecided {
		x.decide(a.held(), true)
	}
	if a.mode == chunked {
		a.out = append(a.out, "0\r\n"...)
		if a.trailers || len(x.c.sc.header) > 0 {
			a.out = x.appendTrailers(a.out)
		}
		a.out = append(a.out, "\r\n"...)
	}
	short := a.mode == counted && a.written != a.length
	if x.mayWait() && !short {
		x.c.writeLater(a.out)
		a.out, a.flushed = nil, true
		return true
	}
	if x.push(nil, nil) != nil {
		return false
	}
	if short {
		x.close = true
		return false
	}
	return true
}

// mayWait reports whether what is left of an answer may be written a moment
// later: there is something, nothing has failed, and the connection goes on.
func (x *exchange) mayWait() bool {
	c, a := x.c, &x.answer
	return c.s.o.Writes != nil && c.raw != nil && c.tls == nil && c.sc.write != nil && len(a.out) > 0 && cap(a.out) == writeBufferSize &&
		a.err == nil && !x.close && x.body.eof.Load() && !c.writeDead.Load()
}

// appendTrailers writes the trailers that were announced, and those that the
// handler has marked as such.
func (x *exchange) appendTrailers(b []byte) []byte {
	h := x.c.sc.header
	for _, line := range h["Trailer"] {
		for name := range strings.SplitSeq(line, ",") {
			name = textproto.CanonicalMIMEHeaderKey(wire.Trim(name))
			if !wire.Framing(name) {
				b = appendField(b, name, h[name])
			}
		}
	}
	for name, values := range h {
		if name, ok := strings.CutPrefix(name, http.TrailerPrefix); ok && !wire.Framing(name) {
			b = appendField(b, name, values)
		}
	}
	return b
}

func appendStatus(b []byte, minor, code int) []byte {
	if minor == 0 {
		b = append(b, "HTTP/1.0 "...)
	} else {
		b = append(b, "HTTP/1.1 "...)
	}
	b = append(strconv.AppendInt(b, int64(code), 10), ' ')
	text := http.StatusText(code)
	if text == "" {
		text = "status code " + strconv.Itoa(code)
	}
	return append(append(b, text...), "\r\n"...)
}

// appendField writes a field's lines. Nothing gets out that would end one.
func appendField(b []byte, name string, values []string) []byte {
	if len(values) == 0 || !wire.ValidToken(name) {
		return b
	}
	for _, v := range values {
		b = append(append(b, name...), ": "...)
		v = wire.Trim(v)
		if wire.ValidValue(v) {
			b = append(b, v...)
		} else {
			for i := range len(v) {
				if c := v[i]; c < ' ' && c != '\t' || c == 0x7f {
					b = append(b, ' ')
				} else {
					b = append(b, c)
				}
			}
		}
		b = append(b, "\r\n"...)
	}
	return b
}

func appendLength(b []byte, n int64) []byte {
	return append(strconv.AppendInt(append(b, "Content-Length: "...), n, 10), "\r\n"...)
}

func appendSize(b []byte, n int) []byte {
	return append(strconv.AppendUint(b, uint64(n), 16), "\r\n"...)
}
