//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

func itoa(n int) string { return strconv.Itoa(n) }

// median is of one figure over a target's rounds.
func (r result) median(figure func(cell) float64) float64 {
	values := r.values(figure)
	return values[len(values)/2]
}

func (r result) best(figure func(cell) float64) float64 { return r.values(figure)[0] }

// values are sorted, the smallest first.
func (r result) values(figure func(cell) float64) []float64 {
	list := make([]float64, len(r.cells))
	for i, c := range r.cells {
		list[i] = figure(c)
	}
	slices.Sort(list)
	return list
}

// ratio is ours to theirs, pair by pair: what was measured in one round was
// measured within seconds of the other. It returns the median.
func ratio(ours, theirs result, figure func(cell) float64) float64 {
	var list []float64
	for i := range min(len(ours.cells), len(theirs.cells)) {
		if t := figure(theirs.cells[i]); t > 0 {
			list = append(list, figure(ours.cells[i])/t)
		}
	}
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[len(list)/2]
}

func find(results []result, name string) (result, bool) {
	i := slices.IndexFunc(results, func(r result) bool { return r.target == name })
	if i < 0 || len(results[i].cells) == 0 {
		return result{}, false
	}
	return results[i], true
}

// labels say what a target is, for people.
var labels = map[string]string{
	"nginx": "nginx", "nginx-default": "nginx, its default buffers", "haproxy": "HAProxy", "haproxy-syslog": "HAProxy, log by syslog (UDP)", "caddy": "Caddy", "traefik": "Traefik",
	"fast": "**Proconsul**", "fast-command": "Proconsul, breaker `command`", "fast-told": "Proconsul, telling clients of their limit",
	"fast-one": "Proconsul, one route",
	"std-fast": "Proconsul, listener `std`", "std": "Proconsul, `std` both sides",
}

func cpu(c cell) float64 { return c.total() }

// markdown is the tables of all experiments that were run. Where only some were,
// those of a run before that wrote old stay as they are, and each new one says
// how it was measured.
func (b *bench) markdown(all map[string][]result, old string) string {
	how := fmt.Sprintf("%s, %s, %d cores: load and backend on one, the proxy alone on the other. %s, %d rounds of %s or a millisecond for each connection, medians; ratios pair by pair.\n",
		time.Now().UTC().Format("2006-01-02"), runtime.Version(), runtime.NumCPU(), b.versions(), b.rounds, b.length)
	apart := b.only != "" && old != ""
	before := sections(old)
	var w strings.Builder
	if apart {
		w.WriteString(before[""])
	} else {
		w.WriteString(how)
	}
	for _, e := range b.experiments() {
		results := all[e.name]
		switch {
		case len(results) == 0 && apart:
			w.WriteString(before[e.title])
			continue
		case len(results) == 0:
			continue
		}
		fmt.Fprintf(&w, "%s%s\n\n    make bench ARGS='-only %s'\n\n", heading, e.title, e.name)
		if apart {
			fmt.Fprintf(&w, "Apart from the others: %s\n", how)
		}
		b.table(&w, e, results)
		w.WriteString(e.compared(results))
	}
	return w.String()
}

const heading = "\n### "

// sections are the parts of the tables by their titles, each with its heading;
// what comes before the first has none.
func sections(text string) map[string]string {
	parts := strings.Split(text, heading)
	all := map[string]string{"": parts[0]}
	for _, p := range parts[1:] {
		title, _, _ := strings.Cut(p, "\n")
		all[title] = heading + p
	}
	return all
}

func (b *bench) table(w *strings.Builder, e experiment, results []result) {
	if e.load.idle > 0 {
		w.WriteString("| | memory with them, MiB | KiB a connection |\n|---|---|---|\n")
		for _, r := range results {
			fmt.Fprintf(w, "| %s | %.0f | %.1f |\n", labels[r.target], r.median(func(c cell) float64 { return float64(c.Memory) / (1 << 20) }), r.best(cpu))
		}
		return
	}
	rates := ""
	if e.load.rate > 0 {
		rates = fmt.Sprintf(" at %d requests a second", e.load.rate)
	}
	fmt.Fprintf(w, "| %s | CPU us a request (user + system) | least | to nginx | to HAProxy | to Caddy | requests/s | p50 us | p99 us, best | p99.9 us, best | allocations |\n|---|---|---|---|---|---|---|---|---|---|---|\n", strings.TrimSpace(rates))
	for _, r := range results {
		fmt.Fprintf(w, "| %s | %.1f (%.1f + %.1f) | %.1f |", labels[r.target], r.median(cpu),
			r.median(func(c cell) float64 { return c.User }), r.median(func(c cell) float64 { return c.System }), r.best(cpu))
		for _, peer := range []string{"nginx", "haproxy", "caddy"} {
			if p, ok := find(results, peer); ok && p.target != r.target {
				fmt.Fprintf(w, " %.2f |", ratio(r, p, cpu))
			} else {
				w.WriteString(" |")
			}
		}
		allocs := ""
		if n := r.median(func(c cell) float64 { return c.Allocs }); n > 0 {
			allocs = fmt.Sprintf("%.1f", n)
		}
		mark := ""
		if n := r.median(func(c cell) float64 { return c.Noise }); n > noisy {
			mark = fmt.Sprintf(" (others used %.0f %% of a core)", 100*n)
		}
		fmt.Fprintf(w, " %.0f | %.0f | %.0f | %.0f | %s%s |\n", r.median(func(c cell) float64 { return c.Rate }), r.median(func(c cell) float64 { return c.P50 }),
			r.best(func(c cell) float64 { return c.P99 }), r.best(func(c cell) float64 { return c.P999 }), allocs, mark)
	}
}

// compared says how ours compares with the target that it is to be compared with.
func (e experiment) compared(results []result) string {
	ours, ok := find(results, "fast")
	other, ok2 := find(results, e.beside)
	if !ok || !ok2 {
		return ""
	}
	return fmt.Sprintf("\n%s to %s, pair by pair: %.2f; the least of each: %.2f.\n", labels["fast"], labels[e.beside], ratio(ours, other, cpu), ours.best(cpu)/other.best(cpu))
}

// versions are those of the peers, as they say them.
func (b *bench) versions() string {
	var list []string
	for _, v := range []struct{ name, flag string }{{"nginx", "-v"}, {"haproxy", "-v"}, {"caddy", "version"}} {
		out, err := exec.Command(v.name, v.flag).CombinedOutput()
		if err != nil {
			continue
		}
		line, _, _ := strings.Cut(string(bytes.TrimSpace(out)), "\n")
		for _, cut := range []string{"nginx version: nginx/", "HAProxy version ", "v"} {
			line = strings.TrimPrefix(line, cut)
		}
		line, _, _ = strings.Cut(line, " ")
		list = append(list, v.name+" "+line)
	}
	return strings.Join(list, ", ")
}

const (
	beginMark = "<!-- tables: written by make bench, do not edit -->\n"
	endMark   = "<!-- end of the tables -->\n"
)

// replace changes the tables of a document, which are between its marks.
func replace(path string, change func(old string) string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(b), beginMark)
	old, tail, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no marks for the tables", path)
	}
	return os.WriteFile(path, []byte(head+beginMark+change(old)+endMark+tail), 0o644)
}
