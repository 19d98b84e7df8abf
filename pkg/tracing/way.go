package tracing

import (
	"crypto/tls"
	"net/http"
	"sync"
	"time"
)

// way is how the collector is reached where its certificate is to be checked by
// files that change: by connections of the present settings alone.
type way struct {
	tls func() *tls.Config

	mu   sync.Mutex
	by   *tls.Config
	over *http.Transport // made by it
}

// RoundTrip implements http.RoundTripper.
func (w *way) RoundTrip(r *http.Request) (*http.Response, error) { return w.present().RoundTrip(r) }

func (w *way) present() *http.Transport {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := w.tls(); w.by != now {
		if w.over != nil {
			w.over.CloseIdleConnections() // one in use is closed when its request ends
		}
		w.by = now
		w.over = &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: now.Clone(), ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 90 * time.Second, MaxIdleConns: 4}
	}
	return w.over
}
