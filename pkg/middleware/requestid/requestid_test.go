package requestid_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/requestid"
)

func TestAcceptsOnlyFromTrustedPeers(t *testing.T) {
	tests := []struct {
		name    string
		trusted bool
		sent    []string
		kept    bool
	}{
		{"none", true, nil, false},
		{"trusted", true, []string{"Abc-1.2_3"}, true},
		{"not trusted", false, []string{"abc"}, false},
		{"two", true, []string{"a", "b"}, false},
		{"empty", true, []string{""}, false},
		{"128", true, []string{strings.Repeat("a", 128)}, true},
		{"129", true, []string{strings.Repeat("a", 129)}, false},
		{"line break", true, []string{"a\r\nX: y"}, false},
		{"quote", true, []string{`a"b`}, false},
		{"unicode", true, []string{"ä"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rec := httptest.NewRecorder()
			x := middleware.NewExchange(rec, time.Now())
			x.Trusted = tt.trusted
			r := httptest.NewRequest("GET", "/", nil)
			if tt.sent != nil {
				r.Header["X-Request-Id"] = tt.sent
			}
			passed := ""
			requestid.New()(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				passed = strings.Join(r.Header["X-Request-Id"], ",")
			})).ServeHTTP(x, r)
			if passed == "" || passed != x.RequestID || rec.Header().Get("X-Request-Id") != passed {
				t.Errorf("passed on %q, account %q, returned %q: want one id", passed, x.RequestID, rec.Header().Get("X-Request-Id"))
			}
			if kept := len(tt.sent) == 1 && passed == tt.sent[0]; kept != tt.kept {
				t.Errorf("got %q for %q, kept %v, want %v", passed, tt.sent, kept, tt.kept)
			}
			if !requestid.Valid(passed) {
				t.Errorf("%q would not be taken over by the next gateway", passed)
			}
		})
	}
}

func TestIDsSortByTimeAndDiffer(t *testing.T) {
	seen := map[string]bool{}
	last := ""
	at := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	for range 1000 {
		at = at.Add(time.Millisecond)
		id := requestid.Make(at)
		if len(id) != 26 || id <= last || seen[id[10:]] {
			t.Fatalf("%q after %q", id, last)
		}
		seen[id[10:]], last = true, id
	}
}

func TestMakeAllocatesOnce(t *testing.T) {
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() { requestid.Make(now) }); n > 1 {
		t.Errorf("%v allocations, want 1", n)
	}
}
