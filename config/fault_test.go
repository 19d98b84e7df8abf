package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/config"
)

const faulty = `version: 1
routes:
  - name: orders
    timout: 3s
    upstream: {service: orders}
  - name: cart
    upstream: {service: cart}
    rate_limit: {by: "50%:x,y", rate: 1/s}
`

func faultyFaults(t *testing.T) *config.Faults {
	t.Helper()
	_, err := config.Parse("conf,d/proconsul.yaml", []byte(faulty), config.LoadOptions{Pure: true})
	var fs *config.Faults
	if !errors.As(err, &fs) {
		t.Fatalf("err = %v", err)
	}
	return fs
}

// The text is what the operator's eyes and scripts know: position, severity,
// code, message; the lines; the hint beside its line; the verdict.
func TestText(t *testing.T) {
	want := `conf,d/proconsul.yaml:4:5  error PC1004 unknown key "timout" in routes[0] (orders)
    3 |   - name: orders
    4 |     timout: 3s            did you mean "upstream.timeout"?
conf,d/proconsul.yaml:6:5  error PC1014 routes[1] (cart) matches the same as routes[0] (orders) at conf,d/proconsul.yaml:3: any host /**
    5 |     upstream: {service: orders}
    6 |   - name: cart            narrow one, or give the one that should win a priority
conf,d/proconsul.yaml:8:22 error PC1008 routes[1].rate_limit.by "50%:x,y" is none of client_ip, route, all, consumer, api_key, method, header(NAME), cookie(NAME), claim(NAME)
    7 |     upstream: {service: cart}
    8 |     rate_limit: {by: "50%:x,y", rate: 1/s}
3 errors, 0 warnings - not valid. Exit 2.
`
	var out bytes.Buffer
	if err := faultyFaults(t).Text(&out); err != nil {
		t.Fatal(err)
	}
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
	if got := faultyFaults(t).Error(); got != `conf,d/proconsul.yaml:4:5 unknown key "timout" in routes[0] (orders) [PC1004] (and 2 more)` {
		t.Errorf("Error() = %s", got)
	}
}

func TestJSON(t *testing.T) {
	var out bytes.Buffer
	if err := faultyFaults(t).JSON(&out); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Valid  bool
		Errors int
		Faults []struct {
			File, Path, Code, Severity, Message, Hint, Docs string
			Line, Col                                       int
		}
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	f := got.Faults[0]
	if got.Valid || got.Errors != 3 || f.Line != 4 || f.Col != 5 || f.Path != "routes[0].timout" || f.Code != "PC1004" ||
		f.Severity != "error" || f.Hint != `did you mean "upstream.timeout"?` || f.Docs != "docs/errors.md#pc1004" || f.File != "conf,d/proconsul.yaml" {
		t.Errorf("got %+v", got)
	}
	out.Reset()
	if err := new(config.Faults).JSON(&out); err != nil || !strings.Contains(out.String(), `"faults": []`) {
		t.Errorf("no faults: %v %s", err, &out)
	}
}

// Workflow commands have their own escapes: a comma in a file's name, a
// percent sign in a message.
func TestGitHub(t *testing.T) {
	var out bytes.Buffer
	if err := faultyFaults(t).GitHub(&out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	want := []string{
		`::error file=conf%2Cd/proconsul.yaml,line=4,col=5,title=PC1004::unknown key "timout" in routes[0] (orders) - did you mean "upstream.timeout"?`,
		`::error file=conf%2Cd/proconsul.yaml,line=8,col=22,title=PC1008::routes[1].rate_limit.by "50%25:x,y" is none of client_ip, route, all, consumer, api_key, method, header(NAME), cookie(NAME), claim(NAME)`,
	}
	if len(lines) != 3 || lines[0] != want[0] || lines[2] != want[1] {
		t.Errorf("got\n%s\nwant\n%s", &out, strings.Join(want, "\n"))
	}
	if err := faultyFaults(t).Write(&out, "xml"); err == nil {
		t.Error("an unknown format was written")
	}
}

// Nothing from a file can steer a terminal or break a line.
func TestPrintable(t *testing.T) {
	_, err := config.Parse("a\x1b[31m.yaml", []byte("\"k\\e[2J\\n\\u202e\": 1\nlog: {level: \"\\e]0;x\\a\"}\n"), config.LoadOptions{Pure: true})
	var fs *config.Faults
	if !errors.As(err, &fs) {
		t.Fatalf("err = %v", err)
	}
	for _, format := range []string{"text", "github"} {
		var out bytes.Buffer
		if err := fs.Write(&out, format); err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(out.String(), "\x1b\x07\u202e") {
			t.Errorf("%s: %q", format, &out)
		}
	}
}

// A check from outside reports where the key stands, among the other faults.
func TestNewFault(t *testing.T) {
	c, err := config.Parse("f.yaml", []byte("routes:\n  - name: a\n    upstream: {service: inventroy}\n"), config.LoadOptions{Pure: true})
	if err != nil {
		t.Fatal(err)
	}
	f := c.NewFault("routes[0].upstream.service", config.CodeNotInConsul, `routes[0].upstream.service "inventroy" is not in Consul dc1`, `did you mean "inventory"?`)
	if got := f.String(); got != `f.yaml:3:25 routes[0].upstream.service "inventroy" is not in Consul dc1 [PC1011]` {
		t.Errorf("got %s", got)
	}
	fs := new(config.Faults)
	fs.Add(c.NewFault("routes[0].priority", config.CodeRange, "later", ""))
	fs.Add(c.NewFault("shutdown.grace", config.CodeRange, "nowhere", ""))
	fs.Add(f)
	if fs.Errors() != 3 || fs.All[0].Message != "nowhere" || fs.All[0].File != "f.yaml" || fs.All[0].Line != 0 || fs.All[1].Line != 2 || fs.All[2].Line != 3 {
		t.Errorf("got %+v", fs.All)
	}
}
