package config

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Bounds of what Load reads, so that no input makes it use memory or time
// without end.
const (
	maxBytes  = 16 << 20 // of all files
	maxNodes  = 200_000  // values, with aliases expanded
	maxLevels = 32
)

// source is one file: its text, its nodes with their positions, and which of
// them must not be shown.
type source struct {
	name   string
	text   []byte
	root   *yaml.Node // the top mapping; nil where the text is empty or bad
	hidden map[*yaml.Node]bool
	masked []string // lines fit for showing; made when first needed
}

// readSources reads the file, or every configuration file in the directory in
// the order of their names.
func readSources(path string) ([]*source, *Fault) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, readFault(path, err)
	}
	names := []string{path}
	if info.IsDir() {
		if names, err = configFiles(path); err != nil {
			return nil, readFault(path, err)
		}
		if len(names) == 0 {
			return nil, &Fault{File: path, Code: CodeRead, Message: "the directory holds no *.yaml, *.yml or *.json file"}
		}
	}
	var sources []*source
	left := int64(maxBytes)
	for _, name := range names {
		text, err := readBounded(name, left)
		if err != nil {
			return nil, readFault(name, err)
		}
		left -= int64(len(text))
		sources = append(sources, &source{name: name, text: text})
	}
	return sources, nil
}

// configFiles lists the configuration files of a directory. Hidden ones, such
// as a ConfigMap's ..data, are left out.
func configFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries { // in the order of their names
		name := e.Name()
		if strings.HasPrefix(name, ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			continue
		}
		full := filepath.Join(dir, name)
		if info, err := os.Stat(full); err != nil || !info.IsDir() { // an unreadable one is a fault later
			names = append(names, full)
		}
	}
	return names, nil
}

var errTooLarge = fmt.Errorf("more than %d MiB", maxBytes>>20)

func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = errTooLarge
	}
	return text, err
}

func readFault(path string, err error) *Fault {
	f := &Fault{File: path, Code: CodeRead, Message: "cannot be read: " + readReason(err)}
	if errors.Is(err, errTooLarge) {
		f.Code, f.Message = CodeTooLarge, "is larger than 16 MiB"
	}
	return f
}

// readReason is a file error without the path, which the fault has already.
func readReason(err error) string {
	if pe := (*os.PathError)(nil); errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// hashOf is the first 12 hex digits of the SHA-256 of the sources' bytes; in a
// directory the names count too.
func hashOf(sources []*source) string {
	h := sha256.New()
	for _, s := range sources {
		if len(sources) > 1 {
			fmt.Fprintf(h, "%s\x00%d\x00", filepath.Base(s.name), len(s.text))
		}
		h.Write(s.text)
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}

var yamlErrorLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// parse reads the text into nodes. JSON is YAML's subset.
func (s *source) parse() *Fault {
	fault := func(code Code, line int, message, hint string) *Fault {
		f := &Fault{File: s.name, Line: line, Code: code, Message: message, Hint: hint}
		if line > 0 {
			f.Col = 1
		}
		return f
	}
	dec := yaml.NewDecoder(strings.NewReader(string(s.text)))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); err == io.EOF {
		return nil
	} else if err != nil {
		return s.syntaxFault(err, fault)
	}
	if err := dec.Decode(&second); err == nil {
		return fault(CodeSyntax, second.Line, "a second document begins here", `remove the line "---" or move what follows to a file of its own`)
	} else if err != io.EOF {
		return s.syntaxFault(err, fault)
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil
	}
	if root.Kind != yaml.MappingNode {
		s.masked = []string{} // who knows what the file is
		return fault(CodeSyntax, root.Line, "the top is "+describe(root)+", not a mapping of keys", `the first key is usually "version: 1"`)
	}
	s.root = root
	return nil
}

func (s *source) syntaxFault(err error, fault func(Code, int, string, string) *Fault) *Fault {
	if je := (*json.SyntaxError)(nil); filepath.Ext(s.name) == ".json" && errors.As(json.Unmarshal(s.text, new(any)), &je) {
		// The JSON parser knows the place better.
		before := string(s.text[:min(max(int(je.Offset)-1, 0), len(s.text))])
		f := fault(CodeSyntax, strings.Count(before, "\n")+1, "not valid JSON: "+je.Error(), "")
		f.Col = utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:]) + 1
		return f
	}
	message, line := strings.TrimPrefix(err.Error(), "yaml: "), 0
	if m := yamlErrorLine.FindStringSubmatch(err.Error()); m != nil {
		line, _ = strconv.Atoi(m[1])
		message = m[2]
	}
	if _, rest, ok := strings.Cut(message, "unknown anchor '"); ok {
		// The parser names the anchor and not its place. The name stays out of
		// the message: it may be a secret that begins with a star.
		name, _, _ := strings.Cut(rest, "'")
		if before, _, ok := strings.Cut(string(s.text), "*"+name); ok {
			line = strings.Count(before, "\n") + 1
		}
		return fault(CodeSyntax, line, "not valid YAML: an alias (*) without its anchor (&)", "quote values that begin with *")
	}
	line = min(line, strings.Count(string(s.text), "\n")+1)
	hint := ""
	switch {
	case strings.Contains(message, "document start"):
		message = "text where the document should have ended"
		hint = "look at the indentation"
	case strings.Contains(message, "mapping values are not allowed"):
		hint = "look at the indentation here and above, and quote values that hold a colon and a space"
	case strings.Contains(message, "cannot start any token"):
		hint = "indent with spaces, and quote values that begin with %, @, ` or a tab"
	}
	return fault(CodeSyntax, line, "not valid YAML: "+message, hint)
}

// describe says what a node is, for "want X, got Y".
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		switch n.Tag {
		case "!!null":
			return "nothing"
		case "!!bool":
			return "true or false"
		case "!!int", "!!float":
			return "a number"
		}
		return "text"
	}
	return "something else"
}
