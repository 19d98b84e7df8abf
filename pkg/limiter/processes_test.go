package limiter_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/parts"
)

const hammerAt = "PROCONSUL_TEST_HAMMER_REDIS"

// hammerWindow is what the processes' limit counts in.
const hammerWindow = 2 * time.Second

// hammerProcess is a process of two replicas with nine callers and one. It
// prints when each request was admitted, by the machine's clock.
func hammerProcess(t *testing.T, addr string) {
	ls := []*limiter.Limiter{start(t, limiter.Options{Redis: redisAt(addr)}), start(t, limiter.Options{Redis: redisAt(addr)})}
	parts.Eventually(t, 10*time.Second, "the replicas do not know each other", func() bool { return ls[0].State().Replicas == 4 && ls[1].State().Replicas == 4 })
	p := policy(t, limiter.Settings{Name: "r", Limits: []limiter.Limit{sliding(1000, hammerWindow)}, Precision: limiter.Leased})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	began := time.Now().UnixNano()
	h := hit(ctx, p, ls, []int{9, 1}, time.Millisecond)
	fmt.Printf("decided %d calls %d\n", h.sources[limiter.Store], ls[0].State().Calls+ls[1].State().Calls)
	for _, at := range h.admitted {
		fmt.Printf("admitted %d\n", began+int64(at))
	}
}

// Two processes of two replicas each, with nine times the load on one of each,
// never admit more than the limit in any window, and all of it.
func TestProcessesShareOneLimit(t *testing.T) {
	if addr := os.Getenv(hammerAt); addr != "" {
		hammerProcess(t, addr)
		return
	}
	t.Parallel()
	r := parts.StartRedis(t)
	all := &hammer{}
	outputs := make(chan string, 2)
	for range 2 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProcessesShareOneLimit$")
		cmd.Env = append(os.Environ(), hammerAt+"="+r.Addr)
		go func() {
			out, err := cmd.CombinedOutput()
			if err != nil {
				out = append(out, err.Error()...)
			}
			outputs <- string(out)
		}()
	}
	var decided, calls int64
	for range 2 {
		out := <-outputs
		if !strings.Contains(out, "PASS") {
			t.Fatal(out)
		}
		lines := bufio.NewScanner(strings.NewReader(out))
		for lines.Scan() {
			var at, d, c int64
			if _, err := fmt.Sscanf(lines.Text(), "admitted %d", &at); err == nil {
				all.admitted = append(all.admitted, time.Duration(at))
			} else if _, err := fmt.Sscanf(lines.Text(), "decided %d calls %d", &d, &c); err == nil {
				decided, calls = decided+d, calls+c
			}
		}
	}
	slices.Sort(all.admitted)
	most := all.most(hammerWindow)
	t.Logf("%d admitted, most %d of 1000 within %v, %d decisions in %d calls (%.4f each)", len(all.admitted), most, hammerWindow, decided, calls, float64(calls)/float64(decided))
	if most > 1000 || most < 950 {
		t.Errorf("%d admitted within %v", most, hammerWindow)
	}
}
