package config

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// maxReferenced bounds a file that ${file:...} names: it holds one value.
const maxReferenced = 1 << 20

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// interpolate replaces ${env:NAME}, ${env:NAME:-default} and ${file:/path};
// $${ is a literal ${. Replaced text is not looked at again. changed reports
// whether anything came from outside the text.
func (b *builder) interpolate(text, dir string) (out string, changed bool, err error) {
	if !strings.Contains(text, "${") {
		return text, false, nil
	}
	var s strings.Builder
	for {
		i := strings.Index(text, "${")
		if i < 0 {
			s.WriteString(text)
			return s.String(), changed, nil
		}
		if i > 0 && text[i-1] == '$' {
			s.WriteString(text[:i-1] + "${")
			text = text[i+2:]
			continue
		}
		s.WriteString(text[:i])
		inner, rest, ok := strings.Cut(text[i+2:], "}")
		if !ok {
			return "", false, &formatError{CodeInterpolate, "has a ${ without its }", "write $${ for a literal ${"}
		}
		value, err := b.reference(inner, dir)
		if err != nil {
			return "", false, err
		}
		s.WriteString(value)
		text, changed = rest, true
	}
}

// reference returns the value of what stands between ${ and }.
func (b *builder) reference(inner, dir string) (string, error) {
	kind, name, _ := strings.Cut(inner, ":")
	if kind != "env" && kind != "file" {
		hint := "write $${ for a literal ${"
		if variableName.MatchString(inner) {
			hint = fmt.Sprintf("did you mean ${env:%s}?", inner)
		}
		return "", &formatError{CodeInterpolate, fmt.Sprintf("has ${%s}: only ${env:NAME}, ${env:NAME:-default} and ${file:/path} are replaced", inner), hint}
	}
	if b.o.Pure {
		return "", &formatError{CodeInterpolate, fmt.Sprintf("has ${%s}: this source may not read the environment or files", inner), "keep secrets in the file that the gateway starts with"}
	}
	if kind == "env" {
		name, fallback, hasFallback := strings.Cut(name, ":-")
		if !variableName.MatchString(name) {
			return "", &formatError{CodeInterpolate, fmt.Sprintf("has ${env:%s}, which is no variable's name", name), ""}
		}
		value, set := os.LookupEnv(name)
		switch {
		case hasFallback && value == "":
			return fallback, nil
		case !set:
			return "", &formatError{CodeInterpolate, fmt.Sprintf("needs the environment variable %s, which is not set", name), fmt.Sprintf("set it, or write ${env:%s:-default}", name)}
		}
		return value, nil
	}
	if name == "" {
		return "", &formatError{CodeInterpolate, "has ${file:} without a path", ""}
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	if b.o.OnFile != nil {
		b.o.OnFile(name)
	}
	text, err := readBounded(name, maxReferenced)
	fmt.Fprintf(b.referenced, "%s\x00%d\x00%s", name, len(text), text)
	if err != nil {
		return "", &formatError{CodeInterpolate, fmt.Sprintf("needs the file %s: %s", name, readReason(err)), "mount it, or check its permissions"}
	}
	// Editors and `echo` end a file with one line break that no secret has.
	value := strings.TrimSuffix(string(text), "\n")
	return strings.TrimSuffix(value, "\r"), nil
}
