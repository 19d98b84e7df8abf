package config

import (
	"reflect"
	"time"
)

// Default returns the settings that hold where nobody wrote anything: one
// listener on :8080, the admin listener on 127.0.0.1:8081 and the local
// Consul agent. Every call returns a tree of its own.
//
// Lists are not merged with their defaults: a written list replaces the
// default one, and its elements begin as DefaultListen, DefaultUpstream and
// their like, so that a key that an element leaves out has its default and a
// written 0 stays 0.
func Default() *Config {
	listen := DefaultListen()
	listen.Name = listen.Addr
	return &Config{
		Version: 1,
		Default: "allow",
		Listen:  []Listen{listen},
		Admin:   Admin{Addr: "127.0.0.1:8081"},
		Consul: Consul{
			Addr:   "127.0.0.1:8500",
			Scheme: "http",
			// Below the 60 s after which many balancers and NATs drop a silent
			// connection.
			Wait: 55 * time.Second,
		},
		ACME: ACME{Directory: "https://acme-v02.api.letsencrypt.org/directory", Challenges: []string{"tls-alpn-01", "http-01"},
			Storage: "consul", KVPrefix: "proconsul/acme/"},
		Redis:        Redis{Mode: "single", Timeout: 50 * time.Millisecond},
		Registration: Registration{Name: "proconsul"},
		AccessLog:    AccessLog{Format: "json", Sample: 100, Slow: time.Second},
		Metrics:      Metrics{MaxSeries: 10_000},
		Tracing:      Tracing{Service: "proconsul", Ratio: 1, Parent: "trusted"},
		Log:          Log{Level: "info", Format: "json"},
		Shutdown:     Shutdown{Delay: 5 * time.Second, Grace: 30 * time.Second},
	}
}

// DefaultListen returns what an element of listen has before its keys are read.
func DefaultListen() Listen {
	return Listen{
		Addr:         ":8080",
		Engine:       "fast",
		EncodedSlash: "reject",
		Default:      "allow",
		Limits: ListenLimits{
			MaxHeaderBytes: 64 << 10,
			MaxHeaders:     100,
			MaxConnections: 20_000,
			MaxInFlight:    10_000,
			MaxQueue:       1_000,
			QueueTimeout:   time.Second,
		},
		Timeouts: ListenTimeouts{
			ReadHeader: 10 * time.Second,
			// Above the 60 s of common balancers: whoever opened a connection
			// should be the one that closes it, or a request meets the close.
			Idle:      75 * time.Second,
			BodyRead:  time.Minute,
			BodyWrite: time.Minute,
		},
	}
}

// DefaultUpstream returns what an element of upstreams has before its keys are
// read, and what a Consul service has that only routes name.
func DefaultUpstream() Upstream {
	return Upstream{
		Scheme: "http",
		Engine: "fast",
		// Honours Consul's weights; with equal ones it is plain round robin.
		Balance: "weighted",
		Timeout: Timeout{
			Connect:  2 * time.Second,
			Response: 30 * time.Second,
			// Below the 60 s that most services keep an idle connection, so
			// that we close it first.
			Idle: 55 * time.Second,
		},
		Retry: Retry{
			Attempts: 2,
			// An instance that takes connections and answers nothing is as dead
			// as one that refuses them. Methods below says who may be sent twice.
			On:      []string{"refused", "reset", "timeout"},
			Methods: []string{"GET", "HEAD", "OPTIONS", "PUT", "DELETE"},
			Budget:  20,
			MinRate: 10,
		},
		Breaker: Breaker{ErrorRate: 50, MinRequests: 20, OpenFor: 5 * time.Second, FailOn: []int{500, 502, 503, 504}, Engine: "command"},
		// Five failures in a row eject an instance before a breaker of twenty
		// requests could open for the whole upstream.
		Outlier: Outlier{
			Consecutive: 5,
			Refused:     3, // the instance is gone or cut off: no reason to wait for five
			FailureRate: 50,
			MinRequests: 20,
			Window:      10 * time.Second,
			EjectFor:    10 * time.Second,
			MaxEjectFor: 5 * time.Minute,
			MaxEjected:  50,
			Panic:       50,
		},
		MaxInFlight: 1024,
		Concurrency: Concurrency{Min: 5, Max: 1000, Headroom: 50, Probe: 30 * time.Second},
		MassDrop:    MassDrop{Share: 50, Hold: 30 * time.Second},
		Drain:       30 * time.Second,
	}
}

// DefaultRateLimit returns what a rate_limit section has before its keys are
// read.
func DefaultRateLimit() RateLimit {
	// Leased is exact where limits are small, and bounded where they are not.
	return RateLimit{
		By: "client_ip", Missing: "client_ip", IPv4Prefix: 32,
		IPv6Prefix: 64, // a single customer owns at least all addresses behind it
		Algorithm:  "sliding_window", Precision: "leased", Over: "reject", MaxDelay: time.Second, MaxQueue: 100,
		Cost: "1", OnStoreError: "local", Headers: "all",
	}
}

// DefaultSecureHeaders returns what a secure_headers section has before its
// keys are read.
func DefaultSecureHeaders() SecureHeaders {
	return SecureHeaders{
		HSTS:                      HSTS{MaxAge: 365 * 24 * time.Hour},
		Nosniff:                   true,
		FrameOptions:              "deny",
		ReferrerPolicy:            "strict-origin-when-cross-origin",
		CrossOriginOpenerPolicy:   "off",
		CrossOriginResourcePolicy: "off",
		CrossOriginEmbedderPolicy: "off",
		Remove:                    []string{"Server", "X-Powered-By", "X-Aspnet-Version", "X-Aspnetmvc-Version", "X-Runtime", "X-Backend-Server"},
		HideVia:                   true,
		Cookies:                   Cookies{Secure: true, SameSite: "off"},
	}
}

// DefaultCompress returns what a compress section has before its keys are read.
func DefaultCompress() Compress {
	return Compress{
		// With equal weights, which is what browsers send, the cheapest of the
		// good ones first.
		Encodings: []string{"zstd", "br", "gzip"},
		MinSize:   1 << 10, // below, the gain is less than a packet
		Types: []string{"text/*", "application/json", "application/*+json", "application/javascript", "application/xml", "application/*+xml",
			"application/x-ndjson", "application/yaml", "application/wasm", "application/manifest+json", "image/svg+xml", "font/ttf", "font/otf"},
		Level: "default",
	}
}

// DefaultValidate returns what a validate section has before its keys are read.
func DefaultValidate() Validate {
	return Validate{MaxBody: 1 << 20, MaxDepth: 32, MaxValues: 100_000, DuplicateKeys: "reject"}
}

// DefaultJWT returns what a jwt method has before its keys are read.
func DefaultJWT() JWTMethod {
	return JWTMethod{Refresh: 10 * time.Minute, Cooldown: 30 * time.Second, TokenRules: defaultTokenRules()}
}

func defaultTokenRules() TokenRules {
	return TokenRules{ClockSkew: 30 * time.Second, MaxTokenBytes: 8 << 10, ConsumerClaim: "sub"}
}

// DefaultIntrospection returns what an introspection method has before its keys
// are read.
func DefaultIntrospection() IntrospectionMethod {
	return IntrospectionMethod{ClientAuth: "basic", Timeout: 2 * time.Second, CacheTTL: 30 * time.Second, NegativeTTL: 10 * time.Second, TokenRules: defaultTokenRules()}
}

// DefaultForwardAuth returns what a forward_auth method has before its keys are
// read.
func DefaultForwardAuth() ForwardAuthMethod {
	return ForwardAuthMethod{Path: "/", Timeout: 2 * time.Second, RequestHeaders: []string{"Authorization", "Cookie"}, OnError: "closed"}
}

// DefaultAPIKey returns what an api_key method has before its keys are read,
// and what the method api-key is that nobody wrote.
func DefaultAPIKey() APIKeyMethod { return APIKeyMethod{Header: "X-Api-Key"} }

// elementDefault returns a new value of type t as it is before its keys are
// read. Only types that occur in lists or behind pointers have one that is not
// the zero value; the others get theirs from Default.
func elementDefault(t reflect.Type) reflect.Value {
	var v any
	switch t {
	case reflect.TypeFor[Listen]():
		l := DefaultListen()
		l.Addr = "" // required: the default is that of no list at all
		v = l
	case reflect.TypeFor[Upstream]():
		v = DefaultUpstream()
	case reflect.TypeFor[RateLimit]():
		v = DefaultRateLimit()
	case reflect.TypeFor[CORS]():
		v = CORS{MaxAge: 10 * time.Minute}
	case reflect.TypeFor[Compress]():
		v = DefaultCompress()
	case reflect.TypeFor[Decompress]():
		v = Decompress{Encodings: []string{"zstd", "br", "gzip"}, Max: 10 << 20, Ratio: 100}
	case reflect.TypeFor[Validate]():
		v = DefaultValidate()
	case reflect.TypeFor[Param]():
		v = Param{In: "query", Type: "string", MaxLength: 1024}
	case reflect.TypeFor[SecureHeaders]():
		v = DefaultSecureHeaders()
	case reflect.TypeFor[Auth]():
		v = Auth{ForwardAuthorization: "remove"}
	case reflect.TypeFor[JWTMethod]():
		v = DefaultJWT()
	case reflect.TypeFor[IntrospectionMethod]():
		v = DefaultIntrospection()
	case reflect.TypeFor[ForwardAuthMethod]():
		v = DefaultForwardAuth()
	case reflect.TypeFor[APIKeyMethod]():
		v = DefaultAPIKey()
	case reflect.TypeFor[MTLSMethod]():
		v = MTLSMethod{ConsumerFrom: "none"}
	case reflect.TypeFor[ListenTLS]():
		v = ListenTLS{MinVersion: "1.2", ClientAuth: "none"}
	case reflect.TypeFor[Static]():
		v = Static{Weight: 1}
	case reflect.TypeFor[AdminTLS]():
		v = AdminTLS{MinVersion: "1.2"}
	case reflect.TypeFor[AdminClient]():
		v = AdminClient{Role: "viewer"}
	case reflect.TypeFor[AdminToken]():
		v = AdminToken{Role: "viewer"}
	case reflect.TypeFor[Route]():
		v = Route{Shed: "normal", Upstream: RouteUpstream{Host: "preserve"}}
	case reflect.TypeFor[Redirect]():
		v = Redirect{Code: 307}
	default:
		return reflect.Zero(t)
	}
	return reflect.ValueOf(v)
}
