package cohort_test

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/proconsul/proconsul/pkg/cohort"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// line is one end of a connection and its write.
type line struct {
	cohort.Write
	net.Conn
	peer  net.Conn
	ended atomic.Int32 // writes
	whole atomic.Bool  // the last of them
	then  func()       // called with each end; nil: nothing is
}

// connect returns n connections over loopback.
func connect(t *testing.T, n int) []*line {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	lines := make([]*line, n)
	for i := range lines {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		peer, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(); peer.Close() })
		_ = peer.SetDeadline(time.Now().Add(patience))
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		x := &line{Conn: c, peer: peer}
		x.Init(raw, func(whole bool) {
			x.whole.Store(whole)
			x.ended.Add(1)
			if x.then != nil {
				x.then()
			}
		})
		lines[i] = x
	}
	return lines
}

// hears reads what has to come.
func (x *line) hears(t *testing.T, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(x.peer, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the peer got %.40q, %v; want %.40q", got, err, want)
	}
}

func TestEveryWriteArrivesOnceAndInOrder(t *testing.T) {
	for name, writes := range map[string]*cohort.Writes{"gathered": cohort.New(), "nil": nil} {
		t.Run(name, func(t *testing.T) {
			const rounds = 200
			var wg sync.WaitGroup
			for i, x := range connect(t, 24) {
				wg.Go(func() {
					want := bytes.Repeat([]byte{byte('a' + i)}, 100)
					for range rounds {
						writes.Do(&x.Write, want)
						x.hears(t, want)
						if rest, err := x.Settle(); len(rest) > 0 || err != nil {
							t.Errorf("%d bytes left, %v", len(rest), err)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// allCome has many meet, as often as it takes, until all have come by the time
// that the first goes on, which has to call on. A goroutine that is interrupted on
// its way spoils a round.
func allCome(t *testing.T, many int, meet func(i int, on func()), settle func()) {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var due, first atomic.Int32
	for end := time.Now().Add(patience); first.Load() != int32(many); settle() {
		if time.Now().After(end) {
			t.Fatalf("the first went on when %d of %d had come", first.Load(), many)
		}
		due.Store(0)
		first.Store(0)
		var wg sync.WaitGroup
		for i := range many {
			wg.Go(func() {
				due.Add(1)
				meet(i, func() { first.CompareAndSwap(0, due.Load()) })
			})
		}
		wg.Wait()
	}
}

// Where many are due at once all come as far as their writes before the first
// is written.
func TestWritesAreGathered(t *testing.T) {
	writes := cohort.New()
	lines := connect(t, 16)
	allCome(t, len(lines), func(i int, on func()) {
		lines[i].then = on
		writes.Do(&lines[i].Write, []byte("x"))
	}, func() {
		for _, x := range lines {
			x.hears(t, []byte("x"))
			_, _ = x.Settle()
		}
	})
}

// So they do where each writes for himself.
func TestYield(t *testing.T) {
	writes := cohort.New()
	allCome(t, 16, func(_ int, on func()) {
		writes.Yield()
		on()
	}, func() {})
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var yields int
	for range 2000 { // alone
		var ran atomic.Bool
		done := make(chan struct{})
		go func() { ran.Store(true); close(done) }()
		writes.Yield()
		if ran.Load() {
			yields++
		}
		<-done
	}
	if yields > 200 {
		t.Errorf("others were let run in %d of 2000 calls", yields)
	}
}

// Whoever is alone is written for by the time that Do returns, and on a quiet
// gateway nobody else is let run before.
func TestAloneIsNotKeptWaiting(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	writes := cohort.New()
	x := connect(t, 1)[0]
	var yields int
	for range 2000 {
		ran := make(chan struct{})
		go close(ran) // runs as soon as it is let
		writes.Do(&x.Write, []byte("x"))
		if !x.Settled() {
			t.Fatal("it is not written")
		}
		select {
		case <-ran:
			yields++
		default:
			<-ran
		}
		x.hears(t, []byte("x"))
	}
	if yields > 200 {
		t.Errorf("others were let run before %d of 2000 writes", yields)
	}
}

func TestWithdrawnIsNotWritten(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	writes := cohort.New()
	lines := connect(t, 2)
	a, b := lines[0], lines[1]
	back := false
	for end := time.Now().Add(patience); !back; {
		if time.Now().After(end) {
			t.Fatal("b never came between a and its write")
		}
		before := b.ended.Load()
		done := make(chan struct{})
		go func() { // comes while a lets others run
			defer close(done)
			writes.Do(&b.Write, []byte("never"))
			if back = b.Withdraw(); !back {
				b.hears(t, []byte("never"))
			}
		}()
		writes.Do(&a.Write, []byte("a"))
		<-done
		a.hears(t, []byte("a"))
		if _, err := a.Settle(); err != nil {
			t.Fatal(err)
		}
		if back && b.ended.Load() != before {
			t.Fatal("a write that was withdrawn has ended")
		}
	}
	writes.Do(&b.Write, []byte("later"))
	_, _ = b.Settle()
	b.hears(t, []byte("later"))
}

// What does not fit is left to the connection's goroutine; nobody waits.
func TestWhatDoesNotFitIsLeft(t *testing.T) {
	x := connect(t, 1)[0]
	_ = x.Conn.(*net.TCPConn).SetWriteBuffer(64 << 10)
	all := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	cohort.New().Do(&x.Write, all)
	rest, err := x.Settle()
	if err != nil || len(rest) == 0 || len(rest) == len(all) {
		t.Fatalf("%d of %d bytes are left, %v", len(rest), len(all), err)
	}
	if x.whole.Load() || x.ended.Load() != 1 {
		t.Errorf("told whole %v, %d times", x.whole.Load(), x.ended.Load())
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = x.Conn.Write(rest) })
	x.hears(t, all)
	wg.Wait()
}

func TestFailuresAreTold(t *testing.T) {
	x := connect(t, 1)[0]
	x.Conn.Close()
	cohort.New().Do(&x.Write, []byte("x"))
	if _, err := x.Settle(); err == nil {
		t.Error("a write on a closed connection has no error")
	}
	if x.whole.Load() || x.ended.Load() != 1 {
		t.Errorf("told whole %v, %d times", x.whole.Load(), x.ended.Load())
	}
}
