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
	p, identify, err := compile(routeName, cfg)
	if err != nil {
		return Outlook{}, err
	}
	d := lim.Peek(ctx, p, identify(r, x))
	out := Outlook{Decision: verdict(&d)}
	if !d.Allowed {
		out.Refusal = refusal(&d)
	}
	for i := range d.Len() {
		b := d.Budget(i)
		out.Limits = append(out.Limits, Left{cfg.Limits[i].String(), cfg.Limits[i].Count, b.Remaining, b.Reset})
	}
	return out, nil
}

// Reset gives the identity of a request a route's whole limits back.
func Reset(ctx context.Context, routeName string, cfg config.RateLimit, lim *limiter.Limiter, r *http.Request, x *middleware.Exchange) error {
	p, identify, err := compile(routeName, cfg)
	if err != nil {
		return err
	}
	return lim.Reset(ctx, p, identify(r, x))
}

// RequestOf returns a request of an identity, and its account, for Peek and
// Reset: key is what requests are told apart by, an address for client_ip and
// the header's value for api_key and header(NAME). For route it is ignored.
func RequestOf(by, key string) (*http.Request, *middleware.Exchange, error) {
	r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/"}, Header: http.Header{}}
	x := middleware.NewExchange(nil, time.Time{})
	header, isHeader := strings.CutPrefix(by, "header(")
	switch {
	case by == "route":
	case key == "":
		return nil, nil, fmt.Errorf("the limit is by %s: a key is needed", by)
	case by == "client_ip":
		ip, err := netip.ParseAddr(key)
		if err != nil {
			return nil, nil, fmt.Errorf("the limit is by client_ip, and %q is no address", key)
		}
		x.ClientIP = ip
	case by == "api_key":
		r.Header.Set("X-API-Key", key)
	case isHeader:
		r.Header.Set(strings.TrimSpace(strings.TrimSuffix(header, ")")), key)
	default:
		return nil, nil, fmt.Errorf("cannot limit by %q", by)
	}
	return r, x, nil
}
