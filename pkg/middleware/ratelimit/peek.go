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

// Outlook is what a route's limits would say to a request.
type Outlook struct {
	Decision string // as in the access log: allowed, limited, fail_open, fail_closed, local
	Limits   []Left // none where nobody counts

	// Refusal is the answer that the request would get; nil: it passes.
	Refusal *problem.Error
}

// Left is what is left of one limit.
type Left struct {
	Limit     string // as configurations write it: "100/1m"
	Count     int
	Remaining int64
	Reset     time.Duration // until more is left; 0: nothing is used
}

// Peek returns what New's middleware would decide for a request, and takes
// nothing.
func Peek(ctx context.Context, routeName string, cfg config.RateLimit, lim *limiter.Limiter, r *http.Request, x *middleware.Exchange) (Outlook, error) {
	u, err := compile(routeName, cfg)
	if err != nil {
		return Outlook{}, err
	}
	t := u.tier(x)
	if t.policy == nil {
		return Outlook{Decision: allowed}, nil
	}
	d := lim.Peek(ctx, t.policy, u.identify(r, x))
	out := Outlook{Decision: verdict(&d)}
	if !d.Allowed {
		out.Refusal = refusal(&d)
	}
	for i := range d.Len() {
		b := d.Budget(i)
		out.Limits = append(out.Limits, Left{t.limits[i].String(), t.limits[i].Count, b.Remaining, b.Reset})
	}
	return out, nil
}

// Reset gives the identity of a request a route's whole limits back.
func Reset(ctx context.Context, routeName string, cfg config.RateLimit, lim *limiter.Limiter, r *http.Request, x *middleware.Exchange) error {
	u, err := compile(routeName, cfg)
	if err != nil {
		return err
	}
	return lim.Reset(ctx, u.usual.policy, u.identify(r, x))
}

// RequestOf returns a request of an identity, and its account, for Peek and
// Reset: key is what requests are told apart by, an address for client_ip, a
// name for consumer and method, and the value for api_key, header(NAME) and
// cookie(NAME). For route it is ignored. Of several identities that are one it
// has one line each, in their order, and none for route.
func RequestOf(by, key string) (*http.Request, *middleware.Exchange, error) {
	r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/"}, Header: http.Header{}}
	x := middleware.NewExchange(nil, time.Time{})
	var names []string
	for _, name := range config.SplitBy(by) {
		if name != "route" {
			names = append(names, name)
		}
	}
	keys := strings.Split(key, "\n")
	for i, name := range names {
		if len(keys) != len(names) || keys[i] == "" {
			return nil, nil, fmt.Errorf("the limit is by %s: a key is needed, of %d lines", by, len(names))
		}
		header, isHeader := argument(name, "header")
		cookie, isCookie := argument(name, "cookie")
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
		default:
			return nil, nil, fmt.Errorf("cannot limit by %q", name)
		}
	}
	return r, x, nil
}
