package tracing_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/tracing"
)

// Nothing that one client sends keeps the spans of others from the collector.
func TestWhatIsNotUTF8SpoilsNoBatch(t *testing.T) {
	got := make(chan *collector.ExportTraceServiceRequest, 10)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		sent := new(collector.ExportTraceServiceRequest)
		if err != nil || proto.Unmarshal(body, sent) != nil {
			t.Errorf("not OTLP: %q, %v", body, err)
		}
		got <- sent
	}))
	defer receiver.Close()
	tr, err := tracing.New(tracing.Options{Endpoint: receiver.URL}, tracing.Rules{Ratio: 1})
	if err != nil {
		t.Fatal(err)
	}
	long := "thirty-one bytes and then two: \u00e9"
	for _, x := range []struct{ method, field string }{{"GET", "fine"}, {"\xff", "fine"}, {long, "fine"}, {"GET", "\xff"}} {
		r := httptest.NewRequest("GET", "/", nil)
		ex := middleware.NewExchange(httptest.NewRecorder(), time.Now())
		ex.Path, ex.Host, ex.RequestID, ex.Consumer = x.field, x.field, x.field, x.field
		tr.Begin(ex, r)
		tr.End(ex, tracing.Request{Method: x.method, Proto: 2, Status: 400, End: time.Now()})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // Run sends what is left
	if err := tr.Run(ctx); err != nil {
		t.Fatal(err)
	}
	close(got)
	n := 0
	for sent := range got {
		for _, rs := range sent.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				n += len(ss.Spans)
			}
		}
	}
	if n != 4 {
		t.Errorf("%d spans came, want 4; %+v", n, tr.Stats())
	}
}
