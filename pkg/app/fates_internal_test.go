package app

import (
	"reflect"
	"testing"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/discovery"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/proxy"
)

func TestFatesOfFailedTries(t *testing.T) {
	f := newFates()
	for _, a := range []proxy.Attempt{
		{Instance: "a", Status: 200},                                            // went well
		{Instance: "a", Failure: "refused", Retried: true},                      // and its second try:
		{Instance: "b", Status: 200, Number: 1},                                 // was rescued
		{Instance: "a", Failure: "refused", Retried: true},                      // and its second try:
		{Instance: "b", Status: 503, Number: 1},                                 // failed for the client
		{Instance: "b", Failure: "canceled"},                                    // nobody's fault
		{Instance: "b", Status: 404, Number: 1},                                 // an answer is an answer
		{Instance: "b", Status: 200, Failure: "reset", Broken: true, Number: 1}, // counted as a try before
		{Instance: "gone", Failure: "ttfb_timeout"},                             // failed for the client
	} {
		f.add(a)
	}
	if f.retries.Load() != 3 || f.rescued.Load() != 2 {
		t.Errorf("%d second tries, %d rescued; want 3 and 2", f.retries.Load(), f.rescued.Load())
	}
	member := func(id string) balancer.MemberStatus {
		return balancer.MemberStatus{Instance: discovery.Instance{ID: id}}
	}
	all, byID := f.failures([]balancer.MemberStatus{member("a"), member("b")})
	if want := []admin.Failure{{Reason: "5xx", Tries: 1, Again: 0}, {Reason: "refused", Tries: 2, Again: 2}, {Reason: "reset", Tries: 1, Again: 0}, {Reason: "ttfb_timeout", Tries: 1, Again: 0}}; !reflect.DeepEqual(all, want) {
		t.Errorf("all: %v, want %v", all, want)
	}
	if want := map[string][]admin.Failure{"a": {{Reason: "refused", Tries: 2, Again: 2}}, "b": {{Reason: "5xx", Tries: 1, Again: 0}, {Reason: "reset", Tries: 1, Again: 0}}}; !reflect.DeepEqual(byID, want) {
		t.Errorf("by instance: %v, want %v", byID, want)
	}
	if len(f.byID) != 2 {
		t.Error("an instance that is gone is remembered for ever")
	}
}
