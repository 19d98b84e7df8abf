//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// shape is what the configurations of an experiment have to do.
type shape struct {
	features  bool // routes, forwarded headers, request id, JSON access log, limit in memory
	routes    int  // 0: one that takes every path
	instances int  // 0: one
	layers    string
	told      bool // clients are told of their limit
	defaults  bool // nginx with the buffers that it has when nobody sets them
	syslog    bool // HAProxy logs to a server by UDP, rather than to its standard output
}

// target is a proxy under test, running.
type target struct {
	name  string
	addr  string
	admin string // ours only
	proc  *process
	logs  *process // where it sends its log; nil: nowhere
	shape shape
}

// starters make a target's configuration and run it, each in its own way.
func (b *bench) starters() map[string]func(name, addr string, s shape) (*target, error) {
	return map[string]func(string, string, shape) (*target, error){
		"nginx": b.nginx, "nginx-default": b.nginx,
		"haproxy": b.haproxy, "haproxy-syslog": b.haproxy,
		"caddy":   b.caddy,
		"traefik": b.traefik,
		// Listener and upstream engine, then the breaker's.
		"fast": b.proconsul("fast", "fast", "direct"), "fast-told": b.proconsul("fast", "fast", "direct"), "fast-one": b.proconsul("fast", "fast", "direct"),
		"fast-command": b.proconsul("fast", "fast", "command"),
		"std-fast":     b.proconsul("std", "fast", "direct"),
		"std":          b.proconsul("std", "std", "direct"),
	}
}

// variants are what targets have otherwise than the others of an experiment.
var variants = map[string]func(*shape){
	"nginx-default":  func(s *shape) { s.defaults = true },
	"haproxy-syslog": func(s *shape) { s.syslog = true },
	"fast-told":      func(s *shape) { s.told = true },
	"fast-one":       func(s *shape) { s.routes = 1 },
}

// start runs a target.
func (b *bench) start(name string, s shape) (*target, error) {
	if vary := variants[name]; vary != nil {
		vary(&s)
	}
	t, err := b.starters()[name](name, b.address(), s)
	if err != nil {
		return nil, err
	}
	t.shape = s
	return t, nil
}

// write puts a configuration into a file of the target's own folder.
func (b *bench) write(name, file, text string) (path string, err error) {
	dir := filepath.Join(b.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path = filepath.Join(dir, file)
	return path, os.WriteFile(path, []byte(text), 0o644)
}

func (b *bench) launch(name, addr string, stdout io.Writer, env []string, command string, args ...string) (*target, error) {
	p, err := start(proxyCore, stdout, env, command, args...)
	if err != nil {
		return nil, err
	}
	b.running = append(b.running, p)
	if err := p.await(addr); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &target{name: name, addr: addr, proc: p}, nil
}

// prefixes are the paths of the routes: the requests of an experiment with
// many routes are spread over all of them.
func prefixes(s shape) []string {
	if s.routes == 0 {
		return nil
	}
	list := make([]string, s.routes)
	for i := range list {
		list[i] = fmt.Sprintf("/r%d", i)
	}
	return list
}

// backends are addresses of the one backend, which listens on all of loopback.
func (b *bench) backends(s shape) []string {
	list := make([]string, max(s.instances, 1))
	for i := range list {
		list[i] = fmt.Sprintf("127.9.%d.%d:%d", i/250, i%250+1, b.backendPort)
	}
	return list
}

func (b *bench) nginx(name, addr string, s shape) (*target, error) {
	var locations, http strings.Builder
	pass := "proxy_pass http://be; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host $host;" +
		" proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $host;"
	accessLog := "access_log off;"
	if s.features {
		pass += " proxy_set_header X-Request-Id $request_id; add_header X-Request-Id $request_id; limit_req zone=one burst=1000000 nodelay;"
		http.WriteString("limit_req_zone $binary_remote_addr zone=one:10m rate=1000000r/s;\n")
		http.WriteString(`log_format j escape=json '{"time":"$time_iso8601","request_id":"$request_id","client_ip":"$remote_addr","method":"$request_method","host":"$host",` +
			`"path":"$uri","status":$status,"bytes_out":$body_bytes_sent,"dur":$request_time,"upstream":"$upstream_addr","upstream_dur":"$upstream_response_time"}';` + "\n")
		accessLog = "access_log " + filepath.Join(b.dir, name, "access.log") + " j buffer=64k flush=1s;"
	}
	if list := prefixes(s); len(list) > 0 {
		for _, p := range list {
			fmt.Fprintf(&locations, "location %s/ { %s }\n", p, pass)
		}
	} else {
		fmt.Fprintf(&locations, "location / { %s }\n", pass)
	}
	var servers strings.Builder
	for _, a := range b.backends(s) {
		fmt.Fprintf(&servers, "server %s; ", a)
	}
	buffers := "client_body_buffer_size 256k;\nproxy_buffer_size 16k; proxy_buffers 16 64k; proxy_busy_buffers_size 128k;"
	if s.defaults {
		buffers = ""
	}
	dir := filepath.Join(b.dir, name)
	conf, err := b.write(name, "nginx.conf", fmt.Sprintf(`worker_processes 1; pid %s/pid; error_log %s/error.log error; daemon off;
events { worker_connections 19500; }
http {
%s%s
client_body_temp_path %s/body; proxy_temp_path %s/proxy; fastcgi_temp_path %s/f; uwsgi_temp_path %s/u; scgi_temp_path %s/s;
keepalive_timeout 300s; keepalive_requests 100000000; client_max_body_size 32m; %s
upstream be { %s keepalive 2048; keepalive_requests 100000000; }
server { listen %s; %s }
}
`, dir, dir, http.String(), accessLog, dir, dir, dir, dir, dir, buffers, servers.String(), addr, locations.String()))
	if err != nil {
		return nil, err
	}
	return b.launch(name, addr, nil, nil, "nginx", "-c", conf)
}

func (b *bench) haproxy(name, addr string, s shape) (*target, error) {
	var logs *process
	logTo, front := "", "  no log\n"
	if s.features {
		logTo = "  log stdout format raw local0 info\n"
		if s.syslog {
			var server string
			var err error
			if server, logs, err = b.startSyslog(name); err != nil {
				return nil, err
			}
			logTo = "  log " + server + " len 4096 local0 info\n"
		}
		front = "  log global\n  unique-id-format %[uuid()]\n  http-request set-header X-Request-Id %[unique-id]\n  http-response set-header X-Request-Id %[unique-id]\n" +
			"  stick-table type ip size 100k expire 60s store http_req_rate(1s)\n  http-request track-sc0 src\n  http-request deny deny_status 429 if { sc_http_req_rate(0) gt 1000000 }\n" +
			`  log-format '{"time":"%T","request_id":"%ID","client_ip":"%ci","method":"%HM","path":"%HU","status":%ST,"bytes_out":%B,"dur":%Ta,"upstream":"%s","upstream_dur":%Tr}'` + "\n"
	}
	backend := "  default_backend be\n"
	if list := prefixes(s); len(list) > 0 {
		var m strings.Builder
		for _, p := range list {
			fmt.Fprintf(&m, "%s/ be\n", p)
		}
		path, err := b.write(name, "routes.map", m.String())
		if err != nil {
			return nil, err
		}
		backend = fmt.Sprintf("  use_backend %%[path,map_beg(%s)]\n", path)
	}
	var servers strings.Builder
	for i, a := range b.backends(s) {
		fmt.Fprintf(&servers, "  server s%d %s pool-max-conn 2048\n", i, a)
	}
	conf, err := b.write(name, "haproxy.cfg", fmt.Sprintf(`global
  nbthread 1
  maxconn 9600
%sdefaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  timeout http-keep-alive 300s
  http-reuse always
  option forwardfor
frontend f
  bind %s
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Host %%[req.hdr(Host)]
%s%sbackend be
%s`, logTo, addr, front, backend, servers.String()))
	if err != nil {
		return nil, err
	}
	logFile, err := os.Create(filepath.Join(b.dir, name, "stdout.log"))
	if err != nil {
		return nil, err
	}
	defer logFile.Close() // the process has its own
	t, err := b.launch(name, addr, logFile, nil, "haproxy", "-db", "-f", conf)
	if t != nil {
		t.logs = logs
	}
	return t, err
}

func (b *bench) caddy(name, addr string, s shape) (*target, error) {
	proxy := "reverse_proxy " + strings.Join(b.backends(s), " ") + " {\n transport http {\n compression off\n keepalive_idle_conns 4096\n keepalive_idle_conns_per_host 2048\n }\n"
	var site strings.Builder
	if s.features { // it has no limiter of its own
		fmt.Fprintf(&site, " log {\n output file %s\n format json\n }\n", filepath.Join(b.dir, name, "access.log"))
		site.WriteString(" header X-Request-Id {http.request.uuid}\n")
		proxy += " header_up X-Request-Id {http.request.uuid}\n"
	}
	proxy += "}\n"
	if list := prefixes(s); len(list) > 0 {
		for _, p := range list {
			fmt.Fprintf(&site, " handle %s/* {\n %s }\n", p, proxy)
		}
	} else {
		site.WriteString(proxy)
	}
	conf, err := b.write(name, "Caddyfile", fmt.Sprintf("{\n admin off\n auto_https off\n}\nhttp://%s {\n%s}\n", addr, site.String()))
	if err != nil {
		return nil, err
	}
	home := filepath.Join(b.dir, name)
	return b.launch(name, addr, nil, []string{"HOME=" + home, "XDG_DATA_HOME=" + home, "XDG_CONFIG_HOME=" + home}, "caddy", "run", "--config", conf, "--adapter", "caddyfile")
}

func (b *bench) traefik(name, addr string, s shape) (*target, error) {
	var routers, servers strings.Builder
	use := ""
	static := fmt.Sprintf("global: {checkNewVersion: false, sendAnonymousUsage: false}\nlog: {level: ERROR}\nserversTransport: {maxIdleConnsPerHost: 2048}\n"+
		"entryPoints: {web: {address: %q}}\nproviders: {file: {filename: %q}}\n", addr, filepath.Join(b.dir, name, "dynamic.yaml"))
	middlewares := ""
	if s.features {
		static += fmt.Sprintf("accessLog: {format: json, filePath: %q, bufferingSize: 1000}\nmetrics: {prometheus: {}}\n", filepath.Join(b.dir, name, "access.log"))
		middlewares = "  middlewares:\n    limit: {rateLimit: {average: 1000000, burst: 1000000}}\n    break: {circuitBreaker: {expression: \"NetworkErrorRatio() > 0.5\"}}\n"
		use = ", middlewares: [limit, break]"
	}
	list := prefixes(s)
	if len(list) == 0 {
		list = []string{""}
	}
	for i, p := range list {
		fmt.Fprintf(&routers, "    r%d: {rule: 'PathPrefix(`%s/`)', service: be, entryPoints: [web]%s}\n", i, p, use)
	}
	for _, a := range b.backends(s) {
		fmt.Fprintf(&servers, "{url: \"http://%s\"},", a)
	}
	if _, err := b.write(name, "dynamic.yaml", fmt.Sprintf("http:\n  routers:\n%s%s  services:\n    be: {loadBalancer: {servers: [%s]}}\n", routers.String(), middlewares, servers.String())); err != nil {
		return nil, err
	}
	conf, err := b.write(name, "traefik.yaml", static)
	if err != nil {
		return nil, err
	}
	return b.launch(name, addr, nil, nil, b.options.traefik, "--configFile="+conf)
}

// proconsul runs this gateway as shipped, but for what an experiment switches.
func (b *bench) proconsul(listener, upstream, breaker string) func(name, addr string, s shape) (*target, error) {
	return func(name, addr string, s shape) (*target, error) {
		return b.gatewayWith(name, addr, s, listener, upstream, breaker)
	}
}

func (b *bench) gatewayWith(name, addr string, s shape, listener, upstream, breaker string) (*target, error) {
	admin := b.address()
	has := func(layer string) bool { return s.features || strings.Contains(s.layers, layer) }
	var c strings.Builder
	fmt.Fprintf(&c, "version: 1\nlisten:\n  - {name: public, addr: %q, engine: %s}\nadmin: {addr: %q}\nconsul: {disabled: true}\nlog: {level: warn}\n", addr, listener, admin)
	if has("log") {
		fmt.Fprintf(&c, "access_log: {path: %q}\n", filepath.Join(b.dir, name, "access.log"))
	} else {
		c.WriteString("access_log: {disabled: true}\n")
	}
	if has("limit") {
		headers := "none" // the others tell clients nothing of their limits
		if s.told {
			headers = "all"
		}
		// One count for a client, whatever its route, as the others have it.
		fmt.Fprintf(&c, "rate_limit: {by: client_ip, rate: 1000000/s, headers: %s}\n", headers)
	}
	fmt.Fprintf(&c, "upstreams:\n  - {name: be, engine: %s, max_in_flight: 0", upstream)
	switch {
	case s.layers == "command":
		breaker = "command"
		fallthrough
	case has("breaker"):
		fmt.Fprintf(&c, ", breaker: {engine: %s}", breaker)
	default:
		c.WriteString(", breaker: {disabled: true}")
	}
	c.WriteString(", instances: [")
	for _, a := range b.backends(s) {
		fmt.Fprintf(&c, "{address: %q},", a)
	}
	c.WriteString("]}\nroutes:\n")
	list := prefixes(s)
	if len(list) == 0 {
		list = []string{""}
	}
	for i, p := range list {
		fmt.Fprintf(&c, "  - {name: r%d, match: {path: \"%s/**\"}, upstream: {service: be}}\n", i, p)
	}
	conf, err := b.write(name, "proconsul.yaml", c.String())
	if err != nil {
		return nil, err
	}
	t, err := b.launch(name, addr, nil, nil, b.gateway, "run", "-c", conf)
	if t != nil {
		t.admin = admin
	}
	return t, err
}
