package ratelimit

import (
	"io"
	"net/http"
	"slices"

	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/wire"
)

// writer sets the fields at the last moment, so that they replace what the
// answer brought along.
type writer struct {
	http.ResponseWriter
	fields fields
	sent   bool
}

// WriteHeader implements http.ResponseWriter. 1xx answers go out untouched.
func (w *writer) WriteHeader(code int) { w.WriteFields(code, nil) }

// WriteFields implements middleware.FieldWriter.
func (w *writer) WriteFields(code int, lines []wire.Line) {
	if code >= 200 || code == http.StatusSwitchingProtocols {
		lines = slices.DeleteFunc(lines, func(l wire.Line) bool { return ours(l.Name) })
		w.stamp()
	}
	middleware.WriteFields(w.ResponseWriter, code, lines)
}

// ours reports whether a field is one of those by which clients are told.
func ours(name string) bool {
	switch name {
	case policyField, stateField, limitField, remainingField, resetField:
		return true
	}
	return false
}

// Write implements http.ResponseWriter.
func (w *writer) Write(b []byte) (int, error) {
	w.stamp()
	return w.ResponseWriter.Write(b)
}

// ReadFrom implements io.ReaderFrom.
func (w *writer) ReadFrom(r io.Reader) (int64, error) {
	w.stamp()
	return io.Copy(w.ResponseWriter, r) // uses the server's own ReaderFrom where it has one
}

// FlushError lets http.ResponseController flush: that sends the header.
func (w *writer) FlushError() error {
	w.stamp()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Flush implements http.Flusher.
func (w *writer) Flush() { _ = w.FlushError() } // as http.Flusher: no way to tell

// Unwrap lets http.ResponseController reach what is below.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *writer) stamp() {
	if !w.sent {
		w.sent = true
		w.fields.set(w.Header())
	}
}
