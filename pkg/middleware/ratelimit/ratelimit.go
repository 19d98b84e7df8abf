// Package ratelimit limits how often an identity may pass: a client's address,
// a consumer, an API key, any header field or cookie, a claim of a token, a
// method, several of these as one, or everybody together. Its settings are
// config.RateLimit. A request is under the limits of its route, its upstream and
// the whole gateway, which are charged together or not at all.
//
// A request above the limit is answered 429 with a Retry-After after which it
// passes, if nobody else was faster; with over: delay it waits for its turn, for
// a bounded time and in a bounded queue. Every answer tells what is left, as
// RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-11) and
// as X-RateLimit-Limit, -Remaining and -Reset for the tightest of several
// limits; what an instance says of limits of its own does not pass, because
// the client could not tell the two apart. headers: ietf leaves out the latter,
// none leaves the answer as it is.
//
// A request without the consumer, key, header, cookie or claim that it is
// counted by is counted by its client's address, never together with others that
// lack it too; with missing: deny it is answered 400.
//
// What a request costs may be known after its answer only, from a field of it or
// from its size. One token is taken before, and the rest charged then, also
// where it is not there: later requests make it good.
package ratelimit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
)

// The decisions, as the access log and the metrics name them.
const (
	allowed    = "allowed"
	limited    = "limited"
	failOpen   = "fail_open"
	failClosed = "fail_closed"
	local      = "local"      // allowed by this replica's share alone
	delayed    = "delayed"    // allowed after a wait
	queueFull  = "queue_full" // not even let wait
)

// Account is told what the middleware does. Its functions may be nil.
type Account struct {
	Decision func(policy, decision string) // each decision of each limit
	Delay    func(time.Duration)           // each wait that ended well
}

// Guards makes the middlewares of the routes of one configuration. Routes that
// are under one limit of their upstream or of the gateway share all there is of
// it, so that it is in the processor's cache whichever of them is asked for.
// It is safe for concurrent use. Make one with NewGuards.
type Guards struct {
	lim     *limiter.Limiter // nil: there are no limits
	account Account
	charges sync.Pool // of *charge: large, and on every connection's stack it would be

	mu     sync.Mutex
	shared map[string]*rule // by name
}

// NewGuards returns what makes middlewares that take their tokens from lim.
func NewGuards(lim *limiter.Limiter, account Account) *Guards {
	if account.Decision == nil {
		account.Decision = func(string, string) {}
	}
	if account.Delay == nil {
		account.Delay = func(time.Duration) {}
	}
	gs := &Guards{lim: lim, account: account, shared: map[string]*rule{}}
	gs.charges.New = func() any { return new(charge) }
	return gs
}

// New returns the middleware for a route's requests, which are under limits. A
// limit's name is its policy's: replicas with the same name and windows share
// counts, and so does a limit before and after a reload that changes its counts.
func (gs *Guards) New(routeName string, limits []config.NamedLimit) (middleware.Middleware, error) {
	if gs.lim == nil {
		return nil, errors.New("a rate limit needs a limiter")
	}
	rules, err := compile(routeName, limits, gs.rule)
	if err != nil {
		return nil, err
	}
	g := &guard{Guards: gs, rules: rules}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.serve(next, w, r) })
	}, nil
}

// rule returns a limit's rule, which is another route's too unless the limit is
// the route's own or counts by the route.
func (gs *Guards) rule(routeName string, l config.NamedLimit) (*rule, error) {
	if l.Name == routeName || slices.Contains(config.SplitBy(l.By), "route") {
		return compileOne(routeName, l)
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if u := gs.shared[l.Name]; u != nil {
		return u, nil
	}
	u, err := compileOne(routeName, l)
	if err == nil {
		gs.shared[l.Name] = u
	}
	return u, err
}

// guard is what stands in front of a route.
type guard struct {
	*Guards
	rules []*rule
}

func (g *guard) serve(next http.Handler, w http.ResponseWriter, r *http.Request) {
	c, ok := g.admit(w, r)
	switch {
	case !ok:
	case c == nil:
		next.ServeHTTP(w, r)
	default:
		g.follow(c, next, w, r)
	}
}

// admit takes a request's tokens, and reports whether it may pass: its client
// has its answer otherwise. The charge is returned where it is needed until the
// request ends. Most are not, and who comes next finds it in the processor's
// cache.
func (g *guard) admit(w http.ResponseWriter, r *http.Request) (kept *charge, ok bool) {
	ex := middleware.Of(w)
	c := g.charges.Get().(*charge)
	c.exchange = ex
	defer func() {
		if kept == nil {
			g.release(c)
		}
	}()
	if refusal := c.gather(g.rules, r); refusal != nil {
		g.tell(ex, c.n-1, c, limited)
		problem.Write(w, r, refusal)
		return nil, false
	}
	denied := g.lim.TakeAll(r.Context(), c.demands[:c.n], c.decisions[:c.n])
	if denied >= 0 && r.Context().Err() != nil {
		problem.Write(w, r, problem.New(problem.ClientCanceled, "", context.Cause(r.Context())))
		return nil, false
	}
	if denied >= 0 {
		d := &c.decisions[denied]
		g.tell(ex, denied, c, verdict(d))
		f := new(fields)
		if c.tell(f); f.shown {
			f.set(w.Header())
		}
		problem.Write(w, r, refusal(d, &c.tiers[denied]))
		return nil, false
	}
	word := allowed
	for i := range c.n {
		d := &c.decisions[i]
		v := verdict(d)
		g.account.Decision(c.rules[i].name, v)
		if d.Delayed > 0 {
			g.account.Delay(d.Delayed)
			if ex != nil {
				ex.Delayed = d.Delayed
			}
		}
		if v != allowed {
			word = v
		}
	}
	for _, u := range c.free[:c.nfree] {
		g.account.Decision(u.name, allowed)
	}
	if ex != nil {
		ex.RateLimit = word
	}
	if c.late() || c.shown() {
		return c, true
	}
	return nil, true
}

// follow serves a request with what its charge has for its answer: what clients
// are told, and what it costs beside.
func (g *guard) follow(c *charge, next http.Handler, w http.ResponseWriter, r *http.Request) {
	defer g.release(c)
	if c.late() {
		w = middleware.ByHeader(w)
		defer g.chargeLate(c, w.Header())
	}
	if !c.shown() {
		next.ServeHTTP(w, r)
		return
	}
	told := &writer{ResponseWriter: w}
	c.tell(&told.fields)
	next.ServeHTTP(told, r)
	told.stamp() // where the handler left the header to the server
}

// release lets another request use a charge.
func (g *guard) release(c *charge) {
	clear(c.demands[:c.n])
	clear(c.decisions[:c.n]) // of those behind a refusal nobody writes one
	c.exchange, c.n, c.nfree = nil, 0, 0
	g.charges.Put(c)
}

// tell tells of a request that one of the limits has refused.
func (g *guard) tell(ex *middleware.Exchange, i int, c *charge, word string) {
	g.account.Decision(c.rules[i].name, word)
	if ex != nil {
		ex.RateLimit = word
	}
}

// chargeLate charges what a request has turned out to cost.
func (g *guard) chargeLate(c *charge, answer http.Header) {
	for i := range c.n {
		if late := c.rules[i].late; late != nil {
			g.lim.Charge(c.demands[i].Policy, c.demands[i].Key, late(answer, c.exchange)-1)
		}
	}
}

// charge is what one request is charged.
type charge struct {
	exchange  *middleware.Exchange
	n         int
	rules     [limiter.MaxDemands]*rule
	tiers     [limiter.MaxDemands]tier
	demands   [limiter.MaxDemands]limiter.Demand
	decisions [limiter.MaxDemands]limiter.Decision
	nfree     int
	free      [limiter.MaxDemands]*rule // that do not limit this caller
}

// gather finds out what a request is counted by. It returns why the last one
// cannot count it.
func (c *charge) gather(rules []*rule, r *http.Request) *problem.Error {
	for _, u := range rules {
		t := u.tier(c.exchange)
		if t.policy == nil { // of an unlimited tier
			c.free[c.nfree] = u
			c.nfree++
			continue
		}
		i := c.n
		c.n++
		c.rules[i], c.tiers[i] = u, t
		key := u.identify(r, c.exchange)
		if key == "" {
			return problem.New(problem.BadRequest, "the request lacks what it is counted by: "+u.by, nil)
		}
		c.demands[i] = limiter.Demand{Policy: t.policy, Key: key, Cost: u.cost(r)}
	}
	return nil
}

// shown reports whether clients are told of any of the limits.
func (c *charge) shown() bool {
	for i := range c.n {
		if c.tiers[i].teller.shown {
			return true
		}
	}
	return false
}

// late reports whether something is charged after the answer.
func (c *charge) late() bool {
	for i := range c.n {
		if c.rules[i].late != nil {
			return true
		}
	}
	return false
}

// refusal is the answer to a request that was not allowed.
func refusal(d *limiter.Decision, t *tier) *problem.Error {
	p := problem.New(problem.RateLimited, "", nil)
	switch {
	case d.Source == limiter.Closed:
		p = problem.New(problem.LimiterUnavailable, "", nil)
	case d.Full:
		p.Detail = "too many requests wait for their turn"
	default:
		for i := range d.Len() {
			// Only the calendar gives a day's or a month's quota back.
			if t.limits[i].Calendar != "" && d.Budget(i).Remaining == 0 {
				p = problem.New(problem.QuotaExceeded, "", nil)
			}
		}
	}
	p.RetryAfter = d.RetryAfter
	return p
}

// rule is one of the limits that a route's requests are under.
type rule struct {
	name     string
	by       string
	usual    tier
	tiers    map[string]tier // by consumer
	identify source
	cost     func(*http.Request) int
	late     func(http.Header, *middleware.Exchange) int // the cost where it shows after the answer
}

// tier is a policy and what clients are told of it. The policies of a rule
// differ in counts alone, so they share what was used.
type tier struct {
	policy *limiter.Policy // nil: unlimited
	teller *teller
	limits []config.Limit
}

func (u *rule) tier(ex *middleware.Exchange) tier {
	if ex != nil && ex.Consumer != "" {
		if t, ok := u.tiers[ex.Consumer]; ok {
			return t
		}
	}
	return u.usual
}

// compile returns the rules that limits describe, each as one has it.
func compile(routeName string, limits []config.NamedLimit, one func(routeName string, l config.NamedLimit) (*rule, error)) ([]*rule, error) {
	if len(limits) > limiter.MaxDemands {
		return nil, fmt.Errorf("%d limits for one request, and %d are the most", len(limits), limiter.MaxDemands)
	}
	var rules []*rule
	for _, l := range limits {
		u, err := one(routeName, l)
		if err != nil {
			return nil, err
		}
		rules = append(rules, u)
	}
	return rules, nil
}

func compileOne(routeName string, l config.NamedLimit) (u *rule, err error) {
	defer func() {
		if err != nil && l.Name != routeName {
			err = fmt.Errorf("limit %s: %w", l.Name, err)
		}
	}()
	identify, err := by(l.RateLimit, routeName)
	if err != nil {
		return nil, err
	}
	mode, err := limiter.ParseMode(l.OnStoreError)
	if err != nil {
		return nil, err
	}
	precision, err := limiter.ParsePrecision(cmp.Or(l.Precision, "leased"))
	if err != nil {
		return nil, err
	}
	settings := limiter.Settings{Name: l.Name, OnStoreError: mode, Precision: precision, ShowKeys: l.ShowKeys}
	if l.Over == "delay" {
		settings.MaxDelay, settings.MaxQueue = l.MaxDelay, l.MaxQueue
	}
	u = &rule{name: l.Name, by: l.By, tiers: map[string]tier{}, identify: identify}
	if u.cost, u.late, err = costOf(l.Cost); err != nil {
		return nil, err
	}
	scope := ""
	if l.Name != routeName {
		scope, _, _ = strings.Cut(strings.TrimPrefix(l.Name, "@"), "/")
	}
	compiled := func(written []config.Limit) (tier, error) {
		s := settings
		if s.Limits, err = limitsOf(l.RateLimit, written); err != nil {
			return tier{}, err
		}
		p, err := limiter.NewPolicy(s)
		if err != nil {
			return tier{}, err
		}
		return tier{p, newTeller(p, written, scope, l.Headers), written}, nil
	}
	if u.usual, err = compiled(l.Limits); err != nil {
		return nil, err
	}
	for _, t := range l.Tiers {
		var made tier
		if !t.Unlimited {
			if made, err = compiled(t.Limits); err != nil {
				return nil, fmt.Errorf("tier %s: %w", t.Name, err)
			}
		}
		for _, c := range t.Consumers {
			u.tiers[c] = made
		}
	}
	return u, nil
}

// limitsOf returns limits as the limiter has them: those per day
// or month follow the calendar, the others the algorithm.
func limitsOf(cfg config.RateLimit, written []config.Limit) ([]limiter.Limit, error) {
	algorithm, err := limiter.ParseAlgorithm(cfg.Algorithm)
	if err != nil {
		return nil, err
	}
	zone, err := time.LoadLocation(cfg.Zone)
	if err != nil {
		return nil, fmt.Errorf("zone: %w", err)
	}
	var out []limiter.Limit
	for _, l := range written {
		limit := limiter.Limit{Count: l.Count, Window: l.Window, Algorithm: algorithm, Burst: cfg.Burst}
		switch l.Calendar {
		case "":
		case "day":
			limit = limiter.Limit{Count: l.Count, Algorithm: limiter.FixedWindow, Calendar: limiter.Daily, Zone: zone}
		case "month":
			limit = limiter.Limit{Count: l.Count, Algorithm: limiter.FixedWindow, Calendar: limiter.Monthly, Zone: zone}
		default:
			return nil, fmt.Errorf("no calendar named %q (have: day, month)", l.Calendar)
		}
		out = append(out, limit)
	}
	return out, nil
}

// costOf returns what a request costs: a fixed number of tokens, what a field of
// the request says, or, after the answer, what a field of that says or its size.
// Where a field is missing, or no number from 1 on, it is one token.
func costOf(text string) (cost func(*http.Request) int, late func(http.Header, *middleware.Exchange) int, err error) {
	c, ok := config.ParseCost(text)
	if !ok {
		return nil, nil, fmt.Errorf("cost %q is none", text)
	}
	one := func(*http.Request) int { return 1 }
	switch {
	case c.Header != "":
		name := http.CanonicalHeaderKey(c.Header)
		return func(r *http.Request) int { return number(r.Header[name]) }, nil, nil
	case c.ResponseHeader != "":
		name := http.CanonicalHeaderKey(c.ResponseHeader)
		return one, func(h http.Header, _ *middleware.Exchange) int { return number(h[name]) }, nil
	case c.ResponseBytes > 0:
		unit := int64(c.ResponseBytes)
		return one, func(_ http.Header, ex *middleware.Exchange) int {
			if ex == nil {
				return 1
			}
			return int(max(1, (ex.Bytes+unit-1)/unit))
		}, nil
	}
	return func(*http.Request) int { return c.Fixed }, nil, nil
}

// number reads a cost from a field.
func number(v []string) int {
	if len(v) != 1 {
		return 1
	}
	n, err := strconv.Atoi(v[0])
	if errors.Is(err, strconv.ErrRange) && v[0][0] != '-' {
		return math.MaxInt // above every limit
	}
	return max(1, n)
}

func verdict(d *limiter.Decision) string {
	switch {
	case d.Source == limiter.Closed:
		return failClosed
	case d.Full:
		return queueFull
	case !d.Allowed:
		return limited
	case d.Delayed > 0:
		return delayed
	case d.Source == limiter.Open:
		return failOpen
	case d.Source == limiter.Local:
		return local
	}
	return allowed
}

// The fields that clients read. The IETF's names are in their canonical form.
const (
	policyField    = "Ratelimit-Policy"
	stateField     = "Ratelimit"
	limitField     = "X-Ratelimit-Limit"
	remainingField = "X-Ratelimit-Remaining"
	resetField     = "X-Ratelimit-Reset"
)

// teller writes what clients are told of a policy.
type teller struct {
	shown   bool
	aliases bool     // X-RateLimit-* too
	names   []string // of each limit, as a quoted string
	counts  []string
	policy  []string // the value of RateLimit-Policy, ready to be a header's
}

// newTeller names limits by their windows, and those that are not a route's own
// by their scope, too.
func newTeller(p *limiter.Policy, written []config.Limit, scope, headers string) *teller {
	t := &teller{shown: headers != "none", aliases: headers != "ietf"}
	seen := map[string]int{}
	var policies []string
	for i, l := range p.Limits() {
		name := cmp.Or(written[i].Calendar, window(l.Window))
		if scope != "" {
			name = scope + "-" + name
		}
		if seen[name]++; seen[name] > 1 {
			name += "-" + strconv.Itoa(seen[name])
		}
		t.names = append(t.names, `"`+name+`"`)
		count := cmp.Or(l.Burst, l.Count) // the most that Remaining can be
		t.counts = append(t.counts, strconv.Itoa(count))
		item := fmt.Sprintf(`"%s";q=%d`, name, count)
		if w := int64(l.Window / time.Second); w > 0 && l.Burst == 0 && l.Window%time.Second == 0 {
			item += ";w=" + strconv.FormatInt(w, 10) // whole seconds only
		}
		policies = append(policies, item)
	}
	t.policy = []string{strings.Join(policies, ", ")}
	return t
}

// window writes a duration as configurations do: 1m, 1h, 90s, 1d.
func window(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}} {
		if d%u.unit == 0 {
			return strconv.FormatInt(int64(d/u.unit), 10) + u.name
		}
	}
	return d.String()
}

// fields are the values that one answer carries. Without a state they only
// take away what an instance said.
type fields struct {
	shown  bool
	policy []string
	values [4]string // state, limit, remaining, reset, as headers have parts of it; without a limit there are no aliases
}

// tell puts into f what a request's answer tells.
func (c *charge) tell(f *fields) {
	// All numbers are parts of one string.
	var room [160]byte
	b := room[:0]
	var remaining, reset [2]int // of the tightest limit: where they begin and end
	var tightest limiter.Budget
	count := ""
	for i := range c.n {
		t, d := c.tiers[i].teller, &c.decisions[i]
		f.shown = f.shown || t.shown
		if !t.shown || d.Len() == 0 {
			continue
		}
		if f.policy == nil {
			f.policy = t.policy
		} else {
			f.policy = []string{f.policy[0] + ", " + t.policy[0]}
		}
		for k := range d.Len() {
			q := d.Budget(k)
			if len(b) > 0 {
				b = append(b, ", "...)
			}
			b = append(append(b, t.names[k]...), ";r="...)
			r := len(b)
			b = append(strconv.AppendInt(b, q.Remaining, 10), ";t="...)
			s := len(b)
			b = strconv.AppendInt(b, seconds(q.Reset), 10)
			if t.aliases && (count == "" || q.Remaining < tightest.Remaining || q.Remaining == tightest.Remaining && q.Reset > tightest.Reset) {
				tightest, count = q, t.counts[k]
				remaining, reset = [2]int{r, s - len(";t=")}, [2]int{s, len(b)}
			}
		}
	}
	state := string(b)
	f.values = [...]string{state, count, state[remaining[0]:remaining[1]], state[reset[0]:reset[1]]}
}

// seconds rounds up, so that who waits them has waited long enough.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

func (f *fields) set(h http.Header) {
	v := f.values[:]
	if f.policy == nil {
		delete(h, policyField)
		delete(h, stateField)
	} else {
		h[policyField], h[stateField] = f.policy, v[0:1:1]
	}
	if v[1] == "" {
		delete(h, limitField)
		delete(h, remainingField)
		delete(h, resetField)
	} else {
		h[limitField], h[remainingField], h[resetField] = v[1:2:2], v[2:3:3], v[3:4:4]
	}
}
