package schema_test

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/pkg/schema"
)

var usual = schema.Bounds{Depth: 8, Values: 1000}

func TestTextsThatAreRefused(t *testing.T) {
	for _, tt := range []struct{ name, text, pointer, detail string }{
		{"nothing", "", "", "is no JSON"},
		{"a part", `{"a":`, "", "is no JSON"},
		{"two texts", `{} {}`, "", "is no JSON"},
		{"a byte order mark", "\ufeff{}", "", "is no JSON"},
		{"a trailing comma", `[1,]`, "", "is no JSON"},
		{"not a number", `NaN`, "", "is no JSON"},
		{"not UTF-8", "\"\xff\"", "", "is not UTF-8"},
		{"a name twice", `{"a":{"b":1,"c":[{"b":1,"b":2}]}}`, "/a/c/0/b", "is named twice"},
		{"a name twice, spelled in two ways", `{"role":"user","\u0072ole":"admin"}`, "/role", "is named twice"},
		{"a name of many twice", "{" + strings.Repeat(`"x":1,`, 0) + many(40) + `"k7":1}`, "/k7", "is named twice"},
		{"too deep", `{"a":` + strings.Repeat("[", 8) + strings.Repeat("]", 8) + `}`, "", "nested more than 8"},
		{"too much", "[" + strings.Repeat("1,", 1000) + "1]", "", "more than 1000 values"},
		{"a huge exponent", `{"a":[0,1e999999999]}`, "/a/1", "beyond what is accepted"},
		{"many digits", `[` + strings.Repeat("1", 101) + `]`, "/0", "beyond what is accepted"},
		{"a name with a slash", `{"a/b~":{"c":1,"c":2}}`, "/a~1b~0/c", "is named twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, f := schema.Parse([]byte(tt.text), usual)
			if f == nil || !strings.Contains(f.Detail, tt.detail) || tt.pointer != "" && f.Pointer != tt.pointer {
				t.Errorf("got %+v, want %q at %q", f, tt.detail, tt.pointer)
			}
		})
	}
	for _, text := range []string{`{"a":"a","b":{"a":"a"},"c":[{"a":1},{"a":1}]}`, ` [ "a" , "a:" , {"x" : "y"} ] `, `"\"{[,"`, `-1.5e-300`, `{"a":{"\\":1,"\"":2}}`} {
		if _, f := schema.Parse([]byte(text), usual); f != nil {
			t.Errorf("%s is refused: %+v", text, f)
		}
	}
	twice := usual
	twice.Duplicates = true
	if f := schema.Scan([]byte(`{"a":1,"a":2}`), twice); f != nil {
		t.Errorf("allowed duplicates are refused: %+v", f)
	}
}

func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"k%d":1,`, i)
	}
	return b.String()
}

// What is accepted every reader reads the same: written again by the standard
// library it has as many members, which is not so where a name was twice.
func TestAcceptedTextsHaveOneReading(t *testing.T) {
	values := rapid.Deferred(func() *rapid.Generator[any] { return value(3) })
	rapid.Check(t, func(t *rapid.T) {
		v := values.Draw(t, "v")
		text, err := json.MarshalIndent(v, "", " \t")
		if err != nil {
			t.Skip()
		}
		got, f := schema.Parse(text, schema.Bounds{Depth: 20, Values: 10000})
		if f != nil {
			t.Fatalf("%s is refused: %+v", text, f)
		}
		again, _ := json.Marshal(got)
		var a, b any
		_ = json.Unmarshal(text, &a)
		_ = json.Unmarshal(again, &b)
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("%s became %s", text, again)
		}
	})
}

func value(depth int) *rapid.Generator[any] {
	leaf := rapid.OneOf(rapid.Map(rapid.String(), func(s string) any { return s }), rapid.Map(rapid.Int32(), func(i int32) any { return i }), rapid.Just[any](nil), rapid.Just[any](true))
	if depth == 0 {
		return leaf
	}
	return rapid.OneOf(leaf,
		rapid.Map(rapid.SliceOfN(value(depth-1), 0, 4), func(l []any) any { return l }),
		rapid.Map(rapid.MapOfN(rapid.StringN(0, 5, 20), value(depth-1), 0, 30), func(m map[string]any) any { return m }))
}

func FuzzScan(f *testing.F) {
	for _, s := range []string{`{"a":[1,2,{"b":"c"}]}`, `{"a":1,"\u0061":2}`, `[[[[`, `"`, `{"a":"\\"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		_, fault := schema.Parse(text, usual)
		if fault == nil && !json.Valid(text) {
			t.Error("accepted, and no JSON")
		}
		if fault != nil && (len(fault.Pointer) > 300 || len(fault.Detail) > 400) {
			t.Errorf("a fault of %d bytes", len(fault.Pointer)+len(fault.Detail))
		}
	})
}

const order = `{
  "type": "object",
  "required": ["id", "items"],
  "additionalProperties": false,
  "properties": {
    "id": {"type": "string", "pattern": "^[a-z]+$"},
    "mail": {"type": "string", "format": "email"},
    "items": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/item"}}
  },
  "$defs": {"item": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}}}
}`

func TestBodiesAgainstASchema(t *testing.T) {
	s, m := schema.CompileJSON("", []byte(order))
	if m != nil {
		t.Fatal(m)
	}
	check := func(text string) []schema.Fault {
		t.Helper()
		v, f := schema.Parse([]byte(text), schema.Bounds{Depth: 32, Values: 100000})
		if f != nil {
			t.Fatal(f)
		}
		return s.Check(v)
	}
	if f := check(`{"id":"a","mail":"a@b.test","items":[{"n":1}]}`); f != nil {
		t.Errorf("a good one: %v", f)
	}
	secret := "hunter2-SECRET"
	got := check(`{"id":"` + secret + `","mail":"` + secret + `","items":[{"n":0},{"n":"` + secret + `"}],"x":1}`)
	want := map[string]bool{"": true, "/id": true, "/mail": true, "/items/0/n": true, "/items/1/n": true}
	for _, f := range got {
		if !want[f.Pointer] || f.Detail == "" {
			t.Errorf("fault %+v", f)
		}
		if strings.Contains(f.Detail, secret) {
			t.Errorf("the value is told: %+v", f)
		}
		delete(want, f.Pointer)
	}
	if len(want) > 0 {
		t.Errorf("not told: %v", want)
	}
	if f := check(`{"id":"a","items":[` + strings.Repeat(`{"n":0},`, 5000) + `{}]}`); len(f) != schema.MaxFaults {
		t.Errorf("%d faults are told", len(f))
	}
}

// folder returns what writes files into a folder of the test's own.
func folder(t *testing.T) func(name, text string) (file string) {
	dir := t.TempDir()
	return func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
}

// What is wrong with a document is told with its line, and nothing of the text
// of a file that is none.
func TestMistakesInDocuments(t *testing.T) {
	write := folder(t)
	other := write("other.yaml", "type: integer\n")
	for _, tt := range []struct {
		name, text string
		line       int
		says       string
	}{
		{"no JSON", "{\n  \"type\": \"object\",\n  \"a\": [\n}", 3, "neither JSON nor YAML"},
		{"a type that there is none of", "{\n \"properties\": {\n  \"a\": {\n   \"type\": \"strin\"\n }}}", 4, "/properties/a/type"},
		{"YAML", "type: object\nproperties:\n  a:\n    minLength: -1\n", 4, "/properties/a/minLength"},
		{"a bad expression", "type: object\nproperties:\n  a:\n    pattern: '['\n", 4, "/properties/a/pattern"},
		{"a reference to nothing", "type: object\nproperties:\n  a:\n    $ref: '#/$defs/b'\n", 1, "$defs/b"},
		{"a reference to the network", "$ref: https://example.com/schema.json\n", 1, "nothing to anything else"},
		{"a secret file", "root:x:0:0:SECRET\n", 1, "is no JSON or YAML object"},
		{"a list", "[1]", 1, "is no JSON or YAML object"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := write("schema.yaml", tt.text)
			_, m := schema.CompileJSON(file, []byte(tt.text))
			if m == nil || m.File != file || !strings.Contains(m.Message, tt.says) || strings.Contains(m.Error(), "SECRET") {
				t.Fatalf("got %v", m)
			}
			if m.Line != tt.line {
				t.Errorf("line %d, want %d: %v", m.Line, tt.line, m)
			}
		})
	}
	if _, m := schema.CompileJSON(write("ref.yaml", "x"), []byte("$ref: other.yaml\n")); m != nil {
		t.Errorf("a reference to a file beside it: %v", m)
	}
	if _, m := schema.CompileJSON("", []byte("$ref: 'file://"+other+"'\n")); m == nil {
		t.Error("a text in the configuration reads files")
	}
}

const shop = `openapi: 3.0.3
info: {title: shop, version: "1"}
servers: [{url: "https://api.example.com/v1"}]
security: [{key: []}]
paths:
  /orders/{id}:
    parameters:
      - {name: id, in: path, required: true, schema: {type: integer, minimum: 1}}
    get:
      parameters:
        - {name: limit, in: query, schema: {type: integer, maximum: 100}}
        - {name: X-Team, in: header, required: true, schema: {type: string, enum: [red, blue]}}
      responses: {"200": {description: ok}}
    put:
      requestBody:
        required: true
        content:
          application/json; charset=utf-8:
            schema: {type: object, required: [total], properties: {total: {type: number, minimum: 0}, note: {type: string, maxLength: 5}}}
          application/*: {schema: {type: object, required: [any]}}
      responses: {"200": {description: ok}}
  /files/{name}:
    get: {parameters: [{name: name, in: path, required: true, schema: {type: string, pattern: "^[a-z/]+$"}}], responses: {"200": {description: ok}}}
components: {securitySchemes: {key: {type: apiKey, in: header, name: X-Key}}}
`

func TestRequestsAgainstADescription(t *testing.T) {
	a, m := schema.CompileAPI("", []byte(shop))
	if m != nil {
		t.Fatal(m)
	}
	for _, tt := range []struct{ method, path, op, allow string }{
		{"GET", "/v1/orders/7", "GET /orders/{id}", ""},
		{"HEAD", "/v1/orders/7", "GET /orders/{id}", ""},
		{"PUT", "/v1/orders/7", "PUT /orders/{id}", ""},
		{"DELETE", "/v1/orders/7", "", "GET PUT"},
		{"GET", "/orders/7", "", ""},
		{"GET", "/v1/orders/7/8", "", ""},
		{"GET", "/v1x/orders/7", "", ""},
		{"GET", "/v1/files/a%2Fb", "GET /files/{name}", ""},
		{"GET", "/v1/files/a/b", "", ""},
	} {
		op, allow := a.Find(tt.method, tt.path)
		name := ""
		if op != nil {
			name = op.String()
		}
		if name != tt.op || strings.Join(allow, " ") != tt.allow {
			t.Errorf("%s %s: %q, allow %v; want %q, %q", tt.method, tt.path, name, allow, tt.op, tt.allow)
		}
	}
	params := func(path, query, team string) string {
		op, _ := a.Find("GET", path)
		r := httptest.NewRequest("GET", "http://x"+path+"?"+query, nil)
		if team != "" {
			r.Header.Set("X-Team", team)
		}
		var out []string
		for _, f := range op.Parameters(r) {
			out = append(out, f.In+" "+f.Name)
			if strings.Contains(f.Detail, "SECRET") {
				t.Errorf("the value is told: %+v", f)
			}
		}
		return strings.Join(out, ", ")
	}
	for _, tt := range []struct{ path, query, team, want string }{
		{"/v1/orders/7", "limit=5", "red", ""},
		{"/v1/orders/0", "limit=500", "", "path id, query limit, header X-Team"},
		{"/v1/orders/SECRET", "limit=SECRET", "SECRET", "path id, query limit, header X-Team"},
		{"/v1/files/a%2Fb", "", "", ""},
		{"/v1/files/A", "", "", "path name"},
	} {
		if got := params(tt.path, tt.query, tt.team); got != tt.want {
			t.Errorf("%s?%s: %q, want %q", tt.path, tt.query, got, tt.want)
		}
	}
	op, _ := a.Find("PUT", "/v1/orders/7")
	for _, tt := range []struct{ kind, text, want string }{
		{"application/json", `{"total":1.5}`, ""},
		{"application/json", `{"total":-1,"note":"much too long"}`, "/note /total"},
		{"application/json", `{}`, "/total"},
		{"application/vnd.x+json", `{}`, "/any"},
		{"text/plain", `{}`, "-"},
		{"application/json", `[]`, "-"},
	} {
		v, f := schema.Parse([]byte(tt.text), usual)
		if f != nil {
			t.Fatal(f)
		}
		var got []string
		for _, f := range op.Check(tt.kind, v) {
			got = append(got, f.Pointer)
		}
		for i, p := range got {
			if p == "" {
				got[i] = "-"
			}
		}
		if sorted := strings.Join(sort(got), " "); sorted != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.kind, tt.text, sorted, tt.want)
		}
	}
}

func sort(s []string) []string {
	for i := range s {
		for j := i + 1; j < len(s); j++ {
			if s[j] < s[i] {
				s[i], s[j] = s[j], s[i]
			}
		}
	}
	return s
}

func TestMistakesInDescriptions(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		line       int
	}{
		{"no OpenAPI", "a: b\n", 1},
		{"no YAML", "openapi: 3.0.3\ninfo: [\n", 2},
		{"a path without a slash", strings.Replace(shop, "  /files/{name}:", "  files/{name}:", 1), 22},
		{"a parameter that is not in the path", strings.Replace(shop, "/orders/{id}:", "/orders/{no}:", 1), 7},
		{"a reference to nothing", strings.Replace(shop, "{type: object, required: [any]}", `{$ref: "#/components/schemas/none"}`, 1), 0},
		{"no responses", strings.Replace(shop, "    put:", "    delete: {description: x}\n    put:", 1), 0},
		{"the network", strings.Replace(shop, "{type: object, required: [any]}", `{$ref: "https://example.com/x.yaml"}`, 1), 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, m := schema.CompileAPI("", []byte(tt.text))
			if m == nil {
				t.Fatal("it was taken")
			}
			if tt.line > 0 && m.Line != tt.line {
				t.Errorf("line %d, want %d: %v", m.Line, tt.line, m)
			}
		})
	}
}

func TestVersion31(t *testing.T) {
	a, m := schema.CompileAPI("", []byte(`{"openapi":"3.1.0","info":{"title":"t","version":"1"},"paths":{"/x":{"post":{"requestBody":{"content":{"application/json":{"schema":{"type":["object","null"],"properties":{"a":{"const":1}}}}}},"responses":{"200":{"description":"ok"}}}}}}`))
	if m != nil {
		t.Fatal(m)
	}
	op, _ := a.Find("POST", "/x")
	for text, want := range map[string]int{`null`: 0, `{"a":1}`: 0, `{"a":2}`: 1, `[]`: 1} {
		v, _ := schema.Parse([]byte(text), usual)
		if got := op.Check("application/json", v); len(got) != want {
			t.Errorf("%s: %v, want %d", text, got, want)
		}
	}
}

const shop31 = `openapi: 3.1.0
info: {title: shop, version: "1"}
paths:
  /orders/{id}:
    parameters: [{$ref: "#/components/parameters/id"}]
    get:
      parameters:
        - {name: limit, in: query, schema: {type: integer, exclusiveMaximum: 100, not: {const: 13}}}
        - {name: kind, in: query, schema: {type: string, const: big}}
        - {name: some, in: query, schema: {type: array, items: {type: number}, contains: {const: 1}}}
        - {name: q, in: query, content: {application/json: {schema: {$ref: "#/components/schemas/order"}}}}
        - {name: X-Team, in: header, required: true, schema: {$ref: "#/components/schemas/team"}}
      responses: {200: {description: ok}}
    put:
      requestBody: {$ref: "#/components/requestBodies/order"}
      responses: {200: {description: ok}}
components:
  parameters: {id: {name: id, in: path, required: true, schema: {type: integer, format: int32, minimum: 1}}}
  requestBodies: {order: {content: {"application/json; charset=utf-8": {schema: {$ref: "#/components/schemas/order"}}}}}
  schemas:
    team: {type: string, enum: [red, blue]}
    order:
      type: object
      required: [total]
      properties:
        total: {type: [number, "null"], minimum: 0}
        team: {$ref: "#/components/schemas/team"}
        parts: {type: array, items: {$ref: "#/components/schemas/order"}}
        big: {type: integer, format: int64}
      if: {properties: {team: {const: red}}, required: [team]}
      then: {required: [note]}
`

func TestNumbersAreNotTold(t *testing.T) {
	s, m := schema.CompileJSON("", []byte(`{"items":{"minimum":10,"maximum":20000.5,"exclusiveMinimum":9,"exclusiveMaximum":30000,"multipleOf":0.5}}`))
	if m != nil {
		t.Fatal(m)
	}
	v, _ := schema.Parse([]byte(`[-4711.3,47110.3]`), usual)
	faults := s.Check(v)
	if len(faults) != 6 {
		t.Errorf("%d faults, want 6: %v", len(faults), faults)
	}
	for _, f := range faults {
		if plain := strings.ReplaceAll(f.Detail, ",", ""); strings.Contains(plain, "4711") {
			t.Errorf("the value is told: %v", f)
		}
	}
}

// Documents of 3.1 are JSON Schemas. What is told of a request has pointers,
// and never the value.
func TestRequestsAgainstADescriptionOf31(t *testing.T) {
	a, m := schema.CompileAPI("", []byte(shop31))
	if m != nil {
		t.Fatal(m)
	}
	told := func(faults []schema.Fault) string {
		var out []string
		for _, f := range faults {
			out = append(out, strings.TrimSpace(f.In+" "+f.Name+" #"+f.Pointer))
			if strings.Contains(f.Detail, "SECRET") {
				t.Errorf("the value is told: %+v", f)
			}
		}
		return strings.Join(sort(out), ", ")
	}
	put, _ := a.Find("PUT", "/orders/7")
	for text, want := range map[string]string{
		`{"total":1.5}`:                         "",
		`{"total":null,"parts":[]}`:             "",
		`{}`:                                    "#",
		`"SECRET"`:                              "#",
		`{"total":"SECRET"}`:                    "#/total",
		`{"total":-1,"team":"SECRET"}`:          "#/team, #/total",
		`{"total":1,"team":"red"}`:              "#",
		`{"total":1,"parts":[{"total":[]}]}`:    "#/parts/0/total",
		`{"total":1,"big":9223372036854775807}`: "",
		`{"total":1,"big":9223372036854775808}`: "#/big",
	} {
		v, f := schema.Parse([]byte(text), usual)
		if f != nil {
			t.Fatal(f)
		}
		if got := told(put.Check("application/json", v)); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	for _, tt := range []struct{ path, query, team, want string }{
		{"/orders/7", "limit=5&kind=big&some=1&some=2", "red", ""},
		{"/orders/7", `q={"total":1}`, "red", ""},
		{"/orders/7", `q={"total":"SECRET"}`, "red", "query q #/total"},
		{"/orders/0", "limit=100", "", "header X-Team #, path id #, query limit #"},
		{"/orders/3000000000", "limit=13", "blue", "path id #, query limit #"},
		{"/orders/SECRET", "limit=SECRET&kind=SECRET", "SECRET", "header X-Team #, path id #, query kind #, query limit #"},
		{"/orders/7", "some=2&some=3", "red", "query some #/0, query some #/1"},
		{"/orders/7", "some=1&some=inf", "red", "query some #"},
	} {
		op, _ := a.Find("GET", tt.path)
		r := httptest.NewRequest("GET", "http://x"+tt.path, nil)
		r.URL.RawQuery = tt.query
		if tt.team != "" {
			r.Header.Set("X-Team", tt.team)
		}
		if got := told(op.Parameters(r)); got != tt.want {
			t.Errorf("%s?%s: %q, want %q", tt.path, tt.query, got, tt.want)
		}
	}
}

// A document of 3.1 may lie in several files, and where its schemas are wrong
// is told by its line.
func TestDescriptionsOf31InFiles(t *testing.T) {
	write := folder(t)
	write("bodies.yaml", "order: {content: {application/json: {schema: {$ref: 'schemas.yaml#/order'}}}}\n")
	write("schemas.yaml", "order: {type: object, required: [total]}\n")
	text := strings.Replace(shop31, "#/components/requestBodies/order", "bodies.yaml#/order", 1)
	a, m := schema.CompileAPI(write("shop.yaml", text), []byte(text))
	if m != nil {
		t.Fatal(m)
	}
	op, _ := a.Find("PUT", "/orders/7")
	if got := op.Check("application/json", map[string]any{}); len(got) != 1 {
		t.Errorf("%v, want one fault", got)
	}
	_, m = schema.CompileAPI("", []byte(strings.Replace(shop31, "required: [note]", `patternProperties: {"(": {}}`, 1)))
	if m == nil || m.Line != 22 {
		t.Errorf("%v, want the line of the schema", m)
	}
}

// A request costs what its body does, and not what the document does.
func TestADescriptionIsCompiledOnce(t *testing.T) {
	var properties []string
	for i := range 60 {
		properties = append(properties, fmt.Sprintf(`"p%d":{"type":"string","pattern":"^[a-z]+$"}`, i))
	}
	a, m := schema.CompileAPI("", []byte(`{"openapi":"3.1.0","info":{"title":"t","version":"1"},"paths":{"/x":{"post":{
"parameters":[{"name":"p","in":"query","content":{"application/json":{"schema":{"type":"object","properties":{`+strings.Join(properties, ",")+`}}}}}],
"requestBody":{"content":{"application/json":{"schema":{"type":"object","properties":{`+strings.Join(properties, ",")+`}}}}},"responses":{"200":{"description":"ok"}}}}}}`))
	if m != nil {
		t.Fatal(m)
	}
	op, _ := a.Find("POST", "/x")
	if n := testing.AllocsPerRun(10, func() { op.Check("application/json", map[string]any{}) }); n > 50 {
		t.Errorf("%v allocations for a body of two bytes", n)
	}
	r := httptest.NewRequest("POST", "http://x/x?p=%7B%7D", nil)
	if n := testing.AllocsPerRun(10, func() { op.Parameters(r) }); n > 200 {
		t.Errorf("%v allocations for a parameter of two bytes", n)
	}
}

func BenchmarkScan(b *testing.B) {
	text := []byte(`[` + strings.Repeat(`{"id":12345,"name":"customer","tags":["a","b"],"nested":{"x":1.5,"y":true}},`, 100) + `{}]`)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if f := schema.Scan(text, schema.Bounds{Depth: 32, Values: 100000}); f != nil {
			b.Fatal(f)
		}
	}
}
