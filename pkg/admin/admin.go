// Package admin is the operators' side of the gateway, on a listener of its
// own: status as JSON and as a page, health, metrics, profiles and the few
// acts that an operator may trigger. It imports nothing of ours; it is handed
// functions that it reads from, and it owns the JSON of its answers.
//
// Reading needs the role viewer, acting the role operator. A caller on the
// loopback interface is a viewer without a token. Nothing is changed by GET,
// requests from other web sites are refused, and so are names of this host
// that a rebinding attack could have made.
package admin

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options are what the operators' side is made of. Functions must be safe for
// concurrent use and return at once.
type Options struct {
	Status  func() Status    // required; each has rows of its own, which this package fills in
	Ready   func() Readiness // nil: always ready
	Metrics http.Handler     // nil: no /metrics
	Events  *Events          // nil: none are kept
	Log     *slog.Logger     // nil: none

	Tokens   []Token  // who may do what
	Clients  Holder   // who may do what by a certificate; nil: nobody
	Insecure bool     // everyone who reaches the listener is a viewer
	Hosts    []string // names that browsers may use for this listener, beside addresses and localhost

	// OpenAPI is the description of the API, as YAML and as JSON; nil: none is
	// served.
	OpenAPI, OpenAPIJSON []byte

	// What viewers may ask. What is nil does not exist.
	Explain   func(ctx context.Context, q ExplainRequest) (Explanation, error)
	RateLimit func(ctx context.Context, route, key string) (RateLimit, error) // what key has left
	TopLimits func(n int) RateLimits                                          // with the n identities that are limited most
	Config    func(defaults, sources bool) ([]byte, error)                    // as YAML, with secrets masked
	Overrides func() []Override
	Consumers func() []Consumer // without their secrets
	LogLevel  func() LogLevel

	// What operators may ask and do. What is nil does not exist. An error is
	// told to who asks, see ErrInvalid and ErrUnknown.
	Reload         func(ctx context.Context, actor string) (Plan, error)
	Validate       func(ctx context.Context, text []byte) Verdict
	Plan           func(ctx context.Context, text []byte) Plan
	Drain, Undrain func(ctx context.Context, o Order) (Done, error) // the replica itself
	Instance       func(ctx context.Context, act InstanceAct, id string, o Order) (Done, error)
	Breaker        func(ctx context.Context, act BreakerAct, upstream string, o Order) (Done, error)
	Trace          func(ctx context.Context, q TraceRequest) (Traced, error)
	ResetRateLimit func(ctx context.Context, route, key string) error
	SetLogLevel    func(ctx context.Context, level string, o Order) (LogLevel, error)
}

// Bounds of what callers can make the listener hold.
const (
	maxBody      = 64 << 10
	maxHeader    = 32 << 10
	maxStreams   = 64
	answerWithin = 30 * time.Second
)

// Admin is the handler of the operators' listener. It is safe for concurrent
// use.
type Admin struct {
	o       Options
	tokens  atomic.Pointer[[]hashedToken]
	clients atomic.Pointer[Holder]
	mux     *http.ServeMux
	cross   *http.CrossOriginProtection
	page    *page
	stream  *stream
	tells   throttle // log lines about refused callers
	served  []Endpoint

	closeOnce sync.Once
	closed    chan struct{}
}

// New returns the handler. It starts nothing.
func New(o Options) *Admin {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Ready == nil {
		o.Ready = func() Readiness { return Readiness{Ready: true} }
	}
	if o.Clients == nil {
		o.Clients = func(*x509.Certificate) (string, Role) { return "", roleAnyone }
	}
	if o.Events == nil {
		o.Events = NewEvents(1)
	}
	a := &Admin{
		o:      o,
		mux:    http.NewServeMux(),
		cross:  http.NewCrossOriginProtection(),
		page:   newPage(),
		closed: make(chan struct{}),
	}
	a.SetTokens(o.Tokens)
	a.SetClients(o.Clients)
	a.stream = newStream(a.status, o.Events)
	a.routes()
	return a
}

// routes is the one list of what the listener answers.
func (a *Admin) routes() {
	handlers := map[string]map[string]http.Handler{} // by path, then method
	on := func(method, pattern string, role Role, h http.HandlerFunc) {
		if handlers[pattern] == nil {
			handlers[pattern] = map[string]http.Handler{}
		}
		handlers[pattern][method] = a.guard(role, h)
		a.served = append(a.served, Endpoint{method, pattern, role})
	}
	get := func(pattern string, role Role, h http.HandlerFunc) { on(http.MethodGet, pattern, role, h) }
	post := func(pattern string, role Role, h http.HandlerFunc) { on(http.MethodPost, pattern, role, h) }
	get("/livez", roleAnyone, a.livez)
	get("/readyz", roleAnyone, a.readyz)
	get("/assets/{name}", roleAnyone, a.page.asset)
	get("/favicon.ico", roleAnyone, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	get("/{$}", roleAnyone, a.index) // shows data to viewers only

	get("/api/v1/status", RoleViewer, a.getStatus)
	get("/api/v1/services", RoleViewer, a.getServices)
	get("/api/v1/services/{name...}", RoleViewer, a.getService)
	get("/api/v1/routes", RoleViewer, a.getRoutes)
	get("/api/v1/routes/{name...}", RoleViewer, a.getRoute)
	if a.o.Consumers != nil {
		get("/api/v1/consumers", RoleViewer, a.getConsumers)
	}
	get("/api/v1/instances", RoleViewer, a.getInstances)
	get("/api/v1/events", RoleViewer, a.getEvents)
	get("/api/v1/stream", RoleViewer, a.getStream)
	if a.o.Metrics != nil {
		get("/metrics", RoleViewer, a.o.Metrics.ServeHTTP)
	}

	get("/api/v1/breakers", RoleViewer, a.getBreakers)
	if a.o.Explain != nil {
		post("/api/v1/explain", RoleViewer, a.explain)
	}
	a.acts(post, get)
	if a.o.OpenAPI != nil {
		get("/openapi.yaml", RoleViewer, a.document("application/yaml", a.o.OpenAPI))
		get("/openapi.json", RoleViewer, a.document("application/json", a.o.OpenAPIJSON))
	}

	get("/debug/pprof/", RoleOperator, pprof.Index)
	get("/debug/pprof/cmdline", RoleOperator, pprof.Cmdline)
	get("/debug/pprof/profile", RoleOperator, pprof.Profile)
	get("/debug/pprof/trace", RoleOperator, pprof.Trace)
	get("/debug/pprof/symbol", RoleOperator, pprof.Symbol)
	post("/debug/pprof/symbol", RoleOperator, pprof.Symbol)

	for pattern, byMethod := range handlers {
		a.mux.Handle(pattern, methods(byMethod))
	}
	a.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, r, http.StatusNotFound, "not_found", "There is nothing at this path", "")
	})
}

// ServeHTTP implements http.Handler.
func (a *Admin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	secure(w.Header())
	// Bounded here and not by the server, because streams and profiles may
	// take longer. Not every ResponseWriter of a test has deadlines.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(a.patience(r)))
	a.mux.ServeHTTP(w, r)
}

// patience is how long an answer may take. Profiles run for as long as they
// are asked to, which their own handlers parse; five minutes cover that.
func (a *Admin) patience(r *http.Request) time.Duration {
	if strings.HasPrefix(r.URL.Path, "/debug/pprof/") {
		return 5 * time.Minute
	}
	return answerWithin
}

// Server returns a server for the handler with bounds that fit it. Its
// Shutdown ends the live streams.
func (a *Admin) Server() *http.Server {
	s := &http.Server{
		Handler:           a,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       answerWithin,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    maxHeader,
		// What net/http says of callers that misbehave is theirs, not ours.
		ErrorLog: slog.NewLogLogger(a.o.Log.Handler(), slog.LevelDebug),
	}
	s.RegisterOnShutdown(a.Close)
	return s
}

// Close ends the live streams, which would keep a server from shutting down.
func (a *Admin) Close() { a.closeOnce.Do(func() { close(a.closed) }) }

// Endpoint is one thing that the listener answers.
type Endpoint struct {
	Method string // GET, which HEAD is part of, or POST
	Path   string // as http.ServeMux has patterns
	Role   Role   // that it needs; empty: none
}

// Endpoints returns everything that the listener answers, in the order of the
// code.
func (a *Admin) Endpoints() []Endpoint { return slices.Clone(a.served) }

// methods serves a path by the request's method.
func methods(byMethod map[string]http.Handler) http.Handler {
	var allow []string
	for m := range byMethod {
		allow = append(allow, m)
		if m == http.MethodGet {
			allow = append(allow, http.MethodHead)
		}
	}
	slices.Sort(allow)
	accepted := strings.Join(allow, ", ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m := r.Method
		if m == http.MethodHead {
			m = http.MethodGet
		}
		if h := byMethod[m]; h != nil {
			h.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Allow", accepted)
		writeProblem(w, r, http.StatusMethodNotAllowed, "method_not_allowed", "This path does not accept the method", "It accepts "+accepted+".")
	})
}

// document serves a text that is known beforehand.
func (a *Admin) document(contentType string, text []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Content-Length", strconv.Itoa(len(text)))
		if r.Method != http.MethodHead {
			_, _ = w.Write(text) // the caller may have gone
		}
	}
}

func (a *Admin) livez(w http.ResponseWriter, _ *http.Request) { writeText(w, http.StatusOK, "ok\n") }

func (a *Admin) readyz(w http.ResponseWriter, r *http.Request) {
	ready := a.o.Ready()
	code, text := http.StatusOK, "ready\n"
	if !ready.Ready {
		code, text = http.StatusServiceUnavailable, "not ready\n"
	}
	// Which part is missing is nobody's secret; its detail is for viewers.
	detailed := a.viewer(r) && r.URL.Query().Has("verbose")
	if detailed || !ready.Ready {
		var b strings.Builder
		for _, c := range ready.Checks {
			mark := "[+]"
			if !c.OK {
				mark = "[-]"
			}
			b.WriteString(mark + printable(c.Name))
			if detailed && c.Detail != "" {
				b.WriteString(" " + printable(c.Detail))
			}
			b.WriteString("\n")
		}
		text = b.String() + text
	}
	writeText(w, code, text)
}
