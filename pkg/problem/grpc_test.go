package problem_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/problem"
)

// TestCallsAreAnsweredInGRPC answers a call with every reason: HTTP 200 without
// a body, the status of gRPC, and an account of the status that it stands for.
func TestCallsAreAnsweredInGRPC(t *testing.T) {
	want := map[problem.Reason]string{
		problem.BadRequest: "3", problem.NoRoute: "12", problem.MethodNotAllowed: "12", problem.Unauthenticated: "16", problem.Forbidden: "7",
		problem.RateLimited: "8", problem.QuotaExceeded: "8", problem.BodyTooLarge: "8", problem.UpstreamTimeout: "4",
		problem.UpstreamProtocol: "13", problem.Internal: "13", problem.LoopDetected: "13",
		problem.NoInstances: "14", problem.NoHealthyInstances: "14", problem.BreakerOpen: "14", problem.ConcurrencyLimited: "14", problem.RetryBudget: "14",
		problem.UpstreamRefused: "14", problem.UpstreamReset: "14", problem.UpstreamTLS: "14", problem.Draining: "14", problem.Maintenance: "14",
		problem.LimiterUnavailable: "14", problem.AuthUnavailable: "14",
	}
	for reason, code := range want {
		w := httptest.NewRecorder()
		rec := &recorder{ResponseWriter: w}
		r := httptest.NewRequest("POST", "/shop.Orders/Get", nil)
		r.Header.Set("Content-Type", "application/grpc+proto;x=y")
		p := problem.New(reason, "100% of\u00e4", nil)
		p.RetryAfter = 1500 * time.Millisecond
		problem.Write(rec, r, p)
		h := w.Header()
		if w.Code != http.StatusOK || h.Get("Grpc-Status") != code || w.Body.Len() > 0 || h.Get("Content-Type") != "application/grpc+proto" || h.Get("X-Proconsul-Reason") != string(reason) {
			t.Errorf("%s: %d, body %q, %v; want grpc-status %s", reason, w.Code, w.Body, h, code)
		}
		if got, want := h.Get("Grpc-Message"), p.Title()+": 100%25 of%C3%A4"; got != want {
			t.Errorf("%s: message %q, want %q", reason, got, want)
		}
		if h.Get("Grpc-Retry-Pushback-Ms") != "2000" {
			t.Errorf("%s: pushback %q", reason, h.Get("Grpc-Retry-Pushback-Ms"))
		}
		if rec.status != p.Code() {
			t.Errorf("%s: the account has status %d, want %d", reason, rec.status, p.Code())
		}
	}
	for _, reason := range problem.Reasons() {
		if p := problem.New(reason, "", nil); p.CallStatus() == 0 {
			t.Errorf("%s is a success of gRPC", reason)
		}
	}
}

// TestCallType tells calls from requests whose type only begins alike.
func TestCallType(t *testing.T) {
	for contentType, want := range map[string]string{
		"application/grpc": "application/grpc", "application/grpc+json": "application/grpc+json", "application/grpc; charset=x": "application/grpc",
		"application/grpc-web": "application/grpc-web", "application/grpc-web-text+proto": "application/grpc-web-text+proto",
		"application/grpcurl": "", "application/json": "", "": "", "text/plain; application/grpc": "",
	} {
		r := httptest.NewRequest("POST", "/", nil)
		r.Header.Set("Content-Type", contentType)
		if got := problem.CallType(r); got != want {
			t.Errorf("%q: got %q, want %q", contentType, got, want)
		}
	}
}
