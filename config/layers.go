package config

import (
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/viper"
)

// viper holds the layers and decides which wins. It knows neither positions
// nor strictness, lower-cases every key and splits keys at its delimiter, so
// the builder has checked everything before, and no key that an operator
// chose reaches it.
const (
	envPrefix = "PROCONSUL_"
	delimiter = "::"
)

// consulVariables are what every Consul tool obeys. They stand below the file.
// https://developer.hashicorp.com/consul/commands#environment-variables
var consulVariables = [...]struct{ name, path string }{
	{"CONSUL_HTTP_ADDR", "consul.addr"},
	{"CONSUL_HTTP_TOKEN", "consul.token"},
	{"CONSUL_HTTP_TOKEN_FILE", "consul.token_file"},
	{"CONSUL_NAMESPACE", "consul.namespace"},
	{"CONSUL_PARTITION", "consul.partition"},
	{"CONSUL_CACERT", "consul.tls.ca_file"},
	{"CONSUL_CLIENT_CERT", "consul.tls.cert_file"},
	{"CONSUL_CLIENT_KEY", "consul.tls.key_file"},
	{"CONSUL_TLS_SERVER_NAME", "consul.tls.server_name"},
	{"CONSUL_HTTP_SSL", "consul.scheme"},
	{"CONSUL_HTTP_SSL_VERIFY", "consul.tls.skip_verify"},
}

// tracingVariables returns what the variables that every OpenTelemetry SDK
// obeys say of tracing's keys, by path. They stand below the file; the rest of
// them (limits, batches, timeouts, resource attributes) is read where spans are
// made and sent.
// https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables
func tracingVariables() (values, origins map[string]string) {
	values, origins = map[string]string{}, map[string]string{}
	take := func(name, path string, read func(text string) (string, bool)) {
		text, ok := lookup(name)
		if !ok || text == "" {
			return
		}
		if text, ok = read(text); ok {
			values[path], origins[path] = text, "env "+name
		}
	}
	asIs := func(text string) (string, bool) { return text, true }
	when := func(on string) func(string) (string, bool) {
		return func(text string) (string, bool) { return "true", strings.EqualFold(strings.TrimSpace(text), on) }
	}
	take("OTEL_EXPORTER_OTLP_ENDPOINT", "tracing.endpoint", func(text string) (string, bool) {
		return strings.TrimSuffix(text, "/") + "/v1/traces", true
	})
	take("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "tracing.endpoint", asIs)
	take("OTEL_SERVICE_NAME", "tracing.service", asIs)
	take("OTEL_SDK_DISABLED", "tracing.disabled", when("true"))
	take("OTEL_TRACES_EXPORTER", "tracing.disabled", when("none"))
	sampler, _ := lookup("OTEL_TRACES_SAMPLER")
	switch strings.TrimPrefix(sampler, "parentbased_") {
	case "always_on":
		values["tracing.ratio"] = "100%"
	case "always_off":
		values["tracing.ratio"] = "0%"
	case "traceidratio":
		values["tracing.ratio"] = "100%"
		if arg, _ := lookup("OTEL_TRACES_SAMPLER_ARG"); arg != "" {
			values["tracing.ratio"] = arg
		}
	}
	if values["tracing.ratio"] != "" {
		origins["tracing.ratio"] = "env OTEL_TRACES_SAMPLER"
		if !strings.HasPrefix(sampler, "parentbased_") {
			values["tracing.parent"], origins["tracing.parent"] = "never", origins["tracing.ratio"]
		}
	}
	return values, origins
}

// environment checks the variables and returns the values of those that count
// by key path, and reports the ones that mean nothing.
func (b *builder) environment() map[string]string {
	out := map[string]string{}
	if b.o.Pure {
		return out
	}
	for _, v := range consulVariables {
		text, ok := lookup(v.name)
		if _, written := b.places[v.path]; !ok || written {
			continue
		}
		switch v.path {
		case "consul.scheme": // a switch there, a word here
			on, err := strconv.ParseBool(text)
			if err != nil || !on {
				continue
			}
			text = "https"
		case "consul.tls.skip_verify":
			verify, err := strconv.ParseBool(text)
			if err != nil {
				continue
			}
			text = strconv.FormatBool(!verify)
		}
		b.places[v.path] = place{origin: "env " + v.name, masked: v.path == "consul.token"}
		out[v.path] = text
	}
	values, origins := tracingVariables()
	for _, path := range slices.Sorted(maps.Keys(values)) {
		if _, written := b.places[path]; written {
			continue
		}
		b.places[path] = place{origin: origins[path]}
		if err := checkText(*fieldAt(reflect.TypeFor[Config](), path), values[path]); err != nil {
			b.reject(path, values[path], err)
			continue
		}
		out[path] = values[path]
	}
	known := map[string]bool{}
	for _, l := range leaves() {
		known[l.env] = true
		text, ok := lookup(l.env)
		if !ok {
			continue
		}
		b.places[l.path] = place{origin: "env " + l.env, masked: l.typ == reflect.TypeFor[Secret]()}
		if err := checkText(l.field, text); err != nil {
			b.reject(l.path, text, err)
			continue
		}
		out[l.path] = text
	}
	b.strayVariables(slices.Collect(maps.Keys(known)), known)
	return out
}

// strayVariables warns of PROCONSUL_* variables that set nothing. Those of the
// command line tools are known, and so are those that Kubernetes makes for
// every pod where a Service is called proconsul.
func (b *builder) strayVariables(names []string, known map[string]bool) {
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		rest, ours := strings.CutPrefix(name, envPrefix)
		switch {
		case !ours || known[name]:
			continue
		case rest == "ADDR", rest == "TOKEN", rest == "TOKEN_FILE", rest == "CONFIG":
			continue
		case rest == "PORT", strings.HasPrefix(rest, "PORT_"), rest == "SERVICE_HOST", strings.HasPrefix(rest, "SERVICE_PORT"):
			continue
		}
		b.add(Fault{
			File: "env " + name, Code: CodeEnvironment, Warning: true,
			Message: fmt.Sprintf("the variable %s sets nothing", name), Hint: didYouMean(name, names),
		})
	}
}

// set checks o.Set and returns what goes over everything. Values inside lists
// are put into the tree, because viper has no keys for them.
func (b *builder) set() map[string]string {
	out := map[string]string{}
	for _, path := range slices.Sorted(maps.Keys(b.o.Set)) {
		text := b.o.Set[path]
		f, insideList := setField(path)
		if f == nil || !isScalar(deref(f.typ)) {
			b.add(Fault{
				File: "flag " + path, Path: path, Code: CodeUnknownKey,
				Message: fmt.Sprintf("%q is no key that takes one value", path), Hint: didYouMean(path, leafPaths()),
			})
			continue
		}
		b.places[path] = place{origin: "flag " + path, masked: deref(f.typ) == reflect.TypeFor[Secret]()}
		if err := checkText(*f, text); err != nil {
			b.reject(path, text, err)
			continue
		}
		if !insideList {
			out[path] = text
		} else if !putAt(b.tree, path, text) {
			b.reject(path, text, &formatError{CodeReference, "is for an element of a list that is not there", ""})
		}
	}
	return out
}

func leafPaths() []string {
	var out []string
	for _, l := range leaves() {
		out = append(out, l.path)
	}
	return out
}

// setField returns the field at a path that may hold indices.
func setField(path string) (f *field, insideList bool) {
	t := reflect.TypeFor[Config]()
	for part := range strings.SplitSeq(path, ".") {
		key, index, indexed := strings.Cut(part, "[")
		if f = fieldAt(t, key); f == nil {
			return nil, false
		}
		t = deref(f.typ)
		if indexed {
			if _, err := strconv.ParseUint(strings.TrimSuffix(index, "]"), 10, 16); err != nil || !strings.HasSuffix(index, "]") || t.Kind() != reflect.Slice {
				return nil, false
			}
			insideList = true
			t = t.Elem()
			f = &field{key: key, typ: t, enum: f.enum, min: f.min, max: f.max}
		}
	}
	return f, insideList
}

// putAt puts text at a path in the tree; an index may be one behind the last
// element, which then is made.
func putAt(tree map[string]any, path, text string) bool {
	parts := strings.Split(path, ".")
	for i, part := range parts {
		last := i == len(parts)-1
		key, index, indexed := strings.Cut(part, "[")
		if !indexed {
			if last {
				tree[key] = text
				return true
			}
			next, ok := tree[key].(map[string]any)
			if !ok {
				next = map[string]any{}
				tree[key] = next
			}
			tree = next
			continue
		}
		n, err := strconv.Atoi(strings.TrimSuffix(index, "]"))
		list, _ := tree[key].([]any)
		if err != nil || n > len(list) {
			return false
		}
		if n == len(list) {
			list = append(list, map[string]any{})
			tree[key] = list
		}
		if last {
			list[n] = text
			return true
		}
		next, ok := list[n].(map[string]any)
		if !ok {
			return false
		}
		tree = next
	}
	return false
}

// decode lays the layers over each other and reads the result over the
// defaults.
func (b *builder) decode(env, set map[string]string) (*Config, error) {
	v := viper.NewWithOptions(viper.KeyDelimiter(delimiter))
	if err := v.MergeConfigMap(b.tree); err != nil {
		return nil, err
	}
	bound := map[string]bool{}
	if !b.o.Pure {
		for _, l := range leaves() {
			if _, ok := lookup(l.env); ok && env[l.path] != "" && b.sound(l.path) {
				bound[l.path] = true
				if err := v.BindEnv(viperKey(l.path), l.env); err != nil {
					return nil, err
				}
			}
		}
	}
	for path, text := range env {
		if !bound[path] {
			v.SetDefault(viperKey(path), text)
		}
	}
	for path, text := range set {
		v.Set(viperKey(path), text)
	}
	c := Default()
	err := v.UnmarshalExact(c, viper.DecodeHook(decodeHook), func(d *mapstructure.DecoderConfig) {
		d.TagName, d.Squash, d.WeaklyTypedInput = "yaml", true, false
	})
	return c, err
}

func viperKey(path string) string { return strings.ReplaceAll(path, ".", delimiter) }

// decodeHook turns texts into values, and begins every element of a list, and
// every optional section, as its default: the decoder then writes only the
// keys that are there.
func decodeHook(from, to reflect.Value) (any, error) {
	t := to.Type()
	switch {
	case t.Kind() == reflect.Slice && from.Kind() == reflect.Slice:
		list := reflect.MakeSlice(t, from.Len(), from.Len())
		for i := range from.Len() {
			list.Index(i).Set(elementDefault(t.Elem()))
		}
		to.Set(list)
	case t.Kind() == reflect.Pointer && to.IsNil():
		to.Set(reflect.New(t.Elem()))
		to.Elem().Set(elementDefault(t.Elem()))
	case isUserMap(t):
		pairs, ok := from.Interface().([]any)
		if !ok {
			return from.Interface(), nil
		}
		m := make(map[string]string, len(pairs))
		for _, p := range pairs {
			kv := p.([]any)
			m[kv[0].(string)] = kv[1].(string)
		}
		return m, nil
	case from.Kind() == reflect.String && isScalar(t):
		v, err := parseScalar(t, from.String())
		if err != nil {
			return nil, err
		}
		return v.Interface(), nil
	}
	return from.Interface(), nil
}
