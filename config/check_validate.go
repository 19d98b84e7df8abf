package config

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/proconsul/proconsul/pkg/schema"
)

// checkValidate checks the section of a policy or route, and compiles its
// documents.
func (b *builder) checkValidate(path string, v *Validate) {
	b.mediaTypes(join(path, "content_types"), v.ContentTypes)
	for i, p := range v.Params {
		b.checkParam(at(join(path, "params"), i), p)
	}
	if v.BodySchema != "" {
		v.Schema = compiled(b, join(path, "body_schema"), v.BodySchema, b.schemas, schema.Compiler.JSON)
	}
	if v.OpenAPI != "" {
		v.API = compiled(b, join(path, "openapi"), v.OpenAPI, b.apis, schema.Compiler.API)
	}
}

// compiled returns the document that a key names or holds; nil where it is
// faulty, which is reported. A document that several sections name is compiled
// once.
func compiled[T any](b *builder, path, value string, done map[string]*T, compile func(k schema.Compiler, file string, text []byte) (*T, *schema.Mistake)) *T {
	if !b.sound(path) {
		return nil
	}
	file, text := "", []byte(value)
	p := b.places[path]
	if !strings.HasPrefix(strings.TrimSpace(value), "{") {
		if b.o.Pure {
			b.bad(path, value, CodeDocument, "is a file, and this source may not read files", "write the document itself")
			return nil
		}
		file = value
		if !filepath.IsAbs(file) && p.src != nil {
			file = filepath.Join(filepath.Dir(p.src.name), file)
		}
		value = file
	}
	if c, ok := done[value]; ok {
		return c
	}
	if file != "" {
		var err error
		if text, err = b.document(file); err != nil {
			b.bad(path, value, CodeDocument, "cannot be read: "+readReason(err), "")
			return nil
		}
	}
	// What the document refers to is read in no certain order.
	others := map[string][]byte{}
	c, mistake := compile(schema.Compiler{OnFile: func(file string, text []byte) { others[file] = text }}, file, text)
	for _, other := range slices.Sorted(maps.Keys(others)) {
		b.refers(other, others[other])
	}
	if mistake != nil {
		b.faultyDocument(path, *mistake)
		return nil
	}
	done[value] = c
	return c
}

// maxDocument bounds a file with a schema or description.
const maxDocument = 8 << 20

// document reads a file, whose text then counts as the configuration's: a
// change of it is a change.
func (b *builder) document(file string) ([]byte, error) {
	if f, err := os.Stat(file); err == nil && !f.Mode().IsRegular() {
		b.refers(file, nil)
		return nil, fmt.Errorf("it is no file")
	}
	text, err := readBounded(file, maxDocument)
	b.refers(file, text)
	return text, err
}

// refers has a file count as a part of the configuration, as it is or as it may
// come to be.
func (b *builder) refers(file string, text []byte) {
	fmt.Fprintf(b.referenced, "%s\x00%d\x00%s", file, len(text), text)
	if b.o.OnFile != nil {
		b.o.OnFile(file)
	}
}

// faultyDocument reports a mistake where it stands: in the document's own
// file, or at the key that holds its text.
func (b *builder) faultyDocument(path string, m schema.Mistake) {
	message := path + " " + m.Message
	if m.File == "" {
		if m.Line > 1 {
			message = fmt.Sprintf("%s, on its line %d,  %s", path, m.Line, m.Message)
		}
		b.fault(Fault{Path: path, Code: CodeDocument, Message: strings.ReplaceAll(message, ",  ", ", ")})
		return
	}
	b.add(Fault{File: m.File, Line: max(1, m.Line), Col: 1, Path: path, Code: CodeDocument, Message: message})
}

func (b *builder) checkParam(path string, p Param) {
	switch {
	case p.In == "query" || p.Name == "":
	case !token(p.Name):
		b.bad(join(path, "name"), p.Name, CodeHeader, "is no name of a header field or cookie", "")
	}
	if p.Pattern != "" {
		if _, err := regexp.Compile(p.Pattern); err != nil {
			b.bad(join(path, "pattern"), p.Pattern, CodeRegex, "is no regular expression", "")
		}
	}
	var bounds [2]float64
	var has [2]bool
	for i, bound := range []struct{ key, text string }{{"min", p.Min}, {"max", p.Max}} {
		if bound.text == "" {
			continue
		}
		at := join(path, bound.key)
		f, err := strconv.ParseFloat(bound.text, 64)
		switch {
		case err != nil:
			b.bad(at, bound.text, CodeFormat, "is no number", "")
		case p.Type != "integer" && p.Type != "number":
			b.bad(at, bound.text, CodeContradicts, "is for numbers, and the type is "+p.Type, "write type: integer")
		default:
			bounds[i], has[i] = f, true
		}
	}
	if has[0] && has[1] && bounds[0] > bounds[1] {
		b.bad(join(path, "max"), p.Max, CodeRange, "is below min ("+p.Min+")", "")
	}
}
