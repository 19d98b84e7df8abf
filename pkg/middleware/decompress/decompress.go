// Package decompress gives instances the plain body of a request that is coded
// as gzip, br or zstd. Its settings are config.Decompress.
//
// It bounds what a small body may become: 413 above max bytes, or above ratio
// times what was sent. A body that is none of its coding is answered 400, one
// of another coding 415 with Accept-Encoding. The body streams, so where these
// show late the instance has seen a beginning, and its request is broken off.
package decompress

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/coding"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
)

// ratioFrom is how long a body has to be for its ratio to count: short ones
// may be very even.
const ratioFrom = 64 << 10

// New returns the middleware for those settings.
func New(c config.Decompress) (middleware.Middleware, error) {
	if c.Max <= 0 || c.Ratio <= 0 {
		return nil, errors.New("max and ratio are needed")
	}
	if err := coding.Check(c.Encodings); err != nil {
		return nil, err
	}
	decoders := coding.NewDecoders()
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			name, refusal := coded(c, r)
			switch {
			case refusal != nil:
				problem.Write(w, r, refusal)
				return
			case name == "":
				next.ServeHTTP(w, r)
				return
			}
			b := &body{raw: r.Body, decoders: decoders, name: name, max: int64(c.Max), ratio: int64(c.Ratio)}
			defer b.release()
			r.Body, r.ContentLength = b, -1
			delete(r.Header, "Content-Encoding")
			delete(r.Header, "Content-Length")
			next.ServeHTTP(w, r)
		})
	}, nil
}

// Peek says what New's middleware would do with r.
func Peek(c config.Decompress, r *http.Request) (text string, refusal *problem.Error) {
	name, refusal := coded(c, r)
	if name == "" {
		return "", refusal
	}
	return fmt.Sprintf("decodes %s up to %s and %d times its length", name, c.Max, c.Ratio), refusal
}

// coded returns the coding of r's body; nothing where it has none.
func coded(c config.Decompress, r *http.Request) (string, *problem.Error) {
	lines := r.Header["Content-Encoding"]
	if len(lines) == 0 || r.Body == nil || r.Body == http.NoBody {
		return "", nil
	}
	name := strings.ToLower(strings.Trim(strings.Join(lines, ","), " \t"))
	switch name {
	case "x-gzip":
		name = "gzip"
	case "", "identity":
		return "", nil
	}
	if !slices.Contains(c.Encodings, name) {
		p := problem.New(problem.UnsupportedMediaType, "the body may be coded as "+strings.Join(c.Encodings, ", ")+" or not at all", nil)
		p.Header = http.Header{"Accept-Encoding": {strings.Join(c.Encodings, ", ")}} // RFC 9110 section 12.5.3
		return "", p
	}
	return name, nil
}

// body is the plain text of a coded body. A transport may read it in a
// goroutine of its own, also for a while after the handler has returned.
type body struct {
	decoders *coding.Decoders
	name     string
	max      int64
	ratio    int64

	mu      sync.Mutex // held while the body is read
	raw     io.ReadCloser
	decoder *coding.Decoder
	in, out int64
	rawErr  error // how reading from the client ended
	err     error // how the body ended
}

// source counts what comes from the client.
type source struct{ b *body }

func (s source) Read(p []byte) (int, error) {
	n, err := s.b.raw.Read(p)
	s.b.in += int64(n)
	if err != nil {
		s.b.rawErr = err
	}
	return n, err
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	if b.decoder == nil {
		d, err := b.decoders.From(source{b}, b.name)
		if err != nil {
			return 0, b.fail(err)
		}
		b.decoder = d
	}
	n, err := b.decoder.Read(p)
	b.out += int64(n)
	switch {
	case b.out > b.max:
		b.err = problem.New(problem.BodyTooLarge, fmt.Sprintf("decoded it is above the limit of %d bytes", b.max), nil)
	case b.out > ratioFrom && b.out/b.ratio > b.in:
		b.err = problem.New(problem.BodyTooLarge, fmt.Sprintf("decoded it is above %d times its length", b.ratio), nil)
	case err == io.EOF:
		b.err = b.end()
	case err != nil:
		return 0, b.fail(err)
	}
	if b.err != nil && b.err != io.EOF {
		return 0, b.err
	}
	return n, b.err
}

// end reads the end of the client's body, with which trailers come. More of it
// is no part of the coding.
func (b *body) end() error {
	var one [1]byte
	for {
		n, err := source{b}.Read(one[:])
		switch {
		case n > 0:
			return problem.New(problem.BadRequest, "the request body goes on behind its "+b.name, nil)
		case err != nil:
			return err
		}
	}
}

// fail says whose fault an error is: the connection's or the body's.
func (b *body) fail(err error) error {
	if b.rawErr != nil && b.rawErr != io.EOF {
		b.err = b.rawErr
	} else {
		b.err = problem.New(problem.BadRequest, "the request body is not valid "+b.name, err)
	}
	return b.err
}

// Close implements io.Closer.
func (b *body) Close() error { return b.raw.Close() }

var errOver = errors.New("the request is over")

// release lets go of the decoder, unless somebody is still reading: then it is
// theirs.
func (b *body) release() {
	if !b.mu.TryLock() {
		return
	}
	defer b.mu.Unlock()
	if b.decoder != nil {
		b.decoder.Release()
		b.decoder = nil
	}
	if b.err == nil {
		b.err = errOver
	}
}
