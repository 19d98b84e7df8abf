package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// node is a JSON Schema, with its keys in the order in which people read them.
type node struct {
	Schema      string      `json:"$schema,omitempty"`
	ID          string      `json:"$id,omitempty"`
	Title       string      `json:"title,omitempty"`
	Ref         string      `json:"$ref,omitempty"`
	Description string      `json:"description,omitempty"`
	Type        any         `json:"type,omitempty"`
	Enum        []any       `json:"enum,omitempty"`
	Pattern     string      `json:"pattern,omitempty"`
	Minimum     json.Number `json:"minimum,omitempty"`
	Maximum     json.Number `json:"maximum,omitempty"`
	AnyOf       []*node     `json:"anyOf,omitempty"`
	Items       *node       `json:"items,omitempty"`
	Required    []string    `json:"required,omitempty"`
	Default     any         `json:"default,omitempty"`
	Properties  properties  `json:"properties,omitempty"`
	OwnKeys     *keys       `json:"patternProperties,omitempty"`
	Additional  any         `json:"additionalProperties,omitempty"`
	Defs        properties  `json:"$defs,omitempty"`
}

type keys struct {
	X struct{} `json:"^x-"`
}

// properties keeps the order of the tree.
type properties []property

type property struct {
	name string
	node *node
}

func (p properties) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, e := range p {
		if i > 0 {
			b.WriteByte(',')
		}
		text, err := json.Marshal(e.node)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%q:%s", e.name, text)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

const outside = `\$\{` // a value that ${...} brings is checked when it is there

// schemas makes the JSON Schema of the tree.
type schemas struct {
	t    *testing.T
	docs map[string]string
	defs properties
}

func (s *schemas) section(typ reflect.Type, def reflect.Value) *node {
	n := &node{Type: "object", Additional: false}
	for _, f := range fieldsOf(typ) {
		owner, name := ownerOf(typ, f.index)
		c := s.value(f, f.typ)
		if c.Ref != "" && f.typ.Kind() == reflect.Pointer {
			c = &node{AnyOf: []*node{c, {Enum: []any{true}}}} // as it is by default
		}
		text := s.docs[owner.Name()+"."+name]
		if f.restart {
			text += " (read at start only)"
		}
		if text != "" {
			text = strings.ToUpper(text[:1]) + text[1:]
		}
		if c.Ref != "" || c.Description == "" {
			c.Description = text
		}
		if d := strings.Trim(defaultOf(f, def.FieldByIndex(f.index)), "`"); d != "" && !f.required && isScalar(f.typ) {
			c.Default = d
			if f.typ.Kind() == reflect.Bool {
				c.Default = d == "true"
			} else if f.typ.Kind() == reflect.Int {
				c.Default = json.Number(d)
			}
		}
		if f.required {
			n.Required = append(n.Required, f.key)
		}
		n.Properties = append(n.Properties, property{f.key, c})
	}
	return n
}

func (s *schemas) value(f field, typ reflect.Type) *node {
	t := deref(typ)
	switch {
	case isScalar(t):
		return scalar(f, t)
	case isUserMap(t):
		return &node{Type: "object", Additional: &node{Type: "string"}}
	case t.Kind() == reflect.Slice:
		return &node{Type: "array", Items: s.value(field{enum: f.enum}, t.Elem())}
	}
	if !slices.ContainsFunc(s.defs, func(p property) bool { return p.name == t.Name() }) {
		s.defs = append(s.defs, property{t.Name(), nil})
		i := len(s.defs) - 1
		n := s.section(t, elementDefault(t))
		n.Description = s.docs[t.Name()]
		s.defs[i].node = n
	}
	return &node{Ref: "#/$defs/" + t.Name()}
}

func scalar(f field, t reflect.Type) *node {
	n := &node{}
	switch {
	case t == reflect.TypeFor[time.Duration]():
		n.Type, n.Pattern = []string{"string", "integer"}, `^([0-9.]+(ns|us|µs|ms|s|m|h))+$|^0$|`+outside
	case t == reflect.TypeFor[Size]():
		n.Type, n.Pattern = []string{"string", "integer"}, `^[0-9]+ *(B|KB|MB|GB|KiB|MiB|GiB)?$|`+outside
	case t == reflect.TypeFor[Percent]():
		n.Type, n.Pattern = []string{"string", "number"}, `^[0-9.]+ *%?$|`+outside
	case t == reflect.TypeFor[Limit]():
		n.Type, n.Pattern = "string", `^ *[0-9]+ */|`+outside
	case t.Kind() == reflect.Bool:
		n.AnyOf = []*node{{Type: "boolean"}, {Type: "string", Pattern: outside}}
	case t.Kind() == reflect.Int:
		number := &node{Type: "integer"}
		if f.enum != nil {
			for _, e := range f.enum {
				number.Enum = append(number.Enum, json.Number(e))
			}
		}
		if _, err := strconv.Atoi(f.min); err == nil {
			number.Minimum = json.Number(f.min)
		}
		if _, err := strconv.Atoi(f.max); err == nil {
			number.Maximum = json.Number(f.max)
		}
		n.AnyOf = []*node{number, {Type: "string", Pattern: outside}}
	case f.enum != nil:
		var words []any
		for _, e := range f.enum {
			words = append(words, e)
		}
		n.AnyOf = []*node{{Enum: words}, {Type: "string", Pattern: outside}}
	case t == reflect.TypeFor[Secret]() || t.Kind() == reflect.String:
		n.Type = []string{"string", "number", "boolean"} // YAML calls some texts so
	default:
		n.Type = "string"
	}
	return n
}

// TestJSONSchema keeps the JSON Schema what the tree says.
func TestJSONSchema(t *testing.T) {
	s := &schemas{t: t, docs: docs(t)}
	top := s.section(reflect.TypeFor[Config](), reflect.ValueOf(*Default()))
	top.Schema, top.ID = "https://json-schema.org/draft/2020-12/schema", "https://github.com/proconsul/proconsul/blob/main/config/proconsul.schema.json"
	top.Title, top.Description = "Proconsul", "The configuration of the gateway. proconsul validate checks more than a schema can."
	top.OwnKeys, top.Defs = &keys{}, s.defs
	text, err := json.MarshalIndent(top, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, '\n')
	generated(t, "proconsul.schema.json", text)
}

// TestJSONSchemaTakesWhatLoadTakes holds the examples and the good configurations
// of the tests against the schema.
func TestJSONSchemaTakesWhatLoadTakes(t *testing.T) {
	var root map[string]any
	if err := json.Unmarshal(Schema(), &root); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob("testdata/good*.yaml")
	more, _ := filepath.Glob("../deploy/*.yaml")
	if len(files) == 0 || len(more) == 0 {
		t.Fatal("there is nothing to try")
	}
	for _, file := range append(files, more...) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(file, text, LoadOptions{}); err != nil && !strings.Contains(file, "testdata") {
			continue // not a configuration of ours
		}
		var v any
		if err := yaml.Unmarshal(text, &v); err != nil {
			t.Fatal(err)
		}
		if v == nil {
			continue // an empty file is all defaults, and no object
		}
		for _, fault := range against(root, root, v, file) {
			t.Error(fault)
		}
	}
	for _, bad := range []string{"routs: []", "routes: [{nme: a}]", "routes: [{match: {path: /}}]", "log: {level: loud}", "shutdown: {grace: 3 apples}", "redis: {db: -1}"} {
		var v any
		if err := yaml.Unmarshal([]byte(bad), &v); err != nil {
			t.Fatal(err)
		}
		if len(against(root, root, v, bad)) == 0 {
			t.Errorf("the schema takes %s", bad)
		}
	}
}

// against is as much of JSON Schema as ours uses.
func against(root, s map[string]any, v any, at string) (faults []string) {
	if ref, ok := s["$ref"].(string); ok {
		s = root["$defs"].(map[string]any)[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
	}
	if list, ok := s["anyOf"].([]any); ok && !slices.ContainsFunc(list, func(e any) bool { return len(against(root, e.(map[string]any), v, at)) == 0 }) {
		return []string{fmt.Sprintf("%s: %v is none of %v", at, v, list)}
	}
	if list, ok := s["enum"].([]any); ok && !slices.ContainsFunc(list, func(e any) bool { return fmt.Sprint(e) == fmt.Sprint(v) }) {
		return []string{fmt.Sprintf("%s: %v is not in %v", at, v, list)}
	}
	kind := map[reflect.Kind][]string{reflect.String: {"string"}, reflect.Int: {"integer", "number"}, reflect.Float64: {"number"}, reflect.Bool: {"boolean"},
		reflect.Map: {"object"}, reflect.Slice: {"array"}}[reflect.ValueOf(v).Kind()]
	if want := s["type"]; want != nil && !slices.ContainsFunc(kind, func(k string) bool { return strings.Contains(fmt.Sprint(want), k) }) {
		return []string{fmt.Sprintf("%s: %v is not %v", at, v, want)}
	}
	if pattern, ok := s["pattern"].(string); ok {
		if text, ok := v.(string); ok && !regexp.MustCompile(pattern).MatchString(text) {
			return []string{fmt.Sprintf("%s: %q does not match %s", at, text, pattern)}
		}
	}
	if low, ok := s["minimum"].(float64); ok {
		if n, ok := v.(int); ok && float64(n) < low {
			return []string{fmt.Sprintf("%s: %v is below %v", at, v, low)}
		}
	}
	switch v := v.(type) {
	case map[string]any:
		props, _ := s["properties"].(map[string]any)
		for key, value := range v {
			switch p, ok := props[key].(map[string]any); {
			case ok:
				faults = append(faults, against(root, p, value, at+"."+key)...)
			case s["additionalProperties"] == false && !strings.HasPrefix(key, "x-"):
				faults = append(faults, at+": unknown key "+key)
			}
		}
		required, _ := s["required"].([]any)
		for _, key := range required {
			if _, ok := v[key.(string)]; !ok {
				faults = append(faults, fmt.Sprintf("%s lacks %v", at, key))
			}
		}
	case []any:
		items, _ := s["items"].(map[string]any)
		for i, e := range v {
			faults = append(faults, against(root, items, e, fmt.Sprintf("%s[%d]", at, i))...)
		}
	}
	return faults
}
