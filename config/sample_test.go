package config_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/config"
)

// faultText is every fault and warning of a load.
func faultText(t *testing.T, c *config.Config, err error) string {
	t.Helper()
	var fs *config.Faults
	if err == nil {
		fs = c.Warnings
	} else if !errors.As(err, &fs) {
		return err.Error()
	}
	var out bytes.Buffer
	if err := fs.Text(&out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// Every example in the documents that begins as a configuration of ours loads.
func TestDocumentedExamples(t *testing.T) {
	clearEnv(t)
	docs, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := filepath.Glob("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^[ \t]*```ya?ml[^\n]*\n(.*?)^[ \t]*```")
	for _, file := range append(docs, readme...) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range block.FindAllSubmatchIndex(text, -1) {
			example := string(text[m[2]:m[3]])
			if !ours.MatchString(example) {
				continue
			}
			// Values from outside are the reader's; here they are anything.
			example = outside.ReplaceAllString(example, "1")
			c, err := config.Parse(file, []byte(example), config.LoadOptions{Pure: true})
			if err != nil {
				t.Errorf("%s, example on line %d:\n%s", file, 1+bytes.Count(text[:m[0]], []byte("\n")), faultText(t, c, err))
			}
		}
	}
}

var (
	ours    = regexp.MustCompile(`(?m)^(version: 1|listen|admin|consul|kv|redis|registration|policies|upstreams|routes|access_log|metrics|tracing|shutdown):?`)
	outside = regexp.MustCompile(`\$\{(env|file):[^}]*\}`)
)

// Every configuration in deploy loads without a warning, and the sample shows
// every section there is.
func TestDeploySamples(t *testing.T) {
	clearEnv(t)
	files, err := filepath.Glob("../deploy/*.yaml")
	if err != nil || len(files) < 2 {
		t.Fatalf("deploy has %d samples: %v", len(files), err)
	}
	for _, file := range files {
		c, err := config.Load(file, config.LoadOptions{})
		if err == nil && c.Warnings.Len() == 0 {
			continue
		}
		t.Errorf("%s:\n%s", file, faultText(t, c, err))
	}
	text, err := os.ReadFile("../deploy/proconsul.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, section := range []reflect.Type{reflect.TypeFor[config.Config](), reflect.TypeFor[config.Middleware](), reflect.TypeFor[config.Upstream](), reflect.TypeFor[config.Route](), reflect.TypeFor[config.Match]()} {
		for i := range section.NumField() {
			key, _, _ := strings.Cut(section.Field(i).Tag.Get("yaml"), ",")
			if key == "" || key == "-" || section == reflect.TypeFor[config.Match]() && key == "query" {
				continue
			}
			if !bytes.Contains(text, []byte(key+":")) {
				t.Errorf("deploy/proconsul.yaml does not show %s.%s", section.Name(), key)
			}
		}
	}
}
