// Package config is the one typed tree of settings: Load reads and checks it,
// Default fills it, and every fault comes back at once with its file, line,
// key path and a hint. It is the only door to viper, it dials nothing and
// starts nothing.
package config

import (
	"bytes"
	"net/netip"
	"strings"
	"time"

	"github.com/proconsul/proconsul/pkg/schema"
)

// Config is everything an operator can set. Fields tagged restart are read at
// start only; NeedsRestart tells a reload which of them it touches. The rest
// is taken over by a reload. A Config is not changed once Load returned it.
//
// The tags enum, min, max and required are rules that Load checks and
// docs/config.md repeats.
type Config struct {
	Version      int          `yaml:"version" enum:"1"`           // the format's
	Default      string       `yaml:"default" enum:"allow|deny"`  // deny: a route without auth keeps the configuration from loading
	Listen       []Listen     `yaml:"listen" restart:"yes"`       // public listeners
	Admin        Admin        `yaml:"admin"`                      // the operators' listener
	Consul       Consul       `yaml:"consul" restart:"yes"`       // how to reach the agent
	KV           KV           `yaml:"kv" restart:"yes"`           // what is read from Consul's KV store
	Redis        Redis        `yaml:"redis" restart:"yes"`        // the store that replicas share limits through
	Registration Registration `yaml:"registration" restart:"yes"` // the gateway as a service in Consul
	ACME         ACME         `yaml:"acme" restart:"yes"`         // certificates that the gateway obtains itself
	Consumers    []Consumer   `yaml:"consumers"`                  // who may call, and by which credentials
	Auth         []AuthMethod `yaml:"auth"`                       // named ways to find out who calls
	Policies     []Policy     `yaml:"policies"`                   // named middleware settings
	RateLimit    *RateLimit   `yaml:"rate_limit"`                 // over all routes together, beside their own
	Upstreams    []Upstream   `yaml:"upstreams"`                  // services that need other settings than the defaults
	Routes       []Route      `yaml:"routes"`                     // which requests go where
	AccessLog    AccessLog    `yaml:"access_log"`                 // one line per request
	Metrics      Metrics      `yaml:"metrics" restart:"yes"`      // what a scrape shows
	Tracing      Tracing      `yaml:"tracing"`                    // spans of requests, for OpenTelemetry
	Log          Log          `yaml:"log" restart:"yes"`          // the gateway's own log
	Shutdown     Shutdown     `yaml:"shutdown"`                   // the order of going down

	// Source is where the tree was read from, for messages; Hash is the first
	// 12 hex digits of the SHA-256 of its bytes.
	Source string `yaml:"-"`
	Hash   string `yaml:"-"`

	// Warnings are the faults that did not keep the tree from loading.
	Warnings *Faults `yaml:"-"`

	origins map[string]origin // by key path, for Print

	// referenced is a hash of what ${file:...} put in. It stays here: together
	// with the text it would let secrets be guessed.
	referenced []byte
}

// Same reports whether another configuration was read from the same bytes, in
// its own files and in those that it refers to.
func (c *Config) Same(other *Config) bool {
	return c.Hash == other.Hash && bytes.Equal(c.referenced, other.referenced)
}

// Listen is one public listener. Clear listeners speak HTTP/1.1 and h2c, those
// with tls HTTP/1.1 and HTTP/2 over it. The fast engine refuses requests whose
// end may be seen in two ways and hands HTTP/2 to net/http's server; what else
// it does differently is in docs/adr/0005-a-front-of-our-own.md.
type Listen struct {
	Name           string         `yaml:"name"`                                // for logs and messages; empty: the address
	Addr           string         `yaml:"addr" required:"true"`                // HOST:PORT; without HOST every address
	ReusePort      bool           `yaml:"reuse_port"`                          // share addr with other processes of the same user that say so too; the kernel spreads connections over them
	Engine         string         `yaml:"engine" enum:"std|fast"`              // net/http's server, or our own strict and cheaper one for HTTP/1.1
	TLS            *ListenTLS     `yaml:"tls"`                                 // absent: clear
	RedirectToTLS  int            `yaml:"redirect_to_tls" min:"0" max:"65535"` // port that clients of this clear listener are sent to with 308, as 443; 0: they are served
	TrustedProxies []netip.Prefix `yaml:"trusted_proxies"`                     // whose forwarding headers are believed
	EncodedSlash   string         `yaml:"encoded_slash" enum:"reject|keep"`    // what to do with %2F in a path
	Default        string         `yaml:"default" enum:"allow|deny"`           // deny: routes without auth answer 403 here
	Limits         ListenLimits   `yaml:"limits"`                              // what clients can make the gateway hold
	Timeouts       ListenTimeouts `yaml:"timeouts"`                            // how long a client may take
}

// ListenTLS makes a listener speak TLS. Its files are followed: a renewed
// certificate is used at once, and one that cannot be used leaves the old in
// place.
type ListenTLS struct {
	CertDir           string        `yaml:"cert_dir"`                                  // every NAME.crt or NAME.pem in it, with its key in NAME.key or in the same file; default.* is for names that no certificate is for
	Certificates      []Certificate `yaml:"certificates"`                              // files of their own; the first one is for names that no certificate is for
	ACME              []string      `yaml:"acme"`                                      // names whose certificates the gateway obtains itself, see acme at the top
	MinVersion        string        `yaml:"min_version" enum:"1.2|1.3"`                // of TLS
	ClientAuth        string        `yaml:"client_auth" enum:"none|optional|required"` // whether clients show a certificate; one that is shown has to be valid
	ClientCAFile      string        `yaml:"client_ca_file"`                            // PEM bundle of those who issue clients' certificates
	ForwardClientCert bool          `yaml:"forward_client_cert"`                       // tell instances of the client's certificate in X-Client-Cert-*
}

// Certificate is a certificate with its chain, and its key, in PEM.
type Certificate struct {
	CertFile string `yaml:"cert_file" required:"true"` // the certificate, then its chain
	KeyFile  string `yaml:"key_file"`                  // empty: cert_file has the key too
}

// ListenLimits bound what one client, or all, can make the gateway hold.
type ListenLimits struct {
	MaxHeaderBytes Size          `yaml:"max_header_bytes" min:"4KiB" max:"16MiB"` // request line and header fields
	MaxHeaders     int           `yaml:"max_headers" min:"1" max:"10000"`         // number of header fields
	MaxBodyBytes   Size          `yaml:"max_body_bytes"`                          // of one request; 0: no limit
	MaxConnections int           `yaml:"max_connections" min:"0"`                 // at once; 0: no limit
	MaxInFlight    int           `yaml:"max_in_flight" min:"0"`                   // requests at once; 0: no limit
	MaxQueue       int           `yaml:"max_queue" min:"0"`                       // requests that wait for a place
	QueueTimeout   time.Duration `yaml:"queue_timeout" max:"1m"`                  // then 503 concurrency_limited
}

// ListenTimeouts bound how long a client may take.
type ListenTimeouts struct {
	ReadHeader time.Duration `yaml:"read_header" min:"100ms" max:"10m"` // request line and header, and before them the TLS handshake
	Idle       time.Duration `yaml:"idle"`                              // how long a connection may stay without a request
	BodyRead   time.Duration `yaml:"body_read"`                         // between two reads of a request body; 0: none
	BodyWrite  time.Duration `yaml:"body_write"`                        // for the client to take 32 KiB of an answer; 0: for ever
}

// Admin is the listener for operators.
type Admin struct {
	Addr     string        `yaml:"addr" restart:"yes"`     // HOST:PORT, or unix:PATH for a socket; empty: no admin listener
	TLS      *AdminTLS     `yaml:"tls" restart:"yes"`      // absent: clear
	Tokens   []AdminToken  `yaml:"tokens"`                 // who may do what
	Clients  []AdminClient `yaml:"clients"`                // who may do what by a certificate of an issuer in tls.client_ca_file
	Insecure bool          `yaml:"insecure" restart:"yes"` // allow a non-loopback address without tokens and clients
}

// AdminTLS makes the admin listener speak TLS. Its files are followed, as those
// of a public listener are.
type AdminTLS struct {
	CertDir      string        `yaml:"cert_dir"`                   // every NAME.crt or NAME.pem in it, with its key in NAME.key or in the same file
	Certificates []Certificate `yaml:"certificates"`               // files of their own; the first one is for names that no certificate is for
	MinVersion   string        `yaml:"min_version" enum:"1.2|1.3"` // of TLS
	ClientCAFile string        `yaml:"client_ca_file"`             // PEM bundle of those who issue operators' certificates; who shows none needs a token
}

// Listen returns the same for a listener. A certificate is asked for and not
// demanded: probes and scrapers have none.
func (t AdminTLS) Listen() ListenTLS {
	l := ListenTLS{CertDir: t.CertDir, Certificates: t.Certificates, MinVersion: t.MinVersion, ClientCAFile: t.ClientCAFile, ClientAuth: "none"}
	if t.ClientCAFile != "" {
		l.ClientAuth = "optional"
	}
	return l
}

// AdminClient is who has a client certificate, by exactly one of subject, san
// and spiffe, and what it may do.
type AdminClient struct {
	Name    string `yaml:"name" required:"true"`        // the actor in the audit log
	Role    string `yaml:"role" enum:"viewer|operator"` // a viewer reads, an operator also acts
	Subject string `yaml:"subject"`                     // the common name, or the whole name as "CN=sre,O=Example"
	SAN     string `yaml:"san"`                         // one of its alternative names: DNS name, e-mail address, IP address or URI
	SPIFFE  string `yaml:"spiffe"`                      // its SPIFFE id, as spiffe://example.org/sre
}

// Cert says which certificates are the client's.
func (c AdminClient) Cert() ConsumerCert {
	return ConsumerCert{Subject: c.Subject, SAN: c.SAN, SPIFFE: c.SPIFFE}
}

// KnowsCertificates reports whether a client certificate allows anything.
func (a Admin) KnowsCertificates() bool {
	return len(a.Clients) > 0 && a.TLS != nil && a.TLS.ClientCAFile != ""
}

// Socket returns the path of the unix socket that the admin listener is.
func (a Admin) Socket() (path string, ok bool) {
	path, ok = strings.CutPrefix(a.Addr, "unix:")
	if rest, url := strings.CutPrefix(path, "//"); url {
		path = rest
	}
	return path, ok
}

// AdminToken is a bearer token and what it may do.
type AdminToken struct {
	Name  string `yaml:"name" required:"true"`        // the actor in the audit log
	Role  string `yaml:"role" enum:"viewer|operator"` // a viewer reads, an operator also acts
	Token Secret `yaml:"token" required:"true"`       // the bearer token, at best ${file:...}
}

// Consul says how to reach the agent. CONSUL_HTTP_* variables fill what is
// empty here.
type Consul struct {
	Addr       string        `yaml:"addr"`                     // HOST:PORT of the agent, or unix://PATH
	Scheme     string        `yaml:"scheme" enum:"http|https"` // of the agent's API
	Token      Secret        `yaml:"token"`                    // ACL token
	TokenFile  string        `yaml:"token_file"`               // file with the ACL token, re-read on change
	Datacenter string        `yaml:"datacenter"`               // empty: the agent's
	Namespace  string        `yaml:"namespace"`                // Consul Enterprise
	Partition  string        `yaml:"partition"`                // Consul Enterprise
	TLS        ClientTLS     `yaml:"tls"`                      // for scheme https
	Wait       time.Duration `yaml:"wait" min:"1s" max:"10m"`  // how long one blocking query blocks
	Snapshot   string        `yaml:"snapshot"`                 // file for warm starts; empty: none
	Disabled   bool          `yaml:"disabled"`                 // no Consul: only upstreams with instances of their own
}

// KV says what is read from Consul's KV store, and followed there.
type KV struct {
	Consumers string `yaml:"consumers"` // prefix with a consumer below each key, as proconsul/consumers/; empty: none are read. The agent's token needs key_prefix read on it
}

// ClientTLS is what a TLS client of ours needs. Its files are read again when they
// change.
type ClientTLS struct {
	CAFile     string `yaml:"ca_file"`     // PEM bundle to trust instead of the system's
	CertFile   string `yaml:"cert_file"`   // PEM client certificate
	KeyFile    string `yaml:"key_file"`    // PEM key of the client certificate
	ServerName string `yaml:"server_name"` // to verify instead of the address
	SkipVerify bool   `yaml:"skip_verify"` // trust any certificate; for tests only
}

// ACME is the issuer of the certificates for the names in listen[].tls.acme.
type ACME struct {
	Directory  string   `yaml:"directory"`                  // URL of the issuer's directory
	Email      string   `yaml:"email"`                      // of the account, for the issuer's warnings
	Agree      bool     `yaml:"agree"`                      // to the issuer's terms of service
	CAFile     string   `yaml:"ca_file"`                    // PEM bundle to trust instead of the system's, for an issuer of one's own
	Challenges []string `yaml:"challenges"`                 // by which it finds out who has a name: tls-alpn-01 | http-01
	Storage    string   `yaml:"storage" enum:"consul|file"` // of accounts, keys and certificates: Consul's KV, which replicas share, or a directory
	KVPrefix   string   `yaml:"kv_prefix"`                  // in Consul's KV; who reads it has the keys
	Path       string   `yaml:"path"`                       // of the directory
}

// Redis is the store that replicas share limits through. An empty addr means
// that every limit is this replica's own.
type Redis struct {
	Mode             string        `yaml:"mode" enum:"single|sentinel|cluster"` // how nodes are found
	Addr             string        `yaml:"addr"`                                // HOST:PORT of a single one; empty, with no addrs: every limit is this replica's own
	Addrs            []string      `yaml:"addrs"`                               // HOST:PORT of the sentinels, or of some nodes of a cluster
	Master           string        `yaml:"master"`                              // what the sentinels call it
	SentinelUsername string        `yaml:"sentinel_username"`                   // ACL user at the sentinels
	SentinelPassword Secret        `yaml:"sentinel_password"`                   // at the sentinels; empty: none
	Username         string        `yaml:"username"`                            // ACL user
	Password         Secret        `yaml:"password"`                            // of the user, or requirepass
	DB               int           `yaml:"db" min:"0" max:"65535"`              // database number
	TLS              *ClientTLS    `yaml:"tls"`                                 // written, even as {}: TLS; absent: clear
	Timeout          time.Duration `yaml:"timeout" min:"1ms" max:"10s"`         // of one call; an outage costs each call at most this
}

// Configured reports whether there is a store.
func (r Redis) Configured() bool { return r.Addr != "" || len(r.Addrs) > 0 }

// Address returns where the store is, for people.
func (r Redis) Address() string {
	if r.Addr != "" {
		return r.Addr
	}
	return strings.Join(r.Addrs, ", ")
}

// Registration makes the gateway a service in Consul like any other.
type Registration struct {
	Enabled bool              `yaml:"enabled"` // register at start, deregister at the end
	Name    string            `yaml:"name"`    // service name
	Address string            `yaml:"address"` // empty: the address of Consul's node
	Tags    []string          `yaml:"tags"`    // service tags
	Meta    map[string]string `yaml:"meta"`    // service meta: at most 64 pairs
}

// Consumer is a caller that the gateway knows by name. Its credentials work
// with every method of their kind, but for claims, which name theirs.
type Consumer struct {
	Name    string          `yaml:"name" required:"true"` // for logs, limits and X-Consumer-Name
	Groups  []string        `yaml:"groups"`               // that routes may ask for
	Roles   []string        `yaml:"roles"`                // that routes may ask for
	APIKeys []APIKey        `yaml:"api_keys"`             // keys that are this consumer; several while one is replaced
	Basic   []BasicLogin    `yaml:"basic"`                // names and passwords that are this consumer
	Claims  []ConsumerClaim `yaml:"claims"`               // tokens that are this consumer, by a claim
	MTLS    []ConsumerCert  `yaml:"mtls"`                 // client certificates that are this consumer
}

// APIKey is an API key as the gateway stores it: proconsul keys new makes one.
type APIKey struct {
	ID     string `yaml:"id" required:"true"`     // tells keys apart in messages; no secret
	SHA256 Secret `yaml:"sha256" required:"true"` // of the key, 64 hex digits
}

// BasicLogin is a user name and the bcrypt hash of its password.
type BasicLogin struct {
	Username string `yaml:"username" required:"true"` // without a colon
	Bcrypt   Secret `yaml:"bcrypt" required:"true"`   // as htpasswd -nB makes it
}

// ConsumerClaim makes every token of a method with that claim a consumer's.
type ConsumerClaim struct {
	Method string `yaml:"method" required:"true"` // a method of auth with tokens
	Claim  string `yaml:"claim" required:"true"`  // as azp or client_id
	Equals string `yaml:"equals" required:"true"` // the claim's text, or one of its list
}

// ConsumerCert makes client certificates a consumer's, by exactly one of
// subject, san and spiffe.
type ConsumerCert struct {
	Subject   string   `yaml:"subject"`   // the common name, or the whole name as "CN=orders,O=Example"
	SAN       string   `yaml:"san"`       // one of its alternative names: DNS name, e-mail address, IP address or URI
	SPIFFE    string   `yaml:"spiffe"`    // its SPIFFE id, as spiffe://example.org/orders
	Listeners []string `yaml:"listeners"` // whose client_ca_file vouches for it; needed where listeners have different ones
}

// AuthMethod is a named way to find out who calls: exactly one of its
// sections. The methods api-key, basic and mtls exist without being written.
type AuthMethod struct {
	Name          string               `yaml:"name" required:"true"` // what routes ask for it by
	APIKey        *APIKeyMethod        `yaml:"api_key"`              // a key in a header field or query parameter
	JWT           *JWTMethod           `yaml:"jwt"`                  // a signed token of an issuer
	Introspection *IntrospectionMethod `yaml:"introspection"`        // a token that its issuer is asked about (RFC 7662)
	ForwardAuth   *ForwardAuthMethod   `yaml:"forward_auth"`         // whatever a service of yours says
	Basic         *BasicMethod         `yaml:"basic"`                // user name and password (RFC 7617)
	MTLS          *MTLSMethod          `yaml:"mtls"`                 // a client certificate, on listeners with client_auth
}

// APIKeyMethod says where the key stands.
type APIKeyMethod struct {
	Header string `yaml:"header"` // name of the field
	Query  string `yaml:"query"`  // name of a parameter that may have the key instead; empty: none may
}

// BasicMethod asks for user name and password.
type BasicMethod struct {
	Realm string `yaml:"realm"` // what browsers show; empty: proconsul
}

// MTLSMethod knows callers by the client certificate that the listener has
// verified.
type MTLSMethod struct {
	ConsumerFrom   string   `yaml:"consumer_from" enum:"none|common_name|dns|email|uri|spiffe"` // what names the caller where no consumer's mtls matches; none: it is refused
	ConsumerPrefix string   `yaml:"consumer_prefix"`                                            // in front of that name, to tell issuers apart; needed with kv.consumers
	Listeners      []string `yaml:"listeners"`                                                  // where certificates name callers so; needed where listeners have different client_ca_file
}

// JWTMethod says which tokens are accepted (RFC 7519), from Authorization:
// Bearer. Every token needs an expiry.
type JWTMethod struct {
	Issuer     string        `yaml:"issuer" required:"true"`      // exactly what iss has to be
	Algorithms []string      `yaml:"algorithms" required:"true"`  // RS256 to RS512, PS256 to PS512, ES256 to ES512, EdDSA, HS256 to HS512; whatever the token says
	JWKSFile   string        `yaml:"jwks_file"`                   // file with the issuer's keys (RFC 7517), re-read on change
	JWKSURI    string        `yaml:"jwks_uri"`                    // URL of the issuer's keys; with neither it, jwks_file nor secret the issuer's metadata names it (OpenID Connect Discovery)
	Insecure   bool          `yaml:"insecure"`                    // take metadata and keys over http from other machines; for tests only
	Secret     Secret        `yaml:"secret"`                      // for the HS algorithms, and only these, at least as long as the hash
	Refresh    time.Duration `yaml:"refresh" min:"10s" max:"24h"` // how often jwks_uri is fetched; old keys serve while the issuer is away
	Cooldown   time.Duration `yaml:"cooldown" min:"1s" max:"1h"`  // between two fetches because of keys that are not known
	TokenRules `yaml:",inline"`
}

// TokenRules say what a token's claims have to be and what they mean. A claim
// inside another is named with dots, as realm_access.roles, where no claim has
// the whole name.
type TokenRules struct {
	Audience       []string      `yaml:"audience"`                               // one of which aud has to hold; empty: any
	ClockSkew      time.Duration `yaml:"clock_skew" max:"5m"`                    // that exp, nbf and iat may be off
	MaxTokenBytes  Size          `yaml:"max_token_bytes" min:"256B" max:"64KiB"` // longer tokens are refused unread
	RequiredClaims []Claim       `yaml:"required_claims"`                        // all of them
	Scopes         []string      `yaml:"scopes"`                                 // all of which every token needs, in scope or scp
	ConsumerClaim  string        `yaml:"consumer_claim"`                         // whose text names the caller where no consumer's claims match
	ConsumerPrefix string        `yaml:"consumer_prefix"`                        // in front of that name, to tell issuers apart; needed with kv.consumers
	GroupsClaim    string        `yaml:"groups_claim"`                           // whose list adds groups; empty: tokens bring none
	RolesClaim     string        `yaml:"roles_claim"`                            // whose list adds roles; empty: tokens bring none
	ForwardClaims  []string      `yaml:"forward_claims"`                         // that instances get as X-Consumer-Claim-NAME
}

// IntrospectionMethod says which authorisation server is asked about tokens
// (RFC 7662), from Authorization: Bearer. While it does not answer, tokens that
// it was not asked about lately are answered 503.
type IntrospectionMethod struct {
	URL          string        `yaml:"url"`                           // of its introspection endpoint
	Service      string        `yaml:"service"`                       // instead of url: an upstream's name or a Consul service
	Path         string        `yaml:"path"`                          // of the endpoint at the service
	ClientID     string        `yaml:"client_id" required:"true"`     // by which the gateway is known there
	ClientSecret Secret        `yaml:"client_secret" required:"true"` // of that client, at best ${file:...}
	ClientAuth   string        `yaml:"client_auth" enum:"basic|post"` // how the two are sent: as HTTP basic, or in the form
	Issuer       string        `yaml:"issuer"`                        // exactly what iss has to be; empty: it is not looked at
	Insecure     bool          `yaml:"insecure"`                      // send tokens over http to other machines; for tests only
	Timeout      time.Duration `yaml:"timeout" min:"10ms" max:"30s"`  // of one question
	CacheTTL     time.Duration `yaml:"cache_ttl" max:"24h"`           // how long an active token is believed without asking again, never beyond its exp; a token that is revoked is let in until then
	NegativeTTL  time.Duration `yaml:"negative_ttl" max:"1h"`         // how long one that is not active is refused without asking again
	TokenRules   `yaml:",inline"`
}

// ForwardAuthMethod asks a service of yours whether a request may pass. The
// service gets a GET with X-Forwarded-Method, -Uri, -Host, -Proto and -For, some
// of the request's header fields and no body. What it answers with 2xx passes;
// its answers 401, 403 and 3xx go to the client; everything else, and no answer
// in time, is answered 503.
type ForwardAuthMethod struct {
	URL             string        `yaml:"url"`                          // that is asked
	Service         string        `yaml:"service"`                      // instead of url: an upstream's name or a Consul service
	Path            string        `yaml:"path"`                         // at the service
	Insecure        bool          `yaml:"insecure"`                     // send credentials over http to other machines; for tests only
	Timeout         time.Duration `yaml:"timeout" min:"10ms" max:"30s"` // of one question
	RequestHeaders  []string      `yaml:"request_headers"`              // of the client's request that the service gets
	ResponseHeaders []string      `yaml:"response_headers"`             // of the service's answer that instances get; nobody else can set them on any route
	ConsumerHeader  string        `yaml:"consumer_header"`              // of the answer, which names the caller; empty: the caller has no name
	GroupsHeader    string        `yaml:"groups_header"`                // of the answer, with the caller's groups and commas between
	OnError         string        `yaml:"on_error" enum:"closed|open"`  // where the service does not answer: refuse with 503, or let everybody pass
}

// Claim asks for a claim of a token.
type Claim struct {
	Name   string `yaml:"name" required:"true"` // of the claim, with dots for one inside another
	Equals string `yaml:"equals"`               // its text, or one of its list; empty: it only has to be there
}

// Policy is a named set of middleware settings that routes use.
type Policy struct {
	Name       string `yaml:"name" required:"true"` // what routes use it by
	Middleware `yaml:",inline"`
}

// Middleware holds the settings of every middleware; a nil section is not in
// the chain. A route's own section replaces the one from its policies, and a
// later policy's replaces an earlier one's. Every field is a pointer to a
// section: Chain relies on it.
type Middleware struct {
	Auth          *Auth          `yaml:"auth"`           // who may pass
	RateLimit     *RateLimit     `yaml:"rate_limit"`     // how often a caller may pass
	Headers       *Headers       `yaml:"headers"`        // what to set, add and remove
	CORS          *CORS          `yaml:"cors"`           // which pages of other origins may call
	SecureHeaders *SecureHeaders `yaml:"secure_headers"` // what browsers are told to refuse, and what instances tell too much
	Compress      *Compress      `yaml:"compress"`       // answers, for clients that accept it
	Decompress    *Decompress    `yaml:"decompress"`     // request bodies, for instances that do not
	IP            *IP            `yaml:"ip"`             // from where, before anybody is asked who it is
	Validate      *Validate      `yaml:"validate"`       // what requests have to look like
}

// Auth says who may pass. Without a valid credential the answer is 401, with
// one that does not suffice 403. A credential that is not valid never passes
// as none.
type Auth struct {
	Realm                string   `yaml:"realm"`     // of the challenges; empty: proconsul
	AnyOf                []string `yaml:"any_of"`    // methods, one of which has to succeed
	AllOf                []string `yaml:"all_of"`    // methods that all have to succeed; the first names the consumer
	Anonymous            bool     `yaml:"anonymous"` // let pass who shows no credential at all
	Needs                `yaml:",inline"`
	ByMethod             []MethodNeeds `yaml:"by_method"`                                // what some methods need beside that
	ForwardAuthorization string        `yaml:"forward_authorization" enum:"remove|keep"` // whether instances see the credentials that the methods read
}

// Needs is what a known caller has to be or to have.
type Needs struct {
	Consumers []string `yaml:"consumers"` // only these; empty: all
	Groups    []string `yaml:"groups"`    // one of which the consumer needs; empty: none
	Roles     []string `yaml:"roles"`     // one of which the consumer needs; empty: none
	Scopes    []string `yaml:"scopes"`    // all of which the token needs
	Claims    []Claim  `yaml:"claims"`    // all of which the token needs
}

// MethodNeeds are the needs of some HTTP methods. Every entry that has the
// request's method counts; a request of a method that none has needs only what
// the section asks of all.
type MethodNeeds struct {
	Methods []string `yaml:"methods" required:"true"` // GET is HEAD too
	Needs   `yaml:",inline"`
}

// IP says from which addresses requests are taken, by the client's address as
// the listener's trusted proxies tell it. Others are answered 403 before
// credentials are looked at. Of a section with allow and deny both count: an
// address has to be allowed and not denied.
type IP struct {
	Allow    []netip.Prefix `yaml:"allow"`     // only these; empty: all
	Deny     []netip.Prefix `yaml:"deny"`      // none of these
	ByMethod []MethodIP     `yaml:"by_method"` // further lists for some methods
}

// MethodIP are the lists of some HTTP methods, which count beside the
// section's own.
type MethodIP struct {
	Methods []string       `yaml:"methods" required:"true"` // GET is HEAD too
	Allow   []netip.Prefix `yaml:"allow"`                   // only these; empty: all
	Deny    []netip.Prefix `yaml:"deny"`                    // none of these
}

// RateLimit limits how often an identity may pass. All limits of one section
// are charged together or not at all, and so are the sections of a request: the
// route's own, its upstream's and that of all routes.
type RateLimit struct {
	By           string        `yaml:"by"`                                                        // client_ip | route | all | consumer | api_key | method | header(NAME) | cookie(NAME) | claim(NAME), or several with + between them, which are one identity together
	Missing      string        `yaml:"missing" enum:"client_ip|deny"`                             // what counts a request that lacks what by names: its client's address, or it is answered 400
	IPv4Prefix   int           `yaml:"ipv4_prefix" min:"1" max:"32"`                              // bits of an IPv4 address that are one client_ip
	IPv6Prefix   int           `yaml:"ipv6_prefix" min:"1" max:"128"`                             // bits of an IPv6 address that are one client_ip
	Rate         Limit         `yaml:"rate"`                                                      // short for limits with one entry
	Limits       []Limit       `yaml:"limits"`                                                    // COUNT/WINDOW, as "100/1m", "5000/day" or "100000/month"
	Algorithm    string        `yaml:"algorithm" enum:"sliding_window|fixed_window|token_bucket"` // how limits count that are not per day or month
	Burst        int           `yaml:"burst" min:"0" max:"1000000000"`                            // of a token_bucket; 0: the limit's count
	Precision    string        `yaml:"precision" enum:"leased|exact"`                             // leased: replicas take tokens ahead of need; exact: every decision asks Redis
	Over         string        `yaml:"over" enum:"reject|delay"`                                  // what becomes of requests above the limit: 429, or a wait for their turn
	MaxDelay     time.Duration `yaml:"max_delay" min:"1ms" max:"1m"`                              // of a request that waits; who would have to wait longer is rejected
	MaxQueue     int           `yaml:"max_queue" min:"1" max:"100000"`                            // requests of one identity that wait; more are rejected
	Zone         string        `yaml:"zone"`                                                      // in which days and months begin, as Europe/Berlin; empty: UTC
	Cost         string        `yaml:"cost"`                                                      // tokens per request; header(NAME), what that field of the request says; or, charged after the answer, response_header(NAME) or response_bytes(SIZE), a token for each SIZE begun
	Tiers        []Tier        `yaml:"tiers"`                                                     // other counts for some consumers
	OnStoreError string        `yaml:"on_store_error" enum:"local|open|closed"`                   // without Redis: count here, let pass, or refuse
	Headers      string        `yaml:"headers" enum:"all|ietf|none"`                              // what clients are told of it: RateLimit and RateLimit-Policy, and in all X-RateLimit-* too
	ShowKeys     bool          `yaml:"show_keys"`                                                 // let operators see who is limited most by name instead of by a hash
}

// Tier gives some consumers other counts for the same windows, so that what
// they have used stays when they change tiers. Who is in none has the
// section's own limits.
type Tier struct {
	Name      string   `yaml:"name" required:"true"` // free, pro, ...
	Consumers []string `yaml:"consumers"`            // who is in it, by name
	Limits    []Limit  `yaml:"limits"`               // one for each window of the section
	Unlimited bool     `yaml:"unlimited"`            // no limits, and nothing is counted
}

// Limit is a count per window, written "100/1m", "20/s" or "1000/1h", or per
// day or month of the calendar, written "5000/day" or "100000/month".
type Limit struct {
	Count    int
	Window   time.Duration // of a calendar's the longest that it can be
	Calendar string        // day, month or empty
}

// Headers sets, adds and removes fields of requests and answers.
type Headers struct {
	Request  HeaderRules `yaml:"request"`  // on the way to the instance
	Response HeaderRules `yaml:"response"` // on the way to the client
}

// HeaderRules are applied in the order remove, set, add.
type HeaderRules struct {
	Remove []string      `yaml:"remove"` // field names
	Set    []HeaderField `yaml:"set"`    // replace what is there
	Add    []HeaderField `yaml:"add"`    // beside what is there
}

// HeaderField is one header field.
type HeaderField struct {
	Name  string `yaml:"name" required:"true"` // in any case
	Value string `yaml:"value"`                // as it is sent
}

// CORS lets pages of other origins call a route from a browser. The gateway
// answers preflights itself, before auth, and takes out what an instance says
// of CORS. It guards browsers' users, not the route: who is no browser may
// ignore it.
type CORS struct {
	Origins        []string      `yaml:"origins" required:"true"` // as https://shop.example.com or https://*.example.com; * is every origin, null that of sandboxed pages and files
	Methods        []string      `yaml:"methods"`                 // empty: those of the route's match, or GET, HEAD and POST
	Headers        []string      `yaml:"headers"`                 // of requests, or *; empty: Accept, Accept-Language, Content-Language, Content-Type and Range
	Expose         []string      `yaml:"expose"`                  // of answers, beside those that pages may always read, or *
	Credentials    bool          `yaml:"credentials"`             // pages may send cookies and Authorization; not with *
	MaxAge         time.Duration `yaml:"max_age" max:"24h"`       // how long browsers may keep a preflight's answer
	PrivateNetwork bool          `yaml:"private_network"`         // pages of public sites may call although the gateway is in a private network
}

// SecureHeaders tells browsers what to refuse, on every answer of the route
// and those that the gateway makes itself, and takes out what tells of the
// inside. What an instance says for itself stays, unless override is set.
type SecureHeaders struct {
	HSTS                      HSTS     `yaml:"hsts"`                                                                                                                                                                   // over TLS only; in the clear the field is taken out
	Nosniff                   bool     `yaml:"nosniff"`                                                                                                                                                                // X-Content-Type-Options
	FrameOptions              string   `yaml:"frame_options" enum:"deny|sameorigin|off"`                                                                                                                               // X-Frame-Options
	ContentSecurityPolicy     string   `yaml:"content_security_policy"`                                                                                                                                                // empty: none
	ReferrerPolicy            string   `yaml:"referrer_policy" enum:"off|no-referrer|no-referrer-when-downgrade|origin|origin-when-cross-origin|same-origin|strict-origin|strict-origin-when-cross-origin|unsafe-url"` // how much of an address other sites see
	PermissionsPolicy         string   `yaml:"permissions_policy"`                                                                                                                                                     // as camera=(), geolocation=(); empty: none
	CrossOriginOpenerPolicy   string   `yaml:"cross_origin_opener_policy" enum:"off|same-origin|same-origin-allow-popups|noopener-allow-popups|unsafe-none"`                                                           // who shares a window's browsing context
	CrossOriginResourcePolicy string   `yaml:"cross_origin_resource_policy" enum:"off|same-origin|same-site|cross-origin"`                                                                                             // which sites may embed the answer
	CrossOriginEmbedderPolicy string   `yaml:"cross_origin_embedder_policy" enum:"off|require-corp|credentialless|unsafe-none"`                                                                                        // what pages may embed
	Override                  bool     `yaml:"override"`                                                                                                                                                               // also where an instance says otherwise
	Remove                    []string `yaml:"remove"`                                                                                                                                                                 // fields that tell of the inside
	HideVia                   bool     `yaml:"hide_via"`                                                                                                                                                               // take out Via, which names the instance's proxies and this gateway
	InternalHosts             []string `yaml:"internal_hosts"`                                                                                                                                                         // names, as *.service.consul, networks, or private for all private addresses: Location and Content-Location lose them and become relative
	Cookies                   Cookies  `yaml:"cookies"`                                                                                                                                                                // flags that instances forget
}

// HSTS makes browsers come back by TLS only (RFC 6797).
type HSTS struct {
	MaxAge            time.Duration `yaml:"max_age" max:"87600h"` // 0: the field is not sent
	IncludeSubdomains bool          `yaml:"include_subdomains"`   // every name below the host too
	Preload           bool          `yaml:"preload"`              // asks for a place in browsers' own lists
}

// Cookies adds flags to Set-Cookie where they are absent.
type Cookies struct {
	Secure   bool     `yaml:"secure"`                          // over TLS only; never where the request came in the clear
	HTTPOnly bool     `yaml:"http_only"`                       // scripts cannot read it
	SameSite string   `yaml:"same_site" enum:"off|lax|strict"` // whether other sites' requests carry it
	Except   []string `yaml:"except"`                          // names of cookies that stay as they are
}

// Compress codes answers that a client accepts coded. Event streams, gRPC and
// what is coded already are left alone.
type Compress struct {
	Encodings []string `yaml:"encodings"`                      // the best first, where a client weighs them the same
	MinSize   Size     `yaml:"min_size" max:"1MiB"`            // of an answer
	Types     []string `yaml:"types"`                          // media types, with one * at most
	Level     string   `yaml:"level" enum:"fast|default|best"` // time against bytes
}

// Decompress gives instances the plain text of coded request bodies.
type Decompress struct {
	Encodings []string `yaml:"encodings"`                 // that are decoded; others are answered 415
	Max       Size     `yaml:"max" min:"1KiB" max:"4GiB"` // of the plain text, then 413
	Ratio     int      `yaml:"ratio" min:"2" max:"10000"` // how many times longer than what was sent it may be from 64KiB on, then 413
}

// Validate refuses requests that do not fit before an instance sees them. JSON
// bodies are read to their end, within max_body, and passed on byte for byte.
type Validate struct {
	ContentTypes  []string `yaml:"content_types"`                      // media types that bodies may have, with one * at most; empty: JSON where there is a body_schema, else those of the document or any
	MaxBody       Size     `yaml:"max_body" min:"1B" max:"64MiB"`      // of a body, then 413
	MaxDepth      int      `yaml:"max_depth" min:"1" max:"1000"`       // of arrays and objects in each other
	MaxValues     int      `yaml:"max_values" min:"1" max:"10000000"`  // in a JSON body; each costs memory while it is looked at
	DuplicateKeys string   `yaml:"duplicate_keys" enum:"reject|allow"` // an object that has a name twice, of which readers take different ones
	BodySchema    string   `yaml:"body_schema"`                        // JSON Schema: a file's path, or the text itself where it begins with {
	Params        []Param  `yaml:"params"`                             // query parameters, header fields and cookies
	OpenAPI       string   `yaml:"openapi"`                            // OpenAPI document: a file's path, or the text itself where it begins with {; what is not in it is answered 404 or 405

	// Schema and API are the documents, which Load has compiled.
	Schema *schema.JSON `yaml:"-"`
	API    *schema.API  `yaml:"-"`
}

// Param is what a parameter of a request has to look like.
type Param struct {
	Name      string   `yaml:"name" required:"true"`                      // of the parameter, header field or cookie
	In        string   `yaml:"in" enum:"query|header|cookie"`             // where it stands
	Required  bool     `yaml:"required"`                                  // it has to be there
	Repeat    bool     `yaml:"repeat"`                                    // it may be there more than once, and each is looked at
	Type      string   `yaml:"type" enum:"string|integer|number|boolean"` // of the text
	Enum      []string `yaml:"enum"`                                      // the texts that it may have
	Pattern   string   `yaml:"pattern"`                                   // RE2, of the whole text
	Min       string   `yaml:"min"`                                       // of a number; empty: none
	Max       string   `yaml:"max"`                                       // of a number; empty: none
	MaxLength int      `yaml:"max_length" min:"1" max:"65536"`            // of the text, in characters
}

// Upstream is a named way to a Consul service.
type Upstream struct {
	Name        string        `yaml:"name"`                                               // empty: the service's name
	Service     string        `yaml:"service"`                                            // in Consul; empty only with instances
	Datacenter  string        `yaml:"datacenter"`                                         // empty: the agent's
	Filter      string        `yaml:"filter"`                                             // Consul filter expression, evaluated by Consul
	Address     string        `yaml:"address"`                                            // empty | lan | wan | the name of a tagged address
	Instances   []Static      `yaml:"instances"`                                          // fixed instances instead of Consul's
	Scheme      string        `yaml:"scheme" enum:"http|https|h2c"`                       // that instances speak
	TLS         ClientTLS     `yaml:"tls"`                                                // for scheme https
	Engine      string        `yaml:"engine" enum:"std|fast"`                             // net/http's transport, or our own strict one for scheme http
	Balance     string        `yaml:"balance" enum:"round_robin|weighted|least_requests"` // how the pool picks
	SlowStart   time.Duration `yaml:"slow_start" max:"1h"`                                // ramp of an instance that joins a warm pool; 0: none
	Timeout     Timeout       `yaml:"timeout"`                                            // bounds of the phases of a request
	Retry       Retry         `yaml:"retry"`                                              // on another instance
	Breaker     Breaker       `yaml:"breaker"`                                            // around the upstream as a whole
	Outlier     Outlier       `yaml:"outlier"`                                            // takes out single instances
	MaxInFlight int           `yaml:"max_in_flight" min:"0" max:"1000000"`                // requests at once, then 503 concurrency_limited; 0: no limit
	RateLimit   *RateLimit    `yaml:"rate_limit"`                                         // over all routes that go here, beside their own
	Concurrency Concurrency   `yaml:"concurrency"`                                        // how many requests may wait for an answer at once, by the latency
	MassDrop    MassDrop      `yaml:"mass_drop"`                                          // guard against a catalog that loses most of a pool
	Drain       time.Duration `yaml:"drain" max:"1h"`                                     // how long streams of an instance that leaves may go on; requests always finish

	// Implicit says that nobody wrote this upstream: it was made for a route
	// that names a Consul service.
	Implicit bool `yaml:"-"`
}

// Static is an instance that is named in the configuration.
type Static struct {
	Address string `yaml:"address" required:"true"`    // HOST:PORT
	Weight  int    `yaml:"weight" min:"0" max:"65535"` // its share; 0: takes no requests
}

// Timeout bounds the phases of a request to an instance. 0 is no bound.
type Timeout struct {
	Connect  time.Duration `yaml:"connect" max:"5m"`   // TCP and TLS handshake
	Response time.Duration `yaml:"response" max:"24h"` // one try, until its header
	Total    time.Duration `yaml:"total" max:"24h"`    // all tries, until the header
	Idle     time.Duration `yaml:"idle" max:"24h"`     // keep-alive of idle connections to instances
}

// Retry sends a request to another instance.
type Retry struct {
	Attempts int      `yaml:"attempts" min:"0" max:"10"`     // tries after the first; 0: none
	On       []string `yaml:"on"`                            // refused | reset | timeout | a status code from 500 to 599 or 429
	Methods  []string `yaml:"methods"`                       // replayable methods; a refused connection is retried for any
	Budget   Percent  `yaml:"budget"`                        // of recent requests
	MinRate  int      `yaml:"min_rate" min:"0" max:"100000"` // retries a second that the budget always allows
}

// Breaker is the hystrix command around the upstream.
type Breaker struct {
	Disabled    bool          `yaml:"disabled"`                           // never opens
	ErrorRate   Percent       `yaml:"error_rate" min:"1%"`                // of requests that opens it
	MinRequests int           `yaml:"min_requests" min:"1" max:"1000000"` // in hystrix's 10 s window
	OpenFor     time.Duration `yaml:"open_for" min:"1ms" max:"1h"`        // until one request may probe
	FailOn      []int         `yaml:"fail_on"`                            // statuses that count as failures
	Engine      string        `yaml:"engine" enum:"command|direct"`       // the literal hystrix command, or its circuit without the command's goroutines
}

// Outlier takes a failing instance out of its pool.
type Outlier struct {
	Disabled    bool          `yaml:"disabled"`                            // never ejects
	Consecutive int           `yaml:"consecutive" min:"0" max:"1000"`      // failures in a row, 5xx answers among them; 0: not counted
	Refused     int           `yaml:"refused" min:"0" max:"1000"`          // refused, reset or timed out in a row; 0: not counted
	FailureRate Percent       `yaml:"failure_rate"`                        // of requests in window; 0%: not counted
	MinRequests int           `yaml:"min_requests" min:"1" max:"1000000"`  // in window, for the rate to count
	Window      time.Duration `yaml:"window" min:"1s" max:"10m"`           // that the rate is taken over
	EjectFor    time.Duration `yaml:"eject_for" min:"100ms" max:"24h"`     // first time; grows with each
	MaxEjectFor time.Duration `yaml:"max_eject_for" min:"100ms" max:"24h"` // where it stops to grow
	MaxEjected  Percent       `yaml:"max_ejected"`                         // of the pool
	Panic       Percent       `yaml:"panic"`                               // below this share of the pool all serve again
}

// Concurrency limits how many requests may wait for an answer at once, and
// finds the limit itself: it grows while the service is about as fast as it is
// without a queue, and falls beyond, so that an overload is turned away here
// with 503 concurrency_limited before the service falls over.
type Concurrency struct {
	Adaptive bool          `yaml:"adaptive"`                  // use it
	Min      int           `yaml:"min" min:"1" max:"1000000"` // of the limit
	Max      int           `yaml:"max" min:"1" max:"1000000"` // of the limit
	Headroom Percent       `yaml:"headroom" min:"5%"`         // that the median latency may be above the one without a queue
	Probe    time.Duration `yaml:"probe" min:"1s" max:"1h"`   // how often half of the limit is let in for a moment to measure that
}

// MassDrop holds an update that would take most of a pool at once.
type MassDrop struct {
	Disabled bool          `yaml:"disabled"`       // believe every update at once
	Share    Percent       `yaml:"share" min:"1%"` // of the pool, of three instances at least
	Hold     time.Duration `yaml:"hold" max:"1h"`  // how long the update is held
}

// Route is match, then middleware, then upstream.
type Route struct {
	Name       string   `yaml:"name" required:"true"` // for logs, metrics and the status page
	Match      Match    `yaml:"match"`                // which requests
	Use        []string `yaml:"use"`                  // policies, in this order
	Middleware `yaml:",inline"`
	Upstream   RouteUpstream `yaml:"upstream"`                              // where requests go and as what
	Redirect   *Redirect     `yaml:"redirect"`                              // an answer instead of an upstream
	Shed       string        `yaml:"shed" enum:"low|normal|high"`           // whose requests an adaptive concurrency turns away first: those of low
	Priority   int           `yaml:"priority" min:"-1000000" max:"1000000"` // breaks ties between equally specific routes; higher first

	// File and Line are where the route stands, for provenance.
	File string `yaml:"-"`
	Line int    `yaml:"-"`
}

// Match is what a request must have. The longest path wins.
type Match struct {
	Host    string       `yaml:"host"`    // exact, "*.example.com", or empty for any
	Path    string       `yaml:"path"`    // "/a/**" prefix by segments, "/a" exact, "/a/{id}" template
	Methods []string     `yaml:"methods"` // empty: all; GET lets HEAD in
	Headers []MatchField `yaml:"headers"` // all of them
	Query   []MatchField `yaml:"query"`   // parameters, all of them
}

// MatchField asks for a header field or query parameter.
type MatchField struct {
	Name  string `yaml:"name" required:"true"` // of the field or parameter
	Value string `yaml:"value"`                // exact; empty: it only has to be there
	Regex string `yaml:"regex"`                // instead of value; RE2, of the whole text
}

// RouteUpstream says where a route's requests go and as what.
type RouteUpstream struct {
	Service string        `yaml:"service"`           // an upstream's name; one by defaults is made for a Consul service that has none
	Strip   string        `yaml:"strip"`             // path prefix to take off, by segments
	Prepend string        `yaml:"prepend"`           // path prefix to put on
	Host    string        `yaml:"host"`              // "preserve", "instance", or the value to send
	Timeout time.Duration `yaml:"timeout" max:"24h"` // total, for this route; 0: the upstream's
}

// Redirect answers instead of an upstream. {path} and {query} are replaced.
type Redirect struct {
	To   string `yaml:"to" required:"true"`              // absolute URL, or a path on the same host
	Code int    `yaml:"code" enum:"301|302|303|307|308"` // status
}

// AccessLog is one line per request.
type AccessLog struct {
	Disabled bool             `yaml:"disabled"`                                      // no access log
	Path     string           `yaml:"path"`                                          // file; empty: standard output
	Format   string           `yaml:"format" enum:"json|otel|clf|combined|template"` // json: our keys; otel: those of OpenTelemetry; clf and combined: as Apache writes them
	Template string           `yaml:"template"`                                      // of format template, as "$remote_host $request_method $request_uri $response_status"
	Sample   Percent          `yaml:"sample"`                                        // of unremarkable requests; 5xx, slow and limited ones always
	Slow     time.Duration    `yaml:"slow" max:"1h"`                                 // from when a request is slow; 0: never
	Filter   *AccessLogFilter `yaml:"filter"`                                        // which unremarkable requests are worth a line; absent: all
}

// AccessLogFilter keeps requests that meet one of its conditions. Beside them
// 5xx, slow and limited ones always have their line.
type AccessLogFilter struct {
	Status      []string      `yaml:"status"`                // "404", or a range as "400-499"
	MinDuration time.Duration `yaml:"min_duration" max:"1h"` // took at least this long; 0: does not count
	Retried     bool          `yaml:"retried"`               // more than one instance was tried
}

// Metrics are what the admin listener's /metrics shows.
type Metrics struct {
	NativeHistograms bool `yaml:"native_histograms"`                  // beside the classic ones, for scrapers that ask for protobuf
	MaxSeries        int  `yaml:"max_series" min:"100" max:"1000000"` // label sets of one metric; what comes after shares __overflow__
}

// Tracing sends spans of requests and of their tries to a collector, over HTTP
// (OTLP). The OTEL_* variables fill what is empty here.
type Tracing struct {
	Endpoint string        `yaml:"endpoint" restart:"yes"`             // URL of the collector, as http://otel:4318; /v1/traces is added where it has no path; empty: no tracing
	Headers  []HeaderField `yaml:"headers" restart:"yes"`              // that the collector gets, as credentials
	CAFile   string        `yaml:"ca_file" restart:"yes"`              // PEM bundle to trust instead of the system's, for an https endpoint
	Service  string        `yaml:"service" restart:"yes"`              // what spans call the gateway (service.name)
	Ratio    Percent       `yaml:"ratio"`                              // of the traces that begin here
	Parent   string        `yaml:"parent" enum:"trusted|always|never"` // whose traceparent is believed: that of trusted proxies, of everyone, of nobody
	Disabled bool          `yaml:"disabled" restart:"yes"`             // no tracing, whatever the variables say
}

// Enabled reports whether there is somewhere to send spans to.
func (t Tracing) Enabled() bool { return t.Endpoint != "" && !t.Disabled }

// Log is the gateway's own log, on standard error.
type Log struct {
	Level  string `yaml:"level" enum:"debug|info|warn|error"` // the least that is written
	Format string `yaml:"format" enum:"json|text"`            // of the lines
}

// Shutdown is the order of going down.
type Shutdown struct {
	Delay time.Duration `yaml:"delay" max:"10m"` // between unready and closing the listeners
	Grace time.Duration `yaml:"grace" max:"1h"`  // for requests in flight
}
