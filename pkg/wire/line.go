package wire

import (
	"net/http"
	"slices"
)

// Line is one field line of a header that has been looked at: the name is a
// canonical token, and the value has no control character but tabs, nor white
// space around it. It can be written as it is.
type Line struct{ Name, Value string }

// Append appends the line as it goes out.
func (l Line) Append(b []byte) []byte {
	b = append(b, l.Name...)
	b = append(b, ": "...)
	b = append(b, l.Value...)
	return append(b, "\r\n"...)
}

// Find returns the value of the first line of that canonical name.
func Find(lines []Line, name string) (value string, ok bool) {
	for i := range lines {
		if lines[i].Name == name {
			return lines[i].Value, true
		}
	}
	return "", false
}

// Fill adds lines to a header's map, behind what it has of their names. values is
// room for the values, so that one array serves for all; it may be short.
func Fill(h http.Header, lines []Line, values []string) {
	if len(lines) > cap(values) {
		values = make([]string, 0, len(lines))
	}
	for _, l := range lines {
		if old := h[l.Name]; len(old) > 0 {
			h[l.Name] = append(slices.Clip(old), l.Value)
			continue
		}
		values = append(values, l.Value)
		h[l.Name] = values[len(values)-1 : len(values) : len(values)]
	}
}

// AppendLines appends a header's lines to those, without what could not be
// written as it is: lines of names that are no tokens, and of values with
// control characters.
func AppendLines(lines []Line, h http.Header) []Line {
	for name, values := range h {
		if !ValidToken(name) {
			continue
		}
		for _, v := range values {
			if ValidValue(v) {
				lines = append(lines, Line{name, Trim(v)})
			}
		}
	}
	return lines
}
