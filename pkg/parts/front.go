package parts

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Front is a TCP balancer in front of gateway replicas, as a load balancer on
// layer 4 is: it asks each replica's readiness and sends new connections to
// those that are ready, in turn. It never looks into a connection and never
// moves one. Safe for concurrent use.
type Front struct {
	Addr     string
	listener net.Listener
	next     atomic.Uint64
	wg       sync.WaitGroup

	mu       sync.Mutex
	replicas []*frontReplica
}

type frontReplica struct {
	addr  string // of its public listener
	ready string // URL that answers 200 while it wants traffic
	up    atomic.Bool
}

// frontInterval is the gap between two questions for readiness.
const frontInterval = 50 * time.Millisecond

// StartFront starts a balancer without replicas.
func StartFront(t testing.TB) *Front {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &Front{Addr: l.Addr().String(), listener: l}
	ctx, cancel := context.WithCancel(context.Background())
	f.wg.Go(func() { f.check(ctx) })
	f.wg.Go(f.accept)
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		f.wg.Wait()
	})
	return f
}

// Add puts a replica's public address behind the balancer; it gets traffic
// while the URL ready answers 200.
func (f *Front) Add(addr, ready string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replicas = append(f.replicas, &frontReplica{addr: addr, ready: ready})
}

// Up returns how many replicas get traffic.
func (f *Front) Up() int { return len(f.up()) }

func (f *Front) list() []*frontReplica {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*frontReplica(nil), f.replicas...)
}

func (f *Front) up() []*frontReplica {
	var up []*frontReplica
	for _, b := range f.list() {
		if b.up.Load() {
			up = append(up, b)
		}
	}
	return up
}

func (f *Front) check(ctx context.Context) {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		for _, b := range f.list() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.ready, nil)
			if err != nil {
				continue
			}
			resp, err := client.Do(req)
			if err == nil {
				_ = resp.Body.Close()
			}
			b.up.Store(err == nil && resp.StatusCode == http.StatusOK)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(frontInterval):
		}
	}
}

func (f *Front) accept() {
	for {
		c, err := f.listener.Accept()
		if err != nil {
			return
		}
		f.wg.Go(func() { f.carry(c.(*net.TCPConn)) })
	}
}

// carry joins a client to a replica. One that cannot be connected to costs the
// client nothing: the next is asked.
func (f *Front) carry(client *net.TCPConn) {
	defer client.Close()
	up := f.up()
	start := f.next.Add(1)
	for i := range up {
		b := up[(start+uint64(i))%uint64(len(up))]
		c, err := net.DialTimeout("tcp", b.addr, time.Second)
		if err != nil {
			b.up.Store(false)
			continue
		}
		replica := c.(*net.TCPConn)
		defer replica.Close()
		var both sync.WaitGroup
		both.Go(func() { pump(replica, client) })
		both.Go(func() { pump(client, replica) })
		both.Wait()
		return
	}
}

// pump moves one direction to its end and passes the end on.
func pump(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		_ = to.SetLinger(0)
		_ = to.Close()
		_ = from.Close()
		return
	}
	_ = to.CloseWrite()
}
