package devcatalog

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// apiError is an answer other than 200: its text is the whole body.
type apiError struct {
	code int
	text string
}

// Error is the text that the client reads.
func (e *apiError) Error() string { return e.text }

func badRequest(format string, a ...any) error {
	return &apiError{http.StatusBadRequest, fmt.Sprintf(format, a...)}
}

func notFound(format string, a ...any) error {
	return &apiError{http.StatusNotFound, fmt.Sprintf(format, a...)}
}

func serverError(format string, a ...any) error {
	return &apiError{http.StatusInternalServerError, fmt.Sprintf(format, a...)}
}

// full is the answer where a limit of this server is reached. Consul has no
// such limits, so the text says who speaks.
func full(what string, limit int) error {
	return &apiError{http.StatusServiceUnavailable, fmt.Sprintf("devcatalog: too many %s, the limit is %d", what, limit)}
}

// writeError answers with what a handler returned. Anything that is not meant
// for the client by its kind is a 500 with its text, as in Consul.
func (s *Server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	var api *apiError
	var large *http.MaxBytesError
	switch {
	case r.Context().Err() != nil: // the client left: nobody reads the answer
	case errors.As(err, &api):
		writeText(w, api.code, api.text)
	case errors.As(err, &large):
		w.Header().Set("Connection", "close")
		writeText(w, http.StatusRequestEntityTooLarge, tooLarge(r.ContentLength))
	default:
		writeText(w, http.StatusInternalServerError, err.Error())
	}
}

func tooLarge(length int64) string {
	return fmt.Sprintf("Request body(%d bytes) too large, max size: %d bytes. See https://www.consul.io/docs/agent/config/config-files#kv_max_value_size.", length, maxBody)
}

func writeText(w http.ResponseWriter, code int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text)) // an error here is a client that left
}

// writeJSON answers 200 with v, compact or, where ?pretty is asked, indented.
func writeJSON(w http.ResponseWriter, r *http.Request, v any) error {
	return writeJSONStatus(w, r, http.StatusOK, v)
}

// gzipFrom is the size from which an answer is compressed for who accepts it.
const gzipFrom = 1024

func writeJSONStatus(w http.ResponseWriter, r *http.Request, code int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if r.URL.Query().Has("pretty") {
		var b bytes.Buffer
		if err := json.Indent(&b, body, "", "    "); err != nil {
			return err
		}
		b.WriteByte('\n')
		body = b.Bytes()
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if len(body) >= gzipFrom && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		w.WriteHeader(code)
		z := gzip.NewWriter(w)
		_, _ = z.Write(body) // an error here is a client that left
		_ = z.Close()
		return nil
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, _ = w.Write(body)
	return nil
}

// decode reads the request's body as Consul does: a field that is not known is
// an error, and whatever follows the first value is not looked at. It returns
// how long that value was.
func decode(r *http.Request, v any) (int64, error) {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return 0, err
		}
		return 0, badRequest("Request decode failed: %v", err)
	}
	return d.InputOffset(), nil
}
