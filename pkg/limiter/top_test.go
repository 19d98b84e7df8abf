package limiter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/limiter"
)

// Who is limited most is known however many are limited, in bounded memory, and
// by a hash unless the policy says otherwise.
func TestTheMostLimitedOfMany(t *testing.T) {
	l := start(t, limiter.Options{})
	hidden := policy(t, limiter.Settings{Name: "hidden", Limits: []limiter.Limit{sliding(1, time.Hour)}})
	shown := policy(t, limiter.Settings{Name: "shown", Limits: []limiter.Limit{sliding(1, time.Hour)}, ShowKeys: true})
	denied := map[string]int64{}
	for i := range 3000 {
		small := fmt.Sprintf("ip:192.0.%d.%d", i>>8, i&255)
		for range 2 {
			l.Take(t.Context(), hidden, small, 1)
		}
		for _, big := range []*limiter.Policy{hidden, shown} {
			if d := l.Take(t.Context(), big, "ip:203.0.113.9", 1); !d.Allowed {
				denied[big.Name()]++
			}
		}
	}
	all := l.Top(100_000)
	if len(all) > 512 {
		t.Errorf("%d are kept", len(all))
	}
	seen := 0
	for _, top := range all[:2] {
		if top.Denied < denied[top.Policy] || top.Denied-top.Error > denied[top.Policy] {
			t.Errorf("%s: %d denied, %d of it perhaps not, want %d", top.Policy, top.Denied, top.Error, denied[top.Policy])
		}
		switch {
		case top.Policy == "shown" && top.Key == "ip:203.0.113.9",
			top.Policy == "hidden" && strings.HasPrefix(top.Key, "rl:{") && !strings.Contains(top.Key, "203"):
			seen++
		default:
			t.Errorf("%+v", top)
		}
	}
	if seen != 2 {
		t.Errorf("the most limited are %+v", all[:2])
	}
	if got := l.Top(1); len(got) != 1 || got[0].Denied != all[0].Denied {
		t.Errorf("the most limited one is %+v", got)
	}
}
