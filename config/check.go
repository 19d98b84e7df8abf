package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// check reports what no single value shows: missing keys, references, names
// taken twice, keys that exclude each other. Where a part is already faulty
// the rules about it are left out, so that one mistake is one fault.
func (b *builder) check(c *Config) {
	b.required(reflect.ValueOf(c).Elem(), "")
	b.checkListen(c)
	b.checkACME(c)
	b.checkAdmin(c)
	b.checkConsul(c)
	b.checkRedis(c.Redis)
	if c.Redis.TLS != nil {
		b.keyPair("redis.tls", *c.Redis.TLS)
	}
	b.checkRegistration(c)
	switch k := c.KV.Consumers; {
	case k == "":
	case c.Consul.Disabled:
		b.bad("kv.consumers", k, CodeContradicts, "is read from Consul, and consul is disabled", "")
	case k == "/" || strings.Contains(k, "//") || strings.ContainsFunc(k, unicode.IsSpace):
		b.bad("kv.consumers", k, CodeFormat, "is no prefix of keys (want proconsul/consumers/)", "")
	}
	b.checkAccessLog(c.AccessLog)
	b.checkTracing(c.Tracing)
	b.methods = c.Methods()
	b.checkConsumers(c)
	b.checkMethods(c)
	b.unique("policies", len(c.Policies), func(i int) string { return c.Policies[i].Name })
	for i, p := range c.Policies {
		b.plainName(join(at("policies", i), "name"), p.Name)
		b.checkMiddleware(at("policies", i), p.Middleware)
	}
	if c.RateLimit != nil {
		b.checkRateLimit("rate_limit", *c.RateLimit)
	}
	b.checkUpstreams(c)
	b.unique("routes", len(c.Routes), func(i int) string { return c.Routes[i].Name })
	var policies, upstreams names
	for _, p := range c.Policies {
		policies.add(p.Name)
	}
	for _, u := range c.Upstreams {
		if !u.Implicit {
			upstreams.add(u.Name)
		}
	}
	asked := c.asked()
	for _, path := range slices.Sorted(maps.Keys(asked)) {
		b.checkService(c, upstreams, path, asked[path])
	}
	for i, r := range c.Routes {
		if p := at("routes", i); !b.broken[p] {
			b.checkRoute(p, r)
			b.checkUse(policies, join(p, "use"), r.Use)
			b.checkService(c, upstreams, join(p, "upstream.service"), r.Upstream.Service)
			b.checkShed(c, join(p, "shed"), r)
			b.checkDelays(c, p, r)
		}
	}
	b.checkDefault(c)
	b.checkOverlaps(c)
}

// bad reports a value that one of the rules refuses.
func (b *builder) bad(path, value string, code Code, is, hint string) {
	if b.sound(path) {
		b.reject(path, value, &formatError{code, is, hint})
	}
}

func (b *builder) warn(path string, code Code, message, hint string) {
	b.fault(Fault{Path: path, Code: code, Message: message, Hint: hint, Warning: true})
}

// need reports a key that is not written, or written empty.
func (b *builder) need(path, key, value, hint string) {
	p := join(path, key)
	switch {
	case value != "" || b.broken[path]:
	case !b.written(p):
		b.fault(Fault{Path: p, Code: CodeMissing, Message: fmt.Sprintf("%s has no %q", b.label(path), key), Hint: hint})
	case b.sound(p) && !b.meant[p]:
		b.fault(Fault{Path: p, Code: CodeMissing, Message: p + " is empty", Hint: hint})
	}
}

// required reports every empty key that has the required tag, in sections that
// were written.
func (b *builder) required(v reflect.Value, path string) {
	switch {
	case v.Kind() == reflect.Pointer:
		if !v.IsNil() {
			b.required(v.Elem(), path)
		}
	case v.Kind() == reflect.Slice && !isScalar(v.Type().Elem()):
		for i := range v.Len() {
			b.required(v.Index(i), at(path, i))
		}
	case v.Kind() == reflect.Struct && !isScalar(v.Type()):
		_, written := b.places[path]
		for _, f := range b.fieldsOf(v.Type()) {
			fv := v.FieldByIndex(f.index)
			switch {
			case !f.required:
				b.required(fv, join(path, f.key))
			case written && fv.IsZero():
				b.need(path, f.key, "", "")
			}
		}
	}
}

// unique reports names that an earlier element of the list has.
func (b *builder) unique(list string, n int, name func(int) string) {
	first := map[string]int{}
	for i := range n {
		text := name(i)
		if text == "" {
			continue
		}
		j, taken := first[text]
		if !taken {
			first[text] = i
			continue
		}
		path := join(at(list, i), "name")
		where := ""
		if p := b.places[at(list, j)]; p.src != nil {
			where = fmt.Sprintf(" at %s:%d", p.src.name, p.val.Line)
		}
		b.bad(path, text, CodeNameTwice, fmt.Sprintf("is taken by %s%s", at(list, j), where), "")
	}
}

func (b *builder) checkListen(c *Config) {
	if len(c.Listen) == 0 && b.sound("listen") {
		b.fault(Fault{Path: "listen", Code: CodeMissing, Message: "listen is empty: the gateway would serve nobody", Hint: `write - addr: ":8080"`})
	}
	taken := map[string]string{}
	if c.Admin.Addr != "" {
		taken[c.Admin.Addr] = "admin.addr"
	}
	b.unique("listen", len(c.Listen), func(i int) string { return c.Listen[i].Name })
	for i, l := range c.Listen {
		p := at("listen", i)
		if l.Addr == "" {
			continue
		}
		addr := join(p, "addr")
		b.address(addr, l.Addr, true)
		if other, ok := taken[l.Addr]; ok && !strings.HasSuffix(l.Addr, ":0") {
			b.bad(addr, l.Addr, CodeContradicts, "is the address of "+other+" too", "")
		}
		taken[l.Addr] = addr
		b.checkListenTLS(p, l)
		if l.Limits.MaxInFlight == 0 && l.Limits.MaxQueue > 0 && b.written(join(p, "limits.max_queue")) {
			b.warn(join(p, "limits.max_queue"), CodeNoEffect, join(p, "limits.max_queue")+" has no effect: max_in_flight is 0, so nobody waits", "")
		}
	}
}

func (b *builder) checkAdmin(c *Config) {
	a := c.Admin
	b.unique("admin.tokens", len(a.Tokens), func(i int) string { return a.Tokens[i].Name })
	b.checkAdminClients(a)
	if a.Addr == "" {
		return
	}
	if path, is := a.Socket(); is {
		b.checkAdminSocket(path)
		return
	}
	b.checkAdminTLS(c)
	b.address("admin.addr", a.Addr, true)
	if host, _, err := net.SplitHostPort(a.Addr); err == nil && !loopback(host) && len(a.Tokens) == 0 && !a.KnowsCertificates() && !a.Insecure && b.sound("admin") {
		b.bad("admin.addr", a.Addr, CodeAdminOpen, "is not loopback, and no token guards it",
			"listen on 127.0.0.1, add admin.tokens, or set admin.insecure: true")
	}
}

// maxSocket is what the kernel takes for the path of a unix socket, less what
// its name is longer by while it is made.
const maxSocket = 103

func (b *builder) checkAdminSocket(path string) {
	addr := "unix:" + path
	switch {
	case !strings.HasPrefix(path, "/"):
		b.bad("admin.addr", addr, CodeAddress, "is not a socket (want unix:/path)", "")
	case len(path) > maxSocket:
		b.bad("admin.addr", addr, CodeAddress, fmt.Sprintf("is longer than the %d bytes that a socket's path may have", maxSocket), "")
	}
	if b.written("admin.tls") {
		b.fault(Fault{Path: "admin.tls", Code: CodeContradicts, Message: "admin.tls is written for a unix socket, which the file system guards", Hint: "remove it, or listen on HOST:PORT"})
	}
}

// checkAdminTLS checks the certificates that the admin listener shows.
func (b *builder) checkAdminTLS(c *Config) {
	if c.Admin.TLS == nil {
		b.checkListenTLS("admin", Listen{})
		return
	}
	shown := c.Admin.TLS.Listen()
	b.checkListenTLS("admin", Listen{TLS: &shown})
	// Certificates are told by their listener in metrics and messages.
	for i, l := range c.Listen {
		if l.Name == "admin" {
			b.bad(join(at("listen", i), "name"), l.Name, CodeNameTwice, "is what the admin listener's certificates are told by", "")
		}
	}
}

// checkAdminClients checks those who are known by a certificate.
func (b *builder) checkAdminClients(a Admin) {
	b.unique("admin.clients", len(a.Clients), func(i int) string { return a.Clients[i].Name })
	known := map[certMark]string{}
	for i, one := range a.Clients {
		b.checkConsumerCert(known, at("admin.clients", i), one.Cert())
	}
	asks := a.TLS != nil && a.TLS.ClientCAFile != ""
	switch {
	case len(a.Clients) > 0 && !asks && b.sound("admin.tls"):
		b.warn("admin.clients", CodeNoEffect, "admin.clients has no effect: the admin listener asks for no client certificates", "write admin: {tls: {client_ca_file: ...}}")
	case len(a.Clients) == 0 && asks && b.sound("admin.clients"):
		b.warn("admin.tls.client_ca_file", CodeNoEffect, "admin.tls.client_ca_file has no effect: admin.clients is empty, so a certificate allows nothing", "write admin: {clients: [{name: sre, role: operator, san: sre.example.org}]}")
	}
}

// loopback reports whether a listener on host can be reached from this machine
// only. A name other than localhost may resolve to anything.
func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

func (b *builder) checkConsul(c *Config) {
	k := c.Consul
	switch path, isSocket := strings.CutPrefix(k.Addr, "unix://"); {
	case isSocket && !strings.HasPrefix(path, "/"):
		b.bad("consul.addr", k.Addr, CodeAddress, "is not a socket (want unix:///path)", "")
	case !isSocket && k.Addr != "":
		b.address("consul.addr", k.Addr, false)
	case k.Addr == "" && !k.Disabled && b.sound("consul.addr"):
		b.fault(Fault{Path: "consul.addr", Code: CodeMissing, Message: "consul.addr is empty", Hint: "write consul: {disabled: true} to run without Consul"})
	}
	b.exclusive("consul", "token", "token_file", !k.Token.Empty(), k.TokenFile != "")
	b.keyPair("consul.tls", k.TLS)
}

func (b *builder) exclusive(path, one, other string, hasOne, hasOther bool) {
	if hasOne && hasOther && b.sound(path) {
		b.fault(Fault{Path: join(path, other), Code: CodeContradicts, Message: fmt.Sprintf("%s has both %q and %q", b.label(path), one, other), Hint: "remove one"})
	}
}

func (b *builder) keyPair(path string, t ClientTLS) {
	switch {
	case t.CertFile != "" && t.KeyFile == "":
		b.fault(Fault{Path: join(path, "cert_file"), Code: CodeContradicts, Message: path + " has cert_file without key_file"})
	case t.CertFile == "" && t.KeyFile != "":
		b.fault(Fault{Path: join(path, "key_file"), Code: CodeContradicts, Message: path + " has key_file without cert_file"})
	}
}

var metaKey = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

func (b *builder) checkRegistration(c *Config) {
	r := c.Registration
	if r.Enabled && c.Consul.Disabled {
		b.fault(Fault{Path: "registration.enabled", Code: CodeContradicts, Message: "registration is enabled while consul is disabled"})
	}
	if r.Enabled && r.Name == "" && b.sound("registration.name") {
		b.fault(Fault{Path: "registration.name", Code: CodeMissing, Message: "registration.name is empty"})
	}
	if len(r.Meta) > 64 {
		b.fault(Fault{Path: "registration.meta", Code: CodeRange, Message: fmt.Sprintf("registration.meta has %d pairs, and Consul takes 64", len(r.Meta))})
	}
	for _, k := range slices.Sorted(maps.Keys(r.Meta)) {
		is := ""
		switch {
		case !metaKey.MatchString(k):
			is = "is none that Consul takes (letters, digits, - and _, at most 128)"
		case strings.HasPrefix(k, "consul-"):
			is = "begins with consul-, which Consul keeps for itself"
		case len(r.Meta[k]) > 512:
			is = "has a value longer than the 512 bytes that Consul takes"
		default:
			continue
		}
		b.fault(Fault{Path: join("registration.meta", k), Code: CodeFormat, Message: fmt.Sprintf("registration.meta: key %q %s", k, is)})
	}
}

func (b *builder) checkUpstreams(c *Config) {
	b.unique("upstreams", len(c.Upstreams), func(i int) string { return c.Upstreams[i].Name })
	for i, u := range c.Upstreams {
		if u.Implicit || b.broken[at("upstreams", i)] {
			continue
		}
		b.checkUpstream(c, at("upstreams", i), u)
	}
}

func (b *builder) checkUpstream(c *Config, path string, u Upstream) {
	b.plainName(join(path, "name"), u.Name)
	b.plainName(join(path, "service"), u.Service)
	fixed := b.written(join(path, "instances")) && (len(u.Instances) > 0 || !b.sound(join(path, "instances")))
	switch {
	case fixed && u.Service != "":
		b.exclusive(path, "service", "instances", true, true)
	case fixed:
		b.need(path, "name", u.Name, "an upstream with instances of its own has no service to take its name from")
	case u.Service == "" && b.meant[join(path, "instances")]:
	case u.Service == "":
		b.need(path, "service", "", "name the service in Consul, or list instances")
	case c.Consul.Disabled:
		b.bad(join(path, "service"), u.Service, CodeReference, "is a Consul service, and consul is disabled", "list instances instead")
	}
	for _, consul := range []struct{ key, value string }{{"datacenter", u.Datacenter}, {"filter", u.Filter}, {"address", u.Address}} {
		if p := join(path, consul.key); fixed && consul.value != "" {
			b.warn(p, CodeNoEffect, fmt.Sprintf("%s has no effect: %s has instances of its own", p, b.label(path)), "")
		}
	}
	seen := map[string]bool{}
	for i, s := range u.Instances {
		p := join(at(join(path, "instances"), i), "address")
		if s.Address == "" {
			continue
		}
		b.address(p, s.Address, false)
		if seen[s.Address] {
			b.bad(p, s.Address, CodeNameTwice, "is listed twice", "")
		}
		seen[s.Address] = true
	}
	if u.RateLimit != nil {
		b.checkRateLimit(join(path, "rate_limit"), *u.RateLimit)
	}
	b.keyPair(join(path, "tls"), u.TLS)
	if u.Scheme != "https" && b.written(join(path, "tls")) && u.TLS != (ClientTLS{}) {
		b.warn(join(path, "tls"), CodeNoEffect, fmt.Sprintf("%s has no effect: the scheme is %s", join(path, "tls"), u.Scheme), "write scheme: https")
	}
	reasons := []string{"refused", "reset", "timeout"}
	for i, on := range u.Retry.On {
		code, err := strconv.Atoi(on)
		if slices.Contains(reasons, on) || err == nil && (code == 429 || code >= 500 && code <= 599) {
			continue
		}
		b.bad(at(join(path, "retry.on"), i), on, CodeChoice, "is none of refused, reset, timeout or a status (429, 500 to 599)", didYouMean(on, reasons))
	}
	for i, m := range u.Retry.Methods {
		b.method(at(join(path, "retry.methods"), i), m)
	}
	for i, code := range u.Breaker.FailOn {
		if code < 400 || code > 599 {
			b.bad(at(join(path, "breaker.fail_on"), i), strconv.Itoa(code), CodeRange, "is no status from 400 to 599", "")
		}
	}
	if k := u.Concurrency; k.Max < k.Min && b.sound(join(path, "concurrency")) {
		b.bad(join(path, "concurrency.max"), strconv.Itoa(k.Max), CodeRange, "is below min ("+strconv.Itoa(k.Min)+")", "")
	}
	if o := u.Outlier; o.MaxEjectFor < o.EjectFor && b.sound(join(path, "outlier")) {
		b.bad(join(path, "outlier.max_eject_for"), formatDuration(o.MaxEjectFor), CodeRange, "is shorter than eject_for ("+formatDuration(o.EjectFor)+")", "")
	}
}

// checkShed reports a class that nothing looks at.
func (b *builder) checkShed(c *Config, path string, r Route) {
	if r.Shed == "normal" || r.Shed == "" || r.Redirect != nil {
		return
	}
	i := slices.IndexFunc(c.Upstreams, func(u Upstream) bool { return u.Name == r.Upstream.Service })
	if i >= 0 && !c.Upstreams[i].Concurrency.Adaptive {
		b.warn(path, CodeNoEffect, path+" has no effect: the upstream's concurrency is not adaptive", "write concurrency: {adaptive: true} in upstreams")
	}
}

// plainName refuses what would spoil logs and metric labels.
func (b *builder) plainName(path, name string) {
	switch {
	case len(name) > 256:
		b.bad(path, name, CodeFormat, "is longer than 256 bytes", "")
	case strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) || r == '\ufffd' }):
		b.bad(path, name, CodeFormat, "has characters that do not print", "")
	case name != strings.TrimSpace(name):
		b.bad(path, name, CodeFormat, "has spaces around it", "")
	}
}

// address checks HOST:PORT. Listeners may leave out the host and take port 0.
func (b *builder) address(path, addr string, listen bool) {
	want := "is not HOST:PORT"
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		hint := ""
		_, aerr := netip.ParseAddr(addr)
		switch _, nerr := strconv.ParseUint(addr, 10, 16); {
		case nerr == nil && listen:
			hint = fmt.Sprintf("did you mean %q?", ":"+addr)
		case strings.Contains(addr, "://"):
			hint = "leave out the scheme"
			if u, err := url.Parse(addr); err == nil && u.Port() != "" {
				hint = fmt.Sprintf("did you mean %q?", u.Host)
			}
		case aerr == nil && strings.Contains(addr, ":"):
			hint = fmt.Sprintf("did you mean %q?", net.JoinHostPort(addr, "8080"))
		}
		b.bad(path, addr, CodeAddress, want, hint)
		return
	}
	n, err := strconv.ParseUint(port, 10, 16)
	_, ipErr := netip.ParseAddr(host)
	switch {
	case err != nil || n == 0 && !listen:
		b.bad(path, addr, CodeAddress, want+": the port is a number from 1 to 65535", "")
	case host == "" && !listen:
		b.bad(path, addr, CodeAddress, want+": the host is missing", "")
	case host != "" && ipErr != nil && !hostName(strings.TrimSuffix(strings.ToLower(host), ".")):
		b.bad(path, addr, CodeAddress, want+": the host is neither a name nor an IP address", "")
	}
}
