package limiter

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/pkg/parts"
)

// world runs acquire.lua, or the account of a limiter without a store, under a
// clock that the test moves, and keeps every spend to check the bounds
// afterwards.
type world struct {
	t      *rapid.T
	fail   func(format string, args ...any)
	client redis.UniversalClient // nil: the own account
	own    *entry
	mini   *miniredis.Miniredis // nil: a real Redis, told the time by argument
	script *redis.Script
	l      *Limiter
	p      *Policy
	key    string
	now    int64 // µs

	leases []*holding
	spends []spend
}

// holding is a lease in the hands of a model replica that spends as late as it may.
type holding struct {
	left, from, expires int64
	birth               string
	fields              [MaxLimits]string
}

type spend struct{ at, n int64 }

func (w *world) advance(d int64) {
	w.now += d
	if w.mini != nil {
		w.mini.FastForward(time.Duration(d) * time.Microsecond)
		w.mini.SetTime(time.UnixMicro(w.now))
	}
}

func (w *world) call(o *op) reply {
	o.policy = w.p
	if w.client == nil {
		return w.callOwn(o)
	}
	args := o.args(w.l, w.now)
	if w.mini == nil {
		// Its own clock must not end keys: this machine may be slow.
		args[0], args[7] = w.now, 3_600_000
	}
	raw, err := w.script.Run(context.Background(), w.client, []string{w.key}, args...).Result()
	r, err := o.parse(raw, err)
	if err != nil {
		w.t.Fatal(err)
	}
	w.checkLife()
	return r
}

// callOwn does what a call does by the own account, which grants what callers
// wait for and nothing ahead, to be spent at once.
func (w *world) callOwn(o *op) (r reply) {
	now := instant{w.now, w.now}
	if w.own == nil {
		w.own = &entry{policy: w.p, tallies: make([]tally, len(w.p.specs)), div: 1}
	}
	for _, back := range o.refunds {
		var i int
		var at int64
		if _, err := fmt.Sscanf(back.field, "%d at %d", &i, &at); err != nil {
			w.t.Fatal(err)
		}
		w.own.tallies[i].back(&w.p.specs[i], now, instant{at, at}, back.amount, 1, false, false)
	}
	r.now, r.birth = w.now, "own"
	if o.sync == 0 {
		return r
	}
	var d Decision
	w.own.takeOwn(w.p, now, o.sync, Own, whole, 1, &d)
	if r.retry = d.RetryAfter.Microseconds(); d.Allowed {
		r.granted = o.sync
		for i := range w.p.specs {
			r.fields[i] = fmt.Sprintf("%d at %d", i, w.now)
		}
	}
	return r
}

// state is what is known of the identity.
func (w *world) state() string {
	if w.client != nil {
		return fmt.Sprint(w.client.HGetAll(context.Background(), w.key).Val())
	}
	var used []any
	for i := range w.own.tallies {
		used = append(used, w.own.tallies[i].slots, w.own.tallies[i].level)
	}
	return fmt.Sprint(used...)
}

// checkLife asserts that the key outlives everything that it holds.
func (w *world) checkLife() {
	if w.mini == nil || !w.mini.Exists(w.key) {
		return
	}
	fields, err := w.mini.DB(0).HKeys(w.key)
	if err != nil {
		w.t.Fatal(err)
	}
	ends := w.now + w.mini.TTL(w.key).Microseconds()
	for _, f := range fields {
		if f == "b" {
			continue
		}
		id, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			w.t.Fatal(err)
		}
		s := &w.p.specs[id%8]
		dies := int64(0)
		switch s.kind {
		case 'S':
			dies = (id/8 + buckets + 1) * s.step
		case 'F':
			dies = (id/8 + 1) * s.step
		case 'T':
			tat, _ := strconv.ParseInt(w.mini.HGet(w.key, f), 10, 64)
			dies = tat
		}
		if dies > ends {
			w.fail("field %s counts until %d, its key ends at %d", f, dies, ends)
		}
	}
}

// spend uses n tokens of a grant at a moment.
func (w *world) spend(g *holding, at, n int64) {
	if n > 0 {
		g.left -= n
		w.spends = append(w.spends, spend{at, n})
	}
}

// most returns the largest number of tokens spent in any closed interval of
// that length.
func (w *world) most(length int64) int64 {
	slices.SortFunc(w.spends, func(a, b spend) int { return int(a.at - b.at) })
	var sum, most int64
	from := 0
	for _, s := range w.spends {
		sum += s.n
		for w.spends[from].at < s.at-length {
			sum -= w.spends[from].n
			from++
		}
		most = max(most, sum)
	}
	return most
}

// play lets model replicas acquire, spend at any moment up to the last
// instant of a lease, and give back.
func (w *world) play(steps int, window int64) {
	t := w.t
	if w.mini != nil {
		steps /= 6 // its Lua is slow
	}
	greedy := rapid.Bool().Draw(t, "greedy")
	for range steps {
		switch rapid.IntRange(0, 9).Draw(t, "what") {
		case 0, 1, 2:
			w.advance(rapid.Int64Range(0, window/20).Draw(t, "short"))
		case 3:
			w.advance(rapid.Int64Range(0, window).Draw(t, "long"))
		case 4, 5, 6, 7:
			sync := rapid.Int64Range(0, max(1, w.p.least/3)).Draw(t, "sync")
			o := &op{sync: sync, share: rapid.Int64Range(1, 8).Draw(t, "share")}
			if sync > 0 {
				o.need = rapid.Int64Range(1, sync).Draw(t, "need")
			}
			o.want = sync + rapid.Int64Range(0, w.p.least).Draw(t, "ahead")
			sent := w.now
			r := w.call(o)
			if r.granted > o.want {
				t.Fatalf("granted %d, wanted %d", r.granted, o.want)
			}
			if r.granted == 0 && o.need > 0 && r.retry < 1 {
				t.Fatalf("denied without a retry: %+v", r)
			}
			if r.granted == 0 && o.need > 0 && greedy {
				w.advance(r.retry) // and is back at the first moment
			}
			if r.granted > 0 {
				w.leases = append(w.leases, &holding{left: r.granted, from: sent, expires: sent + r.ttl, birth: r.birth, fields: r.fields})
			}
		default:
			if len(w.leases) == 0 {
				continue
			}
			i := rapid.IntRange(0, len(w.leases)-1).Draw(t, "lease")
			g := w.leases[i]
			// All that is spent, is spent between now and the last instant.
			if g.expires > w.now {
				at := g.expires - 1
				if rapid.Bool().Draw(t, "early") {
					at = rapid.Int64Range(w.now, g.expires-1).Draw(t, "at")
				}
				w.spend(g, at, rapid.Int64Range(0, g.left).Draw(t, "spent"))
				if rapid.Bool().Draw(t, "keep") {
					continue
				}
			}
			w.leases = slices.Delete(w.leases, i, i+1)
			e := &entry{policy: w.p, birth: g.birth}
			e.refund(&grant{w.p, g.birth, g.fields}, g.left, 0)
			w.call(&op{share: 2, refunds: e.refunds})
		}
	}
	for _, g := range w.leases { // the rest is spent at the last instant
		w.spend(g, max(g.expires-1, g.from), g.left)
	}
}

// worlds are the stores that the script's properties are checked on.
func worlds(t *testing.T, check func(t *testing.T, fresh func(*rapid.T, Settings) *world)) {
	script := redis.NewScript(acquireLua)
	make := func(rt *rapid.T, s Settings, client redis.UniversalClient, mini *miniredis.Miniredis, n int) *world {
		return newWorld(rt, s, script, client, mini, n)
	}
	t.Run("own", func(t *testing.T) {
		check(t, func(rt *rapid.T, s Settings) *world { return make(rt, s, nil, nil, 0) })
	})
	t.Run("cluster", func(t *testing.T) {
		_, addrs := StartCluster(t)
		client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs})
		defer client.Close()
		n := 0
		check(t, func(rt *rapid.T, s Settings) *world { n++; return make(rt, s, client, nil, n) })
	})
	t.Run("miniredis", func(t *testing.T) {
		mini := miniredis.RunT(t)
		client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
		defer client.Close()
		n := 0
		check(t, func(rt *rapid.T, s Settings) *world { n++; return make(rt, s, client, mini, n) })
	})
	t.Run("redis", func(t *testing.T) {
		client := redis.NewClient(&redis.Options{Addr: parts.StartRedis(t).Addr})
		defer client.Close()
		n := 0
		check(t, func(rt *rapid.T, s Settings) *world { n++; return make(rt, s, client, nil, n) })
	})
}

func newWorld(rt *rapid.T, s Settings, script *redis.Script, client redis.UniversalClient, mini *miniredis.Miniredis, n int) *world {
	p, err := NewPolicy(s)
	if err != nil {
		rt.Fatal(err)
	}
	w := &world{t: rt, fail: rt.Fatalf, client: client, mini: mini, script: script, p: p, key: fmt.Sprintf("k%d", n), now: 1_700_000_000_000_000,
		l: &Limiter{store: &store{timeout: 25 * time.Millisecond}}}
	if mini != nil {
		mini.SetTime(time.UnixMicro(w.now))
	}
	return w
}

func drawLimit(t *rapid.T, a Algorithm, name string) Limit {
	return Limit{
		Count:     rapid.IntRange(1, 300).Draw(t, name+" count"),
		Window:    time.Duration(rapid.IntRange(50, 5000).Draw(t, name+" window")) * time.Millisecond,
		Algorithm: a,
	}
}

// No interval of a window's length, wherever it begins, sees more spends than
// the limit: for one and two windows, any mix of leases and single tokens,
// spends at the last instant and refunds.
func TestSlidingWindowsAreNeverExceeded(t *testing.T) {
	worlds(t, func(t *testing.T, fresh func(*rapid.T, Settings) *world) {
		rapid.Check(t, func(rt *rapid.T) {
			s := Settings{Name: "p", Limits: []Limit{drawLimit(rt, SlidingWindow, "first")}}
			if rapid.Bool().Draw(rt, "two") {
				s.Limits = append(s.Limits, drawLimit(rt, SlidingWindow, "second"))
			}
			w := fresh(rt, s)
			w.play(60, s.Limits[0].Window.Microseconds())
			for _, l := range s.Limits {
				if got := w.most(l.Window.Microseconds()); got > int64(l.Count) {
					rt.Fatalf("%d spent within %v, the limit is %d", got, l.Window, l.Count)
				}
			}
		})
	})
}

// A token bucket admits no more than its burst and the refill of the time that
// passes, a lease's life included.
func TestTokenBucketsAreNeverExceeded(t *testing.T) {
	worlds(t, func(t *testing.T, fresh func(*rapid.T, Settings) *world) {
		rapid.Check(t, func(rt *rapid.T) {
			l := drawLimit(rt, TokenBucket, "bucket")
			l.Burst = rapid.IntRange(0, 400).Draw(rt, "burst")
			w := fresh(rt, Settings{Name: "p", Limits: []Limit{l}})
			w.play(60, l.Window.Microseconds())
			for _, length := range []int64{0, w.p.tau, l.Window.Microseconds() / 3, 2 * l.Window.Microseconds()} {
				bound := float64(w.p.least) + float64(length+max(w.p.tau, w.p.grace))/w.p.specs[0].unit
				if got := w.most(length); float64(got) > bound {
					rt.Fatalf("%d spent within %dus, the bound is %v", got, length, bound)
				}
			}
		})
	})
}

// A fixed window admits no more than its count, and no lease outlives it.
func TestFixedWindowsAreNeverExceeded(t *testing.T) {
	worlds(t, func(t *testing.T, fresh func(*rapid.T, Settings) *world) {
		rapid.Check(t, func(rt *rapid.T) {
			l := drawLimit(rt, FixedWindow, "window")
			w := fresh(rt, Settings{Name: "p", Limits: []Limit{l}})
			length := l.Window.Microseconds()
			w.l.store.timeout = 0 // tokens that are waited for are spent at once
			w.play(60, length)
			sums := map[int64]int64{}
			for _, s := range w.spends {
				sums[s.at/length] += s.n
			}
			for id, sum := range sums {
				if sum > int64(l.Count) {
					rt.Fatalf("%d spent in window %d, the limit is %d", sum, id, l.Count)
				}
			}
		})
	})
}

// A caller that waits exactly as long as it was told is granted, and would not
// have been a bucket earlier.
func TestRetryIsExact(t *testing.T) {
	worlds(t, func(t *testing.T, fresh func(*rapid.T, Settings) *world) {
		rapid.Check(t, func(rt *rapid.T) {
			var s Settings
			for i := range rapid.IntRange(1, 3).Draw(rt, "limits") {
				a := Algorithm(rapid.IntRange(0, 2).Draw(rt, "algorithm"))
				s.Limits = append(s.Limits, drawLimit(rt, a, fmt.Sprint(i)))
			}
			w := fresh(rt, s)
			for range 10 {
				n := rapid.Int64Range(1, w.p.least).Draw(rt, "n")
				o := &op{need: n, sync: n, want: n, share: 2}
				r := w.call(o)
				if r.granted == n {
					w.advance(rapid.Int64Range(0, s.Limits[0].Window.Microseconds()/8).Draw(rt, "pause"))
					continue
				}
				if r.granted != 0 || r.retry < 1 {
					rt.Fatalf("asked for %d: %+v", n, r)
				}
				w.advance(r.retry - 1)
				if early := w.call(o); early.granted != 0 && w.p.specs[0].kind != 'T' && len(w.p.specs) == 1 {
					rt.Fatalf("told to wait %dus, and granted a microsecond before", r.retry)
				} else if early.granted == 0 {
					w.advance(1)
					if again := w.call(o); again.granted != n {
						rt.Fatalf("waited %dus for %d as told: %+v, then %+v", r.retry, n, r, again)
					}
				}
			}
		})
	})
}

// A denial leaves the key as it was; a refund goes to the incarnation it came
// from alone.
func TestDenialsWriteNothingAndRefundsGoHome(t *testing.T) {
	worlds(t, func(t *testing.T, fresh func(*rapid.T, Settings) *world) {
		rapid.Check(t, func(rt *rapid.T) {
			w := fresh(rt, Settings{Name: "p", Limits: []Limit{{Count: 10, Window: time.Minute}}})
			first := w.call(&op{need: 4, sync: 4, want: 4, share: 2})
			w.call(&op{need: 6, sync: 6, want: 6, share: 2})
			before := w.state()
			for range 3 {
				if r := w.call(&op{need: 1, sync: 1, want: 1, share: 2}); r.granted != 0 {
					rt.Fatalf("granted %d of nothing", r.granted)
				}
			}
			if after := w.state(); after != before {
				rt.Fatalf("denials wrote: %v, before %v", after, before)
			}
			if w.client == nil {
				return // nothing is ever lost
			}
			w.client.Del(context.Background(), w.key)
			w.advance(1)
			w.call(&op{need: 10, sync: 10, want: 10, share: 2}) // the store has lost the first incarnation
			stale := []refund{{birth: first.birth, field: first.fields[0], amount: 4}}
			if r := w.call(&op{need: 1, sync: 1, want: 1, share: 2, refunds: stale}); r.granted != 0 {
				rt.Fatalf("a refund of lost tokens made %d new ones", r.granted)
			}
		})
	})
}
