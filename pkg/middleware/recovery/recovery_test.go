package recovery_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/recovery"
	"github.com/proconsul/proconsul/pkg/problem"
)

func serve(h http.HandlerFunc) (rec *httptest.ResponseRecorder, x *middleware.Exchange, log string, raised any) {
	var out bytes.Buffer
	rec = httptest.NewRecorder()
	x = middleware.NewExchange(rec, time.Now())
	x.RequestID = "id-1"
	defer func() { log, raised = out.String(), recover() }()
	recovery.New(slog.New(slog.NewJSONHandler(&out, nil)))(h).ServeHTTP(x, httptest.NewRequest("GET", "/", nil))
	return
}

func TestPanicBecomes500(t *testing.T) {
	rec, x, log, raised := serve(func(http.ResponseWriter, *http.Request) { panic("boom") })
	if raised != nil || rec.Code != 500 || rec.Header().Get("X-Proconsul-Reason") != "internal_error" || strings.Contains(rec.Body.String(), "boom") {
		t.Errorf("got %d %q, raised %v", rec.Code, rec.Body, raised)
	}
	if x.Reason != problem.Internal || x.Status != 500 {
		t.Errorf("account: %q %d", x.Reason, x.Status)
	}
	for _, want := range []string{`"msg":"handler panicked"`, "boom", "id-1", "recovery_test.go"} {
		if !strings.Contains(log, want) {
			t.Errorf("log lacks %q: %s", want, log)
		}
	}
}

func TestPanicAfterTheHeaderBreaksTheConnection(t *testing.T) {
	_, x, log, raised := serve(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(200)
		panic("boom")
	})
	if raised != http.ErrAbortHandler || !strings.Contains(log, "boom") || x.Reason != problem.Internal {
		t.Errorf("raised %v, reason %q, log %q", raised, x.Reason, log)
	}
}

func TestAbortPasses(t *testing.T) {
	_, x, log, raised := serve(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	if raised != http.ErrAbortHandler || log != "" || x.Reason != "" {
		t.Errorf("raised %v, reason %q, log %q", raised, x.Reason, log)
	}
}

func TestNoPanicNoChange(t *testing.T) {
	rec, _, log, raised := serve(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	if rec.Code != 204 || raised != nil || log != "" {
		t.Errorf("got %d, raised %v, log %q", rec.Code, raised, log)
	}
}
