// Package cohort has the small writes of many connections done one after the
// other, where many are due at about the same time.
//
// Between the system calls of one request a processor runs through far more
// code than its first cache holds, ours and the kernel's in turn. Where many
// requests are under way, it costs a tenth and more less to let each come as
// far as its write, and to write for all of them then: the kernel's way to a
// socket is in the cache from the second one on. Larus and Parkes call it
// cohort scheduling (Using Cohort Scheduling to Enhance Server Performance,
// USENIX 2002).
//
// Nobody waits for a cohort: whoever is first lets those run that can run
// already, and then writes for all who have come by that time. Where nobody
// comes, which is so on a gateway that has little to do, writes are done at
// once, but for a few that look whether it is still so.
package cohort

import (
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/proconsul/proconsul/pkg/rawio"
)

const (
	// worthwhile is how many writes a cohort has to have for the next one to be
	// gathered.
	worthwhile = 3

	// maxAlone bounds how rarely it is tried where cohorts are small: after
	// 1<<maxAlone writes.
	maxAlone = 7

	// maxQueue is how many writes one queue may remember without work.
	maxQueue = 1 << 10
)

// Writes gathers writes. It is safe for concurrent use; a nil one does each at
// once. Make one with New, for all connections of a process.
type Writes struct {
	queues []queue
	next   atomic.Uint32
	near   sync.Pool // of *queue: a processor finds its own there
}

// queue is what one processor gathers, as a rule: who is moved to another
// between two steps does no harm.
type queue struct {
	mu    sync.Mutex
	list  []*Write // nil: of one who writes himself
	spare []*Write // for the next list
	led   bool     // somebody has undertaken to write the list
	alone uint     // cohorts in a row that were not worthwhile
	skip  uint     // of the next, which need not try
	_     [64]byte // queues do not share a cache line
}

// New returns what gathers writes.
func New() *Writes {
	w := &Writes{queues: make([]queue, runtime.GOMAXPROCS(0))}
	w.near.New = func() any { return &w.queues[int(w.next.Add(1))%len(w.queues)] }
	return w
}

// Write is one connection's write, one at a time. Make one with Init. Its
// methods are for the connection's goroutine alone.
type Write struct {
	conn    syscall.RawConn
	onWrite func(fd uintptr)
	ended   func(whole bool)

	state atomic.Uint32
	rest  []byte // what is not written
	err   error
}

const (
	done   uint32 = iota
	queued        // nobody has begun with it
	writing
)

// Init prepares w for the connection. ended is called after each write, by
// whoever did it, and before Settle returns; whole says that all was written. It
// must not block.
func (w *Write) Init(conn syscall.RawConn, ended func(whole bool)) {
	w.conn, w.ended = conn, ended
	w.onWrite = w.write // one value: a closure for each call would be an allocation
}

// Do writes p at once, or has it be written in a moment; it never waits for the
// connection. The write before must be settled. p is not to be touched until
// this one is, or has ended.
func (ws *Writes) Do(w *Write, p []byte) {
	w.rest, w.err = p, nil
	q, joined, lead := ws.join(w)
	switch {
	case !joined:
		w.state.Store(writing)
		w.run()
	case lead:
		runtime.Gosched() // those come first that can run already
		q.flush()
	}
}

// Yield is for who writes himself, in a way that is not ours: it lets those come
// as far that can run already, if that has been worthwhile lately.
func (ws *Writes) Yield() {
	q, joined, lead := ws.join(nil)
	if joined {
		runtime.Gosched()
	}
	if lead {
		q.flush()
	}
}

// join puts w into the near queue, unless it is to be written at once. lead says
// that the caller has to flush.
func (ws *Writes) join(w *Write) (q *queue, joined, lead bool) {
	if ws == nil {
		return nil, false, false
	}
	q = ws.near.Get().(*queue)
	joined, lead = q.join(w)
	ws.near.Put(q)
	return q, joined, lead
}

func (q *queue) join(w *Write) (joined, lead bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	lead = !q.led
	if lead && q.skip > 0 {
		q.skip--
		return false, false
	}
	if w != nil {
		w.state.Store(queued)
	}
	q.list = append(q.list, w)
	q.led = true
	return true, lead
}

// flush writes the queue.
func (q *queue) flush() {
	q.mu.Lock()
	list := q.list
	q.list, q.spare, q.led = q.spare, nil, false
	if len(list) < worthwhile {
		q.alone = min(q.alone+1, maxAlone)
		q.skip = 1 << q.alone
	} else {
		q.alone = 0
	}
	q.mu.Unlock()
	for i, w := range list {
		list[i] = nil
		if w != nil && w.state.CompareAndSwap(queued, writing) {
			w.run()
		}
	}
	if cap(list) > maxQueue {
		return
	}
	q.mu.Lock()
	q.spare = list[:0]
	q.mu.Unlock()
}

// run does the write, which is the caller's to do.
func (w *Write) run() {
	// A connection that is closed meanwhile keeps its descriptor as long as
	// RawConn.Control runs. RawConn.Write would get the poller ready besides, for
	// somebody who waits.
	if err := w.conn.Control(w.onWrite); err != nil {
		w.err = err
	}
	w.ended(len(w.rest) == 0 && w.err == nil)
	w.state.Store(done)
}

// write is what RawConn.Control calls.
func (w *Write) write(fd uintptr) {
	n, err := rawio.Write(fd, w.rest)
	if err == rawio.ErrDry {
		err = nil // the rest is left
	}
	w.rest, w.err = w.rest[n:], err
}

// Settle sees to it that the write has ended, and returns what could not be
// written without waiting, or why nothing can be: once, and nothing where there
// is no write.
func (w *Write) Settle() (rest []byte, err error) {
	for {
		switch w.state.Load() {
		case done:
			rest, err = w.rest, w.err
			w.rest, w.err = nil, nil
			return rest, err
		case queued:
			if w.state.CompareAndSwap(queued, writing) {
				w.run()
			}
		default:
			runtime.Gosched() // another is at it, and does not wait
		}
	}
}

// Withdraw reports whether the write was taken back before anybody had begun
// with it.
func (w *Write) Withdraw() bool { return w.state.CompareAndSwap(queued, done) }

// Settled reports whether the write has ended.
func (w *Write) Settled() bool { return w.state.Load() == done }
