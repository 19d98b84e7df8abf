package identity_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/identity"
	"github.com/proconsul/proconsul/pkg/parts"
)

// A request that the service dies of passes nowhere and closes no door, however
// often it comes, and whatever the service says to a question without anything
// of a client's; a service that breaks off every request is away.
func TestForwardAuthRequestThatKills(t *testing.T) {
	for _, tt := range []struct {
		mode string
		bare int // what a question without a client's fields is answered
	}{{"closed", 200}, {"open", 200}, {"closed", 401}, {"closed", 500}, {"open", 500}, {"open", 503}} {
		mode := tt.mode
		t.Run(fmt.Sprint(mode, " ", tt.bare), func(t *testing.T) {
			var away atomic.Bool
			var asked, bare atomic.Int64
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				if r.Header.Get("X-Forwarded-Uri") == "" {
					bare.Add(1)
					if len(r.Header["Cookie"]) > 0 || len(r.Header["X-Request-Id"]) > 0 {
						t.Errorf("the control question has something of a client's: %v", r.Header)
					}
				}
				if away.Load() || r.Header.Get("Cookie") == "kill" {
					panic(http.ErrAbortHandler)
				}
				if r.Header.Get("X-Forwarded-Uri") == "" {
					w.WriteHeader(tt.bare)
				}
			}))
			srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
			srv.Start()
			defer srv.Close()
			m := method(t, &config.Config{Auth: []config.AuthMethod{{Name: "ours", ForwardAuth: &config.ForwardAuthMethod{
				URL: srv.URL, Timeout: 30 * time.Second, RequestHeaders: []string{"Cookie"}, OnError: mode,
			}}}}, identity.NewKeys(quiet(), nil), "ours")
			ask := func(cookie string) (*identity.Identity, error) {
				r := httptest.NewRequest("GET", "/x", nil)
				r.Header["Cookie"], r.Header["X-Request-Id"] = []string{cookie}, []string{"1"}
				return m.Identify(r)
			}
			for i := range 21 {
				if id, err := ask("kill"); id != nil || !errors.Is(err, identity.ErrUnavailable) {
					t.Fatalf("the request that kills, for the %dth time: %+v, %v", i+1, id, err)
				}
				if i%7 != 6 { // more in a row than close the door of a service that is away
					continue
				}
				if id, err := ask("fine"); err != nil || id.Unchecked {
					t.Fatalf("another's request, after %d that killed: %+v, %v", i+1, id, err)
				}
			}
			if n := bare.Load(); n == 0 || n > 21 {
				t.Errorf("%d control questions for 21 requests", n)
			}

			away.Store(true)
			// What the last control question told is believed for a moment.
			parts.Eventually(t, time.Minute, "a service that breaks off everything is not found to be away", func() bool {
				id, err := ask("fine")
				if mode == "open" {
					return err == nil && id.Unchecked
				}
				before := asked.Load()
				return errors.Is(err, identity.ErrUnavailable) && func() bool { _, _ = ask("fine"); return asked.Load() == before }()
			})
		})
	}
}
