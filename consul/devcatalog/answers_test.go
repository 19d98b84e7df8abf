package devcatalog_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/parts"
)

// step is one request whose answer has to be the same from both agents.
type step struct{ method, path, body string }

func get(path string) step               { return step{http.MethodGet, path, ""} }
func put(path, body string) step         { return step{http.MethodPut, path, body} }
func del(path string) step               { return step{http.MethodDelete, path, ""} }
func service(body string) step           { return put("/v1/agent/service/register", body) }
func agentCheck(body string) step        { return put("/v1/agent/check/register", body) }
func filtered(path, filter string) step  { return get(path + "?filter=" + url.QueryEscape(filter)) }
func catalogRegister(body string) step   { return put("/v1/catalog/register", body) }
func catalogDeregister(body string) step { return put("/v1/catalog/deregister", body) }
func invalidMeta(key, value string) step {
	return service(fmt.Sprintf(`{"Name":"x","Meta":{%q:%q}}`, key, value))
}
func withCheck(name, check string) step {
	return service(fmt.Sprintf(`{"Name":%q,"Check":%s}`, name, check))
}
func steps(path string, all ...string) []step {
	var s []step
	for _, v := range all {
		s = append(s, get(path+v))
	}
	return s
}

// script is run on both agents in this order. NODE stands for the agent's name.
func script() []step {
	s := []step{
		get("/v1/catalog/datacenters"),
		get("/v1/catalog/nodes"), get("/v1/catalog/services"),
		get("/v1/agent/services"), get("/v1/agent/checks"),
		get("/v1/agent/members?wan=1"),

		// Registrations, and what is wrong with them.
		service(`{}`), service(``), service(`xx`), service(`{"Name":"x","Foo":1}`), service(`{"Name":"x","Namespace":"default"}`),
		service(`{"Name":"x","Weights":{}}`), service(`{"Name":"x","Weights":{"Passing":1,"Warning":-1}}`), service(`{"Name":"x","Weights":{"Passing":70000}}`),
		service(`{"Name":"x","Address":"0.0.0.0"}`), service(`{"Name":"x","Address":"::"}`),
		invalidMeta("a.b", "1"), invalidMeta("consul-a", "1"), invalidMeta("", "1"), invalidMeta(strings.Repeat("k", 129), "1"), invalidMeta("k", strings.Repeat("v", 513)),
		withCheck("x", `{"HTTP":"http://127.0.0.1:1"}`), withCheck("x", `{"TCP":"127.0.0.1:1"}`), withCheck("x", `{"TTL":"1s","Interval":"1s"}`),
		withCheck("x", `{"TTL":"1s","Status":"zzz"}`), withCheck("x", `{"TTL":"abc"}`), withCheck("x", `{"CheckID":"q"}`), withCheck("x", `{"Interval":"1s"}`),
		withCheck("x", `{"TTL":"1s","Foo":1}`), withCheck("x", `{"ID":"q","TTL":"1s"}`), withCheck("x", `{"HTTP":"http://a","Interval":"1s","FailuresBeforeWarning":2}`),
		withCheck("x", `{"TTL":"1s","OutputMaxSize":-1}`),
		get("/v1/agent/services"),

		// All the fields, and their defaults.
		service(`{"ID":"w1","Name":"web","Port":80,"Tags":["a","B"],"Address":"10.0.0.1","Meta":{"zone":"eu","v":"1"},"Weights":{"Passing":5},"TaggedAddresses":{"lan":{"Address":"10.9.9.9","Port":81},"wan":{"Address":"1.2.3.4"}},"Check":{"TTL":"60s"}}`),
		service(`{"name":"web","id":"w2","enable_tag_override":true,"tagged_addresses":{"lan":{"address":"10.9.9.8","port":82}},"checks":[{"ttl":60000000000,"status":"passing","notes":"hello","name":"my check"},{"check_id":null,"CheckID":"mine","TTL":"1m"}]}`),
		service(`{"name":"web","id":"w2","enable_tag_override":true,"tagged_addresses":{"lan":{"address":"10.9.9.8","port":82}},"checks":[{"ttl":60000000000,"status":"passing","notes":"hello","name":"my check"},{"CheckID":"mine","TTL":"1m"},{"http":"http://127.0.0.1:1/","interval":"1000h","timeout":"2s","deregister_critical_service_after":"90m"}]}`),
		service(`{"Name":"bare"}`), withCheck("empty", `{}`), service(`{"Name":"null","Weights":null,"Tags":null,"Meta":null,"Check":null,"Checks":null}`),
		service(`{"Name":"native","Connect":{"Native":true}}`), service(`{"Name":"native","Port":1,"Connect":{"Native":true}}`), service(`{"Name":"x-1","Kind":"whatever"}`),
		service(`{"Name":"neg","Port":-1}`),
		get("/v1/agent/services"), get("/v1/agent/checks"),
		get("/v1/agent/service/w1"), get("/v1/agent/service/nope"), get("/v1/agent/service/"),
		get("/v1/catalog/services"), get("/v1/catalog/node/NODE"),
		get("/v1/health/service/web"), get("/v1/health/service/WEB"), get("/v1/health/service/bare"), get("/v1/health/service/nope"),
		get("/v1/health/connect/native"), get("/v1/health/connect/web"),
		get("/v1/catalog/service/web"), get("/v1/catalog/service/bare"), get("/v1/catalog/service/nope"),
		get("/v1/health/checks/web"), get("/v1/health/node/NODE"), get("/v1/health/node/nope"), get("/v1/health/checks/nope"),
		get("/v1/health/state/any"), get("/v1/health/state/passing"), get("/v1/health/state/bogus"),

		// Missing names and unknown endpoints.
		get("/v1/health/service/"), get("/v1/health/connect/"), get("/v1/health/checks/"), get("/v1/health/node/"), get("/v1/health/state/"),
		get("/v1/catalog/service/"), get("/v1/catalog/node/"), get("/v1/catalog/services/"), get("/v1/nope"), get("/v1/"),
		get("/v1/catalog/node/nope"),
		{http.MethodPost, "/v1/catalog/services", ""}, {http.MethodHead, "/v1/catalog/services", ""}, {http.MethodOptions, "/v1/catalog/services", ""},
		get("/v1/agent/service/register"), get("/v1/catalog/register"), {http.MethodPatch, "/v1/kv/a", ""}, {http.MethodPost, "/v1/agent/check/pass/x", ""},
		get("/v1/kv//x"), get("/v1/kv"),
	}
	s = append(s, steps("/v1/health/service/web",
		"?tag=a", "?tag=A&tag=b", "?tag=a&tag=c", "?passing", "?passing=true", "?passing=false", "?passing=1", "?passing=zz",
		"?index=abc", "?index=-1", "?index=1.5", "?wait=2", "?wait=2x", "?index=1&wait=0s", "?index=1&wait=-5s",
		"?stale", "?consistent", "?stale&consistent", "?cached&consistent", "?cached", "?near=_agent", "?dc=dc1", "?dc=zz", "?ns=default", "?partition=default",
		"?node-meta=consul-network-segment:", "?node-meta=a:b", "?index=1", "?index=1&near=_agent", "?index=1&passing", "?pretty")...)
	s = append(s, steps("/v1/catalog/service/web", "?tag=a", "?tag=A&tag=b", "?tag=zz", "?stale", "?node-meta=a:b")...)
	s = append(s, steps("/v1/catalog/nodes", "?stale", "?node-meta=a:b", "?consistent")...)
	s = append(s, steps("/v1/status/leader", "?dc=zz")...)

	// Filters.
	for _, f := range []string{
		`Service.ID == w1`, `Service.ID == "w1"`, "Service.ID == `w1`", `Service.ID==w1`, `Service.ID != w1`, `"a" in Service.Tags`, `a in Service.Tags`, `a not in Service.Tags`,
		`Service.Tags contains "a"`, `Service.Tags not contains a`, `Service.Tags is empty`, `Service.Tags is not empty`, `Service.Meta is empty`, `Service.Meta is not empty`,
		`Service.Meta.zone == eu`, `Service.Meta["zone"] != "eu"`, `Service.Meta.v == 1`, `zone in Service.Meta`, `zone not in Service.Meta`, `Service.Meta.no matches "x"`, `Service.Meta.no not matches "x"`,
		`Service.Meta.no == x`, `Service.Meta.no != x`, `x in Service.Meta.no`, `x not in Service.Meta.no`, `Service.Meta.zone contains "e"`,
		`Service.Port == 80`, `Service.Port != 80`, `Service.Port == "80"`, `Service.Port == abc`, `Service.Port == 0x50`, `Service.Port matches "8"`, `80 in Service.Port`,
		`Service.ID matches "w.*"`, `Service.ID not matches "w1"`, `Service.ID matches "w("`, `Service.ID contains "w"`, `"w" in Service.ID`,
		`not Service.ID == w1 and Service.Port == 80`, `not (Service.ID == w1 and Service.Port == 80)`, `Service.ID == w2 or Service.Port == 80`, `Service.ID == w2 or Service.ID == w1 and Service.Port == 1`,
		`(Service.ID == w1)`, ` ( Service.ID == w1 or Service.ID == w2 ) `, `not not Service.ID == w1`, `((Service.ID == w1))`,
		`Checks.Status == passing`, `Checks.Status == warning`, `Checks.Status != passing`, `Checks is empty`, `Checks.ServiceTags contains a`, `Checks.CheckID == serfHealth`,
		`Service.Tags == a`, `Service == x`, `Service.ID is empty`, `Service.Foo == 1`, `zz==1`, `SERVICE.ID == w1`, `Service.Weights.Passing == 5`, `Service.Weights.Passing != 5`,
		`Service.EnableTagOverride == true`, `Service.EnableTagOverride == x`, `Service.TaggedAddresses.lan.Port == 81`, `Service.TaggedAddresses["lan"].Address == "10.9.9.9"`, `Service.TaggedAddresses.no.Port == 81`,
		`Service.Kind == ""`, `Service.Connect.Native == false`, `Service.Proxy.Mode == ""`, `Service.Address == "10.0.0.1"`, `Node.Datacenter == dc1`, `Node.Node != dc1`, `Node.Meta["consul-network-segment"] == ""`,
		`Service.CreateIndex == 1`, `Node.TaggedAddresses.lan == "127.0.0.1"`, `Service.Port == -1`, `Service.PeerName == ""`,
	} {
		s = append(s, filtered("/v1/health/service/web", f))
	}
	s = append(s,
		filtered("/v1/catalog/services", `ServiceName == web`), filtered("/v1/catalog/services", `zz == web`), filtered("/v1/catalog/nodes", `ServiceName == web`), filtered("/v1/catalog/nodes", `Meta.x == 1`),
		filtered("/v1/catalog/service/web", `ServiceTags contains a`), filtered("/v1/catalog/service/web", `ServiceMeta.zone == eu`), filtered("/v1/catalog/node/NODE", `Service == web`),
		filtered("/v1/health/state/any", `Status == passing`), filtered("/v1/health/checks/web", `Status == critical`), filtered("/v1/health/node/NODE", `CheckID == serfHealth`),
		filtered("/v1/agent/services", `Service == web`), filtered("/v1/agent/services", `Tags contains a`), filtered("/v1/agent/checks", `Status == critical`), filtered("/v1/agent/checks", `zz == critical`),
	)

	s = append(s,
		// Checks of the agent.
		agentCheck(`{}`), agentCheck(`{"Name":"c"}`), agentCheck(`{"Name":"c","TTL":"60s","ServiceID":"nope"}`), agentCheck(`{"Name":"c","TTL":"60s","CheckID":"r"}`), agentCheck(`{"Name":"c","TTL":"60s","Status":"zzz"}`),
		agentCheck(`{"Name":"c","HTTP":"http://127.0.0.1:1"}`), agentCheck(`{"Name":"My C","TTL":"60s","ServiceID":"w1","Notes":"n"}`), agentCheck(`{"Name":"node check","ID":"nodechk","TTL":"60s","Status":"passing"}`),
		agentCheck(`{"Name":"h","ID":"httpchk","HTTP":"http://127.0.0.1:1/","Interval":"1000h","Timeout":"3s","service_id":"w1"}`),
		get("/v1/agent/checks"), get("/v1/health/service/web"), get("/v1/health/node/NODE"),
		put("/v1/agent/check/pass/nope", ""), put("/v1/agent/check/pass/", ""), put("/v1/agent/check/pass/httpchk", ""), put("/v1/agent/check/warn/nodechk?note=hey", ""),
		agentCheck(`{"Name":"node check","ID":"nodechk","TTL":"60s","Status":"passing"}`), get("/v1/health/node/NODE"),
		put("/v1/agent/check/update/nodechk", `{"Status":"zzz"}`), put("/v1/agent/check/update/nodechk", `{}`), put("/v1/agent/check/update/nodechk", `{"Status":"passing","Output":"o"}`),
		put("/v1/agent/check/update/nodechk", `{"Status":"critical","Output":"`+strings.Repeat("o", 5000)+`"}`),
		put("/v1/agent/check/update/nope", `{"Status":"passing"}`), get("/v1/health/node/NODE"),
		put("/v1/agent/check/deregister/nope", ""), put("/v1/agent/check/deregister/", ""), put("/v1/agent/check/deregister/nodechk", ""), put("/v1/agent/check/deregister/httpchk", ""), put("/v1/agent/check/deregister/My%20C", ""),

		// Maintenance.
		put("/v1/agent/service/maintenance/w1", ""), put("/v1/agent/service/maintenance/", ""), put("/v1/agent/service/maintenance/w1?enable=maybe", ""), put("/v1/agent/service/maintenance/nope?enable=true", ""),
		put("/v1/agent/service/maintenance/w1?enable=true", ""), put("/v1/agent/service/maintenance/w1?enable=false", ""), put("/v1/agent/service/maintenance/w1?enable=false", ""),
		put("/v1/agent/service/maintenance/w1?enable=1&reason=because", ""), get("/v1/health/checks/web"), get("/v1/agent/checks"), put("/v1/agent/service/maintenance/w1?enable=f", ""),
		put("/v1/agent/maintenance", ""), put("/v1/agent/maintenance?enable=maybe", ""), put("/v1/agent/maintenance?enable=true&reason=r", ""), get("/v1/health/node/NODE"), put("/v1/agent/maintenance?enable=false", ""),

		// Health of the agent's services: unknown ones; the known are in the suite.
		get("/v1/agent/health/service/id/nope"), get("/v1/agent/health/service/id/nope?format=text"), get("/v1/agent/health/service/id/"), get("/v1/agent/health/service/name/nope"), get("/v1/agent/health/service/name/nope?format=text"),

		put("/v1/agent/service/deregister/nope", ""), put("/v1/agent/service/deregister/", ""), put("/v1/agent/service/deregister/w1", ""), put("/v1/agent/service/deregister/w1", ""),
		get("/v1/health/service/web"), get("/v1/agent/checks"), get("/v1/catalog/services"),

		// The catalog's own registrations.
		catalogRegister(`{}`), catalogRegister(`xx`), catalogRegister(`{"Node":"ext"}`), catalogRegister(`{"Node":"ext","Address":"10.0.0.1","Foo":1}`), catalogRegister(`{"Node":"ext","Address":"10.0.0.1","Datacenter":"zz"}`),
		catalogRegister(`{"Node":"ext","Address":"10.0.0.1","Check":{"Name":"zz","ServiceID":"none","Status":"passing"}}`), catalogRegister(`{"Node":"ext","Address":"10.0.0.1","Check":{"Node":"other","Name":"c","Status":"passing"}}`),
		catalogRegister(`{"Node":"ext","Address":"10.0.0.1","NodeMeta":{"a":"b"},"TaggedAddresses":{"wan":"1.1.1.1"},"Service":{"Service":"es","ID":"es1","Port":9,"Tags":["t"],"Meta":{"m":"n"},"Weights":{"Passing":2,"Warning":3}},"Check":{"Name":"ec","ServiceID":"es1","Status":"passing","Output":"fine"}}`),
		catalogRegister(`{"Node":"ext","Address":"10.0.0.1","Service":{"Service":"es"},"Checks":[{"Name":"k","CheckID":"k1"},{"Name":"noid","Status":"bogus","Type":"http"}]}`),
		get("/v1/health/service/es"), get("/v1/health/node/ext"), get("/v1/health/node/EXT"), get("/v1/catalog/node/ext"), get("/v1/catalog/nodes"), get("/v1/catalog/service/es"), get("/v1/health/checks/es"), get("/v1/health/state/any"),
		catalogDeregister(`{}`), catalogDeregister(`{"Node":"unknown"}`), catalogDeregister(`{"Node":"ext","ServiceID":"unknown"}`), catalogDeregister(`{"Node":"ext","CheckID":"k1"}`), catalogDeregister(`{"Node":"ext","ServiceID":"es1"}`),
		get("/v1/health/node/ext"), get("/v1/health/service/es"), catalogDeregister(`{"Node":"ext"}`), get("/v1/catalog/node/ext"), get("/v1/catalog/services"),

		// The key/value store.
		put("/v1/kv/a/b", "v1"), get("/v1/kv/a/b"), get("/v1/kv/a/b?raw"), get("/v1/kv/nope"), get("/v1/kv/?keys"), get("/v1/kv/a?keys"), get("/v1/kv/zz?keys"), get("/v1/kv/a/?recurse"), get("/v1/kv/zz?recurse"), get("/v1/kv/?recurse"),
		put("/v1/kv/a/c?cas=0", "x"), put("/v1/kv/a/c?cas=0", "x"), put("/v1/kv/a/c?cas=1", "x"), put("/v1/kv/a/c?cas=abc", "x"), put("/v1/kv/a/c?cas", "x"), put("/v1/kv/new?cas=7", "x"),
		put("/v1/kv/a/d/e?flags=42", "x"), put("/v1/kv/a/d/e?flags=zz", "x"), put("/v1/kv/a/d/f", "y"), get("/v1/kv/a/d/e"), get("/v1/kv/?keys&separator=/"), get("/v1/kv/a/?keys&separator=/"), get("/v1/kv/a/?keys&separator=d"), get("/v1/kv/a/?recurse"),
		del("/v1/kv/nope"), del("/v1/kv/nope?cas=3"), del("/v1/kv/a/c?cas=1"), del("/v1/kv/a/c?cas=0"), del("/v1/kv/a/c?cas=x"), del("/v1/kv/a/c"),
		get("/v1/kv/a/?keys"), del("/v1/kv/a?recurse"), get("/v1/kv/?keys"), del("/v1/kv/"), put("/v1/kv/", "x"), get("/v1/kv/"),
		put("/v1/kv/empty", ""), get("/v1/kv/empty"), get("/v1/kv/empty?raw"), put("/v1/kv/a%20b/%C3%A9", "x"), get("/v1/kv/?keys"), get("/v1/kv/a%20b/%C3%A9"),
		put("/v1/kv/big", strings.Repeat("x", 512<<10)), put("/v1/kv/big2", strings.Repeat("x", 512<<10+1)), put("/v1/kv/k?acquire=foo", "x"), put("/v1/kv/empty?release=foo", "x"),
		put("/v1/kv/k?dc=zz", "x"), get("/v1/kv/k?index=abc"), get("/v1/kv/k?wait=2"), get("/v1/kv/k?stale"), get("/v1/kv/k?ns=x"),
		del("/v1/kv/?recurse"),
	)
	for _, id := range []string{"w2", "bare", "empty", "null", "native", "x-1", "neg"} {
		s = append(s, put("/v1/agent/service/deregister/"+id, ""))
	}
	return append(s, get("/v1/catalog/services"), get("/v1/agent/services"), get("/v1/agent/checks"))
}

// sameHeaders are compared as they are; of presentHeaders only whether they are
// there.
var (
	sameHeaders = []string{"Content-Type", "Allow", "Vary", "Location", "X-Consul-Default-Acl-Policy", "X-Consul-Effective-Consistency", "X-Consul-Knownleader",
		"X-Consul-Lastcontact", "X-Consul-Query-Backend", "X-Content-Type-Options", "Content-Security-Policy", "X-Consul-Reason"}
	presentHeaders = []string{"X-Consul-Index", "X-Consul-Contenthash", "X-Cache"}
)

// sameAnswers runs the script on both agents and compares what they say.
func sameAnswers(t *testing.T, real, ours *api) {
	for _, a := range []*api{real, ours} {
		client := *a.http
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		a.http = &client
	}
	parts.Eventually(t, 10*time.Second, "the agent did not tell the catalog its addresses", func() bool {
		return strings.Contains(real.get("/v1/catalog/nodes").body, "lan_ipv4")
	})
	for i, st := range script() {
		path := strings.ReplaceAll(st.path, "NODE", real.node)
		want, got := real.do(st.method, path, st.body), ours.do(st.method, path, st.body)
		body := st.body
		if len(body) > 200 {
			body = body[:200] + "..."
		}
		name := fmt.Sprintf("step %d: %s %s %s", i, st.method, path, body)
		if got.code != want.code {
			t.Errorf("%s\n got %d %.300s\nwant %d %.300s", name, got.code, got.body, want.code, want.body)
			continue
		}
		g, w := normal(got.body), normal(want.body)
		if strings.HasPrefix(st.path, "/v1/catalog/services") { // Consul tells the tags in any order
			sortLists(g)
			sortLists(w)
		}
		if d := difference(g, w); d != "" {
			t.Errorf("%s\n%s", name, d)
		}
		if want.code == http.StatusInternalServerError {
			continue // differences.go: errors have no index
		}
		for _, h := range sameHeaders {
			if g, w := got.header.Get(h), want.header.Get(h); g != w {
				t.Errorf("%s\n%s: got %q, want %q", name, h, g, w)
			}
		}
		for _, h := range presentHeaders {
			if g, w := got.header.Get(h), want.header.Get(h); (g == "") != (w == "") {
				t.Errorf("%s\n%s: got %q, want %q", name, h, g, w)
			}
		}
	}
}

// normal is a body without what may differ: indexes, ids of nodes, hashes, and
// the facts of the service that a Consul server is itself. The text of a
// filter's syntax error names what its parser could have read, and is cut.
func normal(body string) any {
	var v any
	if json.Unmarshal([]byte(body), &v) != nil {
		if i := strings.Index(body, ": no match found, expected"); i >= 0 {
			return body[:i]
		}
		return body
	}
	return scrub(v)
}

// sortLists orders the lists of words in an object.
func sortLists(v any) {
	object, _ := v.(map[string]any)
	for _, list := range object {
		if list, ok := list.([]any); ok {
			slices.SortFunc(list, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		}
	}
}

func scrub(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = scrub(v[i])
		}
	case map[string]any:
		if id, _ := v["ID"].(string); len(id) == 36 {
			v["ID"] = "node id"
		}
		if v["ID"] == "consul" || v["ServiceID"] == "consul" {
			return "the service consul"
		}
		if tagged, ok := v["TaggedAddresses"].(map[string]any); ok && len(tagged) == 1 && tagged["consul-virtual"] != nil {
			delete(v, "TaggedAddresses")
		}
		for k := range v {
			switch k {
			case "CreateIndex", "ModifyIndex", "ContentHash":
				v[k] = "N"
			case "consul-virtual": // differences.go: no transparent proxies
				delete(v, k)
			default:
				v[k] = scrub(v[k])
			}
		}
	}
	return v
}

// difference names the first place where two values differ.
func difference(got, want any) string {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			break
		}
		keys := slices.Sorted(maps.Keys(w))
		for k := range g {
			if _, ok := w[k]; !ok {
				keys = append(keys, k)
			}
		}
		for _, k := range keys {
			if _, ok := g[k]; !ok {
				return fmt.Sprintf(".%s: missing, want %v", k, w[k])
			}
			if _, ok := w[k]; !ok {
				return fmt.Sprintf(".%s: got %v, want none", k, g[k])
			}
			if d := difference(g[k], w[k]); d != "" {
				return "." + k + d
			}
		}
		return ""
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			break
		}
		for i := range w {
			if d := difference(g[i], w[i]); d != "" {
				return fmt.Sprintf("[%d]%s", i, d)
			}
		}
		return ""
	}
	if reflect.DeepEqual(got, want) {
		return ""
	}
	return fmt.Sprintf(": got %#v, want %#v", got, want)
}
