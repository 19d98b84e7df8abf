package problem

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
)

// Upload says whose fault it is that a request's body could not be read: the
// client's, or nobody's where it has left; never an instance's. What reads the
// body may have said so itself, with an *Error.
func Upload(err error) *Error {
	var said *Error
	var tooLarge *http.MaxBytesError
	var op *net.OpError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &said):
		return said
	case errors.As(err, &tooLarge):
		return New(BodyTooLarge, "", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		p := New(BadRequest, "the request body did not arrive in time", err)
		p.Status = http.StatusRequestTimeout
		return p
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, context.Canceled), errors.Is(err, net.ErrClosed), errors.As(err, &op):
		return New(ClientCanceled, "", err)
	}
	return New(BadRequest, "the request body is malformed", err)
}
