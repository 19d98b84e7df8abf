// Package coding has the content codings of HTTP, gzip, br and zstd: which one
// a client wants, encoders and decoders that are used again. It is the only
// door to the libraries of each, starts nothing and knows nothing of messages.
package coding

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Names returns the names of the codings, in the order in which they are
// offered where nobody says otherwise.
func Names() []string { return []string{"zstd", "br", "gzip"} }

// The index of each coding in this package's arrays.
const (
	codeZstd = iota
	codeBr
	codeGzip
	codes
)

func indexOf(name string) int {
	switch name {
	case "zstd":
		return codeZstd
	case "br":
		return codeBr
	case "gzip", "x-gzip": // RFC 9110 section 8.4.1.3
		return codeGzip
	}
	return -1
}

// maxOffers bounds how much of Accept-Encoding is read.
const maxOffers = 32

// Negotiate returns the coding for a client that sent those lines of
// Accept-Encoding, out of those that offer names, the best first; nothing for
// none (RFC 9110 section 12.5.3). What the client weighs the same the order of
// offer decides; what cannot be parsed it is taken not to want.
func Negotiate(lines, offer []string) string {
	weights := [codes]int{-1, -1, -1} // thousandths; -1: not named
	star, identity := -1, -1
	left := maxOffers
	for _, line := range lines {
		for part := range strings.SplitSeq(line, ",") {
			if left--; left < 0 {
				break
			}
			name, params, _ := strings.Cut(part, ";")
			name = strings.Trim(name, " \t")
			q := weight(params)
			switch i := known(name); {
			case i >= 0:
				weights[i] = max(weights[i], q)
			case name == "*":
				star = q
			case strings.EqualFold(name, "identity"):
				identity = q
			}
		}
	}
	best, top := "", max(0, identity)
	for _, name := range offer {
		i := indexOf(name)
		if i < 0 {
			continue
		}
		q := weights[i]
		if q < 0 {
			q = star
		}
		// A coding beats an identity of the same weight, that of another
		// coding does not.
		if q > top || q == top && q > 0 && best == "" {
			best, top = name, q
		}
	}
	return best
}

// known is indexOf for a name in any case, without an allocation.
func known(name string) int {
	if i := indexOf(name); i >= 0 {
		return i
	}
	for _, n := range [...]string{"zstd", "br", "gzip", "x-gzip"} {
		if strings.EqualFold(name, n) {
			return indexOf(n)
		}
	}
	return -1
}

// weight reads ";q=0.5" as thousandths: 1000 where there is none, 0 where it
// is malformed.
func weight(params string) int {
	q := strings.Trim(params, " \t")
	if q == "" {
		return 1000
	}
	name, value, _ := strings.Cut(q, "=")
	if name != "q" && name != "Q" || value == "" || len(value) > 5 || value[0] != '0' && value[0] != '1' {
		return 0
	}
	n := int(value[0]-'0') * 1000
	if len(value) == 1 {
		return n
	}
	if value[1] != '.' {
		return 0
	}
	for i, scale := 2, 100; i < len(value); i, scale = i+1, scale/10 {
		c := value[i]
		if c < '0' || c > '9' {
			return 0
		}
		n += int(c-'0') * scale
	}
	if n > 1000 {
		return 0
	}
	return n
}

// Encoders makes encoders of one level and keeps those that are done for the
// next. It is safe for concurrent use.
type Encoders struct{ pools [codes]sync.Pool }

// engine is what the libraries' writers have in common.
type engine interface {
	io.WriteCloser
	Flush() error
	Reset(io.Writer)
}

// maxWindow is what a zstd decoder has to grant on the web (RFC 9659).
const maxWindow = 8 << 20

// NewEncoders returns encoders of a level: fast, default or best.
func NewEncoders(level string) (*Encoders, error) {
	var gz, br int
	var zs zstd.EncoderLevel
	switch level {
	case "fast":
		gz, br, zs = gzip.BestSpeed, 1, zstd.SpeedFastest
	case "default":
		gz, br, zs = 6, 4, zstd.SpeedDefault
	case "best":
		gz, br, zs = gzip.BestCompression, 9, zstd.SpeedBetterCompression
	default:
		return nil, fmt.Errorf("no level %q", level)
	}
	e := &Encoders{}
	e.pools[codeGzip].New = func() any {
		w, _ := gzip.NewWriterLevel(io.Discard, gz) // fails for levels that there are none of
		return &Encoder{engine: w, pool: &e.pools[codeGzip]}
	}
	e.pools[codeBr].New = func() any {
		return &Encoder{engine: brotli.NewWriterLevel(io.Discard, br), pool: &e.pools[codeBr]}
	}
	e.pools[codeZstd].New = func() any {
		// One goroutine: the caller's. A small window, since each answer under
		// way holds one.
		w, _ := zstd.NewWriter(io.Discard, zstd.WithEncoderLevel(zs), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true),
			zstd.WithWindowSize(256<<10)) // fails for options that contradict each other
		return &Encoder{engine: w, pool: &e.pools[codeZstd]}
	}
	return e, nil
}

// Encoder is one stream of a coding. It ends with Close or Discard, after
// which it must not be used.
type Encoder struct {
	engine
	pool *sync.Pool
}

// To returns an encoder that writes to w.
func (e *Encoders) To(w io.Writer, name string) *Encoder {
	enc := e.pools[indexOf(name)].Get().(*Encoder)
	enc.Reset(w)
	return enc
}

// Close ends the stream.
func (e *Encoder) Close() error {
	err := e.engine.Close()
	e.Discard()
	return err
}

// Discard lets go of a stream without an end, so that its reader sees that a
// part is missing.
func (e *Encoder) Discard() {
	e.Reset(io.Discard) // not the client's connection
	e.pool.Put(e)
}

// Decoders is Encoders for the other direction.
type Decoders struct{ pools [codes]sync.Pool }

type resetReader interface {
	io.Reader
	Reset(io.Reader) error
}

// NewDecoders returns decoders.
func NewDecoders() *Decoders {
	d := &Decoders{}
	d.pools[codeGzip].New = func() any { return new(gzip.Reader) }
	d.pools[codeBr].New = func() any { return brotli.NewReader(strings.NewReader("")) }
	d.pools[codeZstd].New = func() any {
		r, _ := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		return r
	}
	return d
}

// Supports reports whether there is a coding of that name.
func Supports(name string) bool { return indexOf(name) >= 0 }

// Decoder reads one stream of a coding.
type Decoder struct {
	resetReader
	pool *sync.Pool
}

// From returns a decoder that reads the coding's stream from r, of which it may
// read the beginning. The error says that it is none.
func (d *Decoders) From(r io.Reader, name string) (*Decoder, error) {
	i := indexOf(name)
	dec := &Decoder{d.pools[i].Get().(resetReader), &d.pools[i]}
	if err := dec.Reset(r); err != nil {
		dec.Release()
		return nil, err
	}
	return dec, nil
}

// Release lets go of the stream. The decoder must not be used any more.
func (d *Decoder) Release() {
	_ = d.Reset(strings.NewReader("")) // lets go of the reader; there is no stream in nothing
	d.pool.Put(d.resetReader)
}

// Check says which of the names are no codings.
func Check(names []string) error {
	for _, n := range names {
		if !slices.Contains(Names(), n) {
			return fmt.Errorf("no coding %q (have: %s)", n, strings.Join(Names(), ", "))
		}
	}
	return nil
}
