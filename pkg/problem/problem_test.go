package problem_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/problem"
)

func TestWrite(t *testing.T) {
	secret := errors.New("dial tcp 10.1.2.3:80: refused")
	tests := []struct {
		name   string
		err    error
		status int
		reason string
		header map[string]string
	}{
		{"a problem", problem.New(problem.UpstreamRefused, "", secret), 502, "upstream_refused", map[string]string{"Proxy-Status": "proconsul; error=connection_refused", "Retry-After": ""}},
		{"wrapped", fmt.Errorf("attempt: %w", problem.New(problem.Forbidden, "not yours", nil)), 403, "forbidden", nil},
		{"any other error", secret, 500, "internal_error", nil},
		{"a status of its own", &problem.Error{Reason: problem.BadRequest, Status: 431}, 431, "bad_request", nil},
		{"retry after is rounded up", &problem.Error{Reason: problem.BreakerOpen, RetryAfter: 1200 * time.Millisecond}, 503, "breaker_open", map[string]string{"Retry-After": "2"}},
		{"further fields", &problem.Error{Reason: problem.MethodNotAllowed, Header: http.Header{"Allow": {"GET"}}}, 405, "method_not_allowed", map[string]string{"Allow": "GET"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			w.Header().Set("X-Request-Id", "id-1")
			w.Header().Set("Content-Encoding", "gzip") // of the answer that failed
			w.Header().Set("Content-Length", "12345")
			problem.Write(w, httptest.NewRequest("GET", "/", nil), tt.err)
			if w.Code != tt.status || w.Header().Get("X-Proconsul-Reason") != tt.reason {
				t.Errorf("got %d %q, want %d %q", w.Code, w.Header().Get("X-Proconsul-Reason"), tt.status, tt.reason)
			}
			var body struct {
				Type, Title, Detail, Reason string
				Status                      int
				RequestID                   string `json:"request_id"`
			}
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
				t.Fatal(err)
			}
			if body.Status != tt.status || body.Reason != tt.reason || body.RequestID != "id-1" || body.Title == "" || !strings.HasSuffix(body.Type, "#"+tt.reason) {
				t.Errorf("got body %+v", body)
			}
			if strings.Contains(w.Body.String(), "10.1.2.3") {
				t.Errorf("the cause went to the client: %s", w.Body)
			}
			if w.Header().Get("Content-Encoding") != "" || w.Header().Get("Content-Length") != fmt.Sprint(w.Body.Len()) || w.Header().Get("Content-Type") != "application/problem+json" {
				t.Errorf("got header %v", w.Header())
			}
			for name, want := range tt.header {
				if got := w.Header().Get(name); got != want {
					t.Errorf("got %s %q, want %q", name, got, want)
				}
			}
		})
	}
}

func TestHeadHasNoBody(t *testing.T) {
	w := httptest.NewRecorder()
	problem.Write(w, httptest.NewRequest("HEAD", "/", nil), problem.New(problem.NoRoute, "", nil))
	if w.Code != 404 || w.Body.Len() != 0 || w.Header().Get("Content-Length") == "0" {
		t.Errorf("got %d, %d bytes, Content-Length %q", w.Code, w.Body.Len(), w.Header().Get("Content-Length"))
	}
}

func TestNothingIsSentToAClientThatLeft(t *testing.T) {
	w := httptest.NewRecorder()
	problem.Write(w, httptest.NewRequest("GET", "/", nil), problem.New(problem.ClientCanceled, "", nil))
	if w.Body.Len() != 0 || len(w.Header()) != 0 {
		t.Errorf("got %v %q", w.Header(), w.Body)
	}
}

type recorder struct {
	http.ResponseWriter
	got    *problem.Error
	status int
}

func (r *recorder) RecordProblem(p *problem.Error) { r.got = p }
func (r *recorder) RecordStatus(code int)          { r.status = code }

type wrapper struct{ http.ResponseWriter }

func (w wrapper) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func TestTheAccountIsToldThroughWrappers(t *testing.T) {
	rec := &recorder{ResponseWriter: httptest.NewRecorder()}
	p := problem.New(problem.Draining, "", nil)
	problem.Write(wrapper{wrapper{rec}}, httptest.NewRequest("GET", "/", nil), p)
	if rec.got != p {
		t.Errorf("got %v", rec.got)
	}
}

func TestEveryReasonIsComplete(t *testing.T) {
	word := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	all := problem.Reasons()
	if !slices.Contains(all, problem.NoHealthyInstances) {
		t.Error("no_healthy_instances is missing")
	}
	for _, r := range all {
		e := problem.New(r, "", nil)
		if !word.MatchString(string(r)) || e.Title() == "" || e.Code() < 400 || e.Code() > 599 {
			t.Errorf("%s: title %q status %d", r, e.Title(), e.Code())
		}
	}
}

func TestErrorText(t *testing.T) {
	cause := errors.New("eof")
	err := problem.New(problem.UpstreamReset, "half", cause)
	if got, want := err.Error(), "upstream_reset: half: eof"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errors.Is(err, cause) {
		t.Error("the cause is lost")
	}
}
