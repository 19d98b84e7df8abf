//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// bench is one run: a backend, and the targets of the experiment under way.
type bench struct {
	options
	ctx         context.Context
	dir         string
	gateway     string // the binary
	backend     *process
	backendPort int
	running     []*process
}

// load is what a load generator saw.
type load struct {
	Requests int64   `json:"requests"`
	Bad      int64   `json:"bad"`  // not 2xx, or no answer
	Rate     float64 `json:"rate"` // a second
	P50      float64 `json:"p50"`  // us, like the others
	P99      float64 `json:"p99"`
	P999     float64 `json:"p999"`
}

// cost is processor time in us a request.
type cost struct{ User, System float64 }

func (c cost) total() float64 { return c.User + c.System }

// cell is one measurement of one target.
type cell struct {
	load
	cost
	Noise  float64 // of a core, used by others meanwhile
	Allocs float64 // a request; ours only
	Memory int64   // resident afterwards
}

// noisy is the share of a core that others may use beside a measurement.
const noisy = 0.15

// address returns an address of loopback that nobody listens on.
func (b *bench) address() string {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		panic(err) // loopback has no port left: nothing can be measured
	}
	defer l.Close()
	return l.Addr().String()
}

// startBackend runs nginx as the fixed backend: small answers out of memory,
// larger ones out of the page cache.
func (b *bench) startBackend() error {
	_, port, err := net.SplitHostPort(b.address())
	if err != nil {
		return err
	}
	if b.backendPort, err = strconv.Atoi(port); err != nil {
		return err
	}
	for name, n := range map[string]int{"10k": 10 << 10, "100k": 100 << 10, "1m": 1 << 20} {
		if _, err := b.write("backend", name, strings.Repeat("x", n)); err != nil {
			return err
		}
	}
	dir := b.dir + "/backend"
	conf, err := b.write("backend", "nginx.conf", fmt.Sprintf(`worker_processes 1; pid %s/pid; error_log %s/error.log error; daemon off;
events { worker_connections 19500; }
http {
access_log off; keepalive_timeout 300s; keepalive_requests 100000000; client_max_body_size 32m; client_body_buffer_size 2m; sendfile on;
open_file_cache max=10; default_type application/json;
client_body_temp_path %s/b; proxy_temp_path %s/p; fastcgi_temp_path %s/f; uwsgi_temp_path %s/u; scgi_temp_path %s/s;
server { listen %d; root %s; error_page 405 =200 $uri;
location ~ 100k$ { try_files /100k =404; }
location ~ 10k$ { try_files /10k =404; }
location ~ 1m$ { try_files /1m =404; }
location / { return 200 "%s"; } }
}
`, dir, dir, dir, dir, dir, dir, dir, b.backendPort, dir, strings.Repeat("x", 1024)))
	if err != nil {
		return err
	}
	if b.backend, err = start(loadCore, nil, nil, "nginx", "-c", conf); err != nil {
		return err
	}
	return b.backend.await("127.0.0.1:" + port)
}

func (b *bench) stop() {
	b.stopTargets()
	if b.backend != nil {
		b.backend.stop()
	}
}

func (b *bench) stopTargets() {
	for _, p := range b.running {
		p.stop()
	}
	b.running = nil
}

// experiment is one table: some targets, all under the same load.
type experiment struct {
	name    string
	title   string
	targets []string
	shape   shape
	load    request
	beside  string // a target that ours is compared with, beside the peers; empty: none
}

// request is what the load generator sends.
type request struct {
	path    string // behind a route's prefix
	body    int    // bytes; 0: GET
	chunked bool
	conns   int
	rate    int // a second; 0: as many as it can
	idle    int // connections to leave idle, and measure memory instead
}

// result is the cells of one target, one for each round.
type result struct {
	target string
	cells  []cell
}

// measure runs an experiment: all targets at once, each measured in turn.
func (b *bench) measure(e experiment) ([]result, error) {
	defer b.stopTargets()
	var targets []*target
	var results []result
	for _, name := range e.targets {
		if !chosen(b.options.targets, name) || name == "traefik" && b.options.traefik == "" {
			continue
		}
		t, err := b.start(name, e.shape)
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
		results = append(results, result{target: name})
	}
	for round := range b.rounds {
		for i, t := range targets {
			c, err := b.quiet(t, e)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", e.name, t.name, err)
			}
			fmt.Fprintf(os.Stderr, "%-12s round %d  %-13s %6.1f us/request  %7.0f/s  p50 %6.0f us  others %2.0f %%\n",
				e.name, round+1, t.name, c.total(), c.Rate, c.P50, 100*c.Noise)
			results[i].cells = append(results[i].cells, c)
		}
	}
	return results, nil
}

// quiet measures again, a few times, where others used the machine meanwhile.
// The last try counts, however it was: the report says so.
func (b *bench) quiet(t *target, e experiment) (c cell, err error) {
	for range 4 {
		if err := b.ctx.Err(); err != nil {
			return c, err
		}
		if c, err = b.cell(t, e); err != nil || c.Noise <= noisy {
			return c, err
		}
	}
	return c, nil
}

func (b *bench) cell(t *target, e experiment) (c cell, err error) {
	if e.load.idle > 0 {
		return b.idle(t, e)
	}
	args, err := b.generator(t, e)
	if err != nil {
		return c, err
	}
	if e.load.rate == 0 { // paced warms by itself
		if out, err := exec.CommandContext(b.ctx, args[0], append(slices.Clone(args[1:]), "-d1s")...).CombinedOutput(); err != nil {
			return c, fmt.Errorf("warm: %w: %s", err, out)
		}
	}
	scraped := t.allocs()
	allocs := t.allocs() // a scrape is not the load's: what one allocates is known from two
	scraped = allocs - scraped
	before := t.proc.usage()
	others, err := machine()
	if err != nil {
		return c, err
	}
	beside, began := b.beside(t), time.Now()
	var out, faults bytes.Buffer
	cmd := exec.CommandContext(b.ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &faults
	if err := cmd.Run(); err != nil {
		return c, fmt.Errorf("load: %w: %s%s", err, out.String(), faults.String())
	}
	elapsed := time.Since(began).Seconds()
	used := t.proc.usage().sub(before)
	all, err := machine()
	if err != nil {
		return c, err
	}
	text := out.Bytes()
	if err := json.Unmarshal(text[max(bytes.LastIndexByte(bytes.TrimSpace(text), '\n')+1, 0):], &c.load); err != nil {
		return c, fmt.Errorf("load: %w: %s", err, text)
	}
	// While thousands of connections are made others fail one request or another,
	// which says nothing of what the rest costs. Ours may not.
	few := c.Requests / 1000
	if t.admin != "" {
		few = 0
	}
	if c.Bad > few || c.Requests == 0 {
		return c, fmt.Errorf("%d of %d requests were not answered with 200", c.Bad, c.Requests)
	}
	generator := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	c.cost = used.perRequest(c.Requests)
	c.Noise = max(0, (all.sub(others).seconds()-used.seconds()-b.beside(t).sub(beside).seconds()-generator.Seconds())/elapsed)
	if t.admin != "" {
		c.Allocs = (t.allocs() - allocs - scraped) / float64(c.Requests)
	}
	c.Memory = t.proc.memory()
	return c, nil
}

// beside is what those use that a target works with.
func (b *bench) beside(t *target) usage {
	u := b.backend.usage()
	if t.logs != nil {
		u = u.add(t.logs.usage())
	}
	return u
}

// lasting is how long a measurement of the experiment takes: with many connections
// longer, since else it would be of how they are made.
func (b *bench) lasting(e experiment) time.Duration {
	return max(b.length, time.Duration(e.load.conns)*time.Millisecond)
}

// generator is the command that makes an experiment's load: wrk as fast as it
// can, or our own at a fixed rate.
func (b *bench) generator(t *target, e experiment) ([]string, error) {
	if e.load.rate > 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		path := e.load.path
		if list := prefixes(t.shape); len(list) > 0 {
			path = list[len(list)/2] + path
		}
		return []string{"taskset", "-c", loadCore, self, "paced", "-addr", t.addr, "-path", path,
			"-rate", strconv.Itoa(e.load.rate), "-conns", strconv.Itoa(e.load.conns), "-length", b.lasting(e).String()}, nil
	}
	paths := prefixes(t.shape)
	if len(paths) == 0 {
		paths = []string{""}
	}
	var list strings.Builder
	for _, p := range paths {
		fmt.Fprintf(&list, "%q,", p+e.load.path)
	}
	// The requests are made once; wrk walks them in an order that looks random.
	script, err := b.write(t.name, "wrk.lua", fmt.Sprintf(`local paths = {%s}
local n, at, body, chunked, list = #paths, 0, %d, %t, {}
init = function()
  local headers = {["X-Team"] = "a"}
  for i, p in ipairs(paths) do
    if body > 0 and chunked then
      list[i] = "POST " .. p .. " HTTP/1.1\r\nHost: bench\r\nX-Team: a\r\nTransfer-Encoding: chunked\r\n\r\n" .. string.format("%%x", body) .. "\r\n" .. string.rep("b", body) .. "\r\n0\r\n\r\n"
    elseif body > 0 then
      list[i] = wrk.format("POST", p, headers, string.rep("b", body))
    else
      list[i] = wrk.format("GET", p, headers)
    end
  end
end
request = function() at = (at + 617) %% n; return list[at + 1] end
done = function(s, latency)
  local e = s.errors
  io.write(string.format('{"requests":%%d,"bad":%%d,"rate":%%f,"p50":%%f,"p99":%%f,"p999":%%f}\n', s.requests,
    e.connect + e.read + e.write + e.status + e.timeout, s.requests * 1e6 / s.duration,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
`, list.String(), e.load.body, e.load.chunked))
	if err != nil {
		return nil, err
	}
	return []string{"taskset", "-c", loadCore, "wrk", "-t1", "-c" + strconv.Itoa(e.load.conns), "-s", script, "--timeout", "10s",
		"-d" + strconv.Itoa(int(max(b.lasting(e).Seconds(), 1))) + "s", "http://" + t.addr}, nil
}

// idle opens connections, sends one request on each, and takes the memory that
// the target has then.
func (b *bench) idle(t *target, e experiment) (c cell, err error) {
	before := t.proc.memory()
	client := &http.Client{Transport: &http.Transport{MaxIdleConns: e.load.idle, MaxIdleConnsPerHost: e.load.idle}}
	defer client.CloseIdleConnections()
	conns := make([]net.Conn, 0, e.load.idle)
	defer func() {
		for _, conn := range conns {
			_ = conn.Close() // only read from
		}
	}()
	buf := make([]byte, 64<<10)
	for range e.load.idle {
		conn, err := net.Dial("tcp4", t.addr)
		if err != nil {
			return c, err
		}
		conns = append(conns, conn)
		if _, err := io.WriteString(conn, "GET "+e.load.path+" HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
			return c, err
		}
		if _, err := conn.Read(buf); err != nil {
			return c, err
		}
	}
	select { // what gives memory back when idle has had its time
	case <-b.ctx.Done():
		return c, b.ctx.Err()
	case <-time.After(3 * time.Second):
	}
	c.Memory = t.proc.memory()
	c.Requests = int64(e.load.idle)
	c.cost.User = float64(c.Memory-before) / float64(e.load.idle) / 1024 // KiB a connection
	return c, nil
}

// allocs asks one of ours how many objects it has allocated so far.
func (t *target) allocs() float64 {
	if t.admin == "" {
		return 0
	}
	resp, err := http.Get("http://" + t.admin + "/metrics")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if v, ok := strings.CutPrefix(line, "go_memstats_mallocs_total "); ok {
			n, _ := strconv.ParseFloat(v, 64)
			return n
		}
	}
	return 0
}
