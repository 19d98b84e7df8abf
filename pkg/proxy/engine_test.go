package proxy_test

import (
	"bufio"
	"io"
	"net"
	"testing"

	"github.com/proconsul/proconsul/pkg/proxy"
)

// The engine is what the settings say, and a reload may change it. The fast one
// takes no answer that says its length twice, which std forgives.
func TestEngine(t *testing.T) {
	addr := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		for {
			if _, err := drainHead(r); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	g := newGate(t, gateOptions{}, addr)
	for engine, want := range map[string]int{proxy.EngineStd: 200, proxy.EngineFast: 502, "": 200} {
		g.settings.Engine = engine
		if err := g.up.Configure(g.settings); err != nil {
			t.Fatal(err)
		}
		resp := get(t, client(t), g.url("/"))
		if resp.StatusCode != want {
			t.Errorf("engine %q: got %d, want %d", engine, resp.StatusCode, want)
		}
		if want == 502 && resp.Header.Get("X-Proconsul-Reason") != "upstream_protocol" {
			t.Errorf("got reason %q", resp.Header.Get("X-Proconsul-Reason"))
		}
	}
	g.settings.Engine = "warp"
	if err := g.up.Configure(g.settings); err == nil {
		t.Error("an unknown engine is accepted")
	}
}
