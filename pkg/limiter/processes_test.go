package limiter_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/limiter"
	"github.com/proconsul/proconsul/pkg/parts"
)

const (
	hammerAt     = "PROCONSUL_TEST_HAMMER_REDIS"
	hammerOf     = "PROCONSUL_TEST_HAMMER_PROCESSES"
	hammerNumber = "PROCONSUL_TEST_HAMMER_NUMBER"

	hammerWindow = 2 * time.Second
	hammerCount  = 200
	hammerBurst  = 50
)

// hammerLimits are what the processes are limited by, with both precisions.
var hammerLimits = []limiter.Limit{
	sliding(hammerCount, hammerWindow),
	{Count: hammerCount, Window: hammerWindow, Algorithm: limiter.FixedWindow},
	{Count: hammerCount, Window: hammerWindow, Algorithm: limiter.TokenBucket, Burst: hammerBurst},
}

var precisions = []limiter.Precision{limiter.Exact, limiter.Leased}

// skewOf is how wrong a process's wall clock is.
func skewOf(number int) time.Duration {
	return []time.Duration{10 * time.Second, -10 * time.Second, 0, 3 * time.Second, -7 * time.Second}[number]
}

// hammerProcess is one replica, the first with four times the load of the
// others. It prints between which two moments each request was admitted, by the
// machine's clock, which all processes share.
func hammerProcess(t *testing.T, addr string) {
	of, _ := strconv.Atoi(os.Getenv(hammerOf))
	number, _ := strconv.Atoi(os.Getenv(hammerNumber))
	l, err := limiter.New(limiter.Options{Redis: redisAt(addr)})
	if err != nil {
		t.Fatal(err)
	}
	l.Skew(skewOf(number))
	run(t, l)
	parts.Eventually(t, 30*time.Second, "the replicas do not know each other", func() bool { return l.State().Replicas == of })
	callers := 1
	if number == 0 {
		callers = 4
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	decided, alone := 0, 0
	for i, limit := range hammerLimits {
		for _, precision := range precisions {
			p := policy(t, limiter.Settings{Name: fmt.Sprint(i, precision), Limits: []limiter.Limit{limit}, Precision: precision})
			for range callers {
				wg.Go(func() {
					var lines strings.Builder
					n, local := 0, 0
					for began := time.Now(); time.Since(began) < 5*time.Second; <-time.After(4 * time.Millisecond) {
						before := time.Now()
						d := l.Take(t.Context(), p, "k", 1)
						after := time.Now()
						if n++; d.Source != limiter.Store {
							local++
						}
						if d.Allowed {
							fmt.Fprintf(&lines, "admitted %d %d %d %d\n", i, precision, before.UnixMicro(), after.UnixMicro())
						}
					}
					mu.Lock()
					defer mu.Unlock()
					decided, alone = decided+n, alone+local
					fmt.Print(lines.String())
				})
			}
		}
	}
	wg.Wait()
	fmt.Printf("decided %d alone %d calls %d\n", decided, alone, l.State().Calls)
}

// spent is a token that was spent at some moment from..to.
type spent struct{ from, to int64 }

// surely returns how many were surely spent within the fullest interval of that
// length, and how many were there perhaps.
func surely(all []spent, length time.Duration) (surely, perhaps int) {
	for _, first := range all {
		in, touching := 0, 0
		for _, s := range all {
			if s.from >= first.from && s.to <= first.from+length.Microseconds() {
				in++
			}
			if s.to >= first.to && s.from <= first.to+length.Microseconds() {
				touching++
			}
		}
		surely, perhaps = max(surely, in), max(perhaps, touching)
	}
	return surely, perhaps
}

// Two and five processes, whose clocks are up to ten seconds wrong, with most of
// the load on one, never admit more than the bound of each algorithm in any
// window, and nearly all of it where it is asked for.
func TestProcessesShareOneLimit(t *testing.T) {
	if addr := os.Getenv(hammerAt); addr != "" {
		hammerProcess(t, addr)
		return
	}
	for _, of := range []int{2, 5} {
		t.Run(fmt.Sprint(of), func(t *testing.T) {
			t.Parallel()
			r := parts.StartRedis(t)
			outputs := make(chan string, of)
			for number := range of {
				cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProcessesShareOneLimit$")
				cmd.Env = append(os.Environ(), hammerAt+"="+r.Addr, hammerOf+"="+strconv.Itoa(of), hammerNumber+"="+strconv.Itoa(number))
				go func() {
					out, err := cmd.CombinedOutput()
					if err != nil {
						out = append(out, err.Error()...)
					}
					outputs <- string(out)
				}()
			}
			var all [3][2][]spent
			var decided, alone, calls int64
			for range of {
				out := <-outputs
				if !strings.Contains(out, "PASS") {
					t.Fatal(out)
				}
				lines := bufio.NewScanner(strings.NewReader(out))
				for lines.Scan() {
					var i, p int
					var s spent
					var d, a, c int64
					if _, err := fmt.Sscanf(lines.Text(), "admitted %d %d %d %d", &i, &p, &s.from, &s.to); err == nil {
						all[i][p] = append(all[i][p], s)
					} else if _, err := fmt.Sscanf(lines.Text(), "decided %d alone %d calls %d", &d, &a, &c); err == nil {
						decided, alone, calls = decided+d, alone+a, calls+c
					}
				}
			}
			t.Logf("%d decisions in %d calls (%.4f each), %d without redis", decided, calls, float64(calls)/float64(decided), alone)
			if alone > 0 {
				t.Fatalf("%d decisions were made without redis: the figures say nothing", alone)
			}
			for i, limit := range hammerLimits {
				for p := range precisions {
					name := fmt.Sprintf("%v, precision %d", limit.Algorithm, p)
					list := all[i][p]
					slices.SortFunc(list, func(a, b spent) int { return int(a.to - b.to) })
					sure, perhaps := surely(list, hammerWindow)
					bound := hammerCount
					switch limit.Algorithm {
					case limiter.TokenBucket:
						// Burst, refill, and the life of a lease: 1/32 of the window.
						bound = hammerBurst + hammerCount + hammerCount/32 + 1
					case limiter.FixedWindow:
						windows := map[int64]int{}
						for _, s := range list {
							if w := s.from / hammerWindow.Microseconds(); w == s.to/hammerWindow.Microseconds() {
								windows[w]++
							}
						}
						sure = 0
						for _, n := range windows {
							sure = max(sure, n)
						}
					}
					t.Logf("%s: %d admitted, most within %v: %d (bound %d)", name, len(list), hammerWindow, sure, bound)
					if sure > bound {
						t.Errorf("%s: %d admitted within %v, the bound is %d", name, sure, hammerWindow, bound)
					}
					if float64(perhaps) < 0.97*hammerCount || precisions[p] == limiter.Exact && perhaps < hammerCount {
						t.Errorf("%s: no more than %d of %d admitted within %v", name, perhaps, hammerCount, hammerWindow)
					}
				}
			}
		})
	}
}
