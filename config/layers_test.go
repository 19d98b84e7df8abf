package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/config"
)

func faultsOf(t *testing.T, err error) []string {
	t.Helper()
	var fs *config.Faults
	if !errors.As(err, &fs) {
		t.Fatalf("err = %v, want *Faults", err)
	}
	var out []string
	for _, f := range fs.All {
		out = append(out, f.String())
	}
	return out
}

// Defaults lie below CONSUL_HTTP_* variables, those below the file, the file
// below PROCONSUL_* variables, and those below Set.
func TestLayers(t *testing.T) {
	file := []byte("consul: {addr: 'file:8500', wait: 30s}\nlisten: [{addr: ':1'}, {addr: ':2'}]\n")
	tests := []struct {
		name string
		env  map[string]string
		file []byte
		set  map[string]string
		pure bool
		want func(*config.Config) (got, want any)
	}{
		{name: "default", want: func(c *config.Config) (any, any) { return c.Consul.Addr, "127.0.0.1:8500" }},
		{name: "consul variable over default", env: map[string]string{"CONSUL_HTTP_ADDR": "env:8500"},
			want: func(c *config.Config) (any, any) { return c.Consul.Addr, "env:8500" }},
		{name: "consul variable with a scheme", env: map[string]string{"CONSUL_HTTP_ADDR": "https://env:8501"},
			want: func(c *config.Config) (any, any) {
				return [2]string{c.Consul.Addr, c.Consul.Scheme}, [2]string{"env:8501", "https"}
			}},
		{name: "consul variable with a socket", env: map[string]string{"CONSUL_HTTP_ADDR": "unix:///run/consul.sock"},
			want: func(c *config.Config) (any, any) { return c.Consul.Addr, "unix:///run/consul.sock" }},
		{name: "consul switches", env: map[string]string{"CONSUL_HTTP_SSL": "true", "CONSUL_HTTP_SSL_VERIFY": "false", "CONSUL_HTTP_TOKEN": "t"},
			want: func(c *config.Config) (any, any) {
				return []any{c.Consul.Scheme, c.Consul.TLS.SkipVerify, c.Consul.Token.Reveal()}, []any{"https", true, "t"}
			}},
		{name: "file over consul variable", env: map[string]string{"CONSUL_HTTP_ADDR": "env:8500"}, file: file,
			want: func(c *config.Config) (any, any) { return c.Consul.Addr, "file:8500" }},
		{name: "variable over file", env: map[string]string{"PROCONSUL_CONSUL_ADDR": "env:1", "PROCONSUL_REDIS_ADDR": "redis:1", "PROCONSUL_ADMIN_ADDR": "127.0.0.1:9"}, file: file,
			want: func(c *config.Config) (any, any) {
				return []any{c.Consul.Addr, c.Consul.Wait, c.Redis.Addr, c.Admin.Addr}, []any{"env:1", 30 * time.Second, "redis:1", "127.0.0.1:9"}
			}},
		{name: "typed variables", env: map[string]string{"PROCONSUL_REDIS_TIMEOUT": "20ms", "PROCONSUL_REDIS_DB": "3", "PROCONSUL_CONSUL_DISABLED": "true", "PROCONSUL_ACCESS_LOG_SAMPLE": "5%"},
			want: func(c *config.Config) (any, any) {
				return []any{c.Redis.Timeout, c.Redis.DB, c.Consul.Disabled, c.AccessLog.Sample}, []any{20 * time.Millisecond, 3, true, config.Percent(5)}
			}},
		{name: "a variable opens an optional section", env: map[string]string{"PROCONSUL_REDIS_TLS_SERVER_NAME": "r"},
			want: func(c *config.Config) (any, any) { return c.Redis.TLS, &config.ClientTLS{ServerName: "r"} }},
		{name: "a token of the file over a token file of Consul's", env: map[string]string{"CONSUL_HTTP_TOKEN_FILE": "/x"}, file: []byte("consul: {token: t}"),
			want: func(c *config.Config) (any, any) {
				return [2]string{c.Consul.Token.Reveal(), c.Consul.TokenFile}, [2]string{"t", ""}
			}},
		{name: "a token file of a variable over a token of the file", env: map[string]string{"PROCONSUL_CONSUL_TOKEN_FILE": "/x"}, file: []byte("consul: {token: t}"),
			want: func(c *config.Config) (any, any) {
				return [2]string{c.Consul.Token.Reveal(), c.Consul.TokenFile}, [2]string{"", "/x"}
			}},
		{name: "empty variable is none", env: map[string]string{"PROCONSUL_CONSUL_ADDR": ""}, file: file,
			want: func(c *config.Config) (any, any) { return c.Consul.Addr, "file:8500" }},
		{name: "set over all", env: map[string]string{"PROCONSUL_CONSUL_ADDR": "env:1"}, file: file, set: map[string]string{"consul.addr": "flag:1"},
			want: func(c *config.Config) (any, any) { return c.Consul.Addr, "flag:1" }},
		{name: "set inside a list", file: file, set: map[string]string{"listen[1].addr": ":3", "listen[2].addr": ":4"},
			want: func(c *config.Config) (any, any) {
				return []string{c.Listen[0].Addr, c.Listen[1].Addr, c.Listen[2].Addr, c.Listen[2].EncodedSlash}, []string{":1", ":3", ":4", "reject"}
			}},
		{name: "set a list that nobody wrote", set: map[string]string{"listen[0].addr": "127.0.0.1:0", "listen[0].limits.max_in_flight": "5"},
			want: func(c *config.Config) (any, any) {
				return []any{len(c.Listen), c.Listen[0].Addr, c.Listen[0].Limits.MaxInFlight, c.Listen[0].Limits.MaxHeaders}, []any{1, "127.0.0.1:0", 5, 100}
			}},
		{name: "pure reads no variables", env: map[string]string{"PROCONSUL_CONSUL_ADDR": "env:1", "CONSUL_HTTP_ADDR": "env:2", "PROCONSUL_BOGUS": "1"}, pure: true,
			want: func(c *config.Config) (any, any) {
				return []any{c.Consul.Addr, c.Warnings.Len()}, []any{"127.0.0.1:8500", 0}
			}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			clearEnv(t)
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			c, err := config.Parse("f.yaml", tt.file, config.LoadOptions{Set: tt.set, Pure: tt.pure})
			if err != nil {
				t.Fatal(err)
			}
			if got, want := tt.want(c); !reflect.DeepEqual(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// clearEnv takes away what the machine has set.
func clearEnv(t *testing.T) {
	t.Helper()
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "PROCONSUL_") || strings.HasPrefix(name, "CONSUL_") {
			t.Setenv(name, "") // so that it comes back
			os.Unsetenv(name)
		}
	}
}

func TestLayerFaults(t *testing.T) {
	tests := []struct {
		name string
		env  map[string]string
		set  map[string]string
		file string
		want []string
	}{
		{name: "bad variable", env: map[string]string{"PROCONSUL_REDIS_TIMEOUT": "50", "PROCONSUL_LOG_LEVEL": "loud"}, want: []string{
			`env PROCONSUL_LOG_LEVEL log.level "loud" is none of debug, info, warn, error [PC1008]`,
			`env PROCONSUL_REDIS_TIMEOUT redis.timeout "50" has no unit (want 250ms, 2s, 1m or 1h) [PC1007]`}},
		{name: "a rule about a variable", env: map[string]string{"PROCONSUL_ADMIN_ADDR": "0.0.0.0:8081"}, want: []string{
			`env PROCONSUL_ADMIN_ADDR admin.addr "0.0.0.0:8081" is not loopback, and no token guards it [PC1022]`}},
		{name: "bad flag", set: map[string]string{"consul.adr": "x", "listen": "x", "listen[7].addr": ":1", "redis.db": "many"}, want: []string{
			`flag consul.adr "consul.adr" is no key that takes one value [PC1004]`,
			`flag listen "listen" is no key that takes one value [PC1004]`,
			`flag listen[7].addr listen[7].addr ":1" is for an element of a list that is not there [PC1012]`,
			`flag redis.db redis.db "many" is not a whole number [PC1006]`}},
		{name: "a bad file is not hidden by a flag", file: "consul: {wait: 5}", set: map[string]string{"consul.wait": "5s"}, want: []string{
			`f.yaml:1:16 consul.wait "5" has no unit (want 250ms, 2s, 1m or 1h) [PC1007]`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			clearEnv(t)
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			_, err := config.Parse("f.yaml", []byte(tt.file), config.LoadOptions{Set: tt.set})
			if got := faultsOf(t, err); !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

// A variable that sets nothing is a warning with a suggestion; those of the
// command line and of Kubernetes are not ours to judge.
func TestStrayVariables(t *testing.T) {
	clearEnv(t)
	for _, name := range []string{"PROCONSUL_CONSUL_ADRR", "PROCONSUL_ADDR", "PROCONSUL_TOKEN", "PROCONSUL_SERVICE_HOST", "PROCONSUL_SERVICE_PORT_HTTP", "PROCONSUL_PORT_8080_TCP", "PROCONSUL_PORT"} {
		t.Setenv(name, "1")
	}
	c, err := config.Load("", config.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if c.Warnings.Len() != 1 || c.Warnings.All[0].Hint != `did you mean "PROCONSUL_CONSUL_ADDR"?` || !c.Warnings.All[0].Warning {
		t.Errorf("warnings = %+v, want one about PROCONSUL_CONSUL_ADRR", c.Warnings.All)
	}
}

// Pure text, as from KV, cannot reach for the environment or for files.
func TestPure(t *testing.T) {
	t.Setenv("SOME_SECRET", "x")
	_, err := config.Parse("kv", []byte("redis: {username: '${env:SOME_SECRET}', password: '${file:/etc/hostname}'}"), config.LoadOptions{Pure: true})
	if got := faultsOf(t, err); len(got) != 2 || !strings.Contains(got[0], "PC1019") || !strings.Contains(got[1], "PC1019") {
		t.Errorf("faults = %q, want two PC1019", got)
	}
}

func TestInterpolation(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "secret"), "s3cret\n\n")
	write(t, filepath.Join(dir, "crlf"), "s3cret\r\n")
	t.Setenv("SET", "value")
	t.Setenv("EMPTY", "")
	t.Setenv("NESTED", "${env:SET}")
	tests := []struct{ text, want string }{
		{"plain $HOME $ {x}", "plain $HOME $ {x}"},
		{"${env:SET}", "value"},
		{"a-${env:SET}-${env:SET}-b", "a-value-value-b"},
		{"${env:UNSET_X:-}", ""},
		{"${env:UNSET_X:-a:-b}", "a:-b"},
		{"${env:EMPTY:-default}", "default"},
		{"${env:EMPTY}", ""},
		{"${env:NESTED}", "${env:SET}"},
		{"$${env:SET}", "${env:SET}"},
		{"${file:" + dir + "/secret}", "s3cret\n"},
		{"${file:secret}", "s3cret\n"},
		{"${file:crlf}", "s3cret"},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			file := filepath.Join(dir, "proconsul.yaml")
			write(t, file, "redis: {username: '"+tt.text+"'}")
			c, err := config.Load(file, config.LoadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if c.Redis.Username != tt.want {
				t.Errorf("got %q, want %q", c.Redis.Username, tt.want)
			}
		})
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLoadRefusesWhatItCannotRead(t *testing.T) {
	_, err := config.Load("/nonexistent/proconsul.yaml", config.LoadOptions{})
	if got := faultsOf(t, err); !slices.Equal(got, []string{"/nonexistent/proconsul.yaml cannot be read: no such file or directory [PC1001]"}) {
		t.Errorf("got %q", got)
	}
	big := filepath.Join(t.TempDir(), "big.yaml")
	write(t, big, strings.Repeat("# filler\n", 2<<20))
	_, err = config.Load(big, config.LoadOptions{})
	if got := faultsOf(t, err); len(got) != 1 || !strings.HasSuffix(got[0], "[PC1003]") {
		t.Errorf("got %q", got)
	}
}

// Aliases that multiply are refused in bounded time and memory.
func TestAliasBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("x-a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := range 12 {
		last, next := string(rune('a'+i)), string(rune('a'+i+1))
		if i == 0 {
			last = "a0"
		}
		b.WriteString("x-" + next + ": &" + next + " [" + strings.Repeat("*"+last+", ", 9) + "*" + last + "]\n")
	}
	b.WriteString("routes:\n")
	for range 200_000 / 10 {
		b.WriteString("  - {name: x, match: {methods: *a0}}\n")
	}
	b.WriteString("registration: {meta: {a: *m}}\n")
	_, err := config.Parse("bomb.yaml", []byte(strings.Replace(b.String(), "*m", "*b", 1)), config.LoadOptions{Pure: true})
	got := faultsOf(t, err)
	if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "PC1003") }) {
		t.Errorf("%d faults and none is PC1003", len(got))
	}
}

func TestHashFollowsTheBytes(t *testing.T) {
	parse := func(s string) string {
		c, err := config.Parse("f.yaml", []byte(s), config.LoadOptions{Pure: true})
		if err != nil {
			t.Fatal(err)
		}
		return c.Hash
	}
	a, b := parse("version: 1\n"), parse("version: 1\n\n")
	if len(a) != 12 || a == b || a != parse("version: 1\n") {
		t.Errorf("hashes %q and %q", a, b)
	}
}
