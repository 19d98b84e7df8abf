package app_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestWhatAClientSendsStaysItsOwn sends requests that no browser would: what
// they are made of becomes no label of a metric and no line of a log.
func TestWhatAClientSendsStaysItsOwn(t *testing.T) {
	in := startInside(t, operatorsHead+`consul: {disabled: true}
upstreams: [{name: good, instances: [{address: "`+goodInstance(t)+`"}]}]
routes: [{name: good, match: {path: "/good/**"}, upstream: {service: good}}, {name: limited, match: {path: "/limited"}, upstream: {service: good}, rate_limit: {by: "header(X-Id)", limits: [2/1h]}}]
`)
	// Once in each way that an ordinary client has, so that what comes later is
	// the strange ones' doing.
	for _, path := range []string{"/good/a", "/nowhere", "/limited", "/limited", "/limited"} {
		in.get("public", path)
	}
	sample := regexp.MustCompile(`(?m)^(proconsul_\w+)\{(.*)\} `)
	label := regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)
	labels := func() (map[string]bool, int) {
		_, text := in.call("GET /metrics", "", asViewer)
		values := map[string]bool{}
		for _, m := range sample.FindAllStringSubmatch(text, -1) {
			for _, l := range label.FindAllStringSubmatch(m[2], -1) {
				if !slices.Contains([]string{"le", "code", "class"}, l[1]) {
					values[l[1]+"="+l[2]] = true
				}
			}
		}
		return values, strings.Count(text, "\n")
	}
	before, size := labels()

	const marker = "Evil7Marker"
	long := strings.Repeat(marker, 2000)
	var raw []string
	for _, method := range []string{marker, strings.Repeat("X", 200) + marker, "get", "GET\x0b" + marker, "PROPFIND", "M!#$%&'*+-.^_`|~" + marker} {
		raw = append(raw, method+" /good/a HTTP/1.1\r\nHost: a\r\n\r\n")
	}
	for _, target := range []string{"/" + marker, "/good/" + marker, "/good/%0a%0d" + marker, "/good/%1b[31m" + marker, "/good/%00" + marker, "/good/\"},{\"route\":\"" + marker,
		"/good/" + long, "/good/%e2%80%a8" + marker, "/good/\xff\xfe" + marker, "/good/a?" + marker + "=" + marker, "http://" + marker + "/good/a", "*", "/good/../" + marker, "/good/%2e%2e/" + marker} {
		raw = append(raw, "GET "+target+" HTTP/1.1\r\nHost: a\r\n\r\n")
	}
	for _, host := range []string{marker, marker + ".example", "[::1]", "a\"b", "a\\u000a" + marker, long[:300], "", "a:" + marker, "\xff"} {
		raw = append(raw, "GET /good/a HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
	}
	for _, name := range []string{"User-Agent", "X-Request-Id", "X-Id", "X-Forwarded-For", "X-Forwarded-Host", "Forwarded", "Traceparent", "Authorization", "X-Api-Key", "Cookie",
		"X-Consumer-Name", "X-Proconsul-Route", "X-Proconsul-Reason", marker, "Via", "Referer", "X-Proconsul-Trace"} {
		for _, value := range []string{marker, "\"},{\"status\":200,\"" + marker + "\":\"", "\x1b[2J" + marker, "\t" + marker, long[:3000], "\xff" + marker} {
			raw = append(raw, "GET /limited HTTP/1.1\r\nHost: a\r\n"+name+": "+value+"\r\n\r\n")
		}
	}
	raw = append(raw, marker+"\r\n\r\n", "GET / HTTP/9.9"+marker+"\r\n\r\n", "PRI * HTTP/2.0\r\n\r\n"+marker, "GET /good/a HTTP/1.1\r\nHost: a\r\nHost: "+marker+"\r\n\r\n")
	for _, text := range raw {
		c, err := net.Dial("tcp", in.app.Addr("public"))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		_, _ = io.WriteString(c, strings.Replace(text, "Host:", "Connection: close\r\nHost:", 1))
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}

	after, grown := labels()
	for value := range after {
		// Methods of HTTP, a reason and a class may be seen for the first time.
		name, v, _ := strings.Cut(value, "=")
		if !before[value] && name != "reason" && name != "decision" && !(name == "method" && (v == "_OTHER" || v == http.MethodOptions)) {
			t.Errorf("%s was not there before", value)
		}
		if strings.Contains(strings.ToLower(value), strings.ToLower(marker)) {
			t.Errorf("a label is %s", value)
		}
	}
	if grown-size > 300 {
		t.Errorf("%d requests made %d new lines of a scrape", len(raw), grown-size)
	}

	in.stop()
	lines := strings.Split(strings.TrimSuffix(in.access.String(), "\n"), "\n")
	if len(lines) < 50 || len(lines) > len(raw)+10 {
		t.Errorf("%d lines for %d requests", len(lines), len(raw))
	}
	for _, l := range lines {
		d := json.NewDecoder(strings.NewReader(l))
		seen := map[string]bool{}
		if tok, err := d.Token(); err != nil || tok != json.Delim('{') {
			t.Fatalf("not a line of JSON: %q", l)
		}
		for d.More() {
			key, err := d.Token()
			if err != nil {
				t.Fatalf("%v: %q", err, l)
			}
			if k := fmt.Sprint(key); seen[k] || strings.Contains(k, marker) {
				t.Errorf("the key %q was forged: %q", k, l)
			} else {
				seen[k] = true
			}
			var skip json.RawMessage
			if err := d.Decode(&skip); err != nil {
				t.Fatalf("%v: %q", err, l)
			}
		}
		if i := strings.IndexFunc(l, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 }); i >= 0 {
			t.Errorf("%s stands in a line: %q", strconv.QuoteRune([]rune(l[i:])[0]), l)
		}
	}
	for l := range strings.SplitSeq(in.log.String(), "\n") {
		if l != "" && !strings.HasPrefix(l, "time=") {
			t.Errorf("a line of the log was forged: %q", l)
		}
	}
}
