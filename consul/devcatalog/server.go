// Package devcatalog is an in-process server of the part of Consul's HTTP API
// that Proconsul and the services registered by it use: the agent's services
// and checks, the catalog, health, blocking queries and the key/value store,
// held in memory and lost at the end of the process. It is for `proconsul demo`
// and for tests; it is no cluster, keeps no ACLs, and never replaces a Consul.
//
// It answers as Consul 1.15.3 was seen to answer; one contract suite runs
// against both. The differences that remain are listed in differences.go.
package devcatalog

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options say how a Server behaves. The zero value is a usable one.
type Options struct {
	Datacenter string       // the only datacenter, default "dc1"
	NodeName   string       // of the agent's own node, default "devcatalog"
	Address    string       // of the agent's own node, default "127.0.0.1"
	Log        *slog.Logger // default: nothing is logged

	// StartIndex is where the index that blocking queries compare begins,
	// default the time in unix seconds: a server that is started anew in
	// the same place then never goes back, unless it is asked to.
	StartIndex uint64
	// Streaming answers health queries that block as Consul's streaming
	// backend does, which is Consul's default: without jitter on the wait,
	// and with a leader that is never known.
	Streaming bool

	// CheckUpdateInterval is about how long a check's new output waits to
	// be seen in the catalog while its status stays the same, default 5m.
	CheckUpdateInterval time.Duration
	// MinCheckInterval is the shortest interval of HTTP and TCP checks,
	// default 1s.
	MinCheckInterval time.Duration
	// MinDeregisterCritical is the shortest DeregisterCriticalServiceAfter,
	// default 1m.
	MinDeregisterCritical time.Duration
	// ReapInterval is how often services that are critical for too long are
	// looked for, default 30s.
	ReapInterval time.Duration

	Faults Faults // at the start; SetFaults changes them
	Limits Limits
}

// Limits bound what clients can make a Server hold. Zero means the default.
type Limits struct {
	Services        int   // instances, default 4096
	Checks          int   // default 16384
	Nodes           int   // default 1024
	Keys            int   // default 8192
	BlockingQueries int   // at the same time, default 4096
	Bytes           int64 // of registrations and values together, default 64 MiB
}

// maxBody is Consul's own bound on the body of a request and on a value.
const maxBody = 512 << 10

// maxName bounds every id and name, so that what is remembered about those
// that left is bounded too.
const maxName = 1024

// Server is the HTTP handler of the API. New makes one, Run runs its checks.
// Its methods are safe for concurrent use.
type Server struct {
	opts   Options
	log    *slog.Logger
	mux    *http.ServeMux
	nodeID string

	faults  atomic.Pointer[Faults]
	running atomic.Bool
	ended   chan struct{} // closed when Run returns
	kick    chan struct{} // tells Run that something is due sooner

	mu      sync.Mutex
	indexes indexes
	catalog catalog
	agent   agent
	kv      store
	bytes   int64  // held by registrations and values
	blocked int    // blocking queries under way
	epoch   uint64 // raised to end every blocking query
}

// New makes a Server that knows its own node and nothing else. It starts
// nothing: the API answers at once, and checks run while Run does.
func New(o Options) *Server {
	o.Datacenter = cmp.Or(o.Datacenter, "dc1")
	o.NodeName = cmp.Or(o.NodeName, "devcatalog")
	o.Address = cmp.Or(o.Address, "127.0.0.1")
	o.StartIndex = cmp.Or(o.StartIndex, uint64(time.Now().Unix()))
	o.CheckUpdateInterval = cmp.Or(o.CheckUpdateInterval, 5*time.Minute)
	o.MinCheckInterval = cmp.Or(o.MinCheckInterval, time.Second)
	o.MinDeregisterCritical = cmp.Or(o.MinDeregisterCritical, time.Minute)
	o.ReapInterval = cmp.Or(o.ReapInterval, 30*time.Second)
	o.Limits.Services = cmp.Or(o.Limits.Services, 4096)
	o.Limits.Checks = cmp.Or(o.Limits.Checks, 16384)
	o.Limits.Nodes = cmp.Or(o.Limits.Nodes, 1024)
	o.Limits.Keys = cmp.Or(o.Limits.Keys, 8192)
	o.Limits.BlockingQueries = cmp.Or(o.Limits.BlockingQueries, 4096)
	o.Limits.Bytes = cmp.Or(o.Limits.Bytes, 64<<20)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		opts:   o,
		log:    o.Log.With("component", "devcatalog"),
		mux:    http.NewServeMux(),
		nodeID: nodeID(o.Datacenter, o.NodeName),
		ended:  make(chan struct{}),
		kick:   make(chan struct{}, 1),
	}
	s.faults.Store(&o.Faults)
	s.indexes = newIndexes(o.StartIndex, 2*(o.Limits.Services+o.Limits.Nodes+o.Limits.Keys))
	s.reset()
	s.routes()
	return s
}

// reset makes the state that of an agent which has just started: its own node,
// alive, and the service consul. It needs s.mu, or a Server nobody knows yet.
func (s *Server) reset() {
	s.catalog = newCatalog()
	s.agent = newAgent()
	s.kv = store{}
	s.bytes = 0
	s.indexes.next()
	s.putSelf()
}

// putSelf puts the agent's own node into the catalog.
func (s *Server) putSelf() {
	s.putNode(&nodeRow{
		ID: s.nodeID, Node: s.opts.NodeName, Address: s.opts.Address, Datacenter: s.opts.Datacenter,
		TaggedAddresses: map[string]string{"lan": s.opts.Address, "lan_ipv4": s.opts.Address, "wan": s.opts.Address, "wan_ipv4": s.opts.Address},
		Meta:            map[string]string{"consul-network-segment": ""},
	})
	s.putService(s.opts.NodeName, &serviceRow{
		ID: "consul", Service: "consul", Tags: []string{}, Port: 8300, Weights: weights{Passing: 1, Warning: 1},
		Meta: map[string]string{"version": version},
	})
	s.putCheck(&checkRow{
		Node: s.opts.NodeName, CheckID: "serfHealth", Name: "Serf Health Status", Status: passing,
		Output: "Agent alive and reachable", ServiceTags: []string{},
	})
}

// nodeID is a UUID that stays the same for a node's name.
func nodeID(datacenter, node string) string {
	h := sha256.Sum256([]byte(datacenter + "\x00" + node))
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

// routes fills the table of endpoints. The patterns are those of Consul, which
// uses the same mux: /v1/kv//x redirects and /v1/catalog/services/ is unknown
// here as there.
func (s *Server) routes() {
	type methods map[string]func(http.ResponseWriter, *http.Request) error
	get := func(f func(http.ResponseWriter, *http.Request) error) methods { return methods{http.MethodGet: f} }
	put := func(f func(http.ResponseWriter, *http.Request) error) methods { return methods{http.MethodPut: f} }

	for pattern, m := range map[string]methods{
		"/v1/agent/self":                 get(s.agentSelf),
		"/v1/agent/members":              get(s.agentMembers),
		"/v1/agent/services":             get(s.agentServices),
		"/v1/agent/checks":               get(s.agentChecks),
		"/v1/agent/maintenance":          put(s.nodeMaintenance),
		"/v1/agent/service/":             get(s.agentService),
		"/v1/agent/service/register":     put(s.registerService),
		"/v1/agent/service/deregister/":  put(s.deregisterService),
		"/v1/agent/service/maintenance/": put(s.serviceMaintenance),
		"/v1/agent/health/service/id/":   get(s.agentHealthByID),
		"/v1/agent/health/service/name/": get(s.agentHealthByName),
		"/v1/agent/check/register":       put(s.registerCheck),
		"/v1/agent/check/deregister/":    put(s.deregisterCheck),
		"/v1/agent/check/pass/":          put(s.reportCheck("/v1/agent/check/pass/", passing)),
		"/v1/agent/check/warn/":          put(s.reportCheck("/v1/agent/check/warn/", warning)),
		"/v1/agent/check/fail/":          put(s.reportCheck("/v1/agent/check/fail/", critical)),
		"/v1/agent/check/update/":        put(s.updateCheck),

		"/v1/catalog/datacenters": get(s.catalogDatacenters),
		"/v1/catalog/nodes":       get(s.catalogNodes),
		"/v1/catalog/services":    get(s.catalogServices),
		"/v1/catalog/service/":    get(s.catalogService),
		"/v1/catalog/node/":       get(s.catalogNode),
		"/v1/catalog/register":    put(s.catalogRegister),
		"/v1/catalog/deregister":  put(s.catalogDeregister),

		"/v1/health/service/": get(s.healthService),
		"/v1/health/connect/": get(s.healthConnect),
		"/v1/health/checks/":  get(s.healthChecks),
		"/v1/health/node/":    get(s.healthNode),
		"/v1/health/state/":   get(s.healthState),

		"/v1/status/leader": get(s.statusLeader),
		"/v1/status/peers":  get(s.statusPeers),

		"/v1/kv/": {http.MethodGet: s.kvGet, http.MethodPut: s.kvPut, http.MethodDelete: s.kvDelete},
	} {
		allow := http.MethodOptions
		for _, name := range []string{http.MethodGet, http.MethodPut, http.MethodDelete} {
			if m[name] != nil {
				allow += "," + name
			}
		}
		s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Vary", "Accept-Encoding")
			w.Header().Set("X-Consul-Default-Acl-Policy", "allow")
			f := m[r.Method]
			switch {
			case f != nil:
				r.Body = http.MaxBytesReader(w, r.Body, maxBody)
				if err := f(w, r); err != nil {
					s.writeError(w, r, err)
				}
			case r.Method == http.MethodOptions:
				w.Header().Set("Allow", allow)
			default:
				w.Header().Set("Allow", allow)
				writeText(w, http.StatusMethodNotAllowed, fmt.Sprintf("method %s not allowed", r.Method))
			}
		})
	}
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			writeText(w, http.StatusOK, "devcatalog: the Consul HTTP API subset of `proconsul demo`; there is no UI.")
			return
		}
		writeText(w, http.StatusNotFound, "Invalid URL path: not a recognized HTTP API endpoint\n")
	})
}

// ServeHTTP answers one request of Consul's HTTP API.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.injectFaults(w, r) {
		return
	}
	s.mux.ServeHTTP(w, r)
}

// errRunTwice is the answer to a second Run.
var errRunTwice = errors.New("devcatalog: a server runs only once")

// Run runs the checks until the context ends: HTTP and TCP checks, the expiry
// of TTLs, and the removal of services that were critical for too long. When it
// returns, what it started has ended, and no query blocks any more, so that an
// http.Server around it can shut down. It returns nil, or an error where it was
// called before.
func (s *Server) Run(ctx context.Context) error {
	if !s.running.CompareAndSwap(false, true) {
		return errRunTwice
	}
	defer close(s.ended)
	s.runChecks(ctx)
	return nil
}

// trim is what follows the pattern's prefix in the request's decoded path.
func trim(r *http.Request, prefix string) string { return strings.TrimPrefix(r.URL.Path, prefix) }
