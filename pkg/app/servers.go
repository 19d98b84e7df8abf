package app

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/certs"
	"github.com/proconsul/proconsul/pkg/cohort"
	"github.com/proconsul/proconsul/pkg/front"
	"github.com/proconsul/proconsul/pkg/gateway"
	"github.com/proconsul/proconsul/pkg/rawio"
)

// server is one listener and what serves it.
type server struct {
	name     string
	listener net.Listener
	handler  http.Handler
	engine   engine
}

// engine is net/http's server or the gateway's own.
type engine interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
	Close() error
}

// listen opens addr, beside other processes that share it too where it is
// shared. The error names the listener and the way out.
func listen(name, addr string, shared bool) (net.Listener, error) {
	var conf net.ListenConfig
	way := "change its addr"
	if shared {
		conf.Control = reusePort
		way = "only processes of one user that all say reuse_port share it"
	}
	l, err := conf.Listen(context.Background(), "tcp", addr) // it does not wait
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w (is another process on %s? %s)", name, err, addr, way)
	}
	return l, nil
}

// newPublicServer serves by handler within c's limits: HTTP/1.1 and h2c where
// store is nil, else HTTP/1.1 and HTTP/2 over TLS. The bound on the header is
// that on the handshake too. refuse answers what the fast engine does not take
// for a request, and noTLS counts what comes to a TLS listener and does not speak
// it.
func newPublicServer(c config.Listen, l net.Listener, store *certs.Store, handler http.Handler, refuse gateway.Refuse, noTLS func(), away func() bool, writes *cohort.Writes, log *slog.Logger) *server {
	if c.Limits.MaxConnections > 0 {
		l = limitConnections(l, c.Limits.MaxConnections)
	}
	log = log.With("listener", c.Name)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	var secure *tls.Config
	if store == nil {
		protocols.SetUnencryptedHTTP2(true)
	} else {
		protocols.SetHTTP2(true)
		secure = store.TLS()
	}
	std := &http.Server{
		TLSConfig:         secure,
		Handler:           sendAway(handler, away),
		Protocols:         protocols,
		ReadHeaderTimeout: c.Timeouts.ReadHeader,
		IdleTimeout:       c.Timeouts.Idle,
		MaxHeaderBytes:    int(c.Limits.MaxHeaderBytes),
		// What net/http says of clients that misbehave is theirs, not ours.
		ErrorLog: stdlog.New(&stdErrors{log, noTLS}, "", 0),
	}
	s := &server{name: c.Name, listener: l, handler: std.Handler, engine: stdEngine{std, writes}}
	if c.Engine == "fast" {
		s.engine = front.New(front.Options{
			Handler:    std.Handler,
			TLS:        secure,
			MaxHeader:  int(c.Limits.MaxHeaderBytes),
			ReadHeader: c.Timeouts.ReadHeader,
			Idle:       c.Timeouts.Idle,
			HTTP2:      std,
			NoTLS:      noTLS,
			Writes:     writes,
			Refuse: func(w http.ResponseWriter, r *http.Request, why *front.Refusal) {
				refuse(w, r, why.Status, why.Detail)
			},
			Log: log,
		})
	}
	return s
}

// stdErrors is the writer of net/http's log of a listener, which is the only one
// who is told of a handshake that failed.
type stdErrors struct {
	log   *slog.Logger
	noTLS func()
}

// Write implements io.Writer.
func (e *stdErrors) Write(line []byte) (int, error) {
	if bytes.HasPrefix(line, []byte("http: TLS handshake error")) {
		e.noTLS()
	}
	e.log.Debug(string(bytes.TrimSpace(line)))
	return len(line), nil
}

// stdEngine is net/http's server, with TLS where that is configured.
type stdEngine struct {
	*http.Server
	writes *cohort.Writes
}

// Serve implements engine.
func (e stdEngine) Serve(l net.Listener) error {
	l = rawListener{l, e.writes}
	if e.TLSConfig == nil {
		return e.Server.Serve(l)
	}
	return e.ServeTLS(l, "", "")
}

// rawListener accepts connections whose reads and writes are cheap.
type rawListener struct {
	net.Listener
	writes *cohort.Writes
}

func (l rawListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return rawio.Conn(c, l.writes.Yield), nil
}

// sendAway asks clients to come back on another connection once the gateway
// drains: closing their idle connections later would race with their next
// request, and not every client repeats one that is lost so.
func sendAway(next http.Handler, away func() bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away() {
			w.Header().Set("Connection", "close") // over HTTP/2 the server makes it a GOAWAY
		}
		next.ServeHTTP(w, r)
	})
}

// serve serves until the server is shut down.
func (s *server) serve(context.Context) error {
	if err := s.engine.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// shutdown stops accepting, lets requests in flight finish until ctx ends, and
// then closes what is left.
func (s *server) shutdown(ctx context.Context) error {
	err := s.engine.Shutdown(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("listener %s: requests were still in flight at the end of the grace period: %w", s.name, err), s.engine.Close())
	}
	return nil
}

// limitConnections accepts no more than n connections at a time; further ones
// wait in the kernel's queue, where they cost the gateway nothing.
func limitConnections(l net.Listener, n int) net.Listener {
	return &limitedListener{Listener: l, slots: make(chan struct{}, n), closed: make(chan struct{}), late: make(chan struct{})}
}

type limitedListener struct {
	net.Listener
	slots  chan struct{}
	once   sync.Once
	closed chan struct{}

	lateOnce sync.Once
	late     chan struct{} // there is a deadline: no slot is waited for any more
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	default:
		select {
		case l.slots <- struct{}{}:
		case <-l.late:
			return nil, os.ErrDeadlineExceeded
		case <-l.closed:
			return nil, net.ErrClosed
		}
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

// SetDeadline has Accept give up where the listener can. Deadlines are set by a
// server that shuts down, a moment ahead: a place that may be free by then, or
// not until the clients have gone that wait for the server to go, is not waited
// for.
func (l *limitedListener) SetDeadline(t time.Time) error {
	d, ok := l.Listener.(interface{ SetDeadline(time.Time) error })
	if !ok {
		return errors.ErrUnsupported
	}
	if !t.IsZero() {
		l.lateOnce.Do(func() { close(l.late) })
	}
	return d.SetDeadline(t)
}

func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// CloseWrite ends one direction where the connection can, for tunnels that one
// side has finished with.
func (c *limitedConn) CloseWrite() error { return rawio.CloseWrite(c.Conn) }

// Unwrapped lets the fast engine read and write without the detour.
func (c *limitedConn) Unwrapped() net.Conn { return c.Conn }

// wait returns after d, or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
