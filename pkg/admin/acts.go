package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Errors by which a function of Options says whose fault it is. Others are
// answered as a refusal by the gateway.
var (
	ErrInvalid = errors.New("not valid")            // 400: the request makes no sense
	ErrUnknown = errors.New("nothing by that name") // 404
)

// Invalid returns an error that is ErrInvalid and says only its own text.
func Invalid(format string, args ...any) error {
	return &marked{fmt.Sprintf(format, args...), ErrInvalid}
}

// Unknown returns an error that is ErrUnknown and says only its own text.
func Unknown(format string, args ...any) error {
	return &marked{fmt.Sprintf(format, args...), ErrUnknown}
}

// marked is an error of one of the kinds above.
type marked struct {
	text string
	kind error
}

func (m *marked) Error() string { return m.text }
func (m *marked) Unwrap() error { return m.kind }

// Bounds of how long an override may hold. What is meant for longer belongs
// into the configuration.
const (
	DefaultOverride = time.Hour
	MaxOverride     = 7 * 24 * time.Hour
)

// Order is what an operator asks for.
type Order struct {
	Actor    string
	For      time.Duration // how long it holds, DefaultOverride to MaxOverride
	Upstream string        // of an instance's acts: there only; empty: wherever it is
	Reason   string        // for the log and the events; may be empty
}

// sentOrder is an Order as it is sent.
type sentOrder struct {
	For      string `json:"for"`
	Upstream string `json:"upstream"`
	Reason   string `json:"reason"`
}

// InstanceAct is what an operator does to an instance.
type InstanceAct string

// The acts on instances. Restore and undrain undo.
const (
	Drain   InstanceAct = "drain"   // no new requests; those in flight finish
	Undrain InstanceAct = "undrain" // requests again
	Eject   InstanceAct = "eject"   // out of the pool, and back after a probe
	Restore InstanceAct = "restore" // back at once, whatever ejected it
)

// BreakerAct is what an operator does to a breaker.
type BreakerAct string

// The acts on breakers.
const (
	BreakerOpen  BreakerAct = "open"  // refuse every request
	BreakerClose BreakerAct = "close" // let every request pass, whatever happens to it
	BreakerReset BreakerAct = "reset" // by its numbers again, from zero
)

// Done is what an act came to.
type Done struct {
	Result    string    `json:"result"`              // a word: drained, undrained, ejected, restored, open, closed, reset, draining, serving
	Changed   bool      `json:"changed"`             // false: it was so before
	Upstreams []string  `json:"upstreams,omitempty"` // where it happened
	Until     time.Time `json:"until,omitzero"`      // when it ends by itself
	Actor     string    `json:"actor"`               // filled in by this package
}

// Override is something that an operator holds against what the gateway would
// do. It ends by itself.
type Override struct {
	Kind     string    `json:"kind"` // drain, eject, breaker, replica or log_level
	Target   string    `json:"target"`
	Upstream string    `json:"upstream,omitempty"`
	State    string    `json:"state"` // drained, ejected, open, closed, draining, or a level
	Until    time.Time `json:"until"`
	Actor    string    `json:"actor,omitempty"`
	Reason   string    `json:"reason,omitempty"`
}

// Fault is one thing that is wrong with a configuration.
type Fault struct {
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Col      int    `json:"col,omitempty"`
	Path     string `json:"path,omitempty"` // of the key
	Code     string `json:"code"`
	Severity string `json:"severity"` // error or warning
	Message  string `json:"message"`
	Hint     string `json:"hint,omitempty"`
}

// Verdict is whether a configuration could be served.
type Verdict struct {
	Valid  bool    `json:"valid"`
	Hash   string  `json:"hash,omitempty"` // of a valid one
	Faults []Fault `json:"faults"`
}

// Plan is what taking over a configuration would change, or has changed.
type Plan struct {
	Verdict
	Running      string   `json:"running"` // hash of what was served when it was made
	Changes      []Change `json:"changes"`
	NeedsRestart []string `json:"needs_restart,omitempty"` // key paths that a reload leaves as they are
}

// Change is a part of the configuration that differs.
type Change struct {
	Action string        `json:"action"` // added, removed or changed
	Kind   string        `json:"kind"`   // route, upstream, policy or setting
	Name   string        `json:"name"`   // of the route, upstream or policy; the section's key
	Fields []FieldChange `json:"fields,omitempty"`
}

// FieldChange is a key that differs. Secrets are masked on both sides.
type FieldChange struct {
	Path string `json:"path"`          // within what Name says
	Was  string `json:"was,omitempty"` // empty: not written
	Is   string `json:"is,omitempty"`
}

// LogLevel is the least severe line that the gateway logs.
type LogLevel struct {
	Level string    `json:"level"`          // debug, info, warn or error
	Until time.Time `json:"until,omitzero"` // when it is the configuration's again
}

// RateLimit is what an identity has left of a route's limits.
type RateLimit struct {
	Route    string      `json:"route"`
	By       string      `json:"by"`       // what identities are: client_ip, route, api_key or header(NAME)
	Decision string      `json:"decision"` // as of a request that came now: allowed, limited, local, fail_open or fail_closed
	Limits   []LimitLeft `json:"limits"`
}

// LimitLeft is what is left of one limit.
type LimitLeft struct {
	Limit     string `json:"limit"` // 100/1m
	Count     int    `json:"count"`
	Remaining int64  `json:"remaining"`
	Reset     Millis `json:"reset_ms"` // until more is left; 0: nothing is used
}

// acts registers what operators may do. An act that Options has no function
// for does not exist.
func (a *Admin) acts(post func(pattern string, role Role, h http.HandlerFunc), get func(pattern string, role Role, h http.HandlerFunc)) {
	o := &a.o
	if o.Reload != nil {
		post("/api/v1/reload", RoleOperator, a.reload)
	}
	if o.Drain != nil {
		post("/api/v1/drain", RoleOperator, a.ordered("drain", o.Drain))
	}
	if o.Undrain != nil {
		post("/api/v1/undrain", RoleOperator, a.ordered("undrain", o.Undrain))
	}
	if o.Instance != nil {
		for _, act := range []InstanceAct{Drain, Undrain, Eject, Restore} {
			post("/api/v1/instances/{id}/"+string(act), RoleOperator, a.onTarget(string(act)+" instance", "id",
				func(ctx context.Context, id string, ord Order) (Done, error) { return o.Instance(ctx, act, id, ord) }))
		}
	}
	if o.Breaker != nil {
		for _, act := range []BreakerAct{BreakerOpen, BreakerClose, BreakerReset} {
			post("/api/v1/breakers/{upstream}/"+string(act), RoleOperator, a.onTarget(string(act)+" breaker", "upstream",
				func(ctx context.Context, name string, ord Order) (Done, error) { return o.Breaker(ctx, act, name, ord) }))
		}
	}
	if o.Overrides != nil {
		get("/api/v1/overrides", RoleViewer, func(w http.ResponseWriter, r *http.Request) {
			writeJSON(w, r, http.StatusOK, struct {
				Overrides []Override `json:"overrides"`
			}{orEmpty(o.Overrides())})
		})
	}
	if o.Validate != nil {
		post("/api/v1/config/validate", RoleOperator, a.validate)
	}
	if o.Trace != nil {
		post("/api/v1/traces", RoleOperator, a.trace)
	}
	if o.Plan != nil {
		post("/api/v1/config/plan", RoleOperator, a.plan)
	}
	if o.Config != nil {
		get("/api/v1/config", RoleViewer, a.getConfig)
	}
	if o.RateLimit != nil {
		get("/api/v1/ratelimits", RoleViewer, a.getRateLimit)
	}
	if o.TopLimits != nil {
		get("/api/v1/ratelimits/top", RoleViewer, a.getTopLimits)
	}
	if o.ResetRateLimit != nil {
		post("/api/v1/ratelimits/reset", RoleOperator, a.resetRateLimit)
	}
	if o.LogLevel != nil {
		get("/api/v1/log-level", RoleViewer, func(w http.ResponseWriter, r *http.Request) { writeJSON(w, r, http.StatusOK, o.LogLevel()) })
	}
	if o.SetLogLevel != nil {
		post("/api/v1/log-level", RoleOperator, a.setLogLevel)
	}
}

// maxConfig bounds a configuration that is sent to be looked at.
const maxConfig = 16 << 20

// bodyLimit is how large a request's body may be.
func bodyLimit(r *http.Request) int64 {
	if strings.HasPrefix(r.URL.Path, "/api/v1/config/") {
		return maxConfig
	}
	return maxBody
}

// ordered is the handler of an act on the replica itself.
func (a *Admin) ordered(name string, do func(context.Context, Order) (Done, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ord, err := readOrder(r)
		if err != nil {
			a.refused(w, r, name, err)
			return
		}
		done, err := do(r.Context(), ord)
		a.finish(w, r, name, ord, done, err)
	}
}

// onTarget is the handler of an act on what a part of the path names. The part
// is one segment: a slash in an instance's id is sent as %2F.
func (a *Admin) onTarget(name, part string, do func(context.Context, string, Order) (Done, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		target := r.PathValue(part)
		name := name + " " + target
		ord, err := readOrder(r)
		if err != nil {
			a.refused(w, r, name, err)
			return
		}
		done, err := do(r.Context(), target, ord)
		a.finish(w, r, name, ord, done, err)
	}
}

// finish answers an act, and keeps it with who did it.
func (a *Admin) finish(w http.ResponseWriter, r *http.Request, name string, ord Order, done Done, err error) {
	if err != nil {
		a.refused(w, r, name, err)
		return
	}
	text := name
	if !done.Until.IsZero() {
		text += " for " + ord.For.String()
	}
	if ord.Reason != "" {
		text += ": " + ord.Reason
	}
	if !done.Changed {
		text += " (nothing to change)"
	}
	a.audit(r, text)
	done.Actor = ord.Actor
	writeJSON(w, r, http.StatusOK, done)
}

// audit keeps an act that was done: a line in the log and an event, both with
// who asked for it.
func (a *Admin) audit(r *http.Request, what string) {
	actor := actorOf(r)
	a.o.Log.Info("operator act", "act", what, "actor", actor, "remote", r.RemoteAddr)
	a.o.Events.Append(Event{Kind: "act", Severity: Info, Actor: actor, Message: what})
}

// refused answers an act that was not done, and keeps it likewise.
func (a *Admin) refused(w http.ResponseWriter, r *http.Request, what string, err error) {
	actor := actorOf(r)
	a.o.Log.Warn("operator act refused", "act", what, "actor", actor, "remote", r.RemoteAddr, "err", err)
	a.o.Events.Append(Event{Kind: "act", Severity: Warn, Actor: actor, Message: what + " refused: " + err.Error()})
	a.fail(w, r, what, err)
}

// fail answers with an error of one of Options' functions.
func (a *Admin) fail(w http.ResponseWriter, r *http.Request, what string, err error) {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		writeProblem(w, r, http.StatusRequestEntityTooLarge, "body_too_large", "The request is too large", fmt.Sprintf("The limit is %d bytes.", tooLarge.Limit))
	case errors.Is(err, ErrInvalid):
		writeProblem(w, r, http.StatusBadRequest, "bad_request", "The request is not valid", err.Error())
	case errors.Is(err, ErrUnknown):
		writeProblem(w, r, http.StatusNotFound, "unknown", "There is nothing by that name", err.Error())
	default:
		writeProblem(w, r, http.StatusUnprocessableEntity, "refused", "The gateway refused to "+what, err.Error())
	}
}

// readJSON reads a body into v. An empty one leaves v as it is; what v has no
// field for is an error, so that a misspelt one does not go unnoticed.
func readJSON(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	var tooLarge *http.MaxBytesError
	switch {
	case err == io.EOF:
		return nil
	case errors.As(err, &tooLarge):
		return err
	case err != nil:
		return Invalid("the body: %v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return Invalid("the body holds more than one JSON value")
	}
	return nil
}

func readOrder(r *http.Request) (Order, error) {
	var sent sentOrder
	out := Order{Actor: actorOf(r), For: DefaultOverride}
	if err := readJSON(r, &sent); err != nil {
		return out, err
	}
	if err := out.hold(sent.For); err != nil {
		return out, err
	}
	out.Upstream, out.Reason = sent.Upstream, clip(printable(sent.Reason), 200)
	return out, nil
}

// hold sets how long an order holds.
func (o *Order) hold(text string) error {
	if text == "" {
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second || d > MaxOverride {
		return Invalid("for %q: want a duration from 1s to %v, as 30m", text, MaxOverride)
	}
	o.For = d
	return nil
}

func (a *Admin) reload(w http.ResponseWriter, r *http.Request) {
	plan, err := a.o.Reload(r.Context(), actorOf(r))
	if err != nil {
		a.refused(w, r, "reload", err)
		return
	}
	a.audit(r, "reload")
	plan.tidy()
	writeJSON(w, r, http.StatusOK, struct {
		Result string `json:"result"`
		Actor  string `json:"actor"`
		Config Config `json:"config"`
		Plan
	}{"reloaded", actorOf(r), a.status().Config, plan})
}

func (a *Admin) validate(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		a.fail(w, r, "validate", err)
		return
	}
	v := a.o.Validate(r.Context(), text)
	v.Faults = orEmpty(v.Faults)
	writeJSON(w, r, http.StatusOK, v)
}

func (a *Admin) plan(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		a.fail(w, r, "plan", err)
		return
	}
	p := a.o.Plan(r.Context(), text)
	p.tidy()
	writeJSON(w, r, http.StatusOK, p)
}

func (p *Plan) tidy() { p.Changes, p.Faults = orEmpty(p.Changes), orEmpty(p.Faults) }

func (a *Admin) getConfig(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	text, err := a.o.Config(q.Has("defaults"), q.Has("sources"))
	if err != nil {
		a.fail(w, r, "print the configuration", err)
		return
	}
	w.Header().Set("ETag", `"`+a.status().Config.Hash+`"`)
	w.Header().Set("Content-Type", "application/yaml")
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(text) // the caller may have gone
	}
}

func (a *Admin) getRateLimit(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("route") == "" {
		a.fail(w, r, "", Invalid("route: say which, and key for whom"))
		return
	}
	left, err := a.o.RateLimit(r.Context(), q.Get("route"), q.Get("key"))
	if err != nil {
		a.fail(w, r, "look at the limit", err)
		return
	}
	left.Limits = orEmpty(left.Limits)
	writeJSON(w, r, http.StatusOK, left)
}

// maxTop bounds how many identities one answer has.
const maxTop = 500

func (a *Admin) getTopLimits(w http.ResponseWriter, r *http.Request) {
	n := 20
	if text := r.URL.Query().Get("n"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 1 || n > maxTop {
			a.fail(w, r, "", Invalid("n: a number from 1 to %d", maxTop))
			return
		}
	}
	top := a.o.TopLimits(n)
	top.Top = orEmpty(top.Top)
	writeJSON(w, r, http.StatusOK, top)
}

func (a *Admin) resetRateLimit(w http.ResponseWriter, r *http.Request) {
	var sent struct {
		Route string `json:"route"`
		Key   string `json:"key"`
	}
	err := readJSON(r, &sent)
	if err == nil {
		err = a.o.ResetRateLimit(r.Context(), sent.Route, sent.Key)
	}
	// Whose limit it was stays out of the log: a key may be a credential.
	what := "reset a limit of route " + clip(printable(sent.Route), 100)
	if err != nil {
		a.refused(w, r, what, err)
		return
	}
	a.audit(r, what)
	writeJSON(w, r, http.StatusOK, Done{Result: "reset", Changed: true, Actor: actorOf(r)})
}

func (a *Admin) setLogLevel(w http.ResponseWriter, r *http.Request) {
	var sent struct {
		Level string `json:"level"`
		For   string `json:"for"`
	}
	ord := Order{Actor: actorOf(r), For: DefaultOverride}
	err := readJSON(r, &sent)
	if err == nil {
		err = ord.hold(sent.For)
	}
	what := "set log level " + clip(printable(sent.Level), 20)
	if err != nil {
		a.refused(w, r, what, err)
		return
	}
	level, err := a.o.SetLogLevel(r.Context(), sent.Level, ord)
	if err != nil {
		a.refused(w, r, what, err)
		return
	}
	a.audit(r, what)
	writeJSON(w, r, http.StatusOK, level)
}

// orEmpty keeps JSON from saying null where it means none.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
