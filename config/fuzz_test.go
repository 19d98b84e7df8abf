package config_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/config"
)

// FuzzLoad feeds the loader whatever there is. It never panics, refuses with
// *Faults that all have a code and a message that prints, and what it accepts
// it can print and load again.
func FuzzLoad(f *testing.F) {
	files, err := filepath.Glob("testdata/*.*")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && !strings.HasSuffix(file, ".err") {
			f.Add(text)
		}
	}
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("routes: &a\n  - <<: *a\n"))
	f.Add([]byte("? [a]\n: b\n"))
	f.Add([]byte("upstreams: [{service: a, retry: {on: [~]}}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := config.Parse("fuzz.yaml", text, config.LoadOptions{Pure: true})
		if err != nil {
			var fs *config.Faults
			if !errors.As(err, &fs) {
				t.Fatalf("an error that is no fault: %v", err)
			}
			if fs.Errors() == 0 || c != nil {
				t.Fatalf("refused without an error: %v", fs)
			}
			for _, fault := range fs.All {
				if fault.Code == "" || fault.Message == "" {
					t.Fatalf("a fault without code or message: %+v", fault)
				}
			}
			var out bytes.Buffer
			if err := fs.Text(&out); err != nil {
				t.Fatal(err)
			}
			if strings.ContainsFunc(out.String(), func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f || r == 0x9b }) {
				t.Fatalf("control characters in %q", &out)
			}
			return
		}
		var out bytes.Buffer
		if err := c.Print(&out, config.PrintOptions{Defaults: true}); err != nil {
			t.Fatal(err)
		}
		again, err := config.Parse("printed.yaml", out.Bytes(), config.LoadOptions{Pure: true})
		if err != nil {
			t.Fatalf("what was printed does not load: %v\n%s", err, &out)
		}
		var second bytes.Buffer
		if err := again.Print(&second, config.PrintOptions{Defaults: true}); err != nil {
			t.Fatal(err)
		}
		if second.String() != out.String() {
			t.Fatalf("printed\n%s\nloads as\n%s", &out, &second)
		}
	})
}
