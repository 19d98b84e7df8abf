package discovery_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/discovery"
)

func TestStatusWords(t *testing.T) {
	for status, want := range map[discovery.Status]string{
		discovery.StatusUnknown:     "unknown",
		discovery.StatusPassing:     "passing",
		discovery.StatusWarning:     "warning",
		discovery.StatusCritical:    "critical",
		discovery.StatusMaintenance: "maintenance",
		discovery.Status(99):        "unknown",
	} {
		if got := status.String(); got != want {
			t.Errorf("status %d is %q, want %q", status, got, want)
		}
	}
}

func TestUsable(t *testing.T) {
	for status, want := range map[discovery.Status]bool{
		discovery.StatusUnknown:     false,
		discovery.StatusPassing:     true,
		discovery.StatusWarning:     true,
		discovery.StatusCritical:    false,
		discovery.StatusMaintenance: false,
	} {
		in := discovery.Instance{Status: status, Weight: 1}
		if in.Usable() != want {
			t.Errorf("%s of weight 1 is usable: %v, want %v", status, !want, want)
		}
		in.Weight = 0
		if in.Usable() {
			t.Errorf("%s of weight 0 is usable", status)
		}
	}
	if (discovery.Instance{}).Usable() {
		t.Error("an instance whose status was forgotten is usable")
	}
}

func full() discovery.Instance {
	return discovery.Instance{
		ID: "n1/orders-1", Service: "orders", ServiceID: "orders-1", Node: "n1", Datacenter: "dc1", Address: "10.0.0.1:80",
		Status: discovery.StatusPassing, Weight: 5, Tags: []string{"a", "b"}, Meta: map[string]string{"version": "1"},
		Version: "1", Zone: "z", Checks: []discovery.Check{{ID: "c", Status: discovery.StatusPassing, Output: "ok"}},
	}
}

func TestEqualLooksAtEveryField(t *testing.T) {
	if !full().Equal(full()) {
		t.Fatal("two equal instances differ")
	}
	for name, change := range map[string]func(*discovery.Instance){
		"ID":         func(in *discovery.Instance) { in.ID = "x" },
		"Service":    func(in *discovery.Instance) { in.Service = "x" },
		"ServiceID":  func(in *discovery.Instance) { in.ServiceID = "x" },
		"Node":       func(in *discovery.Instance) { in.Node = "x" },
		"Datacenter": func(in *discovery.Instance) { in.Datacenter = "x" },
		"Address":    func(in *discovery.Instance) { in.Address = "x" },
		"Status":     func(in *discovery.Instance) { in.Status = discovery.StatusWarning },
		"Weight":     func(in *discovery.Instance) { in.Weight = 6 },
		"Tags":       func(in *discovery.Instance) { in.Tags = []string{"b", "a"} },
		"Meta":       func(in *discovery.Instance) { in.Meta = map[string]string{"version": "2"} },
		"Version":    func(in *discovery.Instance) { in.Version = "x" },
		"Zone":       func(in *discovery.Instance) { in.Zone = "x" },
		"Checks":     func(in *discovery.Instance) { in.Checks = []discovery.Check{{ID: "c", Output: "other"}} },
	} {
		in := full()
		change(&in)
		if in.Equal(full()) || full().Equal(in) {
			t.Errorf("a change of %s goes unseen", name)
		}
	}
}

func TestSameInstances(t *testing.T) {
	a := discovery.Snapshot{Service: "orders", Index: 1, Instances: []discovery.Instance{full()}}
	b := a
	b.Index = 2
	if !a.SameInstances(b) {
		t.Error("the index alone makes a difference")
	}
	b.Rejected = []discovery.Rejected{{ID: "x", Reason: "port 70000"}}
	if a.SameInstances(b) {
		t.Error("a new rejection goes unseen")
	}
	if a.SameInstances(discovery.Snapshot{Service: "orders"}) {
		t.Error("an instance that is gone goes unseen")
	}
}

func TestQueryKeyIsReadable(t *testing.T) {
	cases := []struct {
		query discovery.Query
		want  string
	}{
		{discovery.Query{Service: "orders"}, "orders"},
		{discovery.Query{Service: "orders", Datacenter: "dc2", Address: "wan"}, "orders@dc2#wan"},
		{discovery.Query{Service: "orders", Namespace: "shop", Partition: "eu"}, "orders/ns:shop/ap:eu"},
		{discovery.Query{Service: "orders", Filter: `"eu" in Service.Tags`}, `orders?"eu" in Service.Tags`},
		{discovery.Query{Service: "orders", Filter: `"a#wan" in Service.Tags`}, `orders?"\"a#wan\" in Service.Tags"`},
		{discovery.Query{Service: "a@b"}, `"a@b"`},
	}
	for _, c := range cases {
		if got := c.query.Key(); got != c.want {
			t.Errorf("%+v has the key %s, want %s", c.query, got, c.want)
		}
	}
}

// Two queries that ask for different things never share a watch.
func TestQueryKeysDiffer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching(`[ab@/?#":=]{0,3}|/ns:a|/ap:a`)
		draw := func(name string) discovery.Query {
			return discovery.Query{
				Service: word.Draw(t, name+" service"), Datacenter: word.Draw(t, name+" datacenter"),
				Namespace: word.Draw(t, name+" namespace"), Partition: word.Draw(t, name+" partition"),
				Filter: word.Draw(t, name+" filter"), Address: word.Draw(t, name+" address"),
			}
		}
		a := draw("a")
		// Every other way to cut the same text into fields.
		b := a
		switch rapid.IntRange(0, 3).Draw(t, "cut") {
		case 0:
			b = discovery.Query{Service: a.Key()}
		case 1:
			b = discovery.Query{Service: a.Service, Filter: a.Filter + "#" + a.Address}
		case 2:
			b = discovery.Query{Service: a.Service + "@" + a.Datacenter, Namespace: a.Namespace, Partition: a.Partition, Filter: a.Filter, Address: a.Address}
		default:
			b = draw("b")
		}
		if (a == b) != (a.Key() == b.Key()) {
			t.Fatalf("%+v and %+v have the keys %s and %s", a, b, a.Key(), b.Key())
		}
	})
}
