// Package schema says what is wrong with a request: whether its body is JSON
// within bounds, and whether body and parameters fit a JSON Schema or an
// OpenAPI document. It is the only door to the libraries for both, reads files
// only while it compiles, and nothing from the network.
//
// What it says of a request never holds the values that were sent.
package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"go.yaml.in/yaml/v3"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

// MaxFaults bounds how many faults of one request are told.
const MaxFaults = 20

// Bounds of what a fault says, since a client's names are in it.
const (
	maxPointer = 256
	maxDetail  = 300
)

// Fault is one thing that is wrong with a request.
type Fault struct {
	Pointer string // JSON pointer into the body; empty: the whole of it, or a parameter's
	In      string // of a parameter: path, query, header, cookie; empty: the body's
	Name    string // of a parameter
	Detail  string
}

// Mistake is what keeps a document from being used, and where.
type Mistake struct {
	File    string // empty: the text that was given
	Line    int    // from 1; 0: not known
	Message string
}

// Error implements error.
func (m *Mistake) Error() string {
	if m.File == "" {
		return m.Message
	}
	return fmt.Sprintf("%s:%d: %s", m.File, m.Line, m.Message)
}

// maxDocument bounds a document, and each one that it refers to.
const maxDocument = 8 << 20

// document is the text of a schema or description, JSON or YAML.
type document struct {
	file string // empty: the text stands in the configuration
	text []byte
	root *yaml.Node

	compiler Compiler
}

// read parses a document. Its text never gets into a message: a path may lead
// to any file.
func read(file string, text []byte) (*document, *Mistake) {
	d := &document{file: file, text: text}
	if len(text) > maxDocument {
		return nil, d.mistake(1, fmt.Sprintf("is larger than %d MiB", maxDocument>>20))
	}
	var n yaml.Node
	if err := yaml.Unmarshal(text, &n); err != nil {
		line := 1
		// The library has no type for the line: "yaml: line 3: ...".
		if _, rest, ok := strings.Cut(err.Error(), "line "); ok {
			digits, _, _ := strings.Cut(rest, ":")
			if i, err := strconv.Atoi(digits); err == nil {
				line = i
			}
		}
		return nil, d.mistake(line, "is neither JSON nor YAML")
	}
	if len(n.Content) != 1 || n.Content[0].Kind != yaml.MappingNode && n.Content[0].Value != "true" && n.Content[0].Value != "false" {
		return nil, d.mistake(1, "is no JSON or YAML object")
	}
	d.root = n.Content[0]
	return d, nil
}

func (d *document) mistake(line int, text string) *Mistake { return &Mistake{d.file, line, text} }

// value returns the document as JSON has it.
func (d *document) value() (any, error) {
	if v, err := jsonschema.UnmarshalJSON(bytes.NewReader(d.text)); err == nil {
		return v, nil
	}
	nameKeys(d.root)
	var v any
	if err := d.root.Decode(&v); err != nil {
		return nil, err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, errors.New("has keys that are no text")
	}
	return jsonschema.UnmarshalJSON(bytes.NewReader(b))
}

// nameKeys makes text of keys that YAML takes for numbers and the like, as 200.
func nameKeys(n *yaml.Node) {
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 && c.Kind == yaml.ScalarNode && c.Tag != "!!merge" {
			c.Tag = "!!str"
		}
		nameKeys(c)
	}
}

// at returns the line of what a JSON pointer's parts lead to, or of the nearest
// thing above it.
func (d *document) at(parts []string) int {
	n, line := d.root, d.root.Line
	for _, part := range parts {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		found := false
		switch n.Kind {
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				if n.Content[i].Value == part {
					line, n, found = n.Content[i].Line, n.Content[i+1], true
					break
				}
			}
		case yaml.SequenceNode:
			if i, err := strconv.Atoi(part); err == nil && i >= 0 && i < len(n.Content) {
				n, found = n.Content[i], true
				line = n.Line
			}
		}
		if !found {
			break
		}
	}
	return line
}

// named returns the line of the deepest key that the message names, following
// the document down from its top: what there is for a message without a place.
func (d *document) named(text string) int {
	n, line := d.root, d.root.Line
	for {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		if n.Kind != yaml.MappingNode {
			return line
		}
		var next *yaml.Node
		longest := 0
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if len(key.Value) > longest && mentions(strings.ToLower(text), strings.ToLower(key.Value)) {
				longest, next, line = len(key.Value), n.Content[i+1], key.Line
			}
		}
		if next == nil {
			return line
		}
		n = next
	}
}

// mentions reports whether text has key as a word of its own.
func mentions(text, key string) bool {
	word := func(c byte) bool { return c == '_' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
	for from := 0; key != ""; {
		i := strings.Index(text[from:], key)
		if i < 0 {
			return false
		}
		i += from
		end := i + len(key)
		if (i == 0 || !word(text[i-1]) || !word(key[0])) && (end == len(text) || !word(text[end]) || !word(key[len(key)-1])) {
			return true
		}
		from = i + 1
	}
	return false
}

// JSON is a compiled JSON Schema. It is safe for concurrent use.
type JSON struct{ schema *jsonschema.Schema }

// Compiler compiles documents.
type Compiler struct {
	// OnFile is told of every file that a document refers to, with its text, or
	// nil where it cannot be read; perhaps more than once. It may be nil.
	OnFile func(file string, text []byte)
}

// CompileJSON is Compiler.JSON.
func CompileJSON(file string, text []byte) (*JSON, *Mistake) { return Compiler{}.JSON(file, text) }

// JSON compiles a JSON Schema, draft 2020-12 where it does not say otherwise,
// formats asserted. file is where it stands, from which it may refer to other
// files; empty: it may not.
func (k Compiler) JSON(file string, text []byte) (*JSON, *Mistake) {
	d, m := read(file, text)
	if m != nil {
		return nil, m
	}
	d.compiler = k
	name, v, m := d.resource()
	if m != nil {
		return nil, m
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	c.UseLoader(loader{d})
	if err := c.AddResource(name, v); err != nil {
		return nil, d.mistake(1, err.Error())
	}
	s, err := c.Compile(name)
	if err != nil {
		return nil, d.faulty(err)
	}
	return &JSON{s}, nil
}

// faulty says where a schema is wrong.
func (d *document) faulty(err error) *Mistake {
	var meta *jsonschema.SchemaValidationError
	var invalid *jsonschema.ValidationError
	if errors.As(err, &meta) && errors.As(meta.Err, &invalid) {
		deepest := invalid
		for e := range leaves(invalid) {
			if len(e.InstanceLocation) > len(deepest.InstanceLocation) || len(deepest.Causes) > 0 {
				deepest = e
			}
		}
		_, fragment, _ := strings.Cut(meta.URL, "#")
		parts := append(fragmentParts(fragment), deepest.InstanceLocation...)
		where := "/" + strings.Join(parts, "/")
		return d.mistake(d.at(parts), fmt.Sprintf("is no JSON Schema: %s: %s", where, clip(tell(deepest), maxDetail)))
	}
	text := err.Error()
	line := 1
	// Places are in the errors' URLs only.
	if _, fragment, ok := strings.Cut(text, "#/"); ok {
		fragment, _, _ = strings.Cut(fragment, `"`)
		line = d.at(fragmentParts("/" + fragment))
	}
	return d.mistake(line, clip(text, maxDetail))
}

// loader loads what a schema refers to: files only.
type loader struct{ from *document }

// Load implements jsonschema.URLLoader.
func (l loader) Load(name string) (any, error) {
	u, err := url.Parse(name)
	if err != nil || u.Scheme != "file" || l.from.file == "" {
		return nil, errors.New("a schema in a file may refer to files, and nothing to anything else")
	}
	d, m := l.from.compiler.readFile(filepath.FromSlash(u.Path))
	if m != nil {
		return nil, m
	}
	return d.value()
}

func (k Compiler) readFile(file string) (*document, *Mistake) {
	d, m := readFile(file)
	switch {
	case k.OnFile == nil:
	case m != nil:
		k.OnFile(file, nil)
	default:
		k.OnFile(file, d.text)
	}
	return d, m
}

func readFile(file string) (*document, *Mistake) {
	f, err := os.Stat(file)
	if err == nil && (!f.Mode().IsRegular() || f.Size() > maxDocument) {
		return nil, &Mistake{file, 1, "is no file, or a very large one"}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, &Mistake{file, 1, "cannot be read"}
	}
	return read(file, text)
}

// Check returns what is wrong with a body that Parse has read, MaxFaults at
// most.
func (s *JSON) Check(body any) []Fault {
	var invalid *jsonschema.ValidationError
	if err := s.schema.Validate(body); err == nil {
		return nil
	} else if !errors.As(err, &invalid) {
		return []Fault{{Detail: "does not fit the schema"}}
	}
	return faultsOf(invalid)
}

func faultsOf(invalid *jsonschema.ValidationError) []Fault {
	var out []Fault
	for e := range leaves(invalid) {
		f := Fault{Pointer: pointer(e.InstanceLocation), Detail: clip(tell(e), maxDetail)}
		if slices.Contains(out, f) { // of two alternatives
			continue
		}
		if out = append(out, f); len(out) == MaxFaults {
			break
		}
	}
	return out
}

// leaves yields the errors that have no further cause.
func leaves(e *jsonschema.ValidationError) func(yield func(*jsonschema.ValidationError) bool) {
	return func(yield func(*jsonschema.ValidationError) bool) { walk(e, yield) }
}

func walk(e *jsonschema.ValidationError, yield func(*jsonschema.ValidationError) bool) bool {
	if len(e.Causes) == 0 {
		return yield(e)
	}
	for _, c := range e.Causes {
		if !walk(c, yield) {
			return false
		}
	}
	return true
}

// tell words an error without the value that it is about.
func tell(e *jsonschema.ValidationError) string {
	switch k := e.ErrorKind.(type) {
	case *kind.Pattern:
		return "does not match the pattern " + k.Want
	case *kind.Format:
		return "is no " + k.Want
	case *kind.Minimum:
		return "is less than " + number(k.Want)
	case *kind.Maximum:
		return "is more than " + number(k.Want)
	case *kind.ExclusiveMinimum:
		return "is not more than " + number(k.Want)
	case *kind.ExclusiveMaximum:
		return "is not less than " + number(k.Want)
	case *kind.MultipleOf:
		return "is no multiple of " + number(k.Want)
	case *kind.AdditionalProperties:
		return "has properties that are not allowed: " + strings.Join(k.Properties[:min(len(k.Properties), 5)], ", ")
	}
	return e.ErrorKind.LocalizedString(message.NewPrinter(language.English))
}

func number(r *big.Rat) string {
	f, _ := r.Float64()
	return strconv.FormatFloat(f, 'f', -1, 64)
}

// pointer joins the parts of a JSON pointer (RFC 6901).
func pointer(parts []string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(strings.NewReplacer("~", "~0", "/", "~1").Replace(clip(p, maxPointer)))
		if b.Len() > maxPointer {
			break
		}
	}
	return clip(b.String(), maxPointer)
}

// clip shortens what a client may have made long.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}
