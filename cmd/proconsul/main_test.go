package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience is how long a test waits for what must come.
const patience = time.Minute

// beSomebody is the variable that makes the test binary another program.
const beSomebody = "TEST_BINARY_IS"

func TestMain(m *testing.M) {
	switch os.Getenv(beSomebody) {
	case "proconsul":
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	case "curl":
		os.Exit(curl(os.Args[1:]))
	}
	testscript.Main(m, map[string]func(){"proconsul": func() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }})
}

// command is proconsul as a process of its own.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), beSomebody+"=proconsul")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return cmd
}

// output collects what a process prints. It is safe for concurrent use.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// start starts cmd and kills it when the test ends. ended is closed when it has
// ended, by itself or not.
func start(t *testing.T, cmd *exec.Cmd) (out *output, ended <-chan struct{}) {
	t.Helper()
	out = &output{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-done
		if t.Failed() {
			t.Logf("%v printed:\n%s", cmd.Args[1:], out)
		}
	})
	return out, done
}

// call runs a command in this process.
func call(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

// write writes a file into a directory of its own.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// curl stands in for curl where a machine has none, with the flags that the
// demo prints.
func curl(args []string) int {
	flags := flag.NewFlagSet("curl", flag.ContinueOnError)
	include := flags.Bool("i", false, "")
	flags.Bool("s", false, "")
	flags.Bool("N", false, "")
	out := flags.String("o", "", "")
	form := flags.String("w", "", "")
	if i := slices.Index(args, "-so"); i >= 0 {
		args = slices.Concat(args[:i], []string{"-s", "-o"}, args[i+1:])
	}
	if err := flags.Parse(args); err != nil || flags.NArg() != 1 {
		return 2
	}
	url := flags.Arg(0)
	if !strings.Contains(url, "://") {
		url = "http://" + url
	}
	resp, err := http.Get(url)
	if err != nil {
		fmt.Fprintln(os.Stderr, "curl:", err)
		return 7
	}
	defer resp.Body.Close()
	var w io.Writer = os.Stdout
	if *out != "" {
		w = io.Discard
	}
	if *include {
		fmt.Fprintf(w, "HTTP/1.1 %s\r\n", resp.Status)
		_ = resp.Header.Write(w)
		fmt.Fprint(w, "\r\n")
	}
	if _, err := io.Copy(w, resp.Body); err != nil {
		return 18
	}
	fmt.Print(strings.ReplaceAll(*form, "%{http_code}", fmt.Sprint(resp.StatusCode)))
	return 0
}
