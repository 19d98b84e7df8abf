package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/app"
	"github.com/proconsul/proconsul/pkg/parts"
)

// scripted is what each script's gateway serves. %s is an instance that
// answers.
const scripted = `version: 1
listen: [{name: public, addr: "127.0.0.1:0"}]
admin: {addr: "127.0.0.1:0", tokens: [{name: sre, role: operator, token: op-secret}, {name: graphs, role: viewer, token: view-secret}]}
consul: {disabled: true}
shutdown: {delay: 0s, grace: 1s}
upstreams:
  - {name: orders, instances: [{address: "%s"}]}
routes:
  - {name: orders, match: {host: shop.test, path: "/api/orders/**"}, upstream: {service: orders, strip: /api/orders}, rate_limit: {by: api_key, limits: [2/1h]}}
  - {name: old, match: {host: old.test}, redirect: {to: "https://shop.test{path}", code: 308}}
`

// TestScripts runs the commands as processes of their own, each script against
// a gateway of its own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PORT", strconv.Itoa(parts.FreePorts(t, 1)[0]))
			return startScripted(env)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			// exits CODE COMMAND...: it has to end with just that code.
			"exits": func(ts *testscript.TestScript, _ bool, args []string) {
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				got := 0
				var failed *exec.ExitError
				if err := ts.Exec(args[1], args[2:]...); errors.As(err, &failed) {
					got = failed.ExitCode()
				} else {
					ts.Check(err)
				}
				if got != want {
					ts.Fatalf("exit code %d, want %d", got, want)
				}
			},
			// eventually COMMAND...: it ends well, once what it waits for is there.
			"eventually": func(ts *testscript.TestScript, _ bool, args []string) {
				for end := time.Now().Add(patience); ; {
					err := ts.Exec(args[0], args[1:]...)
					if err == nil {
						return
					}
					if time.Now().After(end) {
						ts.Fatalf("never: %v", err)
					}
				}
			},
			// pki writes ca.pem and what it issued for the gateway (gateway.pem), for
			// operators (sre.pem, graphs.pem) and for nobody (stranger.pem), and a
			// certificate of an issuer that nobody knows (rogue.pem): all new each time.
			"pki": func(ts *testscript.TestScript, _ bool, _ []string) {
				ca := parts.NewAuthority(t, "ca")
				ca.WriteTo(t, ts.MkAbs("ca.pem"))
				issue := func(by *parts.Authority, file, name string) {
					i := by.Issue(t, parts.Leaf{Names: []string{name}})
					ts.Check(os.WriteFile(ts.MkAbs(file+".tmp"), append(i.Cert, i.Key...), 0o600))
					ts.Check(os.Rename(ts.MkAbs(file+".tmp"), ts.MkAbs(file)))
				}
				issue(ca, "gateway.pem", "127.0.0.1")
				issue(ca, "sre.pem", "sre.example.org")
				issue(ca, "graphs.pem", "spiffe://example.org/graphs")
				issue(ca, "stranger.pem", "stranger.example.org")
				issue(parts.NewAuthority(t, "rogue"), "rogue.pem", "sre.example.org")
			},
			// repeats N PATTERN COMMAND...: it prints such a line that often, with
			// no colors, and ends well when it is interrupted.
			"repeats": func(ts *testscript.TestScript, _ bool, args []string) {
				n, err := strconv.Atoi(args[0])
				ts.Check(err)
				cmd := command(t, args[3:]...)
				cmd.Env = append(cmd.Env, "PROCONSUL_ADDR="+ts.Getenv("PROCONSUL_ADDR"), "PROCONSUL_TOKEN="+ts.Getenv("PROCONSUL_TOKEN"))
				out, err := cmd.StdoutPipe()
				ts.Check(err)
				ts.Check(cmd.Start())
				pattern := regexp.MustCompile(args[1])
				lines := bufio.NewScanner(out)
				for n > 0 && lines.Scan() {
					if pattern.MatchString(lines.Text()) {
						n--
					}
					if strings.Contains(lines.Text(), "\x1b") {
						ts.Fatalf("colors: %q", lines.Text())
					}
				}
				ts.Check(cmd.Process.Signal(os.Interrupt))
				_, _ = io.Copy(io.Discard, out)
				ts.Check(cmd.Wait())
				if n > 0 {
					ts.Fatalf("%d lines short", n)
				}
			},
		},
		ContinueOnError: true,
	})
}

func startScripted(env *testscript.Env) error {
	instance := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, io.MultiReader(strings.NewReader(r.Method+" "+r.URL.Path+" "), r.Body))
	}))
	env.Defer(instance.Close)
	path := filepath.Join(env.WorkDir, "gateway.yaml")
	text := fmt.Sprintf(scripted, instance.Listener.Addr())
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(env.WorkDir, "next.yaml"), []byte(strings.ReplaceAll(text, "2/1h", "9/1h")), 0o600); err != nil {
		return err
	}
	load := func() (*config.Config, error) { return config.Load(path, config.LoadOptions{Pure: true}) }
	cfg, err := load()
	if err != nil {
		return err
	}
	a, err := app.New(cfg, app.Options{Version: "v0.0.0-test", Log: slog.New(slog.DiscardHandler), AccessLog: io.Discard, Load: load, Level: new(slog.LevelVar)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	env.Defer(func() {
		cancel()
		if err := <-done; err != nil {
			env.T().Log("run:", err)
			env.T().FailNow()
		}
	})
	select {
	case <-a.Ready():
	case <-time.After(patience):
		return errors.New("the gateway does not become ready")
	}
	env.Setenv("PROCONSUL_ADDR", a.AdminAddr())
	env.Setenv("PROCONSUL_TOKEN", "op-secret")
	env.Setenv("INSTANCE", instance.Listener.Addr().String())
	return nil
}
