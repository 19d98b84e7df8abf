package ratelimit

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
)

// Outlook is what the limits of a route would say to a request.
type Outlook struct {
	Decision string // as in the access log: allowed, limited, delayed, fail_open, fail_closed, local
	Limits   []Left // none where nobody counts
	Delay    time.Duration

	// Refusal is the answer that the request would get; nil: it passes.
	Refusal *problem.Error
}

// Left is what is left of one limit.
type Left struct {
	Limit     string // as configurations write it: "100/1m"; with a scope before it where it is not the route's own
	Count     int
	Remaining int64
	Reset     time.Duration // until more is left; 0: nothing is used
}

// Peek returns what New's middleware would decide for a request, and takes
// nothing.
func Peek(ctx context.Context, routeName string, limits []config.NamedLimit, lim *limiter.Limiter, r *http.Request, x *middleware.Exchange) (Outlook, error) {
	rules, err := compile(routeName, limits, compileOne)
	if err != nil {
		return Outlook{}, err
	}
	c := charge{exchange: x}
	if refusal := c.gather(rules, r); refusal != nil {
		return Outlook{Decision: limited, Refusal: refusal}, nil
	}
	out := Outlook{Decision: allowed}
	for i := range c.n {
		d := lim.Peek(ctx, c.demands[i].Policy, c.demands[i].Key)
		word := verdict(&d)
		if most := delayOf(limits, c.rules[i].name); !d.Allowed && d.RetryAfter > 0 && d.RetryAfter <= most {
			word = delayed
			out.Delay = d.RetryAfter
		} else if !d.Allowed && out.Refusal == nil {
			out.Refusal, out.Decision = refusal(&d, &c.tiers[i]), word
		}
		if word != allowed && out.Refusal == nil {
			out.Decision = word
		}
		scope := ""
		if c.rules[i].name != routeName {
			scope = c.rules[i].name + " "
		}
		for k := range d.Len() {
			b, l := d.Budget(k), c.tiers[i].limits[k]
			out.Limits = append(out.Limits, Left{scope + l.String(), l.Count, b.Remaining, b.Reset})
		}
	}
	return out, nil
}

func delayOf(limits []config.NamedLimit, name string) time.Duration {
	for _, l := range limits {
		if l.Name == name && l.Over == "delay" {
			return l.MaxDelay
		}
	}
	return 0
}

// Reset gives the identity of a request the whole of a limit back.
func Reset(ctx context.Context, routeName string, limit config.NamedLimit, lim *limiter.Limiter, r *http.Request, x *middleware.Exchange) error {
	u, err := compileOne(routeName, limit)
	if err != nil {
		return err
	}
	return lim.Reset(ctx, u.usual.policy, u.identify(r, x))
}

// RequestOf returns a request of an identity, and its account, for Peek and
// Reset: key is what requests are told apart by, an address for client_ip, a
// name for consumer and method, and the value for api_key, header(NAME),
// cookie(NAME) and claim(NAME). For route and all it is ignored. Of several
// identities that are one it has one line each, in their order, and none for
// those.
func RequestOf(by, key string) (*http.Request, *middleware.Exchange, error) {
	r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/"}, Header: http.Header{}}
	x := middleware.NewExchange(nil, time.Time{})
	var names []string
	for _, name := range config.SplitBy(by) {
		if name != "route" && name != "all" {
			names = append(names, name)
		}
	}
	keys := strings.Split(key, "\n")
	for i, name := range names {
		if len(keys) != len(names) || keys[i] == "" {
			return nil, nil, fmt.Errorf("the limit is by %s: a key is needed, of %d lines", by, len(names))
		}
		header, isHeader := config.Argument(name, "header")
		cookie, isCookie := config.Argument(name, "cookie")
		claim, isClaim := config.Argument(name, "claim")
		switch k := keys[i]; {
		case name == "client_ip":
			ip, err := netip.ParseAddr(k)
			if err != nil {
				return nil, nil, fmt.Errorf("the limit is by client_ip, and %q is no address", k)
			}
			x.ClientIP = ip
		case name == "consumer":
			x.Consumer = k
		case name == "method":
			r.Method = k
		case name == "api_key":
			r.Header.Set("X-API-Key", k)
		case isHeader:
			r.Header.Set(header, k)
		case isCookie:
			r.AddCookie(&http.Cookie{Name: cookie, Value: k})
		case isClaim:
			if x.Claims == nil {
				x.Claims = map[string][]string{}
			}
			x.Claims[claim] = []string{k}
		default:
			return nil, nil, fmt.Errorf("cannot limit by %q", name)
		}
	}
	return r, x, nil
}
