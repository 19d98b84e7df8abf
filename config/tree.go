package config

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/proconsul/proconsul/pkg/schema"
)

// builder checks the nodes of the sources against the types of the tree and
// gathers them in one plain tree of mappings, lists and texts for viper. It
// knows where each key path stands. What is faulty is reported and left out,
// so that everything else can still be checked.
type builder struct {
	o       LoadOptions
	sources []*source
	faults  []Fault
	tree    map[string]any
	places  map[string]place
	names   map[string]string // of the list element at a path
	meant   map[string]bool   // paths that an unknown key was probably meant for
	unsound map[string]bool   // paths with an error at or below them
	broken  map[string]bool   // paths of sections that are no mappings
	fields  map[reflect.Type][]field
	nodes   int
	methods []AuthMethod // all there are, for references
	stopped bool         // a bound was passed

	referenced hash.Hash // of what ${file:...} put in, and of documents

	// Compiled documents that requests are validated by, by file or text.
	schemas map[string]*schema.JSON
	apis    map[string]*schema.API
}

// place is where a key path stands.
type place struct {
	src      *source
	key, val *yaml.Node // key is nil for an element of a list
	outside  string     // as written, where the value came through ${...}
	origin   string     // instead of src: "env NAME", "flag KEY"
	masked   bool       // the value is not shown
}

func newBuilder(o LoadOptions, sources []*source) *builder {
	return &builder{
		o: o, sources: sources,
		tree: map[string]any{}, places: map[string]place{}, names: map[string]string{},
		meant: map[string]bool{}, unsound: map[string]bool{}, broken: map[string]bool{},
		fields: map[reflect.Type][]field{}, referenced: sha256.New(),
		schemas: map[string]*schema.JSON{}, apis: map[string]*schema.API{},
	}
}

// fieldsOf is the function of that name, asked once for each type.
func (b *builder) fieldsOf(t reflect.Type) []field {
	out, ok := b.fields[t]
	if !ok {
		out = fieldsOf(t)
		b.fields[t] = out
	}
	return out
}

// build reads every source into the tree.
func (b *builder) build() {
	for _, s := range b.sources {
		if f := s.parse(); f != nil {
			if f.Line > 0 {
				f.snippet = s.snippet(f.Line)
			}
			b.add(*f)
			continue
		}
		if s.root != nil {
			s.hideSensitive(s.root)
			b.top(s)
		}
	}
}

// top reads the top mapping of one source. Lists of several sources are put
// together; sections belong to one.
func (b *builder) top(s *source) {
	t := reflect.TypeFor[Config]()
	fields := fieldsOf(t)
	for _, kv := range b.pairs(s, s.root, "") {
		key := kv.key.Value
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == key })
		if i < 0 {
			if !strings.HasPrefix(key, "x-") {
				b.unknown(s, kv, t, "")
			}
			continue
		}
		f := fields[i]
		if f.typ.Kind() == reflect.Slice {
			before, _ := b.tree[key].([]any)
			if _, ok := b.places[key]; !ok {
				b.places[key] = place{src: s, key: kv.key, val: kv.val}
			}
			if list, ok := b.list(s, kv.val, f, key, len(before), 1); ok {
				b.tree[key] = append(before, list...)
			}
			continue
		}
		if first, ok := b.places[key]; ok {
			if key != "version" {
				b.addAt(s, kv.key, Fault{Path: key, Code: CodeSectionTwice,
					Message: fmt.Sprintf("section %q is already at %s:%d", key, first.src.name, first.key.Line)})
				continue
			}
		}
		b.places[key] = place{src: s, key: kv.key, val: kv.val}
		if v, ok := b.value(s, kv.val, f, key, 1); ok {
			b.tree[key] = v
		}
	}
}

type pair struct{ key, val *yaml.Node }

// pairs returns the keys of a mapping and their values, with merge keys (<<)
// resolved: what the mapping itself writes comes first.
func (b *builder) pairs(s *source, n *yaml.Node, path string) []pair {
	var out []pair
	var merges []*yaml.Node
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if !b.count(s, k) {
			return nil
		}
		k = resolved(k)
		switch {
		case k.Kind != yaml.ScalarNode:
			s.hide(k)
			s.hide(v)
			b.addAt(s, n.Content[i], Fault{Path: path, Code: CodeType, Message: fmt.Sprintf("a key in %s is %s, not text", b.label(path), describe(k))})
		case k.Tag == "!!merge":
			merges = append(merges, v)
		case seen[k.Value] != nil:
			b.addAt(s, k, Fault{Path: join(path, shownKey(k.Value)), Code: CodeKeyTwice,
				Message: fmt.Sprintf("key %q is written twice in %s, first on line %d", shownKey(k.Value), b.label(path), seen[k.Value].Line)})
		default:
			seen[k.Value] = k
			out = append(out, pair{k, v})
		}
	}
	for _, m := range merges {
		from := []*yaml.Node{m}
		if r := resolved(m); r.Kind == yaml.SequenceNode {
			from = r.Content
		}
		for _, f := range from {
			f = resolved(f)
			if f.Kind != yaml.MappingNode {
				b.addAt(s, m, Fault{Path: path, Code: CodeType, Message: fmt.Sprintf("<< in %s wants a mapping, got %s", b.label(path), describe(f))})
				continue
			}
			for i := 0; i+1 < len(f.Content); i += 2 {
				k := resolved(f.Content[i])
				if !b.count(s, k) {
					return nil
				}
				if k.Kind == yaml.ScalarNode && k.Tag != "!!merge" && seen[k.Value] == nil {
					seen[k.Value] = k
					out = append(out, pair{k, f.Content[i+1]})
				}
			}
		}
	}
	return out
}

// resolved follows an alias. Anchors are resolved by the parser, one level is
// all there is.
func resolved(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		return n.Alias
	}
	return n
}

// count bounds how many nodes are visited, each alias's expansion again.
func (b *builder) count(s *source, n *yaml.Node) bool {
	b.nodes++
	if b.nodes > maxNodes && !b.stopped {
		b.stopped = true
		b.addAt(s, n, Fault{Code: CodeTooLarge, Message: fmt.Sprintf("more than %d values after aliases are expanded", maxNodes)})
	}
	return !b.stopped
}

// value reads a node as the value of a key; ok is false where there is nothing
// to use.
func (b *builder) value(s *source, n *yaml.Node, f field, path string, level int) (v any, ok bool) {
	if !b.count(s, n) {
		return nil, false
	}
	n = resolved(n)
	t := deref(f.typ)
	if level > maxLevels {
		b.addAt(s, n, Fault{Path: path, Code: CodeTooLarge, Message: fmt.Sprintf("more than %d levels deep", maxLevels)})
		return nil, false
	}
	null := n.Kind == yaml.ScalarNode && n.Tag == "!!null"
	switch {
	case isScalar(t):
		return b.scalar(s, n, f, path)
	case null: // a section whose keys are all commented out
		return nil, false
	case t.Kind() == reflect.Slice:
		list, ok := b.list(s, n, f, path, 0, level)
		return list, ok
	case isUserMap(t):
		return b.userMap(s, n, path)
	}
	return b.section(s, n, f, path, level)
}

func (b *builder) section(s *source, n *yaml.Node, f field, path string, level int) (any, bool) {
	t := deref(f.typ)
	var pairs []pair
	switch {
	case n.Kind == yaml.MappingNode:
		pairs = b.pairs(s, n, path)
	case f.typ.Kind() == reflect.Pointer && n.Tag == "!!bool" && n.Value == "true":
		// An optional section as it is by default. There is no false: a route
		// would seem to switch off what a policy of its has on.
	default:
		b.broken[path] = true
		b.wrongType(s, n, t, path, "a mapping of keys")
		return map[string]any{}, true // so that indices in a list stay true
	}
	for _, kv := range pairs { // before any fault below wants to name the element
		if kv.key.Value == "name" && resolved(kv.val).Kind == yaml.ScalarNode {
			b.names[path] = resolved(kv.val).Value
		}
	}
	if t == reflect.TypeFor[HeaderField]() {
		for _, kv := range pairs { // a value may be a credential, whatever its name
			if kv.key.Value != "name" {
				s.hide(kv.val)
			}
		}
	}
	out := map[string]any{}
	fields := b.fieldsOf(t)
	for _, kv := range pairs {
		key := kv.key.Value
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == key })
		if i < 0 {
			b.unknown(s, kv, t, path)
			continue
		}
		p := join(path, key)
		b.places[p] = place{src: s, key: kv.key, val: kv.val}
		if v, ok := b.value(s, kv.val, fields[i], p, level+1); ok {
			out[key] = v
		}
	}
	if len(out) == 0 && f.typ.Kind() == reflect.Pointer {
		// viper drops empty mappings, but writing an optional section turns it
		// on: give it one key, at its default.
		for _, g := range fields {
			d := elementDefault(t).FieldByIndex(g.index)
			if d.Kind() == reflect.String && g.enum == nil && d.String() == "" {
				out[g.key] = ""
				break
			}
			if d.Kind() == reflect.Bool {
				out[g.key] = strconv.FormatBool(d.Bool())
				break
			}
		}
	}
	return out, true
}

func (b *builder) list(s *source, n *yaml.Node, f field, path string, base, level int) ([]any, bool) {
	n = resolved(n)
	t := f.typ.Elem()
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		return nil, false
	case n.Kind != yaml.SequenceNode:
		hint := ""
		if isScalar(t) && n.Kind == yaml.ScalarNode && !holdsSecret(t) {
			hint = fmt.Sprintf("write [%s]", n.Value)
		}
		b.wrongTypeHint(s, n, f.typ, path, "a list", hint)
		return nil, false
	}
	out := make([]any, 0, len(n.Content))
	for i, c := range n.Content {
		p := at(path, base+i)
		b.places[p] = place{src: s, val: c}
		if isScalar(t) && resolved(c).Kind == yaml.ScalarNode && resolved(c).Tag == "!!null" {
			b.addAt(s, c, Fault{Path: p, Code: CodeMissing, Message: p + " has no value", Hint: "write a value, or remove the element"})
			out = append(out, nil)
			continue
		}
		v, ok := b.value(s, c, field{typ: t, enum: f.enum, min: f.min, max: f.max}, p, level+1)
		switch {
		case ok:
			out = append(out, v)
		case !isScalar(t):
			b.broken[p] = true
			b.addAt(s, c, Fault{Path: p, Code: CodeMissing, Message: p + " has no value", Hint: "write a value, or remove the element"})
			out = append(out, map[string]any{})
		default:
			out = append(out, nil) // keeps the indices; the decoder makes it a zero
		}
		if b.stopped {
			break
		}
	}
	return out, true
}

// userMap reads a mapping whose keys are the operator's as a list of pairs:
// viper would lower the case of keys.
func (b *builder) userMap(s *source, n *yaml.Node, path string) (any, bool) {
	if n.Kind != yaml.MappingNode {
		b.wrongType(s, n, reflect.TypeFor[map[string]string](), path, "a mapping of names and texts")
		return nil, false
	}
	out := []any{}
	for _, kv := range b.pairs(s, n, path) {
		p := join(path, kv.key.Value)
		b.places[p] = place{src: s, key: kv.key, val: kv.val}
		if v, ok := b.value(s, kv.val, field{typ: reflect.TypeFor[string]()}, p, maxLevels); ok {
			out = append(out, []any{kv.key.Value, v})
		}
	}
	return out, true
}

// scalar reads one value as the text that the decoder will read again; what
// cannot be read as the field's type is reported here, with its position.
func (b *builder) scalar(s *source, n *yaml.Node, f field, path string) (any, bool) {
	t := deref(f.typ)
	p := b.places[path]
	p.masked = t == reflect.TypeFor[Secret]()
	if p.masked {
		s.hide(n)
	}
	b.places[path] = p
	switch {
	case n.Kind != yaml.ScalarNode:
		b.wrongType(s, n, t, path, wanted(t))
		return nil, false
	case n.Tag == "!!null":
		b.addAt(s, n, Fault{Path: path, Code: CodeMissing, Message: path + " has no value", Hint: "write a value, or remove the key"})
		return nil, false
	case n.Style&yaml.TaggedStyle != 0:
		b.addAt(s, n, Fault{Path: path, Code: CodeType, Message: path + " has a tag (!), and tags mean nothing here", Hint: "quote values that begin with !"})
		return nil, false
	}
	text, changed, err := b.interpolate(n.Value, filepath.Dir(s.name))
	if changed {
		p.outside = n.Value
		b.places[path] = p
	}
	if err == nil && !changed && n.Tag == "!!str" && n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 &&
		(t.Kind() == reflect.Bool || t == reflect.TypeFor[int]()) {
		err = &formatError{CodeType, "is text, not " + wanted(t), "remove the quotes"}
	}
	if err == nil {
		err = checkText(f, text)
	}
	if err != nil {
		b.reject(path, text, err)
		return nil, false
	}
	return text, true
}

// reject reports a value that is not what its key takes.
func (b *builder) reject(path, text string, err error) {
	fe := &formatError{CodeFormat, "is not valid: " + err.Error(), ""}
	errors.As(err, &fe)
	quoted := b.quote(path, text)
	if fe.code == CodeInterpolate {
		quoted = "" // there is no value yet, and the message names the reference
	}
	b.fault(Fault{Path: path, Code: fe.code, Message: path + quoted + " " + fe.is, Hint: fe.hint})
}

// quote returns the value of a key for a message: as written, so that nothing
// that came through ${...} is shown, and nothing at all of secrets.
func (b *builder) quote(path, text string) string {
	p := b.places[path]
	switch {
	case p.masked || p.src != nil && p.val != nil && p.src.hidden[resolved(p.val)]:
		return ""
	case p.outside != "":
		text = p.outside
	}
	if r := []rune(text); len(r) > 80 {
		text = string(r[:79]) + "…"
	}
	return fmt.Sprintf(" %q", text)
}

// checkText checks a text against a field's type, choices and range.
func checkText(f field, text string) error {
	t := deref(f.typ)
	v, err := parseScalar(t, text)
	if err != nil {
		return err
	}
	if f.enum != nil && !slices.Contains(f.enum, text) {
		return &formatError{CodeChoice, "is none of " + strings.Join(f.enum, ", "), didYouMean(text, f.enum)}
	}
	below := f.min != "" && compareScalar(t, v, f.min) < 0
	above := f.max != "" && compareScalar(t, v, f.max) > 0
	switch {
	case !below && !above:
		return nil
	case f.min != "" && f.max != "":
		return &formatError{CodeRange, fmt.Sprintf("is out of range (from %s to %s)", f.min, f.max), ""}
	case below:
		return &formatError{CodeRange, fmt.Sprintf("is out of range (at least %s)", f.min), ""}
	}
	return &formatError{CodeRange, fmt.Sprintf("is out of range (at most %s)", f.max), ""}
}

// compareScalar compares a value with a bound from a tag, which is well formed
// (a test reads them all).
func compareScalar(t reflect.Type, v reflect.Value, bound string) int {
	w, err := parseScalar(t, bound)
	if err != nil {
		return 0
	}
	if v.CanFloat() {
		return cmp.Compare(v.Float(), w.Float())
	}
	return cmp.Compare(v.Int(), w.Int())
}

// wanted says what a key of type t takes.
func wanted(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "a duration"
	case reflect.TypeFor[Size]():
		return "a size"
	case reflect.TypeFor[Percent]():
		return "a share"
	case reflect.TypeFor[Limit]():
		return "a limit"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	}
	return "text"
}

func (b *builder) wrongType(s *source, n *yaml.Node, t reflect.Type, path, want string) {
	b.wrongTypeHint(s, n, t, path, want, "")
}

func (b *builder) wrongTypeHint(s *source, n *yaml.Node, t reflect.Type, path, want, hint string) {
	if holdsSecret(t) {
		s.hide(n) // who knows what was put there
	}
	b.addAt(s, n, Fault{Path: path, Code: CodeType, Message: fmt.Sprintf("%s wants %s, got %s", b.label(path), want, describe(n)), Hint: hint})
}

func (b *builder) unknown(s *source, kv pair, t reflect.Type, path string) {
	key := kv.key.Value
	hint := ""
	if meant := suggestKey(key, t); meant != "" {
		hint = fmt.Sprintf("did you mean %q?", meant)
		b.meant[join(path, meant)] = true
		b.meant[parent(join(path, meant))] = true
		if f := fieldAt(t, meant); f != nil && holdsSecret(f.typ) {
			s.hide(kv.val)
		}
	}
	value := resolved(kv.val)
	switch {
	case hint == "", isSensitive(key), b.keepsSecrets(t):
		s.hide(kv.val) // nobody knows what was meant, or it may be a secret
		if b.keepsSecrets(t) && hint == "" && value.Kind == yaml.ScalarNode && value.Tag == "!!null" {
			s.hide(kv.key) // of "token:, x" and "? x" this is the value
			key = mask
		}
	case value.Kind != yaml.ScalarNode && holdsSecret(t):
		s.hide(kv.val)
	}
	where := b.label(path)
	if path == "" {
		where = "the top mapping"
	}
	key = shownKey(key)
	b.addAt(s, kv.key, Fault{Path: join(path, key), Code: CodeUnknownKey, Message: fmt.Sprintf("unknown key %q in %s", key, where), Hint: hint})
}

// keepsSecrets reports whether secrets stand directly in a section of type t.
func (b *builder) keepsSecrets(t reflect.Type) bool {
	return t == reflect.TypeFor[HeaderField]() ||
		slices.ContainsFunc(b.fieldsOf(t), func(f field) bool { return f.typ == reflect.TypeFor[Secret]() })
}

// fieldAt returns the field at a dotted path below t.
func fieldAt(t reflect.Type, path string) *field {
	key, rest, more := strings.Cut(path, ".")
	t = deref(t)
	if t.Kind() != reflect.Struct || isScalar(t) {
		return nil
	}
	for _, f := range fieldsOf(t) {
		if f.key == key {
			if more {
				return fieldAt(f.typ, rest)
			}
			return &f
		}
	}
	return nil
}

// label names a path for people: a list's element with its name, as
// "routes[2] (orders)".
func (b *builder) label(path string) string {
	if path == "" {
		return "the top mapping"
	}
	if name := b.names[path]; name != "" && len(name) <= 80 {
		return path + " (" + name + ")"
	}
	return path
}

// addAt reports a fault at a node.
func (b *builder) addAt(s *source, n *yaml.Node, f Fault) {
	f.File, f.Line, f.Col = s.name, n.Line, n.Column
	b.add(f)
}

func (b *builder) add(f Fault) {
	b.faults = append(b.faults, f)
	if f.Warning {
		return
	}
	for p := f.Path; p != "" && !b.unsound[p]; p = parent(p) {
		b.unsound[p] = true
	}
}

// fault reports a fault at its path: at the value, or, where the key is not
// written, at the section that lacks it.
func (b *builder) fault(f Fault) {
	for path := f.Path; ; path = parent(path) {
		p, ok := b.places[path]
		switch {
		case ok && p.origin != "":
			f.File = p.origin
		case ok:
			n := p.val
			if path != f.Path && p.key != nil {
				n = p.key
			}
			f.File, f.Line, f.Col = p.src.name, n.Line, n.Column
		case path != "":
			continue
		case len(b.sources) > 0:
			f.File = b.sources[0].name
		}
		b.add(f)
		return
	}
}

// sound reports whether the path, and all below it, has no fault so far.
func (b *builder) sound(path string) bool { return !b.unsound[path] }

// written reports whether the path was written somewhere, or was probably
// meant to be.
func (b *builder) written(path string) bool {
	_, ok := b.places[path]
	return ok || b.meant[path]
}
