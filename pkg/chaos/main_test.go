package chaos_test

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/chaos"
	"github.com/proconsul/proconsul/pkg/parts"
)

var (
	full   = flag.Bool("full", false, "the whole matrix at full rate, one scenario after the other, without the race detector in the processes")
	report = flag.String("report", "", "document whose table is replaced")
)

// binaries are the commands under test.
var binaries parts.Binaries

// table collects what the scenarios found, in their order.
var table struct {
	sync.Mutex
	rows map[int]chaos.Row
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "proconsul-chaos")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	build := parts.Build
	if *full {
		build = parts.BuildRelease
	}
	if binaries, err = build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	table.rows = map[int]chaos.Row{}
	code := m.Run()
	if *report == "" || code != 0 {
		return code
	}
	var rows []chaos.Row
	for i := range scenarios {
		if row, ok := table.rows[i]; ok {
			rows = append(rows, row)
		}
	}
	about := fmt.Sprintf("%d scenarios at %d requests a second, %s, %s on %d cores, %s.", len(rows), rate(),
		time.Now().UTC().Format("2006-01-02"), runtime.Version(), runtime.NumCPU(), runtime.GOARCH)
	if err := chaos.Write(*report, about, rows); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// rate is requests a second of a scenario. The short pass runs two scenarios
// at a time with the race detector in every process, beside other packages.
func rate() int {
	if *full {
		return 500
	}
	return 100
}
