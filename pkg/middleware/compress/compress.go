// Package compress codes answers as gzip, br or zstd where the client accepts
// one (RFC 9110 section 12.5.3). Its settings are config.Compress.
//
// An answer is left as it is where it is coded already, small, of a type that
// does not gain, a part of something, without a body, or where somebody relies
// on its very bytes: Cache-Control: no-transform, a digest. Event streams and
// gRPC, whose messages have to go out one by one, and upgraded connections are
// never touched. A flush of the instance's answer still reaches the client.
//
// What is coded is another representation: a strong ETag becomes weak, also on
// 304, Accept-Ranges goes, and Vary says that Accept-Encoding decided. HEAD gets
// the header that GET would. An answer that breaks off is not ended properly, so
// that the client does not take a part for the whole.
package compress

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/coding"
	"github.com/proconsul/proconsul/pkg/middleware"
)

// New returns the middleware for those settings.
func New(c config.Compress) (middleware.Middleware, error) {
	p, err := compile(c)
	if err != nil {
		return nil, err
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if untouched(r) {
				next.ServeHTTP(w, r)
				return
			}
			agreed := coding.Negotiate(r.Header["Accept-Encoding"], c.Encodings)
			if agreed == "" {
				next.ServeHTTP(middleware.NewHook(w, p.varies), r)
				return
			}
			cw := &writer{ResponseWriter: w, p: p, coding: agreed, head: r.Method == http.MethodHead}
			defer cw.abandon()
			next.ServeHTTP(cw, r)
			cw.finish()
		})
	}, nil
}

// Peek says what New's middleware would do with the answer to r.
func Peek(c config.Compress, r *http.Request) string {
	switch agreed := coding.Negotiate(r.Header["Accept-Encoding"], c.Encodings); {
	case untouched(r):
		return "leaves upgrades and gRPC alone"
	case agreed == "":
		return "the client accepts none of " + strings.Join(c.Encodings, ", ")
	default:
		return agreed + " where the answer has " + c.MinSize.String() + " and a type that gains"
	}
}

// untouched reports whether the request begins something that is no plain
// answer.
func untouched(r *http.Request) bool {
	return len(r.Header["Upgrade"]) > 0 || strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}

type policy struct {
	encoders *coding.Encoders
	min      int
	types    []pattern
	names    map[string][]string // values of Content-Encoding
}

// pattern is a media type, or what one begins and ends with.
type pattern struct {
	front, back string
	wild        bool
}

func compile(c config.Compress) (*policy, error) {
	encoders, err := coding.NewEncoders(c.Level)
	if err := errors.Join(err, coding.Check(c.Encodings)); err != nil {
		return nil, err
	}
	p := &policy{encoders: encoders, min: int(c.MinSize), names: map[string][]string{}}
	for _, t := range c.Types {
		front, back, wild := strings.Cut(strings.ToLower(t), "*")
		p.types = append(p.types, pattern{front, back, wild})
	}
	for _, n := range c.Encodings {
		p.names[n] = []string{n}
	}
	return p, nil
}

// gains reports whether answers of that Content-Type are coded.
func (p *policy) gains(contentType string) bool {
	t, _, _ := strings.Cut(contentType, ";")
	t = strings.ToLower(strings.TrimRight(t, " \t"))
	if t == "" || t == "text/event-stream" || strings.HasPrefix(t, "application/grpc") {
		return false
	}
	for _, f := range p.types {
		if !f.wild && t == f.front ||
			f.wild && len(t) > len(f.front)+len(f.back) && strings.HasPrefix(t, f.front) && strings.HasSuffix(t, f.back) {
			return true
		}
	}
	return false
}

// codable reports whether an answer may be coded, but for its length.
func (p *policy) codable(status int, h http.Header) bool {
	switch {
	case status < 200, status == http.StatusNoContent, status == http.StatusPartialContent, status == http.StatusNotModified:
		return false
	case len(h["Content-Encoding"]) > 0, len(h["Content-Range"]) > 0, len(h["Content-Digest"]) > 0, len(h["Repr-Digest"]) > 0, len(h["Digest"]) > 0, len(h["Content-Md5"]) > 0:
		return false
	}
	for _, line := range h["Cache-Control"] {
		for part := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.Trim(part, " \t"), "no-transform") {
				return false
			}
		}
	}
	return p.gains(h.Get("Content-Type"))
}

// small reports whether an answer says that it is below the least size. An
// empty one is, whatever that is.
func (p *policy) small(h http.Header) (known, small bool) {
	length := h["Content-Length"]
	if len(length) != 1 {
		return false, false
	}
	n, err := strconv.ParseInt(length[0], 10, 64)
	return err == nil, err != nil || n < int64(p.min) || n == 0
}

// varies says of an answer that another client would have got it coded.
func (p *policy) varies(status int, h http.Header) {
	if status == http.StatusNotModified {
		middleware.Vary(h, "Accept-Encoding")
		return
	}
	if known, small := p.small(h); p.codable(status, h) && !(known && small) {
		middleware.Vary(h, "Accept-Encoding")
	}
}

// weaken makes a strong ETag weak: what it names is no longer the bytes that
// are sent.
func weaken(h http.Header) {
	if tag := h["Etag"]; len(tag) == 1 && strings.HasPrefix(tag[0], `"`) {
		h["Etag"] = []string{"W/" + tag[0]}
	}
}

type state uint8

const (
	undecided state = iota
	plain           // everything passes
	holding         // the length is not known: the beginning is kept until it is enough
	coded
)

// writer codes one answer.
type writer struct {
	http.ResponseWriter
	p      *policy
	coding string
	head   bool

	state   state
	status  int
	held    []byte
	encoder *coding.Encoder // nil where HEAD has no body
}

// WriteHeader implements http.ResponseWriter. Interim answers pass.
func (w *writer) WriteHeader(status int) {
	if w.state != undecided || status < 200 && status != http.StatusSwitchingProtocols {
		w.ResponseWriter.WriteHeader(status)
		return
	}
	h := w.Header()
	known, small := w.p.small(h)
	switch {
	case status == http.StatusNotModified:
		// Its header stands for that of the answer which the client has.
		middleware.Vary(h, "Accept-Encoding")
		weaken(h)
		fallthrough
	case !w.p.codable(status, h), known && small:
		w.state = plain
		w.ResponseWriter.WriteHeader(status)
	case known || w.head:
		w.begin(status, known)
	default:
		w.state, w.status = holding, status
	}
}

// begin writes the header of a coded answer. Where HEAD cannot know whether
// GET's answer would be long enough it says nothing of the coding.
func (w *writer) begin(status int, sure bool) {
	h := w.Header()
	middleware.Vary(h, "Accept-Encoding")
	weaken(h)
	w.state = coded
	if sure {
		h["Content-Encoding"] = w.p.names[w.coding]
		delete(h, "Content-Length")
		delete(h, "Accept-Ranges")
	}
	w.ResponseWriter.WriteHeader(status)
	if !w.head {
		w.encoder = w.p.encoders.To(w.ResponseWriter, w.coding)
	}
}

// Write implements http.ResponseWriter.
func (w *writer) Write(b []byte) (int, error) {
	if w.state == undecided {
		w.WriteHeader(http.StatusOK)
	}
	switch w.state {
	case coded:
		if w.encoder == nil {
			return len(b), nil
		}
		return w.encoder.Write(b)
	case holding:
		w.held = append(w.held, b...)
		if len(w.held) < w.p.min {
			return len(b), nil
		}
		return len(b), w.release()
	}
	return w.ResponseWriter.Write(b)
}

// release begins to code what was held.
func (w *writer) release() error {
	w.begin(w.status, true)
	held := w.held
	w.held = nil
	_, err := w.encoder.Write(held)
	return err
}

// FlushError is what http.ResponseController looks for. An answer whose length
// is not known streams from here on.
func (w *writer) FlushError() error {
	if w.state == undecided {
		w.WriteHeader(http.StatusOK)
	}
	if w.state == holding {
		if err := w.release(); err != nil {
			return err
		}
	}
	if w.encoder != nil {
		if err := w.encoder.Flush(); err != nil {
			return err
		}
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Unwrap lets http.ResponseController reach everything else.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// finish ends the answer of a handler that has returned.
func (w *writer) finish() {
	switch {
	case w.encoder != nil:
		enc := w.encoder
		w.encoder = nil
		_ = enc.Close() // the client may have gone; the proxy has noticed or there was nothing left to write
	case w.state == holding: // shorter than is worth it
		w.state = plain
		h := w.Header()
		if len(h["Trailer"]) == 0 {
			h["Content-Length"] = []string{strconv.Itoa(len(w.held))}
		}
		w.ResponseWriter.WriteHeader(w.status)
		_, _ = w.ResponseWriter.Write(w.held)
	}
}

// abandon lets go of the encoder of an answer that broke off.
func (w *writer) abandon() {
	if w.encoder != nil {
		w.encoder.Discard()
		w.encoder = nil
	}
}
