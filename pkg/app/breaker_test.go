package app_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/parts"
)

// What opened a breaker is told for as long as it is open, and how often it
// did for good: an operator who looks later has to know.
func TestTheAPISaysWhatOpenedABreaker(t *testing.T) {
	var sick atomic.Bool
	live := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if sick.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer live.Close()
	in := startInside(t, fmt.Sprintf(operatorsHead+`consul: {disabled: true}
upstreams:
  - {name: orders, outlier: {disabled: true}, retry: {attempts: 0}, breaker: {error_rate: 50%%, min_requests: 5, open_for: 1s, fail_on: [500]}, instances: [{address: %q}]}
routes: [{name: orders, match: {path: "/**"}, upstream: {service: orders}}]
`, live.Listener.Addr()))
	breaker := func() admin.Breaker {
		return ask[admin.Upstream](in, "GET /api/v1/services/orders", "").Breaker
	}
	send := func() int { return in.get("public", "/a") }
	if b := breaker(); b.State != "closed" || b.Opened != 0 || b.Why != "" || !b.RetryAt.IsZero() {
		t.Errorf("before: %+v", b)
	}

	sick.Store(true)
	parts.Eventually(t, patience, "the breaker opens", func() bool { return send() == http.StatusServiceUnavailable })
	b := breaker()
	var failed, tries int
	if _, err := fmt.Sscanf(b.Why, "%d of %d tries failed within 10 s", &failed, &tries); err != nil || failed < 3 || tries < 5 || failed > tries {
		t.Errorf("why: %q, %v", b.Why, err)
	}
	if b.State == "closed" || b.Opened < 1 || b.Rejected < 1 || b.Forced || b.Since.IsZero() || time.Until(b.RetryAt) > 2*time.Second {
		t.Errorf("open: %+v", b)
	}
	opened := b.Opened

	// A probe that fails is no new cause.
	parts.Eventually(t, patience, "a probe fails", func() bool { return send() == http.StatusInternalServerError })
	if b := breaker(); b.State == "closed" || !strings.Contains(b.Why, "tries failed within 10 s") {
		t.Errorf("after a failed probe: %+v", b)
	}
	sick.Store(false)
	parts.Eventually(t, patience, "it closes", func() bool { send(); return breaker().State == "closed" })
	if b := breaker(); b.Why != "" || b.Opened < opened || !b.RetryAt.IsZero() {
		t.Errorf("closed again: %+v", b)
	}
}
