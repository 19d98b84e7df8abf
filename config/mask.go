package config

import (
	"regexp"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const mask = "***"

// sensitive matches key and header names whose values are nobody's business,
// also where the key itself is a mistake.
var sensitive = regexp.MustCompile(`(?i)(token|secret|passw|passphrase|credential|authorization|cookie|api[-_]?key|apikey|private[-_]?key|signature|session)`)

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
// whether the key means something or not, and the values of header fields with
// such a name. In a mapping below such a key, as in admin.tokens, its own keys
// decide.
func (s *source) hideSensitive(n *yaml.Node) {
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 1 && isSensitive(n.Content[i-1].Value) {
			s.hideTexts(c)
		}
		if c.Kind != yaml.AliasNode {
			s.hideSensitive(c)
		}
	}
	if n.Kind == yaml.MappingNode {
		var name, value *yaml.Node
		for i := 0; i+1 < len(n.Content); i += 2 {
			switch n.Content[i].Value {
			case "name":
				name = n.Content[i+1]
			case "value":
				value = n.Content[i+1]
			}
		}
		if name != nil && value != nil && isSensitive(name.Value) {
			s.hide(value)
		}
	}
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
		if n.Kind == yaml.ScalarNode && n.Value == "" {
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

var sensitiveLine = regexp.MustCompile(`(?i)^(.*?["']?[\w.-]*(?:token|secret|passw|passphrase|credential|authorization|cookie|api[-_]?key|private[-_]?key|signature|session)[\w.-]*["']?\s*:).*$`)

// maskByName blanks what follows keys with sensitive names, and the lines
// below that are indented deeper; it serves texts that could not be parsed.
// Values of header fields are blanked too, whatever their name.
func maskByName(lines []string) {
	indent := -1
	for i, l := range lines {
		trimmed := strings.TrimLeft(l, " \t-")
		depth := len(l) - len(trimmed)
		if indent >= 0 && (trimmed == "" || depth > indent) {
			lines[i] = strings.Repeat(" ", min(depth, len(l))) + mask
			continue
		}
		indent = -1
		if m := sensitiveLine.FindStringSubmatch(l); m != nil {
			lines[i], indent = m[1]+" "+mask, depth
		} else if m := valueLine.FindStringSubmatch(l); m != nil {
			lines[i], indent = m[1]+" "+mask, depth
		}
	}
}

var valueLine = regexp.MustCompile(`^(.*?\bvalue["']?\s*:).*$`)
