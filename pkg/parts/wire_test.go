package parts_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/parts"
)

// A wire has to break in the way it says, or the tests on it prove nothing.
func TestWireBreaksAsItSays(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("x", 1000))
	}))
	t.Cleanup(srv.Close)
	w := parts.StartWire(t, srv.Listener.Addr().String())
	waiting := func(patience time.Duration) *http.Transport {
		tr := &http.Transport{DialContext: (&net.Dialer{Timeout: patience}).DialContext, ResponseHeaderTimeout: patience}
		t.Cleanup(tr.CloseIdleConnections)
		return tr
	}
	// Only what has to run into the time has little of it.
	patient, hasty := waiting(10*time.Second), waiting(300*time.Millisecond)
	get := func(tr *http.Transport) error {
		// A POST, so that net/http does not try again on its own.
		resp, err := (&http.Client{Transport: tr}).Post("http://"+w.Addr, "text/plain", strings.NewReader("hello"))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
		return err
	}
	well := func(t *testing.T) {
		t.Helper()
		if err := get(patient); err != nil {
			t.Fatalf("a healed wire: %v", err)
		}
	}
	well(t)
	timeout := func(err error) bool {
		return errors.Is(err, os.ErrDeadlineExceeded) || strings.Contains(err.Error(), "timeout")
	}
	for _, tt := range []struct {
		name  string
		by    *http.Transport
		fault func()
		is    func(error) bool
	}{
		{"refuse", patient, w.Refuse, func(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }},
		{"swallow, on an old connection", hasty, w.Swallow, timeout},
		{"swallow, on a new one", hasty, func() { hasty.CloseIdleConnections(); w.Swallow() }, timeout},
		{"drop", hasty, func() { hasty.CloseIdleConnections(); w.Drop() }, func(err error) bool {
			var op *net.OpError
			return errors.As(err, &op) && op.Op == "dial" && op.Timeout()
		}},
		// net/http takes half a line for a malformed one.
		{"cut in the header", patient, func() { w.CutAnswers(20) }, func(err error) bool {
			return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(err.Error(), "malformed")
		}},
		{"cut in the body", patient, func() { w.CutAnswers(300) }, func(err error) bool {
			return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrUnexpectedEOF)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_ = get(hasty) // so that it has an old connection, too
			tt.fault()
			_ = get(tt.by) // an old connection may fail in another way
			if err := get(tt.by); err == nil || !tt.is(err) {
				t.Errorf("got %v", err)
			}
			w.Heal()
			patient.CloseIdleConnections()
			hasty.CloseIdleConnections()
			well(t)
		})
	}
	w.Latency(100 * time.Millisecond)
	start := time.Now()
	well(t)
	if took := time.Since(start); took < 100*time.Millisecond {
		t.Errorf("an answer after %v", took)
	}
}

func TestFrontSendsToThoseThatAreReady(t *testing.T) {
	f := parts.StartFront(t)
	ready := map[string]*atomic.Bool{}
	for _, name := range []string{"a", "b"} {
		ready[name] = new(atomic.Bool)
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/readyz" && !ready[name].Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			_, _ = io.WriteString(w, name)
		}))
		t.Cleanup(srv.Close)
		f.Add(srv.Listener.Addr().String(), srv.URL+"/readyz")
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	seen := func() map[string]bool {
		names := map[string]bool{}
		for range 4 {
			resp, err := client.Get("http://" + f.Addr)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			names[string(b)] = true
		}
		return names
	}
	for _, want := range [][]string{{"a"}, {"a", "b"}, {"b"}} {
		for name, is := range ready {
			is.Store(slices.Contains(want, name))
		}
		parts.Eventually(t, 10*time.Second, "the balancer has not noticed", func() bool { return f.Up() == len(want) })
		if got := seen(); len(got) != len(want) || !got[want[0]] {
			t.Errorf("ready %v: went to %v", want, got)
		}
	}
}
