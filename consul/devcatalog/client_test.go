package devcatalog_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/proconsul/proconsul/consul/devcatalog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// api talks to one agent, the real one or ours, by plain HTTP.
type api struct {
	t    testing.TB
	addr string
	node string
	http *http.Client
}

func newAPI(t testing.TB, addr, node string) *api {
	transport := &http.Transport{MaxIdleConnsPerHost: 300}
	t.Cleanup(transport.CloseIdleConnections)
	return &api{t: t, addr: addr, node: node, http: &http.Client{Transport: transport}}
}

// for a subtest
func (a *api) with(t testing.TB) *api {
	b := *a
	b.t = t
	return &b
}

// reply is an answer, read to its end.
type reply struct {
	t      testing.TB
	code   int
	header http.Header
	body   string
}

// try makes a request and returns what became of it.
func (a *api) try(ctx context.Context, method, path, body string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+a.addr+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{t: a.t, code: resp.StatusCode, header: resp.Header, body: string(b)}, err
}

func (a *api) do(method, path, body string) reply {
	a.t.Helper()
	r, err := a.try(a.t.Context(), method, path, body)
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

func (a *api) get(path string) reply       { a.t.Helper(); return a.do(http.MethodGet, path, "") }
func (a *api) put(path, body string) reply { a.t.Helper(); return a.do(http.MethodPut, path, body) }

// ok makes a request that has to succeed.
func (a *api) ok(method, path, body string) reply {
	a.t.Helper()
	r := a.do(method, path, body)
	if r.code != http.StatusOK {
		a.t.Fatalf("%s %s %s: %d %s", method, path, body, r.code, r.body)
	}
	return r
}

func (a *api) register(body string) reply {
	a.t.Helper()
	return a.ok(http.MethodPut, "/v1/agent/service/register", body)
}

func (r reply) index() uint64 {
	r.t.Helper()
	index, err := strconv.ParseUint(r.header.Get("X-Consul-Index"), 10, 64)
	if err != nil || index == 0 {
		r.t.Fatalf("X-Consul-Index %q, want a number from 1", r.header.Get("X-Consul-Index"))
	}
	return index
}

func decoded[T any](r reply) T {
	r.t.Helper()
	var v T
	if err := json.Unmarshal([]byte(r.body), &v); err != nil {
		r.t.Fatalf("%d %s: %v", r.code, r.body, err)
	}
	return v
}

// entry is what the tests look at of /v1/health/service.
type entry struct {
	Node    struct{ Node, Address, Datacenter string }
	Service struct {
		ID, Service, Address string
		Tags                 []string
		Meta                 map[string]string
		Port                 *int
		Weights              struct{ Passing, Warning int }
	}
	Checks []check
}

type check struct {
	CheckID, Name, Status, Notes, Output, ServiceID, ServiceName, Type string
}

func (e entry) check(id string) *check {
	for i := range e.Checks {
		if e.Checks[i].CheckID == id {
			return &e.Checks[i]
		}
	}
	return nil
}

// entries reads the instances of a service, with parameters after its name.
func (a *api) entries(service string) []entry {
	a.t.Helper()
	return decoded[[]entry](a.ok(http.MethodGet, "/v1/health/service/"+service, ""))
}

func ids(entries []entry) string {
	var all []string
	for _, e := range entries {
		all = append(all, e.Service.ID)
	}
	return strings.Join(all, " ")
}

// blocked starts a blocking GET and returns its answer's channel. The request
// has been sent when it returns, not necessarily arrived.
func (a *api) blocked(path string, index uint64, wait time.Duration) <-chan reply {
	sep := "?"
	if strings.Contains(path, "?") {
		sep = "&"
	}
	answer := make(chan reply, 1)
	ctx := a.t.Context()
	go func() {
		defer close(answer)
		r, err := a.try(ctx, http.MethodGet, path+sep+"index="+strconv.FormatUint(index, 10)+"&wait="+wait.String(), "")
		if err == nil {
			answer <- r
		} else if !errors.Is(err, context.Canceled) {
			a.t.Errorf("GET %s: %v", path, err)
		}
	}()
	return answer
}

// dev starts a server of ours that runs until the test ends.
func dev(t testing.TB, o devcatalog.Options) (*devcatalog.Server, *api) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := devcatalog.New(o)
	srv := &http.Server{Handler: s}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- s.Run(ctx) }()
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		shutdown, stop := context.WithTimeout(context.Background(), 5*time.Second)
		defer stop()
		if err := srv.Shutdown(shutdown); err != nil {
			t.Errorf("the server did not end with Run: %v", err)
			_ = srv.Close()
		}
		<-done
		if err := s.Audit(); err != nil {
			t.Error(err)
		}
	})
	node := o.NodeName
	if node == "" {
		node = "devcatalog"
	}
	return s, newAPI(t, l.Addr().String(), node)
}

func compact(t testing.TB, s string) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, []byte(s)); err != nil {
		t.Fatalf("%v: %s", err, s)
	}
	return b.String()
}
