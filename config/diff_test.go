package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/config"
)

func TestDiff(t *testing.T) {
	const before = `version: 1
policies:
  - {name: p, rate_limit: {by: client_ip, limits: [1/s, 10/1m]}}
upstreams:
  - {service: a, timeout: {response: 2s}}
routes:
  - {name: one, match: {path: /one}, use: [p], upstream: {service: a}}
  - {name: two, match: {path: /two}, upstream: {service: b}}
access_log: {sample: 10%}
`
	parse := func(text string) *config.Config {
		t.Helper()
		c, err := config.Parse("f.yaml", []byte(text), config.LoadOptions{Pure: true})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	text := func(changes []config.Change) string {
		var b strings.Builder
		for _, c := range changes {
			fmt.Fprintf(&b, "%s %s %s\n", c.Action, c.Kind, c.Name)
			for _, f := range c.Fields {
				fmt.Fprintf(&b, "  %s: %q -> %q\n", f.Path, f.Was, f.Is)
			}
		}
		return b.String()
	}
	a := parse(before)
	for _, tc := range []struct{ name, old, now, want string }{
		{"nothing", "", "", ""},
		{"order and layout alone", "version: 1\n", "version: 1 # the first\n", ""},
		{"a value", "response: 2s", "response: 3s", "changed upstream a\n  timeout.response: \"2s\" -> \"3s\"\n"},
		{"a value to its default", "sample: 10%", "sample: 100%", "changed setting access_log\n  sample: \"10%\" -> \"100%\"\n"},
		{"a list", "[1/s, 10/1m]", "[2/s]", "changed policy p\n  rate_limit.limits: \"[1/1s, 10/1m]\" -> \"[2/1s]\"\n"},
		{"a section comes", "name: two,", "name: two, headers: {request: {remove: [A]}},",
			"changed route two\n  headers: \"\" -> \"{request: {remove: [A], set: [], add: []}, response: {remove: [], set: [], add: []}}\"\n"},
		{"a new name", "name: two", "name: three", "removed route two\nadded route three\n"},
		{"a route moves", "/two}, upstream: {service: b}", "/two}, upstream: {service: c}", "changed route two\n  upstream.service: \"b\" -> \"c\"\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			next := parse(strings.Replace(before, tc.old, tc.now, 1))
			if got := text(a.Diff(next)); got != tc.want {
				t.Errorf("got\n%swant\n%s", got, tc.want)
			}
			if got, back := a.Diff(next), next.Diff(a); len(got) != len(back) {
				t.Errorf("there are %d changes and %d back", len(got), len(back))
			}
		})
	}
}

func TestDiffMasksSecrets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("from-file"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NAMED", "from-env")
	parse := func(text string) *config.Config {
		t.Helper()
		c, err := config.Parse("f.yaml", []byte(text), config.LoadOptions{HideOutside: true})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a := parse("consul: {token: old-token, addr: '1.1.1.1:1'}\nroutes: [{name: a, upstream: {service: s}}]\n")
	b := parse("consul: {token: '${env:NAMED}', addr: '1.1.1.1:2'}\nredis: {username: '${file:" + file + "}', addr: 'h:1'}\n" +
		"routes: [{name: a, upstream: {service: '${env:NAMED}'}, headers: {request: {set: [{name: Authorization, value: plain-secret}]}}}, {name: '${env:NAMED}', match: {path: /b}, upstream: {service: s}}]\n")
	got := fmt.Sprint(a.Diff(b))
	for _, secret := range []string{"old-token", "from-env", "from-file", "plain-secret"} {
		if strings.Contains(got, secret) {
			t.Errorf("%s is shown: %s", secret, got)
		}
	}
	if !strings.Contains(got, "1.1.1.1:2") {
		t.Errorf("what is no secret is not shown: %s", got)
	}
}
