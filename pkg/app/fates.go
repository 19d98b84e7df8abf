package app

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/proconsul/proconsul/balancer"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/proxy"
)

// fates are what became of the tries that an upstream's instances failed: the
// answer to "and what happened to its requests?". A try that went well costs
// nothing here unless it was a second one.
type fates struct {
	retries, rescued atomic.Uint64 // second and later tries, and those of them that brought an answer below 500

	mu   sync.Mutex
	all  byReason            // of every instance there was
	byID map[string]byReason // of those that are
}

// byReason are failed tries by why they failed.
type byReason map[string]*admin.Failure

func newFates() *fates { return &fates{all: byReason{}, byID: map[string]byReason{}} }

// add counts a try that is over.
func (f *fates) add(a proxy.Attempt) {
	failed := a.Failure != "" || a.Status >= 500
	if a.Number > 0 && !a.Broken {
		f.retries.Add(1)
		if !failed {
			f.rescued.Add(1)
		}
	}
	if !failed || a.Failure == "canceled" { // who leaves says nothing of the instance
		return
	}
	reason := a.Failure
	if reason == "" {
		reason = "5xx"
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byID[a.Instance] == nil {
		f.byID[a.Instance] = byReason{}
	}
	for _, of := range []byReason{f.all, f.byID[a.Instance]} {
		if of[reason] == nil {
			of[reason] = &admin.Failure{Reason: reason}
		}
		of[reason].Tries++
		if a.Retried {
			of[reason].Again++
		}
	}
}

// list returns the failures in the order of their reasons.
func (r byReason) list() (list []admin.Failure) {
	for _, row := range r {
		list = append(list, *row)
	}
	slices.SortFunc(list, func(x, y admin.Failure) int { return strings.Compare(x.Reason, y.Reason) })
	return list
}

// failures returns those of all instances there ever were, and those of each
// that is still a member; what is known of others is forgotten.
func (f *fates) failures(members []balancer.MemberStatus) (all []admin.Failure, byID map[string][]admin.Failure) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.all) == 0 {
		return nil, nil
	}
	there := make(map[string]bool, len(members))
	for _, m := range members {
		there[m.Instance.ID] = true
	}
	maps.DeleteFunc(f.byID, func(id string, _ byReason) bool { return !there[id] })
	byID = make(map[string][]admin.Failure, len(f.byID))
	for id, rows := range f.byID {
		byID[id] = rows.list()
	}
	return f.all.list(), byID
}
