package config_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/config"
)

// BenchmarkParse1000Routes is what a reload of a large file costs.
func BenchmarkParse1000Routes(b *testing.B) {
	var s strings.Builder
	s.WriteString("policies: [{name: public, rate_limit: {rate: 100/1m}}]\nupstreams:\n")
	for i := range 200 {
		fmt.Fprintf(&s, "  - {service: svc-%d, balance: least_requests, retry: {attempts: 1}}\n", i)
	}
	s.WriteString("routes:\n")
	for i := range 1000 {
		fmt.Fprintf(&s, "  - name: route-%d\n    match: {host: shop.example.com, path: /api/%d/**, methods: [GET, POST]}\n    use: [public]\n    upstream: {service: svc-%d, strip: /api/%d}\n", i, i, i%400, i)
	}
	text := []byte(s.String())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := config.Parse("b.yaml", text, config.LoadOptions{Pure: true}); err != nil {
			b.Fatal(err)
		}
	}
}
