package app_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/proconsul/proconsul/api"
	"github.com/proconsul/proconsul/pkg/admin"
)

// document is as much of an OpenAPI document as these tests look at.
type document struct {
	OpenAPI    string                          `yaml:"openapi"`
	Paths      map[string]map[string]operation `yaml:"paths"`
	Components struct {
		Responses map[string]answer  `yaml:"responses"`
		Schemas   map[string]*schema `yaml:"schemas"`
	} `yaml:"components"`
}

type operation struct {
	ID        string            `yaml:"operationId"`
	Role      string            `yaml:"x-role"`
	Responses map[string]answer `yaml:"responses"`
}

type answer struct {
	Ref     string                              `yaml:"$ref"`
	Content map[string]struct{ Schema *schema } `yaml:"content"`
}

type schema struct {
	Ref        string             `yaml:"$ref"`
	Type       string             `yaml:"type"`
	Format     string             `yaml:"format"`
	Enum       []string           `yaml:"enum"`
	Const      string             `yaml:"const"`
	Required   []string           `yaml:"required"`
	Properties map[string]*schema `yaml:"properties"`
	Additional yaml.Node          `yaml:"additionalProperties"`
	Items      *schema            `yaml:"items"`
	AllOf      []*schema          `yaml:"allOf"`
}

func readDocument(t *testing.T) *document {
	t.Helper()
	d := &document{}
	if err := yaml.Unmarshal(api.YAML(), d); err != nil {
		t.Fatal(err)
	}
	return d
}

// fits returns what is wrong with a value by its schema.
func (d *document) fits(s *schema, v any, at string) (faults []string) {
	if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok {
		if s = d.Components.Schemas[name]; s == nil {
			return []string{at + ": no schema " + name}
		}
	}
	fault := func(format string, args ...any) { faults = append(faults, at+": "+fmt.Sprintf(format, args...)) }
	for _, part := range s.AllOf {
		faults = append(faults, d.fits(part, v, at)...)
	}
	switch s.Type {
	case "object":
		m, ok := v.(map[string]any)
		if !ok {
			fault("is %T, not an object", v)
			return faults
		}
		for _, key := range s.Required {
			if _, ok := m[key]; !ok {
				fault("lacks %s", key)
			}
		}
		for key, value := range m {
			switch p := s.Properties[key]; {
			case p != nil:
				faults = append(faults, d.fits(p, value, at+"."+key)...)
			case s.Additional.Value == "false":
				fault("has %s, which the document does not know", key)
			}
		}
	case "array":
		list, ok := v.([]any)
		if !ok {
			fault("is %T, not an array", v)
		}
		for i, e := range list {
			faults = append(faults, d.fits(s.Items, e, fmt.Sprintf("%s[%d]", at, i))...)
		}
	case "string":
		text, ok := v.(string)
		if !ok {
			fault("is %T, not a string", v)
		}
		if _, err := time.Parse(time.RFC3339Nano, text); s.Format == "date-time" && err != nil {
			fault("%v", err)
		}
		if len(s.Enum) > 0 && !slices.Contains(s.Enum, text) {
			fault("%q is none of %v", text, s.Enum)
		}
	case "integer":
		if n, ok := v.(float64); !ok || n != float64(int64(n)) {
			fault("is %v, not an integer", v)
		}
	case "number":
		if _, ok := v.(float64); !ok {
			fault("is %T, not a number", v)
		}
	case "boolean":
		if _, ok := v.(bool); !ok {
			fault("is %T, not a boolean", v)
		}
	}
	return faults
}

// undocumented are the paths that are for browsers and profilers.
var undocumented = []string{"/", "/{$}", "/assets/{name}", "/favicon.ico", "/debug/pprof/"}

// TestTheAPIIsItsDocument holds openapi.yaml against the running gateway, both
// ways: what is served is documented, what is documented is served, with that
// role; every status that a call is answered with is documented, every
// documented one is seen; and every body fits its schema.
func TestTheAPIIsItsDocument(t *testing.T) {
	d := readDocument(t)
	if d.OpenAPI != "3.1.0" {
		t.Errorf("openapi %s", d.OpenAPI)
	}
	in := startInside(t, operatorsConfig)
	documented := map[string]operation{}
	for path, methods := range d.Paths {
		for method, op := range methods {
			documented[strings.ToUpper(method)+" "+path] = op
		}
	}
	served := map[string]bool{}
	for _, e := range in.app.Endpoints() {
		if slices.Contains(undocumented, e.Path) || strings.HasPrefix(e.Path, "/debug/pprof/") {
			continue
		}
		name := e.Method + " " + strings.ReplaceAll(e.Path, "...}", "}")
		served[name] = true
		op, ok := documented[name]
		role := string(e.Role)
		if role == "" {
			role = "anyone"
		}
		if !ok {
			t.Errorf("%s is served and not in api/openapi.yaml", name)
		} else if op.Role != role {
			t.Errorf("%s needs the role %s, and is documented for %s", name, role, op.Role)
		}
	}
	for name := range documented {
		if !served[name] {
			t.Errorf("%s is in api/openapi.yaml and not served", name)
		}
	}

	seen := map[string]bool{} // "POST /path 200"
	check := func(name, call, body string, headers ...string) {
		t.Helper()
		op := documented[name]
		resp, text := in.call(call, body, headers...)
		status := fmt.Sprint(resp.StatusCode)
		seen[name+" "+status] = true
		a, ok := op.Responses[status]
		if !ok {
			t.Errorf("%s (%s) is answered %s, which is not documented: %s", name, call, status, text)
			return
		}
		if ref, ok := strings.CutPrefix(a.Ref, "#/components/responses/"); ok {
			a = d.Components.Responses[ref]
		}
		contentType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
		content, ok := a.Content[contentType]
		if !ok {
			t.Errorf("%s %s has the type %q, documented are %v", name, status, contentType, slices.Collect(maps.Keys(a.Content)))
			return
		}
		if !strings.HasSuffix(contentType, "json") {
			return
		}
		var v any
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Errorf("%s %s: %v", name, status, err)
			return
		}
		for _, f := range d.fits(content.Schema, v, name+" "+status) {
			t.Error(f)
		}
	}

	// What fills the path and the body of a call that works, one that names
	// nothing, and one that makes no sense.
	good := strings.NewReplacer("/instances/{id}", "/instances/config%2F127.0.0.1:7001", "/breakers/{upstream}", "/breakers/orders",
		"/services/{name}", "/services/orders", "/routes/{name}", "/routes/keyed")
	unknown := strings.NewReplacer("{id}", "no%2Fbody", "{upstream}", "nobody", "{name}", "nobody")
	bodies := map[string][3]string{ // good, unknown, bad
		"POST /api/v1/explain":          {`{"url":"/keyed","headers":["X-API-Key: k"]}`, `{"url":"/","listener":"nobody"}`, `{"url":""}`},
		"POST /api/v1/traces":           {`{"url":"/keyed","headers":["X-API-Key: k"]}`, `{"url":"/","listener":"nobody"}`, `{"url":""}`},
		"POST /api/v1/log-level":        {`{"level":"info"}`, "", `{"level":"loud"}`},
		"POST /api/v1/ratelimits/reset": {`{"route":"keyed","key":"k"}`, `{"route":"nobody"}`, `{"route":"orders","key":"not an address"}`},
		"POST /api/v1/config/plan":      {operatorsConfig + "x-more: 1\n", "", ""},
		"POST /api/v1/config/validate":  {"routs: []\n", "", ""},
	}
	queries := map[string][3]string{
		"GET /api/v1/ratelimits":     {"?route=orders&key=192.0.2.1", "?route=nobody", ""},
		"GET /api/v1/ratelimits/top": {"?n=3", "", "?n=0"},
		"GET /api/v1/instances":      {"?service=orders", "?service=nobody", ""},
		"GET /api/v1/events":         {"", "", "?since=x"},
	}
	for _, name := range slices.Sorted(maps.Keys(documented)) {
		body, query := bodies[name], queries[name]
		if _, ok := bodies[name]; !ok && documented[name].Responses["400"].Ref != "" {
			body = [3]string{`{"for":"10m","reason":"a test"}`, "", `{"for":"ever"}`}
		}
		check(name, good.Replace(name)+query[0], body[0], asOperator)
		if documented[name].Role != "anyone" {
			check(name, good.Replace(name)+query[0], body[0], "Authorization: Bearer wrong")
		}
		if documented[name].Role == "operator" {
			check(name, good.Replace(name)+query[0], body[0], asViewer)
		}
		for status, call := range map[string]func(){
			"400": func() { check(name, good.Replace(name)+query[2], body[2], asOperator) },
			"403": func() { check(name, good.Replace(name), body[0], asOperator, "Sec-Fetch-Site: cross-site") },
			"404": func() { check(name, unknown.Replace(name)+query[1], body[1], asOperator) },
			"413": func() {
				size := 65 << 10
				if strings.Contains(name, "/config/") {
					size = 17 << 20
				}
				check(name, good.Replace(name), `{"reason":"`+strings.Repeat("x", size)+`"}`, asOperator)
			},
			"421": func() { check(name, good.Replace(name)+query[0], body[0], "Host: evil.example.com") },
		} {
			if _, ok := documented[name].Responses[status]; ok {
				call()
			}
		}
	}
	in.write("routs: []\n")
	check("POST /api/v1/reload", "POST /api/v1/reload", "", asOperator)
	check("POST /api/v1/drain", "POST /api/v1/drain", "", asOperator)
	check("GET /readyz", "GET /readyz", "")

	// The rest needs a state that tests of pkg/admin, pkg/gateway and pkg/limiter make.
	for _, elsewhere := range []string{"GET /api/v1/stream 503", "POST /api/v1/ratelimits/reset 422", "POST /api/v1/traces 422"} {
		seen[elsewhere] = true
	}
	for name, op := range documented {
		for status := range op.Responses {
			if !seen[name+" "+status] {
				t.Errorf("%s documents %s, and no call of this test is answered so", name, status)
			}
		}
	}
}

// The document knows every field of the structs that the API is made of, and
// no other.
func TestTheDocumentHasEveryField(t *testing.T) {
	d := readDocument(t)
	for _, v := range []any{
		admin.Status{}, admin.Replica{}, admin.Config{}, admin.Dependency{}, admin.Traffic{}, admin.Stats{}, admin.Latency{}, admin.Upstream{},
		admin.Breaker{}, admin.Concurrency{}, admin.Shed{}, admin.Instance{}, admin.Check{}, admin.Route{}, admin.Rejected{}, admin.Event{}, admin.ExplainRequest{}, admin.Explanation{},
		admin.Explained{}, admin.Outcome{}, admin.Matched{}, admin.PassedOver{}, admin.Step{}, admin.Considered{}, admin.Candidate{}, admin.Send{},
		admin.HeaderValue{}, admin.Timeouts{}, admin.Retries{}, admin.Done{}, admin.Override{}, admin.Fault{}, admin.Verdict{}, admin.Plan{},
		admin.Change{}, admin.FieldChange{}, admin.LogLevel{}, admin.RateLimit{}, admin.LimitLeft{},
		admin.Failure{}, admin.Answers{}, admin.Peer{}, admin.Limits{}, admin.Limited{}, admin.RateLimits{},
		admin.TraceRequest{}, admin.Traced{}, admin.TracedStep{}, admin.Try{}, admin.Answer{},
	} {
		typ := reflect.TypeOf(v)
		s := d.Components.Schemas[typ.Name()]
		if s == nil {
			t.Errorf("api/openapi.yaml has no schema %s", typ.Name())
			continue
		}
		keys := map[string]bool{} // and whether they are always there
		fieldsOf(typ, keys)
		for key, always := range keys {
			if s.Properties[key] == nil {
				t.Errorf("schema %s in api/openapi.yaml lacks %q", typ.Name(), key)
			} else if slices.Contains(s.Required, key) != always {
				t.Errorf("schema %s in api/openapi.yaml: %q is always there: %v; required: %v", typ.Name(), key, always, !always)
			}
		}
		for key := range s.Properties {
			if _, ok := keys[key]; !ok {
				t.Errorf("schema %s in api/openapi.yaml has %q, and the struct has not", typ.Name(), key)
			}
		}
	}
}

func fieldsOf(t reflect.Type, keys map[string]bool) {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			fieldsOf(f.Type, keys)
			continue
		}
		key, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if key != "" && key != "-" {
			keys[key] = opts == ""
		}
	}
}

func TestTheDocumentIsServed(t *testing.T) {
	in := startInside(t, operatorsConfig)
	file, err := os.ReadFile("../../api/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if resp, text := in.call("GET /openapi.yaml", ""); resp.StatusCode != http.StatusOK || text != string(file) {
		t.Errorf("%s, %d bytes", resp.Status, len(text))
	}
	var tree struct{ Paths map[string]any }
	if _, text := in.call("GET /openapi.json", ""); json.Unmarshal([]byte(text), &tree) != nil || len(tree.Paths) != len(readDocument(t).Paths) {
		t.Errorf("the document as JSON has %d paths", len(tree.Paths))
	}
}
