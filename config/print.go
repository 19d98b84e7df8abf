package config

import (
	"bytes"
	"encoding"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// PrintOptions say what Print shows.
type PrintOptions struct {
	Defaults bool // also what nobody wrote
	Sources  bool // where each value comes from, as a comment
}

// Print writes the effective settings as YAML, in the order of the reference.
// Secrets are masked, and so is what came from a file by ${file:...} and what
// header fields with telling names hold. What it writes loads again, but for
// the masked values.
func (c *Config) Print(w io.Writer, o PrintOptions) error {
	p := printer{c, o}
	root, _ := p.section(reflect.ValueOf(*c), reflect.ValueOf(*Default()), "")
	var buf bytes.Buffer
	enc := yaml.NewEncoder(&buf)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return err
	}
	_, err := w.Write(buf.Bytes())
	return err
}

type printer struct {
	c *Config
	o PrintOptions
}

// value returns the node of a value; ok is false where it is not to be shown.
func (p printer) value(v, def reflect.Value, path string) (n *yaml.Node, ok bool) {
	t := v.Type()
	switch {
	case isScalar(t):
		return p.scalar(v, def, path)
	case t.Kind() == reflect.Pointer:
		if v.IsNil() {
			return nil, false
		}
		n, _ := p.section(v.Elem(), elementDefault(t.Elem()), path)
		if len(n.Content) == 0 {
			n.Style = yaml.FlowStyle
		}
		return n, true
	case t.Kind() == reflect.Slice:
		return p.list(v, def, path)
	case isUserMap(t):
		return p.userMap(v.Interface().(map[string]string), path)
	case t == reflect.TypeFor[RouteUpstream]() && v.Interface().(RouteUpstream).Service == "":
		return nil, false // a redirect
	}
	return p.section(v, def, path)
}

func (p printer) section(v, def reflect.Value, path string) (*yaml.Node, bool) {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for _, f := range fieldsOf(v.Type()) {
		at := join(path, f.key)
		if child, ok := p.value(v.FieldByIndex(f.index), def.FieldByIndex(f.index), at); ok {
			n.Content = append(n.Content, text(f.key), child)
		}
	}
	return n, len(n.Content) > 0
}

func (p printer) list(v, def reflect.Value, path string) (*yaml.Node, bool) {
	_, written := p.c.origins[path]
	if !p.o.Defaults && !written && reflect.DeepEqual(v.Interface(), def.Interface()) {
		return nil, false
	}
	elem := v.Type().Elem()
	n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	if isScalar(elem) || v.Len() == 0 {
		n.Style = yaml.FlowStyle
	}
	for i := range v.Len() {
		if u, ok := v.Index(i).Interface().(Upstream); ok && u.Implicit && !p.o.Defaults {
			continue
		}
		if isScalar(elem) {
			s, _ := p.text(v.Index(i), at(path, i))
			n.Content = append(n.Content, s)
			continue
		}
		c, _ := p.section(v.Index(i), elementDefault(elem), at(path, i))
		if u, ok := v.Index(i).Interface().(Upstream); ok && u.Implicit && p.o.Sources {
			c.HeadComment = "made for the routes that name the service"
		}
		n.Content = append(n.Content, c)
	}
	if p.o.Sources && n.Style == yaml.FlowStyle {
		n.LineComment = p.source(path, v, def)
	}
	return n, len(n.Content) > 0 || written || p.o.Defaults
}

func (p printer) userMap(m map[string]string, path string) (*yaml.Node, bool) {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		v := text(m[k])
		if isSensitive(k) || p.c.origins[join(path, k)].hide {
			v = text(mask)
		}
		if p.o.Sources {
			v.LineComment = p.source(join(path, k), reflect.ValueOf(m[k]), reflect.ValueOf(""))
		}
		n.Content = append(n.Content, text(k), v)
	}
	if len(m) == 0 {
		n.Style = yaml.FlowStyle
	}
	return n, len(m) > 0 || p.o.Defaults
}

func (p printer) scalar(v, def reflect.Value, path string) (*yaml.Node, bool) {
	_, written := p.c.origins[path]
	same := reflect.DeepEqual(v.Interface(), def.Interface())
	if same && !written && !p.o.Defaults {
		return nil, false
	}
	if l, ok := v.Interface().(Limit); ok && l == (Limit{}) {
		return nil, false // not set, and there is no way to write that
	}
	n, _ := p.text(v, path)
	if p.o.Sources {
		n.LineComment = p.source(path, v, def)
	}
	return n, true
}

// source says where a value comes from: its own key, or the section that it
// was filled from, or the defaults.
func (p printer) source(path string, v, def reflect.Value) string {
	if o, ok := p.c.origins[path]; ok {
		return "<- " + o.String()
	}
	if !reflect.DeepEqual(v.Interface(), def.Interface()) {
		for path = parent(path); path != ""; path = parent(path) {
			if o, ok := p.c.origins[path]; ok {
				return "<- " + o.String()
			}
		}
	}
	return "<- default"
}

// text returns a scalar's node.
func (p printer) text(v reflect.Value, path string) (*yaml.Node, bool) {
	if p.c.origins[path].hide || lastKey(path) == "value" && p.hiddenField(path) {
		return text(mask), true
	}
	switch x := v.Interface().(type) {
	case time.Duration:
		return plain(formatDuration(x), "!!str"), true
	case encoding.TextMarshaler:
		b, err := x.MarshalText()
		if err != nil {
			return text(""), false
		}
		return text(string(b)), true
	case bool:
		return plain(strconv.FormatBool(x), "!!bool"), true
	case int:
		return plain(strconv.Itoa(x), "!!int"), true
	}
	return text(v.String()), true
}

// hiddenField reports whether the value at path is what a header field is set
// to, which may be a credential whatever its name, or belongs to a field with
// a sensitive name.
func (p printer) hiddenField(path string) bool {
	if f, ok := lookupPath(reflect.ValueOf(*p.c), parent(path)); ok && f.Type() == reflect.TypeFor[HeaderField]() {
		return true
	}
	name, ok := lookupPath(reflect.ValueOf(*p.c), join(parent(path), "name"))
	return ok && name.Kind() == reflect.String && isSensitive(name.String())
}

// text returns a node that reads as s again: a ${ in it was escaped or came
// from outside.
func text(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(strings.ReplaceAll(s, "${", "$${"))
	return n
}

func plain(s, tag string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: s} }

// lookupPath returns the value at a key path with indices.
func lookupPath(v reflect.Value, path string) (reflect.Value, bool) {
	for _, step := range steps(path) {
		for v.Kind() == reflect.Pointer {
			if v.IsNil() {
				return v, false
			}
			v = v.Elem()
		}
		if i, err := strconv.Atoi(step); err == nil && v.Kind() == reflect.Slice {
			if i >= v.Len() {
				return v, false
			}
			v = v.Index(i)
			continue
		}
		if v.Kind() != reflect.Struct {
			return v, false
		}
		fields := fieldsOf(v.Type())
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == step })
		if i < 0 {
			return v, false
		}
		v = v.FieldByIndex(fields[i].index)
	}
	return v, true
}

// steps takes "a.b[2].c" apart into a, b, 2 and c.
func steps(path string) []string {
	var out []string
	for len(path) > 0 {
		end := indexAny(path, ".[]")
		if end > 0 {
			out = append(out, path[:end])
		}
		path = path[min(end+1, len(path)):]
	}
	return out
}

func indexAny(s, chars string) int {
	for i := range len(s) {
		for j := range len(chars) {
			if s[i] == chars[j] {
				return i
			}
		}
	}
	return len(s)
}
