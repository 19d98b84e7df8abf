package coding_test

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/pkg/coding"
)

func TestNegotiate(t *testing.T) {
	all := coding.Names() // zstd, br, gzip
	for _, tt := range []struct{ header, want string }{
		{"", ""},
		{"gzip", "gzip"},
		{"gzip, deflate, br, zstd", "zstd"},
		{"gzip, deflate, br", "br"},
		{"X-GZIP", "gzip"},
		{"GZip;Q=0.5", "gzip"},
		{"gzip;q=1.0, br;q=0.5", "gzip"},
		{"gzip;q=0", ""},
		{"gzip;q=0.0, *", "zstd"},
		{"*;q=0.1, gzip", "gzip"},
		{"*;q=0", ""},
		{"identity", ""},
		{"identity, gzip;q=0.5", ""},
		{"identity;q=0.5, gzip;q=0.5", "gzip"},
		{"identity;q=0, br;q=0.001", "br"},
		{"gzip;q=2", ""},
		{"gzip;q=", ""},
		{"gzip;q=0.1234", ""},
		{"gzip ; q=1", "gzip"},
		{"gzip;level=9", ""},
		{"deflate, compress", ""},
		{" , ,gzip,", "gzip"},
		{strings.Repeat("a,", 40) + "gzip", ""}, // nobody has that many
	} {
		if got := coding.Negotiate([]string{tt.header}, all); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.header, got, tt.want)
		}
	}
	if got := coding.Negotiate([]string{"gzip", "br;q=0.9"}, all); got != "gzip" {
		t.Errorf("two lines: %q", got)
	}
	if got := coding.Negotiate([]string{"br, zstd"}, []string{"gzip"}); got != "" {
		t.Errorf("what is not offered: %q", got)
	}
}

// The choice is what RFC 9110 says, worked out in another way: of all that is
// offered nothing acceptable weighs more, and identity wins only by weight.
func TestNegotiateIsWhatTheRFCSays(t *testing.T) {
	type offer struct {
		name string
		q    int // thousandths; -1: not written
	}
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"gzip", "br", "zstd", "deflate", "identity", "*"}), 0, 6, rapid.ID).Draw(t, "names")
		var offers []offer
		var parts []string
		for _, n := range names {
			o := offer{n, rapid.SampledFrom([]int{-1, 0, 1, 500, 999, 1000}).Draw(t, "q")}
			part := n
			if o.q >= 0 {
				part += fmt.Sprintf(";q=%d.%03d", o.q/1000, o.q%1000)
			} else {
				o.q = 1000
			}
			offers, parts = append(offers, o), append(parts, part)
		}
		weigh := func(name string) int {
			star := -1
			for _, o := range offers {
				if o.name == name {
					return o.q
				}
				if o.name == "*" && name != "identity" {
					star = o.q
				}
			}
			return star
		}
		prefer := rapid.Permutation(coding.Names()).Draw(t, "prefer")
		got := coding.Negotiate([]string{strings.Join(parts, ", ")}, prefer)
		want, best := "", 0
		for _, n := range prefer {
			if q := weigh(n); q > best {
				want, best = n, q
			}
		}
		if weigh("identity") > best {
			want = ""
		}
		if got != want {
			t.Fatalf("%q with %v: got %q, want %q", parts, prefer, got, want)
		}
	})
}

func FuzzNegotiate(f *testing.F) {
	f.Add("gzip;q=0.5, br, *;q=0")
	f.Add(";;q=,,=")
	f.Fuzz(func(t *testing.T, header string) {
		got := coding.Negotiate([]string{header}, coding.Names())
		if got != "" && !strings.Contains(strings.ToLower(header), got) && !strings.Contains(header, "*") {
			t.Errorf("%q: got %q, which nobody named", header, got)
		}
	})
}

// Streams of every coding and level come back as they were, from encoders and
// decoders that are used again, also after one that broke off.
func TestStreamsComeBack(t *testing.T) {
	text := strings.Repeat("all the world's a stage, ", 20000)
	decoders := coding.NewDecoders()
	for _, level := range []string{"fast", "default", "best"} {
		encoders, err := coding.NewEncoders(level)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range coding.Names() {
			for round := range 3 {
				var dropped, out bytes.Buffer
				enc := encoders.To(&dropped, name)
				_, _ = io.WriteString(enc, text)
				enc.Discard()
				enc = encoders.To(&out, name)
				if _, err := io.WriteString(enc, text[:100]); err != nil {
					t.Fatal(err)
				}
				if err := enc.Flush(); err != nil || out.Len() == 0 {
					t.Fatalf("%s: a flush left %d bytes, %v", name, out.Len(), err)
				}
				flushed := out.Len()
				dec, err := decoders.From(bytes.NewReader(out.Bytes()), name)
				if err != nil {
					t.Fatal(err)
				}
				part := make([]byte, 100)
				if _, err := io.ReadFull(dec, part); err != nil || string(part) != text[:100] {
					t.Fatalf("%s: after %d bytes a reader has %q, %v", name, flushed, part, err)
				}
				dec.Release()
				if _, err := io.WriteString(enc, text[100:]); err != nil {
					t.Fatal(err)
				}
				if err := enc.Close(); err != nil {
					t.Fatal(err)
				}
				if out.Len() > len(text)/10 {
					t.Errorf("%s %s: %d of %d bytes", name, level, out.Len(), len(text))
				}
				whole := out.Bytes()
				dec, err = decoders.From(bytes.NewReader(whole), name)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(dec)
				if err != nil || string(got) != text {
					t.Fatalf("%s %s round %d: %d bytes, %v", name, level, round, len(got), err)
				}
				dec.Release()
				if dec, err = decoders.From(bytes.NewReader(whole[:len(whole)-3]), name); err == nil {
					if _, err = io.ReadAll(dec); err == nil {
						t.Errorf("%s: a part passed for the whole", name)
					}
					dec.Release()
				}
			}
		}
	}
}

func TestNegotiateCost(t *testing.T) {
	lines, offer := []string{"gzip, deflate, br, zstd"}, coding.Names()
	if got := testing.AllocsPerRun(100, func() { coding.Negotiate(lines, offer) }); got > 0 {
		t.Errorf("%v allocations", got)
	}
}

func BenchmarkNegotiate(b *testing.B) {
	lines, offer := []string{"gzip, deflate, br, zstd"}, coding.Names()
	b.ReportAllocs()
	for b.Loop() {
		coding.Negotiate(lines, offer)
	}
}

// BenchmarkEncode is of JSON as APIs answer it.
func BenchmarkEncode(b *testing.B) {
	var text bytes.Buffer
	for i := range 2000 {
		fmt.Fprintf(&text, `{"id":%d,"name":"customer %d","total":%.2f,"tags":["new","eu"],"note":"%x"},`, i, i*7919%1000, math.Sqrt(float64(i)), i*104729)
	}
	for _, level := range []string{"fast", "default", "best"} {
		encoders, err := coding.NewEncoders(level)
		if err != nil {
			b.Fatal(err)
		}
		for _, name := range coding.Names() {
			b.Run(name+"/"+level, func(b *testing.B) {
				b.SetBytes(int64(text.Len()))
				b.ReportAllocs()
				var n counter
				for b.Loop() {
					n = 0
					enc := encoders.To(&n, name)
					_, _ = enc.Write(text.Bytes())
					_ = enc.Close()
				}
				b.ReportMetric(float64(text.Len())/float64(n), "ratio")
			})
		}
	}
}

type counter int

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }
