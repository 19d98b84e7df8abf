package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
)

// Fault is one thing that is wrong with a configuration, and where.
type Fault struct {
	File    string `json:"file,omitempty"` // or where else it was set: "env NAME", "flag KEY"
	Line    int    `json:"line,omitempty"` // from 1; 0: not in a file
	Col     int    `json:"col,omitempty"`  // from 1, in characters
	Path    string `json:"path,omitempty"` // key path, as "routes[2].match.host"
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // what to do, as `did you mean "timeout"?`
	Warning bool   `json:"-"`              // does not keep the configuration from loading

	snippet []snippetLine // the lines at Line, without secrets
}

type snippetLine struct {
	number int
	text   string
}

// String returns the fault on one line, without its hint.
func (f Fault) String() string {
	s := f.Message + " [" + string(f.Code) + "]"
	if p := f.position(); p != "" {
		return p + " " + s
	}
	return s
}

func (f Fault) position() string {
	if f.Line == 0 {
		return printable(f.File)
	}
	return fmt.Sprintf("%s:%d:%d", printable(f.File), f.Line, f.Col)
}

func (f Fault) severity() string {
	if f.Warning {
		return "warn"
	}
	return "error"
}

// Faults is every fault of one configuration, in the order of files and lines.
// It is an error while one of them is not a warning. No part of it holds a
// secret's text.
type Faults struct {
	All []Fault
}

// Errors returns how many faults keep the configuration from loading.
func (fs *Faults) Errors() int { return fs.Len() - fs.Warnings() }

// Warnings returns how many faults do not.
func (fs *Faults) Warnings() int {
	n := 0
	for _, f := range fs.list() {
		if f.Warning {
			n++
		}
	}
	return n
}

// Len returns how many faults there are. A nil Faults has none.
func (fs *Faults) Len() int { return len(fs.list()) }

func (fs *Faults) list() []Fault {
	if fs == nil {
		return nil
	}
	return fs.All
}

// Error implements error: the first fault and how many more there are.
func (fs *Faults) Error() string {
	for _, f := range fs.list() {
		if f.Warning {
			continue
		}
		if n := fs.Errors(); n > 1 {
			return fmt.Sprintf("%s (and %d more)", f, n-1)
		}
		return f.String()
	}
	return fs.Summary()
}

// Summary returns the verdict, as "2 errors, 1 warning - not valid".
func (fs *Faults) Summary() string {
	verdict := "valid"
	if fs.Errors() > 0 {
		verdict = "not valid"
	}
	return count(fs.Errors(), "error") + ", " + count(fs.Warnings(), "warning") + " - " + verdict
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Add puts another fault in its place among the others.
func (fs *Faults) Add(f Fault) {
	fs.All = append(fs.All, f)
	fs.sort()
}

// NewFault returns a fault about the key at path, or about the nearest section
// above it that was written. It is for checks that need more than the text, as
// whether Consul knows a service.
func (c *Config) NewFault(path string, code Code, message, hint string) Fault {
	f := Fault{File: c.Source, Path: path, Code: code, Message: message, Hint: hint}
	for p := path; p != ""; p = parent(p) {
		if o, ok := c.origins[p]; ok {
			f.File, f.Line, f.Col = o.file, o.at, o.col
			break
		}
	}
	return f
}

func (fs *Faults) sort() {
	slices.SortStableFunc(fs.All, func(a, b Fault) int {
		return cmp.Or(
			strings.Compare(a.File, b.File),
			cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Col, b.Col),
			strings.Compare(string(a.Code), string(b.Code)),
			strings.Compare(a.Message, b.Message),
		)
	})
}

// Text writes the faults for people: position, severity, code and message, the
// lines concerned and the hint beside them, and the summary at the end.
func (fs *Faults) Text(w io.Writer) error {
	width := 0
	for _, f := range fs.list() {
		if p := len([]rune(f.position())); p <= maxAlign {
			width = max(width, p)
		}
	}
	var b strings.Builder
	for _, f := range fs.list() {
		fmt.Fprintf(&b, "%-*s %-5s %s %s\n", width, f.position(), f.severity(), f.Code, printable(f.Message))
		hinted := f.Hint == ""
		for _, l := range f.snippet {
			line := fmt.Sprintf("%5d | %s", l.number, l.text)
			if l.number == f.Line && !hinted {
				line = fmt.Sprintf("%-30s    %s", line, printable(f.Hint))
				hinted = true
			}
			b.WriteString(strings.TrimRight(line, " ") + "\n")
		}
		if !hinted {
			b.WriteString("      " + printable(f.Hint) + "\n")
		}
	}
	b.WriteString(fs.Summary() + ".")
	if fs.Errors() > 0 {
		b.WriteString(" Exit 2.")
	}
	b.WriteString("\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// Write writes the faults in a format: text, json or github.
func (fs *Faults) Write(w io.Writer, format string) error {
	switch format {
	case "text":
		return fs.Text(w)
	case "json":
		return fs.JSON(w)
	case "github":
		return fs.GitHub(w)
	}
	return fmt.Errorf("no format %q (have: text, json, github)", format)
}

// maxAlign keeps one long path from pushing every message to the right.
const maxAlign = 48

// JSON writes the faults as one JSON object.
func (fs *Faults) JSON(w io.Writer) error {
	type item struct {
		Severity string `json:"severity"`
		Fault
		Docs string `json:"docs"`
	}
	out := struct {
		Valid    bool   `json:"valid"`
		Errors   int    `json:"errors"`
		Warnings int    `json:"warnings"`
		Faults   []item `json:"faults"`
	}{fs.Errors() == 0, fs.Errors(), fs.Warnings(), []item{}}
	for _, f := range fs.list() {
		out.Faults = append(out.Faults, item{f.severity(), f, "docs/errors.md#" + strings.ToLower(string(f.Code))})
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(out)
}

// GitHub writes the faults as workflow commands, which GitHub Actions shows
// beside the lines of a pull request.
func (fs *Faults) GitHub(w io.Writer) error {
	// https://docs.github.com/actions/reference/workflow-commands: data and
	// properties have their own escapes.
	data := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	property := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
	var b strings.Builder
	for _, f := range fs.list() {
		kind := "error"
		if f.Warning {
			kind = "warning"
		}
		b.WriteString("::" + kind + " ")
		if f.Line > 0 {
			fmt.Fprintf(&b, "file=%s,line=%d,col=%d,", property.Replace(printable(f.File)), f.Line, f.Col)
		}
		message := f.Message
		if f.Line == 0 && f.File != "" {
			message = f.File + ": " + message
		}
		if f.Hint != "" {
			message += " - " + f.Hint
		}
		fmt.Fprintf(&b, "title=%s::%s\n", f.Code, data.Replace(printable(message)))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printable makes text safe for a terminal: what does not print is escaped.
func printable(s string) string {
	clean := true
	for _, r := range s {
		if !printableRune(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if printableRune(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "\\x%02x", r)
		}
	}
	return b.String()
}

// printableRune also refuses the marks that reorder text.
func printableRune(r rune) bool { return r != '\ufffd' && unicode.IsPrint(r) }
