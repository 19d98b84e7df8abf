package app

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/proconsul/proconsul/config"
)

// A listener that is full of clients who only keep their connections does not
// keep the gateway from going.
func TestShutdownOfAFullListener(t *testing.T) {
	for _, engine := range []string{"fast", "std"} {
		t.Run(engine, func(t *testing.T) {
			l, err := listen("public", "127.0.0.1:0", false)
			if err != nil {
				t.Fatal(err)
			}
			c := config.Listen{Name: "public", Engine: engine}
			c.Limits.MaxConnections, c.Limits.MaxHeaderBytes = 1, 64<<10
			c.Timeouts.ReadHeader, c.Timeouts.Idle = time.Minute, time.Minute
			handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
			s := newPublicServer(c, l, nil, handler, nil, func() {}, func() bool { return false }, nil, slog.New(slog.DiscardHandler))
			served := make(chan error, 1)
			go func() { served <- s.serve(t.Context()) }()

			var h2 http.Protocols
			h2.SetUnencryptedHTTP2(true)
			tr := &http.Transport{Protocols: &h2}
			defer tr.CloseIdleConnections()
			resp, err := (&http.Client{Transport: tr}).Get("http://" + l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()

			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if err := s.shutdown(ctx); err != nil {
				t.Error(err)
			}
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}
