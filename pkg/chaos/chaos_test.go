package chaos_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/chaos"
)

func TestReportReplacesItsTableOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.md")
	text := "# Head\n<!-- table: written by make chaos, do not edit -->\nold\n<!-- end of the table -->\ntail\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	rows := []chaos.Row{
		{Scenario: "a", Fault: "kill | SIGKILL", Sent: 3, OK: 2, Failed: map[string]int{"POST 502 upstream_reset": 1}, Retried: 4, Longest: 1500 * time.Millisecond},
		{Scenario: "b", Sent: 1, OK: 1, Recovery: 12 * time.Second, Note: "n"},
	}
	for range 2 { // writing twice is writing once
		if err := chaos.Write(path, "about", rows); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got := string(b)
	for _, want := range []string{"# Head\n", "\nabout\n", "| a | kill \\| SIGKILL | 3 | 1× POST 502 upstream_reset | 4 | 1500 ms | - |  |\n", "| 12.0 s | n |\n", "\ntail\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "old") || strings.Count(got, "| a |") != 1 {
		t.Errorf("not replaced:\n%s", got)
	}
	if err := chaos.Write(filepath.Join(t.TempDir(), "none"), "", nil); err == nil {
		t.Error("a document that is not there is no error")
	}
}
