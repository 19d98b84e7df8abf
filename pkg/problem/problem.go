// Package problem holds the gateway's own errors and their one writer: an
// RFC 9457 application/problem+json body, an RFC 9209 Proxy-Status field and
// the X-Proconsul-Reason header; for gRPC calls a status of gRPC instead of the
// body.
//
// An error has two faces. The client sees the reason, the title and the
// detail; the cause goes to the access log and never to the client.
package problem

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"
)

// Reason is the one vocabulary for answers that the gateway makes itself. It
// is the same word in the header, the problem type, the access log, the
// metric label and the runbook.
type Reason string

// Every reason there is. docs/errors.md describes each.
const (
	BadRequest           Reason = "bad_request"
	NoRoute              Reason = "no_route"
	MethodNotAllowed     Reason = "method_not_allowed"
	Unauthenticated      Reason = "unauthenticated"
	Forbidden            Reason = "forbidden"
	CORSDenied           Reason = "cors_denied"
	RateLimited          Reason = "rate_limited"
	QuotaExceeded        Reason = "quota_exceeded"
	BodyTooLarge         Reason = "body_too_large"
	UnsupportedMediaType Reason = "unsupported_media_type"
	InvalidRequest       Reason = "invalid_request"
	NoInstances          Reason = "no_instances"
	NoHealthyInstances   Reason = "no_healthy_instances"
	BreakerOpen          Reason = "breaker_open"
	ConcurrencyLimited   Reason = "concurrency_limited"
	RetryBudget          Reason = "retry_budget_exhausted"
	UpstreamRefused      Reason = "upstream_refused"
	UpstreamReset        Reason = "upstream_reset"
	UpstreamTLS          Reason = "upstream_tls"
	UpstreamProtocol     Reason = "upstream_protocol"
	UpstreamTimeout      Reason = "upstream_timeout"
	ClientCanceled       Reason = "client_canceled"
	Draining             Reason = "draining"
	Maintenance          Reason = "maintenance"
	LimiterUnavailable   Reason = "limiter_unavailable"
	AuthUnavailable      Reason = "auth_unavailable"
	LoopDetected         Reason = "loop_detected"
	Internal             Reason = "internal_error"
)

// StatusClientClosedRequest is the status that the access log and the metrics
// carry where the client left before an answer; it is never sent.
const StatusClientClosedRequest = 499

type definition struct {
	status int
	title  string
	proxy  string // RFC 9209 section 2.3 error type; empty: no Proxy-Status error
}

var definitions = map[Reason]definition{
	BadRequest:           {400, "The request is malformed", "http_request_error"},
	NoRoute:              {404, "No route matches this host and path", "destination_not_found"},
	MethodNotAllowed:     {405, "The route does not accept this method", "http_request_denied"},
	Unauthenticated:      {401, "Credentials are missing or not valid", "http_request_denied"},
	Forbidden:            {403, "The credentials do not allow this", "http_request_denied"},
	CORSDenied:           {403, "Pages of other origins may not do this", "http_request_denied"},
	RateLimited:          {429, "Too many requests", "http_request_denied"},
	QuotaExceeded:        {429, "The quota is used up", "http_request_denied"},
	BodyTooLarge:         {413, "The request body is too large", "http_request_error"},
	UnsupportedMediaType: {415, "The request body is of a kind that is not accepted", "http_request_error"},
	InvalidRequest:       {422, "The request does not fit its description", "http_request_error"},
	NoInstances:          {503, "The service has no instances", "destination_unavailable"},
	NoHealthyInstances:   {503, "The service has no healthy instance", "destination_unavailable"},
	BreakerOpen:          {503, "The service is failing and is given time to recover", "destination_unavailable"},
	ConcurrencyLimited:   {503, "Too many requests are in flight", "connection_limit_reached"},
	RetryBudget:          {503, "The retry budget is used up", "destination_unavailable"},
	UpstreamRefused:      {502, "The instance refused the connection", "connection_refused"},
	UpstreamReset:        {502, "The instance closed the connection before it answered", "connection_terminated"},
	UpstreamTLS:          {502, "The TLS handshake with the instance failed", "tls_protocol_error"},
	UpstreamProtocol:     {502, "The instance gave an answer that is not valid HTTP", "http_protocol_error"},
	UpstreamTimeout:      {504, "The instance did not answer in time", "http_response_timeout"},
	ClientCanceled:       {StatusClientClosedRequest, "The client left before the answer", ""},
	Draining:             {503, "This gateway is shutting down", "destination_unavailable"},
	Maintenance:          {503, "The service is in maintenance", "destination_unavailable"},
	LimiterUnavailable:   {503, "The rate limit cannot be checked", "proxy_internal_error"},
	AuthUnavailable:      {503, "The credentials cannot be checked for now", "proxy_internal_error"},
	LoopDetected:         {508, "The request has passed through this gateway before", "proxy_loop_detected"},
	Internal:             {500, "The gateway failed", "proxy_internal_error"},
}

// Reasons returns every reason, in no order, for metrics and documentation.
func Reasons() []Reason {
	all := make([]Reason, 0, len(definitions))
	for r := range definitions {
		all = append(all, r)
	}
	return all
}

// Error is a failure that the gateway answers itself.
type Error struct {
	Reason     Reason
	Status     int           // 0: the reason's own
	Detail     string        // for the client; empty: none. Never secrets, addresses or causes
	RetryAfter time.Duration // rounded up to seconds; 0: no Retry-After
	Faults     []Fault       // what exactly is wrong with the request; nil: nothing to list
	Header     http.Header   // further fields for the answer (Allow, WWW-Authenticate, RateLimit); may be nil
	Answer     *Answer       // what to say instead of a problem; nil: the problem
	Err        error         // the cause, for the log only; may be nil
}

// Fault is one thing that is wrong with a request, for the client.
type Fault struct {
	Pointer   string `json:"pointer,omitempty"`   // JSON pointer into the body, as a fragment: "#/items/0/price"
	Parameter string `json:"parameter,omitempty"` // or the name of a parameter
	In        string `json:"in,omitempty"`        // of the parameter: path, query, header, cookie
	Detail    string `json:"detail"`
}

// Answer is the answer of a service that the operator has put in charge of
// callers, which the client gets as it is.
type Answer struct {
	Header http.Header
	Body   []byte
}

// New returns an Error of the reason's own status with a detail for the
// client and a cause for the log, either of which may be empty.
func New(reason Reason, detail string, err error) *Error {
	return &Error{Reason: reason, Detail: detail, Err: err}
}

// Code returns the HTTP status that the error is answered with.
func (e *Error) Code() int {
	if e.Status != 0 {
		return e.Status
	}
	if d, ok := definitions[e.Reason]; ok {
		return d.status
	}
	return http.StatusInternalServerError
}

// Title returns the reason's sentence for the client.
func (e *Error) Title() string { return definitions[e.Reason].title }

func (e *Error) Error() string {
	s := string(e.Reason)
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// From returns err's Error, or an internal_error around any other error.
func From(err error) *Error {
	var p *Error
	if errors.As(err, &p) {
		return p
	}
	return New(Internal, "", err)
}

// Names of the header fields that every gateway-made answer carries.
const (
	HeaderReason    = "X-Proconsul-Reason"
	HeaderRequestID = "X-Request-Id"
)

// TypeBase is prefixed to a reason to make the problem's type URI.
const TypeBase = "https://github.com/proconsul/proconsul/blob/main/docs/errors.md#"

// Recorder is implemented by response writers that keep an account of the
// request; Write tells the first one that it finds down the Unwrap chain.
type Recorder interface {
	RecordProblem(*Error)

	// RecordStatus is told what the answer's status would be, were it not that
	// of gRPC calls, which is always 200.
	RecordStatus(code int)
}

type body struct {
	Type      string  `json:"type"`
	Title     string  `json:"title"`
	Status    int     `json:"status"`
	Detail    string  `json:"detail,omitempty"`
	Errors    []Fault `json:"errors,omitempty"`
	Reason    Reason  `json:"reason"`
	RequestID string  `json:"request_id,omitempty"`
}

// Write answers the request with err's problem. Any error that is not an
// *Error becomes a bare internal_error. Where the client has left nothing is
// sent and only the account is kept.
func Write(w http.ResponseWriter, r *http.Request, err error) {
	p := From(err)
	record(w, p)
	if p.Reason == ClientCanceled {
		return
	}
	code := p.Code()
	h := w.Header()
	for name, values := range p.Header {
		h[name] = values
	}
	h.Del("Content-Length")
	h.Del("Content-Encoding")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set(HeaderReason, string(p.Reason))
	if token := definitions[p.Reason].proxy; token != "" {
		h.Set("Proxy-Status", "proconsul; error="+token)
	}
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64(math.Ceil(p.RetryAfter.Seconds())), 10))
	}
	if contentType := CallType(r); contentType != "" {
		writeStatus(w, contentType, p)
		return
	}
	h.Set("Content-Type", "application/problem+json")
	b, _ := json.Marshal(body{ // texts and numbers only: cannot fail
		Type: TypeBase + string(p.Reason), Title: p.Title(), Status: code, Detail: p.Detail, Errors: p.Faults,
		Reason: p.Reason, RequestID: h.Get(HeaderRequestID),
	})
	b = append(b, '\n')
	if p.Answer != nil {
		h.Del("Content-Type")
		for name, values := range p.Answer.Header {
			h[name] = values
		}
		b = p.Answer.Body
	}
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(code)
	if r.Method != http.MethodHead {
		_, _ = w.Write(b) // the client may have gone; the access log has the status
	}
}

func record(w http.ResponseWriter, p *Error) {
	if rec := recorder(w); rec != nil {
		rec.RecordProblem(p)
	}
}

func recorder(w http.ResponseWriter) Recorder {
	for {
		if rec, ok := w.(Recorder); ok {
			return rec
		}
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return nil
		}
		w = u.Unwrap()
	}
}
