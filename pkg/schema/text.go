package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Bounds are what a JSON text may cost whoever reads it.
type Bounds struct {
	Depth      int  // of arrays and objects in each other
	Values     int  // in all
	Duplicates bool // an object may have a name twice, and readers differ in which they take
}

// Numbers beyond these would cost a schema's exact arithmetic dearly.
const (
	maxDigits   = 100
	maxExponent = 400
)

// Parse reads a JSON text within the bounds, or says what is wrong with it.
// Every reader of an accepted text reads the same.
func Parse(text []byte, b Bounds) (any, *Fault) {
	if f := Scan(text, b); f != nil {
		return nil, f
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil { // Scan has seen that it can be read
		return nil, &Fault{Detail: "is no JSON"}
	}
	return v, nil
}

// Scan is Parse without the value.
func Scan(text []byte, b Bounds) *Fault {
	if !utf8.Valid(text) {
		return &Fault{Detail: "is not UTF-8"}
	}
	var raw json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return &Fault{Detail: fmt.Sprintf("is no JSON: at byte %d", syntax.Offset)}
		}
		return &Fault{Detail: "is no JSON"}
	}
	s := scanner{text: text, Bounds: b}
	return s.run()
}

// scanner walks over a text that is JSON.
type scanner struct {
	Bounds
	text   []byte
	frames []frame
	values int
}

// frame is an array or object that is open.
type frame struct {
	object bool
	name   []byte // of the member that is read
	index  int    // of the element
	names  names
}

// names are an object's so far: a list while there are few, since most
// objects are small.
type names struct {
	list [][]byte
	set  map[string]bool
}

const fewNames = 16

// add reports whether the name is new.
func (n *names) add(name []byte) bool {
	if n.set != nil {
		if n.set[string(name)] {
			return false
		}
		n.set[string(name)] = true
		return true
	}
	for _, have := range n.list {
		if bytes.Equal(have, name) {
			return false
		}
	}
	n.list = append(n.list, name)
	if len(n.list) > fewNames {
		n.set = make(map[string]bool, 2*len(n.list))
		for _, have := range n.list {
			n.set[string(have)] = true
		}
	}
	return true
}

func (s *scanner) run() *Fault {
	for i := 0; i < len(s.text); {
		switch c := s.text[i]; c {
		case ' ', '\t', '\r', '\n', ':':
			i++
		case ',':
			if top := s.top(); top != nil && !top.object {
				top.index++
			}
			i++
		case '}', ']':
			s.frames = s.frames[:len(s.frames)-1]
			i++
		case '{', '[':
			if f := s.value(); f != nil {
				return f
			}
			if len(s.frames) >= s.Depth {
				return s.fault(fmt.Sprintf("is nested more than %d levels deep", s.Depth))
			}
			s.push(c == '{')
			i++
		case '"':
			end := stringEnd(s.text, i)
			if s.atName(i, end) {
				top := s.top()
				top.name = plainName(s.text[i:end])
				if !s.Duplicates && !top.names.add(top.name) {
					return s.fault("is named twice")
				}
			} else if f := s.value(); f != nil {
				return f
			}
			i = end
		default: // a number or a word
			if f := s.value(); f != nil {
				return f
			}
			end := i
			for end < len(s.text) && bytes.IndexByte([]byte(" \t\r\n,]}"), s.text[end]) < 0 {
				end++
			}
			if c == '-' || c >= '0' && c <= '9' {
				if !reasonable(s.text[i:end]) {
					return s.fault("is a number beyond what is accepted")
				}
			}
			i = end
		}
	}
	return nil
}

func (s *scanner) value() *Fault {
	if s.values++; s.values > s.Values {
		return s.fault(fmt.Sprintf("has more than %d values", s.Values))
	}
	return nil
}

func (s *scanner) top() *frame {
	if len(s.frames) == 0 {
		return nil
	}
	return &s.frames[len(s.frames)-1]
}

// push opens a frame, in the place of one that was closed where there is one.
func (s *scanner) push(object bool) {
	if len(s.frames) < cap(s.frames) {
		s.frames = s.frames[:len(s.frames)+1]
		top := s.top()
		*top = frame{object: object, names: names{list: top.names.list[:0]}}
		return
	}
	s.frames = append(s.frames, frame{object: object})
}

// atName reports whether the string from i to end is a member's name: a colon
// follows.
func (s *scanner) atName(_, end int) bool {
	if top := s.top(); top == nil || !top.object {
		return false
	}
	for ; end < len(s.text); end++ {
		switch s.text[end] {
		case ' ', '\t', '\r', '\n':
		default:
			return s.text[end] == ':'
		}
	}
	return false
}

func stringEnd(text []byte, i int) int {
	for i++; text[i] != '"'; i++ {
		if text[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// plainName takes the quotes and escapes off a name.
func plainName(quoted []byte) []byte {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1]
	}
	var name string
	_ = json.Unmarshal(quoted, &name) // it is part of a text that is JSON
	return []byte(name)
}

// reasonable reports whether a number costs no more than it looks.
func reasonable(number []byte) bool {
	if len(number) > maxDigits {
		return false
	}
	i := bytes.IndexAny(number, "eE")
	if i < 0 {
		return true
	}
	e, err := strconv.Atoi(string(number[i+1:]))
	return err == nil && e >= -maxExponent && e <= maxExponent
}

// fault is about what is read now.
func (s *scanner) fault(detail string) *Fault {
	parts := make([]string, 0, len(s.frames))
	for i := range s.frames {
		if f := &s.frames[i]; f.object {
			parts = append(parts, string(f.name))
		} else {
			parts = append(parts, strconv.Itoa(f.index))
		}
		if len(parts) > 30 {
			break // clipped anyway
		}
	}
	return &Fault{Pointer: pointer(parts), Detail: detail}
}
