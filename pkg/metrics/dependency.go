package metrics

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// decisionWords are what the limiter can say.
var decisionWords = [...]string{"allowed", "limited", "fail_open", "fail_closed", "local", "delayed", "queue_full"}

// decisions are the counters of one policy, by decisionWords.
type decisions [len(decisionWords)]decision

type decision struct {
	counter prometheus.Counter
	count   atomic.Uint64 // the same, for the status page
}

// RateLimitDecision counts a decision of the limiter: allowed, limited,
// delayed, queue_full, fail_open, fail_closed or local. Other words are not
// counted.
func (m *Metrics) RateLimitDecision(policy, decision string) {
	d, ok := m.policies.get(policy)
	if !ok {
		d = m.policy(orNone(policy))
	}
	if i := slices.Index(decisionWords[:], decision); i >= 0 {
		d[i].counter.Inc()
		d[i].count.Add(1)
	}
}

// RateLimitDelay records how long the limiter made a request wait.
func (m *Metrics) RateLimitDelay(d time.Duration) { m.delay.Observe(d.Seconds()) }

// policy makes every decision of a policy exist at zero.
func (m *Metrics) policy(name string) *decisions {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d, ok := m.policies.get(name); ok {
		return d
	}
	label := name
	if !m.decisions.room(len(decisionWords)) {
		label = Overflow
	}
	d := new(decisions)
	for i, word := range decisionWords {
		d[i].counter = m.decisions.create(label, word)
	}
	m.policies.put(name, d)
	return d
}

// authWords are the parts that a method can have in a decision about a caller.
var authWords = [...]string{"allowed", "missing", "invalid", "forbidden", "unavailable", "anonymous", "fail_open"}

// authDecisions are the counters of one method, by authWords.
type authDecisions [len(authWords)]prometheus.Counter

// AuthDecision counts a method's part in a decision about a caller: allowed,
// missing, invalid, forbidden, unavailable or fail_open; anonymous where an empty method
// says that none had one. Other words are not counted.
func (m *Metrics) AuthDecision(method, result string) {
	d, ok := m.authMethods.get(orNone(method))
	if !ok {
		d = m.authMethod(orNone(method))
	}
	if i := slices.Index(authWords[:], result); i >= 0 {
		d[i].Inc()
	}
}

// authMethod makes every result of a method exist at zero.
func (m *Metrics) authMethod(name string) *authDecisions {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d, ok := m.authMethods.get(name); ok {
		return d
	}
	label := name
	if !m.auth.room(len(authWords)) {
		label = Overflow
	}
	d := new(authDecisions)
	for i, word := range authWords {
		d[i] = m.auth.create(label, word)
	}
	m.authMethods.put(name, d)
	return d
}

// WatchError counts a blocking query to Consul that failed. watch is the key
// of the catalog's query.
func (m *Metrics) WatchError(watch string) { m.watch(orNone(watch)).Inc() }

func (m *Metrics) watch(name string) prometheus.Counter {
	if c, ok := m.watches.get(name); ok {
		return c
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if c, ok := m.watches.get(name); ok {
		return c
	}
	label := name
	if !m.watchErrors.room(1) {
		label = Overflow
	}
	c := m.watchErrors.create(label)
	m.watches.put(name, c)
	return c
}

// Propagation records the time from an answer of Consul to the pool that
// serves by it.
func (m *Metrics) Propagation(d time.Duration) { m.propagation.Observe(d.Seconds()) }

// maxRedisOps bounds the op label; ops are words of our own code.
const maxRedisOps = 32

// RedisOp records a call to Redis. op is a word of the caller's code ("take",
// "ping"), never data.
func (m *Metrics) RedisOp(op string, d time.Duration) {
	h, ok := m.ops.get(op)
	if !ok {
		h = m.redisOp(op)
	}
	h.Observe(d.Seconds())
}

func (m *Metrics) redisOp(op string) prometheus.Observer {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h, ok := m.ops.get(op); ok {
		return h
	}
	label := op
	if m.redisOps.sets >= maxRedisOps || !m.redisOps.room(1) {
		return m.redisOps.create(Overflow)
	}
	h := m.redisOps.create(valid(label))
	m.ops.put(op, h)
	return h
}

// reloadSources are where the wish to load a configuration can come from.
var reloadSources = [...]string{"start", "file", "signal", "api", Other}

func reloadSource(s string) string {
	if slices.Contains(reloadSources[:], s) {
		return s
	}
	return Other
}

// ConfigLoaded records that a configuration was taken over. source is start,
// file, signal or api.
func (m *Metrics) ConfigLoaded(source, hash string, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.configInfo.vec.Reset()
	m.configInfo.create(valid(hash)).Set(1)
	m.reloadOK.Set(1)
	m.reloadTime.Set(float64(at.UnixMilli()) / 1e3)
	m.reloads.create(reloadSource(source), "success").Inc()
}

// ConfigRefused records that a configuration was refused and the one before is
// still served by.
func (m *Metrics) ConfigRefused(source string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reloadOK.Set(0)
	m.reloads.create(reloadSource(source), "refused").Inc()
}

// HandshakeFailures returns what counts the connections to a TLS listener that
// did not come to speak TLS.
func (m *Metrics) HandshakeFailures(listener string) (count func()) {
	return m.handshakes.create(listener).Inc
}

// CertificatesLoaded records that changed certificate files were taken over.
func (m *Metrics) CertificatesLoaded() { m.tlsReloads.create("success").Inc() }

// CertificatesRefused records that a certificate file could not be used and
// what was read before is still shown.
func (m *Metrics) CertificatesRefused() { m.tlsReloads.create("refused").Inc() }
