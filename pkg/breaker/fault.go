package breaker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// fault reports whether an answer counts as a failure of the service.
func (s *Settings) fault(req *http.Request, resp *http.Response) bool {
	if slices.Contains(s.FailOn, resp.StatusCode) {
		return true
	}
	return len(s.FailOn) > 0 && CallFailed(req, resp)
}

// CallFailed reports whether an answer says that a gRPC server cannot serve. It
// says so in a status of its own, and in the header only where there is no body
// ("trailers-only"): that is how a server or its sidecar refuses a call.
func CallFailed(req *http.Request, resp *http.Response) bool {
	code := resp.Header["Grpc-Status"]
	if len(code) == 0 {
		return false
	}
	switch code[0] {
	case "13", "14": // INTERNAL, UNAVAILABLE
		return true
	case "4": // DEADLINE_EXCEEDED, which is the client's wish where it set the deadline
		return req.Header.Get("Grpc-Timeout") == ""
	}
	return false
}

// timeoutError is an ErrTimeout that knows more.
type timeoutError struct {
	try time.Duration // 0: not the try's timer
	err error         // what the transport made of it
}

func (e *timeoutError) Error() string {
	s := ErrTimeout.Error()
	if e.try > 0 {
		s = fmt.Sprintf("no response header within %s", e.try)
	}
	if e.err != nil && !errors.Is(e.err, ErrTimeout) {
		s += ": " + e.err.Error()
	}
	return s
}

// Is matches what the error is. The transport's own error is not in the chain:
// it is often a context.Canceled, which a caller would take for the client's.
func (e *timeoutError) Is(target error) bool {
	return target == ErrTimeout || target == context.DeadlineExceeded
}

// As finds types in the transport's error, which may know in which phase it
// was.
func (e *timeoutError) As(target any) bool { return e.err != nil && errors.As(e.err, target) }

// Timeout says that the error is one, as net.Error has it.
func (e *timeoutError) Timeout() bool { return true }

// ended returns the error of a request whose context ended before the attempt.
func ended(ctx context.Context, err error) error {
	if late(ctx, err) {
		return &timeoutError{err: context.Cause(ctx)}
	}
	return err
}

// late reports whether a context has ended because time is up.
func late(ctx context.Context, err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || timedOut(context.Cause(ctx))
}

func timedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, ErrTimeout) || errors.As(err, &t) && t.Timeout()
}

// unsendable reports whether net/http refused to send the request at all,
// because of a field that is not valid: the gateway's fault. Such errors have
// no type.
func unsendable(err error) bool { return strings.HasPrefix(err.Error(), "net/http: invalid ") }

// discard closes the body of an answer that nobody wants any more.
func discard(resp *http.Response) {
	if resp != nil && resp.Body != nil {
		_ = resp.Body.Close() // its error would be about an answer that is not used
	}
}
