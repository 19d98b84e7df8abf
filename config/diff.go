package config

import (
	"bytes"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Change is a part of the settings that differs between two trees.
type Change struct {
	Action string        // added, removed or changed
	Kind   string        // route, upstream, policy or setting
	Name   string        // of the route, upstream or policy; the key of the section
	Fields []FieldChange // of what is changed
}

// FieldChange is a key whose value differs, as Print shows it on both sides.
type FieldChange struct {
	Path string // within what the Change names
	Was  string // empty: not there
	Is   string
}

// Diff returns what differs in next: routes, upstreams and policies by their
// names, then everything else. Upstreams that nobody wrote are left out. The
// values are those of Print: secrets, and what came from files, are masked.
func (c *Config) Diff(next *Config) []Change {
	a, b := printer{c, PrintOptions{Defaults: true}}, printer{next, PrintOptions{Defaults: true}}
	var out []Change
	out = append(out, named(a, b, "route", "routes", c.Routes, next.Routes, func(r Route) string { return r.Name })...)
	out = append(out, named(a, b, "upstream", "upstreams", c.Upstreams, next.Upstreams, func(u Upstream) string { return u.Name })...)
	out = append(out, named(a, b, "policy", "policies", c.Policies, next.Policies, func(p Policy) string { return p.Name })...)
	for _, f := range fieldsOf(reflect.TypeFor[Config]()) {
		if slices.Contains([]string{"routes", "upstreams", "policies"}, f.key) {
			continue
		}
		var fields []FieldChange
		compare(&fields, a, b, "", f.key, f.key, reflect.ValueOf(*c).FieldByIndex(f.index), reflect.ValueOf(*next).FieldByIndex(f.index))
		if len(fields) > 0 {
			out = append(out, Change{"changed", "setting", f.key, fields})
		}
	}
	return out
}

// named compares two lists by their elements' names.
func named[T any](a, b printer, kind, key string, was, is []T, name func(T) string) []Change {
	var out []Change
	written := func(v T) bool {
		u, ok := any(v).(Upstream)
		return !ok || !u.Implicit
	}
	shown := func(p printer, i int, v T) string {
		if text := p.shown(reflect.ValueOf(name(v)), join(at(key, i), "name")); text != "" {
			return text
		}
		return name(v)
	}
	for i, v := range was {
		j := slices.IndexFunc(is, func(o T) bool { return name(o) == name(v) })
		if j < 0 {
			if written(v) {
				out = append(out, Change{"removed", kind, shown(a, i, v), nil})
			}
			continue
		}
		var fields []FieldChange
		compare(&fields, a, b, "", at(key, i), at(key, j), reflect.ValueOf(v), reflect.ValueOf(is[j]))
		if len(fields) > 0 {
			out = append(out, Change{"changed", kind, shown(b, j, is[j]), fields})
		}
	}
	for j, v := range is {
		if !slices.ContainsFunc(was, func(o T) bool { return name(o) == name(v) }) && written(v) {
			out = append(out, Change{"added", kind, shown(b, j, v), nil})
		}
	}
	return out
}

// compare appends what differs between two values of one type. path is where
// they are within the change, pa and pb where they are in their trees.
func compare(out *[]FieldChange, a, b printer, path, pa, pb string, x, y reflect.Value) {
	switch {
	case reflect.DeepEqual(x.Interface(), y.Interface()):
	case x.Kind() == reflect.Struct && !isScalar(x.Type()):
		for _, f := range fieldsOf(x.Type()) {
			compare(out, a, b, join(path, f.key), join(pa, f.key), join(pb, f.key), x.FieldByIndex(f.index), y.FieldByIndex(f.index))
		}
	case x.Kind() == reflect.Pointer && !x.IsNil() && !y.IsNil():
		compare(out, a, b, path, pa, pb, x.Elem(), y.Elem())
	case x.Kind() == reflect.Slice && x.Len() == y.Len() && !isScalar(x.Type().Elem()):
		for i := range x.Len() {
			compare(out, a, b, at(path, i), at(pa, i), at(pb, i), x.Index(i), y.Index(i))
		}
	default:
		*out = append(*out, FieldChange{path, a.shown(x, pa), b.shown(y, pb)})
	}
}

// shown returns a value on one line, or nothing where it is not there.
func (p printer) shown(v reflect.Value, path string) string {
	n, ok := p.value(v, v, path)
	if !ok {
		return ""
	}
	flow(n)
	var buf bytes.Buffer
	enc := yaml.NewEncoder(&buf)
	if enc.Encode(n) != nil { // nothing that was printed cannot be encoded
		return ""
	}
	return strings.ReplaceAll(strings.TrimSpace(buf.String()), "\n", " ")
}

func flow(n *yaml.Node) {
	if n.Kind != yaml.ScalarNode {
		n.Style = yaml.FlowStyle
	}
	for _, c := range n.Content {
		flow(c)
	}
}
