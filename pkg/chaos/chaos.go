// Package chaos is the matrix of faults that the gateway has to survive, as
// tests: real Consul agents, a real redis-server, replicas and services as
// processes of their own, every request counted. This file keeps the account
// and writes it down; the scenarios are in the tests.
//
// It never asserts how long something takes on the clock, only what was lost.
package chaos

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// Row is what one scenario cost its clients.
type Row struct {
	Scenario string
	Fault    string // what was done, in a few words
	Sent     int
	OK       int            // answered as asked, by an instance
	Limited  int            // refused by a limit that was due
	Failed   map[string]int // by method, status and reason, as "POST 502 upstream_reset"
	Allowed  map[string]int // failures while no instance was there to answer
	Retried  int            // attempts after the first, by the gateways' metrics
	Longest  time.Duration  // a client waited, to the end of the answer
	Recovery time.Duration  // from the end of the fault until all is as before; 0: nothing to recover
	Note     string         // what else was measured
}

// String is the row in one line, for logs.
func (r Row) String() string {
	s := fmt.Sprintf("%s: sent %d, ok %d, failed %s, retried %d, longest %s, recovered in %s", r.Scenario, r.Sent, r.OK,
		reasons(r.Failed), r.Retried, millis(r.Longest), millis(r.Recovery))
	if r.Limited > 0 {
		s += fmt.Sprintf(", limited %d", r.Limited)
	}
	if len(r.Allowed) > 0 {
		s += ", without any instance: " + reasons(r.Allowed)
	}
	if r.Note != "" {
		s += "; " + r.Note
	}
	return s
}

func reasons(m map[string]int) string {
	if len(m) == 0 {
		return "0"
	}
	var list []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		list = append(list, fmt.Sprintf("%d× %s", m[k], k))
	}
	return strings.Join(list, ", ")
}

func millis(d time.Duration) string {
	switch {
	case d == 0:
		return "-"
	case d < 10*time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// The table stands between these lines of the document.
const (
	begin = "<!-- table: written by make chaos, do not edit -->"
	end   = "<!-- end of the table -->"
)

// Write replaces the table in the document at path. about is the line above
// it: when, where and how it was measured.
func Write(path, about string, rows []Row) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	before, rest, ok := bytes.Cut(old, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		return fmt.Errorf("report: %s has no lines %q and %q", path, begin, end)
	}
	var b bytes.Buffer
	b.Write(before)
	b.WriteString(begin + "\n" + about + "\n\n" + Table(rows) + end)
	b.Write(after)
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// Table is the rows as a table in Markdown.
func Table(rows []Row) string {
	var b strings.Builder
	b.WriteString("| Scenario | What was done | Sent | Failed | Retried | Longest | Recovered in | Notes |\n")
	b.WriteString("|---|---|---:|---|---:|---:|---:|---|\n")
	for _, r := range rows {
		note := r.Note
		if r.Limited > 0 {
			note = join(fmt.Sprintf("%d refused by the limit", r.Limited), note)
		}
		if len(r.Allowed) > 0 {
			note = join("with no instance alive: "+reasons(r.Allowed), note)
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %s | %d | %s | %s | %s |\n", cell(r.Scenario), cell(r.Fault), r.Sent,
			cell(reasons(r.Failed)), r.Retried, millis(r.Longest), millis(r.Recovery), cell(note))
	}
	return b.String()
}

func join(a, b string) string {
	if b == "" {
		return a
	}
	return a + "; " + b
}

func cell(s string) string { return strings.ReplaceAll(s, "|", "\\|") }
