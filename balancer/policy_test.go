package balancer_test

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/discovery"
)

func TestWeightedIsSmooth(t *testing.T) {
	cases := []struct {
		weights []int
		cycle   string
	}{
		{[]int{5, 1, 1}, "aabacaa"},
		{[]int{50, 10, 10}, "aabacaa"},
		{[]int{1, 2, 3}, "cbacbc"},
		{[]int{7, 7}, "ab"},
	}
	for _, c := range cases {
		var ins []discovery.Instance
		for i, w := range c.weights {
			ins = append(ins, instance(string(rune('a'+i)), weight(w)))
		}
		p := newPool(t, balancer.Options{Policy: balancer.Weighted}, ins...)
		var got strings.Builder
		for range 2 * len(c.cycle) {
			got.WriteString(pick(t, p, balancer.Success).ID())
		}
		// The start is random, so that replicas do not march in step.
		if !strings.Contains(strings.Repeat(c.cycle, 3), got.String()) {
			t.Errorf("weights %v gave %s, want %s over and over", c.weights, got.String(), c.cycle)
		}
	}
}

func TestRoundRobinIgnoresWeights(t *testing.T) {
	p := newPool(t, balancer.Options{Policy: balancer.RoundRobin}, instance("a", weight(9)), instance("b"), instance("c", weight(0)))
	if got := share(t, p, 10); got["a"] != 5 || got["b"] != 5 {
		t.Errorf("picked %v, want five each of a and b", got)
	}
}

func TestReplicasStartAtDifferentMembers(t *testing.T) {
	first := map[string]bool{}
	for range 200 {
		first[pick(t, newPool(t, balancer.Options{Policy: balancer.RoundRobin}, instances(4)...), balancer.Success).ID()] = true
	}
	if len(first) != 4 {
		t.Errorf("200 pools began at %v, want any of four", first)
	}
}

// Over any cycle of as many picks as the weights sum up to, every member has
// its weight, whichever way the policy spreads them.
func TestShareIsItsWeight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := rapid.SampledFrom([]string{balancer.RoundRobin, balancer.Weighted}).Draw(t, "policy")
		weights := rapid.OneOf(
			rapid.SliceOfN(rapid.IntRange(1, 10), 1, 20),
			rapid.SliceOfN(rapid.IntRange(1, 3000), 1, 30), // beyond a table
			rapid.SliceOfN(rapid.IntRange(1, 2), 600, 700),
		).Draw(t, "weights")
		var ins []discovery.Instance
		sum := 0
		for i, w := range weights {
			if policy == balancer.RoundRobin {
				w = 1
			}
			ins = append(ins, instance(fmt.Sprint(i), weight(weights[i])))
			sum += w
		}
		p, err := balancer.New("p", balancer.Options{Policy: policy})
		if err != nil {
			t.Fatal(err)
		}
		p.Set(snapshot(ins...))
		for range rapid.IntRange(0, 50).Draw(t, "skip") {
			k, _ := p.Pick()
			k.Done(balancer.Outcome{})
		}
		got := map[string]int{}
		for range sum {
			k, err := p.Pick()
			if err != nil {
				t.Fatal(err)
			}
			got[k.Member().ID()]++
			k.Done(balancer.Outcome{})
		}
		for i, w := range weights {
			if policy == balancer.RoundRobin {
				w = 1
			}
			if n := got[fmt.Sprint(i)]; n < w-1 || n > w+1 {
				t.Fatalf("member %d of weight %d has %d of %d picks", i, w, n, sum)
			}
		}
	})
}

// A member's picks are spread over the cycle, too: nobody has a long run or a
// long pause, with weights too large for a table.
func TestLargeWeightsAreSpread(t *testing.T) {
	var ins []discovery.Instance
	sum := 0
	for i := range 50 {
		w := 1000 + 997*i
		sum += w
		ins = append(ins, instance(fmt.Sprintf("i%02d", i), weight(w)))
	}
	p := newPool(t, balancer.Options{}, ins...)
	got := share(t, p, 5000)
	for _, in := range ins {
		want := 5000 * float64(in.Weight) / float64(sum)
		if n := float64(got[in.ID]); n < want-3 || n > want+3 {
			t.Errorf("%s has %v of 5000 picks, want about %.1f", in.ID, n, want)
		}
	}
}

func TestLeastRequestsAvoidsTheBusy(t *testing.T) {
	for _, n := range []int{3, 60} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			var ins []discovery.Instance
			for i := range n {
				ins = append(ins, instance(fmt.Sprintf("i%02d", i)))
			}
			p := newPool(t, balancer.Options{Policy: balancer.LeastRequests}, ins...)
			// The first instance never answers: what it is given stays.
			var slow []balancer.Pick
			for range 50 * n {
				k, err := p.Pick()
				if err != nil {
					t.Fatal(err)
				}
				if k.Member().ID() == "i00" {
					slow = append(slow, k)
					continue
				}
				k.Done(balancer.Outcome{})
			}
			if n == 3 && len(slow) > 1 || len(slow) > 5 {
				t.Errorf("the stuck instance of %d was given %d requests", n, len(slow))
			}
			for i := range slow {
				slow[i].Done(balancer.Outcome{Result: balancer.Timeout})
			}
		})
	}
}

func TestLeastRequestsKeepsToWeights(t *testing.T) {
	p := newPool(t, balancer.Options{Policy: balancer.LeastRequests}, instance("a", weight(4)), instance("b"))
	if got := share(t, p, 50); got["a"] != 40 {
		t.Errorf("idle pool picked %v, want 40 and 10", got)
	}
	got := map[string]int{}
	for range 50 {
		k, _ := p.Pick()
		got[k.Member().ID()]++
	}
	if got["a"] < 39 || got["a"] > 41 {
		t.Errorf("50 requests in flight lie on %v, want about 40 and 10", got)
	}
}
