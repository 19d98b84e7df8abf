package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/parts"
)

// viewing is a running demo, and who looks at it.
type viewing struct {
	t      *testing.T
	cmd    *exec.Cmd
	keys   io.Writer
	out    *output
	ended  <-chan struct{}
	listen string   // host:port, as it is printed
	admin  string   // likewise
	tries  []string // the printed commands
}

// startDemo starts a demo and reads its first screen.
func startDemo(t *testing.T, args ...string) *viewing {
	t.Helper()
	v := &viewing{t: t, cmd: command(t, append([]string{"demo"}, args...)...)}
	keys, err := v.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	v.keys = keys
	v.out, v.ended = start(t, v.cmd)
	v.shows("q quit")
	screen := v.out.String()
	gateway := regexp.MustCompile(`\[ok\] gateway +http://(\S+) +\d+ routes, ready in [\d.]+(ms|s)\b`).FindStringSubmatch(screen)
	status := regexp.MustCompile(`STATUS PAGE +http://(\S+?)/`).FindStringSubmatch(screen)
	if gateway == nil || status == nil {
		t.Fatal("the first screen does not say where the gateway is and when it was ready")
	}
	v.listen, v.admin = gateway[1], status[1]
	_, rest, _ := strings.Cut(screen, "Try:\n")
	for line := range strings.Lines(rest) {
		if !strings.HasPrefix(line, "    ") {
			break
		}
		v.tries = append(v.tries, strings.TrimSpace(line))
	}
	return v
}

// shows waits until the screen shows a text.
func (v *viewing) shows(want string) {
	v.t.Helper()
	parts.Eventually(v.t, patience, fmt.Sprintf("the demo does not show %q", want), func() bool {
		select {
		case <-v.ended:
			v.t.Fatalf("the demo has ended: %v", v.cmd.ProcessState)
		default:
		}
		return strings.Contains(v.out.String(), want)
	})
}

// showsSoon reports whether the screen has the text, or gets it at once.
func (v *viewing) showsSoon(want string) bool {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); <-tick.C {
		if strings.Contains(v.out.String(), want) {
			return true
		}
	}
	return false
}

// press presses a key and waits for what the screen says of it.
func (v *viewing) press(key, want string) {
	v.t.Helper()
	before := strings.Count(v.out.String(), want)
	if _, err := io.WriteString(v.keys, key); err != nil {
		v.t.Fatal(err)
	}
	parts.Eventually(v.t, patience, fmt.Sprintf("after %s the demo does not show %q", key, want), func() bool {
		return strings.Count(v.out.String(), want) > before
	})
}

// served sends requests, none of which may fail.
func (v *viewing) served() {
	v.t.Helper()
	var urls []string
	for _, path := range []string{"/api/orders/42", "/api/users/7", "/api/limited"} {
		urls = append(urls, "http://"+v.listen+path)
	}
	if tally := parts.Fire(v.t, 120, parts.LoadOptions{URLs: urls}); tally.Failed() > 0 {
		v.t.Errorf("the demo's traffic is not served: %v", tally)
	}
}

// quit presses q.
func (v *viewing) quit() {
	v.t.Helper()
	if _, err := io.WriteString(v.keys, "q"); err != nil {
		v.t.Fatal(err)
	}
	<-v.ended
	if code := v.cmd.ProcessState.ExitCode(); code != 0 {
		v.t.Errorf("q: exit %d, want 0", code)
	}
}

// shell runs a command as a viewer does who has curl and the Consul that the
// tests have built.
func shell(t *testing.T, line string) string {
	t.Helper()
	tools, err := filepath.Abs(filepath.Join("..", "..", ".tools"))
	if err != nil {
		t.Fatal(err)
	}
	path := os.Getenv("PATH") + ":" + tools
	if _, err := exec.LookPath("curl"); err != nil {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		script := write(t, "curl", fmt.Sprintf("#!/bin/sh\n%s=curl exec '%s' \"$@\"\n", beSomebody, self))
		if err := os.Chmod(script, 0o700); err != nil {
			t.Fatal(err)
		}
		path = filepath.Dir(script) + ":" + path
	}
	cmd := exec.Command("sh", "-c", line)
	cmd.Env = append(os.Environ(), "PATH="+path, beSomebody+"=proconsul") // the demo names its own binary, which is the test's
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%s: %v\n%s%s", line, err, out, stderr.String())
	}
	return string(out)
}

// TestDemo does what the first screen invites to: every printed command works
// as printed, and the keys break things without breaking what clients see.
func TestDemo(t *testing.T) {
	ports := parts.FreePorts(t, 2)
	listen, admin := fmt.Sprintf("127.0.0.1:%d", ports[0]), fmt.Sprintf("127.0.0.1:%d", ports[1])
	v := startDemo(t, "--listen", listen, "--admin", admin, "--traffic", "20")
	if v.listen != listen || strings.Replace(v.admin, "localhost", "127.0.0.1", 1) != admin {
		t.Errorf("the demo is on %s and %s, asked for were %s and %s", v.listen, v.admin, listen, admin)
	}

	wants := []struct{ of, want string }{
		{"curl -i ", `^HTTP/1\.1 200 OK\r\n(?s:.*)"service":"orders"(?s:.*)"path":"/42"`},
		{"/api/limited", `^200 200 200 200 200 429 429 429 \n$`},
		{"/api/events", `^id: 0\ndata: (?s:.*)\n\nid: 1\n(?s:.*)\n\nid: 2\n`},
		{"/api/v1/services/orders", `^\{(?s:.*)"usable": ?3\b`},
		{"consul catalog services", `(?m)^orders$`},
		{" explain GET ", `(?m)^ 1 match +orders (?s:.*)^would answer: proxied`},
		{" services --address", `(?m)^orders +ok 3/3 `},
		{" drain users/users-1 --for 10s", `^$`}, // its note goes to standard error
	}
	if len(v.tries) != len(wants) {
		t.Errorf("the demo prints %d commands, want %d: %q", len(v.tries), len(wants), v.tries)
	}
	for _, w := range wants {
		found := false
		for _, line := range v.tries {
			if !strings.Contains(line, w.of) {
				continue
			}
			found = true
			if out := shell(t, line); !regexp.MustCompile(w.want).MatchString(out) {
				t.Errorf("%s: printed\n%s\nwant %s", line, out, w.want)
			}
		}
		if !found {
			t.Errorf("no command with %s among %q", w.of, v.tries)
		}
	}

	// The health check may come before the requests that find the instance dead.
	// Then it is killed again.
	for try := 1; ; try++ {
		v.press("k", "orders-2 killed")
		v.served()
		if v.showsSoon("orders-2: ejected") {
			break
		}
		if try == 5 {
			t.Fatal("orders-2 was killed five times and never ejected")
		}
		v.press("h", "healed")
		parts.Eventually(t, patience, "orders-2 is not back", func() bool {
			return regexp.MustCompile(`"usable": ?3\b`).MatchString(shell(t, "curl -s "+v.admin+"/api/v1/services/orders"))
		})
	}
	v.press("h", "healed")
	v.served()
	v.press("c", "Consul cut off")
	v.served()
	v.shows("Consul does not answer")
	v.press("h", "healed")
	v.shows("Consul answers")
	v.press("r", "Redis cut off")
	v.served()
	v.shows("Redis is away")
	v.press("h", "healed")
	v.shows("Redis answers")
	v.served()
	v.quit()
}

// TestDemoMovesToFreePorts runs the demo where somebody has its default ports:
// the printed addresses follow.
func TestDemoMovesToFreePorts(t *testing.T) {
	defaults := []string{"127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:8500", "127.0.0.1:6379"}
	var taken []string
	for _, addr := range defaults {
		// Who else has it, as a demo of another test, may be gone before ours looks.
		if l, err := net.Listen("tcp", addr); err == nil {
			defer l.Close()
			taken = append(taken, addr)
		}
	}
	v := startDemo(t)
	for _, addr := range taken {
		if !strings.Contains(v.out.String(), "("+addr+" is taken)") {
			t.Errorf("the demo does not say that %s is taken", addr)
		}
		_, port, _ := strings.Cut(addr, ":")
		for _, line := range v.tries {
			if regexp.MustCompile(":" + port + `\b`).MatchString(line) {
				t.Errorf("a printed command goes to the taken port: %s", line)
			}
		}
	}
	for _, line := range v.tries {
		if strings.Contains(line, "/api/orders/42") || strings.Contains(line, "/api/v1/services/orders") {
			if out := shell(t, line); !strings.Contains(out, "orders") {
				t.Errorf("%s: %s", line, out)
			}
		}
	}
	v.quit()
}
