package config

import (
	"encoding"
	"reflect"
	"strconv"
	"strings"
)

// field is one key of a section, read from a struct's field and its tags.
type field struct {
	key      string
	index    []int // for reflect.Value.FieldByIndex
	typ      reflect.Type
	enum     []string
	min, max string
	required bool
	restart  bool
}

// fieldsOf returns the keys of a section, those of inline structs among them.
func fieldsOf(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		f := t.Field(i)
		key, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case opts == "inline":
			for _, inner := range fieldsOf(f.Type) {
				inner.index = append([]int{i}, inner.index...)
				out = append(out, inner)
			}
			continue
		case key == "" || key == "-":
			continue
		}
		fd := field{
			key: key, index: []int{i}, typ: f.Type,
			min: f.Tag.Get("min"), max: f.Tag.Get("max"),
			required: f.Tag.Get("required") == "true",
			restart:  f.Tag.Get("restart") == "yes",
		}
		if e := f.Tag.Get("enum"); e != "" {
			fd.enum = strings.Split(e, "|")
		}
		out = append(out, fd)
	}
	return out
}

// deref returns what a pointer type points to, and other types as they are.
func deref(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer {
		return t.Elem()
	}
	return t
}

// isScalar reports whether a key of type t takes one value.
func isScalar(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Slice, reflect.Map, reflect.Pointer:
		return false
	case reflect.Struct:
		return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
	}
	return true
}

// isUserMap reports whether t is a mapping whose keys are the operator's.
func isUserMap(t reflect.Type) bool { return t == reflect.TypeFor[map[string]string]() }

// holdsSecret reports whether a Secret, or a header field's value, which may be
// a credential, is t or somewhere inside it.
func holdsSecret(t reflect.Type) bool {
	switch t = deref(t); {
	case t == reflect.TypeFor[Secret](), t == reflect.TypeFor[HeaderField]():
		return true
	case t.Kind() == reflect.Slice:
		return holdsSecret(t.Elem())
	case t.Kind() == reflect.Struct && !isScalar(t):
		for _, f := range fieldsOf(t) {
			if holdsSecret(f.typ) {
				return true
			}
		}
	}
	return false
}

// leaf is a single value that has a fixed key path: no list stands above it.
type leaf struct {
	field
	path string // "consul.tls.ca_file"
	env  string // "PROCONSUL_CONSUL_TLS_CA_FILE"
}

// leaves returns the values that PROCONSUL_* variables can set. The version is
// not among them: it describes a file.
func leaves() []leaf {
	var out []leaf
	var walk func(t reflect.Type, path string)
	walk = func(t reflect.Type, path string) {
		for _, f := range fieldsOf(t) {
			p := join(path, f.key)
			switch ft := deref(f.typ); {
			case isScalar(ft):
				if p != "version" {
					out = append(out, leaf{f, p, envPrefix + strings.ToUpper(strings.ReplaceAll(p, ".", "_"))})
				}
			case ft.Kind() == reflect.Struct:
				walk(ft, p)
			}
		}
	}
	walk(reflect.TypeFor[Config](), "")
	return out
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func at(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// parent returns the path of the section that holds path.
func parent(path string) string { return path[:max(0, strings.LastIndexAny(path, ".["))] }

// lastKey returns the last key of a path, without an index.
func lastKey(path string) string {
	path = path[strings.LastIndexByte(path, '.')+1:]
	key, _, _ := strings.Cut(path, "[")
	return key
}
