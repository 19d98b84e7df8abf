package app_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/pkg/problem"
)

func TestEveryReasonIsDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range problem.Reasons() {
		row := fmt.Sprintf("| <a id=%q></a>`%s` | %d", string(r), r, problem.New(r, "", nil).Code())
		if !strings.Contains(string(b), row) {
			t.Errorf("docs/errors.md has no row that starts with %s", row)
		}
	}
}
