package consul

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/proconsul/proconsul/discovery"
)

// A service of 1,000 instances, as one change of it costs: decode, turn into
// instances, compare and apply.
func BenchmarkAnswer(b *testing.B) {
	for _, n := range []int{3, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			entries := make([]entry, n)
			for i := range entries {
				entries[i] = entry{
					Node: entryNode{Node: fmt.Sprintf("node-%d", i), Address: fmt.Sprintf("10.0.%d.%d", i/256, i%256), Datacenter: "dc1",
						Meta: map[string]string{"consul-network-segment": "", "zone": "a"}},
					Service: entryService{ID: fmt.Sprintf("web-%d", i), Service: "web", Port: 8080, Tags: []string{"v1", "blue"},
						Meta: map[string]string{"version": "1.2.3"}, Weights: &entryWeights{1, 1}},
					Checks: []entryCheck{{CheckID: "serfHealth", Status: "passing", Output: "Agent alive and reachable"},
						{CheckID: "service:web", Status: "passing", ServiceID: "web", Output: "HTTP GET http://10.0.0.1:8080/healthz: 200 OK Output: ok"}},
				}
			}
			body, err := json.Marshal(entries)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			catalog, q := discovery.NewCatalog(), discovery.Query{Service: "web"}
			for b.Loop() {
				var got []entry
				if err := json.Unmarshal(body, &got); err != nil {
					b.Fatal(err)
				}
				var s discovery.Snapshot
				s.Instances, s.Rejected = toInstances(got, q)
				catalog.Apply("web", s)
			}
		})
	}
}
