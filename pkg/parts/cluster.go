package parts

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"testing"
)

// Wipe removes what an agent that has ended keeps on disk: when it starts
// again, it has forgotten everything.
func (c *Consul) Wipe() {
	c.t.Helper()
	if err := os.RemoveAll(c.data); err != nil {
		c.t.Fatal(err)
	}
}

// Cluster is Consul servers that elect a leader among them.
type Cluster struct {
	Servers []*Consul
	raft    []string // addresses for raft, in the order of Servers
}

// StartCluster starts n servers and waits until they have a leader and know
// one another.
func StartCluster(t testing.TB, n int) *Cluster {
	t.Helper()
	ports := FreePorts(t, 2*n)
	join := make([]string, n)
	c := &Cluster{Servers: make([]*Consul, n), raft: make([]string, n)}
	for i := range n {
		join[i] = fmt.Sprintf("127.0.0.1:%d", ports[2*i])
		c.raft[i] = fmt.Sprintf("127.0.0.1:%d", ports[2*i+1])
	}
	peers, err := json.Marshal(join)
	if err != nil {
		t.Fatal(err)
	}
	// All at once: none has a leader before the others are there. None forgets
	// another that a test has killed and starts again: the leader would take it
	// out of Raft after some 10 s, and where that crosses its return, it stands
	// without a leader until the next reconcile, up to a minute later.
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			c.Servers[i] = StartConsul(t, fmt.Sprintf(`{"bootstrap_expect":%d,"retry_join":%s,"retry_interval":"1s",
"ports":{"serf_lan":%d,"server":%d},"advertise_addr":"127.0.0.1","autopilot":{"cleanup_dead_servers":false}}`, n, peers, ports[2*i], ports[2*i+1]))
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow() // a server's goroutine could not
	}
	c.Leader()
	return c
}

// Leader returns the server that leads, once those that run agree on one of
// them.
func (c *Cluster) Leader() *Consul {
	t := c.Servers[0].t
	t.Helper()
	var leader *Consul
	Eventually(t, startPatience, "the servers have no leader", func() bool {
		for _, s := range c.Servers {
			a, err := get("http://" + s.Addr + "/v1/status/leader")
			var addr string
			if err != nil || json.Unmarshal(a.body, &addr) != nil {
				continue
			}
			for i, raft := range c.raft {
				if raft == addr {
					leader = c.Servers[i]
					_, err := get("http://" + leader.Addr + "/v1/status/leader")
					return err == nil // else it is the one that has just been killed
				}
			}
		}
		return false
	})
	return leader
}
