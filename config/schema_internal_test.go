package config

import (
	"reflect"
	"strings"
	"testing"
)

// walkFields visits every key of the tree, those in lists and optional
// sections too.
func walkFields(t reflect.Type, path string, visit func(path string, f field)) {
	for _, f := range fieldsOf(t) {
		p := join(path, f.key)
		visit(p, f)
		inner := deref(f.typ)
		if inner.Kind() == reflect.Slice {
			inner, p = inner.Elem(), p+"[]"
		}
		if inner.Kind() == reflect.Struct && !isScalar(inner) {
			walkFields(inner, p, visit)
		}
	}
}

// Every key has a type that the loader can read, and rules that hold together.
func TestSchema(t *testing.T) {
	walkFields(reflect.TypeFor[Config](), "", func(path string, f field) {
		if f.key != strings.ToLower(f.key) || strings.ContainsAny(f.key, ".-:[ ") {
			t.Errorf("%s: keys are lower case with underscores, which is all that viper keeps", path)
		}
		typ := deref(f.typ)
		switch {
		case isScalar(typ), isUserMap(typ), typ.Kind() == reflect.Slice, typ.Kind() == reflect.Struct:
		default:
			t.Errorf("%s: no way to read a %s", path, typ)
		}
		for _, bound := range []string{f.min, f.max} {
			if bound == "" {
				continue
			}
			if _, err := parseScalar(typ, bound); err != nil {
				t.Errorf("%s: bound %q: %v", path, bound, err)
			}
		}
		for _, word := range f.enum {
			if _, err := parseScalar(typ, word); err != nil {
				t.Errorf("%s: choice %q: %v", path, word, err)
			}
		}
		if typ == reflect.TypeFor[Secret]() && !isSensitive(f.key) {
			t.Errorf("%s holds a secret, and the key's name does not say so: add it to sensitive", path)
		}
	})
}

// Chain relies on every middleware's section being a pointer to a struct.
func TestMiddlewareSectionsArePointers(t *testing.T) {
	m := reflect.TypeFor[Middleware]()
	for i := range m.NumField() {
		if f := m.Field(i); f.Type.Kind() != reflect.Pointer || f.Type.Elem().Kind() != reflect.Struct {
			t.Errorf("Middleware.%s is a %s", f.Name, f.Type)
		}
	}
}

// No two keys share a variable, and none takes a name of the command line's or
// of Kubernetes'.
func TestVariableNames(t *testing.T) {
	seen := map[string]string{}
	for _, l := range leaves() {
		if other, ok := seen[l.env]; ok {
			t.Errorf("%s and %s are both %s", l.path, other, l.env)
		}
		seen[l.env] = l.path
		switch rest := strings.TrimPrefix(l.env, envPrefix); {
		case rest == "ADDR", rest == "TOKEN", rest == "TOKEN_FILE", rest == "CONFIG", strings.HasPrefix(rest, "PORT"), strings.HasPrefix(rest, "SERVICE_"):
			t.Errorf("%s: %s is taken", l.path, l.env)
		}
	}
	for _, name := range []string{"PROCONSUL_CONSUL_ADDR", "PROCONSUL_REDIS_ADDR", "PROCONSUL_ADMIN_ADDR", "PROCONSUL_LOG_LEVEL", "PROCONSUL_SHUTDOWN_GRACE"} {
		if seen[name] == "" {
			t.Errorf("%s sets nothing", name)
		}
	}
}

// The defaults obey the rules that everybody else's values do.
func TestDefaultsAreInRange(t *testing.T) {
	check := func(path string, v reflect.Value) {
		walkValues(v, path, func(path string, f field, v reflect.Value) {
			if s, ok := v.Interface().(interface{ String() string }); ok && !v.IsZero() {
				if err := checkText(field{typ: f.typ, enum: f.enum, min: f.min, max: f.max}, s.String()); err != nil {
					t.Errorf("%s: default %v %v", path, s, err)
				}
			} else if v.Kind() == reflect.String && f.enum != nil {
				if err := checkText(f, v.String()); err != nil {
					t.Errorf("%s: default %q %v", path, v, err)
				}
			}
		})
	}
	check("", reflect.ValueOf(*Default()))
	check("upstreams[]", reflect.ValueOf(DefaultUpstream()))
	check("rate_limit", reflect.ValueOf(DefaultRateLimit()))
}

func walkValues(v reflect.Value, path string, visit func(string, field, reflect.Value)) {
	for _, f := range fieldsOf(v.Type()) {
		p, fv := join(path, f.key), v.FieldByIndex(f.index)
		switch {
		case isScalar(f.typ):
			visit(p, f, fv)
		case fv.Kind() == reflect.Struct:
			walkValues(fv, p, visit)
		case fv.Kind() == reflect.Slice && !isScalar(f.typ.Elem()):
			for i := range fv.Len() {
				walkValues(fv.Index(i), at(p, i), visit)
			}
		}
	}
}

func TestDistance(t *testing.T) {
	tests := []struct {
		a, b string
		want int
	}{{"timout", "timeout", 1}, {"tiemout", "timeout", 1}, {"a", "b", 1}, {"", "ab", 2}, {"orders", "orders", 0}, {"abcdef", "uvwxyz", 4}}
	for _, tt := range tests {
		if got := distance(tt.a, tt.b, 4); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
