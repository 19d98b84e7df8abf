package breaker_test

import (
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/pkg/breaker"
)

// The window is exact: at any time it holds what was counted in this second of
// its life and the nine before, nothing else and nothing twice.
func TestWindow(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		type event struct {
			second int
			failed bool
		}
		steps := rapid.SliceOfN(rapid.IntRange(0, 4000), 1, 60).Draw(rt, "milliseconds between")
		fails := rapid.SliceOfN(rapid.Bool(), len(steps), len(steps)).Draw(rt, "failed")
		synctest.Test(t, func(*testing.T) {
			w, start := breaker.NewWindow(), time.Now()
			var all []event
			for i, step := range steps {
				time.Sleep(time.Duration(step) * time.Millisecond)
				now := int(time.Since(start) / time.Second)
				want := func(when string) {
					var requests, errs int
					for _, e := range all {
						if e.second > now-10 {
							requests++
							if e.failed {
								errs++
							}
						}
					}
					if r, e := w.Sum(); r != requests || e != errs {
						rt.Fatalf("%s, after %v: %d errors of %d, want %d of %d", when, time.Since(start), e, r, errs, requests)
					}
				}
				want("before")
				all = append(all, event{now, fails[i]})
				w.Add(fails[i])
				want("with one more")
			}
			time.Sleep(11 * time.Second)
			if r, e := w.Sum(); r != 0 || e != 0 {
				rt.Fatalf("%d of %d left after eleven seconds", e, r)
			}
		})
	})
}
