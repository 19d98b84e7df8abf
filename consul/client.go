package consul

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/proconsul/proconsul/discovery"
)

// TLS is what a TLS connection to the agent needs. Empty fields come from
// CONSUL_CACERT, CONSUL_CAPATH, CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY,
// CONSUL_TLS_SERVER_NAME and CONSUL_HTTP_SSL_VERIFY.
type TLS struct {
	CAFile     string
	CertFile   string
	KeyFile    string
	ServerName string
	SkipVerify bool
}

// Options says how to reach the agent. An empty field is filled as the consul
// CLI does it, from CONSUL_HTTP_ADDR, CONSUL_HTTP_SSL, CONSUL_HTTP_TOKEN,
// CONSUL_HTTP_TOKEN_FILE, CONSUL_HTTP_AUTH, CONSUL_NAMESPACE and
// CONSUL_PARTITION.
type Options struct {
	Addr       string // host:port, http://..., https://... or unix:///path; default 127.0.0.1:8500
	Scheme     string // http or https; default by Addr, else http
	Token      string
	TokenFile  string // preferred to Token; read again when it changes
	Datacenter string // of queries that name none; default the agent's own
	Namespace  string // Consul Enterprise only: sent only where it is set
	Partition  string // Consul Enterprise only: sent only where it is set
	TLS        TLS
	Wait       time.Duration // how long one blocking query blocks; default 55s, at most 10m

	// Dial replaces the dialer, for tests and for unusual networks.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

const (
	defaultWait = 55 * time.Second
	maxWait     = 10 * time.Minute // Consul's own bound

	// maxAnswer bounds what one answer may make us hold: some 180,000
	// instances of one service.
	maxAnswer = 256 << 20
)

// Client reaches one Consul agent. It is safe for concurrent use, dials only
// when it is used and keeps its own connections.
type Client struct {
	api        *api.Client
	tls        api.TLSConfig // what its connections are opened by, where https
	fresh      func() (*http.Transport, error)
	transport  atomic.Pointer[http.Transport]
	token      *token
	addr       string // for messages: without credentials
	datacenter string
	wait       time.Duration
	https      bool // many queries share a connection: Consul's https listener speaks HTTP/2

	mu   sync.Mutex // one Refresh at a time
	read []byte     // a digest of the TLS files
}

// NewClient checks the options and returns a client. It reads the files that
// the options name, and connects to nothing.
func NewClient(o Options) (*Client, error) {
	cfg := api.DefaultConfig() // takes over the environment, as the consul CLI does
	addr := o.Addr
	if addr == "" {
		addr = cfg.Address
	}
	scheme := o.Scheme
	if scheme == "" {
		scheme = cfg.Scheme
	}
	if rest, ok := strings.CutPrefix(addr, "https://"); ok {
		scheme, addr = "https", rest
	} else if rest, ok := strings.CutPrefix(addr, "http://"); ok {
		addr = rest // an https that was asked for is kept
	}
	if proto, _, ok := strings.Cut(addr, "://"); ok && proto != "unix" {
		return nil, fmt.Errorf("consul: address %q: %s is not http, https or unix", addr, proto)
	}
	if scheme != "http" && scheme != "https" {
		return nil, fmt.Errorf("consul: scheme %q is neither http nor https", scheme)
	}
	if o.Wait < 0 || o.Wait > maxWait {
		return nil, fmt.Errorf("consul: wait %v is not between 0 and %v", o.Wait, maxWait)
	}
	if o.Wait == 0 {
		o.Wait = defaultWait
	}

	tok, err := newToken(o, cfg)
	if err != nil {
		return nil, err
	}
	c := &Client{token: tok, addr: addr, datacenter: o.Datacenter, wait: o.Wait, https: scheme == "https"}
	dial := o.Dial
	if dial == nil {
		// Keep-alive finds a peer that vanished silently within 25 s, long
		// before a blocked query's deadline does.
		dialer := &net.Dialer{Timeout: 3 * time.Second, KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}}
		dial = dialer.DialContext
	}
	if socket, ok := strings.CutPrefix(addr, "unix://"); ok {
		inner := dial
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return inner(ctx, "unix", socket) }
		addr = "localhost"
	}
	c.tls = tlsOf(o.TLS, cfg)
	c.fresh = func() (*http.Transport, error) { return newTransport(c.tls, dial, c.https, local(c.addr)) }
	if _, err := c.Refresh(); err != nil {
		return nil, err
	}

	cfg.Address, cfg.Scheme = scheme+"://"+addr, scheme
	cfg.Transport = c.transport.Load()
	cfg.HttpClient = &http.Client{
		Transport: &door{next: &c.transport, token: tok},
		// A redirect would carry the token to wherever it points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	cfg.Token, cfg.TokenFile = tok.get(), "" // door sets the token of each request
	cfg.Datacenter = ""                      // agent endpoints take none; queries name it
	if o.Namespace != "" {
		cfg.Namespace = o.Namespace
	}
	if o.Partition != "" {
		cfg.Partition = o.Partition
	}
	if c.api, err = api.NewClient(cfg); err != nil {
		return nil, fmt.Errorf("consul: %w", err)
	}
	return c, nil
}

// newToken keeps the precedence of the consul CLI: file, value, then the
// environment's file and value.
func newToken(o Options, env *api.Config) (*token, error) {
	t := &token{}
	switch {
	case o.TokenFile != "":
		t.from, t.path = "token file "+o.TokenFile, o.TokenFile
	case o.Token != "":
		t.from, t.value = "the configuration", o.Token
	case env.TokenFile != "":
		t.from, t.path = "CONSUL_HTTP_TOKEN_FILE", env.TokenFile
	default:
		t.from, t.value = "CONSUL_HTTP_TOKEN", env.Token
	}
	if t.path != "" {
		if err := t.read(); err != nil {
			return nil, fmt.Errorf("consul: token from %s: %w", t.from, err)
		}
	}
	return t, nil
}

// tlsOf keeps the precedence of the consul CLI: the configuration, then the
// environment.
func tlsOf(o TLS, env *api.Config) api.TLSConfig {
	c := env.TLSConfig
	for _, f := range []struct {
		to   *string
		from string
	}{{&c.CAFile, o.CAFile}, {&c.CertFile, o.CertFile}, {&c.KeyFile, o.KeyFile}, {&c.Address, o.ServerName}} {
		if f.from != "" {
			*f.to = f.from
		}
	}
	if o.SkipVerify {
		c.InsecureSkipVerify = true
	}
	return c
}

// Files lists the files that TLS connections to the agent are opened by.
func (c *Client) Files() (files []string) {
	for _, f := range []string{c.tls.CAFile, c.tls.CertFile, c.tls.KeyFile} {
		if f != "" && c.https {
			files = append(files, f)
		}
	}
	return files
}

// Refresh reads those files again. Where one has changed new connections are
// made, and queries under way finish on theirs; where one cannot be used nothing
// changes.
func (c *Client) Refresh() (changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := sha256.New()
	for _, file := range c.Files() {
		text, _ := os.ReadFile(file) // what is wrong with it is said below
		part := sha256.Sum256(text)
		sum.Write(part[:])
	}
	old, read := c.transport.Load(), sum.Sum(nil)
	if old != nil && bytes.Equal(c.read, read) {
		return false, nil
	}
	next, err := c.fresh()
	if err != nil {
		return false, err
	}
	c.read = read
	c.transport.Store(next)
	if old != nil {
		old.CloseIdleConnections()
	}
	return true, nil
}

func newTransport(conf api.TLSConfig, dial func(context.Context, string, string) (net.Conn, error), https, near bool) (*http.Transport, error) {
	t := &http.Transport{
		Proxy:       nil, // an agent is not behind HTTP_PROXY; the default transport would ask it
		DialContext: dial,
		// Every woken watch gives its connection back before it asks again:
		// the default of GOMAXPROCS+1 idle ones costs a dial per wake-up.
		MaxIdleConns:        0,
		MaxIdleConnsPerHost: 1024,
		IdleConnTimeout:     90 * time.Second,
		TLSHandshakeTimeout: 5 * time.Second,
		DisableCompression:  near, // gzip over loopback only costs the agent
	}
	if !https {
		return t, nil
	}
	var err error
	if t.TLSClientConfig, err = api.SetupTLSConfig(&conf); err != nil {
		return nil, fmt.Errorf("consul: tls: %w", err)
	}
	t.ForceAttemptHTTP2 = true
	// 64 connections carry 16,000 queries; without the bound a start with
	// many dials one for each before the first has shaken hands.
	t.MaxConnsPerHost = 64
	// One dead connection blinds 250 watches: find it by pings.
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second}
	return t, nil
}

func local(addr string) bool {
	if strings.HasPrefix(addr, "unix://") {
		return true
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Addr returns the agent's address as it was given, for messages.
func (c *Client) Addr() string { return c.addr }

// CloseIdle closes the connections that carry no query.
func (c *Client) CloseIdle() { c.transport.Load().CloseIdleConnections() }

// door sets the token of each request and bounds each answer.
type door struct {
	next  *atomic.Pointer[http.Transport]
	token *token
}

func (d *door) RoundTrip(req *http.Request) (*http.Response, error) {
	out := *req
	out.Header = req.Header.Clone()
	out.Header.Del("X-Consul-Token")
	if t := d.token.get(); t != "" {
		out.Header.Set("X-Consul-Token", t)
	}
	out.Header.Set("User-Agent", "proconsul")
	resp, err := d.next.Load().RoundTrip(&out)
	if err != nil {
		return nil, err
	}
	resp.Body = &bounded{ReadCloser: resp.Body, left: maxAnswer}
	return resp, nil
}

type bounded struct {
	io.ReadCloser
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("answer is larger than %d MiB", maxAnswer>>20)
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}

// answer is one reply to a health query, not yet decoded: most replies of a
// blocking query only say that nothing changed.
type answer struct {
	body   json.RawMessage
	meta   api.QueryMeta
	index  uint64
	at     time.Time // when its header arrived
	took   time.Duration
	noAuth bool // sent without a token to an agent that denies by default
}

// health asks for all instances of q's service, whatever their status. With an
// index it blocks until Consul's differs, at most wait; without it, it goes to
// a server and is the authority.
func (c *Client) health(ctx context.Context, q discovery.Query, index uint64, wait time.Duration, stale bool) (answer, error) {
	o := &api.QueryOptions{Datacenter: q.Datacenter, Namespace: q.Namespace, Partition: q.Partition,
		Filter: q.Filter, AllowStale: stale}
	if o.Datacenter == "" {
		o.Datacenter = c.datacenter
	}
	if index > 0 {
		o.WaitIndex, o.WaitTime = index, wait
	}
	path := "/v1/health/service/" + q.Service
	start := time.Now()
	var body json.RawMessage
	meta, err := c.api.Raw().Query(path, &body, o.WithContext(ctx))
	if err != nil {
		return answer{}, c.explain(path, err)
	}
	return answer{body: body, meta: *meta, index: meta.LastIndex, at: start.Add(meta.RequestTime), took: time.Since(start),
		noAuth: meta.DefaultACLPolicy == "deny" && c.token.get() == ""}, nil
}

// leader asks which server leads. An empty answer is ErrNoLeader.
func (c *Client) leader(ctx context.Context) (string, error) {
	leader, err := c.api.Status().LeaderWithQueryOptions((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return "", c.explain("/v1/status/leader", err)
	}
	if leader == "" {
		return "", &Error{Kind: ErrNoLeader, Code: http.StatusOK, What: "consul has no leader",
			Hint: "are Consul's servers up (consul operator raft list-peers)?", err: ErrNoLeader}
	}
	return leader, nil
}

// services asks for the names of all services that the token may see.
func (c *Client) services(ctx context.Context, q discovery.Query) (map[string][]string, error) {
	o := &api.QueryOptions{Datacenter: q.Datacenter, Namespace: q.Namespace, Partition: q.Partition, AllowStale: true}
	if o.Datacenter == "" {
		o.Datacenter = c.datacenter
	}
	names, _, err := c.api.Catalog().Services(o.WithContext(ctx))
	return names, c.explain("/v1/catalog/services", err)
}

// hostname is this machine's name, or "localhost".
func hostname() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	return name
}
