// Package ratelimit limits how often an identity may pass a route: a client's
// address, a consumer, an API key, any header field, or everybody together. Its
// settings are config.RateLimit.
//
// A request above the limit is answered 429 with a Retry-After after which it
// passes, if nobody else was faster. Every answer tells what is left, as
// RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-11) and
// as X-RateLimit-Limit, -Remaining and -Reset for the tightest of several
// limits; what an instance says of limits of its own does not pass, because
// the client could not tell the two apart. hide_headers turns both off.
//
// A request without the consumer, key or header that it is counted by is
// counted by its client's address, never together with others that lack it too.
package ratelimit

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
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
	p, identify, err := compile(routeName, cfg)
	if err != nil {
		return nil, err
	}
	if onDecision == nil {
		onDecision = func(string, string) {}
	}
	t := newTeller(p, cfg.HideHeaders)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex := middleware.Of(w)
			d := lim.Take(r.Context(), p, identify(r, ex), 1)
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
				told := &writer{ResponseWriter: w, fields: t.fields(&d)}
				next.ServeHTTP(told, r)
				told.stamp() // where the handler left the header to the server
				return
			}
			if !t.hidden {
				f := t.fields(&d)
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

// compile returns what a route's requests are counted by: the policy, and how
// to tell requests apart.
func compile(routeName string, cfg config.RateLimit) (*limiter.Policy, func(*http.Request, *middleware.Exchange) string, error) {
	identify, err := by(cfg.By)
	if err != nil {
		return nil, nil, err
	}
	mode, err := limiter.ParseMode(cfg.OnStoreError)
	if err != nil {
		return nil, nil, err
	}
	// Leased is exact where limits are small, and bounded where they are not.
	s := limiter.Settings{Name: routeName, OnStoreError: mode, Precision: limiter.Leased}
	for _, l := range cfg.Limits {
		s.Limits = append(s.Limits, limiter.Limit{Count: l.Count, Window: l.Window})
	}
	p, err := limiter.NewPolicy(s)
	return p, identify, err
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

// by returns how requests are told apart. Each kind of identity has its own
// prefix, so that no header's value can pass for an address.
func by(name string) (func(*http.Request, *middleware.Exchange) string, error) {
	header, isHeader := strings.CutPrefix(name, "header(")
	switch {
	case name == "client_ip":
		return address, nil
	case name == "route":
		return func(*http.Request, *middleware.Exchange) string { return "route" }, nil
	case name == "consumer":
		return consumer, nil
	case name == "api_key":
		return field("X-API-Key", "api_key:"), nil
	case isHeader && strings.HasSuffix(header, ")") && len(header) > 1:
		header = http.CanonicalHeaderKey(strings.TrimSpace(strings.TrimSuffix(header, ")")))
		return field(header, "header:"+header+":"), nil
	}
	return nil, fmt.Errorf("cannot limit by %q (have: client_ip, route, consumer, api_key, header(NAME))", name)
}

func field(name, prefix string) func(*http.Request, *middleware.Exchange) string {
	name = http.CanonicalHeaderKey(name)
	return func(r *http.Request, ex *middleware.Exchange) string {
		if v := r.Header[name]; len(v) > 0 && v[0] != "" {
			return prefix + v[0]
		}
		return address(r, ex)
	}
}

// consumer identifies a request by who was authenticated, whichever of their
// credentials they showed.
func consumer(r *http.Request, ex *middleware.Exchange) string {
	if ex != nil && ex.Consumer != "" {
		return "consumer:" + ex.Consumer
	}
	return address(r, ex)
}

// address identifies a request by its client's address: all of an IPv4
// address, and the first 64 bits of an IPv6 one, because a single customer
// owns at least all addresses behind them.
func address(r *http.Request, ex *middleware.Exchange) string {
	var ip netip.Addr
	if ex != nil {
		ip = ex.ClientIP
	}
	if !ip.IsValid() {
		peer, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			return "peer:" + r.RemoteAddr // a test's, or a unix socket's: still not an empty key
		}
		ip = peer.Addr()
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is4() {
		return "ip:" + ip.String()
	}
	network, _ := ip.Prefix(64) // cannot fail: 64 bits are there
	return "ip:" + network.String()
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

func newTeller(p *limiter.Policy, hidden bool) *teller {
	t := &teller{hidden: hidden}
	seen := map[string]int{}
	var policies []string
	for _, l := range p.Limits() {
		name := window(l.Window)
		if seen[name]++; seen[name] > 1 {
			name += "-" + strconv.Itoa(seen[name])
		}
		t.names = append(t.names, `"`+name+`"`)
		t.counts = append(t.counts, strconv.Itoa(l.Count))
		item := fmt.Sprintf(`"%s";q=%d`, name, l.Count)
		if w := int64(l.Window / time.Second); w > 0 && l.Window%time.Second == 0 {
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
	policy, state            []string
	limit, remaining, resets []string
}

// fields returns what the decision's answer tells.
func (t *teller) fields(d *limiter.Decision) fields {
	n := d.Len()
	if n == 0 {
		return fields{}
	}
	b := make([]byte, 0, 32*n)
	tightest := 0
	for i := range n {
		q := d.Budget(i)
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(b, t.names[i]...)
		b = append(b, ";r="...)
		b = strconv.AppendInt(b, q.Remaining, 10)
		b = append(b, ";t="...)
		b = strconv.AppendInt(b, seconds(q.Reset), 10)
		if m := d.Budget(tightest); q.Remaining < m.Remaining || q.Remaining == m.Remaining && q.Reset > m.Reset {
			tightest = i
		}
	}
	m := d.Budget(tightest)
	// One backing array for all the values.
	v := [...]string{string(b), t.counts[tightest], strconv.FormatInt(m.Remaining, 10), strconv.FormatInt(seconds(m.Reset), 10)}
	s := v[:]
	return fields{t.policy, s[0:1:1], s[1:2:2], s[2:3:3], s[3:4:4]}
}

// seconds rounds up, so that who waits them has waited long enough.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

func (f *fields) set(h http.Header) {
	if f.state == nil {
		for _, name := range [...]string{policyField, stateField, limitField, remainingField, resetField} {
			delete(h, name)
		}
		return
	}
	h[policyField], h[stateField] = f.policy, f.state
	h[limitField], h[remainingField], h[resetField] = f.limit, f.remaining, f.resets
}
