package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/pkg/adaptive"
	"github.com/proconsul/proconsul/pkg/breaker"
	"github.com/proconsul/proconsul/pkg/problem"
)

// retryAfter is what clients are told where nothing better is known.
const retryAfter = time.Second

// Words for why an attempt failed, as the metrics have them.
const (
	failRefused     = "refused"
	failDialTimeout = "dial_timeout"
	failTimeout     = "ttfb_timeout"
	failReset       = "reset"
	failTLS         = "tls"
	failCanceled    = "canceled"
	failProtocol    = "protocol"
)

// failure is what an attempt's error means: for the client, for the instance
// and for a retry.
type failure struct {
	problem *problem.Error
	result  balancer.Result
	word    string // for metrics; empty: no instance was asked
	retry   retryClass
}

// retryClass says what has to hold for a failed attempt to be made again.
type retryClass uint8

const (
	retryNever   retryClass = iota
	retryConnect            // nothing was sent: any method
	retryReset              // the request may have been handled: replayable ones only
	retryTimeout            // likewise
)

// connectError is a failure before anything of a request was sent.
type connectError struct {
	err error
	tls bool
}

func (e *connectError) Error() string { return e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

var (
	errProtocol = errors.New("answer is not valid HTTP")
	errTotal    = errors.New("the total timeout is used up")
)

// classify is the one table from what went wrong to what it means. upload is
// how reading the client's body failed, gone whether the client has left.
func classify(err, upload error, gone bool, b *breaker.Breaker) failure {
	var connect *connectError
	switch {
	case errors.Is(err, balancer.ErrNoInstance):
		return local(problem.NoInstances, retryAfter, err)
	case errors.Is(err, balancer.ErrNoHealthy):
		return local(problem.NoHealthyInstances, retryAfter, err)
	case errors.Is(err, breaker.ErrLimited):
		return local(problem.ConcurrencyLimited, retryAfter, err)
	case errors.Is(err, breaker.ErrOpen):
		return local(problem.BreakerOpen, max(b.RetryAfter(), retryAfter), err)
	case gone:
		return neutral(problem.New(problem.ClientCanceled, "", err))
	case upload != nil:
		return neutral(problem.Upload(upload))
	case errors.Is(err, context.Canceled):
		return neutral(problem.New(problem.ClientCanceled, "", err))
	case errors.As(err, &connect) && connect.tls:
		return upstream(problem.UpstreamTLS, balancer.Refused, failTLS, retryConnect, err)
	case connect != nil && timedOut(err):
		return upstream(problem.UpstreamTimeout, balancer.Timeout, failDialTimeout, retryConnect, err)
	case connect != nil:
		return upstream(problem.UpstreamRefused, balancer.Refused, failRefused, retryConnect, err)
	case errors.Is(err, breaker.ErrTimeout), errors.Is(err, errTotal), timedOut(err):
		return upstream(problem.UpstreamTimeout, balancer.Timeout, failTimeout, retryTimeout, err)
	case malformed(err):
		return upstream(problem.UpstreamProtocol, balancer.Reset, failProtocol, retryReset, unquoted{err})
	case unsendable(err):
		return failure{problem: problem.New(problem.BadRequest, "", unquoted{err}), result: balancer.Canceled, word: failProtocol}
	}
	return upstream(problem.UpstreamReset, balancer.Reset, failReset, retryReset, err)
}

// shed is the answer to a request that an adaptive limit turns away.
func shed(c adaptive.Class, err error) *problem.Error {
	p := problem.New(problem.ConcurrencyLimited, "the service answers more slowly than it does without a queue, so fewer requests are let in; this route's class is "+c.String(), err)
	p.RetryAfter = retryAfter
	return p
}

func local(reason problem.Reason, after time.Duration, err error) failure {
	p := problem.New(reason, "", err)
	p.RetryAfter = after
	return failure{problem: p, result: balancer.Canceled}
}

func neutral(p *problem.Error) failure {
	return failure{problem: p, result: balancer.Canceled, word: failCanceled}
}

func upstream(reason problem.Reason, result balancer.Result, word string, retry retryClass, err error) failure {
	return failure{problem: problem.New(reason, "", err), result: result, word: word, retry: retry}
}

// unquoted is an error without what it quotes: net/http tells what an instance
// sent where it should not have, and that may be what a client sent to it.
type unquoted struct{ error }

var quoted = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)

func (e unquoted) Error() string { return quoted.ReplaceAllString(e.error.Error(), `"…"`) }
func (e unquoted) Unwrap() error { return e.error }

func timedOut(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// malformed reports whether an instance answered with something that is not
// HTTP. net/http gives most of these errors no type.
func malformed(err error) bool {
	if errors.Is(err, errProtocol) {
		return true
	}
	s := err.Error()
	for _, part := range [...]string{"malformed", "response headers exceeded", "bad Content-Length", "unsupported transfer encoding",
		"too many transfer encodings", "invalid Transfer-Encoding", "PROTOCOL_ERROR", "FRAME_SIZE_ERROR", "COMPRESSION_ERROR", "1xx informational responses",
		"unexpected EOF reading trailer", "http2: frame too large", "cannot contain both", "http2: unexpected"} {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}

// unsendable reports whether net/http refused to send the request at all: a
// field that a middleware made is not valid.
func unsendable(err error) bool {
	return strings.HasPrefix(err.Error(), "net/http: invalid ")
}

// isTLS reports whether a connection failed in the TLS handshake.
func isTLS(err error) bool {
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var verify *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	return errors.As(err, &record) || errors.As(err, &alert) || errors.As(err, &verify) || errors.As(err, &authority) || errors.As(err, &name)
}
