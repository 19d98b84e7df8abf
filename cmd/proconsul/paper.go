package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"
)

// paper is where tables and texts for people are written. What services say of
// themselves is made harmless for terminals on it.
type paper struct {
	w     io.Writer
	wide  bool
	color bool
	err   error // the first
}

func (p *paper) print(text string) {
	if p.err == nil {
		_, p.err = io.WriteString(p.w, text)
	}
}

func (p *paper) printf(format string, args ...any) { p.print(fmt.Sprintf(format, args...)) }

// table writes rows under their heads, in columns as wide as they need. Where
// a head begins with "#" its column is of numbers and stands to the right.
func (p *paper) table(head []string, rows [][]string) {
	width := make([]int, len(head))
	right := make([]bool, len(head))
	all := [][]string{make([]string, len(head))}
	for i, h := range head {
		h, right[i] = strings.CutPrefix(h, "#")
		all[0][i] = h
	}
	for _, row := range rows {
		clean := make([]string, len(row))
		for i, text := range row {
			clean[i] = printable(text)
			if clean[i] == "" {
				clean[i] = "-"
			}
		}
		all = append(all, clean)
	}
	for _, row := range all {
		for i, text := range row {
			width[i] = max(width[i], utf8.RuneCountInString(text))
		}
	}
	for n, row := range all {
		var b strings.Builder
		for i, text := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(text))
			if n > 0 {
				text = p.paint(text)
			}
			if right[i] {
				text = pad + text
			} else {
				text += pad
			}
			b.WriteString(text + "  ")
		}
		p.print(strings.TrimRight(b.String(), " ") + "\n")
	}
}

// paint gives the words of states their color.
func (p *paper) paint(text string) string {
	if !p.color {
		return text
	}
	word, _, _ := strings.Cut(text, " ")
	switch word {
	case "passing", "ok", "closed", "ready", "up", "pass", "proxied":
		return "\x1b[32m" + text + "\x1b[0m"
	case "warning", "degraded", "half_open", "draining", "maintenance", "starting", "warn", "stale", "changed", "redirected":
		return "\x1b[33m" + text + "\x1b[0m"
	case "critical", "down", "open", "ejected", "refused", "refuse", "error", "empty", "removed", "out":
		return "\x1b[31m" + text + "\x1b[0m"
	}
	return text
}

// printable makes one line of text that may be anything, for terminals.
func printable(s string) string {
	return strings.TrimRight(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s), " ")
}

// isTerminal reports whether w is one.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// colored reports whether colors are wanted on w (no-color.org).
func colored(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(w)
}
