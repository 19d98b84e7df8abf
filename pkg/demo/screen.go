package demo

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/proconsul/proconsul/pkg/app"
)

// screen is what the viewer reads: a first screen, then a line per event.
type screen struct {
	mu      sync.Mutex
	out     io.Writer
	started bool // the first screen is complete: events may follow
}

func newScreen(out io.Writer) *screen { return &screen{out: out} }

func (s *screen) printf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, format, args...)
}

func (s *screen) ok(part, format string, args ...any) {
	s.printf("  [ok] %-9s %s\n", part, fmt.Sprintf(format, args...))
}

// guide ends the first screen: what to open, what to try, what to break.
func (s *screen) guide(command, listen, admin, catalog, token string, keys bool) {
	elsewhere := ""
	if admin != DefaultAdmin {
		elsewhere = " --address " + local(admin)
	}
	s.printf(`
  STATUS PAGE    http://%[2]s/        <- open this first
  Try:
    curl -i %[1]s/api/orders/42
    for i in $(seq 8); do curl -so /dev/null -w '%%{http_code} ' %[1]s/api/limited; done; echo
    curl -N '%[1]s/api/events?n=3&every=500ms'
    curl -s %[2]s/api/v1/services/orders
    CONSUL_HTTP_ADDR=%[3]s consul catalog services
    %[4]s explain GET http://%[1]s/api/orders/42%[5]s
    %[4]s services%[5]s
    PROCONSUL_TOKEN=%[6]s %[4]s drain users/users-1 --for 10s%[5]s
`, local(listen), local(admin), catalog, command, elsewhere, token)
	if keys {
		s.printf(`  Break things (press a key):  k kill orders-2   l slow inventory   e make flaky fail   c cut Consul
                               r cut Redis       b burst traffic    m mistake in the configuration
                               h heal all        t traffic          q quit
`)
	}
}

// local writes the loopback address the way people type it.
func local(addr string) string { return strings.Replace(addr, "127.0.0.1:", "localhost:", 1) }

// live lets events through.
func (s *screen) live() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started = true
}

// event prints what happened to the gateway.
func (s *screen) event(e app.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started {
		return
	}
	who := e.Kind
	if e.Service != "" {
		who = e.Service
	}
	if e.Instance != "" {
		who = e.Instance
	}
	fmt.Fprintf(s.out, "%s     %s: %s\n", e.At.Format(time.TimeOnly), printable(who), printable(e.Message))
}

// pressed prints what the viewer did.
func (s *screen) pressed(key byte, what string) {
	s.printf("%s  %c  %s\n", time.Now().Format(time.TimeOnly), key, what)
}

// printable keeps what services say of themselves from steering a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || 0x80 <= r && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}
