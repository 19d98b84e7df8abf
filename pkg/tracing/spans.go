package tracing

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/proconsul/proconsul/pkg/middleware"
)

// Request is what a span says beside the Exchange.
type Request struct {
	Method string // as the client sent it
	Proto  int    // major version
	Route  string // http.route: the pattern that the route matches; empty: none matched
	Status int    // that the client was told
	End    time.Time
}

// End makes the spans of a request that has ended: its own, and one for each
// try of an instance. What is not sampled makes none.
func (t *Tracer) End(x *middleware.Exchange, q Request) {
	tr := x.Trace
	if tr == nil || !tr.Sampled {
		return
	}
	ctx := with(context.Background(), tr.ID, tr.Span)
	if tr.Parent != (middleware.SpanID{}) {
		state, _ := trace.ParseTraceState(tr.State) // Begin has read it before
		ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: trace.TraceID(tr.ID), SpanID: trace.SpanID(tr.Parent), TraceFlags: trace.FlagsSampled, TraceState: state, Remote: true}))
	}
	method := known(q.Method)
	name := method.Value.AsString()
	if name == other {
		name = "HTTP"
	}
	attrs := []attribute.KeyValue{
		method,
		semconv.URLScheme(x.Scheme), semconv.URLPath(text(x.Path)), semconv.ServerAddress(text(x.Host)),
		semconv.ClientAddress(x.ClientIP.String()),
		semconv.NetworkProtocolVersion(protocol(q.Proto)),
		semconv.HTTPResponseStatusCode(q.Status),
		attribute.String("proconsul.request_id", text(x.RequestID)),
	}
	if name == "HTTP" {
		attrs = append(attrs, semconv.HTTPRequestMethodOriginal(clip(q.Method)))
	}
	full := name
	if q.Route != "" {
		full += " " + q.Route
		attrs = append(attrs, semconv.HTTPRoute(q.Route))
	}
	for _, a := range []struct{ key, value string }{
		{"proconsul.route", x.Route}, {"proconsul.upstream", x.Upstream}, {"proconsul.instance", x.Instance},
		{"proconsul.consumer", x.Consumer}, {"proconsul.reason", string(x.Reason)},
		{"proconsul.ratelimit", x.RateLimit}, {"proconsul.cache", x.Cache},
	} {
		if a.value != "" {
			attrs = append(attrs, attribute.String(a.key, text(a.value))) // a consumer has its name from a token
		}
	}
	options := []trace.SpanStartOption{trace.WithTimestamp(x.Start), trace.WithSpanKind(trace.SpanKindServer)}
	if tr.Claimed != (middleware.TraceID{}) {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: trace.TraceID(tr.Claimed), SpanID: trace.SpanID(tr.ClaimedSpan), Remote: true})}))
	}
	ctx, span := t.tracer.Start(ctx, full, options...)
	span.SetAttributes(attrs...)
	if q.Status >= 500 || x.Reason != "" && q.Status == 0 {
		span.SetStatus(codes.Error, string(x.Reason))
		span.SetAttributes(semconv.ErrorTypeKey.String(failure(string(x.Reason), q.Status)))
	}
	for i, a := range x.Attempts {
		t.try(with(ctx, tr.ID, attemptSpan(a)), x, i, a, method, name)
	}
	span.End(trace.WithTimestamp(q.End))
}

func attemptSpan(a middleware.Attempt) middleware.SpanID {
	if a.Detail == nil {
		return middleware.NewSpanID()
	}
	return a.Detail.Span
}

// try makes the span of one try.
func (t *Tracer) try(ctx context.Context, x *middleware.Exchange, n int, a middleware.Attempt, method attribute.KeyValue, name string) {
	d := a.Detail
	if d == nil {
		return // it was not followed, and nobody knows when it began
	}
	course := d.Course()
	_, span := t.tracer.Start(ctx, name, trace.WithTimestamp(d.Began), trace.WithSpanKind(trace.SpanKindClient))
	span.SetAttributes(method, attribute.String("proconsul.upstream", x.Upstream), attribute.String("proconsul.instance", a.Instance))
	if host, port, err := net.SplitHostPort(a.Address); err == nil {
		span.SetAttributes(semconv.ServerAddress(host))
		if p, err := strconv.Atoi(port); err == nil {
			span.SetAttributes(semconv.ServerPort(p))
		}
	}
	if n > 0 {
		span.SetAttributes(semconv.HTTPRequestResendCount(n))
	}
	if a.Status != 0 {
		span.SetAttributes(semconv.HTTPResponseStatusCode(a.Status))
	}
	if a.Reason != "" {
		span.SetAttributes(attribute.String("proconsul.reason", a.Reason))
	}
	if a.Reason != "" || a.Status >= 400 {
		span.SetStatus(codes.Error, a.Reason)
		span.SetAttributes(semconv.ErrorTypeKey.String(failure(a.Reason, a.Status)))
	}
	for _, e := range []struct {
		name string
		at   time.Duration
	}{{"dialed", course.Dialed}, {"connected", course.Connected}, {"request written", course.Wrote}, {"first byte", course.FirstByte}} {
		if e.at > 0 {
			span.AddEvent(e.name, trace.WithTimestamp(d.Began.Add(e.at)))
		}
	}
	end := course.Ended
	if end == 0 {
		end = a.Duration
	}
	span.End(trace.WithTimestamp(d.Began.Add(end)))
}

// other is OpenTelemetry's word for methods that are not HTTP's own.
const other = "_OTHER"

func known(method string) attribute.KeyValue {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodOptions, http.MethodConnect, http.MethodTrace:
		return semconv.HTTPRequestMethodKey.String(method)
	}
	return semconv.HTTPRequestMethodKey.String(other)
}

// clip bounds what a client may put into a span where it says it in its own
// words.
func clip(s string) string { return text(s[:min(len(s), 32)]) }

// text is what a client sent as a span may say it: one string that is not UTF-8
// keeps the whole batch from being encoded.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func protocol(major int) string {
	if major >= 2 {
		return strconv.Itoa(major)
	}
	return "1.1"
}

// failure is error.type: the reason's word, or the status.
func failure(reason string, status int) string {
	if reason != "" {
		return reason
	}
	return strconv.Itoa(status)
}
