package front

import (
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/cohort"
)

// accepted returns a connection of s and its client's end.
func accepted(t *testing.T, s *Server) (*conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); nc.Close() })
	_ = client.SetDeadline(time.Now().Add(10 * time.Second))
	c := newConn(s, nc)
	c.below = nc
	c.raw, _ = nc.(*net.TCPConn).SyscallConn()
	c.last.Init(c.raw, c.wrote)
	c.room()
	c.sc.write = new([writeBufferSize]byte)
	return c, client
}

// An answer that is written long since does not keep a connection whose time is
// over.
func TestIdleConnectionsEnd(t *testing.T) {
	s := New(Options{Writes: cohort.New()})
	c, client := accepted(t, s)
	c.served = true
	c.writeLater(append(c.sc.write[:0], "answer"...))
	c.giveBack()
	c.setDeadline(time.Now().Add(-time.Second))
	c.err = os.ErrDeadlineExceeded
	if c.late() {
		t.Error("it is to be read once more")
	}
	c.end()
	if got, err := io.ReadAll(client); string(got) != "answer" || err != nil {
		t.Errorf("the client got %q, %v", got, err)
	}
}

// A connection that ends while its last answer waits for others sends it first.
func TestEndSendsWhatWaits(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	s := New(Options{Writes: cohort.New()})
	for waited, tries := false, 0; !waited; tries++ {
		if tries == 1000 {
			t.Fatal("no answer ever waited")
		}
		first, _ := accepted(t, s)
		c, client := accepted(t, s)
		done := make(chan struct{})
		go func() { // runs while the first lets others come
			defer close(done)
			c.writeLater(append(c.sc.write[:0], "answer"...))
			waited = !c.last.Settled()
			c.end()
		}()
		first.writeLater(append(first.sc.write[:0], "x"...))
		<-done
		if got, err := io.ReadAll(client); string(got) != "answer" || err != nil {
			t.Fatalf("the client got %q, %v", got, err)
		}
	}
}
