package limiter

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/pkg/parts"
)

// errViolated ends a game that has shown what it should.
var errViolated = errors.New("violated")

// violates plays with a script and reports whether a rule was broken that the
// properties hold it against.
func violates(seed int, script *redis.Script, client redis.UniversalClient, mini *miniredis.Miniredis) (broken string) {
	rapid.Custom(func(rt *rapid.T) int {
		defer func() {
			if r := recover(); r != nil && r != any(errViolated) {
				panic(r)
			}
		}()
		l := drawLimit(rt, SlidingWindow, "limit")
		w := newWorld(rt, Settings{Name: "p", Limits: []Limit{l}}, script, client, mini, seed)
		w.fail = func(format string, args ...any) {
			broken = fmt.Sprintf(format, args...)
			panic(errViolated)
		}
		w.play(60, l.Window.Microseconds())
		if got := w.most(l.Window.Microseconds()); got > int64(l.Count) {
			broken = fmt.Sprintf("%d spent within %v, the limit is %d", got, l.Window, l.Count)
		}
		return 0
	}).Example(seed)
	return broken
}

// Each rule that keeps the limiter safe is one that the properties check: a
// script without it breaks them, the script itself never does.
func TestTheSafetyRulesAreChecked(t *testing.T) {
	mini := miniredis.RunT(t)
	embedded := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	defer embedded.Close()
	real := redis.NewClient(&redis.Options{Addr: parts.StartRedis(t).Addr})
	defer real.Close()
	const seeds = 300
	for name, m := range map[string]struct {
		from, to string
		client   *redis.Client
		mini     *miniredis.Miniredis // where the life of keys is to be seen
	}{
		"a lease is charged where it expires":   {"b = floor((now + ttl) / unit[w])", "b = floor(now / unit[w])", real, nil},
		"a window is as many buckets as it is":  {"local key, N = KEYS[1], 32", "local key, N = KEYS[1], 31", real, nil},
		"what goes back goes back once":         {"call('HINCRBY', key, f, -amount)", "call('HINCRBY', key, f, -amount); if have - amount >= amount then call('HINCRBY', key, f, -amount) end", real, nil},
		"a key outlives what is charged ahead":  {"call('PEXPIRE', key, life)", "call('PEXPIRE', key, life - tau / 1000)", embedded, mini},
		"what goes back is of this incarnation": {"local same = call('HGET', key, 'b') == ARGV[at]", "local same = call('DEL', key) == 1", real, nil},
		"the buckets ahead of now count":        {"b >= cur[w] - N)", "b >= cur[w] - N and b <= cur[w])", real, nil},
	} {
		if strings.Count(acquireLua, m.from) != 1 {
			t.Fatalf("%s: the script has %q %d times", name, m.from, strings.Count(acquireLua, m.from))
		}
		good, bad := redis.NewScript(acquireLua), redis.NewScript(strings.Replace(acquireLua, m.from, m.to, 1))
		found := ""
		n := 0
		for seed := 1; seed <= seeds && found == ""; seed++ {
			n = seed
			if broken := violates(seed, good, m.client, m.mini); broken != "" {
				t.Fatalf("the script itself: %s", broken)
			}
			m.client.FlushAll(t.Context())
			found = violates(seed, bad, m.client, m.mini)
			m.client.FlushAll(t.Context())
		}
		if found == "" {
			t.Errorf("%s: without it nothing is noticed in %d games", name, seeds)
			continue
		}
		t.Logf("%s: without it, in game %d: %s", name, n, found)
	}
}
