// Package config is the one typed tree of settings: Load reads and checks it,
// Default fills it, and every fault comes back at once with its file, line,
// key path and a hint. It is the only door to viper, it dials nothing and
// starts nothing.
package config

import (
	"net/netip"
	"time"
)

// Config is everything an operator can set. Listen, Admin, Consul, Redis,
// Registration and Log are read at start only; a reload that touches them says
// so. The rest is taken over by a reload.
type Config struct {
	Version      int          `yaml:"version"`
	Listen       []Listen     `yaml:"listen"`
	Admin        Admin        `yaml:"admin"`
	Consul       Consul       `yaml:"consul"`
	Redis        Redis        `yaml:"redis"`
	Registration Registration `yaml:"registration"`
	Policies     []Policy     `yaml:"policies"`
	Upstreams    []Upstream   `yaml:"upstreams"`
	Routes       []Route      `yaml:"routes"`
	AccessLog    AccessLog    `yaml:"access_log"`
	Log          Log          `yaml:"log"`
	Shutdown     Shutdown     `yaml:"shutdown"`

	// Source is where the tree was read from, for messages; Hash is the first
	// 12 hex digits of the SHA-256 of its bytes.
	Source string `yaml:"-"`
	Hash   string `yaml:"-"`
}

// Listen is one public listener. Clear listeners speak HTTP/1.1 and h2c.
type Listen struct {
	Name           string         `yaml:"name"`
	Addr           string         `yaml:"addr"`
	TrustedProxies []netip.Prefix `yaml:"trusted_proxies"` // whose forwarding headers are believed
	EncodedSlash   string         `yaml:"encoded_slash"`   // reject | keep: what to do with %2F in a path
	Limits         ListenLimits   `yaml:"limits"`
	Timeouts       ListenTimeouts `yaml:"timeouts"`
}

// ListenLimits bound what one client, or all, can make the gateway hold.
type ListenLimits struct {
	MaxHeaderBytes Size          `yaml:"max_header_bytes"` // request line and header fields
	MaxHeaders     int           `yaml:"max_headers"`      // number of header fields
	MaxBodyBytes   Size          `yaml:"max_body_bytes"`   // 0: no limit
	MaxConnections int           `yaml:"max_connections"`  // 0: no limit
	MaxInFlight    int           `yaml:"max_in_flight"`    // requests; 0: no limit
	MaxQueue       int           `yaml:"max_queue"`        // requests that wait for a place
	QueueTimeout   time.Duration `yaml:"queue_timeout"`
}

// ListenTimeouts bound how long a client may take.
type ListenTimeouts struct {
	ReadHeader time.Duration `yaml:"read_header"`
	Idle       time.Duration `yaml:"idle"`      // keep-alive
	BodyRead   time.Duration `yaml:"body_read"` // between two reads of a request body; 0: none
}

// Admin is the listener for operators.
type Admin struct {
	Addr     string       `yaml:"addr"` // empty: no admin listener
	Tokens   []AdminToken `yaml:"tokens"`
	Insecure bool         `yaml:"insecure"` // allow a non-loopback address without a token
}

// AdminToken is a bearer token and what it may do.
type AdminToken struct {
	Name  string `yaml:"name"`
	Role  string `yaml:"role"` // viewer | operator
	Token Secret `yaml:"token"`
}

// Consul says how to reach the agent. CONSUL_HTTP_* variables fill what is
// empty here.
type Consul struct {
	Addr       string        `yaml:"addr"`
	Scheme     string        `yaml:"scheme"` // http | https
	Token      Secret        `yaml:"token"`
	TokenFile  string        `yaml:"token_file"` // re-read on change
	Datacenter string        `yaml:"datacenter"`
	Namespace  string        `yaml:"namespace"`
	Partition  string        `yaml:"partition"`
	TLS        ClientTLS     `yaml:"tls"`
	Wait       time.Duration `yaml:"wait"`     // how long one blocking query blocks
	Snapshot   string        `yaml:"snapshot"` // file for warm starts; empty: none
	Disabled   bool          `yaml:"disabled"` // only upstreams with instances of their own
}

// ClientTLS is what a TLS client of ours needs.
type ClientTLS struct {
	CAFile     string `yaml:"ca_file"`
	CertFile   string `yaml:"cert_file"`
	KeyFile    string `yaml:"key_file"`
	ServerName string `yaml:"server_name"`
	SkipVerify bool   `yaml:"skip_verify"`
}

// Redis is the store that replicas share limits through. An empty Addr means
// that every limit is this replica's own.
type Redis struct {
	Addr     string        `yaml:"addr"`
	Username string        `yaml:"username"`
	Password Secret        `yaml:"password"`
	DB       int           `yaml:"db"`
	TLS      *ClientTLS    `yaml:"tls"`     // nil: clear
	Timeout  time.Duration `yaml:"timeout"` // of one call; an outage costs each call at most this
}

// Registration makes the gateway a service in Consul like any other.
type Registration struct {
	Enabled bool              `yaml:"enabled"`
	Name    string            `yaml:"name"`
	Address string            `yaml:"address"` // empty: the address Consul's node has
	Tags    []string          `yaml:"tags"`
	Meta    map[string]string `yaml:"meta"`
}

// Policy is a named set of middleware settings that routes use.
type Policy struct {
	Name       string `yaml:"name"`
	Middleware `yaml:",inline"`
}

// Middleware holds the settings of every middleware; a nil section is not in
// the chain. A route's own section replaces the one from its policies, and a
// later policy's replaces an earlier one's.
type Middleware struct {
	RateLimit *RateLimit `yaml:"rate_limit"`
	Headers   *Headers   `yaml:"headers"`
}

// RateLimit limits how often an identity may pass. All limits of one section
// are charged together or not at all.
type RateLimit struct {
	By           string  `yaml:"by"`             // client_ip | route | api_key | header(NAME)
	Limits       []Limit `yaml:"limits"`         // as "100/1m"
	OnStoreError string  `yaml:"on_store_error"` // local | open | closed
	HideHeaders  bool    `yaml:"hide_headers"`   // do not tell clients their limit
}

// Limit is a count per window, written "100/1m", "20/s" or "1000/1h".
type Limit struct {
	Count  int
	Window time.Duration
}

// Headers sets, adds and removes fields of requests and answers.
type Headers struct {
	Request  HeaderRules `yaml:"request"`
	Response HeaderRules `yaml:"response"`
}

// HeaderRules are applied in the order remove, set, add.
type HeaderRules struct {
	Remove []string      `yaml:"remove"`
	Set    []HeaderField `yaml:"set"`
	Add    []HeaderField `yaml:"add"`
}

// HeaderField is one header field.
type HeaderField struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

// Upstream is a named way to a Consul service.
type Upstream struct {
	Name        string        `yaml:"name"`    // empty: the service's name
	Service     string        `yaml:"service"` // in Consul; empty only with instances
	Datacenter  string        `yaml:"datacenter"`
	Filter      string        `yaml:"filter"`    // Consul filter expression
	Address     string        `yaml:"address"`   // "" | lan | wan | a tagged-address name
	Instances   []Static      `yaml:"instances"` // fixed instances instead of Consul's
	Scheme      string        `yaml:"scheme"`    // http | https | h2c
	TLS         ClientTLS     `yaml:"tls"`
	Balance     string        `yaml:"balance"` // round_robin | weighted | least_requests
	SlowStart   time.Duration `yaml:"slow_start"`
	Timeout     Timeout       `yaml:"timeout"`
	Retry       Retry         `yaml:"retry"`
	Breaker     Breaker       `yaml:"breaker"`
	Outlier     Outlier       `yaml:"outlier"`
	MaxInFlight int           `yaml:"max_in_flight"` // 0: no limit
	MassDrop    MassDrop      `yaml:"mass_drop"`
}

// Static is an instance that is named in the configuration.
type Static struct {
	Address string `yaml:"address"`
	Weight  int    `yaml:"weight"`
}

// Timeout bounds the phases of a request to an instance. 0 is no bound.
type Timeout struct {
	Connect  time.Duration `yaml:"connect"`
	Response time.Duration `yaml:"response"` // one try, until its header
	Total    time.Duration `yaml:"total"`    // all tries, until the header
	Idle     time.Duration `yaml:"idle"`     // keep-alive of idle connections to instances
}

// Retry sends a request to another instance.
type Retry struct {
	Attempts int      `yaml:"attempts"` // tries after the first; 0: none
	On       []string `yaml:"on"`       // refused | reset | timeout | a status code
	Methods  []string `yaml:"methods"`  // replayable methods
	Budget   Percent  `yaml:"budget"`   // of recent requests
	MinRate  int      `yaml:"min_rate"` // retries a second that the budget always allows
}

// Breaker is the hystrix command around the upstream.
type Breaker struct {
	Disabled    bool          `yaml:"disabled"`
	ErrorRate   Percent       `yaml:"error_rate"`
	MinRequests int           `yaml:"min_requests"` // in hystrix's 10 s window
	OpenFor     time.Duration `yaml:"open_for"`     // until one request may probe
}

// Outlier takes a failing instance out of its pool.
type Outlier struct {
	Disabled    bool          `yaml:"disabled"`
	Consecutive int           `yaml:"consecutive"` // failures in a row
	FailureRate Percent       `yaml:"failure_rate"`
	MinRequests int           `yaml:"min_requests"` // in Window, for the rate to count
	Window      time.Duration `yaml:"window"`
	EjectFor    time.Duration `yaml:"eject_for"` // first time; grows with each
	MaxEjectFor time.Duration `yaml:"max_eject_for"`
	MaxEjected  Percent       `yaml:"max_ejected"` // of the pool
	Panic       Percent       `yaml:"panic"`       // below this share of the pool all serve again
}

// MassDrop holds an update that would take most of a pool at once.
type MassDrop struct {
	Disabled bool          `yaml:"disabled"`
	Share    Percent       `yaml:"share"`
	Hold     time.Duration `yaml:"hold"`
}

// Route is match, then middleware, then upstream.
type Route struct {
	Name       string   `yaml:"name"`
	Match      Match    `yaml:"match"`
	Use        []string `yaml:"use"` // policies
	Middleware `yaml:",inline"`
	Upstream   RouteUpstream `yaml:"upstream"`
	Redirect   *Redirect     `yaml:"redirect"`
	Priority   int           `yaml:"priority"` // breaks ties between equally specific routes

	// Line is where the route stands in Source, for provenance.
	Line int `yaml:"-"`
}

// Match is what a request must have. The longest path wins.
type Match struct {
	Host    string       `yaml:"host"`    // exact, "*.example.com", or empty for any
	Path    string       `yaml:"path"`    // "/a/**" prefix by segments, "/a" exact, "/a/{id}" template
	Methods []string     `yaml:"methods"` // empty: all
	Headers []MatchField `yaml:"headers"`
	Query   []MatchField `yaml:"query"`
}

// MatchField asks for a header field or query parameter.
type MatchField struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"` // exact; empty: it only has to be there
	Regex string `yaml:"regex"` // instead of Value; anchored
}

// RouteUpstream says where a route's requests go and as what.
type RouteUpstream struct {
	Service string        `yaml:"service"` // an upstream's name; one by defaults is made for a Consul service that has none
	Strip   string        `yaml:"strip"`   // path prefix to take off, by segments
	Prepend string        `yaml:"prepend"` // path prefix to put on
	Host    string        `yaml:"host"`    // "preserve" (default), "instance", or the value to send
	Timeout time.Duration `yaml:"timeout"` // total, for this route; 0: the upstream's
}

// Redirect answers instead of an upstream. {path} and {query} are replaced.
type Redirect struct {
	To   string `yaml:"to"`
	Code int    `yaml:"code"`
}

// AccessLog is one line per request.
type AccessLog struct {
	Disabled bool          `yaml:"disabled"`
	Path     string        `yaml:"path"`   // file; empty: standard output
	Sample   Percent       `yaml:"sample"` // of unremarkable requests; 5xx, slow and limited ones always
	Slow     time.Duration `yaml:"slow"`
}

// Log is the gateway's own log, on standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug | info | warn | error
	Format string `yaml:"format"` // json | text
}

// Shutdown is the order of going down.
type Shutdown struct {
	Delay time.Duration `yaml:"delay"` // between unready and closing the listeners
	Grace time.Duration `yaml:"grace"` // for requests in flight
}
