package main

import (
	"io"
	"os"
	"os/exec"
	"strings"
)

// terminalKeys returns a reader of single key presses where f is a terminal,
// and of what is piped in where it is a pipe; else nil. restore sets the
// terminal back.
func terminalKeys(f *os.File) (keys io.Reader, restore func()) {
	nothing := func() {}
	info, err := f.Stat()
	if err != nil {
		return nil, nothing
	}
	if info.Mode()&os.ModeNamedPipe != 0 {
		return f, nothing
	}
	before, err := stty(f, "-g")
	if err != nil { // no terminal, or no stty: the demo runs without keys
		return nil, nothing
	}
	if _, err := stty(f, "-icanon", "-echo", "min", "1"); err != nil {
		return nil, nothing
	}
	return f, func() {
		_, _ = stty(f, strings.TrimSpace(before)) // there is nothing else to try
	}
}

// stty asks the system's tool, which knows every kind of terminal; keys such
// as Ctrl-C keep their meaning.
func stty(f *os.File, args ...string) (string, error) {
	cmd := exec.Command("stty", args...)
	cmd.Stdin = f
	out, err := cmd.Output()
	return string(out), err
}
