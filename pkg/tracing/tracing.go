// Package tracing puts requests into distributed traces (W3C Trace Context)
// and sends their spans to a collector, as OTLP over HTTP. It is the only door
// to OpenTelemetry.
//
// A request is given its ids when it comes, and its spans are made when it has
// ended, out of its Exchange: what is not sampled costs no more than a header
// field. Requests never wait for the collector: spans go into a bounded queue
// that one goroutine sends out, and what does not fit is dropped and counted.
//
// Spans hold no header field, no query string and no body, so that no secret
// gets into them.
package tracing

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/proconsul/proconsul/pkg/middleware"
)

// Options are what a Tracer is made with.
type Options struct {
	Endpoint string             // URL of the collector; /v1/traces is added where it has no path
	Headers  map[string]string  // that the collector gets
	TLS      func() *tls.Config // that the next connection is made by; nil: the system's roots

	Service, Version, Replica string // what spans call the gateway

	Log *slog.Logger // nil: none
}

// Rules are what may change while requests are served.
type Rules struct {
	Ratio  float64 // of the traces that begin here, 0 to 1
	Parent string  // whose traceparent is believed: that of trusted proxies, of everyone (always), of nobody (never)
}

// Tracer gives requests their place in traces. Its methods are safe for
// concurrent use.
type Tracer struct {
	rules  atomic.Pointer[rules]
	tracer trace.Tracer
	box    *outbox
}

type rules struct {
	Rules
	sampler sdk.Sampler
}

func (r *rules) believes(trusted bool) bool {
	return r.Parent == "always" || r.Parent == "trusted" && trusted
}

// New returns a tracer whose spans are sent while Run runs. It dials nothing.
func New(o Options, r Rules) (*Tracer, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	endpoint, err := url.Parse(o.Endpoint)
	if err != nil || endpoint.Host == "" {
		return nil, fmt.Errorf("endpoint %q is no URL", o.Endpoint)
	}
	if endpoint.Path == "" || endpoint.Path == "/" {
		endpoint.Path = "/v1/traces"
	}
	// Where OpenTelemetry reports what it has no error to return for. It is
	// the process's, as the library has it.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { o.Log.Debug("tracing", "err", err) }))
	options := []otlptracehttp.Option{otlptracehttp.WithEndpointURL(endpoint.String())}
	if len(o.Headers) > 0 {
		options = append(options, otlptracehttp.WithHeaders(o.Headers))
	}
	if o.TLS != nil {
		within := millis("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", millis("OTEL_EXPORTER_OTLP_TIMEOUT", 10*time.Second)) // a client of ours has to mind them
		options = append(options, otlptracehttp.WithHTTPClient(&http.Client{Transport: &way{tls: o.TLS}, Timeout: within}))
	}
	exporter, err := otlptracehttp.New(context.Background(), options...)
	if err != nil {
		return nil, err
	}
	about, err := resource.New(context.Background(), resource.WithFromEnv(), resource.WithTelemetrySDK(), resource.WithAttributes(
		semconv.ServiceName(o.Service), semconv.ServiceVersion(o.Version), semconv.ServiceInstanceID(o.Replica)))
	if err != nil { // of OTEL_RESOURCE_ATTRIBUTES; what could be read is there
		o.Log.Warn("resource attributes of spans are incomplete", "err", err)
	}
	t := &Tracer{box: newOutbox(exporter, o.Log)}
	provider := sdk.NewTracerProvider(sdk.WithResource(about), sdk.WithSampler(sdk.AlwaysSample()),
		sdk.WithIDGenerator(given{}), sdk.WithSpanProcessor(t.box))
	t.tracer = provider.Tracer("github.com/proconsul/proconsul", trace.WithInstrumentationVersion(o.Version), trace.WithSchemaURL(semconv.SchemaURL))
	t.Configure(r)
	return t, nil
}

// Configure replaces the rules.
func (t *Tracer) Configure(r Rules) {
	t.rules.Store(&rules{r, sdk.TraceIDRatioBased(r.Ratio)})
}

// Run sends spans until ctx is done, then what is left, and returns nil.
func (t *Tracer) Run(ctx context.Context) error { return t.box.run(ctx) }

// Stats says what became of the spans so far.
func (t *Tracer) Stats() Stats { return t.box.stats() }

// Explain says what Begin would do, for people.
func (t *Tracer) Explain(header http.Header, trusted bool) string {
	rules := t.rules.Load()
	_, _, sampled, ok := middleware.ParseTraceparent(header["Traceparent"])
	kept := map[bool]string{true: "kept", false: "not kept"}
	ratio := strconv.FormatFloat(100*rules.Ratio, 'g', 4, 64) + "% are kept"
	switch {
	case ok && rules.believes(trusted):
		return "continues the caller's trace, which is " + kept[sampled]
	case ok:
		return "begins a trace of its own, with a link to the caller's, whose word is not enough; " + ratio
	}
	return "begins a trace; " + ratio
}

// Begin gives a request its place in a trace: that of its traceparent where
// the rules believe it, or a new one. The request's fields then say so.
func (t *Tracer) Begin(x *middleware.Exchange, r *http.Request) {
	rules := t.rules.Load()
	tr := &middleware.Trace{Span: middleware.NewSpanID()}
	id, parent, sampled, ok := middleware.ParseTraceparent(r.Header["Traceparent"])
	if ok && rules.believes(x.Trusted) {
		tr.ID, tr.Parent, tr.Sampled = id, parent, sampled
		tr.State = state(r.Header["Tracestate"])
	} else {
		// A client that could continue its trace here could also choose an id
		// that is always sampled: it gets one of ours, with a link to its own.
		tr.Claimed, tr.ClaimedSpan = id, parent
		tr.ID = middleware.NewTraceID()
		decision := rules.sampler.ShouldSample(sdk.SamplingParameters{ParentContext: context.Background(), TraceID: trace.TraceID(tr.ID)})
		tr.Sampled = decision.Decision == sdk.RecordAndSample
	}
	if x.Followed { // an operator's
		tr.Sampled = true
	}
	x.Trace, x.Followed = tr, tr.Sampled
	r.Header["Traceparent"] = []string{tr.Traceparent(tr.Span)}
	if tr.State == "" {
		delete(r.Header, "Tracestate")
	} else {
		r.Header["Tracestate"] = []string{tr.State}
	}
}

// state returns a tracestate that instances may get; nothing for one that is
// not well formed.
func state(lines []string) string {
	text := strings.Join(lines, ",")
	if len(text) > 512 {
		return ""
	}
	if s, err := trace.ParseTraceState(text); err != nil || s.Len() == 0 {
		return ""
	}
	return text
}

// given is the generator of ids that were given before the span is made.
type given struct{}

type givenKey struct{}

type ids struct {
	trace middleware.TraceID
	span  middleware.SpanID
}

func with(ctx context.Context, id middleware.TraceID, span middleware.SpanID) context.Context {
	return context.WithValue(ctx, givenKey{}, ids{id, span})
}

// NewIDs implements the SDK's IDGenerator.
func (given) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	i := ctx.Value(givenKey{}).(ids)
	return trace.TraceID(i.trace), trace.SpanID(i.span)
}

// NewSpanID implements the SDK's IDGenerator.
func (given) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	return trace.SpanID(ctx.Value(givenKey{}).(ids).span)
}

// number returns what an OTEL_* variable says, or otherwise.
func number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil && n > 0 {
		return n
	}
	return otherwise
}

// millis is number for variables in milliseconds.
func millis(name string, otherwise time.Duration) time.Duration {
	return time.Duration(number(name, int(otherwise.Milliseconds()))) * time.Millisecond
}
