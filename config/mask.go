package config

import (
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const mask = "***"

// sensitive matches key and header names whose values are nobody's business,
// also where the key itself is a mistake.
var sensitive = regexp.MustCompile("(?i)" + sensitiveNames)

const sensitiveNames = `(?:token|secret|passw|passphrase|credential|authorization|cookie|api[-_]?key|private[-_]?key|signature|session|sha256|bcrypt)`

// isSensitive reports whether a value under the key must not be shown. A
// *_file key holds a path.
func isSensitive(key string) bool {
	return sensitive.MatchString(key) && !strings.HasSuffix(strings.ToLower(key), "_file")
}

// hide keeps the node, and all below it, out of every snippet.
func (s *source) hide(n *yaml.Node) {
	if s.hidden == nil {
		s.hidden = map[*yaml.Node]bool{}
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias // its text stands at the anchor
	}
	if n == nil || s.hidden[n] {
		return
	}
	s.hidden[n] = true
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			continue // keys may be shown
		}
		s.hide(c)
	}
}

// hideSensitive hides what stands under a key with a sensitive name anywhere,
// whether the key means something or not. In a mapping below such a key, as in
// admin.tokens, its own keys decide.
//
// A text of several words with such a name in it is hidden as well: where a
// colon was forgotten, a key and its value become part of the text before.
func (s *source) hideSensitive(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && glued(n.Value) {
		s.hide(n)
	}
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 && shownKey(c.Value) != c.Value {
			s.hide(c)
		}
		if n.Kind == yaml.MappingNode && i%2 == 1 && isSensitive(n.Content[i-1].Value) {
			s.hideTexts(c)
		}
		if c.Kind != yaml.AliasNode {
			s.hideSensitive(c)
		}
	}
}

// glued reports whether a text may be a key and its secret with the colon
// forgotten.
func glued(text string) bool {
	text = referenced.ReplaceAllString(text, "")
	return strings.ContainsAny(text, " \n:=") && sensitive.MatchString(text)
}

// referenced matches what Load replaces: it names a secret and is none.
var referenced = regexp.MustCompile(`\$\{(env|file):[^}]*\}`)

// shownKey is a key's name as a message may have it. No key of ours has a
// space in it: what follows may be a value.
func shownKey(key string) string {
	if i := strings.IndexAny(key, " \n:="); i >= 0 {
		return key[:i] + " " + mask
	}
	return key
}

// hideTexts hides a node that is a text, or the texts of a list.
func (s *source) hideTexts(n *yaml.Node) {
	switch n.Kind {
	case yaml.SequenceNode:
		for _, c := range n.Content {
			s.hideTexts(c)
		}
	case yaml.ScalarNode, yaml.AliasNode:
		s.hide(n)
	}
}

// snippet returns the line and the one before it, fit for showing.
func (s *source) snippet(line int) []snippetLine {
	if s.masked == nil {
		s.masked = s.maskedLines()
	}
	var out []snippetLine
	for n := max(1, line-1); n <= line && n <= len(s.masked); n++ {
		text := s.masked[n-1]
		if n < line && strings.TrimSpace(text) == "" {
			continue
		}
		out = append(out, snippetLine{n, text})
	}
	return out
}

// maxSnippet is how much of a line is shown.
const maxSnippet = 120

func (s *source) maskedLines() []string {
	lines := strings.Split(strings.ReplaceAll(string(s.text), "\r\n", "\n"), "\n")
	if s.root == nil {
		maskByName(lines)
	} else {
		s.maskByNode(lines)
	}
	for i, l := range lines {
		// What is commented out may still be in use elsewhere.
		if before, after, ok := strings.Cut(l, "#"); ok && sensitive.MatchString(after) {
			l = before + "# " + mask
		}
		l = printable(strings.ReplaceAll(l, "\t", "  "))
		if utf8.RuneCountInString(l) > maxSnippet {
			l = string([]rune(l)[:maxSnippet-1]) + "…"
		}
		lines[i] = l
	}
	return lines
}

// maskByNode blanks hidden scalars: from where one begins to where the next
// node does, or to the end of the last line.
func (s *source) maskByNode(lines []string) {
	var order []*yaml.Node
	var walk func(*yaml.Node)
	walk = func(n *yaml.Node) {
		if n.Kind == yaml.ScalarNode || n.Kind == yaml.AliasNode {
			order = append(order, n)
		}
		for _, c := range n.Content {
			walk(c)
		}
	}
	walk(s.root)
	cut := map[int]int{} // line to the column behind which nothing is left
	for i, n := range order {
		if !s.hidden[n] || n.Line < 1 || n.Line > len(lines) {
			continue
		}
		if at, ok := cut[n.Line]; !ok || n.Column < at {
			lines[n.Line-1] = cutAt(lines[n.Line-1], n.Column-1) + mask
			cut[n.Line] = n.Column
		}
		end, endCol := len(lines)+1, 0
		if i+1 < len(order) {
			end, endCol = order[i+1].Line, order[i+1].Column
		}
		for l := n.Line + 1; l < end && l <= len(lines); l++ {
			if n.Style&(yaml.LiteralStyle|yaml.FoldedStyle|yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 || multiline(n) {
				lines[l-1], cut[l] = mask, 1
			}
		}
		// A flow scalar may end on the line where the next node begins.
		if end > n.Line && end <= len(lines) {
			head := cutAt(lines[end-1], endCol-1)
			if strings.Trim(head, " \t-?:[]{},\"'&*!") != "" {
				lines[end-1], cut[end] = mask, 1
			}
		}
	}
}

func multiline(n *yaml.Node) bool { return strings.ContainsAny(n.Value, " \n") }

// cutAt returns the first n characters of a line.
func cutAt(line string, n int) string {
	for i := range line {
		if n <= 0 {
			return line[:i]
		}
		n--
	}
	return line
}

var (
	sensitiveLine = regexp.MustCompile("(?i)^(.*?" + sensitiveNames + `[\w-]*["']?\s*:?).+$`)
	keyOnLine     = regexp.MustCompile(`([^\s{}\[\],:0-9][^{}\[\],:]*):(?:\s|$)`)
)

// maskByName makes the lines of a text that could not be parsed fit for
// showing. Behind a sensitive name nothing is left, and of the lines below
// that are indented deeper neither. A line all of whose keys are ours and
// harmless stays. Of every other line, and of comments, only the form is kept,
// which is what a fault of form needs: letters and digits become x.
func maskByName(lines []string) {
	harmless := harmlessKeys()
	indent := -1
	for i, l := range lines {
		trimmed := strings.TrimLeft(l, " \t-")
		depth := len(l) - len(trimmed)
		if indent >= 0 && (trimmed == "" || depth > indent) {
			lines[i] = l[:depth] + mask
			continue
		}
		indent = -1
		if m := sensitiveLine.FindStringSubmatch(l); m != nil {
			lines[i], indent = m[1]+" "+mask, depth
			continue
		}
		keys := keyOnLine.FindAllStringSubmatch(l, -1)
		foreign := slices.ContainsFunc(keys, func(m []string) bool {
			return !harmless[strings.Trim(m[1], " \t-\"'?")]
		})
		at := len(l)
		switch {
		case trimmed == "":
			continue
		case foreign:
			at, indent = strings.IndexByte(l, ':'), depth
		case len(keys) == 0:
			at = 0
		}
		if c := strings.IndexByte(l, '#'); c >= 0 {
			at = min(at, c)
		}
		lines[i] = l[:at] + strings.Map(func(r rune) rune {
			if unicode.IsLetter(r) || unicode.IsDigit(r) {
				return 'x'
			}
			return r
		}, l[at:])
	}
}

// harmlessKeys are the keys of the tree whose values are no secrets.
func harmlessKeys() map[string]bool {
	out := map[string]bool{}
	var walk func(t reflect.Type)
	walk = func(t reflect.Type) {
		for _, f := range fieldsOf(t) {
			inner := deref(f.typ)
			if inner.Kind() == reflect.Slice {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct && !isScalar(inner) {
				walk(inner)
			}
			if inner != reflect.TypeFor[Secret]() && f.key != "value" && !isUserMap(inner) {
				out[f.key] = true
			}
		}
	}
	walk(reflect.TypeFor[Config]())
	return out
}
