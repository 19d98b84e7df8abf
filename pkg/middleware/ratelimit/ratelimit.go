// Package ratelimit limits how often an identity may pass a route: a client's
// address, a consumer, an API key, any header field or cookie, a method,
// several of these as one, or everybody together. Its settings are
// config.RateLimit.
//
// A request above the limit is answered 429 with a Retry-After after which it
// passes, if nobody else was faster. Every answer tells what is left, as
// RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-11) and
// as X-RateLimit-Limit, -Remaining and -Reset for the tightest of several
// limits; what an instance says of limits of its own does not pass, because
// the client could not tell the two apart. hide_headers turns both off.
//
// A request without the consumer, key, header or cookie that it is counted by is
// counted by its client's address, never together with others that lack it too.
package ratelimit

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
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
	local      = "local" // allowed by this replica's share alone
)

// New returns the middleware of a route. The route's name is the policy's:
// replicas with the same name and windows share counts, and so does a route
// before and after a reload that changes its counts. onDecision is told every
// decision; it may be nil.
func New(routeName string, cfg config.RateLimit, lim *limiter.Limiter, onDecision func(policy, decision string)) (middleware.Middleware, error) {
	if lim == nil {
		return nil, errors.New("a rate limit needs a limiter")
	}
	u, err := compile(routeName, cfg)
	if err != nil {
		return nil, err
	}
	if onDecision == nil {
		onDecision = func(string, string) {}
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex := middleware.Of(w)
			p, t := u.of(ex)
			if p == nil { // of an unlimited tier
				if ex != nil {
					ex.RateLimit = allowed
				}
				onDecision(routeName, allowed)
				next.ServeHTTP(w, r)
				return
			}
			d := lim.Take(r.Context(), p, u.identify(r, ex), u.cost(r))
			word := verdict(&d)
			onDecision(routeName, word)
			if ex != nil {
				ex.RateLimit = word
			}
			if d.Allowed {
				if t.hidden {
					next.ServeHTTP(w, r)
					return
				}
				told := &writer{ResponseWriter: w}
				t.tell(&told.fields, &d)
				next.ServeHTTP(told, r)
				told.stamp() // where the handler left the header to the server
				return
			}
			if !t.hidden {
				f := new(fields)
				t.tell(f, &d)
				f.set(w.Header())
			}
			problem.Write(w, r, refusal(&d))
		})
	}, nil
}

// refusal is the answer to a request that was not allowed.
func refusal(d *limiter.Decision) *problem.Error {
	p := problem.New(problem.RateLimited, "", nil)
	if d.Source == limiter.Closed {
		p = problem.New(problem.LimiterUnavailable, "", nil)
	}
	p.RetryAfter = d.RetryAfter
	return p
}

// rule is what a route's requests are counted by.
type rule struct {
	usual    tier
	tiers    map[string]tier // by consumer
	identify source
	cost     func(*http.Request) int
}

// tier is a policy and what clients are told of it. The policies of a rule
// differ in counts alone, so they share what was used.
type tier struct {
	policy *limiter.Policy // nil: unlimited
	teller *teller
	limits []config.Limit
}

// of returns what a request's caller is limited by.
func (u *rule) of(ex *middleware.Exchange) (*limiter.Policy, *teller) {
	t := u.tier(ex)
	return t.policy, t.teller
}

func (u *rule) tier(ex *middleware.Exchange) tier {
	if ex != nil && ex.Consumer != "" {
		if t, ok := u.tiers[ex.Consumer]; ok {
			return t
		}
	}
	return u.usual
}

// compile returns the rule that a route's settings describe.
func compile(routeName string, cfg config.RateLimit) (*rule, error) {
	identify, err := by(cfg.By)
	if err != nil {
		return nil, err
	}
	cost, err := costOf(cfg.Cost)
	if err != nil {
		return nil, err
	}
	mode, err := limiter.ParseMode(cfg.OnStoreError)
	if err != nil {
		return nil, err
	}
	precision, err := limiter.ParsePrecision(cmp.Or(cfg.Precision, "leased"))
	if err != nil {
		return nil, err
	}
	compiled := func(written []config.Limit) (tier, error) {
		limits, err := limitsOf(cfg, written)
		if err != nil {
			return tier{}, err
		}
		p, err := limiter.NewPolicy(limiter.Settings{Name: routeName, Limits: limits, OnStoreError: mode, Precision: precision})
		if err != nil {
			return tier{}, err
		}
		return tier{p, newTeller(p, written, cfg.HideHeaders), written}, nil
	}
	u := &rule{tiers: map[string]tier{}, identify: identify, cost: cost}
	if u.usual, err = compiled(cfg.Limits); err != nil {
		return nil, err
	}
	for _, t := range cfg.Tiers {
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

// costOf returns what a request costs: a fixed number of tokens, or what a
// field of the request says. A request whose field is missing, or no number
// from 1 on, costs one token.
func costOf(text string) (func(*http.Request) int, error) {
	if name, ok := strings.CutPrefix(text, "header("); ok && strings.HasSuffix(name, ")") && len(name) > 1 {
		name = http.CanonicalHeaderKey(strings.TrimSpace(strings.TrimSuffix(name, ")")))
		return func(r *http.Request) int {
			if v := r.Header[name]; len(v) == 1 {
				n, err := strconv.Atoi(v[0])
				if errors.Is(err, strconv.ErrRange) && v[0][0] != '-' {
					return math.MaxInt // above every limit
				}
				return max(1, n)
			}
			return 1
		}, nil
	}
	n, err := strconv.Atoi(cmp.Or(text, "1"))
	if err != nil || n < 1 {
		return nil, fmt.Errorf("cost %q is neither a number from 1 on nor header(NAME)", text)
	}
	return func(*http.Request) int { return n }, nil
}

func verdict(d *limiter.Decision) string {
	switch {
	case d.Source == limiter.Closed:
		return failClosed
	case !d.Allowed:
		return limited
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
	hidden bool
	names  []string // of each limit, as a quoted string
	counts []string
	policy []string // the value of RateLimit-Policy, ready to be a header's
}

func newTeller(p *limiter.Policy, written []config.Limit, hidden bool) *teller {
	t := &teller{hidden: hidden}
	seen := map[string]int{}
	var policies []string
	for i, l := range p.Limits() {
		name := cmp.Or(written[i].Calendar, window(l.Window))
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
	policy []string
	values [4]string // state, limit, remaining, reset, as headers have parts of it
}

// tell puts into f what the decision's answer tells.
func (t *teller) tell(f *fields, d *limiter.Decision) {
	n := d.Len()
	if n == 0 {
		return
	}
	// All numbers are parts of one string.
	var room [128]byte
	b := room[:0]
	var remaining, reset [2]int // of the tightest limit: where they begin and end
	tightest := 0
	for i := range n {
		q := d.Budget(i)
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(append(b, t.names[i]...), ";r="...)
		r := len(b)
		b = append(strconv.AppendInt(b, q.Remaining, 10), ";t="...)
		s := len(b)
		b = strconv.AppendInt(b, seconds(q.Reset), 10)
		if m := d.Budget(tightest); i == 0 || q.Remaining < m.Remaining || q.Remaining == m.Remaining && q.Reset > m.Reset {
			tightest, remaining, reset = i, [2]int{r, s - len(";t=")}, [2]int{s, len(b)}
		}
	}
	state := string(b)
	f.policy = t.policy
	f.values = [...]string{state, t.counts[tightest], state[remaining[0]:remaining[1]], state[reset[0]:reset[1]]}
}

// seconds rounds up, so that who waits them has waited long enough.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

func (f *fields) set(h http.Header) {
	if f.policy == nil {
		for _, name := range [...]string{policyField, stateField, limitField, remainingField, resetField} {
			delete(h, name)
		}
		return
	}
	v := f.values[:]
	h[policyField], h[stateField] = f.policy, v[0:1:1]
	h[limitField], h[remainingField], h[resetField] = v[1:2:2], v[2:3:3], v[3:4:4]
}
