package app_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/proconsul/proconsul/"

// floors is the floor plan of ARCHITECTURE.md: what each package may import of
// ours. "pkg/middleware/*" stands for every single middleware.
var floors = map[string][]string{
	"cmd/proconsul":             {"pkg/app", "pkg/identity", "pkg/demo", "config", "pkg/admin", "pkg/admin/client", "pkg/systemd"},
	"cmd/echo":                  {"pkg/echo", "consul"},
	"api":                       {},
	"pkg/demo":                  {"pkg/app", "pkg/echo", "config", "consul", "consul/devcatalog"},
	"pkg/app":                   {"*"},
	"pkg/echo":                  {"consul"},
	"pkg/gateway":               {"pkg/adaptive", "config", "balancer", "discovery", "pkg/proxy", "pkg/breaker", "pkg/identity", "pkg/limiter", "pkg/metrics", "pkg/tracing", "pkg/problem", "pkg/middleware", "pkg/middleware/*"},
	"pkg/adaptive":              {},
	"pkg/proxy":                 {"pkg/adaptive", "balancer", "discovery", "pkg/breaker", "pkg/cohort", "pkg/middleware", "pkg/problem", "pkg/rawio", "pkg/transport", "pkg/wire"},
	"pkg/middleware":            {"pkg/problem", "pkg/wire"},
	"pkg/middleware/*":          {"pkg/middleware", "config", "pkg/problem"},
	"pkg/middleware/auth":       {"pkg/middleware", "config", "pkg/problem", "pkg/identity"},
	"pkg/middleware/ratelimit":  {"pkg/middleware", "config", "pkg/problem", "pkg/limiter", "pkg/wire"},
	"pkg/middleware/metrics":    {"pkg/middleware", "config", "pkg/problem", "pkg/metrics"},
	"pkg/middleware/compress":   {"pkg/middleware", "config", "pkg/problem", "pkg/coding"},
	"pkg/middleware/decompress": {"pkg/middleware", "config", "pkg/problem", "pkg/coding"},
	"pkg/middleware/tracing":    {"pkg/middleware", "pkg/tracing"},
	"pkg/tracing":               {"pkg/middleware"},
	"pkg/middleware/validate":   {"pkg/middleware", "config", "pkg/problem", "pkg/schema"},
	"pkg/schema":                {},
	"pkg/coding":                {},
	"pkg/identity":              {"config"},
	"pkg/certs":                 {"config"},
	"pkg/acme":                  {"config", "consul", "pkg/certs"},
	"consul":                    {"discovery"},
	"consul/devcatalog":         {},
	"balancer":                  {"discovery"},
	"discovery":                 {},
	"config":                    {"pkg/schema"},
	"pkg/breaker":               {},
	"pkg/limiter":               {},
	"pkg/metrics":               {},
	"pkg/problem":               {},
	"pkg/transport":             {"pkg/cohort", "pkg/rawio", "pkg/wire"},
	"pkg/front":                 {"pkg/cohort", "pkg/rawio", "pkg/wire"},
	"pkg/cohort":                {"pkg/rawio"},
	"pkg/rawio":                 {},
	"pkg/wire":                  {},
	"pkg/admin":                 {},
	"pkg/admin/client":          {"pkg/admin"},
	"pkg/parts":                 {"pkg/admin"},
	"pkg/chaos":                 {},
	"pkg/browser":               {},
	"pkg/systemd":               {},
	"tools/bench":               {},
}

// doors are the libraries that one package alone imports; tests may too.
var doors = map[string][]string{
	"github.com/hashicorp/consul/api":                     {"consul"},
	"github.com/gorilla/mux":                              {"pkg/gateway"},
	"github.com/redis/go-redis/v9":                        {"pkg/limiter"},
	"github.com/afex/hystrix-go/hystrix":                  {"pkg/breaker"},
	"github.com/prometheus/client_golang":                 {"pkg/metrics"},
	"go.opentelemetry.io":                                 {"pkg/tracing"},
	"github.com/spf13/viper":                              {"config"},
	"github.com/go-jose/go-jose/v4":                       {"pkg/identity"},
	"github.com/klauspost/compress":                       {"pkg/coding"},
	"github.com/getkin/kin-openapi":                       {"pkg/schema"},
	"github.com/santhosh-tekuri/jsonschema/v6":            {"pkg/schema"},
	"github.com/andybalholm/brotli":                       {"pkg/coding"},
	"golang.org/x/crypto":                                 {"pkg/identity"},
	"github.com/caddyserver/certmagic":                    {"pkg/acme"},
	"github.com/mholt/acmez/v3":                           {"pkg/acme"},
	"go.uber.org/zap":                                     {"pkg/acme"},
	"github.com/spf13/cobra":                              {"cmd/proconsul"},
	"github.com/alicebob/miniredis/v2":                    {"pkg/demo"},
	"github.com/afex/hystrix-go/hystrix/metric_collector": {"pkg/breaker"},
}

type goPackage struct {
	ImportPath, Dir, Name     string
	Imports                   []string
	GoFiles                   []string
	TestGoFiles, XTestGoFiles []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Name,Imports,GoFiles,TestGoFiles,XTestGoFiles", module+"...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var list []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); err == io.EOF {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

func TestImportsGoDownOnly(t *testing.T) {
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		allowed, known := floors[name]
		if !known && strings.HasPrefix(name, "pkg/middleware/") {
			allowed, known = floors["pkg/middleware/*"], true
		}
		if !known {
			t.Errorf("%s is not on the floor plan: add it to floors here and to ARCHITECTURE.md", name)
			continue
		}
		for _, imp := range p.Imports {
			ours, ok := strings.CutPrefix(imp, module)
			if !ok {
				continue
			}
			if ours == "pkg/parts" {
				t.Errorf("%s imports pkg/parts, which is for tests only", name)
			}
			if !slices.ContainsFunc(allowed, func(a string) bool {
				prefix, wild := strings.CutSuffix(a, "*")
				return a == ours || wild && strings.HasPrefix(ours, prefix)
			}) {
				t.Errorf("%s imports %s; its floor allows %v", name, ours, allowed)
			}
		}
	}
}

func TestOneDoorPerLibrary(t *testing.T) {
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			for library, door := range doors {
				if (imp == library || strings.HasPrefix(imp, library+"/")) && !slices.Contains(door, name) {
					t.Errorf("%s imports %s; only %v may", name, imp, door)
				}
			}
		}
	}
}

// goAllowed are the packages whose methods may start goroutines; each joins
// what it starts.
var goAllowed = map[string]string{
	"cmd/proconsul":            "signals, for the life of the process",
	"pkg/app":                  "lifetime",
	"pkg/demo":                 "lifetime",
	"pkg/echo":                 "Run",
	"pkg/parts":                "waits for processes, and load",
	"pkg/limiter":              "Run, and the workers of a pipeline",
	"pkg/breaker":              "abandoned attempts are closed late",
	"pkg/proxy":                "the two directions of an upgraded connection",
	"pkg/transport":            "uploads, which end with their request or its connection",
	"pkg/front":                "one for each connection, which Shutdown and Close end",
	"pkg/admin":                "Run",
	"pkg/middleware/accesslog": "Run",
	"balancer":                 "Run",
	"config":                   "Watch",
	"consul":                   "Run",
	"consul/devcatalog":        "Run",
	"tools/bench":              "waits for processes",
}

var banned = regexp.MustCompile(`(Manager|Helper|Impl|Util|Utils)$`)

func TestHouseRules(t *testing.T) {
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		docs := 0
		for _, file := range p.GoFiles {
			path := filepath.Join(p.Dir, file)
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, path, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil {
				docs++
			}
			switch strings.TrimSuffix(file, ".go") {
			case "types", "utils", "util", "common", "helpers", "helper", "misc":
				t.Errorf("%s/%s: name the file by its concept", name, file)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				at := func() string { return name + "/" + filepath.Base(set.Position(n.Pos()).String()) }
				switch n := n.(type) {
				case *ast.GoStmt:
					if goAllowed[name] == "" {
						t.Errorf("%s starts a goroutine; only %v may", at(), goAllowed)
					}
				case *ast.FuncDecl:
					if n.Recv == nil && n.Name.Name == "init" {
						t.Errorf("%s: no init functions; pkg/app wires", at())
					}
					if ast.IsExported(n.Name.Name) && exportedReceiver(n) && n.Doc == nil && p.Name != "main" && !wellKnown[n.Name.Name] {
						t.Errorf("%s: %s has no doc comment", at(), n.Name.Name)
					}
				case *ast.TypeSpec:
					if banned.MatchString(n.Name.Name) {
						t.Errorf("%s: %s: say what it is", at(), n.Name.Name)
					}
				case *ast.CallExpr:
					if s, ok := n.Fun.(*ast.SelectorExpr); ok {
						if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" && s.Sel.Name == "Sleep" && name != "pkg/parts" {
							t.Errorf("%s sleeps: wait on the context and a timer", at())
						}
						if x, ok := s.X.(*ast.Ident); ok && x.Name == "http" && s.Sel.Name == "Error" && gatewayAnswers(name) {
							t.Errorf("%s calls http.Error: problem.Write is the one writer", at())
						}
					}
				}
				return true
			})
		}
		if len(p.GoFiles) > 0 && docs != 1 {
			t.Errorf("%s has %d package comments, want one", name, docs)
		}
	}
}

// gatewayAnswers reports whether a package answers on behalf of the gateway:
// the sample service and the embedded catalog are other servers.
func gatewayAnswers(name string) bool { return name != "pkg/echo" && name != "consul/devcatalog" }

// wellKnown are methods whose meaning is that of the interface they satisfy.
var wellKnown = map[string]bool{"Error": true, "Unwrap": true, "String": true}

func exportedReceiver(f *ast.FuncDecl) bool {
	if f.Recv == nil {
		return true
	}
	typ := f.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}
