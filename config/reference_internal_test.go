package config

import (
	"bytes"
	"encoding"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// generated compares the file with what it should be, or rewrites it.
func generated(t *testing.T, file string, want []byte) {
	t.Helper()
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is stale: go test ./config -update", file)
	}
}

const referenceHead = `# Configuration

<!-- Generated from config/config.go: go test ./config -update -->

One YAML document, or JSON, which is its subset; or a directory of such files, whose lists are put together in the order of
the files' names. [deploy/proconsul.yaml](../deploy/proconsul.yaml) shows every section, [deploy/minimal.yaml](../deploy/minimal.yaml)
the least that is useful. ` + "`proconsul validate`" + ` lists every fault at once, with a code that [errors.md](errors.md#configuration) explains;
` + "`proconsul config print --sources`" + ` shows what is in force and where each value comes from.

**Layers.** Defaults, below the ` + "`CONSUL_HTTP_*`" + ` variables that every Consul tool obeys, below the file, below
` + "`PROCONSUL_*`" + ` variables, below ` + "`--set KEY=VALUE`" + `. A variable's name is its key's path: ` + "`consul.tls.ca_file`" + ` is
` + "`PROCONSUL_CONSUL_TLS_CA_FILE`" + `; only keys outside lists have one. An empty variable is as good as none.

**Lists.** A written list replaces the default one. What an element leaves out has its default; a written 0 stays 0.

**Values from outside.** ` + "`${env:NAME}`, `${env:NAME:-default}` and `${file:/path}`" + ` are replaced in every value; ` + "`$${`" + ` is a
literal ` + "`${`" + `. Of a file one line break at its end is taken off; a relative path begins at the configuration's directory.

**Formats.** Durations have a unit (` + "`250ms`, `2s`, `1m`, `1h`" + `). Sizes: ` + "`64KiB`, `10MiB`, `1GB`" + ` or a number of bytes. Shares:
` + "`20%` or `0.2`" + `. Limits: ` + "`100/1m`, `20/s`, `5000/d`" + `. Top-level keys that begin with ` + "`x-`" + ` are yours, to hang YAML anchors on.

**Reload.** SIGHUP, a change of the file and ` + "`POST /api/v1/reload`" + ` take over every key but those marked *restart*; a reload that
touches one of these says so. A configuration with a fault changes nothing.

`

// docs are the comments of the tree: of types by name, of fields by
// "Type.Field".
func docs(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(gotoken.NewFileSet(), "config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, d := range file.Decls {
		gen, ok := d.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, s := range gen.Specs {
			ts, ok := s.(*ast.TypeSpec)
			if !ok {
				continue
			}
			out[ts.Name.Name] = strings.Join(strings.Fields(gen.Doc.Text()), " ")
			st, ok := ts.Type.(*ast.StructType)
			if !ok {
				continue
			}
			for _, f := range st.Fields.List {
				text := f.Comment.Text()
				if text == "" {
					text = f.Doc.Text()
				}
				for _, n := range f.Names {
					out[ts.Name.Name+"."+n.Name] = strings.Join(strings.Fields(text), " ")
				}
			}
		}
	}
	return out
}

// TestReference keeps docs/config.md what the tree says.
func TestReference(t *testing.T) {
	r := reference{t: t, docs: docs(t), done: map[reflect.Type]string{}}
	r.WriteString(referenceHead)
	r.section(reflect.TypeFor[Config](), reflect.ValueOf(*Default()), "", false)
	generated(t, "../docs/config.md", append(bytes.TrimRight(r.Bytes(), "\n"), '\n'))
}

type reference struct {
	bytes.Buffer
	t    *testing.T
	docs map[string]string
	done map[reflect.Type]string
}

func (r *reference) section(typ reflect.Type, def reflect.Value, path string, restart bool) {
	if path != "" {
		fmt.Fprintf(r, "## `%s`\n\n", path)
		if doc, ok := strings.CutPrefix(r.docs[typ.Name()], typ.Name()+" "); ok {
			fmt.Fprintf(r, "`%s` %s", path, doc)
		} else {
			r.t.Errorf("%s has no comment that begins with its name", typ.Name())
		}
		if restart {
			r.WriteString(" Read at start only.")
		}
		r.WriteString("\n\n")
		if other, ok := r.done[typ]; ok {
			fmt.Fprintf(r, "The same keys as [`%s`](#%s).\n\n", other, anchor(other))
			return
		}
		r.done[typ] = path
	} else {
		r.WriteString("## The top\n\n")
	}
	type sub struct {
		typ     reflect.Type
		def     reflect.Value
		path    string
		restart bool
	}
	var below []sub
	r.WriteString("| Key | Type | Default | Meaning |\n|---|---|---|---|\n")
	for _, f := range fieldsOf(typ) {
		inner := deref(f.typ)
		p := join(path, f.key)
		isList := inner.Kind() == reflect.Slice && !isScalar(inner.Elem())
		if isList {
			inner, p = inner.Elem(), p+"[]"
		}
		late := restart || f.restart
		owner, name := ownerOf(typ, f.index)
		meaning := r.docs[owner.Name()+"."+name]
		if meaning == "" {
			r.t.Errorf("%s.%s has no comment, and the reference needs one", owner.Name(), name)
		}
		if rule := ruleOf(f); rule != "" {
			meaning += " (" + rule + ")"
		}
		if f.restart {
			meaning += " *(restart)*"
		}
		kind, value := kindOf(f.typ), defaultOf(f, def.FieldByIndex(f.index))
		key := "`" + f.key + "`"
		if isList || inner.Kind() == reflect.Struct && !isScalar(inner) {
			key = fmt.Sprintf("[`%s`](#%s)", f.key, anchor(p))
			e := def.FieldByIndex(f.index)
			if isList || f.typ.Kind() == reflect.Pointer {
				e = elementDefault(inner)
			}
			below = append(below, sub{inner, e, p, late})
		}
		fmt.Fprintf(r, "| %s | %s | %s | %s |\n", key, kind, value, strings.ReplaceAll(meaning, "|", "\\|"))
	}
	r.WriteString("\n")
	for _, s := range below {
		r.section(s.typ, s.def, s.path, s.restart)
	}
}

// anchor is what GitHub makes of a heading.
func anchor(path string) string {
	return strings.NewReplacer(".", "", "[", "", "]", "").Replace(path)
}

// ownerOf is the struct that declares a field, which may be an inline one.
func ownerOf(typ reflect.Type, index []int) (reflect.Type, string) {
	for _, i := range index[:len(index)-1] {
		typ = typ.Field(i).Type
	}
	return typ, typ.Field(index[len(index)-1]).Name
}

func kindOf(t reflect.Type) string {
	switch t = deref(t); {
	case t == reflect.TypeFor[time.Duration]():
		return "duration"
	case t == reflect.TypeFor[Size]():
		return "size"
	case t == reflect.TypeFor[Percent]():
		return "share"
	case t == reflect.TypeFor[Limit]():
		return "limit"
	case t == reflect.TypeFor[Secret]():
		return "secret"
	case t.Name() == "Prefix":
		return "network"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Int:
		return "number"
	case t.Kind() == reflect.String:
		return "text"
	case t.Kind() == reflect.Slice:
		return "list of " + strings.TrimSuffix(kindOf(t.Elem()), "s") + "s"
	case isUserMap(t):
		return "names and texts"
	}
	return "section"
}

func defaultOf(f field, v reflect.Value) string {
	switch t := f.typ; {
	case f.required:
		return "**required**"
	case t.Kind() == reflect.Slice && isScalar(t.Elem()) && v.Len() > 0:
		var parts []string
		for i := range v.Len() {
			parts = append(parts, fmt.Sprint(v.Index(i)))
		}
		return "`[" + strings.Join(parts, ", ") + "]`"
	case !isScalar(t), v.IsZero() && (t.Kind() == reflect.String || t.Kind() == reflect.Struct):
		return ""
	}
	if d, ok := v.Interface().(time.Duration); ok {
		return "`" + formatDuration(d) + "`"
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		b, err := m.MarshalText()
		if err != nil {
			return ""
		}
		return "`" + string(b) + "`"
	}
	return "`" + fmt.Sprint(v.Interface()) + "`"
}

func ruleOf(f field) string {
	switch {
	case f.enum != nil:
		return "one of `" + strings.Join(f.enum, "`, `") + "`"
	case f.min != "" && f.max != "":
		return "from " + f.min + " to " + f.max
	case f.min != "":
		return "at least " + f.min
	case f.max != "":
		return "at most " + f.max
	}
	return ""
}

const (
	codesBegin = "<!-- Generated from config/codes.go: go test ./config -update -->\n"
	codesEnd   = "<!-- End of what is generated -->\n"
)

// TestCodesReference keeps the codes' part of docs/errors.md, between its two
// marks, what the table says.
func TestCodesReference(t *testing.T) {
	const file = "../docs/errors.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	before, rest, ok := strings.Cut(string(text), codesBegin)
	_, after, okEnd := strings.Cut(rest, codesEnd)
	if !ok || !okEnd {
		before, after = strings.TrimRight(string(text), "\n")+"\n\n<a id=\"configuration\"></a>\n\n# Configuration faults: what `validate`, `run` and `reload` refuse\n\n", ""
	}
	b.WriteString(before + codesBegin)
	b.WriteString("\n| Code | Fault | Why it is one | What to do |\n|---|---|---|---|\n")
	seen := map[Code]bool{}
	for _, c := range Codes() {
		if seen[c.Code] || c.Title == "" || c.Meaning == "" || c.Fix == "" {
			t.Errorf("%s is there twice or not explained", c.Code)
		}
		seen[c.Code] = true
		esc := strings.NewReplacer("|", "\\|", "<", "&lt;")
		fmt.Fprintf(&b, "| <a id=%q></a>`%s` | %s | %s | %s |\n", strings.ToLower(string(c.Code)), c.Code, esc.Replace(c.Title), esc.Replace(c.Meaning), esc.Replace(c.Fix))
	}
	b.WriteString("\n" + codesEnd + after)
	generated(t, file, []byte(b.String()))
	for code := range declaredCodes(t) {
		if !seen[Code(code)] {
			t.Errorf("%s is declared and not explained in Codes", code)
		}
	}
}

// declaredCodes are the constants in codes.go.
func declaredCodes(t *testing.T) map[string]bool {
	t.Helper()
	file, err := parser.ParseFile(gotoken.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		if vs, ok := n.(*ast.ValueSpec); ok {
			for _, v := range vs.Values {
				if lit, ok := v.(*ast.BasicLit); ok {
					out[strings.Trim(lit.Value, `"`)] = true
				}
			}
		}
		return true
	})
	if len(out) < 20 {
		t.Fatalf("only %d codes in codes.go", len(out))
	}
	return out
}
