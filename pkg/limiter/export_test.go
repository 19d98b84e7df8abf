package limiter

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/proconsul/proconsul/pkg/parts"
)

// StartCluster starts a Redis Cluster of three masters with a third of the
// slots each.
func StartCluster(t testing.TB) (nodes []*parts.Redis, addrs []string) {
	t.Helper()
	buses := parts.FreePorts(t, 3)
	var clients []*redis.Client
	do := func(i int, args ...any) {
		t.Helper()
		if err := clients[i].Do(t.Context(), args...).Err(); err != nil {
			t.Fatalf("%v at %s: %v", args, addrs[i], err)
		}
	}
	for i := range 3 {
		n := parts.StartRedis(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no",
			"--cluster-port", fmt.Sprint(buses[i]))
		nodes, addrs = append(nodes, n), append(addrs, n.Addr)
		clients = append(clients, redis.NewClient(&redis.Options{Addr: n.Addr, DisableIdentity: true}))
		defer func() { _ = clients[i].Close() }()
		do(i, "CLUSTER", "ADDSLOTSRANGE", i*16384/3, (i+1)*16384/3-1)
		do(i, "CLUSTER", "SET-CONFIG-EPOCH", i+1)
	}
	for i, n := range nodes[1:] {
		host, port, _ := net.SplitHostPort(n.Addr)
		do(0, "CLUSTER", "MEET", host, port, buses[i+1])
	}
	parts.Eventually(t, 15*time.Second, "the cluster does not form", func() bool {
		return !slices.ContainsFunc(clients, func(c *redis.Client) bool {
			info := c.ClusterInfo(t.Context()).Val()
			return !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_known_nodes:3") || !strings.Contains(info, "cluster_slots_ok:16384")
		})
	})
	return nodes, addrs
}

// AskAlone is what a limiter does that makes a call for each request: one run
// of the script, for one token.
func (l *Limiter) AskAlone(ctx context.Context, client *redis.Client, p *Policy, key string) error {
	o := &op{entry: &entry{key: p.redisKey(identity(key))}, policy: p, need: 1, sync: 1, want: 1, share: 2}
	raw, err := l.store.acquire.Run(ctx, client, []string{o.entry.key}, o.args(l, l.now().wall)...).Result()
	_, err = o.parse(raw, err)
	return err
}

// Skew makes the limiter's wall clock wrong.
func (l *Limiter) Skew(d time.Duration) { l.skew = d.Microseconds() }
