package middleware_test

import (
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/wire"
)

// lister is a server's writer that takes lists.
type lister struct {
	http.ResponseWriter
	got []wire.Line
}

func (l *lister) WriteFields(code int, lines []wire.Line) {
	l.got = append(l.got, lines...)
	l.ResponseWriter.WriteHeader(code)
}

func list(fields ...string) (lines []wire.Line) {
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		lines = append(lines, wire.Line{Name: name, Value: value})
	}
	return lines
}

// Fields reach the server as a list where nobody in between wants to see them,
// and by Header otherwise, beside what was there.
func TestWriteFields(t *testing.T) {
	lines := func() []wire.Line { return list("A: 1", "B: 2", "A: 3", "Set: 4") }
	byHeader := http.Header{"A": {"1", "3"}, "B": {"2"}, "Set": {"0", "4"}, "None": nil}
	for name, tt := range map[string]struct {
		around func(http.ResponseWriter) http.ResponseWriter
		list   bool
	}{
		"straight": {func(w http.ResponseWriter) http.ResponseWriter { return w }, true},
		"hook": {func(w http.ResponseWriter) http.ResponseWriter {
			return middleware.NewHook(w, func(_ int, h http.Header) {
				if h.Get("B") != "2" {
					t.Errorf("the hook sees %v", h)
				}
			})
		}, false},
		"ByHeader": {middleware.ByHeader, false},
	} {
		t.Run(name, func(t *testing.T) {
			rec := httptest.NewRecorder()
			server := &lister{ResponseWriter: rec}
			x := middleware.NewExchange(server, time.Now())
			x.Header()["Set"], x.Header()["None"] = []string{"0"}, nil
			middleware.WriteFields(tt.around(x), 203, lines())
			if x.Status != 203 || rec.Code != 203 {
				t.Errorf("status %d, and %d in the account", rec.Code, x.Status)
			}
			if tt.list {
				if !reflect.DeepEqual(server.got, lines()) || len(rec.Header()) != 2 {
					t.Errorf("listed %v, header %v", server.got, rec.Header())
				}
			} else if server.got != nil || !reflect.DeepEqual(rec.Header(), byHeader) {
				t.Errorf("header %v, listed %v", rec.Header(), server.got)
			}
			if middleware.Of(tt.around(x)) != x {
				t.Error("the exchange is hidden")
			}
		})
	}
}

func TestStripLines(t *testing.T) {
	got := middleware.StripLines(list("A: 1", "Connection: x-b, keep-alive", "X-B: 2", "Te: 3", "X-C: 4", "Keep-Alive: 5",
		"Connection: X-C", "Via: 6", "Connection: Via"))
	if want := list("A: 1", "Via: 6"); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
