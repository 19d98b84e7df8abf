package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
)

// Bounds of a switched connection.
const (
	// halfClosedIdle is how long a connection that one side has finished may
	// stay silent before it is taken for dead.
	halfClosedIdle = 5 * time.Minute
	// closeWait is how long both sides get to finish after a going-away close.
	closeWait = time.Second
)

// switchProtocols joins the client's connection and the instance's after a
// 101, until both are done.
func (f *flight) switchProtocols(resp *http.Response) error {
	if got := resp.Header.Get("Upgrade"); !strings.EqualFold(got, f.upgrade) {
		_ = resp.Body.Close() // the answer is not used
		return fmt.Errorf("%w: switched to %q instead of %q", errProtocol, got, f.upgrade)
	}
	instance, ok := resp.Body.(io.ReadWriteCloser)
	if !ok {
		_ = resp.Body.Close() // the answer is not used
		return fmt.Errorf("%w: the connection cannot be written to", errProtocol)
	}
	defer instance.Close()
	f.report(resp.StatusCode, "", "", false, false)
	if f.x != nil && f.x.FirstByte == 0 {
		f.x.FirstByte = max(time.Since(f.x.Start), 1)
	}

	// The header goes out in the ordinary way, so that whatever changes
	// answers changes this one too; what it takes away is put back.
	h := f.w.Header()
	lines := uncounted(f.passOn(resp))
	h["Connection"], h["Upgrade"] = []string{"Upgrade"}, resp.Header["Upgrade"]
	middleware.WriteFields(f.w, http.StatusSwitchingProtocols, lines)
	f.lines = nil
	conn, buffered, err := http.NewResponseController(f.w).Hijack()
	if err != nil {
		f.settle(balancer.Canceled)
		f.abort(problem.New(problem.Internal, "", fmt.Errorf("take over the client's connection: %w", err)))
	}
	defer conn.Close()
	if f.x != nil {
		f.x.Hijacked = true
	}

	t := &tunnel{
		relays:    &f.up.relays,
		websocket: strings.EqualFold(f.upgrade, "websocket"),
		client:    side{r: io.MultiReader(io.LimitReader(buffered, int64(buffered.Reader.Buffered())), conn), w: conn, closer: conn},
		instance:  side{r: instance, w: instance, closer: instance},
	}
	st := f.up.streams.add(f.pick.Member(), f.s.Drain, t.goAway)
	in, out, err := t.run()
	st.remove()

	if f.x != nil {
		f.x.BytesIn, f.x.Bytes = in, out
		if err != nil {
			f.x.Err = err
		}
	}
	f.settle(balancer.Success)
	return nil
}

// tunnel moves bytes between two connections in both directions.
type tunnel struct {
	client, instance side
	relays           *sync.Pool
	websocket        bool
	leaving          atomic.Bool

	mu    sync.Mutex
	idle  *time.Timer // set when one direction has ended
	timer *time.Timer // set by goAway
}

// side is one end of a tunnel, as the direction towards it sees it.
type side struct {
	r      io.Reader
	w      io.Writer
	closer io.Closer

	mu     sync.Mutex // held while w is written
	frames frames     // what has been written, where it is a WebSocket
	shut   bool       // nothing more may be written
}

// run returns when both directions have ended, with the bytes that went from
// the client and to it, and the first error that was not an end.
func (t *tunnel) run() (in, out int64, err error) {
	type result struct {
		n   int64
		err error
	}
	up := make(chan result, 1)
	go func() {
		n, err := t.move(&t.client, &t.instance)
		up <- result{n, err}
	}()
	out, err = t.move(&t.instance, &t.client)
	res := <-up
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.idle != nil {
		t.idle.Stop()
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	if err == nil {
		err = res.err
	}
	if t.leaving.Load() {
		err = nil
	}
	return res.n, out, err
}

// move copies from one side to the other until the first ends, and passes the
// end on. An error ends both directions.
func (t *tunnel) move(from, to *side) (int64, error) {
	c := t.relays.Get().(*relay)
	defer t.relays.Put(c)
	var total int64
	for {
		n, err := from.r.Read(c.buf[:])
		if n > 0 {
			total += int64(n)
			t.touch()
			if werr := t.write(to, c.buf[:n]); werr != nil {
				t.cut()
				return total, werr
			}
		}
		switch {
		case err == io.EOF:
			if !t.halfClose(to) {
				t.cut()
			}
			return total, nil
		case err != nil:
			t.cut()
			if errors.Is(err, net.ErrClosed) {
				err = nil // our own doing
			}
			return total, err
		}
	}
}

func (t *tunnel) write(to *side, p []byte) error {
	err := t.pass(to, p)
	if err == nil && t.leaving.Load() {
		t.tryGoodbye(to) // goAway may have found the side busy with this write
	}
	return err
}

func (t *tunnel) pass(to *side, p []byte) error {
	to.mu.Lock()
	defer to.mu.Unlock()
	if to.shut {
		return nil // after a close frame nothing may follow; the rest is dropped
	}
	if !t.websocket {
		_, err := to.w.Write(p)
		return err
	}
	// While the gateway is leaving, the close frame goes in at the first place
	// where a frame may begin.
	for len(p) > 0 {
		n := len(p)
		if t.leaving.Load() {
			n = to.frames.untilBoundary(p)
		}
		if n > 0 {
			to.frames.advance(p[:n])
			if _, err := to.w.Write(p[:n]); err != nil {
				return err
			}
		}
		if t.leaving.Load() && to.frames.boundary() {
			t.sayGoodbye(to)
			return nil
		}
		p = p[n:]
	}
	return nil
}

// halfClose tells a side that no more will come, and reports whether it could
// be told apart from closing everything.
func (t *tunnel) halfClose(to *side) bool {
	to.mu.Lock()
	defer to.mu.Unlock()
	to.shut = true
	cw, ok := to.w.(interface{ CloseWrite() error })
	if !ok || cw.CloseWrite() != nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.idle == nil {
		t.idle = time.AfterFunc(halfClosedIdle, t.cut)
	}
	return true
}

// touch keeps a half-closed tunnel that still moves bytes.
func (t *tunnel) touch() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.idle != nil {
		t.idle.Reset(halfClosedIdle)
	}
}

// cut ends both directions at once.
func (t *tunnel) cut() {
	_ = t.client.closer.Close()   // closing twice is not an error that matters
	_ = t.instance.closer.Close() // likewise
}

// goAway asks both sides to finish: a WebSocket with a close frame, anything
// else by cutting it.
func (t *tunnel) goAway() {
	t.leaving.Store(true)
	if !t.websocket {
		t.cut()
		return
	}
	t.mu.Lock()
	t.timer = time.AfterFunc(closeWait, t.cut)
	t.mu.Unlock()
	t.tryGoodbye(&t.client)
	t.tryGoodbye(&t.instance)
}

// tryGoodbye writes the close frame where one may go now. A side that is being
// written to does it itself at the end of that frame: waiting here for a slow
// one would hold up the others.
func (t *tunnel) tryGoodbye(to *side) {
	if !t.websocket || !to.mu.TryLock() {
		return
	}
	defer to.mu.Unlock()
	if !to.shut && to.frames.boundary() {
		t.sayGoodbye(to)
	}
}

// sayGoodbye writes the close frame. The side's mu is held and it is at a
// frame's boundary.
func (t *tunnel) sayGoodbye(to *side) {
	to.shut = true
	// Frames to an instance are a client's and therefore masked; a mask of
	// zeros leaves the payload as it is.
	frame := []byte{0x88, 0x02, 0x03, 0xe9} // FIN, close, 1001 going away
	if to == &t.instance {
		frame = []byte{0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9}
	}
	if c, ok := to.w.(net.Conn); ok {
		_ = c.SetWriteDeadline(time.Now().Add(closeWait)) // a connection without deadlines is cut by the timer
	}
	_, _ = to.w.Write(frame) // the timer ends it either way
}
