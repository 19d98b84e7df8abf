package app

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/config"
)

// BenchmarkStatus is what one look of all viewers together costs the gateway
// beside the encoding (pkg/admin has that): 200 services with ten instances
// each, all of which had requests in the last minute. It happens once a second.
func BenchmarkStatus(b *testing.B) {
	var text strings.Builder
	text.WriteString("version: 1\nlisten: [{name: public, addr: \"127.0.0.1:0\"}]\nadmin: {addr: \"\"}\nconsul: {disabled: true}\nupstreams:\n")
	for u := range 200 {
		fmt.Fprintf(&text, "  - name: s%d\n    instances:\n", u)
		for i := range 10 {
			fmt.Fprintf(&text, "      - {address: \"10.0.%d.%d:80\", weight: 1}\n", u, i)
		}
	}
	text.WriteString("routes:\n")
	for u := range 200 {
		fmt.Fprintf(&text, "  - {name: s%d, match: {path: \"/s%d/**\"}, upstream: {service: s%d}}\n", u, u, u)
	}
	cfg, err := config.Parse("bench.yaml", []byte(text.String()), config.LoadOptions{Pure: true})
	if err != nil {
		b.Fatal(err)
	}
	a, err := New(cfg, Options{Log: slog.New(slog.DiscardHandler), AccessLog: io.Discard})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := a.stack.unwind(); err != nil {
			b.Error(err)
		}
	}()
	for _, up := range a.upstreams.list() {
		for i := range 200 {
			p, err := up.pool.Pick()
			if err != nil {
				b.Fatal(err)
			}
			p.Done(balancer.Outcome{Latency: time.Duration(i+1) * time.Millisecond})
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if s := a.status(); len(s.Upstreams) != 200 || len(s.Upstreams[0].Instances) != 10 {
			b.Fatal("not the whole status")
		}
	}
}
