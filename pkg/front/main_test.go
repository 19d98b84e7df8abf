package front_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(loadVariable); spec != "" {
		load(spec)
		return
	}
	goleak.VerifyTestMain(m)
}
