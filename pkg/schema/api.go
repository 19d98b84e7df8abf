package schema

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
)

// API is a compiled OpenAPI document, 3.0 or 3.1. It is safe for concurrent
// use.
type API struct {
	doc    *openapi3.T
	router routers.Router
	v31    *compiled // of 3.1 documents; nil: the library knows 3.0 itself
	bases  []string  // paths of its servers; their hosts are the gateway's business
}

// CompileAPI is Compiler.API.
func CompileAPI(file string, text []byte) (*API, *Mistake) { return Compiler{}.API(file, text) }

// API compiles an OpenAPI document. file is where it stands, from which it may
// refer to other files; empty: it may not.
func (k Compiler) API(file string, text []byte) (*API, *Mistake) {
	d, m := read(file, text)
	if m != nil {
		return nil, m
	}
	d.compiler = k
	l := openapi3.NewLoader()
	l.IsExternalRefsAllowed = file != ""
	l.ReadFromURIFunc = func(_ *openapi3.Loader, u *url.URL) ([]byte, error) {
		if u.Scheme != "" && u.Scheme != "file" || file == "" {
			return nil, errors.New("a document in a file may refer to files, and nothing to anything else")
		}
		other, m := k.readFile(filepath.FromSlash(u.Path))
		if m != nil {
			return nil, m
		}
		return other.text, nil
	}
	doc, err := l.LoadFromDataWithPath(text, &url.URL{Path: filepath.ToSlash(file)})
	if err == nil {
		err = doc.Validate(context.Background(), openapi3.DisableExamplesValidation())
	}
	if err != nil {
		return nil, d.mistake(d.named(err.Error()), "is no OpenAPI document: "+clip(firstLine(err.Error()), maxDetail))
	}
	a := &API{doc: doc}
	for _, s := range doc.Servers {
		base := ""
		if u, err := url.Parse(s.URL); err == nil {
			base = strings.TrimRight(u.EscapedPath(), "/")
		}
		if !slices.Contains(a.bases, base) {
			a.bases = append(a.bases, base)
		}
	}
	if len(a.bases) == 0 {
		a.bases = []string{""}
	}
	doc.Servers = nil
	if a.router, err = legacy.NewRouter(doc, openapi3.DisableExamplesValidation()); err != nil {
		return nil, d.mistake(d.named(err.Error()), clip(firstLine(err.Error()), maxDetail))
	}
	if doc.IsOpenAPI31OrLater() {
		if a.v31, m = compile31(d, doc); m != nil {
			return nil, m
		}
	}
	return a, nil
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// Operation is one that a request asks for.
type Operation struct {
	api    *API
	route  *routers.Route
	params map[string]string
}

// Find returns the operation for a method and an escaped path, as the service
// sees it. Where the document has the path without the method it returns the
// methods that it has.
func (a *API) Find(method, path string) (op *Operation, allow []string) {
	methods := []string{method}
	if method == http.MethodHead { // RFC 9110 section 9.3.2
		methods = append(methods, http.MethodGet)
	}
	for _, base := range a.bases {
		rest, ok := strings.CutPrefix(path, base)
		if !ok || rest != "" && rest[0] != '/' {
			continue
		}
		if rest == "" {
			rest = "/"
		}
		for _, m := range methods {
			if op := a.find(m, rest); op != nil {
				return op, nil
			}
		}
		for _, m := range [...]string{"GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"} {
			if a.find(m, rest) != nil && !slices.Contains(allow, m) {
				allow = append(allow, m)
			}
		}
	}
	return nil, allow
}

func (a *API) find(method, path string) *Operation {
	// The router splits Path, so it gets the escaped one: a slash that is data
	// stays part of its segment.
	route, params, err := a.router.FindRoute(&http.Request{Method: method, URL: &url.URL{Path: path}})
	if err != nil || route == nil || route.Operation == nil {
		return nil
	}
	for name, value := range params {
		plain, err := url.PathUnescape(value)
		if err != nil {
			return nil
		}
		params[name] = plain
	}
	return &Operation{a, route, params}
}

// String names the operation, for people.
func (o *Operation) String() string { return o.route.Method + " " + o.route.Path }

// Parameters returns what is wrong with a request's path, query, header and
// cookies. It leaves the request as it is.
func (o *Operation) Parameters(r *http.Request) []Fault {
	if o.api.v31 != nil {
		return o.api.v31.parameters(o, r)
	}
	in := &openapi3filter.RequestValidationInput{
		Request: r, PathParams: o.params, QueryParams: r.URL.Query(), Route: o.route,
		Options: &openapi3filter.Options{ExcludeRequestBody: true, MultiError: true, SkipSettingDefaults: true,
			AuthenticationFunc: openapi3filter.NoopAuthenticationFunc}, // who may call is auth's to say
	}
	var out []Fault
	collect(&out, Fault{}, openapi3filter.ValidateRequest(r.Context(), in))
	return out
}

// collect takes an error of the library apart.
func collect(out *[]Fault, about Fault, err error) {
	if err == nil || len(*out) >= MaxFaults {
		return
	}
	var request *openapi3filter.RequestError
	var invalid *openapi3.SchemaError
	switch many, ok := err.(openapi3.MultiError); {
	case ok:
		for _, e := range many {
			collect(out, about, e)
		}
		return
	case errors.As(err, &request) && request.Parameter != nil && about.In == "":
		about.In, about.Name = request.Parameter.In, request.Parameter.Name
		switch {
		case errors.Is(request.Err, openapi3filter.ErrInvalidRequired):
			about.Detail = "is required"
		case errors.Is(request.Err, openapi3filter.ErrInvalidEmptyValue):
			about.Detail = "is empty"
		default:
			collect(out, about, request.Err)
			return
		}
	case errors.As(err, &invalid):
		about.Pointer = pointer(invalid.JSONPointer())
		about.Detail = clip(invalid.Reason, maxDetail)
	default:
		about.Detail = "is not of its type" // the library's text has the value in it
	}
	if !slices.Contains(*out, about) {
		*out = append(*out, about)
	}
}

// Body says what the operation takes as its body. types are its media types;
// none: it takes no body.
func (o *Operation) Body() (types []string, required bool) {
	body := o.route.Operation.RequestBody
	if body == nil || body.Value == nil {
		return nil, false
	}
	for t := range body.Value.Content {
		types = append(types, bare(t))
	}
	slices.Sort(types)
	return types, body.Value.Required
}

// Check returns what is wrong with a JSON body of that media type that Parse
// has read.
func (o *Operation) Check(mediaType string, body any) []Fault {
	content := o.content(mediaType)
	switch {
	case content == nil:
		return []Fault{{Detail: "is of a type that the operation does not take"}}
	case content.Schema == nil || content.Schema.Value == nil:
		return nil
	}
	if o.api.v31 != nil {
		return o.api.v31.bodies[content].Check(body)
	}
	var out []Fault
	collect(&out, Fault{}, o.api.doc.ValidateSchemaJSON(content.Schema.Value, floats(body),
		openapi3.MultiErrors(), openapi3.VisitAsRequest(), openapi3.EnableFormatValidation()))
	return out
}

// content returns what the document says of a media type, by its own name
// before a pattern.
func (o *Operation) content(mediaType string) *openapi3.MediaType {
	var found *openapi3.MediaType
	longest := -1
	for t, c := range o.route.Operation.RequestBody.Value.Content {
		t = bare(t)
		if t == mediaType {
			return c
		}
		if Accepts(t, mediaType) && len(t) > longest {
			found, longest = c, len(t)
		}
	}
	return found
}

// bare returns a media type without its parameters.
func bare(t string) string {
	t, _, _ = strings.Cut(t, ";")
	return strings.ToLower(strings.TrimSpace(t))
}

// Accepts reports whether a pattern, as "application/*+json" or "*/*", takes in
// a media type.
func Accepts(pattern, mediaType string) bool {
	if pattern == "*/*" {
		return mediaType != ""
	}
	front, back, wild := strings.Cut(pattern, "*")
	if !wild {
		return mediaType == front
	}
	return len(mediaType) > len(front)+len(back) && strings.HasPrefix(mediaType, front) && strings.HasSuffix(mediaType, back)
}

// floats returns a copy of v with the numbers that the library knows.
func floats(v any) any {
	switch v := v.(type) {
	case json.Number:
		f, err := v.Float64()
		if err != nil {
			return v // beyond what there is: the library refuses its type
		}
		return f
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = floats(v[i])
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k := range v {
			out[k] = floats(v[k])
		}
		return out
	}
	return v
}

// Size says how much there is in the document, for people.
func (a *API) Size() string {
	n := 0
	for _, item := range a.doc.Paths.Map() {
		n += len(item.Operations())
	}
	return fmt.Sprintf("%d operations", n)
}
