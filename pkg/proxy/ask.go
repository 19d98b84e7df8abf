package proxy

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/pkg/problem"
)

// Client returns a way to ask the upstream's instances something on the
// gateway's own behalf: with the pool, the breaker, the bounds and the retries
// of the requests that it proxies. What is asked may be asked twice. Of a
// request's URL only path and query count. Errors are *problem.Error, but for
// those of a body that cannot be read again.
func (u *Upstream) Client() http.RoundTripper { return client{u} }

type client struct{ up *Upstream }

// RoundTrip implements http.RoundTripper.
func (c client) RoundTrip(req *http.Request) (*http.Response, error) {
	s := c.up.settings.Load()
	ctx, start := req.Context(), time.Now()
	c.up.budget.request(start)
	var tried []*balancer.Member
	for number := 0; ; number++ {
		pick, err := c.up.pool.Pick(tried...)
		if err != nil {
			return nil, classify(err, nil, false, c.up.breaker).problem
		}
		tried = append(tried, pick.Member())
		out, err := c.request(req, s, pick.Instance().Address)
		if err != nil {
			pick.Done(balancer.Outcome{Result: balancer.Canceled})
			return nil, err
		}
		began := time.Now()
		resp, err := c.up.breaker.RoundTrip(out, s.main, began, c.bound(ctx, s, start, began))
		latency := time.Since(began)
		a := Attempt{Upstream: c.up.name, Instance: pick.Instance().ID, Number: number, Ended: began.Add(latency), Duration: latency}
		if err == nil {
			a.Status = resp.StatusCode
			c.tell(a)
			result := balancer.Success
			if resp.StatusCode >= 500 {
				result = balancer.ServerError
			}
			resp.Body = &asked{ReadCloser: resp.Body, pick: pick, outcome: balancer.Outcome{Result: result, Latency: latency}}
			return resp, nil
		}
		// Whoever asked may have no more time: that is no client's leaving.
		gone := ctx.Err() != nil && context.Cause(ctx) == context.Canceled
		fail := classify(err, nil, gone, c.up.breaker)
		pick.Done(balancer.Outcome{Result: fail.result, Latency: latency})
		more := fail.word != "" && s.allows(fail.retry, true) && number < s.Retry.Attempts && ctx.Err() == nil
		if more && !c.up.budget.retry(time.Now(), s.Retry.Budget, s.Retry.MinRate) {
			more, a.Budget = false, true
		}
		if fail.word != "" {
			a.Failure, a.Retried = fail.word, more
			c.tell(a)
		}
		if !more {
			return nil, fail.problem
		}
	}
}

// request returns the question as one instance gets it.
func (c client) request(req *http.Request, s *settings, address string) (*http.Request, error) {
	target := *req.URL
	target.Scheme, target.Host = s.scheme, address
	out := req.WithContext(req.Context())
	out.URL, out.Host, out.RequestURI = &target, address, ""
	if req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return nil, problem.New(problem.Internal, "", err)
		}
		out.Body = body
	}
	return out, nil
}

// bound is how long one try may take until its header.
func (c client) bound(ctx context.Context, s *settings, start, now time.Time) time.Duration {
	try := s.Response
	shorter := func(d time.Duration) {
		if try <= 0 || d < try {
			try = max(d, time.Millisecond)
		}
	}
	if s.Total > 0 {
		shorter(s.Total - now.Sub(start))
	}
	if deadline, ok := ctx.Deadline(); ok {
		shorter(deadline.Sub(now))
	}
	return try
}

func (c client) tell(a Attempt) {
	if c.up.options.OnAttempt != nil {
		c.up.options.OnAttempt(a)
	}
}

// asked is the body of an instance's answer, whose end is told to the pool.
type asked struct {
	io.ReadCloser
	once    sync.Once
	pick    balancer.Pick
	outcome balancer.Outcome
}

func (a *asked) Close() error {
	err := a.ReadCloser.Close()
	a.once.Do(func() { a.pick.Done(a.outcome) })
	return err
}
