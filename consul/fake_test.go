package consul_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/proconsul/proconsul/consul"
	"github.com/proconsul/proconsul/discovery"
)

// fake is a Consul of a few lines that misbehaves on request. It lives on
// net.Pipe, so that tests can run it in a synctest bubble, where a minute of
// blocking takes no time.
type fake struct {
	t   *testing.T
	srv *http.Server
	ln  *pipes

	mu       sync.Mutex
	index    uint64
	services map[string][]string // name to ids; an id is also the last part of its port
	changed  chan struct{}
	leader   string
	handle   func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
	queries  []string                                          // "name index"
	dials    int
	refuse   bool
}

// pipes is a listener whose connections are net.Pipe's.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8500} }

func newFake(t *testing.T) *fake {
	f := &fake{t: t, ln: &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}, index: 10,
		services: map[string][]string{}, changed: make(chan struct{}), leader: "127.0.0.1:8300"}
	f.srv = &http.Server{Handler: f, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() { _ = f.srv.Serve(f.ln) }()
	return f
}

func (f *fake) close() { _ = f.srv.Close() }

func (f *fake) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	f.mu.Lock()
	f.dials++
	refuse := f.refuse
	f.mu.Unlock()
	if refuse {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connect: connection refused")}
	}
	a, b := net.Pipe()
	select {
	case f.ln.conns <- a:
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// set changes a service and wakes who blocks on it.
func (f *fake) set(service string, ids ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index++
	f.services[service] = ids
	close(f.changed)
	f.changed = make(chan struct{})
}

// with changes the fake under its lock.
func (f *fake) with(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.queries...)
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	handle := f.handle
	f.mu.Unlock()
	if handle != nil && handle(w, r) {
		return
	}
	if r.URL.Path == "/v1/status/leader" {
		f.mu.Lock()
		defer f.mu.Unlock()
		fmt.Fprintf(w, "%q", f.leader)
		return
	}
	f.serve(w, r)
}

// serve answers a health query as Consul does.
func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	name, ok := strings.CutPrefix(r.URL.Path, "/v1/health/service/")
	if !ok {
		http.Error(w, "not a path of the fake", http.StatusNotFound)
		return
	}
	index, _ := strconv.ParseUint(r.URL.Query().Get("index"), 10, 64)
	block, _ := time.ParseDuration(r.URL.Query().Get("wait"))
	end := time.NewTimer(block)
	defer end.Stop()
	f.mu.Lock()
	f.queries = append(f.queries, fmt.Sprintf("%s %d", name, index))
	for waiting := index > 0; waiting && index >= f.index; {
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-end.C:
			waiting = false
		case <-r.Context().Done():
			return
		}
		f.mu.Lock()
	}
	defer f.mu.Unlock()
	f.answer(w, name, f.index)
}

// answer writes the service as it is; the caller holds the lock.
func (f *fake) answer(w http.ResponseWriter, name string, index uint64) {
	w.Header().Set("X-Consul-Index", strconv.FormatUint(index, 10))
	w.Header().Set("X-Consul-Lastcontact", "0")
	w.Header().Set("X-Consul-Knownleader", "true")
	type object = map[string]any
	list := []object{}
	for _, id := range f.services[name] {
		port, _ := strconv.Atoi(id[strings.LastIndex(id, "-")+1:])
		list = append(list, object{
			"Node":    object{"Node": "n1", "Address": "127.0.0.1", "Datacenter": "dc1"},
			"Service": object{"ID": id, "Service": name, "Port": 20000 + port, "Weights": object{"Passing": 1, "Warning": 1}},
			"Checks":  []object{{"CheckID": "service:" + id, "Status": "passing", "ServiceID": id}},
		})
	}
	_ = json.NewEncoder(w).Encode(list)
}

func empty(w http.ResponseWriter, index uint64) {
	w.Header().Set("X-Consul-Index", strconv.FormatUint(index, 10))
	w.Header().Set("X-Consul-Lastcontact", "0")
	_, _ = io.WriteString(w, "[]")
}

// watching is a watcher over a fake or a real agent, and its catalog.
type watching struct {
	*consul.Watcher
	catalog *discovery.Catalog
	stop    func()
}

// watch starts a watcher; stop ends it and waits for it.
func watch(t *testing.T, o consul.Options, wo consul.WatchOptions, queries ...discovery.Query) *watching {
	t.Helper()
	client, err := consul.NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	catalog := discovery.NewCatalog()
	w := consul.NewWatcher(client, catalog, slog.New(slog.NewTextHandler(t.Output(), nil)), wo)
	w.Sync(queries)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	stopped := sync.OnceFunc(func() {
		cancel()
		<-done
		client.CloseIdle()
	})
	t.Cleanup(stopped)
	return &watching{w, catalog, stopped}
}

// ids are those of a service's instances in the catalog, joined.
func (w *watching) ids(key string) string {
	var ids []string
	for _, in := range w.catalog.State(key).Snapshot.Instances {
		ids = append(ids, in.ServiceID)
	}
	return strings.Join(ids, " ")
}

func query(service string) discovery.Query { return discovery.Query{Service: service} }
