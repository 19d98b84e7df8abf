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
	"log/slog"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync"
	"time"
)

// Options are what the operators' side is made of. Functions must be safe for
// concurrent use and return at once.
type Options struct {
	Status  func() Status    // required
	Ready   func() Readiness // nil: always ready
	Metrics http.Handler     // nil: no /metrics
	Events  *Events          // nil: none are kept
	Log     *slog.Logger     // nil: none

	Tokens   []Token  // who may do what
	Insecure bool     // everyone who reaches the listener is a viewer
	Hosts    []string // names that browsers may use for this listener, beside addresses and localhost

	// Acts of operators; a nil one does not exist. Each gets the name of who
	// asks, and its error is told to them.
	Reload  func(ctx context.Context, actor string) error
	Drain   func(ctx context.Context, actor string) error
	Undrain func(ctx context.Context, actor string) error
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
	tokens  []hashedToken
	mux     *http.ServeMux
	cross   *http.CrossOriginProtection
	page    *page
	stream  *stream
	refused throttle // log lines about refused callers

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
	if o.Events == nil {
		o.Events = NewEvents(1)
	}
	a := &Admin{
		o:      o,
		tokens: hashTokens(o.Tokens),
		mux:    http.NewServeMux(),
		cross:  http.NewCrossOriginProtection(),
		page:   newPage(),
		closed: make(chan struct{}),
	}
	a.stream = newStream(a.status, o.Events)
	a.routes()
	return a
}

// routes is the one list of what the listener answers.
func (a *Admin) routes() {
	get := func(pattern string, role Role, h http.HandlerFunc) {
		a.mux.Handle(pattern, a.guard(role, []string{http.MethodGet, http.MethodHead}, h))
	}
	post := func(pattern string, act func(context.Context, string) error, done string) {
		if act != nil {
			a.mux.Handle(pattern, a.guard(RoleOperator, []string{http.MethodPost}, a.act(strings.TrimPrefix(pattern, "/api/v1/"), act, done)))
		}
	}
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
	get("/api/v1/instances", RoleViewer, a.getInstances)
	get("/api/v1/events", RoleViewer, a.getEvents)
	get("/api/v1/stream", RoleViewer, a.getStream)
	if a.o.Metrics != nil {
		get("/metrics", RoleViewer, a.o.Metrics.ServeHTTP)
	}

	post("/api/v1/reload", a.o.Reload, "reloaded")
	post("/api/v1/drain", a.o.Drain, "draining")
	post("/api/v1/undrain", a.o.Undrain, "serving")

	get("/debug/pprof/", RoleOperator, pprof.Index)
	get("/debug/pprof/cmdline", RoleOperator, pprof.Cmdline)
	get("/debug/pprof/profile", RoleOperator, pprof.Profile)
	get("/debug/pprof/trace", RoleOperator, pprof.Trace)
	a.mux.Handle("/debug/pprof/symbol", a.guard(RoleOperator, []string{http.MethodGet, http.MethodHead, http.MethodPost}, pprof.Symbol))

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

// act is the handler of one act: it is logged and kept as an event with who
// did it, whatever came of it.
func (a *Admin) act(name string, do func(context.Context, string) error, done string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		actor := actorOf(r)
		if err := do(r.Context(), actor); err != nil {
			a.o.Log.Warn("operator act refused", "act", name, "actor", actor, "err", err)
			a.o.Events.Append(Event{Kind: "act", Severity: Warn, Actor: actor, Message: name + " refused: " + err.Error()})
			writeProblem(w, r, http.StatusUnprocessableEntity, "refused", "The gateway refused to "+name, err.Error())
			return
		}
		a.o.Log.Info("operator act", "act", name, "actor", actor)
		a.o.Events.Append(Event{Kind: "act", Severity: Info, Actor: actor, Message: name})
		writeJSON(w, r, http.StatusOK, struct {
			Result string `json:"result"`
			Actor  string `json:"actor"`
			Config Config `json:"config"`
		}{done, actor, a.status().Config})
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
