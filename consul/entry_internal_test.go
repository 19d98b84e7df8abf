package consul

import (
	"strings"
	"testing"

	"github.com/proconsul/proconsul/discovery"
)

func sample(change func(*entry)) entry {
	e := entry{
		Node:    entryNode{Node: "n1", Address: "10.0.0.1", Datacenter: "dc1"},
		Service: entryService{ID: "web-1", Service: "web", Address: "10.1.0.1", Port: 80},
	}
	if change != nil {
		change(&e)
	}
	return e
}

func TestAddress(t *testing.T) {
	tests := []struct {
		name   string
		want   string
		option string
		change func(*entry)
		err    string
	}{
		{name: "the service's own", want: "10.1.0.1:80"},
		{name: "the node's where the service has none", want: "10.0.0.1:80", change: func(e *entry) { e.Service.Address = "" }},
		{name: "IPv6", want: "[2001:db8::1]:80", change: func(e *entry) { e.Service.Address = "2001:db8::1" }},
		{name: "IPv6 in brackets", want: "[2001:db8::1]:80", change: func(e *entry) { e.Service.Address = "[2001:db8::1]" }},
		{name: "IPv6 with a zone", want: "[fe80::1%eth0]:80", change: func(e *entry) { e.Service.Address = "fe80::1%eth0" }},
		{name: "a host name", want: "web.internal:80", change: func(e *entry) { e.Service.Address = "web.internal" }},
		{name: "wan of the service with its port", option: "wan", want: "192.0.2.1:8080", change: func(e *entry) {
			e.Service.TaggedAddresses = map[string]entryAddress{"wan": {"192.0.2.1", 8080}}
		}},
		{name: "wan_ipv4 of the service, without a port", option: "wan", want: "192.0.2.2:80", change: func(e *entry) {
			e.Service.TaggedAddresses = map[string]entryAddress{"wan_ipv4": {Address: "192.0.2.2"}}
		}},
		{name: "wan falls back to the service's own", option: "wan", want: "10.1.0.1:80", change: func(e *entry) {
			e.Node.TaggedAddresses = map[string]string{"wan": "192.0.2.3"}
		}},
		{name: "wan of the node where the service has none", option: "wan", want: "192.0.2.3:80", change: func(e *entry) {
			e.Service.Address = ""
			e.Node.TaggedAddresses = map[string]string{"wan": "192.0.2.3"}
		}},
		{name: "lan falls back to the node", option: "lan", want: "10.0.0.1:80", change: func(e *entry) { e.Service.Address = "" }},
		{name: "a named one", option: "virtual", want: "240.0.0.1:81", change: func(e *entry) {
			e.Service.TaggedAddresses = map[string]entryAddress{"virtual": {"240.0.0.1", 81}}
		}},
		{name: "a named one that is missing", option: "virtual", err: `no tagged address "virtual"`},
		{name: "no address at all", err: "has an address", change: func(e *entry) { e.Service.Address, e.Node.Address = "", "" }},
		{name: "everything", err: "not one to connect to", change: func(e *entry) { e.Service.Address = "0.0.0.0" }},
		{name: "a URL", err: "neither an IP address nor a host name", change: func(e *entry) { e.Service.Address = "http://x/" }},
		{name: "a host with a port", err: "neither an IP address nor a host name", change: func(e *entry) { e.Service.Address = "web:80" }},
		{name: "a control character", err: "neither an IP address nor a host name", change: func(e *entry) { e.Service.Address = "web\r\nx" }},
		{name: "port 0", err: "port 0 is not between 1 and 65535", change: func(e *entry) { e.Service.Port = 0 }},
		{name: "port -1", err: "port -1", change: func(e *entry) { e.Service.Port = -1 }},
		{name: "port 65536", err: "port 65536", change: func(e *entry) { e.Service.Port = 65536 }},
		{name: "a socket", err: "socket /run/web.sock", change: func(e *entry) { e.Service.Port, e.Service.SocketPath = 0, "/run/web.sock" }},
		{name: "the default of its ports", want: "10.1.0.1:8000", change: func(e *entry) {
			e.Service.Port, e.Service.Ports = 0, []entryPort{{"admin", 9000, false}, {"http", 8000, true}}
		}},
		{name: "a port by meta", want: "10.1.0.1:9000", change: func(e *entry) {
			e.Service.Ports = []entryPort{{"admin", 9000, false}, {"http", 8000, true}}
			e.Service.Meta = map[string]string{"proconsul_port": "admin"}
		}},
		{name: "a port by meta that is missing", err: "names none of its ports", change: func(e *entry) {
			e.Service.Meta = map[string]string{"proconsul_port": "admin"}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := sample(tt.change)
			instances, rejected := toInstances([]entry{e, sample(func(e *entry) { e.Service.ID, e.Service.Address = "ok", "10.9.9.9" })},
				discovery.Query{Service: "web", Address: ""})
			if tt.option != "" {
				instances, rejected = toInstances([]entry{e}, discovery.Query{Service: "web", Address: tt.option})
			}
			if tt.err != "" {
				if len(rejected) != 1 || rejected[0].ID != "n1/web-1" || !strings.Contains(rejected[0].Reason, tt.err) {
					t.Fatalf("rejected %v, want n1/web-1 with %q", rejected, tt.err)
				}
				if tt.option == "" && len(instances) != 1 {
					t.Fatalf("a bad entry cost %d instances", 1-len(instances))
				}
				return
			}
			got := ""
			for _, in := range instances {
				if in.ID == "n1/web-1" {
					got = in.Address
				}
			}
			if got != tt.want || len(rejected) != 0 {
				t.Fatalf("address %q, want %q; rejected %v", got, tt.want, rejected)
			}
		})
	}
}

func checked(states ...string) func(*entry) {
	return func(e *entry) {
		for i, s := range states {
			c := entryCheck{CheckID: string(rune('a' + i)), Status: s, ServiceID: "web-1"}
			switch s {
			case "node maintenance":
				c = entryCheck{CheckID: "_node_maintenance", Status: "critical", Notes: "rebooting", Type: "maintenance"}
			case "service maintenance":
				c = entryCheck{CheckID: "_service_maintenance:web-1", Status: "critical", Notes: "deploy", ServiceID: "web-1"}
			}
			e.Checks = append(e.Checks, c)
		}
	}
}

func TestStatusAndWeight(t *testing.T) {
	weights := func(p, w int) func(*entry) {
		return func(e *entry) { e.Service.Weights = &entryWeights{p, w} }
	}
	meta := func(kv ...string) func(*entry) {
		return func(e *entry) {
			e.Service.Meta = map[string]string{}
			for i := 0; i < len(kv); i += 2 {
				e.Service.Meta[kv[i]] = kv[i+1]
			}
		}
	}
	const passing, warning, critical, maintenance = discovery.StatusPassing, discovery.StatusWarning, discovery.StatusCritical, discovery.StatusMaintenance
	tests := []struct {
		name    string
		changes []func(*entry)
		status  discovery.Status
		weight  int
		reject  string
	}{
		{name: "no checks", status: passing, weight: 1},
		{name: "all pass", changes: []func(*entry){checked("passing", "passing"), weights(5, 2)}, status: passing, weight: 5},
		{name: "one warns", changes: []func(*entry){checked("passing", "warning"), weights(5, 2)}, status: warning, weight: 2},
		{name: "warning drains by default of Consul", changes: []func(*entry){checked("warning"), weights(5, 0)}, status: warning, weight: 0},
		{name: "no weights warn with 1", changes: []func(*entry){checked("warning")}, status: warning, weight: 1},
		{name: "critical beats warning", changes: []func(*entry){checked("warning", "critical", "passing"), weights(5, 2)}, status: critical, weight: 5},
		{name: "maintenance beats critical", changes: []func(*entry){checked("critical", "service maintenance")}, status: maintenance, weight: 1},
		{name: "node maintenance", changes: []func(*entry){checked("passing", "node maintenance")}, status: maintenance, weight: 1},
		{name: "a state that we do not know", changes: []func(*entry){checked("passing", "splendid")}, status: critical, weight: 1},
		{name: "a weight of nonsense", changes: []func(*entry){weights(-3, -4)}, status: passing, weight: 1},
		{name: "meta weight", changes: []func(*entry){weights(5, 2), meta("proconsul_weight", "300")}, status: passing, weight: 300},
		{name: "meta weight leaves a drained warning", changes: []func(*entry){checked("warning"), weights(5, 0), meta("proconsul_weight", "300")}, status: warning, weight: 0},
		{name: "meta weight too large", changes: []func(*entry){weights(5, 2), meta("proconsul_weight", "1001")}, status: passing, weight: 5, reject: "not a number from 1 to 1000"},
		{name: "meta weight of nonsense", changes: []func(*entry){weights(5, 2), meta("proconsul_weight", "all of it")}, status: passing, weight: 5, reject: `"all of it"`},
		{name: "meta drain", changes: []func(*entry){weights(5, 2), meta("proconsul_drain", "true", "proconsul_weight", "9")}, status: passing, weight: 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := sample(func(e *entry) {
				for _, change := range tt.changes {
					change(e)
				}
			})
			instances, rejected := toInstances([]entry{e}, discovery.Query{Service: "web"})
			if len(instances) != 1 || instances[0].Status != tt.status || instances[0].Weight != tt.weight {
				t.Fatalf("got %+v, want %v with weight %d", instances, tt.status, tt.weight)
			}
			if tt.reject == "" && len(rejected) != 0 || tt.reject != "" && (len(rejected) != 1 || !strings.Contains(rejected[0].Reason, tt.reject)) {
				t.Fatalf("rejected %v, want %q", rejected, tt.reject)
			}
		})
	}
}

func TestInstanceFields(t *testing.T) {
	e := sample(checked("critical", "service maintenance"))
	e.Service.Tags = []string{"a", "b"}
	e.Service.Meta = map[string]string{"version": "1.2.3", "proconsul_zone": "eu-1a"}
	e.Node.Meta = map[string]string{"zone": "eu-1b"}
	e.Checks[0].Output = strings.Repeat("x", 5000)
	instances, _ := toInstances([]entry{e}, discovery.Query{Service: "web"})
	in := instances[0]
	if in.ID != "n1/web-1" || in.Service != "web" || in.ServiceID != "web-1" || in.Node != "n1" || in.Datacenter != "dc1" ||
		in.Version != "1.2.3" || in.Zone != "eu-1a" || len(in.Tags) != 2 {
		t.Fatalf("got %+v", in)
	}
	if c := in.Checks[0]; c.Status != discovery.StatusCritical || len(c.Output) != 4096 || c.Node {
		t.Fatalf("check %+v", c)
	}
	if c := in.Checks[1]; c.Status != discovery.StatusMaintenance || c.Notes != "deploy" {
		t.Fatalf("the reason of the maintenance is lost: %+v", c)
	}

	zones := []struct {
		want   string
		change func(*entry)
	}{
		{"s", func(e *entry) { e.Service.Locality, e.Node.Locality = &entryLocality{"s"}, &entryLocality{"n"} }},
		{"n", func(e *entry) { e.Node.Locality, e.Node.Meta = &entryLocality{"n"}, map[string]string{"zone": "m"} }},
		{"m", func(e *entry) { e.Node.Meta = map[string]string{"zone": "m"} }},
		{"", nil},
	}
	for _, tt := range zones {
		instances, _ := toInstances([]entry{sample(tt.change)}, discovery.Query{Service: "web"})
		if instances[0].Zone != tt.want {
			t.Errorf("zone %q, want %q", instances[0].Zone, tt.want)
		}
	}
}

func TestDuplicatesAndMesh(t *testing.T) {
	old := sample(func(e *entry) { e.Service.ID, e.Service.ModifyIndex = "old", 5 })
	recent := sample(func(e *entry) { e.Service.ID, e.Service.ModifyIndex = "recent", 9 })
	sick := sample(func(e *entry) {
		e.Service.ID, e.Service.ModifyIndex = "sick", 12
		e.Checks = []entryCheck{{Status: "critical"}}
	})
	sidecar := sample(func(e *entry) { e.Service.ID, e.Service.Kind, e.Service.Port = "side", "connect-proxy", 21000 })
	other := sample(func(e *entry) { e.Service.Port = 81 })

	instances, rejected := toInstances([]entry{sidecar, sick, old, recent, other}, discovery.Query{Service: "web"})
	if len(instances) != 2 || instances[0].ID != "n1/recent" || instances[1].ID != "n1/web-1" {
		t.Fatalf("got %+v, want the newest healthy of the three and the other port, by id", instances)
	}
	if len(rejected) != 3 || rejected[0].ID != "n1/old" || rejected[1].ID != "n1/sick" || rejected[2].ID != "n1/side" {
		t.Fatalf("rejected %+v", rejected)
	}
	if !strings.Contains(rejected[0].Reason, "already instance n1/recent") || !strings.Contains(rejected[2].Reason, "connect-proxy") {
		t.Fatalf("reasons %+v", rejected)
	}
}
