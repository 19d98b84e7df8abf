package problem

import (
	"math"
	"net/http"
	"strconv"
	"strings"
)

// CallType returns the media type of the answer to a gRPC or gRPC-Web call, or
// nothing where the request is none.
func CallType(r *http.Request) string {
	line := r.Header["Content-Type"]
	if len(line) != 1 || !strings.HasPrefix(line[0], "application/grpc") {
		return ""
	}
	mediaType, _, _ := strings.Cut(line[0], ";")
	mediaType = strings.TrimSpace(mediaType)
	switch rest := mediaType[len("application/grpc"):]; {
	case rest == "", rest[0] == '+', strings.HasPrefix(rest, "-web"):
		return mediaType
	}
	return ""
}

// Codes of gRPC.
const (
	invalidArgument   = 3
	deadlineExceeded  = 4
	permissionDenied  = 7
	resourceExhausted = 8
	unimplemented     = 12
	internal          = 13
	unavailable       = 14
	unauthenticated   = 16
)

// CallStatus returns the status of gRPC that the error is answered with. It
// follows from the HTTP status, so that a new reason needs no entry here.
func (e *Error) CallStatus() int {
	if e.Reason == UpstreamProtocol {
		return internal // trying again would bring the same
	}
	switch e.Code() {
	case http.StatusBadRequest, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity, http.StatusRequestHeaderFieldsTooLarge:
		return invalidArgument
	case http.StatusUnauthorized:
		return unauthenticated
	case http.StatusForbidden:
		return permissionDenied
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return unimplemented
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		return deadlineExceeded
	case http.StatusRequestEntityTooLarge, http.StatusTooManyRequests:
		return resourceExhausted
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		return unavailable
	}
	return internal
}

// writeStatus answers a call: HTTP 200, and what went wrong in the header that
// is at once the trailer ("trailers-only").
func writeStatus(w http.ResponseWriter, contentType string, p *Error) {
	if rec := recorder(w); rec != nil {
		rec.RecordStatus(p.Code())
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Grpc-Status", strconv.Itoa(p.CallStatus()))
	message := p.Title()
	if p.Detail != "" {
		message += ": " + p.Detail
	}
	h.Set("Grpc-Message", percentEncoded(message))
	if p.RetryAfter > 0 { // for clients with a policy of retries
		h.Set("Grpc-Retry-Pushback-Ms", strconv.FormatInt(int64(math.Ceil(p.RetryAfter.Seconds()))*1000, 10))
	}
	w.WriteHeader(http.StatusOK)
}

// percentEncoded is the form of grpc-message.
func percentEncoded(s string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '%' {
			b.WriteByte('%')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
