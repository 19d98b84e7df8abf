package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"github.com/proconsul/proconsul/pkg/parts"
)

const good = "version: 1\nroutes: [{name: web, match: {path: /}, upstream: {service: web}}]\n"

func TestExitCodes(t *testing.T) {
	config, bad := write(t, "good.yaml", good), write(t, "bad.yaml", "version: 1\nroutez: []\n")
	tests := []struct {
		name string
		args []string
		code int
		want string // in what is printed
	}{
		{"nothing", nil, 0, "Usage:"},
		{"help", []string{"--help"}, 0, "Usage:"},
		{"unknown command", []string{"rnu"}, 2, `unknown command "rnu"`},
		{"unknown command of a command", []string{"config", "prin"}, 2, "prin"},
		{"unknown flag", []string{"run", "--confg", "x"}, 2, "unknown flag: --confg"},
		{"flag without its value", []string{"run", "-c"}, 2, "flag needs an argument"},
		{"required flag", []string{"run"}, 2, `"config"`},
		{"argument too many", []string{"version", "x"}, 2, `"x"`},
		{"--set without a value", []string{"validate", "-c", config, "--set", "consul.addr"}, 2, "want KEY=VALUE"},
		{"unknown format", []string{"validate", "-c", config, "-o", "xml"}, 2, "want text, json or github"},
		{"good configuration", []string{"validate", "-c", config}, 0, "is valid"},
		{"bad configuration", []string{"validate", "-c", bad}, 2, "routez"},
		{"no configuration", []string{"validate", "-c", bad + ".not"}, 2, "bad.yaml.not"},
		{"run of a bad configuration", []string{"run", "-c", bad}, 2, "routez"},
		{"print of a bad configuration", []string{"config", "print", "-c", bad}, 2, "routez"},
		{"health of a bad address", []string{"healthcheck", "--address", "a b:c"}, 2, "a b:c"},
		{"health of nobody", []string{"healthcheck", "--address", "127.0.0.1:1"}, 1, "127.0.0.1:1"},
		{"demo on an address that is not here", []string{"demo", "--listen", "192.0.2.1:1"}, 1, "192.0.2.1:1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := call(tt.args...)
			if code != tt.code || !strings.Contains(stdout+stderr, tt.want) {
				t.Errorf("%v: exit %d, want %d with %q:\n%s%s", tt.args, code, tt.code, tt.want, stdout, stderr)
			}
			if code != 0 && stderr == "" {
				t.Errorf("%v: nothing on standard error", tt.args)
			}
		})
	}
}

func TestEveryCommandHasAnExample(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if c.HasSubCommands() {
			return
		}
		if c.Short == "" || !strings.Contains(c.Example, c.CommandPath()) {
			t.Errorf("%s: its help has no example of it: %q", c.CommandPath(), c.Example)
		}
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		if code, stdout, _ := call(args...); code != 0 || !strings.Contains(stdout, "Examples:\n"+c.Example) {
			t.Errorf("%s --help: exit %d:\n%s", c.CommandPath(), code, stdout)
		}
	}
	walk(newRoot(io.Discard, io.Discard))
}

func TestVersion(t *testing.T) {
	code, stdout, _ := call("version", "--json")
	var v struct{ Version, Go, OS, Arch string }
	if err := json.Unmarshal([]byte(stdout), &v); err != nil || code != 0 || v.Version != version || v.Go == "" || v.OS == "" || v.Arch == "" {
		t.Errorf("version --json: exit %d, %v: %s", code, err, stdout)
	}
	if _, stdout, _ := call("version"); stdout != "proconsul "+version+"\n" {
		t.Errorf("version: %q", stdout)
	}
}

func TestConfigPrintMasksSecrets(t *testing.T) {
	secret := write(t, "password", "of-a-file\n")
	path := write(t, "proconsul.yaml", fmt.Sprintf(`version: 1
consul: {token: in-the-clear}
redis: {addr: "127.0.0.1:6379", password: "${file:%s}"}
admin: {tokens: [{name: sre, role: operator, token: "${env:A_TOKEN_OF_THIS_TEST}"}]}
`, secret)+strings.TrimPrefix(good, "version: 1\n"))
	t.Setenv("A_TOKEN_OF_THIS_TEST", "of-the-environment")
	for _, args := range [][]string{{}, {"--defaults"}, {"--sources"}, {"--defaults", "--sources"}} {
		code, stdout, stderr := call(append([]string{"config", "print", "-c", path}, args...)...)
		if code != 0 || strings.Count(stdout, "***") < 3 || !strings.Contains(stdout, "web") {
			t.Errorf("config print %v: exit %d:\n%s%s", args, code, stdout, stderr)
		}
		for _, secret := range []string{"in-the-clear", "of-a-file", "of-the-environment"} {
			if strings.Contains(stdout+stderr, secret) {
				t.Errorf("config print %v shows the secret %s:\n%s", args, secret, stdout)
			}
		}
	}
}

// manyFaults is a configuration that is wrong in many ways; each line with a
// fault says which code it has to get.
const manyFaults = `version: 1
listen:
  - {name: public, addr: "%s", timeouts: {idle: 75}}       # PC1007
admin: {addr: "%s"}
consul: {addr: "%s", tokn: abc}                             # PC1004
redis: {addr: "127.0.0.1:6379", db: many}                   # PC1006
policies:
  - name: public-api
    rate_limit: {by: client_ip, limits: [100/fortnight]}    # PC1007
upstreams:
  - service: orders
    balance: wieghted                                       # PC1008
    max_in_flight: -1                                       # PC1009
routes:
  - name: orders
    match: {path: api/orders}                               # PC1016
    use: [public_api]                                       # PC1012
    upstream: {service: orders}
  - name: orders                                            # PC1013
    match: {path: /x, method: GET}                          # PC1004
    upstream: {service: orders}
`

// TestEveryFaultAtOnce reads a configuration with many faults: validate and run
// list each with file, line, column, key path and hint, exit with 2, and
// nothing has been started, opened or dialled.
func TestEveryFaultAtOnce(t *testing.T) {
	// Somebody else has the ports: who tries to listen fails with 1, and who
	// asks Consul is seen.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	asked := make(chan struct{}, 1)
	go func() {
		if c, err := listener.Accept(); err == nil {
			c.Close()
			asked <- struct{}{}
		}
	}()
	addr := listener.Addr().String()
	path := write(t, "proconsul.yaml", fmt.Sprintf(manyFaults, addr, addr, addr))
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"validate", "run"} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := call(name, "-c", path)
			if code != 2 {
				t.Errorf("exit %d, want 2", code)
			}
			out := stdout + stderr
			if strings.Contains(out, `"msg":`) {
				t.Error("something was started")
			}
			for i, line := range strings.Split(string(text), "\n") {
				_, fault, ok := strings.Cut(line, "# ")
				if !ok {
					continue
				}
				if want := regexp.MustCompile(fmt.Sprintf(`proconsul\.yaml:%d:\d+ error %s \S`, i+1, fault)); !want.MatchString(out) {
					t.Errorf("line %d has no fault %s", i+1, fault)
				}
			}
			for _, want := range []string{`unknown key "tokn" in consul`, "upstreams[0].max_in_flight", "routes[0].use[0]",
				`did you mean "token"?`, `did you mean "weighted"?`, `did you mean "methods"?`, `did you mean "public-api"?`} {
				if !strings.Contains(out, want) {
					t.Errorf("no %q", want)
				}
			}
			if t.Failed() {
				t.Logf("printed:\n%s", out)
			}
		})
	}
	select {
	case <-asked:
		t.Error("a configuration that is not valid was acted upon: somebody was dialled")
	default:
	}
}

func TestValidateFormats(t *testing.T) {
	path := write(t, "proconsul.yaml", "version: 1\nroutes: [{name: a, match: {path: /}, upstrem: {service: web}}]\n")
	code, stdout, _ := call("validate", "-c", path, "-o", "json")
	var found struct {
		Valid  bool
		Errors int
		Faults []struct {
			File, Path, Code, Message, Hint string
			Line, Col                       int
		}
	}
	if err := json.Unmarshal([]byte(stdout), &found); err != nil || code != 2 {
		t.Fatalf("exit %d, %v: %s", code, err, stdout)
	}
	if found.Valid || found.Errors != 1 || len(found.Faults) != 1 {
		t.Fatalf("%+v from %s", found, stdout)
	}
	if f := found.Faults[0]; f.File != path || f.Line != 2 || f.Col != 38 || f.Path != "routes[0].upstrem" || f.Code != "PC1004" || !strings.Contains(f.Hint, "upstream") {
		t.Errorf("%+v from %s", f, stdout)
	}
	if _, stdout, _ := call("validate", "-c", path, "-o", "github"); !strings.HasPrefix(stdout, "::error file="+path+",line=2,col=") {
		t.Errorf("-o github: %s", stdout)
	}
}

// TestExamplesAreValid validates every configuration that the documentation and
// deploy/ show.
func TestExamplesAreValid(t *testing.T) {
	root := filepath.Join("..", "..")
	examples := map[string]string{} // text by where it stands
	fence := regexp.MustCompile("(?ms)^```ya?ml\n(.*?)^```")
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == "testdata" || name != "." && strings.HasPrefix(name, ".") {
				return filepath.SkipDir
			}
			return nil
		}
		ext := filepath.Ext(path)
		config := (ext == ".yaml" || ext == ".yml") && strings.HasPrefix(name, "deploy"+string(filepath.Separator))
		if ext != ".md" && !config {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if config {
			examples[name] = string(b)
			return nil
		}
		for i, block := range fence.FindAllSubmatch(b, -1) {
			examples[fmt.Sprintf("%s, block %d", name, i+1)] = string(block[1])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ours := regexp.MustCompile(`(?m)^version: 1$`)
	for where, text := range examples {
		if !ours.MatchString(text) {
			delete(examples, where) // another program's
		}
	}
	for _, least := range []string{"README.md, block 1", "README.md, block 2", filepath.Join("deploy", "proconsul.yaml"),
		filepath.Join("deploy", "minimal.yaml"), filepath.Join("deploy", "compose", "proconsul.yaml")} {
		if examples[least] == "" {
			t.Errorf("%s was not found", least)
		}
	}
	for where, text := range examples {
		text := withFiles(t, text)
		t.Run(where, func(t *testing.T) {
			if code, stdout, stderr := call("validate", "-c", write(t, "proconsul.yaml", text)); code != 0 {
				t.Errorf("exit %d:\n%s%s", code, stdout, stderr)
			}
		})
	}
}

// outside are the files that examples name, which readers are to have.
var outside = regexp.MustCompile(`/(?:etc|run/secrets)/[\w./-]+`)

// withFiles returns the text with those files in a folder of its own: every
// secret is one, and every certificate is the same with its key.
func withFiles(t *testing.T, text string) string {
	root := t.TempDir()
	issued := parts.NewAuthority(t, "examples").Issue(t, parts.Leaf{Name: "example", Names: []string{"shop.example.com"}})
	pair := append(append([]byte{}, issued.Cert...), issued.Key...)
	put := func(path string, content []byte) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return outside.ReplaceAllStringFunc(text, func(path string) string {
		at := filepath.Join(root, path)
		switch {
		case strings.HasPrefix(path, "/run/secrets/"):
			put(at, []byte("a-secret-of-the-example"))
		case filepath.Ext(path) == "": // a folder of certificates
			put(filepath.Join(at, "shop.crt"), issued.Cert)
			put(filepath.Join(at, "shop.key"), issued.Key)
		default:
			put(at, pair)
		}
		return at
	})
}

// TestHealthcheck asks a gateway that serves, then drains, then is gone.
func TestHealthcheck(t *testing.T) {
	ports := parts.FreePorts(t, 2)
	admin := fmt.Sprintf("127.0.0.1:%d", ports[1])
	path := write(t, "proconsul.yaml", fmt.Sprintf(`version: 1
listen: [{addr: "127.0.0.1:%d"}]
admin: {addr: %q}
consul: {disabled: true}
shutdown: {delay: 1m, grace: 1s}
upstreams: [{name: web, instances: [{address: "127.0.0.1:9"}]}]
routes: [{name: web, match: {path: /}, upstream: {service: web}}]
`, ports[0], admin))
	cmd := command(t, "run", "-c", path)
	_, ended := start(t, cmd)
	health := func(args ...string) int {
		code, _, _ := call(append([]string{"healthcheck", "--address", admin}, args...)...)
		return code
	}
	parts.Eventually(t, patience, "the gateway is not ready", func() bool { return health("--ready") == 0 })
	if code := health(); code != 0 {
		t.Errorf("healthcheck of a gateway that serves: exit %d", code)
	}
	t.Setenv("PROCONSUL_ADDR", "http://"+admin)
	if code, _, stderr := call("healthcheck", "--ready"); code != 0 {
		t.Errorf("healthcheck by PROCONSUL_ADDR: exit %d: %s", code, stderr)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	parts.Eventually(t, patience, "a draining gateway is ready", func() bool { return health("--ready") == 1 })
	if code := health(); code != 0 {
		t.Errorf("healthcheck of a gateway that drains: exit %d; it lives", code)
	}
	if code, _, stderr := call("healthcheck", "--ready", "--address", admin); code != 1 || !strings.Contains(stderr, "503") || !strings.Contains(stderr, "[-]accepting") {
		t.Errorf("healthcheck --ready of a gateway that drains: exit %d: %s", code, stderr)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil { // else it drains for a minute
		t.Fatal(err)
	}
	<-ended
	if code := health(); code != 1 {
		t.Errorf("healthcheck of a gateway that is gone: exit %d", code)
	}
}
