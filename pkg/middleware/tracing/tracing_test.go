package tracing_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/middleware"
	mw "github.com/proconsul/proconsul/pkg/middleware/tracing"
	"github.com/proconsul/proconsul/pkg/tracing"
)

func tracer(t testing.TB, r tracing.Rules) *tracing.Tracer {
	tr, err := tracing.New(tracing.Options{Endpoint: "http://127.0.0.1:1"}, r)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// What is not sampled costs its ids and the field that instances get.
func TestWhatIsNotSampledIsCheap(t *testing.T) {
	h := mw.New(tracer(t, tracing.Rules{}), func(*middleware.Exchange) string { return "/a/**" })(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }))
	r := httptest.NewRequest("GET", "/a/b", nil)
	x := middleware.NewExchange(httptest.NewRecorder(), time.Now())
	if n := testing.AllocsPerRun(1000, func() { h.ServeHTTP(x, r) }); n > 3 {
		t.Errorf("%v allocations a request, want 3: the trace, the field and its value", n)
	}
	if x.Trace == nil || x.Trace.Sampled || x.Followed {
		t.Errorf("trace %+v, followed %v", x.Trace, x.Followed)
	}
}

// An operator's request is kept whatever the ratio is.
func TestWhatIsFollowedIsSampled(t *testing.T) {
	h := mw.New(tracer(t, tracing.Rules{}), func(*middleware.Exchange) string { return "" })(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	x := middleware.NewExchange(httptest.NewRecorder(), time.Now())
	x.Followed = true
	h.ServeHTTP(x, httptest.NewRequest("GET", "/", nil))
	if !x.Trace.Sampled || !x.Followed {
		t.Errorf("trace %+v, followed %v", x.Trace, x.Followed)
	}
}
