package limiter

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Topology is how the store's nodes are found.
type Topology uint8

const (
	// Single is one Redis at a fixed address.
	Single Topology = iota
	// Sentinel is the master that sentinels name.
	Sentinel
	// Cluster spreads identities over the masters of a Redis Cluster. All that
	// one script touches is in one slot. Each master has a circuit of its own:
	// one that is away sends only its own identities to OnStoreError.
	Cluster
)

// ParseTopology returns the topology that a configuration calls single,
// sentinel or cluster; the empty name is single's.
func ParseTopology(name string) (Topology, error) {
	switch name {
	case "", "single":
		return Single, nil
	case "sentinel":
		return Sentinel, nil
	case "cluster":
		return Cluster, nil
	}
	return 0, fmt.Errorf("no redis mode named %q (have: single, sentinel, cluster)", name)
}

// Commands are what an ACL user has to be allowed, beside the keys ~rl:*, as
// ACL SETUSER takes them. A cluster's user needs cluster|slots and
// cluster|shards beside them.
const Commands = "+hello +auth +ping +select +evalsha +eval +time +hget +hset +hincrby +hgetall +hdel +pexpire" +
	" +zadd +zremrangebyscore +zrange +exists +get +set +del"

// Redis says how to reach the store. Username, Password and TLS are the same
// for all nodes.
type Redis struct {
	Mode  Topology
	Addr  string   // host:port of a Single one
	Addrs []string // of sentinels, or of some nodes of a cluster

	Master           string // what sentinels call it
	SentinelUsername string // at the sentinels; empty: none
	SentinelPassword string

	Username string
	Password string
	DB       int                // 0 in a cluster
	TLS      func() *tls.Config // for the next connection; nil: clear
	// Timeout bounds one call to the store, and so what an outage costs one
	// request at its very beginning. 0: 25ms.
	Timeout time.Duration
}

func (o *Redis) check() error {
	addrs := o.Addrs
	switch {
	case o.Mode > Cluster:
		return fmt.Errorf("no such redis mode: %d", o.Mode)
	case o.Mode == Single && len(addrs) > 0:
		return errors.New("a single redis has one address")
	case o.Mode == Single:
		addrs = []string{o.Addr}
	case o.Addr != "" || len(addrs) == 0:
		return errors.New("sentinels and clusters are reached by a list of addresses")
	}
	for _, addr := range addrs {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("redis address %q: %w", addr, err)
		}
	}
	switch {
	case o.Mode == Sentinel && o.Master == "":
		return errors.New("sentinels need the master's name")
	case o.Mode == Cluster && o.DB != 0:
		return fmt.Errorf("a redis cluster has database 0 only, not %d", o.DB)
	case o.Timeout < 0:
		return fmt.Errorf("redis timeout %v is negative", o.Timeout)
	}
	return nil
}

// dialer returns what opens connections with TLS; nil: the library's own, without.
func (o *Redis) dialer(timeout time.Duration) func(ctx context.Context, network, addr string) (net.Conn, error) {
	if o.TLS == nil {
		return nil
	}
	to := &net.Dialer{Timeout: timeout, KeepAlive: 5 * time.Minute}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		return (&tls.Dialer{NetDialer: to, Config: o.TLS()}).DialContext(ctx, network, addr)
	}
}

// client returns a client whose calls end within the timeout. A call that
// failed is not repeated: its fate is not known and its caller has been
// answered. After PoolSize dials that failed, go-redis tries once a second
// only; patientDials is no number of connections: there are as many as calls
// at once.
func (o *Redis) client(timeout time.Duration) redis.UniversalClient {
	dial := max(200*time.Millisecond, timeout)
	quiet := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	switch o.Mode {
	case Sentinel:
		return redis.NewFailoverClient(&redis.FailoverOptions{
			MasterName: o.Master, SentinelAddrs: o.Addrs, SentinelUsername: o.SentinelUsername, SentinelPassword: o.SentinelPassword,
			Username: o.Username, Password: o.Password, DB: o.DB, Dialer: o.dialer(dial),
			MaxRetries: -1, DialerRetries: 1,
			DialTimeout: dial, ReadTimeout: timeout, WriteTimeout: timeout, PoolTimeout: timeout,
			ContextTimeoutEnabled: true, PoolSize: patientDials, PipelinePoolSize: patientDials,
			DisableIdentity: true,
		})
	case Cluster:
		return redis.NewClusterClient(&redis.ClusterOptions{
			Addrs: o.Addrs, Username: o.Username, Password: o.Password, Dialer: o.dialer(dial),
			// A slot that has moved is followed, within the call's timeout.
			MaxRedirects: 3, MaxRetries: -1, DialerRetries: 1,
			DialTimeout: dial, ReadTimeout: timeout, WriteTimeout: timeout, PoolTimeout: timeout,
			ContextTimeoutEnabled: true, PoolSize: patientDials, PipelinePoolSize: patientDials,
			DisableIdentity: true, MaintNotificationsConfig: quiet,
		})
	}
	return redis.NewClient(&redis.Options{
		Addr: o.Addr, Username: o.Username, Password: o.Password, DB: o.DB, Dialer: o.dialer(dial),
		MaxRetries: -1, DialerRetries: 1,
		DialTimeout: dial, ReadTimeout: timeout, WriteTimeout: timeout, PoolTimeout: timeout,
		ContextTimeoutEnabled: true, PoolSize: patientDials, PipelinePoolSize: patientDials,
		DisableIdentity: true, MaintNotificationsConfig: quiet,
	})
}
