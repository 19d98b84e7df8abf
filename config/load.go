package config

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// LoadOptions are what comes beside the file.
type LoadOptions struct {
	// Set holds values that beat all others, by key path ("consul.addr",
	// "listen[0].addr"): what the command line says. Only keys that take one
	// value can be set.
	Set map[string]string

	// Pure reads nothing but the given text: no PROCONSUL_* and CONSUL_HTTP_*
	// variables, no ${env:...} and ${file:...}. It is for text that others
	// may write, such as Consul's KV, and for tests.
	Pure bool

	// HideOutside masks everything that came through ${...}, not only what came
	// from files: for text whose author may not see this process's environment.
	HideOutside bool

	// OnFile is told of each file that ${file:...} names, or that a document of
	// validate is in or refers to, whether it can be read or not; it may be nil.
	OnFile func(path string)
}

// Load reads the file, or all *.yaml, *.yml and *.json files of the directory,
// and returns the checked settings: defaults, below CONSUL_HTTP_* variables,
// below the file, below PROCONSUL_* variables, below o.Set. The error is a
// *Faults that holds every fault at once; where all are warnings, they are
// in Config.Warnings. An empty path loads the other layers alone.
//
// In a directory the lists of all files are put together in the order of the
// files' names; every other section belongs to one file.
func Load(path string, o LoadOptions) (*Config, error) {
	var sources []*source
	if path != "" {
		var f *Fault
		if sources, f = readSources(path); f != nil {
			return nil, &Faults{All: []Fault{*f}}
		}
	}
	return load(path, sources, o)
}

// Parse is Load for a text that is in memory; name stands for it in messages.
func Parse(name string, text []byte, o LoadOptions) (*Config, error) {
	s := &source{name: name, text: text}
	if len(text) > maxBytes {
		return nil, &Faults{All: []Fault{*readFault(name, errTooLarge)}}
	}
	return load(name, []*source{s}, o)
}

func load(name string, sources []*source, o LoadOptions) (*Config, error) {
	b := newBuilder(o, sources)
	b.build()
	if b.stopped {
		return nil, b.finish()
	}
	env := b.environment()
	set := b.set()
	c, err := b.decode(env, set)
	if err != nil { // the builder let something through: ours to mend, not the operator's
		return nil, fmt.Errorf("decode %s: %w", name, err)
	}
	c.Source, c.Hash = name, hashOf(sources)
	b.canonicalise(c)
	b.check(c)
	c.referenced = b.referenced.Sum(nil)
	faults := b.finish()
	if faults.Errors() > 0 {
		return nil, faults
	}
	c.Warnings = faults
	c.origins = b.origins()
	return c, nil
}

// finish sorts the faults and gives each its lines.
func (b *builder) finish() *Faults {
	byName := map[string]*source{}
	for _, s := range b.sources {
		byName[s.name] = s
	}
	fs := &Faults{All: b.faults}
	fs.All = slices.CompactFunc(sorted(fs), func(a, b Fault) bool {
		return a.File == b.File && a.Line == b.Line && a.Col == b.Col && a.Code == b.Code && a.Message == b.Message
	})
	for i := range fs.All {
		f := &fs.All[i]
		if s := byName[f.File]; s != nil && f.Line > 0 {
			f.snippet = s.snippet(f.Line)
		}
	}
	return fs
}

func sorted(fs *Faults) []Fault {
	fs.sort()
	return fs.All
}

// origins says where each written key path comes from.
func (b *builder) origins() map[string]origin {
	out := make(map[string]origin, len(b.places))
	for path, p := range b.places {
		if p.origin != "" {
			out[path] = origin{file: p.origin}
			continue
		}
		n := p.val
		if p.key != nil {
			n = p.key
		}
		// A file is mounted for a secret more often than not, and header
		// values carry credentials.
		hide := strings.Contains(p.outside, "${file:") || p.outside != "" && (b.o.HideOutside || lastKey(path) == "value")
		out[path] = origin{file: p.src.name, line: n.Line, col: p.val.Column, at: p.val.Line, hide: hide}
	}
	return out
}

// lookup returns a variable that is set to something: an empty one is as good
// as none, as viper has it too.
func lookup(name string) (string, bool) {
	v := os.Getenv(name)
	return v, v != ""
}
