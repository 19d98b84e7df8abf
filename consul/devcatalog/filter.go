package devcatalog

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ?filter is an expression over the fields of the rows of an answer:
//
//	Service.Meta.zone == "a" and not ("canary" in Service.Tags or Checks.Status == critical)
//
//	or      = and [ "or" or ]
//	and     = not [ "and" and ]
//	not     = "not" not | "(" or ")" | match
//	match   = selector ( "==" | "!=" | ["not"] "contains" | ["not"] "matches" ) value
//	        | selector "is" ["not"] "empty"
//	        | value ["not"] "in" selector
//	value   = selector | number | "string" | `string`
//
// A selector that goes through a list holds where it holds for any of its
// elements. An expression is checked against the row's type before there is
// any row, so a field that does not exist is always an error.

const (
	maxFilter      = 8 << 10 // bytes of an expression
	maxFilterDepth = 64      // parentheses, nots, ands and ors within each other
)

// filterOf compiles the query's ?filter for rows of one type.
func filterOf[T any](q query) (func([]T) []T, error) {
	keep, err := compileFilter[T](q.params.Get("filter"))
	if err != nil {
		return nil, fmt.Errorf("Failed to create boolean expression evaluator: %w", err)
	}
	return keep, nil
}

// compileFilter makes a function that keeps the rows for which expr holds.
func compileFilter[T any](expr string) (func([]T) []T, error) {
	if expr == "" {
		return func(rows []T) []T { return rows }, nil
	}
	if len(expr) > maxFilter {
		return nil, fmt.Errorf("the expression has %d bytes, the limit is %d", len(expr), maxFilter)
	}
	row := reflect.TypeFor[T]()
	if row.Kind() == reflect.Pointer {
		row = row.Elem()
	}
	p := &parser{text: expr, row: row}
	holds, err := p.expression()
	if err != nil {
		return nil, err
	}
	return func(rows []T) []T {
		return slices.DeleteFunc(rows, func(r T) bool { return !holds(reflect.Indirect(reflect.ValueOf(r))) })
	}, nil
}

// predicate is a compiled expression, asked about a row.
type predicate func(row reflect.Value) bool

// parser reads an expression from left to right.
type parser struct {
	text  string
	at    int
	depth int
	row   reflect.Type
}

func (p *parser) expression() (predicate, error) {
	p.space()
	holds, err := p.or()
	if err != nil {
		return nil, err
	}
	p.space()
	if p.at < len(p.text) {
		return nil, p.expected("and", "or", "EOF")
	}
	return holds, nil
}

func (p *parser) expected(what ...string) error {
	line, column := 1, p.at+1
	if i := strings.LastIndexByte(p.text[:p.at], '\n'); i >= 0 {
		line, column = 1+strings.Count(p.text[:p.at], "\n"), p.at-i
	}
	return fmt.Errorf("%d:%d (%d): no match found, expected: %s", line, column, p.at, strings.Join(what, ", "))
}

func (p *parser) space() bool {
	from := p.at
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
	return p.at > from
}

// word takes the given words, if they are next and end there, with spaces
// between them.
func (p *parser) word(words ...string) bool {
	from := p.at
	for i, w := range words {
		if i > 0 && !p.space() || !strings.HasPrefix(p.text[p.at:], w) || p.at+len(w) < len(p.text) && isWord(p.text[p.at+len(w)]) {
			p.at = from
			return false
		}
		p.at += len(w)
	}
	return true
}

// sign takes a token that needs no space around it.
func (p *parser) sign(token string) bool {
	if !strings.HasPrefix(p.text[p.at:], token) {
		return false
	}
	p.at += len(token)
	return true
}

func isWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || isLetter(c)
}

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

// nested runs one level of the grammar, of which there may be only so many.
func (p *parser) nested(level func() (predicate, error)) (predicate, error) {
	if p.depth >= maxFilterDepth {
		return nil, fmt.Errorf("the expression is nested more than %d levels deep", maxFilterDepth)
	}
	p.depth++
	defer func() { p.depth-- }()
	return level()
}

func (p *parser) or() (predicate, error) {
	left, err := p.and()
	if err != nil {
		return nil, err
	}
	from := p.at
	if !p.space() || !p.word("or") {
		p.at = from
		return left, nil
	}
	p.space()
	right, err := p.nested(p.or)
	if err != nil {
		return nil, err
	}
	return func(row reflect.Value) bool { return left(row) || right(row) }, nil
}

func (p *parser) and() (predicate, error) {
	left, err := p.not()
	if err != nil {
		return nil, err
	}
	from := p.at
	if !p.space() || !p.word("and") {
		p.at = from
		return left, nil
	}
	p.space()
	right, err := p.nested(p.and)
	if err != nil {
		return nil, err
	}
	return func(row reflect.Value) bool { return left(row) && right(row) }, nil
}

func (p *parser) not() (predicate, error) {
	if p.word("not") {
		p.space()
		holds, err := p.nested(p.not)
		if err != nil {
			return nil, err
		}
		return func(row reflect.Value) bool { return !holds(row) }, nil
	}
	if p.sign("(") {
		p.space()
		holds, err := p.nested(p.or)
		if err != nil {
			return nil, err
		}
		p.space()
		if !p.sign(")") {
			return nil, fmt.Errorf("1:%d (%d): rule \"grouping\": Unmatched parentheses", p.at+1, p.at)
		}
		return holds, nil
	}
	return p.match()
}

// operator is what a match does with the selected value.
type operator string

const (
	opEqual    operator = "Equal"
	opNotEqual operator = "Not Equal"
	opIn       operator = "In"
	opNotIn    operator = "Not In"
	opEmpty    operator = "Is Empty"
	opNotEmpty operator = "Is Not Empty"
	opMatch    operator = "Matches"
	opNotMatch operator = "Not Matches"
)

func (p *parser) match() (predicate, error) {
	path, value, err := p.operand()
	if err != nil {
		return nil, err
	}
	spaced := p.space()
	if path != nil {
		switch {
		case p.sign("=="):
			return p.matchValue(path, opEqual)
		case p.sign("!="):
			return p.matchValue(path, opNotEqual)
		case spaced && p.word("contains"):
			return p.matchValue(path, opIn)
		case spaced && p.word("not", "contains"):
			return p.matchValue(path, opNotIn)
		case spaced && p.word("matches"):
			return p.matchValue(path, opMatch)
		case spaced && p.word("not", "matches"):
			return p.matchValue(path, opNotMatch)
		case spaced && p.word("is", "empty"):
			return p.compile(path, opEmpty, "")
		case spaced && p.word("is", "not", "empty"):
			return p.compile(path, opNotEmpty, "")
		}
		value = strings.Join(path, ".")
	}
	op := opIn
	switch {
	case spaced && p.word("in"):
	case spaced && p.word("not", "in"):
		op = opNotIn
	case path == nil:
		return nil, p.expected(`"in"`, `"not"`)
	default:
		return nil, p.expected(`"!="`, `"=="`, `"contains"`, `"in"`, `"is"`, `"matches"`, `"not"`)
	}
	p.space()
	if path, _, err = p.operand(); err != nil {
		return nil, err
	}
	if path == nil {
		return nil, p.expected("a selector")
	}
	return p.compile(path, op, value)
}

// matchValue reads the value after an operator.
func (p *parser) matchValue(path []string, op operator) (predicate, error) {
	p.space()
	words, value, err := p.operand()
	if err != nil {
		return nil, err
	}
	if words != nil { // a bare word is a value too
		value = strings.Join(words, ".")
	}
	return p.compile(path, op, value)
}

// operand reads a selector, as its path, or a number or string, as its value.
func (p *parser) operand() (path []string, value string, err error) {
	if p.at >= len(p.text) {
		return nil, "", p.expected("a selector", "a number", "a string")
	}
	switch c := p.text[p.at]; {
	case c == '"' || c == '`':
		value, err = p.quoted()
		return nil, value, err
	case c == '-' || c >= '0' && c <= '9':
		value, err = p.number()
		return nil, value, err
	case isLetter(c):
		path, err = p.selector()
		return path, "", err
	}
	return nil, "", p.expected("a selector", "a number", "a string")
}

// number reads an integer or a decimal, with a sign if there is one.
func (p *parser) number() (string, error) {
	from := p.at
	p.sign("-")
	whole := p.digits()
	ok := whole != "" && (whole == "0" || whole[0] != '0')
	if p.sign(".") {
		ok = p.digits() != "" && ok
	}
	if !ok || p.at < len(p.text) && strings.IndexByte(" \t\r\n)", p.text[p.at]) < 0 {
		return "", fmt.Errorf("1:%d (%d): rule \"number\": Invalid number literal", p.at+1, p.at)
	}
	return p.text[from:p.at], nil
}

func (p *parser) digits() string {
	from := p.at
	for p.at < len(p.text) && p.text[p.at] >= '0' && p.text[p.at] <= '9' {
		p.at++
	}
	return p.text[from:p.at]
}

// quoted reads a string in Go's own two forms, without the escaped quote.
func (p *parser) quoted() (string, error) {
	end := strings.IndexByte(p.text[p.at+1:], p.text[p.at])
	if end < 0 {
		return "", fmt.Errorf("1:%d (%d): rule \"string\": Unterminated string literal", p.at+1, p.at)
	}
	s, err := strconv.Unquote(p.text[p.at : p.at+1+end+1])
	if err != nil {
		return "", fmt.Errorf("1:%d (%d): rule \"string\": %w", p.at+1, p.at, err)
	}
	p.at += end + 2
	return s, nil
}

func (p *parser) identifier() string {
	from := p.at
	for p.at < len(p.text) && isWord(p.text[p.at]) {
		p.at++
	}
	return p.text[from:p.at]
}

// selector reads Service.Meta.zone or Service.Meta["zone"].
func (p *parser) selector() ([]string, error) {
	path := []string{p.identifier()}
	for {
		switch {
		case p.at+1 < len(p.text) && p.text[p.at] == '.' && isLetter(p.text[p.at+1]):
			p.at++
			path = append(path, p.identifier())
		case p.sign("["):
			p.space()
			if p.at >= len(p.text) || p.text[p.at] != '"' && p.text[p.at] != '`' {
				return nil, fmt.Errorf("1:%d (%d): rule \"index\": Invalid index", p.at+1, p.at)
			}
			key, err := p.quoted()
			if err != nil {
				return nil, err
			}
			p.space()
			if !p.sign("]") {
				return nil, fmt.Errorf("1:%d (%d): rule \"index\": Unclosed index expression", p.at+1, p.at)
			}
			path = append(path, key)
		default:
			return path, nil
		}
	}
}

// compile checks a match against the row's type and makes it a predicate.
func (p *parser) compile(path []string, op operator, value string) (predicate, error) {
	t, err := selected(p.row, path)
	if err != nil {
		return nil, err
	}
	test, err := tester(t, strings.Join(path, "."), op, value)
	if err != nil {
		return nil, err
	}
	negate := op == opNotEqual || op == opNotIn || op == opNotEmpty || op == opNotMatch
	// What is not in a map equals nothing, is in nothing, and is empty. That
	// it matches everything is as in Consul 1.15.
	missing := op != opEqual && op != opIn && op != opNotEmpty
	final := func(v reflect.Value) bool { return test(v) != negate }
	return func(row reflect.Value) bool { return walk(row, path, final, missing) }, nil
}

// selected is the type of the value at a path.
func selected(t reflect.Type, path []string) (reflect.Type, error) {
	for i, name := range path {
		t = element(t)
		switch t.Kind() {
		case reflect.Struct:
			f, ok := t.FieldByName(name)
			if !ok || f.Tag.Get("filter") == "-" {
				return nil, fmt.Errorf("Selector %q is not valid", strings.Join(path[:i+1], "."))
			}
			t = f.Type
		case reflect.Map:
			t = t.Elem()
		default:
			return nil, fmt.Errorf("Selector %q is not valid", strings.Join(path[:i+1], "."))
		}
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t, nil
}

// element is what a path goes on from: a pointer's or a list's struct.
func element(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.String {
		t = t.Elem()
	}
	return t
}

// tester makes the test of one value of a type; the selector is for errors.
func tester(t reflect.Type, selector string, op operator, value string) (func(reflect.Value) bool, error) {
	invalid := fmt.Errorf("Invalid match operator %q for selector %q", string(op), selector)
	coerce := func(err error) error {
		return fmt.Errorf("Failed to coerce value %q for selector %q: %w", value, selector, err)
	}
	switch op {
	case opEmpty, opNotEmpty:
		if t.Kind() == reflect.Map || t.Kind() == reflect.Slice {
			return func(v reflect.Value) bool { return v.Len() == 0 }, nil
		}
		return nil, invalid
	case opMatch, opNotMatch:
		if t.Kind() != reflect.String {
			return nil, invalid
		}
		re, err := regexp.Compile(value)
		if err != nil {
			return nil, fmt.Errorf("Failed to compile regular expression %q: %w", value, err)
		}
		return func(v reflect.Value) bool { return re.MatchString(v.String()) }, nil
	case opIn, opNotIn:
		switch {
		case t.Kind() == reflect.String:
			return func(v reflect.Value) bool { return strings.Contains(v.String(), value) }, nil
		case t.Kind() == reflect.Map:
			return func(v reflect.Value) bool { return v.MapIndex(reflect.ValueOf(value)).IsValid() }, nil
		case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.String:
			return func(v reflect.Value) bool { return slices.Contains(v.Interface().([]string), value) }, nil
		}
		return nil, invalid
	}
	switch t.Kind() {
	case reflect.String:
		return func(v reflect.Value) bool { return v.String() == value }, nil
	case reflect.Int:
		want, err := strconv.ParseInt(value, 0, 64)
		if err != nil {
			return nil, coerce(err)
		}
		return func(v reflect.Value) bool { return v.Int() == want }, nil
	case reflect.Bool:
		want, err := strconv.ParseBool(value)
		if err != nil {
			return nil, coerce(err)
		}
		return func(v reflect.Value) bool { return v.Bool() == want }, nil
	}
	return nil, invalid
}

// walk follows a path into a row and asks final about what it finds. Of a list
// any element will do; where a map has no such key, the answer is missing.
func walk(v reflect.Value, path []string, final func(reflect.Value) bool, missing bool) bool {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return missing
		}
		v = v.Elem()
	}
	if len(path) == 0 {
		return final(v)
	}
	switch v.Kind() {
	case reflect.Slice:
		for i := range v.Len() {
			if walk(v.Index(i), path, final, missing) {
				return true
			}
		}
		return false
	case reflect.Map:
		item := v.MapIndex(reflect.ValueOf(path[0]))
		if !item.IsValid() {
			return missing
		}
		return walk(item, path[1:], final, missing)
	}
	return walk(v.FieldByName(path[0]), path[1:], final, missing)
}
