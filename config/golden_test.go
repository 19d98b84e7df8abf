package config_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/config"
)

var update = flag.Bool("update", false, "rewrite golden files and the generated reference")

// golden compares got with the file, or rewrites it.
func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("differs from %s (go test -update rewrites it)\n--- got\n%s\n--- want\n%s", file, got, want)
	}
}

// load reads a file of testdata so that messages do not depend on where the
// tests run.
func load(t *testing.T, name string) (*config.Config, error) {
	t.Helper()
	t.Chdir("testdata")
	return config.Load(name, config.LoadOptions{})
}

// Every bad_*.yaml is refused with exactly the faults of its .err.
func TestBad(t *testing.T) {
	t.Setenv("SET_TOKEN", "leak-me-not")
	files, err := filepath.Glob("testdata/bad_*")
	if err != nil || len(files) == 0 {
		t.Fatal("no bad_* files", err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, ".err") {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			want, err := filepath.Abs(strings.TrimSuffix(file, filepath.Ext(file)) + ".err")
			if err != nil {
				t.Fatal(err)
			}
			c, err := load(t, filepath.Base(file))
			var faults *config.Faults
			if !errors.As(err, &faults) {
				t.Fatalf("err = %v, want *Faults", err)
			}
			if c != nil {
				t.Error("a refused configuration came back")
			}
			var out bytes.Buffer
			if err := faults.Text(&out); err != nil {
				t.Fatal(err)
			}
			golden(t, want, out.Bytes())
			leaks(t, faults)
		})
	}
}

// leaks fails where a secret of testdata shows in any form of the faults: all
// of them hold "leak".
func leaks(t *testing.T, faults *config.Faults) {
	t.Helper()
	for _, format := range []string{"text", "json", "github"} {
		var out bytes.Buffer
		if err := faults.Write(&out, format); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out.String(), "leak") {
			t.Errorf("a secret shows as %s:\n%s", format, &out)
		}
	}
	if strings.Contains(faults.Error(), "leak") {
		t.Errorf("a secret shows in the error: %v", faults)
	}
}

// Every good_*.yaml loads, prints as its .golden with all defaults and
// sources, and what is printed loads again as the same settings.
func TestGood(t *testing.T) {
	t.Setenv("SET_TOKEN", "leak-me-not")
	t.Setenv("SET_PORT", "9091")
	files, err := filepath.Glob("testdata/good_*")
	if err != nil || len(files) == 0 {
		t.Fatal("no good_* files", err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, ".golden") {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			want, err := filepath.Abs(strings.TrimSuffix(file, filepath.Ext(file)) + ".golden")
			if err != nil {
				t.Fatal(err)
			}
			c, err := load(t, filepath.Base(file))
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := c.Print(&out, config.PrintOptions{Sources: true}); err != nil {
				t.Fatal(err)
			}
			if c.Warnings.Len() > 0 {
				out.WriteString("---\n")
				if err := c.Warnings.Text(&out); err != nil {
					t.Fatal(err)
				}
			}
			golden(t, want, out.Bytes())
			leaks(t, c.Warnings)
			if strings.Contains(out.String(), "leak") {
				t.Errorf("a secret is printed:\n%s", &out)
			}
			for _, o := range []config.PrintOptions{{}, {Defaults: true}, {Defaults: true, Sources: true}} {
				roundTrip(t, c, o)
			}
		})
	}
}

// roundTrip prints c, loads that, and prints again: the two must be equal.
func roundTrip(t *testing.T, c *config.Config, o config.PrintOptions) {
	t.Helper()
	var first, second, all bytes.Buffer
	if err := c.Print(&first, o); err != nil {
		t.Fatal(err)
	}
	again, err := config.Parse("printed.yaml", first.Bytes(), config.LoadOptions{Pure: true})
	if err != nil {
		t.Fatalf("what Print(%+v) wrote does not load: %v\n%s", o, err, &first)
	}
	if err := c.Print(&all, config.PrintOptions{Defaults: true}); err != nil {
		t.Fatal(err)
	}
	if err := again.Print(&second, config.PrintOptions{Defaults: true}); err != nil {
		t.Fatal(err)
	}
	if second.String() != all.String() {
		t.Errorf("Print(%+v) loads as other settings\n--- got\n%s\n--- want\n%s", o, &second, &all)
	}
}
