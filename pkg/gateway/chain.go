package gateway

import (
	"fmt"
	"net/http"
	"slices"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/middleware/accesslog"
	"github.com/proconsul/proconsul/pkg/middleware/auth"
	"github.com/proconsul/proconsul/pkg/middleware/compress"
	"github.com/proconsul/proconsul/pkg/middleware/cors"
	"github.com/proconsul/proconsul/pkg/middleware/decompress"
	"github.com/proconsul/proconsul/pkg/middleware/headers"
	"github.com/proconsul/proconsul/pkg/middleware/ip"
	"github.com/proconsul/proconsul/pkg/middleware/metrics"
	"github.com/proconsul/proconsul/pkg/middleware/recovery"
	"github.com/proconsul/proconsul/pkg/middleware/requestid"
	"github.com/proconsul/proconsul/pkg/middleware/secureheaders"
	"github.com/proconsul/proconsul/pkg/middleware/tracing"
	"github.com/proconsul/proconsul/pkg/middleware/validate"
	"github.com/proconsul/proconsul/pkg/proxy"
)

// step is one place in every route's chain. build returns nil where the route
// has no use for it.
type step struct {
	name  string
	build func(b buildInput) (middleware.Middleware, error)

	// explain says what the step would do with a request, without doing it;
	// nil: it lets every request pass and there is nothing to say. It is asked
	// only where build returns a middleware.
	explain func(b buildInput, q *asked) Step
}

// buildInput is what a step is built from.
type buildInput struct {
	route    *config.Route // nil: the chain of requests that match no route
	settings config.Middleware
	limits   []config.NamedLimit // the route's own and those that it shares
	deps     Deps
}

// steps is the one order of middlewares, outermost first, each with the reason
// for its place. A route says which steps it has and how, never when.
func steps() []step { return slices.Concat(shared(), own()) }

// shared are the steps that are the same for every route. A table has one chain
// of them, in front of all routes: with many routes, what each has of its own is
// a wait for memory in every request. What they need to know of a request's route
// they find with the Exchange.
func shared() []step {
	return []step{
		// First, so that every line, error and attempt carries the id.
		{"request_id", func(buildInput) (middleware.Middleware, error) { return requestid.New(), nil }, explainRequestID},
		// Outside the log and the metrics, which tell of the trace, and outside
		// all that takes time, which its span covers. Inside request_id, whose id
		// the span carries.
		{"tracing", func(b buildInput) (middleware.Middleware, error) {
			if b.deps.Tracer == nil {
				return nil, nil
			}
			return tracing.New(b.deps.Tracer, templateOf), nil
		}, explainTracing},
		// Outside recovery: a request that panics is logged with its 500.
		{"access_log", func(b buildInput) (middleware.Middleware, error) {
			if b.deps.AccessLog == nil {
				return nil, nil
			}
			return accesslog.New(b.deps.AccessLog), nil
		}, nil},
		// Outside recovery for the same reason, inside the log so that the
		// log's own cost is not counted as the request's.
		{"metrics", func(b buildInput) (middleware.Middleware, error) {
			return metrics.New(recorderOf), nil
		}, nil},
		// Outside all that may panic, inside all that must see the outcome.
		{"recovery", func(b buildInput) (middleware.Middleware, error) { return recovery.New(b.deps.Log), nil }, nil},
	}
}

// own are the steps that routes have or have not, each in its own way.
func own() []step {
	return []step{
		// Outside all that may refuse, so that rules on answers reach its 401
		// and 429 too.
		{"headers", func(b buildInput) (middleware.Middleware, error) {
			return b.responseRules().headers()
		}, func(b buildInput, q *asked) Step { return explainHeaders(b.responseRules(), q) }},
		// Inside the header rules, which have the last word over it; outside all
		// that may refuse, so that a 401 has its fields too.
		{"secure_headers", func(b buildInput) (middleware.Middleware, error) {
			if b.settings.SecureHeaders == nil {
				return nil, nil
			}
			return secureheaders.New(*b.settings.SecureHeaders)
		}, func(b buildInput, q *asked) Step {
			return Step{Text: secureheaders.Peek(*b.settings.SecureHeaders, q.x.Scheme)}
		}},
		// Outside all that reads or keeps answers, which see them plain; inside
		// the rules on headers, which see what goes out.
		{"compress", func(b buildInput) (middleware.Middleware, error) {
			if b.settings.Compress == nil {
				return nil, nil
			}
			return compress.New(*b.settings.Compress)
		}, func(b buildInput, q *asked) Step { return Step{Text: compress.Peek(*b.settings.Compress, q.r)} }},
		// Outside auth: browsers send preflights without credentials, and pages
		// may read why a request was refused.
		{"cors", func(b buildInput) (middleware.Middleware, error) {
			if b.settings.CORS == nil {
				return nil, nil
			}
			return cors.New(*b.settings.CORS, b.route.Match.Methods)
		}, explainCORS},
		// On every route, also those without auth: instances believe these fields
		// wherever a request comes from. Outside auth, whose services must not
		// be told them either.
		{"owned_headers", func(b buildInput) (middleware.Middleware, error) {
			owned := b.deps.Identity.Owned()
			if len(owned) == 0 {
				return nil, nil
			}
			return auth.Strip(owned), nil
		}, explainOwned},
		// Outside auth: an address that may not call learns nothing about
		// credentials and costs no check of one.
		{"ip", func(b buildInput) (middleware.Middleware, error) {
			if b.settings.IP == nil {
				return nil, nil
			}
			return ip.New(*b.settings.IP), nil
		}, explainIP},
		// Outside everything that acts on the request: what the client sent is
		// what is checked. Inside the log and the metrics, which tell of those
		// who were refused.
		{"auth", func(b buildInput) (middleware.Middleware, error) {
			if b.settings.Auth == nil {
				return nil, nil
			}
			return auth.New(*b.settings.Auth, b.deps.Identity.Method, b.deps.Metrics.AuthDecision)
		}, explainAuth},
		// Inside auth: a credential that a rule sets is for the instance, and is
		// neither checked nor taken out. Outside the limiter, which may count by
		// a field.
		{"request_headers", func(b buildInput) (middleware.Middleware, error) {
			return b.requestRules().headers()
		}, func(b buildInput, q *asked) Step { return explainHeaders(b.requestRules(), q) }},
		// Innermost: nothing is charged for a request that is refused anyway, and
		// consumers are known.
		{"rate_limit", func(b buildInput) (middleware.Middleware, error) {
			if len(b.limits) == 0 {
				return nil, nil
			}
			return b.deps.guards.New(b.route.Name, b.limits)
		}, explainRateLimit},
		// Inside auth and the limits: nobody unknown makes the gateway work on
		// a body.
		{"decompress", func(b buildInput) (middleware.Middleware, error) {
			if b.settings.Decompress == nil {
				return nil, nil
			}
			return decompress.New(*b.settings.Decompress)
		}, func(b buildInput, q *asked) Step {
			text, refusal := decompress.Peek(*b.settings.Decompress, q.r)
			return Step{Text: text, Refusal: refusal}
		}},
		// Inside decompress, which makes bodies readable, and next to the
		// instance: nothing changes what was found to fit.
		{"validate", func(b buildInput) (middleware.Middleware, error) {
			if b.settings.Validate == nil {
				return nil, nil
			}
			return validate.New(*b.settings.Validate, b.path)
		}, func(b buildInput, q *asked) Step {
			text, refusal := validate.Peek(*b.settings.Validate, b.path, q.r)
			return Step{Text: text, Refusal: refusal}
		}},
	}
}

// requestRules is b with the header rules for requests alone.
func (b buildInput) requestRules() buildInput {
	if h := b.settings.Headers; h != nil {
		b.settings.Headers = &config.Headers{Request: h.Request}
	}
	return b
}

// responseRules is b with the header rules for answers alone.
func (b buildInput) responseRules() buildInput {
	if h := b.settings.Headers; h != nil {
		b.settings.Headers = &config.Headers{Response: h.Response}
	}
	return b
}

// headers is the middleware for the header rules; nil where there are none.
func (b buildInput) headers() (middleware.Middleware, error) {
	h := b.settings.Headers
	if h == nil || len(h.Request.Remove)+len(h.Request.Set)+len(h.Request.Add)+len(h.Response.Remove)+len(h.Response.Set)+len(h.Response.Add) == 0 {
		return nil, nil
	}
	return headers.New(*h)
}

// path returns what an instance sees for the path of a client.
func (b buildInput) path(escaped string) string {
	return proxy.RewritePath(escaped, b.route.Upstream.Strip, b.route.Upstream.Prepend)
}

// unmarked leaves steps as they are.
func unmarked(_ string, h http.Handler) http.Handler { return h }

// wrap wraps h in steps, and each of these in a mark with its name.
func (b buildInput) wrap(h http.Handler, list []step, mark func(name string, h http.Handler) http.Handler) (http.Handler, error) {
	for _, s := range slices.Backward(list) {
		mw, err := s.build(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		if mw != nil {
			h = mark(s.name, mw(h))
		}
	}
	return h, nil
}
