package config

import "fmt"

// origin says where a value comes from. The zero origin is the default.
type origin struct {
	file string // or "env NAME", "flag KEY"
	line int    // of the key
	at   int    // line of the value
	col  int    // of the value
	hide bool   // what ${...} put there may be a secret
}

// String returns the origin as "proconsul.yaml:12", "env NAME" or "default".
func (o origin) String() string {
	switch {
	case o.file == "":
		return "default"
	case o.line == 0:
		return o.file
	}
	return fmt.Sprintf("%s:%d", o.file, o.line)
}
