package transport

import (
	"errors"
	"fmt"
	"net"
)

// ErrUnsupported is a request that the transport does not serve and has no
// fallback for.
var ErrUnsupported = errors.New("the request needs a transport that is not configured")

var (
	errHTTP2 = errors.New("the instance speaks HTTP/2")
	errStale = errors.New("the connection was closed while it was idle")
)

// ProtocolError is an answer that is not HTTP/1.1 beyond doubt. The connection
// it came on is closed.
type ProtocolError struct {
	Reason string // what is wrong; holds nothing of the answer but field names
}

// Error implements error. The word malformed is what callers that know
// net/http's untyped errors look for.
func (e *ProtocolError) Error() string { return "malformed HTTP response: " + e.Reason }

func malformed(format string, args ...any) error {
	return &ProtocolError{Reason: fmt.Sprintf(format, args...)}
}

// RequestError is a request that cannot be sent as it is. Nothing of it was.
type RequestError struct {
	Reason string
}

// Error implements error, in the words of net/http.
func (e *RequestError) Error() string { return "net/http: invalid " + e.Reason }

// ConnectError is a connection that could not be made: nothing of the request
// was sent.
type ConnectError struct {
	Addr string
	TLS  bool // the handshake failed, and not for being slow
	Err  error
}

// Error implements error.
func (e *ConnectError) Error() string {
	if e.TLS {
		return "TLS handshake with " + e.Addr + ": " + e.Err.Error()
	}
	return "connect to " + e.Addr + ": " + e.Err.Error()
}

// Unwrap returns what the dialler or the handshake failed with.
func (e *ConnectError) Unwrap() error { return e.Err }

// Timeout reports whether the connection took too long.
func (e *ConnectError) Timeout() bool {
	var t net.Error
	return errors.As(e.Err, &t) && t.Timeout()
}

// LostError is a connection that ended before the answer's header was there.
// The instance may have handled the request.
type LostError struct {
	Reused   bool // the connection had served a request before
	Answered bool // a part of an answer had come
	Err      error
}

// Error implements error.
func (e *LostError) Error() string {
	what := "connection ended without an answer: "
	switch {
	case e.Answered:
		what = "connection ended within the answer's header: "
	case e.Reused:
		what = "kept connection ended without an answer: "
	}
	return what + e.Err.Error()
}

// Unwrap returns what writing or reading failed with.
func (e *LostError) Unwrap() error { return e.Err }

// UploadError is a request body that could not be read, or has not the length
// that was declared.
type UploadError struct {
	Err error
}

// Error implements error.
func (e *UploadError) Error() string { return "read the request body: " + e.Err.Error() }

// Unwrap returns what reading failed with.
func (e *UploadError) Unwrap() error { return e.Err }
