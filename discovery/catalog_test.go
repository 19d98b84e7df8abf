package discovery_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/discovery"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// snapshot has one instance whose weight tells it apart.
func snapshot(index uint64, weight int) discovery.Snapshot {
	return discovery.Snapshot{Service: "orders", Index: index,
		Instances: []discovery.Instance{{ID: "n1/orders", Status: discovery.StatusPassing, Weight: weight}}}
}

// seen subscribes and returns where the weights of what came are kept.
func seen(c *discovery.Catalog, key string) *[]int {
	var got []int
	c.Subscribe(key, func(s discovery.Snapshot) {
		if len(s.Instances) == 0 {
			got = append(got, 0)
			return
		}
		got = append(got, s.Instances[0].Weight)
	})
	return &got
}

func TestErrorKeepsTheLastGoodSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := discovery.NewCatalog()
		got := seen(c, "orders")
		c.Apply("orders", snapshot(1, 5))
		applied := time.Now()
		time.Sleep(time.Minute)
		if !c.Stale("orders", errors.New("connection refused")) {
			t.Error("the first failure is not told from later ones")
		}
		since := time.Now()
		time.Sleep(time.Minute)
		if c.Stale("orders", errors.New("no leader")) {
			t.Error("a later failure is told as the first")
		}

		s := c.State("orders")
		if len(s.Snapshot.Instances) != 1 || !s.Loaded || !s.Stale() {
			t.Errorf("after an error: %+v", s)
		}
		if !s.FreshAt.Equal(applied) || !s.StaleSince.Equal(since) || s.Err != "no leader" {
			t.Errorf("fresh at %v, stale since %v by %q; want %v, %v, no leader", s.FreshAt, s.StaleSince, s.Err, applied, since)
		}
		if !slices.Equal(*got, []int{5}) {
			t.Errorf("subscriber saw %v, want the one snapshot", *got)
		}

		c.Fresh("orders")
		if s = c.State("orders"); s.Stale() || s.Err != "" || !s.FreshAt.Equal(time.Now()) {
			t.Errorf("after the source confirmed it: %+v", s)
		}
		if !c.Stale("orders", errors.New("again")) {
			t.Error("a failure after a recovery is not the first")
		}
		if c.Apply("orders", snapshot(2, 5)) || c.State("orders").Stale() {
			t.Error("an equal answer changes something, or leaves it stale")
		}
	})
}

func TestSubscribersSeeChangesOnly(t *testing.T) {
	c := discovery.NewCatalog()
	early := seen(c, "orders")
	other := seen(c, "users")
	for i, w := range []int{1, 1, 2, 2, 1} {
		changed := c.Apply("orders", snapshot(uint64(i+1), w))
		if want := i == 0 || i == 2 || i == 4; changed != want {
			t.Errorf("answer %d changed %v, want %v", i, changed, want)
		}
	}
	late := seen(c, "orders")
	c.Apply("orders", discovery.Snapshot{Service: "orders", Index: 9}) // an answer may empty it
	if want := []int{1, 2, 1, 0}; !slices.Equal(*early, want) {
		t.Errorf("saw %v, want %v", *early, want)
	}
	if want := []int{1, 0}; !slices.Equal(*late, want) {
		t.Errorf("a late subscriber saw %v, want %v", *late, want)
	}
	if len(*other) != 0 {
		t.Errorf("another key's subscriber saw %v", *other)
	}
	if s := c.State("orders"); s.Snapshot.Index != 9 {
		t.Errorf("index %d, want 9", s.Snapshot.Index)
	}
}

func TestEmptyFirstAnswerIsTold(t *testing.T) {
	c := discovery.NewCatalog()
	got := seen(c, "orders")
	if !c.Apply("orders", discovery.Snapshot{Service: "orders", Index: 1}) || len(*got) != 1 {
		t.Error("nobody is told that there are no instances")
	}
}

func TestCancelEndsASubscription(t *testing.T) {
	c := discovery.NewCatalog()
	n := 0
	cancel := c.Subscribe("orders", func(discovery.Snapshot) { n++ })
	kept := seen(c, "orders")
	c.Apply("orders", snapshot(1, 1))
	cancel()
	cancel()
	c.Apply("orders", snapshot(2, 2))
	if n != 1 || len(*kept) != 2 {
		t.Errorf("cancelled saw %d, the other %d snapshots; want 1 and 2", n, len(*kept))
	}
}

func TestWarmStart(t *testing.T) {
	c := discovery.NewCatalog()
	got := seen(c, "orders")
	saved := time.Now().Add(-time.Hour)
	if !c.ApplyWarm("orders", snapshot(7, 3), saved) {
		t.Fatal("an empty catalog refuses a saved snapshot")
	}
	s := c.State("orders")
	if !s.Loaded || !s.Warm || !s.Stale() || !s.FreshAt.Equal(saved) || s.Err == "" {
		t.Errorf("state %+v", s)
	}
	if c.Fresh("orders"); !c.State("orders").Stale() {
		t.Error("a saved snapshot is fresh without an answer")
	}
	if c.Stale("orders", errors.New("connection refused")) {
		t.Error("it was stale from the start")
	}
	if c.Apply("orders", snapshot(9, 3)) {
		t.Error("an answer that confirms it changes the instances")
	}
	if s = c.State("orders"); s.Warm || s.Stale() || s.Snapshot.Index != 9 {
		t.Errorf("after an answer: %+v", s)
	}
	if c.ApplyWarm("orders", snapshot(7, 8), saved) || c.State("orders").Snapshot.Instances[0].Weight != 3 {
		t.Error("a saved snapshot replaced an answer")
	}
	if !slices.Equal(*got, []int{3}) {
		t.Errorf("subscriber saw %v, want one snapshot", *got)
	}
}

func TestStates(t *testing.T) {
	c := discovery.NewCatalog()
	if s := c.State("nobody"); s.Key != "nobody" || s.Loaded || s.Stale() {
		t.Errorf("an unknown key has the state %+v", s)
	}
	if len(c.States()) != 0 {
		t.Error("asking for a state makes one")
	}
	c.Apply("users", snapshot(1, 1))
	c.Stale("carts", errors.New("refused"))
	c.Apply("orders", snapshot(1, 1))
	var keys []string
	for _, s := range c.States() {
		keys = append(keys, fmt.Sprint(s.Key, " ", s.Loaded))
	}
	if want := []string{"carts false", "orders true", "users true"}; !slices.Equal(keys, want) {
		t.Errorf("states %q, want %q", keys, want)
	}
	c.Forget("orders")
	if c.State("orders").Loaded || len(c.States()) != 2 {
		t.Error("a forgotten key is still known")
	}
}

// However answers, errors and subscriptions mix, every subscriber ends with the
// last snapshot, saw only later ones after earlier ones, and nothing but an
// answer took an instance away.
func TestSubscribersSeeSnapshotsInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := discovery.NewCatalog()
		answers := rapid.IntRange(1, 40).Draw(t, "answers")
		subscribers := rapid.IntRange(1, 4).Draw(t, "subscribers")
		var mu sync.Mutex
		logs := make([][]int, subscribers)
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range answers {
				c.Apply("orders", snapshot(uint64(i+1), i+1))
				c.Stale("orders", errors.New("refused"))
				c.Fresh("orders")
			}
		})
		for i := range subscribers {
			wg.Go(func() {
				c.Subscribe("orders", func(s discovery.Snapshot) {
					mu.Lock()
					defer mu.Unlock()
					logs[i] = append(logs[i], s.Instances[0].Weight)
				})
				c.States()
			})
		}
		wg.Wait()
		for i, log := range logs {
			if !slices.IsSorted(log) || len(log) == 0 || log[len(log)-1] != answers {
				t.Fatalf("subscriber %d saw %v of %d", i, log, answers)
			}
			for j := 1; j < len(log); j++ {
				if log[j] != log[j-1]+1 {
					t.Fatalf("subscriber %d missed one: %v", i, log)
				}
			}
		}
	})
}
