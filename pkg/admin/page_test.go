package admin_test

import (
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/pkg/admin"
)

func TestPageIsReadableWithoutJavaScript(t *testing.T) {
	f := start(t)
	f.events.Append(admin.Event{Kind: "instance", Service: "orders", Instance: "orders-3", Message: "ejected after " + hostile})
	resp, body := f.do("GET /")
	if resp.StatusCode != 200 {
		t.Fatal(body)
	}
	for _, want := range []string{"gw-1", "✓ ready", "orders-1", "10.0.0.5:8080", "! 2/4", "✕ critical", "↯ ejected", "ejected: 3x refused, probe in", "83 %", "412", "GET shop.example.com/api/orders/**", "proconsul.yaml:41", "port 0 is not a port", "connection refused", "✕ open", "ejected after"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if !strings.Contains(body, `<noscript><meta http-equiv="refresh" content="5"></noscript>`) {
		t.Error("without JavaScript the page does not keep itself current")
	}
}

func TestHostileTextStaysText(t *testing.T) {
	f := start(t)
	f.events.Append(admin.Event{Kind: hostile, Severity: admin.Severity(hostile), Service: hostile, Instance: hostile, Actor: hostile, Message: hostile})
	s := status()
	s.Replica.ID, s.Replica.Version, s.Replica.State, s.Config.Hash, s.Config.Error, s.Consul.Detail, s.Redis.Error = hostile, hostile, hostile, hostile, hostile, hostile, hostile
	s.Upstreams[1].Name, s.Upstreams[1].Service, s.Upstreams[1].Error, s.Upstreams[1].Breaker.State = hostile, hostile, hostile, hostile
	in := &s.Upstreams[1].Instances[0]
	in.ID, in.Address, in.Zone, in.Datacenter, in.State, in.EjectedFor = "n/"+hostile, hostile, hostile, hostile, hostile, hostile
	rt := &s.Routes[0]
	rt.Name, rt.Host, rt.Path, rt.Upstream, rt.Strip, rt.RateLimit, rt.Source, rt.Location = hostile, hostile, hostile, hostile, hostile, hostile, hostile, hostile
	s.Routes[1].Redirect = "javascript:alert(1)//" + hostile
	f = start(t, func(o *admin.Options) { o.Status = func() admin.Status { return s }; o.Events = f.events })
	_, body := f.do("GET /")
	if n := strings.Count(body, "<script"); n != 1 {
		t.Errorf("%d scripts in the page, want its own", n)
	}
	for _, bad := range []string{"<img src=x", "onerror=alert(2)>\"", "{{.}}\"'"} {
		if strings.Contains(body, bad) {
			at := strings.Index(body, bad)
			t.Errorf("%s is markup: %s", bad, body[max(0, at-100):at+50])
		}
	}
	if regexp.MustCompile(`href="[^"]*javascript`).MatchString(body) {
		t.Error("a registration makes a link that runs")
	}
	// An attribute that a value could leave would need a quote of its own.
	if regexp.MustCompile(`(class|title|href|datetime)="[^"]*<`).MatchString(body) {
		t.Error("markup inside an attribute")
	}
}

func TestPageIsSmallAndSelfContained(t *testing.T) {
	size := 0
	err := fs.WalkDir(os.DirFS("page"), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile("page/" + path)
		size += len(b)
		text := strings.ReplaceAll(string(b), "http://www.w3.org/2000/svg", "") // a name, not an address
		for _, bad := range []string{"http://", "https://", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "style=\"", "onclick", "localStorage", "sessionStorage", "document.cookie"} {
			if strings.Contains(text, bad) {
				t.Errorf("%s has %s", path, bad)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if size == 0 || size >= 60<<10 {
		t.Errorf("the page's files have %d bytes, want less than 60 KiB", size)
	}
}

func TestAssetsAreKeptByTheirHash(t *testing.T) {
	f := start(t)
	_, body := f.do("GET /")
	found := regexp.MustCompile(`(?:href|src)="(assets/[a-z]+\.[0-9a-f]{8}\.(css|js|svg))"`).FindAllStringSubmatch(body, -1)
	kinds := map[string]string{"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
	if len(found) < 3 {
		t.Fatalf("assets %v", found)
	}
	for _, m := range found {
		resp, data := f.do("GET /"+m[1], "X-Forwarded-For: 203.0.113.9")
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != kinds[m[2]] || !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") || data == "" {
			t.Errorf("%s: %d %s %s", m[1], resp.StatusCode, resp.Header.Get("Content-Type"), resp.Header.Get("Cache-Control"))
		}
	}
	if resp, _ := f.do("GET /assets/app.00000000.js"); resp.StatusCode != 404 {
		t.Errorf("an unknown asset answers %d", resp.StatusCode)
	}
}

func TestWithoutATokenThePageIsAForm(t *testing.T) {
	f := start(t)
	_, body := f.do("GET /", "X-Forwarded-For: 203.0.113.9")
	if !regexp.MustCompile(`<form id="login"\s*>`).MatchString(body) || !strings.Contains(body, `<div id="content" hidden>`) {
		t.Error("no form for a token")
	}
	for _, secret := range []string{"orders", "gw-1", "9f3c1a2", "10.0.0"} {
		if strings.Contains(body, secret) {
			t.Errorf("the form shows %q", secret)
		}
	}
}

func TestManyInstancesAreBoundedOnThePage(t *testing.T) {
	s := status()
	for i := range 2000 {
		s.Upstreams[0].Instances = append(s.Upstreams[0].Instances, admin.Instance{ID: fmt.Sprintf("n/users-%d", i), State: "passing", Usable: true, Weight: 1, EffectiveWeight: 1})
	}
	f := start(t, func(o *admin.Options) { o.Status = func() admin.Status { return s } })
	_, body := f.do("GET /")
	if n := strings.Count(body, `<details class="inst`); n != 500 {
		t.Errorf("%d instances are rendered, want 500", n)
	}
	if !strings.Contains(body, "1504 more instances") || !strings.Contains(body, "2000/2000") {
		t.Error("the page does not say what it leaves out")
	}
}
