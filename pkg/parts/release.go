package parts

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// BuildRelease builds ./cmd/... into dir as it is shipped, without the race
// detector, for tests that need the speed.
func BuildRelease(dir string) (Binaries, error) {
	cmd := exec.Command("go", "build", "-trimpath", "-o", dir+string(filepath.Separator), module+"/cmd/...")
	if out, err := cmd.CombinedOutput(); err != nil {
		return Binaries{}, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return Binaries{dir: dir}, nil
}
