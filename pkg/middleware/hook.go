package middleware

import (
	"io"
	"net/http"
	"net/textproto"
	"strings"
)

// Hook is a ResponseWriter that lets a function look at an answer's header
// once, right before it is written: what it changes there replaces what the
// instance said. Interim answers pass untouched.
type Hook struct {
	http.ResponseWriter
	before func(status int, h http.Header)
	done   bool
}

// NewHook returns a Hook around w.
func NewHook(w http.ResponseWriter, before func(status int, h http.Header)) *Hook {
	return &Hook{ResponseWriter: w, before: before}
}

// WriteHeader implements http.ResponseWriter.
func (k *Hook) WriteHeader(code int) {
	if code >= 200 || code == http.StatusSwitchingProtocols {
		k.run(code)
	}
	k.ResponseWriter.WriteHeader(code)
}

func (k *Hook) run(code int) {
	if !k.done {
		k.done = true
		k.before(code, k.Header())
	}
}

// Write implements http.ResponseWriter.
func (k *Hook) Write(b []byte) (int, error) {
	k.run(http.StatusOK)
	return k.ResponseWriter.Write(b)
}

// ReadFrom implements io.ReaderFrom.
func (k *Hook) ReadFrom(r io.Reader) (int64, error) {
	k.run(http.StatusOK)
	return io.Copy(k.ResponseWriter, r) // uses the server's own ReaderFrom where it has one
}

// FlushError is what http.ResponseController looks for: a flush may be what
// writes the header.
func (k *Hook) FlushError() error {
	k.run(http.StatusOK)
	return http.NewResponseController(k.ResponseWriter).Flush()
}

// Unwrap lets http.ResponseController reach everything else.
func (k *Hook) Unwrap() http.ResponseWriter { return k.ResponseWriter }

// Vary adds a name to the field by which caches tell answers apart.
func Vary(h http.Header, name string) {
	have := h["Vary"]
	for _, line := range have {
		for part := range strings.SplitSeq(line, ",") {
			if part = textproto.TrimString(part); part == "*" || strings.EqualFold(part, name) {
				return
			}
		}
	}
	// Copied: what is there may be shared by many answers.
	h["Vary"] = append(have[:len(have):len(have)], name)
}
