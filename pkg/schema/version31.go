package schema

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// compiled are the schemas of an OpenAPI 3.1 document, which are JSON Schemas.
// The library for the document would compile them anew for each request.
type compiled struct {
	bodies map[*openapi3.MediaType]*JSON
	params map[*openapi3.Parameter]*param31
}

// param31 is a parameter with a schema.
type param31 struct {
	probe  *openapi3.Parameter // as the library decodes it
	never  *openapi3.Schema    // the probe's; nil: it has no schema
	schema *JSON
}

// library is a document and those that it refers to, with their schemas.
type library struct {
	from     *document
	docs     map[string]any // by URL without a fragment
	compiler *jsonschema.Compiler
}

// place is something in a document: its URL, and the escaped parts of a
// pointer to it.
type place struct {
	url, pointer string
	value        any
	hops         int // references that led here
}

// compile31 compiles what operations say of bodies and parameters.
func compile31(d *document, doc *openapi3.T) (*compiled, *Mistake) {
	name, v, m := d.resource()
	if m != nil {
		return nil, m
	}
	l := &library{from: d, docs: map[string]any{name: v}, compiler: jsonschema.NewCompiler()}
	l.compiler.AssertFormat()
	l.compiler.UseLoader(l)
	l.compiler.RegisterFormat(integers("int32", math.MinInt32, math.MaxInt32))
	l.compiler.RegisterFormat(integers("int64", math.MinInt64, math.MaxInt64))
	c := &compiled{map[*openapi3.MediaType]*JSON{}, map[*openapi3.Parameter]*param31{}}
	root := place{url: name, value: v}
	for path, item := range doc.Paths.Map() {
		at, err := l.down(root, "paths", path)
		if err == nil {
			err = l.params(c, at, item.Parameters)
		}
		if err != nil {
			return nil, d.faulty(err)
		}
		for method, op := range item.Operations() {
			keys := []string{strings.ToLower(method)}
			if item.AdditionalOperations[method] != nil { // of 3.2
				keys = []string{"additionalOperations", method}
			}
			if err := l.operation(c, at, keys, op); err != nil {
				return nil, d.faulty(err)
			}
		}
	}
	return c, nil
}

func (l *library) operation(c *compiled, item place, keys []string, op *openapi3.Operation) error {
	at, err := l.down(item, keys...)
	if err != nil {
		return err
	}
	if err := l.params(c, at, op.Parameters); err != nil || op.RequestBody == nil || op.RequestBody.Value == nil {
		return err
	}
	for name, content := range op.RequestBody.Value.Content {
		if content.Schema == nil || c.bodies[content] != nil {
			continue
		}
		at, err := l.down(at, "requestBody", "content", name)
		if err != nil {
			return err
		}
		if c.bodies[content], err = l.schema(at); err != nil {
			return err
		}
	}
	return nil
}

// params compiles the parameters of a path or an operation.
func (l *library) params(c *compiled, owner place, list openapi3.Parameters) error {
	for i, ref := range list {
		p := ref.Value
		if p == nil || c.params[p] != nil {
			continue
		}
		at, err := l.down(owner, "parameters", strconv.Itoa(i))
		if err != nil {
			return err
		}
		probe := *p
		out := &param31{probe: &probe}
		switch {
		case p.Schema != nil:
			out.never = never(p.Schema)
			probe.Schema = &openapi3.SchemaRef{Value: out.never}
		case p.Content != nil:
			probe.Content = openapi3.Content{}
			for name, content := range p.Content { // one, as OpenAPI has it
				if content.Schema == nil {
					return fmt.Errorf("a parameter's content has no schema at \"%s#%s\"", at.url, escaped(at.pointer))
				}
				if at, err = l.down(at, "content", name); err != nil {
					return err
				}
				out.never = never(content.Schema)
				probe.Content[name] = &openapi3.MediaType{Schema: &openapi3.SchemaRef{Value: out.never}}
			}
		}
		if out.never != nil {
			if out.schema, err = l.schema(at); err != nil {
				return err
			}
		}
		c.params[p] = out
	}
	return nil
}

// never returns a schema that is decoded as s is and that nothing fits: the
// library tells the value that it has decoded in an error only.
func never(s *openapi3.SchemaRef) *openapi3.Schema {
	probe, no := *s.Value, false
	probe.Always, probe.Not = &no, nil // it decodes nothing that has a not
	return &probe
}

// schema compiles the schema of a parameter or a media type.
func (l *library) schema(owner place) (*JSON, error) {
	at, err := l.down(owner, "schema")
	if err != nil {
		return nil, err
	}
	s, err := l.compiler.Compile(at.url + "#" + escaped(at.pointer))
	if err != nil {
		return nil, err
	}
	return &JSON{s}, nil
}

// escaped is a pointer as a fragment has it.
func escaped(pointer string) string {
	parts := strings.Split(pointer, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}

// down follows keys, and references on the way to them.
func (l *library) down(p place, keys ...string) (place, error) {
	for _, key := range keys {
		v := child(p.value, key)
		for v == nil {
			m, _ := p.value.(map[string]any)
			ref, ok := m["$ref"].(string)
			if !ok {
				return p, fmt.Errorf("there is nothing at \"%s#%s\"", p.url, escaped(p.pointer+"/"+token(key)))
			}
			var err error
			if p, err = l.follow(p, ref); err != nil {
				return p, err
			}
			v = child(p.value, key)
		}
		p.value, p.pointer = v, p.pointer+"/"+token(key)
	}
	return p, nil
}

func child(v any, key string) any {
	switch v := v.(type) {
	case map[string]any:
		return v[key]
	case []any:
		if i, err := strconv.Atoi(key); err == nil && i >= 0 && i < len(v) {
			return v[i]
		}
	}
	return nil
}

// maxHops bounds how many references lead from one to the next.
const maxHops = 100

// follow returns what a reference at p leads to.
func (l *library) follow(p place, ref string) (place, error) {
	name, fragment, _ := strings.Cut(ref, "#")
	to := place{url: p.url, hops: p.hops + 1}
	if to.hops > maxHops {
		return p, fmt.Errorf("references go round in circles at \"%s#%s\"", p.url, escaped(p.pointer))
	}
	if name != "" {
		base, err := url.Parse(p.url)
		if err != nil {
			return p, err
		}
		u, err := base.Parse(name)
		if err != nil {
			return p, err
		}
		to.url = u.String()
	}
	var err error
	if to.value, err = l.Load(to.url); err != nil {
		return p, err
	}
	return l.down(to, fragmentParts(fragment)...)
}

// token is a key as a JSON pointer has it (RFC 6901).
func token(key string) string { return strings.NewReplacer("~", "~0", "/", "~1").Replace(key) }

// fragmentParts returns the parts of the JSON pointer that is a URL's fragment.
func fragmentParts(fragment string) []string {
	var parts []string
	for _, part := range strings.Split(fragment, "/")[1:] {
		if plain, err := url.PathUnescape(part); err == nil {
			part = plain
		}
		parts = append(parts, strings.NewReplacer("~1", "/", "~0", "~").Replace(part))
	}
	return parts
}

// Load implements jsonschema.URLLoader.
func (l *library) Load(name string) (any, error) {
	if v, ok := l.docs[name]; ok {
		return v, nil
	}
	v, err := loader{l.from}.Load(name)
	if err == nil {
		l.docs[name] = v
	}
	return v, err
}

// resource returns what the document is named for the compiler, and its value.
func (d *document) resource() (name string, value any, m *Mistake) {
	value, err := d.value()
	if err != nil {
		return "", nil, d.mistake(1, "is no JSON: "+err.Error())
	}
	if name, err = d.url(); err != nil {
		return "", nil, d.mistake(1, "has no place: "+err.Error())
	}
	return name, value, nil
}

// url names the document for the compiler.
func (d *document) url() (string, error) {
	if d.file == "" {
		return "inline:schema", nil
	}
	abs, err := filepath.Abs(d.file)
	if err != nil {
		return "", err
	}
	return (&url.URL{Scheme: "file", Path: filepath.ToSlash(abs)}).String(), nil
}

// parameters returns what is wrong with a request's parameters.
func (c *compiled) parameters(o *Operation, r *http.Request) []Fault {
	in := &openapi3filter.RequestValidationInput{Request: r, PathParams: o.params, QueryParams: r.URL.Query(),
		Options: &openapi3filter.Options{SkipSettingDefaults: true}}
	own := o.route.Operation.Parameters
	var out []Fault
	for _, ref := range o.route.PathItem.Parameters {
		if own.GetByInAndName(ref.Value.In, ref.Value.Name) == nil {
			c.params[ref.Value].check(&out, in)
		}
	}
	for _, ref := range own {
		c.params[ref.Value].check(&out, in)
	}
	return out[:min(len(out), MaxFaults)]
}

func (p *param31) check(out *[]Fault, in *openapi3filter.RequestValidationInput) {
	if p.never == nil {
		return
	}
	err := openapi3filter.ValidateParameter(in.Request.Context(), in, p.probe)
	var decoded *openapi3.SchemaError
	if !errors.As(err, &decoded) || decoded.Schema != p.never {
		collect(out, Fault{}, err)
		return
	}
	about := Fault{In: p.probe.In, Name: p.probe.Name, Detail: "is not of its type"}
	if !finite(decoded.Value) {
		*out = append(*out, about)
		return
	}
	for _, f := range p.schema.Check(decoded.Value) {
		about.Pointer, about.Detail = f.Pointer, f.Detail
		*out = append(*out, about)
	}
}

// finite reports whether all numbers in v are such as JSON has: "inf" is
// decoded as a number.
func finite(v any) bool {
	switch v := v.(type) {
	case float64:
		return !math.IsInf(v, 0) && !math.IsNaN(v)
	case []any:
		return !slices.ContainsFunc(v, func(e any) bool { return !finite(e) })
	case map[string]any:
		for _, e := range v {
			if !finite(e) {
				return false
			}
		}
	}
	return true
}

// integers is a format of OpenAPI's: whole numbers from low to high.
func integers(name string, low, high int64) *jsonschema.Format {
	return &jsonschema.Format{Name: name, Validate: func(v any) error {
		text := ""
		switch v := v.(type) {
		case json.Number:
			text = v.String()
		case int64:
			text = strconv.FormatInt(v, 10)
		case float64:
			text = strconv.FormatFloat(v, 'f', -1, 64)
		default:
			return nil
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if errors.Is(err, strconv.ErrSyntax) { // 1.0, 1e3
			f, _ := strconv.ParseFloat(text, 64)
			if f >= float64(low) && f <= float64(high) {
				return nil
			}
		} else if err == nil && n >= low && n <= high {
			return nil
		}
		return errors.New("is beyond it")
	}}
}
